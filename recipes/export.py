"""
Put an aligner on the edge: a graph a tower, in a folder that needs neither this repository nor PyTorch, measured beside the model.

    python recipes/export.py --model DIR --format onnx --quantize int8 --dim 512 --output EDGE_DIR
    python recipes/export.py --model DIR --quantize none --dataset pictures --data_dir FOLDER --output EDGE_DIR

EDGE_DIR holds vision.onnx, text.onnx, audio.onnx (of the towers that there are), the processor, onnx_aligner.py, which runs them,
a card, and metrics.json: on real rows, what the graphs give beside PyTorch (cosines, retrieval), their size and their time.

Unusual: the folder is there only if the graphs are right. Float32 must agree with PyTorch to 1e-3 in every number of every row,
int8 to --min_cosine; otherwise the run fails and leaves what was there before.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
import yaml
from huggingface_hub import ModelCardData
from transformers import AutoModel, AutoProcessor, HfArgumentParser

import modeling  # noqa: F401  teaches the Auto classes our models
import processing  # noqa: F401
from datasets_scripts import load_rows
from modeling.matryoshka import truncate
from modeling.towers import fingerprint
from trainers import onnx_export
from trainers.contrastive_data import PARTS, ContrastiveCollator
from trainers.model_card import is_hub_id
from trainers.retrieval_evaluation import embed_rows, retrieval_figures
from trainers.run_folder import read_settings, write_json, write_text
from trainers.scoring import metric_version


BATCH = 32  # items, where a batch is timed
WORLD = {"num_train": 1, "distinct": True, "wording": 4}  # scenes without asking for others; their captions name places
INPUTS = {"image": ["pixel_values"], "text": ["input_ids", "attention_mask"], "audio": ["audio_values"]}
HEARS = """`aligner(audio=[waveform], sampling_rate=rate)` hears; to prepare that for an audio-spectrogram-transformer, transformers
needs PyTorch. """
CARD = """---
{head}
---

# {title}

{kinds} become embeddings of {dim} numbers at unit length, in one space, by ONNX Runtime and without PyTorch.
Exported from `{model}` with Sightline.

After `pip install onnxruntime transformers pillow`:

```python
import sys

from PIL import Image

folder = "{output}"  # or huggingface_hub.snapshot_download("ORG/NAME")
sys.path.insert(0, folder)
from onnx_aligner import OnnxAligner

aligner = OnnxAligner(folder)
found = aligner(images=[Image.new("RGB", (64, 64), "red")], text=["a red square", "a blue circle"])
print(found["text"] @ found["image"].T)  # cosines
```

{sounds}What is not asked for is not loaded.

## What it is beside PyTorch

{tables}

Times are medians on one machine with {threads} thread(s), of one item and of a batch of {batch}, and what they are of PyTorch's.
Cosines are with PyTorch's embeddings of the same rows. `metrics.json` has every figure with its interval. In an int8 graph an
item's embedding depends a little on the batch: what is multiplied as integers is scaled by the largest number of the batch.

```yaml
{protocol}
```

## Licence

