"""
ROUGE-L of captions (Lin, 2004, https://aclanthology.org/W04-1013), as COCO's caption evaluation computes it: of the longest common
subsequences with each reference the best precision and the best recall, their F with beta = 1.2, averaged over pictures.
"""

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, interval
from .captions import code, flatten
from .ptb_tokenizer import tokenize


BETA = 1.2
CHUNK = 2048  # pairs of sentences compared at once, of about one length: little padding, and all in the cache


def common(words: np.ndarray, lengths: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    The length of the longest common subsequence of each pair of sentences, int (pairs,).

    `words` (tokens,) and `lengths` (sentences,) are those of `code`; `first` and `second` (pairs,) number sentences.
    """
    words = words.astype(np.int32)  # less memory to go through
    kind = np.min_scalar_type(-int(lengths.max()) - 1)
    ends = np.cumsum(lengths)
    longest = np.zeros(len(first), dtype=np.int64)
    order = np.lexsort((lengths[second], lengths[first]))
    for i in range(0, len(order), CHUNK):
        pairs = order[i : i + CHUNK]
        a, b = (_padded(words, ends, lengths, sentence[pairs], pad) for sentence, pad in ((first, -1), (second, -2)))
        # row[j] after k words of b: the longest subsequence common to those and the first j words of a; pairs run along
        # the last axis, so each step of the usual table is done for all of them at once
        row = np.zeros((len(a) + 1, len(pairs)), dtype=kind)
        for word in b:
            np.maximum(row[1:], row[:-1] + (a == word), out=row[1:])
            np.maximum.accumulate(row, axis=0, out=row)
        longest[pairs] = row[-1]
    return longest


def _padded(words: np.ndarray, ends: np.ndarray, lengths: np.ndarray, chosen: np.ndarray, pad: int) -> np.ndarray:
    """The words of the chosen sentences as columns, (longest, chosen), filled up with `pad`, which no word equals."""
    place = np.arange(lengths[chosen].max())[:, None]
    inside = place < lengths[chosen]
    return np.where(inside, words[np.where(inside, (ends - lengths)[chosen] + place, 0)], pad)


def scores(predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """ROUGE-L of every picture, float (pictures,)."""
    captions, pictures = flatten(predictions, references)
    # pycocoevalcap takes a caption without words for one empty word, which equals another one
    words, lengths = code([tokens or [""] for tokens in tokenize(captions)])
    said = len(predictions)
    overlap = common(words, lengths, pictures, said + np.arange(len(pictures)))
    starts = np.searchsorted(pictures, np.arange(said))
    precision = np.maximum.reduceat(overlap / lengths[:said][pictures], starts)
    recall = np.maximum.reduceat(overlap / lengths[said:], starts)
    weighted = recall + BETA**2 * precision
    return np.divide((1 + BETA**2) * precision * recall, weighted, out=np.zeros_like(weighted), where=weighted > 0)


class RougeL(evaluate.Metric):
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
        {"rouge_l", "rouge_l_ci95"}; the interval resamples pictures' scores. Raises ValueError as `flatten` and `interval` do.
        """
        each = scores(predictions, references)
        pictures = len(each)
        return {
            "rouge_l": float(each.mean()),
            "rouge_l_ci95": interval(each[:, None], lambda sums: sums[..., 0] / pictures, n_bootstrap, seed),
        }
