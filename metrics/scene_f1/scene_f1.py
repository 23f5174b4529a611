"""
Scene F1: do a caption's objects exist, all of them and no others? For the miniature world, where the truth is known.

    "two small red stars and a large blue boat" -> {(small, red, star): 2, (large, blue, boat): 1}

A noun phrase is an optional number, size and colour before a shape; a phrase that leaves out its size or colour is an object that
does not exist. True positives, predicted and true objects are counted with multiplicity and summed over pictures (micro F1).
"""

import re
from collections import Counter

import datasets
import evaluate
import numpy as np

from .bootstrap import intervals


NUMBERS = {"two": 2, "three": 3, "four": 4}
SIZES = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large", "huge": "large"}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "boat", "tree")
_NOUNS = {shape: shape for shape in SHAPES} | {shape + ("es" if shape == "cross" else "s"): shape for shape in SHAPES}
_PHRASE = re.compile(
    rf"\b(?:({'|'.join(NUMBERS)}) )?(?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(_NOUNS)})\b"
)


def objects(caption: str) -> Counter:
    """The (size, colour, shape) triples a caption names, with how many of each; None where it does not say."""
    found: Counter = Counter()
    for number, size, colour, noun in _PHRASE.findall(caption.lower()):
        found[SIZES.get(size), colour or None, _NOUNS[noun]] += NUMBERS.get(number, 1)
    return found


class SceneF1(evaluate.Metric):
    """`references`: for each picture the phrases of its objects, one per object ("small red star" twice for two of them)."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        """{"scene_f1", "scene_precision", "scene_recall"}, each with a `_ci95` by bootstrap over pictures."""
        counts = []
        for said, true in zip(predictions, references, strict=True):
            named, there = objects(said), sum((objects(phrase) for phrase in true), Counter())
            counts.append(((named & there).total(), named.total(), there.total()))
        counts = np.array(counts, dtype=float)

        def ratio(of, whole):
            return np.divide(of, whole, out=np.zeros_like(of), where=whole > 0)

        figures = {
            "scene_f1": lambda c: ratio(2 * c[..., 0], c[..., 1] + c[..., 2]),
            "scene_precision": lambda c: ratio(c[..., 0], c[..., 1]),
            "scene_recall": lambda c: ratio(c[..., 0], c[..., 2]),
        }
        result = {}
        for (name, figure), ci95 in zip(figures.items(), intervals(counts, list(figures.values())), strict=True):
            result |= {name: float(figure(counts.sum(0))), f"{name}_ci95": ci95}
        return result
