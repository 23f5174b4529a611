"""
BLEU-1 to BLEU-4 of captions (Papineni et al., 2002, https://aclanthology.org/P02-1040), as COCO's caption evaluation computes it:
corpus level, the closest reference's length, no smoothing beyond what keeps zero from dividing.

    per picture: clipped n-gram matches (4), n-grams (4), length, closest reference length -> summed -> bleu_1..bleu_4
"""

from functools import partial

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, intervals
from .captions import code, flatten
from .ngrams import counts, locate, split
from .ptb_tokenizer import tokenize


ORDERS = 4
TINY, SMALL = 1e-15, 1e-9  # pycocoevalcap's: no match gives nearly zero, no n-gram does not divide by zero


def statistics(predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """What BLEU sums over pictures, float (pictures, 10): matches and n-grams of each order, length, reference length."""
    captions, pictures = flatten(predictions, references)
    words, lengths = code(split(tokenize(captions)))
    said = len(predictions)
    picture = np.concatenate([np.arange(said), pictures])  # of every sentence
    matches = np.zeros((said, ORDERS))
    for n, (sentence, gram, count, kinds) in enumerate(counts(words, lengths, ORDERS)):
        ours = np.searchsorted(sentence, said)  # entries before are of predictions, which come first
        found, place = locate(picture[sentence] * kinds + gram, gram, ours)
        most = np.zeros(ours, dtype=np.int64)
        np.maximum.at(most, place, count[ours:][found])
        matches[:, n] = np.bincount(sentence[:ours], weights=np.minimum(most, count[:ours]), minlength=said)
    length, right = lengths[:said], lengths[said:]
    # the closest reference length, and of two as close the shorter: sort by both, take each picture's first
    order = np.lexsort((right, np.abs(right - length[pictures]), pictures))
    closest = right[order][np.searchsorted(pictures, np.arange(said))]
    grams = np.maximum(length[:, None] - np.arange(ORDERS), 0)
    return np.column_stack([matches, grams, length, closest])


def bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """BLEU-`order` of summed statistics (..., 10) -> (...)."""
    matches, grams = sums[..., :order], sums[..., ORDERS : ORDERS + order]
    precision = np.prod((matches + TINY) / (grams + SMALL), axis=-1) ** (1 / order)
    ratio = (sums[..., -2] + TINY) / (sums[..., -1] + SMALL)
    # a tiny ratio overflows 1 / ratio to a penalty of exactly zero, which is meant
    return precision * np.exp(np.minimum(1 - 1 / ratio, 0))


class Bleu(evaluate.Metric):
    """`references`: for each picture its reference captions, one or more."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def compute(
        self,
        *,
        predictions: list[str] | None = None,
        references: list[list[str]] | None = None,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict | None:
        """What `_compute` returns, for the captions given or, without them, for what `add` and `add_batch` were given."""
        if (predictions is None) != (references is None):
            raise ValueError("predictions and references are scored together, but only one of them was given")
        # evaluate writes what it is given to Arrow and reads it back, which would take as long as scoring it; only what was
        # added in batches or is spread over processes needs that
        if predictions is None or self.num_process > 1:
            return super().compute(predictions=predictions, references=references, n_bootstrap=n_bootstrap, seed=seed)
        for record, right in enumerate(references):
            if isinstance(right, str):  # Arrow would have refused it; here its letters would pass for captions
                raise ValueError(f"record {record}: its references are the string {right!r}, not a list of strings")
        return self._compute(predictions, references, n_bootstrap, seed)

    def _compute(
        self, predictions: list[str], references: list[list[str]], n_bootstrap: int = N_BOOTSTRAP, seed: int = SEED
    ) -> dict[str, float | list[float]]:
        """
        {"bleu_1", ..., "bleu_4"}, each with a `_ci95`; the interval resamples pictures' statistics. Raises ValueError as
        `flatten` and `intervals` do.
        """
        table = statistics(predictions, references)
        figures = {f"bleu_{order}": partial(bleu, order=order) for order in range(1, ORDERS + 1)}
        result = {}
        limits = intervals(table, list(figures.values()), n_bootstrap, seed)
        for (name, figure), ci95 in zip(figures.items(), limits, strict=True):
            result |= {name: float(figure(table.sum(0))), f"{name}_ci95": ci95}
        return result
