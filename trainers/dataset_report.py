"""
What was read of a dataset's splits, as the figures of a report: one dictionary that JSON can hold, warnings first.

    [Split] -> describe -> {"warnings", "notes", "splits", "histograms", "duplicates", "leakage", "unreadable"}

Unusual: warnings are said in plain words, and only of what was counted; what is a sample or was stopped is said in `notes`.
"""

from collections import Counter

import numpy as np

from trainers.dataset_copies import copies
from trainers.dataset_reading import Regions, Split, Texts
from trainers.dataset_statistics import CLIPPED, DISTANCE, SILENT, histogram, spread


PLAIN = 2.0  # levels of contrast under which a picture is of nearly one colour
MOST = 40  # words, phrases, sizes … that are listed
SHEET = 96  # rows on the sample sheets together, and on one at most a quarter of them
SOME = 12  # outliers that a figure names


def counted(number: int, what: str, plural: str | None = None) -> str:
    """1 picture, 1,200 pictures."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def describe(splits: list[Split], distance: int = DISTANCE, seed: int = 0) -> dict:
    """The figures of a report on splits that have been read. distance: bits by which patterns of near-duplicates may differ."""
    reference = next((split for split in splits if split.name == "train"), splits[0])
    each = max(4, SHEET // max(4, len(splits)))
    figures = {
        "warnings": [],
        "notes": [note for split in splits for note in _notes(split)],
        "splits": {split.name: _split(split, reference, each, seed) for split in splits},
        "histograms": {
            "words": histogram({split.name: split.captions.lengths for split in splits}),
            "megapixels": histogram({split.name: _areas(split) / 1e6 for split in splits}),
            "aspect": histogram({split.name: _aspects(split) for split in splits}),
            "regions": histogram({split.name: split.regions.counts for split in splits}),
            "region_percent": histogram({split.name: 100 * np.asarray(split.regions.shares) for split in splits}),
            "seconds": histogram({split.name: [one.seconds for one in split.sounds.heard] for split in splits}),
        },
        **copies(splits, distance),
        "unreadable": {
            kind: [{"split": split.name, **one} for split in splits for one in getattr(split, kind).unreadable]
            for kind in ("pictures", "sounds")
        },
    }
    figures["warnings"] = _warnings(figures)
    return figures


def _notes(split: Split) -> list[str]:
    of = f"of {split.there:,} rows" if split.there is not None else "rows of a stream"
    if split.stopped:
        return [f"{split.name}: stopped after {split.read:,} {of}; the figures are of these."]
    if split.there is None:
        return [f"{split.name}: the first {split.read:,} {of}."]
    if split.read < split.there:
        return [f"{split.name}: a random sample, {split.read:,} {of}. Of copies and leaks, a sample shows only some."]
    return []


def _split(split: Split, reference: Split, sheet: int, seed: int) -> dict:
    sounds = split.sounds.heard
    return {
        "rows": split.read,
        "rows_there": split.there,
        "rows_repeated": split.repeated,
        "captions": _texts(split.captions, None if split is reference else reference.captions, reference.name),
        "prompts": _texts(split.prompts) if len(split.prompts.lengths) else None,
        "pictures": _pictures(split) if split.pictures.names or split.pictures.unreadable else None,
        "sounds": {
            "number": len(sounds),
            "unreadable": len(split.sounds.unreadable),
            "seconds": spread([one.seconds for one in sounds]),
            "hours": round(sum(one.seconds for one in sounds) / 3600, 4),
            "rates": Counter(one.rate for one in sounds).most_common(MOST),
            "channels": Counter(one.channels for one in sounds).most_common(MOST),
            "silent": [name for name, one in zip(split.sounds.names, sounds, strict=True) if one.silent],
            "clipped": [name for name, one in zip(split.sounds.names, sounds, strict=True) if one.clipped],
        }
        if sounds or split.sounds.unreadable
        else None,
        "regions": _regions(split.regions) if len(split.regions.counts) else None,
        "sheet": split.sheet(sheet, seed),
    }


def _texts(texts: Texts, reference: Texts | None = None, name: str = "") -> dict:
    lengths = np.asarray(texts.lengths)
    once = sorted(word for word, number in texts.vocabulary.items() if number == 1)
    repeats = sorted(texts.repeats.values(), key=lambda pair: (-pair[1], pair[0]))
    figures = {
        "number": len(lengths),
        "distinct": len(texts.seen),
        "empty": int((lengths == 0).sum()),
        "words": spread(lengths),
        "words_in_all": int(lengths.sum()),
        "vocabulary": len(texts.vocabulary),
        "frequent": texts.vocabulary.most_common(MOST),
        "once": len(once),
        "once_among_them": once[:: max(1, len(once) // MOST)][:MOST],  # from A to Z
        "repeated": repeats[:SOME],
    }
    if reference is not None:
        new = Counter({word: n for word, n in texts.vocabulary.items() if word not in reference.vocabulary})
        figures["unseen"] = {
            "of": name,
            "words": len(new),
            "share_of_text": round(sum(new.values()) / max(1, figures["words_in_all"]), 6),
            "frequent": new.most_common(MOST),
            "captions_seen": len(texts.seen & reference.seen),
        }
    return figures


def _areas(split: Split) -> np.ndarray:
    return np.asarray(split.pictures.widths, dtype=np.float64) * np.asarray(split.pictures.heights)


def _aspects(split: Split) -> np.ndarray:
    return np.asarray(split.pictures.widths, dtype=np.float64) / np.asarray(split.pictures.heights)


def _pictures(split: Split) -> dict:
    pictures = split.pictures
    sizes = Counter(zip(pictures.widths, pictures.heights, strict=True))
    plain = np.flatnonzero(np.asarray(pictures.contrasts) < PLAIN)
    return {
        "number": len(pictures.names),
        "unreadable": len(pictures.unreadable),
        "width": spread(pictures.widths),
        "height": spread(pictures.heights),
        "aspect": spread(_aspects(split)),
        "megapixels": spread(_areas(split) / 1e6),
        "kilobytes": spread(np.asarray(pictures.sizes) / 1000),
        "bytes_in_all": sum(pictures.sizes),
        "kinds": pictures.kinds.most_common(MOST),
        "sizes": [[*size, number] for size, number in sizes.most_common(1000)],
        "different_sizes": len(sizes),
        "plain": len(plain),
        "plain_among_them": [pictures.names[place] for place in plain[:SOME]],
    }


def _regions(regions: Regions) -> dict:
    return {
        "number": sum(regions.counts),
        "pictures": len(regions.counts),
        "a_picture": spread(regions.counts),
        "percent": spread(100 * np.asarray(regions.shares)),
        "phrases": len(regions.phrases),
        "frequent": regions.phrases.most_common(MOST),
        "flat": regions.flat,
        "outside": regions.outside,
    }


def _warnings(figures: dict) -> list[str]:
    """What whoever trains on this should know, in plain words, the worst first."""
    found = []
    for leak in figures["leakage"]:
        a, b = leak["from"], leak["to"]
        share = f" ({leak['same'] / max(1, leak['pictures']):.1%})"
        found += _told(leak["same"], f"picture of {b}", f"{{is}} in {a} too, pixel for pixel{share}")
        found += _told(leak["alike"], f"picture of {b}", f"{{is}} nearly the same as one in {a}")
        found += _told(leak["sounds_same"], f"sound of {b}", f"{{is}} in {a} too")
    for kind in ("pictures", "sounds"):
        splits = Counter(one["split"] for one in figures["unreadable"][kind])
        for name, number in splits.items():
            found += _told(number, f"{kind[:-1]} of {name}", "cannot be read, and {is} named below with the reason")
    for name, split in figures["splits"].items():
        within = figures["duplicates"]["within"][name]
        found += [] if split["rows"] else [f"{name} has no rows."]
        found += _told(split["captions"]["empty"], f"caption of {name}", "{has} no words")
        found += _told(split["rows_repeated"], f"row of {name}", "{is} repeated: the same of the same picture or sound")
        found += _told(within["copies"], f"picture of {name}", f"{{is}} a copy of another in {name}, pixel for pixel")
        found += _told(within["alike"], f"picture of {name}", f"{{is}} nearly the same as another in {name}")
        found += _told(within["sounds"], f"sound of {name}", f"{{is}} a copy of another in {name}")
        if pictures := split["pictures"]:
            found += _told(pictures["plain"], f"picture of {name}", "{is} of nearly one colour")
        if regions := split["regions"]:
            found += _told(len(regions["outside"]), f"box of {name}", "{reaches} over the edge of the picture")
            found += _told(regions["flat"], f"box of {name}", "{has} no area")
        if sounds := split["sounds"]:
            found += _told(
                len(sounds["silent"]), f"sound of {name}", f"{{is}} silent, never over {SILENT:g} of full scale"
            )
            found += _told(
                len(sounds["clipped"]), f"sound of {name}", f"{{is}} clipped: over {CLIPPED:.1%} at full scale"
            )
    return found


def _told(number: int, what: str, how: str) -> list[str]:
    """["12 pictures of train are …."], or nothing where there are none."""
    if not number:
        return []
    noun, _, of = what.partition(" ")
    verbs = {"is": "is", "has": "has", "reaches": "reaches"}
    if number > 1:
        verbs = {"is": "are", "has": "have", "reaches": "reach"}
    return [f"{counted(number, noun, 'boxes' if noun == 'box' else None)} {of} {how.format(**verbs)}."]
