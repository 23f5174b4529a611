"""
What is in a dataset twice: pictures and sounds within a split, and those, and captions, of one split that are in another.

    [Split] -> all pictures together -> the same (np.unique of hashes) -> each once -> nearly the same (near_pairs) -> copies

Unusual: splits are looked through together, so the cost of a leak is that of a copy. A place is written {"split", "row", "place",
"name"}, `place` being that among the row's pictures.
"""

from itertools import combinations

import numpy as np

from trainers.dataset_reading import Split
from trainers.dataset_statistics import DISTANCE, FIELDS, TOLERANCE, groups, near_pairs


PAIRS = 200  # of leaks between two splits that are listed


def copies(splits: list[Split], distance: int = DISTANCE) -> dict:
    """{"duplicates", "leakage"}: copies within splits, and leaks between them, of each two of which the first is `from`."""
    sizes = [len(split.pictures.names) for split in splits]
    of, starts = np.repeat(np.arange(len(splits)), sizes), np.cumsum([0, *sizes])
    pixels = np.concatenate([np.asarray(split.pictures.pixels, dtype=np.uint64) for split in splits])
    patterns = np.concatenate([np.asarray(split.pictures.patterns, dtype=np.uint64) for split in splits])
    colours = np.frombuffer(b"".join(split.pictures.colours for split in splits), dtype=np.uint8)
    colours = colours.reshape(-1, FIELDS * FIELDS * 3)
    # each picture once from here on: copies of one would be as many pairs as their number squared
    _, firsts, same = np.unique(pixels, return_index=True, return_inverse=True)
    pairs = near_pairs(patterns[firsts], colours[firsts], distance)
    shown = np.zeros((len(firsts), len(splits)), dtype=bool)  # whether a split shows a picture
    shown[same, of] = True
    like = np.zeros_like(shown)  # whether it shows one nearly the same
    for one, other in (pairs.T, pairs.T[::-1]):
        np.logical_or.at(like, one, shown[other])
    heard = [{one.samples for one in split.sounds.heard} for split in splits]
    linked = groups(len(firsts), pairs)

    def where(number: int) -> dict:
        split, at = splits[of[number]], number - starts[of[number]]
        rows, places, names = split.pictures.rows, split.pictures.places, split.pictures.names
        return {"split": split.name, "row": rows[at], "place": places[at], "name": names[at]}

    def twin(picture: int, a: int) -> dict:
        """Where split `a` shows the same as a picture, or nearly."""
        if not shown[picture, a]:
            beside = np.concatenate([pairs[pairs[:, 0] == picture, 1], pairs[pairs[:, 1] == picture, 0]])
            picture = beside[shown[beside, a]][0]
        return where(np.flatnonzero((same == picture) & (of == a))[0])

    def leak(a: int, b: int) -> dict:
        equal = np.flatnonzero((of == b) & shown[same, a])
        nearly = np.flatnonzero((of == b) & like[same, a] & ~shown[same, a])
        return {
            "from": splits[a].name,
            "to": splits[b].name,
            "pictures": len(splits[b].pictures.names),
            "same": len(equal),
            "alike": len(nearly),
            "captions": len(splits[b].captions.seen),
            "captions_same": len(splits[a].captions.seen & splits[b].captions.seen),
            "sounds": len(splits[b].sounds.heard),
            "sounds_same": sum(one.samples in heard[a] for one in splits[b].sounds.heard),
            "pairs_same": [[twin(same[place], a), where(place)] for place in equal[:PAIRS]],
            "pairs_alike": [[twin(same[place], a), where(place)] for place in nearly[:PAIRS]],
        }

    within = {
        split.name: {
            "copies": len(split.pictures.names) - int(shown[:, number].sum()),
            "alike": int((shown & like)[:, number].sum()),
            "sounds": len(split.sounds.heard) - len(heard[number]),
        }
        for number, split in enumerate(splits)
    }
    return {
        "duplicates": {
            "distance": distance,
            "tolerance": TOLERANCE,
            "within": within,
            "same": [[where(place) for place in group] for group in _together(same)],
            "alike": [[where(place) for place in sorted(firsts[group])] for group in _together(linked)],
        },
        "leakage": [leak(a, b) for a, b in combinations(range(len(splits)), 2)],
    }


def _together(labels: np.ndarray) -> list[np.ndarray]:
    """Places of equal labels, two and more, the largest groups first."""
    several = np.flatnonzero(np.bincount(labels)[labels] > 1) if len(labels) else labels
    order = several[np.argsort(labels[several], kind="stable")]
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    return sorted(parts, key=lambda part: (-len(part), part[0]))
