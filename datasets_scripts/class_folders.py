"""
A folder a class: pictures (EuroSAT, ImageNet's layout) or sounds (ESC-50's, sorted) whose class is their folder's name.

    FOLDER/Forest/Forest_1.jpg, FOLDER/Sea waves/2.ogg  ->  {"image" or "audio", "text": "a photo of a forest", "label": "Forest"}

Captions are made of class names by a template. "001 - Dog bark" is a dog bark; AnnualCrop an annual crop.

Unusual: where there is no train/, files are held out for validation and test by a hash of their names, so a file stays on its side
as others are added; each class by itself, so that all are in every split.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import datasets

from datasets_scripts.canonical import SOUND, DataDirConfig, FolderBuilder, held_out, listing
from datasets_scripts.scene_language import with_article


SPLITS = ("train", "validation", "test")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
SOUNDS = (".wav", ".ogg", ".flac", ".mp3", ".aiff", ".aif", ".opus")


def words_of(folder: str) -> str:
    """A class's name in words: "001 - Dog bark" -> "dog bark", "AnnualCrop" -> "annual crop"."""
    name = re.sub(r"^\d+\s*[-_.]?\s*", "", folder)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(name.replace("_", " ").replace("-", " ").split()).lower() or folder


@dataclass
class ClassFoldersConfig(DataDirConfig):
    """
    template: a caption, with {name} for the class in words and {a_name} for it with its article. test_fraction and
    validation_fraction: of each class, where no folder train/ says otherwise. Raises ValueError for fractions that leave nothing
    to train on, and for a template without the class.
    """

    template: str = "a photo of {a_name}"
    test_fraction: float = 0.1
    validation_fraction: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if min(self.test_fraction, self.validation_fraction) < 0 or self.test_fraction + self.validation_fraction >= 1:
            raise ValueError(
                f"test_fraction={self.test_fraction} and validation_fraction={self.validation_fraction} must be at least 0 and "
                "together below 1"
            )
        if "{name}" not in self.template and "{a_name}" not in self.template:
            raise ValueError(f"template {self.template!r} names no class: put {{name}} or {{a_name}} into it")

    def caption(self, folder: str) -> str:
        words = words_of(folder)
        return self.template.format(name=words, a_name=with_article(words))

    @cached_property
    def files(self) -> dict[str, list[tuple[str, str]]]:
        """
        Split -> (class folder's name, path) of each file, in the order of their names. Raises ValueError where there are no
        classes, and for pictures and sounds side by side.
        """
        here = set(_folders(self.data_dir))
        if "train" in here:
            return {split: _classified(os.path.join(self.data_dir, split)) for split in SPLITS if split in here}
        held: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
        by_class: dict[str, list[str]] = {}
        for name, path in _classified(self.data_dir):
            by_class.setdefault(name, []).append(path)
        for name, paths in by_class.items():
            left = {os.path.basename(path): path for path in paths}
            taken = 0.0
            for split, fraction in (("test", self.test_fraction), ("validation", self.validation_fraction)):
                if fraction:
                    where = os.path.join(self.data_dir, name)
                    out = held_out(left, fraction / (1 - taken), where, seed=split)
                    held[split] += [(name, left.pop(file)) for file in out]
                taken += fraction
            held["train"] += [(name, path) for path in left.values()]
        return {split: sorted(files) for split, files in held.items() if files}

    def sources(self) -> list[str]:
        return [path for files in self.files.values() for _, path in files]


def _folders(path: str) -> list[str]:
    if not os.path.isdir(path):
        raise ValueError(f"{path}: no such folder")
    return sorted(name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name)) and name[0] != ".")


def _classified(path: str) -> list[tuple[str, str]]:
    found = [
        (name, os.path.join(path, name, file))
        for name in _folders(path)
        for file in sorted(os.listdir(os.path.join(path, name)))
        if file.lower().endswith(PICTURES + SOUNDS) and file[0] != "."
    ]
    if not found:
        raise ValueError(f"{path}: no folders with pictures or sounds in them; there is {listing(path)}")
    kinds = {path.lower().endswith(SOUNDS) for _, path in found}
    if len(kinds) > 1:
        raise ValueError(f"{path}: pictures and sounds stand side by side; put each kind into a folder of its own")
    return found


class ClassFolders(FolderBuilder):
    BUILDER_CONFIG_CLASS = ClassFoldersConfig

    def _info(self) -> datasets.DatasetInfo:
        sounds = next(iter(self.config.files.values()))[0][1].lower().endswith(SOUNDS)
        self._column = "audio" if sounds else "image"
        kind = SOUND if sounds else datasets.Image()
        columns = {self._column: kind, "text": datasets.Value("string"), "label": datasets.Value("string")}
        return datasets.DatasetInfo(description=__doc__, features=datasets.Features(columns))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(split, gen_kwargs={"split": split}) for split in self.config.files]

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for name, path in self.config.files[split]:
            yield path, {self._column: {"path": path, "bytes": None}, "text": self.config.caption(name), "label": name}
