"""
The rows of a split, read once: of each picture, sound and text its figures are kept, and it is let go.

    row -> images, audio -> (threads) open, measure, sign -> Pictures, Sounds, Regions
        -> text, references or completion, prompt ----------> Texts                       = a Split

Unusual: memory does not grow with the pictures' size: of one, a kilobyte is kept. A picture that several rows show is opened
once. What cannot be read is kept with the reason.
"""

import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from random import Random

from PIL import Image
from tqdm.auto import tqdm

from datasets_scripts.open_picture import UnreadablePicture, open_picture
from trainers.dataset_rows import captions_of, key_of, media_of, name_of, prompt_of, said
from trainers.dataset_statistics import Heard, Signature, digest, heard, signature, words


AHEAD = 32  # pictures and sounds that wait for their turn
REPEATS = 10_000  # different texts whose repetitions are counted


@dataclass
class Texts:
    """Captions, or prompts. Two are the same that have the same words."""

    lengths: array = field(default_factory=lambda: array("I"))  # words
    vocabulary: Counter = field(default_factory=Counter)
    seen: set[int] = field(default_factory=set)
    repeats: dict[int, list] = field(default_factory=dict)  # digest -> [text, how often]

    def add(self, text: str) -> None:
        found = words(text)
        self.lengths.append(len(found))
        self.vocabulary.update(found)
        if not found:
            return
        same = digest(" ".join(found).encode())
        if same in self.repeats:
            self.repeats[same][1] += 1
        elif same in self.seen and len(self.repeats) < REPEATS:
            self.repeats[same] = [text, 2]
        self.seen.add(same)


@dataclass
class Found:
    """Where pictures or sounds are, in the order in which they came, and which could not be read."""

    rows: array = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    unreadable: list[dict] = field(default_factory=list)  # row, name, reason


@dataclass
class Pictures(Found):
    places: array = field(default_factory=lambda: array("I"))  # among the row's pictures
    widths: array = field(default_factory=lambda: array("I"))
    heights: array = field(default_factory=lambda: array("I"))
    sizes: array = field(default_factory=lambda: array("Q"))  # bytes of the file
    kinds: Counter = field(default_factory=Counter)  # "JPEG RGB": format and mode of the file
    pixels: array = field(default_factory=lambda: array("Q"))
    patterns: array = field(default_factory=lambda: array("Q"))
    colours: bytearray = field(default_factory=bytearray)
    contrasts: array = field(default_factory=lambda: array("f"))

    def add(
        self, row: int, place: int, name: str, size: tuple[int, int], file: int, kind: str, signed: Signature
    ) -> None:
        self.rows.append(row)
        self.places.append(place)
        self.names.append(name)
        self.widths.append(size[0])
        self.heights.append(size[1])
        self.sizes.append(file)
        self.kinds[kind] += 1
        self.pixels.append(signed.pixels)
        self.patterns.append(signed.pattern)
        self.colours += signed.colours
        self.contrasts.append(signed.contrast)


@dataclass
class Sounds(Found):
    heard: list[Heard] = field(default_factory=list)


@dataclass
class Regions:
    """Of each picture that rows describe by regions, once."""

    counts: array = field(default_factory=lambda: array("I"))  # a picture
    shares: array = field(default_factory=lambda: array("f"))  # of the picture's area
    phrases: Counter = field(default_factory=Counter)
    outside: list[dict] = field(default_factory=list)  # row, name, box, picture: over its edge by over a pixel
    flat: int = 0  # boxes without an area

    def add(self, regions: list[dict], row: int, name: str, size: tuple[int, int] | None) -> None:
        """size: of the picture; None where it cannot be read."""
        self.counts.append(len(regions))
        for region in regions:
            self.phrases[region["phrase"]] += 1
            x0, y0, x1, y1 = region["box"]
            if not (x0 < x1 and y0 < y1):
                self.flat += 1
            elif size:
                self.shares.append(min(1.0, (x1 - x0) * (y1 - y0) / (size[0] * size[1])))
                if min(x0, y0) < -1 or x1 > size[0] + 1 or y1 > size[1] + 1:
                    self.outside.append({"row": row, "name": name, "box": [x0, y0, x1, y1], "picture": list(size)})


