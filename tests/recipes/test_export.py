"""recipes/export.py: the folder it leaves, who can load it, and when it leaves none."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import ASTFeatureExtractor, HfArgumentParser, WhisperFeatureExtractor


pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import processing  # noqa: E402
from tests.conftest import VISION, picture  # noqa: E402
from tests.modeling.test_modeling_aligner import TEXT, make_aligner, make_aligner_processor  # noqa: E402
from trainers import onnx_export  # noqa: E402


ROOT = Path(__file__).parents[2]
ONE_LAYER = {"num_hidden_layers": 1}  # writing a graph takes seconds a layer
WRITE = onnx_export.export_tower


def make_processor():
    processor = make_aligner_processor()
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    return processor


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_export", ROOT / "recipes/export.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(recipe, tmp_path_factory):
    """A folder with a model and, beside it, its export; each float32 graph is kept, so that it is written once."""
    place, patch = tmp_path_factory.mktemp("place"), pytest.MonkeyPatch()
    for towers, name in ((VISION, "clip"), (TEXT, "bert")):
        patch.setitem(towers, name, towers[name] | ONE_LAYER)
    make_aligner("clip", "bert", "whisper", text_features="tokens").save_pretrained(place / "model")
    make_processor().save_pretrained(place / "model")
    (place / "kept").mkdir()

    def write_and_keep(tower, inputs, path):
        WRITE(tower, inputs, path)
        shutil.copy(path, place / "kept" / path.name)

    patch.setattr("datasets.config.HF_DATASETS_CACHE", place / "datasets")
    patch.setattr(onnx_export, "export_tower", write_and_keep)
    patch.chdir(place)
    recipe.main(arguments(recipe))
    patch.setattr(
        onnx_export, "export_tower", lambda tower, inputs, path: shutil.copy(place / "kept" / path.name, path)
    )
    yield place
    patch.undo()


def arguments(recipe, *more):
    told = ["--model", "model", "--format", "onnx", "--quantize", "int8", "--dim", "16", "--output", "edge"]
    told += ["--num_examples", "24", "--batch_size", "10", "--repeats", "4", "--min_cosine", "0.9", *more]
    return HfArgumentParser(recipe.Arguments).parse_args_into_dataclasses(told)[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_holds_graphs_processor_card_figures_and_what_runs_them(place):
    assert {path.name for path in (place / "edge").iterdir()} == {
        "vision.onnx", "text.onnx", "audio.onnx", "edge.json", "onnx_aligner.py", "README.md", "metrics.json",
        "processing_aligner.py", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert {path.name for path in place.iterdir()} == {"model", "kept", "datasets", "edge"}, "nothing is left beside it"
    told = json.loads((place / "edge/edge.json").read_text())
    assert (told["dim"], told["quantize"]) == (16, "int8")
    assert told["graphs"] == {"image": "vision.onnx", "text": "text.onnx", "audio": "audio.onnx"}


def test_every_figure_says_what_it_is_of(place):
    figures = json.loads((place / "edge/metrics.json").read_text())
    protocol = figures.pop("protocol")
    assert all(set(told) == {"value", "ci95", "n"} and len(told["ci95"]) == 2 for told in figures.values())
    for part in ("vision", "text", "audio"):
        assert figures[f"{part}_difference_fp32@16"]["value"] < 1e-5
        assert 1e-5 < figures[f"{part}_difference_int8@16"]["value"]
        assert 0.9 < figures[f"{part}_cosine_min_int8@16"]["value"] < figures[f"{part}_cosine_int8@16"]["value"] < 1
        assert figures[f"{part}_bytes_int8"]["value"] == (place / f"edge/{part}.onnx").stat().st_size
        assert figures[f"{part}_bytes_fp32"]["value"] == (place / f"kept/{part}.onnx").stat().st_size
        for much in ("single", "batch"):
            assert (
                figures[f"{part}_ms_{much}_pytorch"]["n"] == 4
                and figures[f"{part}_time_ratio_{much}_int8"]["value"] > 0
            )
    ways = {name.partition("_r1_")[0] for name in figures if "_r1_" in name}
    assert len(ways) == 6 and "audio_to_image" in ways
    for way in ways:
        assert figures[f"{way}_r1_fp32@16"] == figures[f"{way}_r1_pytorch@16"]
        assert f"{way}_r10_int8@16" in figures
    assert protocol["gallery"]["image"] == 24 and protocol["dataset_options"]["sounds"] is True
    assert (protocol["dataset"], protocol["split"], protocol["threads"]) == ("scenes", "validation", 1)


def test_the_card_is_one_and_its_table_is_of_the_figures(place):
    card = ModelCard.load(place / "edge/README.md")
    assert (card.data.library_name, card.data.license) == ("onnx", "apache-2.0")
    assert {"onnx", "sightline", "int8"} <= set(card.data.tags) and card.data.base_model is None
    figures = json.loads((place / "edge/metrics.json").read_text())
    size, whole = (figures[f"text_bytes_{name}"]["value"] for name in ("int8", "fp32"))
    row = re.search(r"\| text.onnx \| int8 \|(.*)\|", card.text)[1].split("|")
    assert [cell.strip() for cell in row[:2]] == [f"{size:,.0f}", f"{size / whole:.3f}"]
    assert float(row[-2]) == round(figures["text_cosine_int8@16"]["value"], 5)
    row = re.search(r"\| text to image \| int8 \|(.*)\|", card.text)[1].split("|")
    assert float(row[0]) == round(figures["text_to_image_r1_int8@16"]["value"], 4)
    assert "aligner(audio=[waveform]" in card.text


STRANGER = """
import importlib.util
assert not [name for name in ("torch", "torchvision", "modeling", "processing", "trainers") if importlib.util.find_spec(name)]
{snippet}
import numpy as np
picture = Image.fromarray(np.load("picture.npy"))
found = aligner(images=picture, text=["what colour is it </s>"], audio=np.load("sound.npy"), sampling_rate=16000)
np.savez("found.npz", **found)
deaf = OnnxAligner("deaf")
assert np.array_equal(deaf(text=["what colour is it </s>"])["text"], found["text"])
try:
    deaf(audio=np.load("sound.npy"))
