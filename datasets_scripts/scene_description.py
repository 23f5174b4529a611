"""
What is in a miniature scene, before a pixel is drawn or a word is said.

A scene is a background and 1 to 4 objects, each a (shape, colour, size) in one of the nine cells of a 3x3 grid. Everything
else (pictures, captions, boxes, questions, preference pairs) is derived from it, so the ground truth is exact.

    (seed, split, index) -> Scene(background, objects in reading order)

Unusual: all chance is drawn from `random.Random.random()`, the one method whose sequence Python guarantees across versions
and machines; the same (seed, split, index) is the same scene everywhere, in any order, in any process.

`train` is biased: each background favours two shapes, and each shape favours a companion. `validation` and `test` break the
bias (everything independent and uniform); `validation_biased` and `test_biased` keep it. A model that leans on what usually
goes together, instead of looking, shows as a gap between the two.
"""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple


SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "boat", "tree")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
BACKGROUNDS = ("meadow", "beach", "sea", "snow", "night")

SPLITS = ("train", "validation", "test", "validation_biased", "test_biased")
BIASED_SPLITS = ("train", "validation_biased", "test_biased")

BIAS = 0.7  # how often a biased split follows its habits
FAVOURED = {  # background -> the shapes it favours
    "meadow": ("tree", "heart"),
    "beach": ("circle", "star"),
    "sea": ("boat", "square"),
    "snow": ("triangle", "tree"),
    "night": ("star", "cross"),
}
COMPANION = {  # shape -> the shape it likes beside it
    "circle": "square", "square": "triangle", "triangle": "circle", "star": "heart",
    "heart": "star", "cross": "tree", "boat": "circle", "tree": "cross",
}  # fmt: skip
COUNT_WEIGHTS = (0.2, 0.3, 0.3, 0.2)  # of 1, 2, 3 and 4 objects
TWIN = 0.15  # how often an object repeats the one before it, so that there is something to count

DIAMETER = {"small": 0.19, "large": 0.31}  # of the picture's side
JITTER = {"small": 0.06, "large": 0.015}  # how far an object's centre leaves its cell's, of the side


class SceneObject(NamedTuple):
    shape: str
    colour: str
    size: str
    row: int  # of the 3x3 grid, from the top
    column: int
    x: float  # centre, 0..1 of the picture's side
    y: float

    @property
    def triple(self) -> tuple[str, str, str]:
        return self.size, self.colour, self.shape

    @property
    def phrase(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    def box(self, image_size: int) -> list[float]:
        """[x0, y0, x1, y1] in pixels."""
        half = DIAMETER[self.size] * image_size / 2
        x, y = self.x * image_size, self.y * image_size
        return [round(value, 2) for value in (x - half, y - half, x + half, y + half)]


@dataclass(frozen=True)
class Scene:
    seed: int
    split: str
    index: int
    background: str
    objects: tuple[SceneObject, ...]  # in reading order: top to bottom, then left to right

    @property
    def image_id(self) -> str:
        return f"scenes-{self.seed}-{self.split}-{self.index:07d}"

    @property
    def truth(self) -> tuple:
        """What can be said of the scene: two scenes with the same truth cannot be told apart by any caption."""
        return self.background, tuple((o.triple, o.row, o.column) for o in self.objects)


def _pick(rng: Random, options: tuple) -> str:
    return options[int(rng.random() * len(options))]


def describe(seed: int, split: str, index: int) -> Scene:
    """The scene numbered `index` of a split. Raises ValueError for a split that does not exist."""
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} in the miniature world; its splits are {', '.join(SPLITS)}")
    rng = Random(f"{seed}/{split}/{index}")
    biased = split in BIASED_SPLITS
    background = _pick(rng, BACKGROUNDS)
    chance, count = rng.random(), 1
    while count < 4 and chance >= sum(COUNT_WEIGHTS[:count]):
        count += 1
    cells = list(range(9))
    objects: list[SceneObject] = []
    for i in range(count):
        if objects and rng.random() < TWIN:
            size, colour, shape = objects[-1].triple
        else:
            habits = (COMPANION[objects[-1].shape],) if objects and i % 2 else FAVOURED[background]
            shape = _pick(rng, habits) if biased and rng.random() < BIAS else _pick(rng, SHAPES)
            colour, size = _pick(rng, COLOURS), _pick(rng, SIZES)
        row, column = divmod(cells.pop(int(rng.random() * len(cells))), 3)
        x = (column + 0.5) / 3 + (2 * rng.random() - 1) * JITTER[size]
        y = (row + 0.5) / 3 + (2 * rng.random() - 1) * JITTER[size]
        objects.append(SceneObject(shape, colour, size, row, column, x, y))
    objects.sort(key=lambda o: (o.row, o.column))
    return Scene(seed, split, index, background, tuple(objects))
