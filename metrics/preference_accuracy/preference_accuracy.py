"""
Preference accuracy: how often what was preferred scores higher than what was rejected.

    chosen scores, rejected scores -> margins, chosen less rejected -> above 0: 1    0: 1/2    below 0: 0

    preference_accuracy         the mean over pairs
    preference_accuracy_<kind>  over the pairs of one kind
    preference_margin           the mean margin, in the scores' own unit

Unusual: a tie is half right, so a model that scores everything alike is at chance; where others count it as wrong it is at 0. The
scores may be anything of which more is better: rewards, log-probabilities.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, interval


class PreferenceAccuracy(evaluate.Metric):
    """
    `chosen_scores` and `rejected_scores`: of each pair's two sides. `kinds`: in what they differ, to score each kind too ("" or
    None: of no kind). `groups`: what pairs have in common, as the picture that they are about.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"chosen_scores": datasets.Value("float64"), "rejected_scores": datasets.Value("float64")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def compute(self, *, chosen_scores=None, rejected_scores=None, **options) -> dict | None:
        """What `_compute` returns, for what is given or, without it, for what `add` and `add_batch` were given."""
        if (chosen_scores is None) != (rejected_scores is None):
            raise ValueError("chosen and rejected are scored together, but only one of them was given")
        if chosen_scores is None or self.num_process > 1:
            return super().compute(chosen_scores=chosen_scores, rejected_scores=rejected_scores, **options)
        return self._compute(chosen_scores, rejected_scores, **options)

    def _compute(
        self,
        chosen_scores: Sequence[float],
        rejected_scores: Sequence[float],
        kinds: Sequence[str | None] | None = None,
        groups: Sequence | None = None,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict[str, float | int | list[float]]:
        """
        The figures above, each with a `_ci95` by bootstrap over pairs, or over `groups` of them (pairs about one picture are drawn
        together), and a `_n`, of how many pairs it is.

        Raises ValueError for no pairs, lists of different lengths, and, naming the pair, for a score that is no finite number.
        """
        chosen, rejected = np.asarray(chosen_scores, dtype=float), np.asarray(rejected_scores, dtype=float)
        if not chosen.size:
            raise ValueError("there are no pairs to score")
        given = {"rejected_scores": rejected, "kinds": kinds, "groups": groups}
        for what, some in given.items():
            if some is not None and len(some) != len(chosen):
                raise ValueError(f"{len(chosen)} chosen_scores, but {what} of {len(some)} pairs")
        for what, some in (("chosen_scores", chosen), ("rejected_scores", rejected)):
            if not np.isfinite(some).all():
                pair = int(np.flatnonzero(~np.isfinite(some))[0])
                raise ValueError(f"pair {pair}: of {what} {some[pair]} is no finite number")
        margins = chosen - rejected
        right = (margins > 0) + 0.5 * (margins == 0)
        alike = np.arange(len(right)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        scored = {"preference_accuracy": (right, np.ones(len(right), dtype=bool))}
        for kind in sorted(set(kinds or ()) - {"", None}):
            scored[f"preference_accuracy_{kind}"] = right, np.array([one == kind for one in kinds])
        scored["preference_margin"] = margins, np.ones(len(right), dtype=bool)
        result: dict[str, float | int | list[float]] = {}
        for name, (values, some) in scored.items():
            # sum and number of the pairs of each group that has any: groups differ in size, so their means do not average
            _, place = np.unique(alike[some], return_inverse=True)
            sums = np.stack([np.bincount(place, values[some]), np.bincount(place)], 1)
            ci95 = interval(sums, lambda total: total[..., 0] / total[..., 1], n_bootstrap, seed)
            result |= {name: float(values[some].mean()), f"{name}_ci95": ci95, f"{name}_n": int(some.sum())}
        return result