except ImportError as error:
    assert "ASTFeatureExtractor requires PyTorch" in str(error)
else:
    raise AssertionError("an AST's feature extractor works without PyTorch now: say so on the card")
assert "torch" not in sys.modules
"""


def test_a_stranger_without_this_repository_and_without_pytorch_gets_the_models_embeddings(place, tmp_path):
    """The card's own words are run, in an interpreter that sees the installed packages except PyTorch's and ours."""
    (tmp_path / "site").mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("torch", "functorch", "__editable__", "sightline")) and path.suffix != ".pth":
            (tmp_path / "site" / path.name).symlink_to(path)
    shutil.copytree(place / "edge", tmp_path / "edge")
    shutil.copytree(place / "edge", tmp_path / "deaf")
    told = json.loads((tmp_path / "deaf/processor_config.json").read_text())
    told["feature_extractor"] = ASTFeatureExtractor().to_dict()
    (tmp_path / "deaf/processor_config.json").write_text(json.dumps(told))
    snippet = re.search(r"```python\n(import sys.*?)```", (place / "edge/README.md").read_text(), re.DOTALL)[1]
    sound = np.sin(np.arange(8000) / 7).astype(np.float32)
    np.save(tmp_path / "sound.npy", sound)
    np.save(tmp_path / "picture.npy", np.asarray(picture(3)))
    program = f"import sys\nsys.path.insert(0, {str(tmp_path / 'site')!r})\n{STRANGER.format(snippet=snippet)}"
    environment = {"HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    environment["HOME"] = str(tmp_path / "home")
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.count("[") == 3, "the card's snippet prints two cosines"
    left = [path for path in (tmp_path / "home").rglob("*") if "Microsoft" in path.parts]
    assert not left, "ONNX Runtime keeps what it reports"
    from modeling import AlignerModel

    model, processor = AlignerModel.from_pretrained(place / "model").eval(), make_processor()
    inputs = processor(images=picture(3), text=["what colour is it </s>"], audio=[sound], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, truncate_dim=16)
    found = np.load(tmp_path / "found.npz")
    assert set(found) == {"image", "text", "audio"}
    for kind in found:
        assert found[kind].shape == (1, 16) and found[kind].dtype == np.float32
        assert float((found[kind] * expected[f"{kind}_embeds"].numpy()).sum()) > 0.98


def test_before_its_first_session_the_recipe_tells_onnxruntime_to_report_nothing(recipe, place, monkeypatch):
    """Of an interpreter that has it not yet, by the variable; of one that has, by the call."""
    told = []

    def session(*_, **__):
        told.append("session")
        raise KeyError("enough")

    monkeypatch.setattr("onnxruntime.disable_telemetry_events", lambda: told.append("report nothing"))
    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delitem(sys.modules, "processing.onnx_aligner", raising=False)
    monkeypatch.delattr(processing, "onnx_aligner", raising=False)
    with pytest.raises(KeyError, match="enough"):
        recipe.main(arguments(recipe, "--output", "quiet"))
    assert told == ["report nothing", "session"] and os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_an_earlier_export_is_replaced_and_without_eight_bits_the_graphs_are_the_float32_ones(recipe, place):
    before = contents(place / "edge")
    shutil.copytree(place / "edge", place / "earlier")
    (place / "earlier" / "old.txt").write_text("of the earlier export")
    recipe.main(arguments(recipe, "--quantize", "none", "--output", "earlier"))
    after = contents(place / "earlier")
    shutil.rmtree(place / "earlier")
    assert set(after) == set(before), "what the earlier one held and this one does not is gone"
    assert after["text.onnx"] == (place / "kept/text.onnx").read_bytes()
    figures = json.loads(after["metrics.json"])
    assert "text_cosine_fp32@16" in figures and not [name for name in figures if "int8" in name]
    assert "fp32" in ModelCard(after["README.md"].decode()).data.tags


def test_another_folder_is_left_alone(recipe, place):
    (place / "photos").mkdir()
    (place / "photos" / "dear.jpg").write_bytes(b"me")
    for output in ("photos", "photos/dear.jpg"):
        with pytest.raises(ValueError, match="exists and no export has left it"):
            recipe.main(arguments(recipe, "--output", output))
    assert (place / "photos" / "dear.jpg").read_bytes() == b"me"
    shutil.rmtree(place / "photos")


def spoil(path: Path) -> None:
    """Shift one weight of the head by what changes embeddings in the third decimal."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    head = next(weight for weight in model.graph.initializer if "head" in weight.name)
    values = numpy_helper.to_array(head).copy()
    values[0] *= 1.05
    head.CopyFrom(numpy_helper.from_array(values, head.name))
    onnx.save(model, path)


