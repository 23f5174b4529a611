"""
CIDEr-D of captions (Vedantam et al., 2015, https://arxiv.org/abs/1411.5726), as COCO's caption evaluation computes it: the tf-idf
similarity of n-grams (n = 1..4) to each reference, clipped, with a Gaussian penalty on the difference in length, times 10.

An n-gram's document frequency is the number of the given pictures whose references have it: a score depends on the whole set,
and is zero for one picture alone.
"""

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, interval
from .captions import code, flatten
from .ngrams import counts, locate, split
from .ptb_tokenizer import tokenize


ORDERS = 4
SIGMA = 6.0


def scores(predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """CIDEr-D of every picture, float (pictures,)."""
    captions, pictures = flatten(predictions, references)
    words, lengths = code(split(tokenize(captions)))
    said, right = len(predictions), len(pictures)
    picture = np.concatenate([np.arange(said), pictures])  # of every sentence
    similarities = []
    for sentence, gram, count, kinds in counts(words, lengths, ORDERS):
        ours = np.searchsorted(sentence, said)  # entries before are of predictions, which come first
        key = picture[sentence] * kinds + gram
        theirs = np.sort(key[ours:])
        first = np.append(True, theirs[1:] != theirs[:-1])[: len(theirs)]  # of a picture's equal n-grams
        frequency = np.bincount(theirs[first] % kinds, minlength=kinds)
        weight = count * (np.log(said) - np.log(np.maximum(frequency, 1)))[gram]
        norm = np.sqrt(np.bincount(sentence, weights=weight**2, minlength=len(lengths)))
        found, place = locate(key, gram, ours)
        theirs = weight[ours:][found]
        overlap = np.minimum(weight[:ours][place], theirs) * theirs
        similarity = np.bincount(sentence[ours:][found] - said, weights=overlap, minlength=right)
        norms = norm[:said][pictures] * norm[said:]
        similarities.append(similarity / np.where(norms > 0, norms, 1))
    lengths = np.maximum(lengths - 1, 0)  # pycocoevalcap's length of a caption is its number of bigrams
    difference = lengths[:said][pictures] - lengths[said:]
    total = np.mean(similarities, axis=0) * np.exp(-(difference**2) / (2 * SIGMA**2))
    return 10 * np.bincount(pictures, weights=total) / np.bincount(pictures)


class Cider(evaluate.Metric):
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
        {"cider", "cider_ci95"}; the interval resamples pictures' scores with the document frequencies of the whole set.
        Raises ValueError as `flatten` and `interval` do.
        """
        each = scores(predictions, references)
        pictures = len(each)
        return {
            "cider": float(each.mean()),
            "cider_ci95": interval(each[:, None], lambda sums: sums[..., 0] / pictures, n_bootstrap, seed),
        }
