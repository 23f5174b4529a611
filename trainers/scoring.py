"""
Predictions and what is right -> figures, by the metrics under metrics/.

    score(metrics, captions, rows)      -> {"cider": {"value": x, "ci95": [lo, hi], "n": pictures}, ...}
    score_answers(questions, answers)   -> {"pope_random_f1": {"value": x, "ci95": [lo, hi], "n": questions}, ...}

Unusual: `scene_f1` is scored against the scene's truth (the phrases of a row's `regions`), `chair` against these phrases and
`references` (of scenes, the phrases alone), everything else against `references`.
"""

import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import Dataset

from datasets_scripts.pope_questions import STRATEGIES


JUDGE = "llm_judge"
METRICS = Path(__file__).parents[1] / "metrics"


def score(
    metrics: list[str], predictions: list[str], rows: Dataset, synonyms: str | Path | None = None
) -> dict[str, dict]:
    """
    Every figure of every metric (folders under metrics/) that scores captions. synonyms: the official list, for chair.

    Raises ValueError for a metric there is no folder of, for `scene_f1` on rows that know no truth, for `pope`, which scores
    answers, and as the metrics do.
    """
    figures = {}
    for name in metrics:
        if name == "pope":
            raise ValueError("pope scores answers, not captions; recipes/evaluate.py --metrics pope asks and scores")
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


def _figures(name: str, predictions: list[str], **truth) -> dict[str, dict]:
    result = load_metric(name).compute(predictions=predictions, **truth)
    return {
        key: {
            "value": round(value, 6),
            "ci95": [round(end, 6) for end in result[f"{key}_ci95"]],
            "n": len(predictions),
        }
        for key, value in result.items()
        if f"{key}_ci95" in result
    }


def _folder(name: str) -> Path:
    if not (METRICS / name).is_dir():
        there = ", ".join(sorted(path.name for path in METRICS.iterdir() if path.is_dir()))
        raise ValueError(f"there is no metric {name!r}; there are {there}")
    return METRICS / name


def _evaluate_library() -> ModuleType:
    """The library, not recipes/evaluate.py, which stands first on the path of every recipe."""
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != METRICS.with_name("recipes")]
    try:
        import evaluate  # heavy, and not needed to train
    finally:
        sys.path[:] = path
    return evaluate
