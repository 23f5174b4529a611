"""
A tower of an aligner as one ONNX graph, in float32 or with weights of eight bits; what it gives and takes beside PyTorch.

    pixel_values (n, 3, H, W)                   ┐
    input_ids (n, l), attention_mask (n, l)     ├-> tower -> projector -> the head's first `dim` numbers -> unit length -> (n, dim)
    audio_values, as the audio tower takes them ┘

Unusual:
- The head itself is cut to its first `dim` rows, so a graph carries no numbers that it throws away.
- Eight bits are had in three ways, by what a weight is for. Matrices are multiplied as integers, the other factor brought to eight
  bits as it comes, with weights between -64 and 64: x86 without VNNI adds products of full eight bits in sixteen and overflows, and
  what was right where it was exported would be wrong on the device. An embedding's rows are looked up as integers, and only those
  looked up become floats. A convolution's weights become floats when a graph is loaded (Cast and Mul, which runtimes fold away;
  DequantizeLinear they keep, and run every time), so it runs as in float32.
- Nothing is calibrated: no rows are needed, and nothing depends on which.
"""

import copy
import logging
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modeling import AlignerModel
from modeling.matryoshka import truncate
from trainers.contrastive_data import PARTS


SINGLE_FILE = 2**31 - 2**24  # bytes of weights: protobuf's limit is 2 GB; above, they go into a file beside the graph
LEAST = 1024  # numbers: smaller weights stay as they are (a first convolution is small, and the most sensitive)
LARGEST_DIFFERENCE = 1e-3  # of float32 from PyTorch, in any number of an embedding
WARM_UP = 3  # turns
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require_packages() -> None:
    """Raises ImportError, naming what is missing and how to have it."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ImportError(f"exporting needs {', '.join(missing)}: pip install 'sightline[export]'")


class EdgeTower(nn.Module):
    """
    What a graph computes: the first `dim` numbers of a model's "vision", "text" or "audio" embeddings, (n, dim) at unit length.

    Raises ValueError for a dim that there is not.
    """

    def __init__(self, model: AlignerModel, part: str, dim: int):
        super().__init__()
        self.model, self.part = model, part
        self.projector = copy.deepcopy(getattr(model, f"{part}_projector"))
        if not 0 < dim <= self.projector.head.out_features:
            raise ValueError(f"dim={dim}: embeddings have 1 to {self.projector.head.out_features} numbers")
        self.projector.head.weight = nn.Parameter(self.projector.head.weight[:dim].detach().clone())
        self.projector.head.out_features = dim

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens, there = self.model.encode(self.part, values, mask)
        return truncate(self.projector(tokens, None if there is None else there.bool()))


def export_tower(tower: EdgeTower, inputs: dict[str, Tensor], path: Path) -> None:
    """
    Write a tower's graph. inputs: what the processor makes of two items; its names are the graph's. It takes any number of items,
    and texts of any length where the processor tells it by a mask.

    Raises ValueError, naming the tower, for one that cannot be written as ONNX.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells every Split that it leaves as it is
    shapes = tuple({0: "batch", 1: "length"} if "attention_mask" in inputs else {0: "batch"} for _ in inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name")  # ids and mask share theirs, as they should
            program = torch.onnx.export(
                tower.eval(), tuple(inputs.values()), dynamo=True, dynamic_shapes=shapes, verbose=False,
                input_names=list(inputs), output_names=["embeddings"],
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        config = tower.model.towers()[tower.part].config
        name = getattr(config, "architecture", None) or config.model_type
        raise ValueError(
            f"the {tower.part} tower ({name}) with a {tower.model.config.projector} projector cannot be written as ONNX: {error}"
        ) from error
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with this machine's paths
    program.save(path)  # one file, unless that would be larger than protobuf's 2 GB


def quantize_int8(source: Path, target: Path) -> None:
    """A float32 graph -> the same with weights of eight bits."""
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    with TemporaryDirectory() as place:
        # weights that are split or turned before they are used are made constants, or they would not be seen as weights
        folded, multiplied = Path(place) / "folded.onnx", Path(place) / "multiplied.onnx"
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
        InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        model = onnx.load(folded)
        del model.graph.value_info[:]  # shapes, some of them of matrices that are turned now
        add_pre_process_metadata(model)
        quantize_dynamic(
            model, multiplied, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
            use_external_data_format=True,
        )  # fmt: skip
        model = onnx.load(multiplied)
    store_as_int8(model)
    used = {node.domain for node in model.graph.node}
    known = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:], model.metadata_props[:], model.graph.value_info[:]
    model.opset_import.extend(known)
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > SINGLE_FILE
    onnx.save(model, target, save_as_external_data=large, location=f"{target.name}.data")


def store_as_int8(model: Any) -> None:
    """Keep what an onnx.ModelProto looks up (Gather) and convolves with (Conv) as int8."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {weight.name: weight for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT}
    small, nodes = {}, []
    for node in model.graph.node:
        place = {"Gather": 0, "Conv": 1}.get(node.op_type)
        name = None if place is None else node.input[place]
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if name not in weights or axis != 0 or numpy_helper.to_array(weights[name]).size < LEAST:
            nodes.append(node)
            continue
        if name not in small:
            small[name] = int8_rows(numpy_helper.to_array(weights[name]))
        out, rows, scale = node.output[0], f"{name}_int8", f"{name}_scale"
        if node.op_type == "Gather":
            nodes.append(helper.make_node("Gather", [rows, node.input[1]], [f"{out}_int8"]))
            nodes.append(helper.make_node("Gather", [scale, node.input[1]], [f"{out}_scale"]))
            made, rows, scale = out, f"{out}_int8", f"{out}_scale"
        else:
            made = node.input[1] = f"{out}_weight"
        nodes.append(helper.make_node("Cast", [rows], [f"{made}_float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{made}_float", scale], [made]))
        if node.op_type == "Conv":
            nodes.append(node)
    for name, (rows, scale) in small.items():
        model.graph.initializer.append(numpy_helper.from_array(rows, f"{name}_int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    needed = {name for node in nodes for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


def int8_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight (rows, …) float32 -> int8 of that shape and a scale (rows, 1, …) float32, whose product is nearly the weight."""
    scale = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / 127
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


class EdgeModel(nn.Module):
    """An OnnxAligner (processing/onnx_aligner.py) where retrieval_evaluation asks `model` for embeddings."""

    def __init__(self, aligner: Any, model: AlignerModel):
        super().__init__()
        self.aligner, self.config, self.towers = aligner, model.config, model.towers
        self.nowhere = nn.Parameter(torch.zeros(0))  # parameters say where a model is: on the CPU

    def get_image_features(self, **inputs: Tensor) -> SimpleNamespace:
        return self._features("image", inputs)

    def get_text_features(self, **inputs: Tensor) -> SimpleNamespace:
        return self._features("text", inputs)

    def get_audio_features(self, **inputs: Tensor) -> SimpleNamespace:
        return self._features("audio", inputs)

    def _features(self, kind: str, inputs: dict[str, Tensor]) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=torch.from_numpy(self.aligner.run(kind, as_arrays(inputs))))


