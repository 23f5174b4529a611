"""
Phrase grounding: are boxes where their phrases say, and is everything that is there found?

    ("big red star", box) is right where a true box overlaps it by IoU >= 0.5 and the truth, "large red star", has all its words

    grounding_precision   right predictions / predictions
    grounding_recall      true boxes that a right prediction overlaps / true boxes

over all pictures. Words are compared without articles and numbers, plurals as singulars, and sizes by their meaning (big = large):
a phrase that leaves out a size or a colour is right of anything that has the rest. With `kept`, which says of each prediction
whether a filter kept it, `kept_precision`, `kept_recall` and `precision_gain`, kept less all, in the same resamples.

Unusual: several predictions of one true box are all right: doubling is the business of non-maximum suppression, and is counted in
neither figure. Source of the threshold: Flickr30k Entities (Plummer et al., 2015, https://arxiv.org/abs/1505.04870).
"""

import re

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, intervals


LEFT_OUT = frozenset("a an the one two three four five six seven eight nine ten some several many".split())
SAME = {"little": "small", "tiny": "small", "big": "large", "huge": "large"}
_BOXES = {
    "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))),
    "phrases": datasets.Sequence(datasets.Value("string")),
}


def words(phrase: str) -> frozenset[str]:
    """What a phrase says of a thing: "two big red stars" -> {large, red, star}."""
    found = (re.sub(r"(?<=s|x|z)es$|(?<=[^s])s$", "", word) for word in re.findall(r"\w+", phrase.lower()))
    return frozenset(SAME.get(word, word) for word in found if word not in LEFT_OUT)


def fits(phrase: str, truth: str) -> bool:
    """Whether all that a phrase says is true. A phrase that says nothing fits nothing."""
    return bool(words(phrase)) and words(phrase) <= words(truth)


def overlaps(boxes: list, others: list) -> np.ndarray:
    """IoU of each of `boxes` (n, 4) with each of `others` (m, 4), both x0 y0 x1 y1: (n, m)."""
    first, second = (np.asarray(some, dtype=float).reshape(-1, 4) for some in (boxes, others))
    low, high = np.maximum(first[:, None, :2], second[:, :2]), np.minimum(first[:, None, 2:], second[:, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = [(some[:, 2:] - some[:, :2]).clip(min=0).prod(-1) for some in (first, second)]
    whole = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def matches(predicted: dict, true: dict, iou_threshold: float) -> np.ndarray:
    """(predictions, true boxes): whether a prediction is right of a true box."""
    near = overlaps(predicted["boxes"], true["boxes"]) >= iou_threshold
    said = [[fits(phrase, truth) for truth in true["phrases"]] for phrase in predicted["phrases"]]
    return near & np.array(said, dtype=bool).reshape(near.shape)


class PhraseGrounding(evaluate.Metric):
    """`predictions` and `references`: of each picture {"boxes": [[x0, y0, x1, y1], …], "phrases": [str, …]}."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features({"predictions": _BOXES, "references": _BOXES}),
        )

    def _compute(self, predictions, references, kept=None, iou_threshold=0.5, n_bootstrap=N_BOOTSTRAP, seed=SEED):
        """
        kept: of each picture, of each prediction, whether a filter kept it. Figures each have a `_ci95` by bootstrap over pictures
        and a `_n`, of how many boxes they are; a ratio of nothing to nothing is 0. Raises ValueError where boxes, phrases or
        `kept` are of different numbers.
        """
        for number, (said, true) in enumerate(zip(predictions, references, strict=True)):
            for one, name in ((said, "predictions"), (true, "references")):
                if len(one["boxes"]) != len(one["phrases"]):
                    raise ValueError(
                        f"{name}[{number}] has {len(one['boxes'])} boxes and {len(one['phrases'])} phrases; each box needs one"
                    )
        if kept is not None and [len(some) for some in kept] != [len(said["boxes"]) for said in predictions]:
            raise ValueError("kept must say of every prediction of every picture whether it is kept")
        rows = []
        for number, (said, true) in enumerate(zip(predictions, references, strict=True)):
            right = matches(said, true, iou_threshold)
            held = np.array(kept[number] if kept is not None else [True] * len(right), dtype=bool)
            counts = [right.any(1).sum(), len(right), right.any(0).sum(), right.shape[1]]
            rows.append([*counts, right[held].any(1).sum(), held.sum(), right[held].any(0).sum()])
        counts = np.array(rows, dtype=float)

        def ratio(of, whole):
            return np.divide(of, whole, out=np.zeros_like(of), where=whole > 0)

        figures = {
            "grounding_precision": lambda c: ratio(c[..., 0], c[..., 1]),
            "grounding_recall": lambda c: ratio(c[..., 2], c[..., 3]),
        }
        if kept is not None:
            figures |= {
                "kept_precision": lambda c: ratio(c[..., 4], c[..., 5]),
                "kept_recall": lambda c: ratio(c[..., 6], c[..., 3]),
                "precision_gain": lambda c: ratio(c[..., 4], c[..., 5]) - ratio(c[..., 0], c[..., 1]),
            }
        whole = {
            "grounding_precision": 1,
            "grounding_recall": 3,
            "kept_precision": 5,
            "kept_recall": 3,
            "precision_gain": 1,
        }
        result = {}
        found = intervals(counts, list(figures.values()), n_bootstrap, seed)
        for (name, figure), ci95 in zip(figures.items(), found, strict=True):
            value, count = float(figure(counts.sum(0))), int(counts.sum(0)[whole[name]])
            result |= {name: value, f"{name}_ci95": ci95, f"{name}_n": count}
        return result
