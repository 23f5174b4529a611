"""
Predictions and what is right -> figures, by the metrics under metrics/.

    score(metrics, captions, rows)      -> {"cider": {"value": x, "ci95": [lo, hi], "n": pictures}, ...}
    score_answers(questions, answers)   -> {"pope_random_f1": {"value": x, "ci95": [lo, hi], "n": questions}, ...}
    clip_scored(captions, rows, CLIP)   -> {"clip_score": …}, and by which CLIP

Unusual: `scene_f1` is scored against the scene's truth (the phrases of a row's `regions`), `chair` against these phrases and
`references` (of scenes, the phrases alone), everything else against `references`.
"""

import sys
from collections.abc import Sequence
from hashlib import sha256
from inspect import getmodule
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import Dataset
from PIL import Image

from datasets_scripts.pope_questions import STRATEGIES
from trainers.captioning_data import pictures_of


CLIP, JUDGE, PREFERENCE = "clip_score", "llm_judge", "preference_accuracy"
METRICS = Path(__file__).parents[1] / "metrics"
# what scores no captions, or needs more than captions and rows
ELSEWHERE = {
    "pope": "pope scores answers, not captions; recipes/evaluate.py --metrics pope asks and scores",
    CLIP: "clip_score needs a CLIP to look at the pictures; recipes/evaluate.py --metrics clip_score --clip_model ID",
    PREFERENCE: "preference_accuracy scores pairs, not captions; recipes/evaluate.py --metrics preference_accuracy",
    "phrase_grounding": "phrase_grounding scores boxes; recipes/score_regions.py --run FOLDER does",
    "win_rate": "win_rate compares with an earlier run; recipes/evaluate.py --baseline FOLDER",
}


def score(
    metrics: list[str], predictions: list[str], rows: Dataset, synonyms: str | Path | None = None
) -> dict[str, dict]:
    """
    Every figure of every metric (folders under metrics/) that scores captions. synonyms: the official list, for chair.

    Raises ValueError for a metric there is no folder of, for `scene_f1` on rows that know no truth, for those of ELSEWHERE, and as
    the metrics do.
    """
    figures = {}
    for name in metrics:
        if name in ELSEWHERE:
            raise ValueError(ELSEWHERE[name])
        figures |= _figures(name, predictions, **_truth(name, rows, synonyms))
    return figures


def score_answers(questions: list[dict[str, str]], answers: list[str | None]) -> dict[str, dict]:
    """
    POPE's figures for each strategy apart, over the questions ({"image_id", "answer", "strategy", ...}) whose answer is not None.

    Raises ValueError for a strategy none of whose questions has an answer.
    """
    figures = {}
    for strategy in STRATEGIES:
        asked = [
            (said, question["answer"], question["image_id"])
            for question, said in zip(questions, answers, strict=True)
            if question["strategy"] == strategy and said is not None
        ]
        if not asked:
            raise ValueError(f"pope: no question of the strategy {strategy} was answered; can no picture be read?")
        predictions, references, images = map(list, zip(*asked, strict=True))
        for name, figure in _figures("pope", predictions, references=references, images=images).items():
            figures[name.replace("pope", f"pope_{strategy}", 1)] = figure
    return figures


def judged(predictions: list[str], rows: Dataset, base_url: str | None, model: str | None) -> dict[str, dict]:
    """llm_judge's figures, by what was asked and the references. Raises as the metric does; without base_url or model at once."""
    asked = [prompt[-1]["content"] for prompt in rows["prompt"]]
    told = {"questions": asked, "base_url": base_url, "model": model}
    return _figures(JUDGE, predictions, references=list(rows["references"]), **told)