def test_a_float32_graph_that_is_not_the_model_leaves_the_earlier_export_as_it_was(recipe, place, monkeypatch):
    copy, before = onnx_export.export_tower, contents(place / "edge")

    def spoiled(tower, inputs, path):
        copy(tower, inputs, path)
        if tower.part == "text":
            spoil(path)

    monkeypatch.setattr(onnx_export, "export_tower", spoiled)
    with pytest.raises(ValueError, match=r"text_difference_fp32@16 is 0\.0\d+: the float32 graph differs from PyTorch"):
        recipe.main(arguments(recipe))
    assert contents(place / "edge") == before and not list(place.glob(".*"))


def test_eight_bits_that_are_too_few_are_refused(recipe, place):
    with pytest.raises(ValueError, match="vision_cosine_int8@16 is 0.9.*at least 0.99999999 is asked for"):
        recipe.main(arguments(recipe, "--min_cosine", "0.99999999", "--output", "exact"))
    assert not (place / "exact").exists() and not list(place.glob(".*"))


def test_what_a_kill_between_two_renames_left_is_put_back(recipe, tmp_path):
    left = tmp_path / ".edge.building"
    (left / "replaced").mkdir(parents=True)
    (left / "replaced" / "edge.json").write_text("{}")
    (left / "done").mkdir()
    with pytest.raises(KeyError), recipe.building(tmp_path / "edge"):
        raise KeyError("stopped again")
    assert (tmp_path / "edge" / "edge.json").exists() and not left.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dim", "33"], "dim=33: embeddings have 1 to 32 numbers"),
        (
            ["--dataset_options", '{"num_train": 1, "num_eval": 24}'],
            "there is a graph for audio, but nothing to check it on",
        ),
        (["--num_examples", "1"], "there is a graph for image, text, audio, but nothing to check it on"),
    ],
)
def test_what_cannot_be_checked_is_refused_before_anything_is_written(recipe, place, more, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(arguments(recipe, *more, "--output", "refused"))
    assert not (place / "refused").exists() and not list(place.glob(".*"))


def test_an_export_says_what_it_has_not(place):
    from processing.onnx_aligner import OnnxAligner

    aligner = OnnxAligner(place / "edge")
    assert set(aligner(text="red </s>")) == {"text"} and set(aligner._sessions) == {"text"}, (
        "only what is asked is loaded"
    )
    with pytest.raises(ValueError, match="has no graph for taste; it has image, text, audio"):
        aligner.session("taste")
    with pytest.raises(FileNotFoundError, match="holds no exported aligner"):
        OnnxAligner(place / "model")
