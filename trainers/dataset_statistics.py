"""
What is said, seen and repeated in a dataset, as numbers: pure functions of texts, pictures, sounds and arrays.

    text -> words      values -> spread, histogram      sound -> heard
    picture -> signature -> near_pairs -> groups

Unusual: two pictures are nearly the same where two things agree: how light and dark lie (a perceptual hash, which finds them
without comparing all with all) and the colours of each of 8 x 8 fields. A hash alone takes pictures that are laid out alike for
one: of 1,500 drawings of easy-VQA, pHash at 6 bits pairs 1,523, dHash 102,307, and all but a few are different drawings.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import regex
from PIL import Image


BITS = 63  # of a pattern that say anything: the 64th is the mean, always 1
DISTANCE = 6  # bits. Photographs re-encoded or resized are 0 to 4 apart, different ones seldom under 20
TOLERANCE = 16, 4  # levels of 255 in any field, and on average. Re-encoded or resized: up to 10 and 2.5
SIDE = 32  # pixels a side of what a pattern is taken of
FIELDS = 8  # a side
SILENT = 1e-3  # of full scale: -60 dB
FULL = 0.999
CLIPPED = 1e-3  # of all samples
BINS = 40
BLOCK = 1 << 17  # pairs compared at a time: they stay in the cache

# Chinese and Japanese are written without spaces: there, a character is a word
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}"
_LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]"
_WORD = regex.compile(rf"(?V1)[{_UNSPACED}]|{_LETTERS}+(?:['’-]{_LETTERS}+)*")

_steps = np.arange(SIDE)
_COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * _steps + 1) / (2 * SIDE)).astype(
    np.float32
)  # (8, SIDE), a DCT-II
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def digest(content: bytes | memoryview) -> int:
    """64 bits. Among a million, two that differ agree with a chance of 3 in 100 million."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")