class FirstPictures(Sequence):
    """The one picture of each row, opened when it is asked for. Raises ValueError, naming the row, for none and for several."""

    def __init__(self, rows: Dataset):
        self.rows = rows
        for row in rows.select_columns(["image_id", "images"]):
            if len(row["images"]) != 1:
                raise ValueError(f"clip_score is of one picture; row {row['image_id']} has {len(row['images'])}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Image.Image:
        return pictures_of(self.rows[place])[0]


def check_clip(metrics: list[str], rows: Dataset, clip_model: str | None) -> None:
    """Raises ValueError for clip_score without a model, for a model without clip_score, and as FirstPictures does."""
    if (CLIP in metrics) != bool(clip_model):
        raise ValueError(f"clip_score and clip_model go together; asked for are {', '.join(metrics)} by {clip_model}")
    if clip_model:
        FirstPictures(rows)


def clip_scored(
    predictions: list[str], rows: Dataset, clip_model: str | None, revision: str | None = None, batch_size: int = 64
) -> tuple[dict[str, dict], dict]:
    """
    clip_score's figures, by the pictures and the references, and its protocol. revision: a Hub id's commit, or whatever says which
    weights a folder holds. Raises as the metric and FirstPictures do.
    """
    told = {"images": FirstPictures(rows), "clip_model": clip_model, "batch_size": batch_size}
    told |= {"revision": None if Path(clip_model or "").is_dir() else revision}
    result = load_metric(CLIP).compute(predictions=predictions, references=list(rows["references"]), **told)
    return as_figures(result, len(predictions)), result["clip_score_protocol"] | {"revision": revision}


def scene_f1s(captions: list[str], rows: Dataset) -> list[float]:
    """Scene F1 of each caption apart."""
    objects = getmodule(type(load_metric("scene_f1"))).objects
    scores = []
    for caption, truth in zip(captions, _truth("scene_f1", rows, None)["references"], strict=True):
        said, there = objects(caption), objects(", ".join(truth))
        scores.append(2 * (said & there).total() / max(1, said.total() + there.total()))
    return scores


def metric_version(name: str) -> str:
    """A hash of a metric's code, helpers included. Raises ValueError for a metric there is no folder of."""
    code = b"".join(path.read_bytes() for path in sorted(_folder(name).glob("*.py")))
    return sha256(code).hexdigest()[:12]


def _truth(name: str, rows: Dataset, synonyms: str | Path | None) -> dict[str, Any]:
    """What a metric holds captions against, as arguments of its `compute`."""
    if name == "accuracy" and "kind" in rows.column_names:
        return {"references": list(rows["references"]), "kinds": list(rows["kind"])}
    if name not in ("scene_f1", "chair"):
        return {"references": list(rows["references"])}
    regions = rows["regions"] if "regions" in rows.column_names else [[]] * len(rows)
    phrases = [[region["phrase"] for region in some] for some in regions]
    world = "scene" in rows.column_names
    if (name == "scene_f1" or world) and not all(phrases):
        raise ValueError(f"{name} compares with a scene's regions, and some rows have none; leave it out")
    if name == "scene_f1":
        return {"references": phrases}
    if world:  # everything is known, and the references of a question are no captions
        return {"references": phrases, "vocabulary": "scenes", "synonyms": synonyms}
    known = {"objects": phrases} if any(phrases) else {}
    return {"references": list(rows["references"]), "synonyms": synonyms, **known}


def load_metric(name: str) -> Any:
    """A metric under metrics/, as `evaluate` loads it. Raises ValueError for one there is no folder of."""
    return _evaluate_library().load(str(_folder(name)), keep_in_memory=True)


def as_figures(result: dict, count: int) -> dict[str, dict]:
    """What a metric returns, as metrics.json has it: all that has an interval, of as many as it says (`_n`) or `count`."""
    return {
        key: {
            "value": round(value, 6),
            "ci95": [round(end, 6) for end in result[f"{key}_ci95"]],
            "n": result.get(f"{key}_n", count),
        }
        for key, value in result.items()
        if f"{key}_ci95" in result
    }


def _figures(name: str, predictions: list[str], **truth) -> dict[str, dict]:
    return as_figures(load_metric(name).compute(predictions=predictions, **truth), len(predictions))


def _folder(name: str) -> Path:
    if not (METRICS / name).is_dir():
        there = ", ".join(sorted(path.name for path in METRICS.iterdir() if path.is_dir()))
        raise ValueError(f"there is no metric {name!r}; there are {there}")
    return METRICS / name


def _evaluate_library() -> ModuleType:
    """The library, not recipes/evaluate.py, which stands first on the path of every recipe, or was imported by that name before."""
    if not hasattr(sys.modules.get("evaluate"), "load"):
        sys.modules.pop("evaluate", None)
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != METRICS.with_name("recipes")]
    try:
        import evaluate  # heavy, and not needed to train
    finally:
        sys.path[:] = path
    return evaluate
