"""
What grounded regions teach: a model fine-tuned on captions alone, on captions and found regions, and on captions and the true
regions of the same scenes, in equal steps, from several seeds, beside the model that all begin with.

    python recipes/compare_augmentation.py --config recipes/grounded/llava.yaml --seeds 42 43 44 --output DIR

Each way and seed is one run of recipes/caption.py in a folder of its own; a run that is there is not run again, one that was
stopped begins anew. Whole pictures are scored by the run itself; regions here: each object of `examples` test scenes is asked for
by its box, "Describe the region [0.25, 0.10, 0.75, 0.60].", and right where its size, colour and shape are said, and nothing else.
Writes table.md, of each figure its mean over seeds with Student's 95 % interval, and figures.json, of each run its own.

Unusual: true regions are what no pipeline can beat, so their distance from captions alone is what there is to win.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import modeling  # noqa: F401  teaches the Auto classes our models
import processing  # noqa: F401
from datasets_scripts import load_rows
from grounding.shards import SCHEMA
from trainers.captioning_evaluation import generate_captions, only_seen
from trainers.over_seeds import interval
from trainers.run_folder import read_json, write_json, write_jsonl, write_text, write_whole
from trainers.scoring import as_figures, load_metric, scene_f1s


ROOT = Path(__file__).parents[1]
FIGURES = {"region_accuracy": "regions described right", "cider": "CIDEr", "bleu_4": "BLEU-4", "scene_f1": "scene F1"}


@dataclass
class Arguments:
    config: str = "recipes/grounded/llava.yaml"
    seeds: list[int] = field(default_factory=lambda: [42, 43, 44], metadata={"nargs": "+"})
    output: str = "outputs/grounded/comparison"
    examples: int = 400  # scenes of `test` whose regions are asked for
    scenes: int = 2000  # of train, of which the configuration's data_dir was made
    accelerate_config: str = str(ROOT / "recipes/accelerate/cpu.yaml")


WAYS = ("captions", "augmented", "true_regions")


def write_truth(augmented: Path, folder: Path, scenes: int) -> Path:
    """A folder like `augmented`, of the same scenes and captions, whose regions are the scenes' own."""
    if not (folder / "train.parquet").exists():
        examples = pq.read_table(augmented / "train.parquet").to_pylist()
        captions = [one for one in examples if one["kind"] == "caption"]
        pictures = {one["image_id"]: one | {"image": str((augmented / one["image"]).resolve())} for one in captions}
        told = [{**one, "image": pictures[one["image_id"]]["image"]} for one in captions]
        for row in load_rows("scenes", "train", rows="image", num_train=scenes):
            for region in row["regions"] if row["image_id"] in pictures else []:
                said = {"text": region["phrase"], "phrase": region["phrase"], "box": region["box"]}
                told.append({**pictures[row["image_id"]], "kind": "region", **said})
        table = pa.Table.from_pylist(told, SCHEMA)
        write_whole(folder / "train.parquet", lambda path: pq.write_table(table, path))
    return folder


def train(args: Arguments, recipe: dict, way: str, seed: int) -> Path:
    """The folder of a run, which is there or is made."""
    folder = Path(args.output) / f"{way}_{seed}"
    if not (folder / "metrics.json").exists():
        told = {"seed": seed, "output_dir": folder}
        if way == "captions":
            told["dataset_options"] = json.dumps(recipe["dataset_options"] | {"examples": "captions"})
        elif way == "true_regions":
            told["data_dir"] = write_truth(Path(recipe["data_dir"]), Path(args.output) / "truth", args.scenes)
        words = [word for name, value in told.items() for word in (f"--{name}", str(value))]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", args.accelerate_config]
        print(f"\n{way}, seed {seed}", flush=True)
        subprocess.run([*launch, str(ROOT / "recipes/caption.py"), "--config", args.config, *words], check=True)
    return folder


def describe_regions(model: str | Path, folder: Path, examples: int) -> dict:
    """{"value", "ci95", "n"}: how many regions a model describes right; writes regions.json and what it said into `folder`."""
    path = folder / "regions.json"
    if path.exists():
        return read_json(path)
    rows = load_rows("scenes", "test", rows="region", num_eval=examples, regions="box")
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype="float32").eval()
    said = generate_captions(loaded, AutoProcessor.from_pretrained(model), rows, 64, do_sample=False, max_new_tokens=24)
    said, rows = only_seen(said, rows)
    # right: that object and no other, so a caption of the whole scene is not
    right = ["yes" if one == 1 else "no" for one in scene_f1s(said, rows)]
    result = load_metric("accuracy").compute(predictions=right, references=[["yes"]] * len(right))
    figure = as_figures(result, len(right))["accuracy"]
    told = zip(rows["image_id"], rows["references"], said, strict=True)
    write_jsonl(folder / "regions.jsonl", ({"image_id": i, "truth": true[0], "said": text} for i, true, text in told))
    write_json(path, figure)
    return figure


def cell(figures: list[dict], name: str) -> str:
    values = np.array([one[name]["value"] for one in figures])
    mean, half = interval(values)
    if len(values) > 1:
        return f"{mean:.3f} ± {half:.3f}"
    low, high = figures[0][name]["ci95"]
    return f"{mean:.3f} ({low:.3f} – {high:.3f})"


def main(args: Arguments) -> None:
    output, recipe = Path(args.output), yaml.safe_load(Path(args.config).read_text(encoding="utf-8"))
    start = {"region_accuracy": describe_regions(recipe["model"], output / "before", args.examples)}
    found = {}
    for way in WAYS:
        found[way] = []
        for seed in args.seeds:
            folder = train(args, recipe, way, seed)
            regions = {"region_accuracy": describe_regions(folder, folder, args.examples)}
            found[way].append(read_json(folder / "metrics.json") | regions)
    lines = [f"| | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|"]
    lines.append(f"| before | {cell([start], 'region_accuracy')} |" + " |" * (len(FIGURES) - 1))
    for way, figures in found.items():
        lines.append(f"| {way} | {' | '.join(cell(figures, name) for name in FIGURES)} |")
    table = "\n".join(lines)
    write_text(output / "table.md", table + "\n")
    write_json(
        output / "figures.json",
        {way: [{name: one[name] for name in FIGURES} for one in figures] for way, figures in found.items()},
    )
    print(f"\n{table}\n\nseeds {', '.join(map(str, args.seeds))}; every run: {args.output}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
