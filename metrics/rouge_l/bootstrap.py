"""The uncertainty of a corpus figure: the percentile bootstrap over pictures (Efron and Tibshirani, 1993, chapter 13)."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np


RESAMPLES = 1000
BLOCK = 200_000  # multiplications at once; above, BLAS uses threads, which on a busy machine wait for each other
SEED = 0


@lru_cache(maxsize=1)  # one metric asks for several intervals over the same pictures
def _draws(pictures: int) -> np.ndarray:
    """How often each picture is in each resample, uint8 (resamples, pictures): a multinomial draw per row."""
    rng, small = np.random.default_rng(SEED), np.min_scalar_type(pictures)  # small numbers are drawn twice as fast
    # counting drawn indices is several times faster than rng.multinomial, which draws a binomial per picture
    rows = (
        np.bincount(rng.integers(pictures, size=pictures, dtype=small), minlength=pictures) for _ in range(RESAMPLES)
    )
    counts = np.empty((RESAMPLES, pictures), dtype=np.uint8)  # a picture drawn 256 times will not be seen
    for count, row in zip(counts, rows, strict=True):
        count[:] = row
    return counts


def intervals(statistics: np.ndarray, figures: list[Callable[[np.ndarray], np.ndarray]]) -> list[list[float]]:
    """
    The 95 % interval [lo, hi] of each figure that is a function of sums over pictures.

    `statistics` is (pictures, k); a figure maps summed statistics (..., k) to (...). Pictures are drawn with replacement 1000
    times, always the same for the same number of pictures. Raises ValueError without pictures.
    """
    pictures = len(statistics)
    if pictures == 0:
        raise ValueError("an interval over no pictures is undefined")
    # how often each picture was drawn is all a sum needs: matrix products instead of 1000 gathered copies
    draws = _draws(pictures)
    step = max(1, BLOCK // statistics.size)
    sums = np.concatenate([draws[i : i + step].astype(float) @ statistics for i in range(0, RESAMPLES, step)])
    return [np.percentile(figure(sums), [2.5, 97.5]).tolist() for figure in figures]


def interval(statistics: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """`intervals` of one figure."""
    return intervals(statistics, [figure])[0]
