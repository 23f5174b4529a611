"""
Win rate: how often one system's answer is better than another's to the same input, by any judge that scores them.

    scores, baseline_scores -> above: a win, 1    equal: a tie, 1/2    below: a loss, 0

    win_rate         the mean over inputs
    wins, ties, losses
    sign_test_p      how likely at least so uneven a split of wins and losses is if either were as likely as the other: the exact
                     two-sided sign test, ties left out (Dixon and Mood, 1946)
    mean_difference  of the scores, in their own unit; its interval draws inputs, so both systems' scores of one stay together

Unusual: nothing is said about the judge here, and a win rate says nothing without one: `judge` is repeated in the protocol. The two
tests may disagree: many small wins and few large losses win often and lose on average.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, intervals


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p of a split as uneven as this one, by heads or tails: twice the smaller tail, at most 1."""
    total, ways, tail = wins + losses, 1, 0
    for heads in range(min(wins, losses) + 1):
        tail += ways
        ways = ways * (total - heads) // (heads + 1)  # of heads + 1 among all: whole numbers, so nothing is rounded
    return min(1.0, 2 * tail / 2**total)


class WinRate(evaluate.Metric):
    """`scores` and `baseline_scores`: of either system's answer to each input, in one order; more is better."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"scores": datasets.Value("float64"), "baseline_scores": datasets.Value("float64")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def compute(self, *, scores=None, baseline_scores=None, **options) -> dict | None:
        """What `_compute` returns, for what is given or, without it, for what `add` and `add_batch` were given."""
        if (scores is None) != (baseline_scores is None):
            raise ValueError("two systems are compared, but the scores of only one of them were given")
        if scores is None or self.num_process > 1:
            return super().compute(scores=scores, baseline_scores=baseline_scores, **options)
        return self._compute(scores, baseline_scores, **options)

    def _compute(
        self,
        scores: Sequence[float],
        baseline_scores: Sequence[float],
        judge: str | None = None,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict:
        """
        The figures above, `win_rate` and `mean_difference` with a `_ci95` by bootstrap over inputs, and `win_rate_protocol`.
        judge: who or what gave the scores.

        Raises ValueError for no inputs, lists of different lengths, and, naming the input, for a score that is no finite number.
        """
        ours, theirs = np.asarray(scores, dtype=float), np.asarray(baseline_scores, dtype=float)
        if not ours.size and not theirs.size:
            raise ValueError("there are no inputs to compare two systems on")
        if len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} scores, but baseline_scores of {len(theirs)} inputs: they are not paired")
        for what, some in (("scores", ours), ("baseline_scores", theirs)):
            if not np.isfinite(some).all():
                one = int(np.flatnonzero(~np.isfinite(some))[0])
                raise ValueError(f"input {one}: of {what} {some[one]} is no finite number")
        differences = ours - theirs
        wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
        count, ties = len(ours), len(ours) - wins - losses
        points = (differences > 0) + 0.5 * (differences == 0)
        figures = [lambda sums: sums[..., 0] / count, lambda sums: sums[..., 1] / count]
        rate, difference = intervals(np.stack([points, differences], 1), figures, n_bootstrap, seed)
        return {
            "win_rate": (wins + 0.5 * ties) / count,
            "win_rate_ci95": rate,
            "wins": wins,
            "ties": ties,
            "losses": losses,
            "sign_test_p": sign_test(wins, losses),
            "mean_difference": float(differences.mean()),
            "mean_difference_ci95": difference,
            "win_rate_protocol": {
                "judge": judge or "not stated",
                "interval": f"percentile bootstrap over inputs, {n_bootstrap} resamples, seed {seed}",
                "test": "exact two-sided sign test of wins and losses",
            },
        }
