"""
Are the regions of a recipes/augment.py run right? For rows whose own regions say what is where: the miniature world's.

    python recipes/score_regions.py --run outputs/grounded/quickstart

Writes metrics.json: precision and recall at IoU 0.5 of all boxes that detector and non-maximum suppression left, of those that the
similarity kept, and the gain; curve.json and curve.png: both figures over thresholds of the similarity and of the detector.

Unusual: a curve needs no second run, because a run keeps what it rejects.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from transformers import HfArgumentParser

from datasets_scripts import load_rows
from grounding.shards import read_shards
from trainers.captioning_evaluation import report
from trainers.run_folder import read_json, write_json, write_whole
from trainers.scoring import as_figures, load_metric


BY_BELIEF = ("", "picture and words do not agree")  # kept, or rejected by the similarity alone
POINTS = 25


@dataclass
class Arguments:
    run: str  # folder that recipes/augment.py wrote
    data_dir: str | None = None  # as it was told
    output: str | None = None  # default: RUN/scores
    iou_threshold: float = 0.5


def regions_of(folder: Path) -> tuple[dict[str, list[dict]], set[str]]:
    """Picture -> the regions that only the similarity had to judge; and the pictures that were read at all."""
    count = len(list((folder / "shards").glob("shard-*.jsonl")))
    found, read = defaultdict(list), set()
    for record in read_shards(folder, count):
        if record["kind"] != "unreadable":
            read.add(record["image_id"])
        if record["kind"] == "region" and record["reason"] in BY_BELIEF:
            found[record["image_id"]].append(record)
    return found, read


def as_boxes(regions: list[dict]) -> dict[str, list]:
    return {"boxes": [one["box"] for one in regions], "phrases": [one["phrase"] for one in regions]}


def curve(metric: Any, found: list[list[dict]], truth: list[dict], score: str, iou: float) -> list[dict]:
    """Precision and recall of the regions with at least so much of a score, over thresholds between its least and greatest."""
    scores = np.array([one[score] for some in found for one in some])
    points = []
    thresholds = np.quantile(scores, np.linspace(0, 0.98, POINTS), method="nearest") if len(scores) else []
    for threshold in np.unique(thresholds):
        kept = [[one[score] >= threshold for one in some] for some in found]
        figures = metric.compute(
            predictions=list(map(as_boxes, found)), references=truth, kept=kept, iou_threshold=iou, n_bootstrap=200
        )
        names = ("kept_precision", "kept_precision_ci95", "kept_recall", "kept_recall_ci95")
        points.append({"threshold": round(float(threshold), 4), **{name[5:]: figures[name] for name in names}})
    return points


def plot(curves: dict[str, list[dict]], told: dict, path: Path) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, (score, points) in zip(figure.subplots(1, 2, sharey=True), curves.items(), strict=True):
        thresholds = [point["threshold"] for point in points]
        for name, colour in (("precision", "#2f81f7"), ("recall", "#e16f24")):
            axis.plot(thresholds, [point[name] for point in points], color=colour, label=name)
            low, high = zip(*(point[f"{name}_ci95"] for point in points), strict=True)
            axis.fill_between(thresholds, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel=f"least {score.replace('_', ' ')}", title=f"over {score.replace('_', ' ')}")
        if score == "clip_score" and told.get("clip_percentile") is None:
            axis.axvline(told["clip_threshold"], color="grey", linestyle=":", label="as run")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
        axis.legend(frameon=False)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def main(args: Arguments) -> None:
    # 1. What the run found, and what is there.
    folder = Path(args.run)
    output = Path(args.output) if args.output else folder / "scores"
    told = read_json(folder / "augmentation.json")
    found, read = regions_of(folder)
    source = f"{told['dataset']}, {told['split']}"
    rows = load_rows(told["dataset"], told["split"], rows="image", data_dir=args.data_dir, **told["dataset_options"])
    true = {
        row["image_id"]: row["regions"]
        for row in rows.select_columns(["image_id", "regions"])
        if row["image_id"] in read
    }
    if missing := read - true.keys():
        raise ValueError(
            f"{len(missing)} pictures of {folder} are not among the {len(rows)} rows of {source} ({min(missing)} is one): give the "
            "data_dir that it was made of"
        )
    regions = [found[name] for name in true]
    truth = list(map(as_boxes, true.values()))
    if not any(some["boxes"] for some in truth):
        raise ValueError(f"{source} has no regions of its own: nothing says what is right")

    # 2. All boxes, those that were kept, and the difference.
    metric = load_metric("phrase_grounding")
    kept = [[not one["reason"] for one in some] for some in regions]
    given = {"predictions": list(map(as_boxes, regions)), "references": truth, "iou_threshold": args.iou_threshold}
    counted = as_figures(metric.compute(**given, kept=kept), len(true))

    # 3. What other thresholds would have done.
    curves = {
        name: curve(metric, regions, truth, name, args.iou_threshold) for name in ("clip_score", "detector_score")
    }
    write_json(output / "metrics.json", {**counted, "protocol": {"run": args.run, "pictures": len(true), **told}})
    write_json(output / "curve.json", curves)
    plot(curves, told, output / "curve.png")
    print(f"{report(counted)}\n\n{len(true):,} pictures, IoU {args.iou_threshold}: {output}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