@dataclass
class Split:
    name: str
    numbers: Sequence[int]  # of the rows that are read, in their order
    there: int | None  # rows in all; None: not known of a stream
    read: int = 0
    stopped: bool = False  # before all of them were
    repeated: int = 0  # rows that say the same of the same as an earlier one
    captions: Texts = field(default_factory=Texts)
    prompts: Texts = field(default_factory=Texts)
    pictures: Pictures = field(default_factory=Pictures)
    sounds: Sounds = field(default_factory=Sounds)
    regions: Regions = field(default_factory=Regions)

    def sheet(self, number: int, seed: int) -> list[int]:
        """`number` rows drawn from those that were read, in their order."""
        drawn = Random(f"sheet/{seed}/{self.name}").sample(range(self.read), min(number, self.read))
        return [self.numbers[place] for place in sorted(drawn)]

    def add_picture(self, row: int, place: int, name: str, regions: list[dict] | None, seen: tuple | str) -> None:
        """seen: what `look` gave."""
        if isinstance(seen, str):
            self.pictures.unreadable.append({"row": row, "name": name, "reason": seen})
        else:
            self.pictures.add(row, place, name, *seen)
        if regions:
            self.regions.add(regions, row, name, None if isinstance(seen, str) else seen[0])

    def add_sound(self, row: int, name: str, listened: Heard | str) -> None:
        """listened: what `listen` gave."""
        if isinstance(listened, str):
            self.sounds.unreadable.append({"row": row, "name": name, "reason": listened})
        else:
            self.sounds.rows.append(row)
            self.sounds.names.append(name)
            self.sounds.heard.append(listened)


def read_split(
    split: Split,
    rows: Iterable[dict],
    pool: Executor,
    root: str | None = None,
    references: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """
    Fill `split` with what `rows` hold. Names are relative to the folder `root` where they are in it. references: captions are a
    row's references, else its completion alone. `stop` is asked before each row.
    """
    known, told_before, waiting = set(), set(), deque()

    def settle() -> None:
        add, future = waiting.popleft()
        add(future.result())

    total = None if split.there is None else len(split.numbers)
    for row, number in zip(tqdm(rows, desc=split.name, total=total, unit="row"), split.numbers, strict=False):
        if stop():
            split.stopped = True
            break
        split.read += 1
        told, asked = captions_of(row, references), prompt_of(row)
        for text in told:
            split.captions.add(text)
        if asked:
            split.prompts.add(asked)
        keys = []
        for place, (kind, source) in enumerate(media_of(row)):
            keys.append(key_of(kind, source) or (number, place))  # without file or bytes, none is another's
            if keys[-1] in known:
                continue
            known.add(keys[-1])
            name = name_of(source, row, root)
            if kind == "audio":
                waiting.append((partial(split.add_sound, number, name), pool.submit(listen, source)))
            else:
                regions = None if place else row.get("regions")  # they are of a row's first picture
                add = partial(split.add_picture, number, place, name, regions)
                waiting.append((add, pool.submit(look, source)))
        whole = digest(repr((keys, asked, told, said(row.get("completion")))).encode())
        split.repeated += whole in told_before
        told_before.add(whole)
        while len(waiting) > AHEAD:
            settle()
    while waiting:
        settle()


def look(source: Mapping) -> tuple[tuple[int, int], int, str, Signature] | str:
    """Size, bytes, format and mode, signature of a picture; or why it cannot be read."""
    try:
        picture = open_picture(source)
    except UnreadablePicture as problem:
        return str(problem).removeprefix(f"{source.get('path')}: ")
    content = source.get("bytes")
    size = os.path.getsize(source["path"]) if content is None else len(content)
    with Image.open(
        source["path"] if content is None else BytesIO(content)
    ) as file:  # the header: RGB is what we made of it
        kind = f"{file.format} {file.mode}"
    return picture.size, size, kind, signature(picture)


def listen(source: Mapping) -> Heard | str:
    from trainers.contrastive_data import UnreadableSound, open_sound  # brings torch, which pictures do without

    try:
        return heard(*open_sound(source))
    except UnreadableSound as problem:
        return str(problem).removeprefix(f"{source.get('path')}: ")
