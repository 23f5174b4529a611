"""
Captions as numbers, so that the metrics count with arrays instead of strings.

    predictions, references -> captions (predictions first, then every reference) -> tokens -> words (tokens,), lengths (captions,)
"""

from collections import defaultdict
from itertools import chain

import numpy as np


def flatten(predictions: list[str], references: list[list[str]]) -> tuple[list[str], np.ndarray]:
    """
    All predictions and then all references, and each reference's picture, int (references,).

    Raises ValueError for no predictions, for references of more or fewer pictures, and, naming the record, for a prediction that
    is not a string and for a picture without references.
    """
    if not len(predictions):
        raise ValueError("there are no predictions to score")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but references of {len(references)} pictures")
    for record, (said, right) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(said, str):
            raise ValueError(f"record {record}: the prediction is {said!r}, not a string")
        if not right or not all(isinstance(text, str) for text in right):
            raise ValueError(f"record {record}: its references are {right!r}; at least one string is needed")
    pictures = np.repeat(np.arange(len(references)), [len(right) for right in references])
    return [*predictions, *chain.from_iterable(references)], pictures


def code(sentences: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """The words of all sentences in a row as numbers from 0, int (tokens,), and the sentences' lengths, int (sentences,)."""
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
    words = map(numbers.__getitem__, chain.from_iterable(sentences))
    return np.fromiter(words, dtype=np.int64, count=int(lengths.sum())), lengths