def as_arrays(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in inputs.items()}


def figure(value: float, ci95: tuple[float, float] | None = None, n: int = 1) -> dict:
    """As metrics.json holds it. ci95 None: it is no estimate (a size; the worst of the rows that were looked at)."""
    return {"value": round(float(value), 9), "ci95": [round(float(end), 9) for end in ci95 or (value, value)], "n": n}


def compare(edge: dict[str, Tensor], own: dict[str, Tensor], precision: str, dim: int) -> dict[str, dict]:
    """Embeddings (n, dim) of the same items, of each modality: mean and least cosine, and the largest difference of a number."""
    figures = {}
    for kind, embeds in edge.items():
        cosines, name = (embeds.double() * own[kind].double()).sum(1).numpy(), f"{PARTS[kind]}_{{}}_{precision}@{dim}"
        half = 1.96 * cosines.std() / len(cosines) ** 0.5
        mean = cosines.mean()
        figures[name.format("cosine")] = figure(mean, (mean - half, mean + half), len(cosines))
        figures[name.format("cosine_min")] = figure(cosines.min(), n=len(cosines))
        figures[name.format("difference")] = figure((embeds - own[kind]).abs().max(), n=len(cosines))
    return figures


def must_agree(figures: dict[str, dict], min_cosine: float) -> None:
    """Raises ValueError, with the number that is wrong, for graphs that are not the model."""
    for name, told in figures.items():
        if "_difference_fp32" in name and not told["value"] <= LARGEST_DIFFERENCE:
            raise ValueError(
                f"{name} is {told['value']}: the float32 graph differs from PyTorch by more than {LARGEST_DIFFERENCE}, so nothing "
                "is written; try other versions of torch, onnxscript or onnxruntime"
            )
        if "_cosine_int8" in name and not told["value"] >= min_cosine:
            raise ValueError(
                f"{name} is {told['value']}, and at least {min_cosine} is asked for, so nothing is written; export with --quantize "
                "none, or lower --min_cosine"
            )


def time_in_turns(
    tower: EdgeTower, edges: dict[str, Any], kind: str, inputs: dict[str, Tensor], repeats: int
) -> dict[tuple[str, str], dict]:
    """
    ("ms", "pytorch" or an edge's name): the median of `repeats`; ("time_ratio", edge's name): the median of what it takes to what
    PyTorch takes in the same turn. They run in turns, so that what else the machine does falls on all alike.
    """
    arrays, taken = as_arrays(inputs), {name: [] for name in ("pytorch", *edges)}
    for _ in range(WARM_UP + repeats):
        for name, times in taken.items():
            start = time.perf_counter()
            if name == "pytorch":
                with torch.inference_mode():
                    tower(*inputs.values())
            else:
                edges[name].run(kind, arrays)
            times.append(1000 * (time.perf_counter() - start))
    taken = {name: np.array(times[WARM_UP:]) for name, times in taken.items()}
    out = {("ms", name): median(times) for name, times in taken.items()}
    return out | {("time_ratio", name): median(taken[name] / taken["pytorch"]) for name in edges}


def median(values: np.ndarray) -> dict:
    """With the interval of order statistics."""
    ordered, half = np.sort(values), 0.98 * len(values) ** 0.5
    low, high = (ordered[int(np.clip(len(values) / 2 + side, 0, len(values) - 1))] for side in (-half, half))
    return figure(float(np.median(values)), (low, high), len(values))
