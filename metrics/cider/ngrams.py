"""All n-grams of all sentences counted at once, as arrays sorted by sentence."""

from collections.abc import Iterator

import numpy as np


def split(sentences: list[list[str]]) -> list[list[str]]:
    """Tokens with a space inside taken apart: "2 1/2" is one token, but BLEU and CIDEr in pycocoevalcap see two words."""
    if all(len(token.split()) == 1 for token in set().union(*sentences)):
        return sentences
    return [" ".join(tokens).split() for tokens in sentences]


def counts(
    words: np.ndarray, lengths: np.ndarray, orders: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """
    For n = 1..`orders`: (sentence, gram, count, kinds). The three arrays have one entry per different n-gram of a sentence,
    sorted by sentence and then gram; grams are numbered from 0 to `kinds`.

    `words` (tokens,) and `lengths` (sentences,) are all sentences in a row, as numbers.
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(
        len(words)
    )  # words to the sentence's end, this one included
    vocabulary = int(words.max(initial=0)) + 1
    start, gram, kinds = np.arange(len(words)), words, vocabulary
    for n in range(1, orders + 1):
        if n > 1:
            # an n-gram is an (n-1)-gram and one more word; numbering them anew keeps the codes small and exact
            fits = left[start] >= n
            start = start[fits]
            names, gram = np.unique(gram[fits] * vocabulary + words[start + n - 1], return_inverse=True)
            kinds = max(len(names), 1)
        pair, count = np.unique(owner[start] * kinds + gram, return_counts=True)
        sentence = pair // kinds
        yield sentence, pair - sentence * kinds, count, kinds


def locate(keys: np.ndarray, grams: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Which keys from place `first` on are also among the sorted ones before it: (their places after `first`, places before it).

    `keys` are picture * kinds + gram, `grams` their grams.
    """
    known = np.zeros(int(grams.max(initial=0)) + 1, dtype=bool)
    known[grams[:first]] = True
    # most longer n-grams are in no prediction at all; leaving them out first is cheaper than searching for them
    candidates = np.flatnonzero(known[grams[first:]])
    wanted = keys[first:][candidates]
    place = np.searchsorted(keys[:first], wanted)
    found = np.append(keys[:first], -1)[place] == wanted
    return candidates[found], place[found]
