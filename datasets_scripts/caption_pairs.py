"""
Preference rows of captioning rows, for pictures of which nobody wrote a worse caption.

    images, prompt, completion, references, image_id (, regions)
        -> caption_pairs(rows, rejected="shuffled")   rejected: a caption of another picture
        -> caption_pairs(rows, rejected="swapped")    rejected: the caption, with one thing in it that the picture has not
        -> images, prompt, chosen (the completion), rejected, image_id, flaw ("shuffled" or "swapped_object")

Unusual: both sides use the same words equally often, or nothing need be looked at to prefer the better one. Shuffled, the pictures
stand in a ring and each gives its captions to the one before it: what is wrong of one is right of another. Swapped, what is put in
is drawn from what captions here name, as often as they do. A caption names a thing if a phrase of its picture's regions
stands in it, in the singular or the plural ("person" also as man, girls, …); people are swapped only where nothing else is named.
What is put in has a last word that none of its picture's regions and references has. A caption that names nothing is shuffled, and
counted.

Known limits: another picture's caption may happen to be true of this one; so may a thing put in, where it has neither a box nor a
word. It may be out of place ("a pizza throws a ball"), which can be told without looking. "An orange cat" beside a box of an orange
names the orange. Answers to questions are not captions: rows of one picture with different references are refused. All follows from
hashes of the seed and of pictures' names: the same on every machine.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain, islice

from datasets import Dataset, Value

from datasets_scripts.canonical import CAPTION_FEATURES, place, report
from datasets_scripts.preference_rows import lacking


REJECTED = ("shuffled", "swapped")
COLUMNS = ("images", "prompt", "completion", "references", "image_id")
GAP = re.compile(r"[\s-]+")  # between the words of a name
# before a sheep, not before a flock of sheep
ONE = re.compile(r"\b(?:an?|one)\s+(?:(?!of\b)[\w-]+\s+){0,2}$", re.IGNORECASE)
DRAWS = 50  # from what captions name, before all that could be put in is looked through
PEOPLE = {"man": "men", "woman": "women", "boy": "boys", "girl": "girls", "child": "children", "guy": "guys", "lady": "ladies",
          "kid": "kids", "person": "people"}  # fmt: skip
IRREGULAR = {**PEOPLE, "knife": "knives", "mouse": "mice", "sheep": "sheep", "goose": "geese", "leaf": "leaves", "shelf": "shelves",
             "loaf": "loaves", "bus": "buses"}  # fmt: skip
PERSONS = {form for pair in PEOPLE.items() for form in pair}
SINGULAR = {plural: singular for singular, plural in IRREGULAR.items()}


@dataclass
class _Picture:
    references: list[str]
    names: set[str]  # of its regions
    rows: list[int] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)  # of each row

    @cached_property  # once all rows are known
    def taken(self) -> set[str]:
        """The words that forbid a thing whose last word they are."""
        words = {word for text in (*self.references, *self.chosen, *self.names) for word in _words(text)}
        return words | PERSONS if words & PERSONS else words  # the man may be a guy


def caption_pairs(rows: Dataset, rejected: str = "shuffled", seed: int = 0, where: str = "captions") -> Dataset:
    """
    A row with two sides for each captioning row, in their order; no picture is opened. where: what the log calls the rows. Raises
    ValueError for another `rejected`, for rows that are streamed, lack a column or answer questions, and where a picture has none
    to be shuffled with.
    """
    if rejected not in REJECTED:
        raise ValueError(f"rejected must be one of {', '.join(REJECTED)}; got {rejected!r}")
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"{where}: a streamed row knows no other picture to take a caption of; load it with streaming=False"
        )
    lacking(rows, COLUMNS, where)
    pictures = _pictures(rows, where)
    worse = _shuffled(pictures, seed, where)
    flaws = ["shuffled"] * len(rows)
    if rejected == "swapped":
        swapped = _swapped(pictures, seed)
        silent = [name for name, one in pictures.items() for row in one.rows if row not in swapped]
        report(where, "captions name nothing that could be swapped, and are shuffled; of pictures", silent)
        for row, text in swapped.items():
            worse[row], flaws[row] = text, "swapped_object"
    sides = [[{"role": "assistant", "content": worse[row]}] for row in range(len(rows))]
    kept = rows.select_columns(["images", "prompt", "completion", "image_id"]).rename_column("completion", "chosen")
    kept = kept.add_column("rejected", sides, feature=CAPTION_FEATURES["completion"])
    kept = kept.add_column("flaw", flaws, feature=Value("string"))
    return kept.select_columns(["images", "prompt", "chosen", "rejected", "image_id", "flaw"])


def _pictures(rows: Dataset, where: str) -> dict[str, _Picture]:
    """image_id -> picture, in the order of the rows."""
    pictures: dict[str, _Picture] = {}
    columns = [name for name in ("image_id", "references", "completion", "regions") if name in rows.column_names]
    for number, row in enumerate(rows.select_columns(columns)):
        name = row["image_id"]
        if name not in pictures:
            names = {_name(region["phrase"]) for region in row.get("regions") or ()}
            pictures[name] = _Picture(row["references"], names - {""})
        if pictures[name].references != row["references"]:
            raise ValueError(
                f"{where}: rows of the picture {name} have different references, so they answer questions; pairs are made of "
                "captions alone"
            )
        pictures[name].rows.append(number)
        pictures[name].chosen.append(row["completion"][0]["content"])
    return pictures


def _shuffled(pictures: dict[str, _Picture], seed: int, where: str) -> dict[int, str]:
    """Row -> caption of the next picture in the ring, or of the first after it that has one which this picture has not."""
    ring = sorted(pictures, key=lambda name: place(f"shuffled {seed} {name}"))
    others = {}
    for at, name in enumerate(ring):
        one = pictures[name]
        own = {tuple(_words(text)) for text in (*one.references, *one.chosen)}
        for step in range(1, len(ring)):
            said = pictures[ring[(at + step) % len(ring)]].references
            if free := [text for text in said if tuple(_words(text)) not in own]:
                break
        else:
            raise ValueError(f"{where}: of {len(ring)} pictures, none has a caption that {name} has not; add pictures")
        others |= {row: free[number % len(free)] for number, row in enumerate(one.rows)}
    return others


def _swapped(pictures: dict[str, _Picture], seed: int) -> dict[int, str]:
    """Row -> its caption with another thing in it; without the rows in which none is named."""
    known = sorted(set().union(*(one.names for one in pictures.values())))
    by_head = defaultdict(set)
    for name in known:
        by_head[_head(name)].add(name)
    # whether in the plural -> what could be put in: each thing once, and as often as captions name it
    pool: dict[bool, list[str]] = {plural: [_numbered(name, plural) for name in known] for plural in (False, True)}
    found = []
    for picture, one in pictures.items():
        # "hot dog" is looked for where there is a dog, so as not to find the dog in it
        candidates = one.names.union(*(by_head[_head(name)] for name in one.names))
        for number, (row, text) in enumerate(zip(one.rows, one.chosen, strict=True)):
            if named := [mention for mention in _mentions(text, candidates) if mention[1] in one.names]:
                key = f"swapped {seed} {picture} {number}"
                things = [mention for mention in named if mention[1] not in PERSONS] or named
                span, _, plural = things[int(place(key) * len(things))]
                found.append((key, row, one, text, span, plural))
                pool[plural].append(text[slice(*span)].lower())
    rejected = {}
    for key, row, one, text, span, plural in found:
        some = pool[plural]
        draws = (some[int(place(f"{key} {draw}") * len(some))] for draw in range(DRAWS))
        free = (name for name in chain(draws, islice(some, len(known))) if not one.taken & set(_forms(_head(name))))
        if name := next(free, None):
            rejected[row] = _put(text, span, name)
    return rejected


def _mentions(text: str, names: set[str]) -> list[tuple[tuple[int, int], str, bool]]:
    """(place, name, whether in the plural) of what stands in a text, the longest names first and none within another."""
    found = []
    for name in sorted(names, key=lambda name: (-len(name), name)):
        for match in _pattern(name).finditer(text):
            start, end = match.span()
            if all(end <= other[0] or other[1] <= start for other, _, _ in found):
                one, many = _forms(match["head"].lower())
                plural = match["head"].lower() == many and not (one == many and ONE.search(text[:start]))
                found.append(((start, end), name, plural))
    return sorted(found)


@cache
def _pattern(name: str) -> re.Pattern:
    heads = PERSONS if name == "person" else _forms(_head(name))
    words = [*map(re.escape, GAP.split(name)[:-1]), f"(?P<head>{'|'.join(map(re.escape, sorted(heads)))})"]
    return re.compile(r"\b" + GAP.pattern.join(words) + r"\b", re.IGNORECASE)


def _put(text: str, span: tuple[int, int], name: str) -> str:
    """The text with a name in that place, with the article and the capital that go with it."""
    before, after = text[: span[0]], text[span[1] :]
    article = re.search(r"\b(a)n?(\s+)$", before, re.IGNORECASE)
    if article:
        before = before[: article.start()] + article[1] + ("n" if name[0] in "aeiou" else "") + article[2]
    begins = not before.strip() or before.rstrip()[-1] in ".!?"  # "throws a Frisbee": the capital goes with the name
    return before + (name[0].upper() + name[1:] if begins and text[span[0]].isupper() else name) + after


@cache
def _forms(word: str) -> tuple[str, str]:
    """A noun's singular and plural, by rules that fit the names of things."""
    if word in IRREGULAR or word in SINGULAR:
        singular = SINGULAR.get(word, word)
        return singular, IRREGULAR[singular]
    if word.endswith("s") and not word.endswith(("ss", "us")):
        for ending, one in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("s", "")):
            if word.endswith(ending):
                return word.removesuffix(ending) + one, word
    if word.endswith(("s", "x", "sh", "ch")):
        return word, word + "es"
    return word, word[:-1] + "ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else word + "s"


def _head(name: str) -> str:
    return GAP.split(name.lower())[-1]


def _numbered(name: str, plural: bool) -> str:
    """A name in the singular or the plural. Scissors stay scissors."""
    return name.removesuffix(_head(name)) + _forms(_head(name))[1] if plural else name


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _name(phrase: str) -> str:
    """A region's phrase as it is looked for: without an article, in lower case."""
    return re.sub(r"^(?:an?|the|some)\s+", "", " ".join(phrase.lower().strip(" .,;-").split()))
