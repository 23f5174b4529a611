"""Graphs are held to the model they are of; what becomes eight bits is held to what is computed by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tests.modeling.test_modeling_aligner import TEXT, make_aligner  # noqa: E402
from trainers import onnx_export  # noqa: E402
from trainers.onnx_export import EdgeTower, export_tower, int8_rows, quantize_int8, store_as_int8  # noqa: E402


def run(path, **inputs) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in inputs.items()})[0]


def read_by_the_model(model, ids, mask, dim) -> np.ndarray:
    with torch.no_grad():
        return model.get_text_features(ids, mask, truncate_dim=dim).pooler_output.numpy()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A text tower, its float32 graph and the one of eight bits. One layer: writing a graph takes seconds a layer."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(TEXT, "bert", TEXT["bert"] | {"num_hidden_layers": 1})
    model, folder = make_aligner("clip", "bert", text_features="tokens"), tmp_path_factory.mktemp("graphs")
    monkeypatch.undo()
    ids = torch.tensor([[4, 5, 6, 1], [7, 8, 1, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    export_tower(EdgeTower(model, "text", 12), inputs, folder / "text.onnx")
    quantize_int8(folder / "text.onnx", folder / "small.onnx")
    return model, folder


@pytest.mark.parametrize("shape", [(2, 4), (1, 1), (5, 9)])
def test_a_graph_gives_the_models_first_numbers_for_any_batch_and_length(reader, shape):
    model, folder = reader
    ids = torch.randint(2, 20, shape)
    mask = torch.ones_like(ids)
    mask[0, shape[1] // 2 + 1 :] = 0
    found = run(folder / "text.onnx", input_ids=ids, attention_mask=mask)
    assert found.shape == (shape[0], 12) and found.dtype == np.float32
    np.testing.assert_allclose(found, read_by_the_model(model, ids, mask, 12), rtol=0, atol=1e-5)


def test_a_graph_of_eight_bits_is_nearly_the_model(reader):
    model, folder = reader
    ids = torch.randint(2, 20, (50, 6))
    mask = torch.ones_like(ids)
    cosines = (
        run(folder / "small.onnx", input_ids=ids, attention_mask=mask) * read_by_the_model(model, ids, mask, 12)
    ).sum(1)
    assert cosines.mean() > 0.995 and not np.allclose(cosines, 1, rtol=0, atol=1e-7)


def test_matrices_keep_within_seven_bits_so_that_no_x86_overflows(reader):
    small = onnx.load(reader[1] / "small.onnx").graph
    weights = {weight.name: numpy_helper.to_array(weight) for weight in small.initializer}
    names = [node.input[1] for node in small.node if node.op_type == "MatMulInteger"]
    matrices = [weights[name] for name in names]
    assert len(matrices) == 10  # query, key, value, output, two of an MLP; two of the projector, how it pools, the head
    assert matrices[-1].shape == (32, 12), "the head has no numbers that are thrown away"
    assert {matrix.dtype.name for matrix in matrices} == {"int8"}
    scales = [weights[name.replace("_quantized", "_scale")] for name in names]
    assert [len(scale) for scale in scales] == [matrix.shape[1] for matrix in matrices], "one a column"
    assert [int(np.abs(matrix).max()) for matrix in matrices] == [64] * len(matrices)
    assert max(weight.size for weight in weights.values() if weight.dtype == np.float32) < onnx_export.LEAST


def test_a_graph_says_nothing_of_the_machine_it_was_made_on(reader):
    for name in ("text.onnx", "small.onnx"):
        content = (reader[1] / name).read_bytes()
        assert b"site-packages" not in content and b"modeling_aligner" not in content
    model = onnx.load(reader[1] / "small.onnx")
    assert {opset.domain for opset in model.opset_import} == {node.domain for node in model.graph.node}


def graph(nodes, inputs, weights, path):
    """A model of one output "y"."""
    made = helper.make_graph(
        nodes, "by_hand", [helper.make_tensor_value_info(*told) for told in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_rows_become_integers_with_a_scale_each():
    rows, scale = int8_rows(np.array([[1.27, -0.5, 0.004], [0, 0, 0], [-25.4, 0.2, 0.1]], dtype=np.float32))
    assert rows.dtype == np.int8 and rows.tolist() == [[127, -50, 0], [0, 0, 0], [-127, 1, 0]]
    np.testing.assert_allclose(scale, [[0.01], [1], [0.2]], rtol=1e-6)


def test_of_an_embedding_only_what_is_looked_up_becomes_floats(tmp_path):
    table = (
        np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
        * np.linspace(0.1, 9, 300, dtype=np.float32)[:, None]
    )
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    graph(nodes, [("ids", TensorProto.INT64, ["n", "l"])], {"table": table}, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    store_as_int8(model)
    onnx.save(model, tmp_path / "b.onnx")
    kept = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    assert {name: (value.dtype.name, value.shape) for name, value in kept.items()} == {
        "table_int8": ("int8", (300, 8)), "table_scale": ("float32", (300, 1)),
    }  # fmt: skip
    assert [node.op_type for node in model.graph.node] == ["Gather", "Gather", "Cast", "Mul"]
    ids = np.array([[0, 7], [299, 7]])
    half_a_step = np.abs(table[ids]).max(-1, keepdims=True) / 254
    assert (np.abs(run(tmp_path / "b.onnx", ids=ids) - table[ids]) <= half_a_step * 1.001).all()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_shared_convolution_a_small_one_and_a_weight_that_is_used_elsewhere_too_stay_right(tmp_path, elsewhere):
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(16, 16, 3, 3)), "small": random.normal(size=(16, 3, 3, 3))}
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    nodes = [
        helper.make_node("Conv", ["x", "small"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("ReduceMean", ["w" if elsewhere else "small"], ["m"], keepdims=0),
        helper.make_node("Add", ["c", "m"], ["y"]),
    ]
    graph(nodes, [("x", TensorProto.FLOAT, ["n", 3, 9, 9])], weights, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    store_as_int8(model)
    onnx.save(model, tmp_path / "b.onnx")
    kept = {weight.name: weight.data_type for weight in model.graph.initializer}
    assert kept["small"] == TensorProto.FLOAT and kept["w_int8"] == TensorProto.INT8
    assert ("w" in kept) is elsewhere
    x = random.normal(size=(2, 3, 9, 9)).astype(np.float32)
    before, after = (run(tmp_path / name, x=x) for name in ("a.onnx", "b.onnx"))
    assert 0 < np.abs(before - after).max() < 0.02 * np.abs(before).max()


def test_a_weight_that_is_split_before_it_is_used_becomes_eight_bits_too(tmp_path):
    weight = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    nodes = [helper.make_node("Split", ["w"], ["q", "k"], axis=1, num_outputs=2)]
    nodes += [helper.make_node("MatMul", ["x", "q"], ["a"]), helper.make_node("MatMul", ["a", "k"], ["y"])]
    graph(nodes, [("x", TensorProto.FLOAT, ["n", 64])], {"w": weight}, tmp_path / "a.onnx")
    quantize_int8(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").stat().st_size < 0.45 * (tmp_path / "a.onnx").stat().st_size
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    before, after = (run(tmp_path / name, x=x) for name in ("a.onnx", "b.onnx"))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()


def test_weights_that_one_file_cannot_hold_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "SINGLE_FILE", 1000)
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph(nodes, [("x", TensorProto.FLOAT, ["n", 64])], {"w": weight}, tmp_path / "a.onnx")
    quantize_int8(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").stat().st_size < 4096 <= (tmp_path / "b.onnx.data").stat().st_size
    x = np.eye(64, dtype=np.float32)
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x=x), weight, rtol=0, atol=0.05)


class Undecided(nn.Module):
    """What it computes depends on what it sees: no graph can say that."""

    part = "vision"

    def __init__(self):
        super().__init__()
        config = SimpleNamespace(architecture="resnet10t", model_type="timm_wrapper")
        self.model = SimpleNamespace(towers=lambda: {"vision": SimpleNamespace(config=config)})
        self.model.config = SimpleNamespace(projector="perceiver")

    def forward(self, values):
        return values if values.sum().item() > 0 else -values


def test_a_tower_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"the vision tower \(resnet10t\) with a perceiver projector cannot be written as ONNX"
    ):
        export_tower(Undecided(), {"pixel_values": torch.randn(2, 3)}, tmp_path / "never.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dim", [0, 33])
def test_a_dim_that_there_is_not_is_refused(dim):
    with pytest.raises(ValueError, match=f"dim={dim}: embeddings have 1 to 32 numbers"):
        EdgeTower(make_aligner(), "vision", dim)


def test_the_model_keeps_its_whole_head():
    model = make_aligner()
    EdgeTower(model, "vision", 8)
    assert model.vision_projector.head.weight.shape[0] == 32


def test_missing_packages_are_named_with_how_to_have_them(monkeypatch):
    onnx_export.require_packages()
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r"exporting needs onnxscript: pip install 'sightline\[export\]'"):
        onnx_export.require_packages()


def test_embeddings_are_compared_by_hand():
    own = {"text": torch.tensor([[1.0, 0.0], [0.6, 0.8]])}
    edge = {"text": torch.tensor([[0.8, 0.6], [0.6, 0.8]])}
    figures = onnx_export.compare(edge, own, "int8", 2)
    assert {name: told["value"] for name, told in figures.items()} == {
        "text_cosine_int8@2": pytest.approx(0.9), "text_cosine_min_int8@2": pytest.approx(0.8),
        "text_difference_int8@2": pytest.approx(0.6),
    }  # fmt: skip
    half = 1.96 * 0.1 / 2**0.5
    assert figures["text_cosine_int8@2"]["ci95"] == pytest.approx([0.9 - half, 0.9 + half])
    assert figures["text_cosine_min_int8@2"]["n"] == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_difference_fp32@8", 0.0011, "text_difference_fp32@8 is 0.0011: the float32 graph differs"),
        ("text_difference_fp32@8", float("nan"), "differs from PyTorch by more than 0.001"),
        ("vision_cosine_int8@8", 0.979, r"vision_cosine_int8@8 is 0.979, and at least 0.98 is asked for"),
    ],
)
def test_graphs_that_are_not_the_model_are_refused_with_the_number(name, value, message):
    fine = {"text_difference_fp32@8": 0.00099, "vision_cosine_int8@8": 0.981, "vision_difference_int8@8": 0.2}
    fine |= {"vision_cosine_min_int8@8": 0.5, "vision_cosine_fp32@8": 0.97}
    onnx_export.must_agree({name: onnx_export.figure(value) for name, value in fine.items()}, 0.98)
    with pytest.raises(ValueError, match=message):
        onnx_export.must_agree({name: onnx_export.figure(value)}, 0.98)


def test_time_is_taken_in_turns_and_the_ratio_turn_by_turn(monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr(onnx_export.time, "perf_counter", lambda: clock[0])

    def takes(name, seconds):
        def way(*given):
            said.append(name)
            clock[0] += next(seconds)

        return way

    tower = takes("pytorch", iter([9, 9, 9, 4, 2, 10]))
    edge = SimpleNamespace(run=takes("int8", iter([9, 9, 9, 1, 1, 1])))
    times = onnx_export.time_in_turns(tower, {"int8": edge}, "text", {"input_ids": torch.ones(1, 2)}, repeats=3)
    assert said == ["pytorch", "int8"] * 6
    assert times["ms", "pytorch"]["value"] == 4000 and times["ms", "int8"]["value"] == 1000
    assert times["time_ratio", "int8"] == {"value": 0.25, "ci95": [0.1, 0.5], "n": 3}
    assert ("time_ratio", "pytorch") not in times


ARCHITECTURES = [
    (part, tower, projector, features)
    for part, towers in (("vision", ("clip", "siglip", "vit")), ("text", ("clip", "siglip", "bert")), ("audio", ("ast", "whisper")))
    for tower in towers
    for projector in ("mlp", "perceiver")
    for features in ("pooled", "tokens")
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("part", "tower", "projector", "features"), ARCHITECTURES)
def test_every_architecture_is_written_and_stays_what_it_is(tmp_path, part, tower, projector, features):
    model = make_aligner(**{part: tower}, projector=projector, **{f"{part}_features": features})
    values = {"clip": torch.randn(6, 3, 16, 16), "ast": torch.randn(6, 64, 16), "whisper": torch.randn(6, 16, 100)}
    inputs = {"values": values.get(tower, torch.randn(6, 3, 16, 16))}
    if part == "text":
        inputs = {"values": torch.randint(2, 20, (6, 7)), "attention_mask": torch.ones(6, 7, dtype=torch.long)}
        inputs["attention_mask"][1, 3:] = 0
    made = EdgeTower(model, part, 16)
    export_tower(made, {name: value[:2] for name, value in inputs.items()}, tmp_path / "a.onnx")
    quantize_int8(tmp_path / "a.onnx", tmp_path / "b.onnx")
    with torch.no_grad():
        expected = made(*inputs.values()).numpy()
    np.testing.assert_allclose(run(tmp_path / "a.onnx", **inputs), expected, rtol=0, atol=1e-5)
    assert (run(tmp_path / "b.onnx", **inputs) * expected).sum(1).min() > 0.97


@pytest.mark.slow
def test_a_timm_tower_is_written_and_stays_what_it_is(tmp_path):
    from modeling import AlignerConfig, AlignerModel

    torch.manual_seed(0)
    config = {"model_type": "timm_wrapper", "architecture": "resnet10t", "do_pooling": True}
    sizes = {"projector_dim": 16, "num_attention_heads": 2, "embed_dim": 32, "matryoshka_dimensions": [8, 32]}
    model = AlignerModel(AlignerConfig(vision_config=config, text_config=TEXT["clip"], **sizes)).eval()
    tower, pixels = EdgeTower(model, "vision", 8), torch.randn(3, 3, 64, 64)
    export_tower(tower, {"pixel_values": pixels[:2]}, tmp_path / "a.onnx")
    quantize_int8(tmp_path / "a.onnx", tmp_path / "b.onnx")
    with torch.no_grad():
        expected = tower(pixels).numpy()
    np.testing.assert_allclose(run(tmp_path / "a.onnx", pixel_values=pixels), expected, rtol=0, atol=1e-4)
    assert (run(tmp_path / "b.onnx", pixel_values=pixels) * expected).sum(1).min() > 0.99
    assert (tmp_path / "b.onnx").stat().st_size < 0.27 * (tmp_path / "a.onnx").stat().st_size
