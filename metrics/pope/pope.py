"""
POPE's figures (Li et al., 2023, https://arxiv.org/abs/2305.10355): is an object in the picture, asked of there and not there in
equal parts, "yes" being the positive class. Answers are read as the official program reads them
(https://github.com/AoiDragon/POPE, evaluate.py): of the text before the first period, without commas and divided at spaces, one of
the words No, not and no makes it a no; everything else is a yes.

    pope_accuracy     right / all
    pope_precision    said yes and right / said yes
    pope_recall       said yes and right / yes is right
    pope_f1           2 * precision * recall / (precision + recall)
    pope_yes_ratio    said yes / all; of the answers, not of the truth, which is 0.5 by design
    pope_unparseable  read as a yes without saying so / all

Unusual: the last figure, which the official program lacks. "There isn't one", "NO" and an empty answer are a yes by its rule; every
answer that is read as a yes but has no word "yes", in any case, before its first period, is counted here. It stays in all other
figures as the yes that it is read as: nothing is left out of a denominator. A ratio of nothing to nothing is 0.
"""

import re

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, intervals


_YES = re.compile(r"\byes\b", re.IGNORECASE)


def parse(answer: str) -> tuple[bool, bool]:
    """Whether an answer is read as a yes, and whether it says so or is read as a no."""
    text = answer.split(".")[0]
    no = not {"No", "not", "no"}.isdisjoint(text.replace(",", "").split(" "))
    return not no, no or _YES.search(text) is not None


def _ratio(of: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(of, whole, out=np.zeros_like(of), where=whole > 0)


class Pope(evaluate.Metric):
    """`predictions`: what was answered; `references`: for each question "yes" or "no", in any case."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def compute(
        self,
        *,
        predictions: list[str] | None = None,
        references: list[str] | None = None,
        images: list[str] | None = None,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict | None:
        """What `_compute` returns, for the answers given or, without them, for what `add` and `add_batch` were given."""
        if (predictions is None) != (references is None):
            raise ValueError("predictions and references are scored together, but only one of them was given")
        # evaluate writes what it is given to Arrow and reads it back; only what was added in batches or is spread over processes
        # needs that
        options = {"images": images, "n_bootstrap": n_bootstrap, "seed": seed}
        if predictions is None or self.num_process > 1:
            return super().compute(predictions=predictions, references=references, **options)
        return self._compute(predictions, references, **options)

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        images: list[str] | None = None,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict[str, float | list[float]]:
        """
        {"pope_accuracy", "pope_precision", "pope_recall", "pope_f1", "pope_yes_ratio", "pope_unparseable"}, each with a `_ci95` by
        bootstrap over pictures: `images` says which picture each question is about; without it, every question is drawn alone.

        Raises ValueError for no predictions, references or images of more or fewer questions, and, naming the record, for an answer
        that is not a string and for a reference that is neither yes nor no; and as `intervals` does.
        """
        if not len(predictions):
            raise ValueError("there are no predictions to score")
        for what, some in (("references", references), ("images", images)):
            if some is not None and len(some) != len(predictions):
                raise ValueError(f"{len(predictions)} predictions, but {what} of {len(some)} questions")
        rows = []
        for record, (said, right) in enumerate(zip(predictions, references, strict=True)):
            if not isinstance(said, str):
                raise ValueError(f"record {record}: the prediction is {said!r}, not a string")
            if not isinstance(right, str) or right.lower() not in ("yes", "no"):
                raise ValueError(f"record {record}: the reference is {right!r}, neither yes nor no")
            there = right.lower() == "yes"
            yes, clear = parse(said)
            rows.append((1, yes == there, yes and there, yes, there, not clear))
        each = np.array(rows, dtype=float)
        if images is not None:  # questions about one picture are drawn together
            names, place = np.unique(images, return_inverse=True)
            alone, each = each, np.zeros((len(names), each.shape[1]))
            np.add.at(each, place, alone)
        asked, right, found, yes, there, unclear = range(6)
        figures = {
            "pope_accuracy": lambda sums: sums[..., right] / sums[..., asked],
            "pope_precision": lambda sums: _ratio(sums[..., found], sums[..., yes]),
            "pope_recall": lambda sums: _ratio(sums[..., found], sums[..., there]),
            "pope_f1": lambda sums: _ratio(2 * sums[..., found], sums[..., yes] + sums[..., there]),
            "pope_yes_ratio": lambda sums: sums[..., yes] / sums[..., asked],
            "pope_unparseable": lambda sums: sums[..., unclear] / sums[..., asked],
        }
        result: dict[str, float | list[float]] = {}
        spread = intervals(each, list(figures.values()), n_bootstrap, seed)
        for (name, figure), ci95 in zip(figures.items(), spread, strict=True):
            result |= {name: float(figure(each.sum(0))), f"{name}_ci95": ci95}
        return result