`{licence}` for what Sightline adds. Weights taken over from pretrained towers stay under their own licences.
"""


@dataclass
class Arguments:
    model: str  # folder or Hub id of an aligner
    output: str  # folder to write; one that an earlier export left is replaced
    format: Literal["onnx"] = "onnx"
    quantize: Literal["none", "int8"] = "int8"
    dim: int | None = None  # how many of an embedding's first numbers are kept; None: all
    revision: str | None = None  # of a Hub id
    min_cosine: float = 0.99  # of int8 embeddings with PyTorch's, the mean of each tower
    dataset: str = "scenes"  # as for recipes/evaluate.py
    split: str = "validation"
    data_dir: str | None = None
    dataset_options: str | None = None  # of the builder, as JSON; None, of scenes: WORLD
    columns: str | None = None  # of a Hub id without canonical columns, as JSON
    num_examples: int = 1000  # rows, drawn with seed 0
    batch_size: int = 50
    threads: int = 1  # where time is taken
    repeats: int = 30  # of which the median is taken
    licence: str = "apache-2.0"


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """A folder beside `output` to build in; its `done` becomes `output`. Raises ValueError where something else is there."""
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / "edge.json").is_file()):
        raise ValueError(f"{output} exists and no export has left it (there is no edge.json): name another --output")
    work = output.with_name(f".{output.name}.building")
    if (work / "replaced").exists() and not output.exists():  # killed between the two renames below
        (work / "replaced").rename(output)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        if output.exists():
            output.rename(work / "replaced")
        (work / "done").rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def tables(figures: dict[str, dict], parts: list[str], precisions: list[str], dim: int) -> str:
    value = {name: told["value"] for name, told in figures.items()}
    head = "graph, , bytes, of fp32, ms, of PyTorch, ms a batch, of PyTorch, mean cosine, least".split(", ")
    lines = [head, ["---"] * len(head)]
    for part, name in ((part, name) for part in parts for name in precisions):
        size, whole = value[f"{part}_bytes_{name}"], value[f"{part}_bytes_fp32"]
        times = [value[f"{part}_{what}_{much}_{name}"] for much in ("single", "batch") for what in ("ms", "time_ratio")]
        cosines = [value[f"{part}_cosine{least}_{name}@{dim}"] for least in ("", "_min")]
        numbers = [f"{size:,.0f}", f"{size / whole:.3f}", *(f"{t:.2f}" for t in times), *(f"{c:.5f}" for c in cosines)]
        lines.append([f"{part}.onnx", name, *numbers])
    lines += [[], ["retrieval", "", "R@1", "R@5", "R@10", "R@1 kept"], ["---"] * 6]
    for way in (name.partition("_r1_")[0] for name in value if "_r1_pytorch" in name):
        for name in ("pytorch", *precisions):
            recalls = [value[f"{way}_r{k}_{name}@{dim}"] for k in (1, 5, 10)]
            recalls.append(recalls[0] / max(value[f"{way}_r1_pytorch@{dim}"], 1e-9))
            lines.append([way.replace("_", " "), name, *(f"{recall:.4f}" for recall in recalls)])
    return "\n".join(f"| {' | '.join(line)} |" if line else "" for line in lines)


def main(args: Arguments) -> None:
    onnx_export.require_packages()
    with building(Path(args.output).absolute()) as work:
        export(args, work)
    print(f"graphs, processor and card: {args.output}")


def export(args: Arguments, work: Path) -> None:
    """Leaves the folder as `work`/done."""
    from processing import onnx_aligner  # before any other import of onnxruntime: it keeps that from reporting

    # 1. The model, and rows to hold its graphs against.
    model = AutoModel.from_pretrained(args.model, revision=args.revision, dtype="float32").eval()
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{args.model} is a {model.config.model_type!r}: it embeds nothing; name an aligner")
    processor = AutoProcessor.from_pretrained(args.model, revision=args.revision)
    kinds = [kind for kind, part in PARTS.items() if part in model.towers()]
    dim = model.config.embed_dim if args.dim is None else args.dim
    towers = {kind: onnx_export.EdgeTower(model, PARTS[kind], dim) for kind in kinds}
    options, columns = (read_settings(name, getattr(args, name)) for name in ("dataset_options", "columns"))
    if args.dataset == "scenes":
        options = options or WORLD | {"num_eval": args.num_examples, "sounds": "audio" in kinds}
    where = {"data_dir": args.data_dir, "columns": columns or None}
    rows = load_rows(args.dataset, args.split, rows="alignment", **where, **options).shuffle(seed=0)
    rows = rows.select(range(min(args.num_examples, len(rows))))
    some = ContrastiveCollator(processor)(list(rows.select(range(min(BATCH, len(rows))))))
    items = {kind: {name: some[name] for name in INPUTS[kind] if name in some} for kind in kinds}
    if missing := [kind for kind in kinds if len(next(iter(items[kind].values()), [])) < 2]:
        raise ValueError(
            f"there is a graph for {', '.join(missing)}, but nothing to check it on: the first {BATCH} rows hold no two of it that "
            f"can be read, or no such column; they have {', '.join(rows.column_names)}"
        )

    # 2. The graphs; float32 ones too where int8 is asked for, to be compared with.
    folders = {"fp32": work / "done"} if args.quantize == "none" else {"fp32": work / "fp32", "int8": work / "done"}
    told = {"format": onnx_aligner.FORMAT, "dim": dim, "quantize": args.quantize, "model": fingerprint(model)}
    told["graphs"] = {kind: f"{PARTS[kind]}.onnx" for kind in kinds}
    for folder in folders.values():
        write_json(folder / "edge.json", told)
    for kind, graph in told["graphs"].items():
        print(f"exporting {graph}")
        two = {name: value[:2] for name, value in items[kind].items()}
        onnx_export.export_tower(towers[kind], two, folders["fp32"] / graph)
        if args.quantize == "int8":
            onnx_export.quantize_int8(folders["fp32"] / graph, folders["int8"] / graph)

    # 3. Are they the model, and what do they cost?
    edges = {name: onnx_aligner.OnnxAligner(folder, args.threads) for name, folder in folders.items()}
    asked = {"pytorch": model} | {name: onnx_export.EdgeModel(edge, model) for name, edge in edges.items()}
    embedded = {name: embed_rows(who, processor, rows, args.batch_size) for name, who in asked.items()}
    own = embedded["pytorch"]
    own.items = {kind: truncate(embeds, dim) for kind, embeds in own.items.items()}
    figures: dict[str, dict] = {}
    for name in folders:
        figures |= onnx_export.compare(embedded[name].items, own.items, name, dim)
    onnx_export.must_agree(figures, args.min_cosine)
    for name, there in embedded.items():
        found = retrieval_figures(there, [])
        figures |= {f"{what}_{name}@{dim}": value for what, value in found.items() if "median" not in what}
    torch.set_num_threads(args.threads)
    for kind, part in ((kind, PARTS[kind]) for kind in kinds):
        for much, count in (("single", 1), ("batch", BATCH)):
            inputs = {name: value[:count] for name, value in items[kind].items()}
            times = onnx_export.time_in_turns(towers[kind], edges, kind, inputs, args.repeats)
            figures |= {f"{part}_{what}_{much}_{name}": value for (what, name), value in times.items()}
        for name, folder in folders.items():
            size = sum(path.stat().st_size for path in folder.glob(f"{part}.onnx*"))
            figures[f"{part}_bytes_{name}"] = onnx_export.figure(size)

    # 4. One folder that stands alone.
    protocol = {name: value for name, value in asdict(args).items() if name not in ("output", "data_dir", "licence")}
    protocol |= {"dataset_options": options, "dim": dim, "batch": BATCH, "skipped": own.skipped}
    protocol |= {"gallery": {kind: len(embeds) for kind, embeds in own.items.items()}, "weights": told["model"]}
    protocol |= {"fingerprint": rows._fingerprint, "metrics": {"retrieval": metric_version("retrieval")}}
    protocol |= {"versions": {name: version(name) for name in ("torch", *onnx_export.PACKAGES)}}
    processor.save_pretrained(work / "done")
    shutil.copy(onnx_aligner.__file__, work / "done")
    write_json(work / "done" / "metrics.json", {**figures, "protocol": protocol})
    told = {"dim": dim, "batch": BATCH, "tables": tables(figures, [PARTS[kind] for kind in kinds], [*folders], dim)}
    told |= {"title": Path(args.output).absolute().name, "protocol": yaml.safe_dump(protocol, sort_keys=False).strip()}
    told |= {"kinds": "Pictures, texts and sounds" if "audio" in kinds else "Pictures and texts"}
    told |= {"sounds": HEARS if "audio" in kinds else ""}
    told["head"] = ModelCardData(
        license=args.licence, library_name="onnx", pipeline_tag="feature-extraction",
        tags=["sightline", "onnx", "matryoshka", "retrieval", args.quantize.replace("none", "fp32")],
        base_model=args.model if is_hub_id(args.model) else None,
    )  # fmt: skip
    write_text(work / "done" / "README.md", CARD.format(**asdict(args) | told))
    print(f"\n{told['tables']}\n")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
