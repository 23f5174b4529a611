"""
The canonical captioning columns, and what builders over a user's own folder have in common.

    pictures + captions + regions  ->  caption_rows  ->  images, prompt, completion, references, image_id, regions

Unusual: pictures are stored as paths, so Arrow never holds a second copy of them; whatever their mode on disk (grey,
palette, CMYK), they are read as RGB. An id of a config holds sizes and times of the files behind it: a cache cannot
outlive its source.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

import datasets
from datasets.exceptions import DatasetGenerationError


logger = logging.getLogger(__name__)

PROMPT = "Describe the picture."
ROWS = ("caption", "image")

# what datasets.Audio(decode=False) gives; that feature itself asks for torchcodec before it takes a file
SOUND = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
_TURNS = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
CAPTION_FEATURES = datasets.Features(
    {
        "images": datasets.List(datasets.Image(mode="RGB")),
        "prompt": _TURNS,
        "completion": _TURNS,
        "references": datasets.List(datasets.Value("string")),
        "image_id": datasets.Value("string"),
        # box: x0, y0, x1, y1 in pixels of the upright picture
        "regions": datasets.List(
            {"box": datasets.List(datasets.Value("float64"), length=4), "phrase": datasets.Value("string")}
        ),
    }
)


def turns(prompt: str, completion: str) -> dict[str, list[dict[str, str]]]:
    """What is asked and what is answered, as the conversational columns `prompt` and `completion`."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def caption_rows(
    images: list, captions: list[str], image_id: str, prompt: str, regions: list[dict], rows: str
) -> Iterator[dict]:
    """
    The rows of one picture (or of several seen together): `rows="caption"` gives one for each caption, `rows="image"`
    one whose completion is the first caption. Every row has all captions as its references. Captions must not be empty.
    """
    for caption in captions if rows == "caption" else captions[:1]:
        yield {
            "images": images,
            **turns(prompt, caption),
            "references": captions,
            "image_id": image_id,
            "regions": regions,
        }


def place(text: str) -> float:
    """Where a text falls between 0 and 1 (not 1 itself): by its hash, so on every machine and in every run alike."""
    return int(sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def held_out(names: Iterable[str], fraction: float, path: str, seed: str = "") -> set[str]:
    """
    The names whose place is in the lowest `fraction`: at least one, never all. Another seed holds others out. Raises ValueError
    for a lone name.
    """
    places = {name: place(seed + name) for name in names}
    if len(places) < 2:
        raise ValueError(
            f"{path}: one picture cannot be in train and in validation; add pictures, or set validation_fraction=0"
        )
    below = sum(number < fraction for number in places.values())
    return set(sorted(places, key=places.get)[: min(max(below, 1), len(places) - 1)])


def listing(folder: str) -> str:
    """What is in a folder, for the error that says what was expected there instead."""
    if not os.path.isdir(folder):
        return "no such folder"
    return ", ".join(sorted(os.listdir(folder))[:12]) or "nothing"


def report(path: str, what: str, names: list[str]) -> None:
    """Logs what was left out, counted, with the first few names; nothing where there are none."""
    if names:
        more = ", …" if len(names) > 3 else ""
        logger.warning("%s: %d %s (%s%s)", path, len(names), what, ", ".join(names[:3]), more)


@dataclass
class DataDirConfig(datasets.BuilderConfig):
    """Config of a builder that reads `data_dir`. Raises ValueError without one."""

    def __post_init__(self):
        super().__post_init__()
        if not self.data_dir:
            raise ValueError("say where the files are: data_dir=...")
        # absolute: paths are kept in Arrow, which is read from other working directories
        self.data_dir = os.path.abspath(os.path.expanduser(self.data_dir))

    def sources(self) -> list[str]:
        """The files and folders that rows depend on."""
        raise NotImplementedError

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        states = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in self.sources()]
        return super().create_config_id({**config_kwargs, **vars(self), "sources": repr(states)}, custom_features)


@dataclass
class FolderConfig(DataDirConfig):
    """Of a builder of captioning rows. Raises ValueError for `rows` that are not in ROWS."""

    rows: str = "caption"
    prompt: str = PROMPT

    def __post_init__(self):
        super().__post_init__()
        if self.rows not in ROWS:
            raise ValueError(f"rows must be one of {', '.join(ROWS)}; got {self.rows!r}")


class FolderBuilder(datasets.GeneratorBasedBuilder):
    """Its config is a DataDirConfig. What is wrong with the folder is a ValueError, prepared as well as streamed."""

    def download_and_prepare(self, *args, **kwargs) -> None:
        try:
            super().download_and_prepare(*args, **kwargs)
        except DatasetGenerationError as error:
            # `datasets` hides what was wrong behind "An error occurred while generating the dataset"
            if isinstance(error.__cause__, ValueError):
                raise error.__cause__ from None
            raise