def words(text: str) -> list[str]:
    """Lower case, without punctuation; don't and red-haired are one word. Of Chinese and Japanese, a character is a word."""
    return _WORD.findall((text if text.isascii() else unicodedata.normalize("NFC", text)).lower())


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, least, percentiles (between two values: in proportion) and greatest; None where there are no values."""
    if not len(values):
        return None
    array = np.asarray(values, dtype=np.float64)
    at = dict(zip(("min", "p5", "p25", "median", "p75", "p95", "max"), (0, 5, 25, 50, 75, 95, 100), strict=True))
    figures = {"mean": array.mean()} | {name: np.percentile(array, percent) for name, percent in at.items()}
    return {name: round(float(figure), 4) for name, figure in figures.items()}


def histogram(values: Mapping[str, Sequence[float]]) -> dict | None:
    """
    {"edges": (n + 1), "counts": {name: (n)}, "beyond": {name: int}}: one set of at most BINS bins for all names. A few values far
    out would leave the others one bin, so what is above twice the 99th percentile is counted as `beyond`. None without values.
    """
    arrays = {name: np.asarray(one, dtype=np.float64) for name, one in values.items() if len(one)}
    if not arrays:
        return None
    everything = np.concatenate(list(arrays.values()))
    low, high, most = everything.min(), everything.max(), 2 * np.percentile(everything, 99)
    high = most if high > most > low else high
    if (everything == np.round(everything)).all():  # whole numbers: bins of whole numbers, each around its middle
        width = np.ceil((high - low + 1) / BINS)
        edges = np.arange(low - 0.5, high + width + 0.5, width)
    else:
        edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts = {name: np.histogram(one, edges)[0].tolist() for name, one in arrays.items()}
    beyond = {name: int((one > edges[-1]).sum()) for name, one in arrays.items()}
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": counts, "beyond": beyond}


class Signature(NamedTuple):
    """pixels: equal for the same pixels. pattern: a pHash. colours: FIELDS x FIELDS x 3 bytes. contrast: of grey, in levels."""

    pixels: int
    pattern: int
    colours: bytes
    contrast: float


def signature(picture: Image.Image) -> Signature:
    """
    What tells an RGB picture from others. The pattern is a pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image
    Hash Functions"): which of the 8 x 8 lowest frequencies of the picture in grey, 32 x 32, are above their median.
    """
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    grey = small @ _GREY
    waves = (_COSINES @ grey @ _COSINES.T).ravel()
    waves[0] = np.inf  # the mean: beside it no other number says anything
    above = waves > np.median(waves)
    each = SIDE // FIELDS
    colours = small.reshape(FIELDS, each, FIELDS, each, 3).mean((1, 3)).round().astype(np.uint8)
    return Signature(
        pixels=digest(b"%d x %d " % picture.size + picture.tobytes()),
        pattern=int.from_bytes(np.packbits(above).tobytes(), "big"),
        colours=colours.tobytes(),
        contrast=float(grey.std()),
    )


def near_pairs(
    patterns: np.ndarray,
    colours: np.ndarray,
    distance: int = DISTANCE,
    tolerance: tuple[float, float] = TOLERANCE,
) -> np.ndarray:
    """
    Pairs (n, 2) of places, the lower first, of pictures whose patterns (uint64) differ in at most `distance` bits and whose colours
    (uint8, a row each) in at most so many levels anywhere, and so many on average, as `tolerance` says.

    All pairs, exactly: patterns are cut into distance + 1 bands; where no more than `distance` bits differ, one band is the same,
    so only patterns that share a band are compared. Memory grows with the pairs found: m pictures alike are m² / 2 of them.
    """
    if not 0 <= distance < BITS:
        raise ValueError(f"distance must be at least 0 and below {BITS} bits; got {distance}")
    limits = np.linspace(0, BITS, distance + 2).astype(int)
    bands = [
        (patterns >> np.uint64(int(low))) & np.uint64((1 << int(high - low)) - 1) for low, high in pairwise(limits)
    ]
    found = [np.empty((0, 2), dtype=np.int64)]
    for number, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]))
        sizes = np.diff(starts, append=len(order))
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            same = order[start : start + size]
            step = max(1, BLOCK // int(size))
            for at in range(0, len(same) - 1, step):
                rest = same[at:]
                apart = np.bitwise_count(patterns[rest[:step], None] ^ patterns[None, rest])
                first, second = np.divmod(np.flatnonzero(apart <= distance), len(rest))
                first, second = rest[first[second > first]], rest[second[second > first]]
                for earlier in bands[:number]:  # found there already
                    fresh = earlier[first] != earlier[second]
                    first, second = first[fresh], second[fresh]
                alike = _alike(colours, first, second, tolerance)
                found.append(np.stack([first[alike], second[alike]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _alike(colours: np.ndarray, first: np.ndarray, second: np.ndarray, tolerance: tuple[float, float]) -> np.ndarray:
    alike = np.zeros(len(first), dtype=bool)
    for start in range(0, len(first), 1 << 14):
        here = slice(start, start + (1 << 14))
        apart = np.abs(colours[first[here]].astype(np.int16) - colours[second[here]])
        alike[here] = (apart.max(axis=1) <= tolerance[0]) & (apart.mean(axis=1) <= tolerance[1])
    return alike


def groups(count: int, pairs: np.ndarray) -> np.ndarray:
    """(count,) The lowest place that is linked to each place, by however many pairs."""
    lowest = np.arange(count)
    while len(pairs):
        ends = lowest[pairs]
        least = ends.min(axis=1)
        if (ends == least[:, None]).all():
            break
        np.minimum.at(lowest, ends[:, 0], least)
        np.minimum.at(lowest, ends[:, 1], least)
        while (lowest[lowest] != lowest).any():
            lowest = lowest[lowest]
    return lowest


class Heard(NamedTuple):
    seconds: float
    rate: int
    channels: int
    silent: bool  # never above SILENT
    clipped: bool  # more than CLIPPED of its samples at full scale
    samples: int  # equal for the same samples


def heard(wave: np.ndarray, rate: int) -> Heard:
    """What can be said of a waveform, (samples,) or (samples, channels) within -1 … 1, at `rate` samples a second."""
    loud = np.abs(wave)
    return Heard(
        seconds=len(wave) / rate,
        rate=int(rate),
        channels=1 if wave.ndim == 1 else wave.shape[1],
        silent=bool(loud.max() <= SILENT),
        clipped=bool((loud >= FULL).mean() > CLIPPED),
        samples=digest(b"%d " % rate + np.ascontiguousarray(wave).tobytes()),
    )
