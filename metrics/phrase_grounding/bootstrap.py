"""The uncertainty of a corpus figure: the percentile bootstrap over pictures (Efron and Tibshirani, 1993, chapter 13)."""

from collections.abc import Callable

import numpy as np


N_BOOTSTRAP = 1000
SEED = 0
BLOCK = 200_000  # multiplications at once; above, BLAS uses threads, which on a busy machine wait for each other


def intervals(
    statistics: np.ndarray,
    figures: list[Callable[[np.ndarray], np.ndarray]],
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = SEED,
) -> list[list[float]]:
    """
    The 95 % interval [lo, hi] of each figure that is a function of sums over pictures.

    `statistics` is (pictures, k); a figure maps summed statistics (..., k) to (...). Pictures are drawn with replacement
    `n_bootstrap` times, the same ones for the same seed and number of pictures. Raises ValueError without pictures or resamples.
    """
    pictures = len(statistics)
    if pictures == 0:
        raise ValueError("an interval over no pictures is undefined")
    if n_bootstrap < 1:
        raise ValueError(f"an interval needs at least one resample, n_bootstrap is {n_bootstrap}")
    rng, small = np.random.default_rng(seed), np.min_scalar_type(pictures)  # small numbers are drawn twice as fast
    statistics = np.asarray(statistics, dtype=float)
    sums = np.empty((n_bootstrap, statistics.shape[1]))
    step = max(1, BLOCK // statistics.size)
    for start in range(0, n_bootstrap, step):
        # how often each picture was drawn is all a sum needs: a matrix product instead of gathered copies; counting drawn
        # indices is several times faster than rng.multinomial, which draws a binomial per picture
        draws = [
            np.bincount(rng.integers(pictures, size=pictures, dtype=small), minlength=pictures)
            for _ in range(min(step, n_bootstrap - start))
        ]
        sums[start : start + step] = np.array(draws, dtype=float) @ statistics
    return [np.percentile(figure(sums), [2.5, 97.5]).tolist() for figure in figures]


def interval(
    statistics: np.ndarray,
    figure: Callable[[np.ndarray], np.ndarray],
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = SEED,
) -> list[float]:
    """`intervals` of one figure."""
    return intervals(statistics, [figure], n_bootstrap, seed)[0]
