"""
Retrieval figures: how far down a ranking the first right item stands.

    r1, r5, r10     share of queries whose first right item is among the first k
    median_rank     of the first right item, 1 being best

Unusual: an item that scores exactly as the right one stands before it, so an encoder that maps everything to one point finds
nothing (where others break ties by index, it finds whatever stands in its own place). Several items may be right (a picture's five
captions): the best of them counts, and the others do not stand in its way.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, intervals


CUTS = (1, 5, 10)


def first_right(similarity: np.ndarray, right: Sequence[Sequence[int]]) -> np.ndarray:
    """Rank (queries,), from 1, of the best right item: similarity (queries, items), right: for each query its items' indices."""
    rows = np.repeat(np.arange(len(right)), [len(some) for some in right])
    columns = np.concatenate([np.asarray(some, dtype=int) for some in right])
    is_right = np.zeros(similarity.shape, dtype=bool)
    is_right[rows, columns] = True
    best = np.where(is_right, similarity, -np.inf).max(1, keepdims=True)
    return 1 + ((similarity >= best) & ~is_right).sum(1)


class Retrieval(evaluate.Metric):
    """`predictions`: for each query its similarity to every item; `references`: for each query the indices of the right items."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def compute(self, *, predictions=None, references=None, **options) -> dict | None:
        """What `_compute` returns, for what is given or, without it, for what `add` and `add_batch` were given."""
        if (predictions is None) != (references is None):
            raise ValueError("predictions and references are scored together, but only one of them was given")
        if predictions is None or self.num_process > 1:
            return super().compute(predictions=predictions, references=references, **options)
        return self._compute(predictions, references, **options)

    def _compute(
        self,
        predictions: np.ndarray | list[list[float]],
        references: list[list[int]],
        groups: list | None = None,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict[str, float | list[float]]:
        """
        {"r1", "r5", "r10", "median_rank"}, each with a `_ci95`: by bootstrap over queries, or over `groups` of them (five captions
        of a picture are drawn together); for the median, the interval of order statistics.

        Raises ValueError for no queries, for references of another number of queries, for a query without a right item, for an
        index beyond the items, and for similarities that are not finite.
        """
        similarity = np.asarray(predictions, dtype=np.float32)
        if similarity.ndim != 2 or 0 in similarity.shape:
            raise ValueError(f"predictions must be (queries, items), are {similarity.shape}")
        if len(references) != len(similarity):
            raise ValueError(f"{len(similarity)} queries, but references of {len(references)}")
        if not np.isfinite(similarity).all():
            raise ValueError(
                f"query {int(np.argwhere(~np.isfinite(similarity))[0][0])} has similarities that are no numbers"
            )
        for query, some in enumerate(references):
            if not len(some):
                raise ValueError(f"query {query} has no right item")
            if min(some) < 0 or max(some) >= similarity.shape[1]:
                raise ValueError(f"query {query}: right items {list(some)}, of {similarity.shape[1]}")
        ranks = first_right(similarity, references)
        each = np.stack([np.ones(len(ranks)), *(ranks <= cut for cut in CUTS)], 1).astype(float)
        if groups is not None:
            names, place = np.unique(np.asarray(groups), return_inverse=True)
            alone, each = each, np.zeros((len(names), each.shape[1]))
            np.add.at(each, place, alone)
        figures = [lambda sums, i=i: sums[..., i] / sums[..., 0] for i in range(1, each.shape[1])]
        result: dict[str, float | list[float]] = {}
        spread = intervals(each, figures, n_bootstrap, seed)
        for cut, figure, ci95 in zip(CUTS, figures, spread, strict=True):
            result |= {f"r{cut}": float(figure(each.sum(0))), f"r{cut}_ci95": ci95}
        ordered, half = np.sort(ranks), 0.98 * len(ranks) ** 0.5
        low, high = (int(np.clip(len(ranks) / 2 + side, 0, len(ranks) - 1)) for side in (-half, half))
        middle = {
            "median_rank": float(np.median(ranks)),
            "median_rank_ci95": [float(ordered[low]), float(ordered[high])],
        }
        return result | middle
