"""
COCO captions as the official archives (2017 or 2014) lie on disk once unpacked. Nothing is downloaded or copied.

    data_dir/train2017/000000000009.jpg …    data_dir/annotations/captions_train2017.json
    data_dir/val2017/…                       data_dir/annotations/instances_train2017.json   (if there: regions)

    Coco(data_dir="coco").download_and_prepare()                            train and validation, or the one there is
    Coco(data_dir="coco", rows="image").as_streaming_dataset("validation")  one row a picture, for evaluation
    Coco(data_dir="coco", train_from="val2017")                             train and validation, both of val2017's pictures

Unusual: the ways in which real copies are incomplete (a picture without captions, a caption without its picture, a
blank caption) are skipped and counted in the log; what contradicts itself is a ValueError that names file and record.
Regions include crowds: whether a dog was invented is asked of everything in the picture. Source: Lin et al. 2014,
https://cocodataset.org/#format-data
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets

from datasets_scripts.canonical import (
    CAPTION_FEATURES,
    FolderBuilder,
    FolderConfig,
    caption_rows,
    held_out,
    listing,
    report,
)


YEARS = (2017, 2014)
SPLITS = {"train": "train", "validation": "val"}


@dataclass
class CocoConfig(FolderConfig):
    """
    `year` is needed only where 2014 and 2017 lie side by side: their splits overlap, and are never mixed. `train_from` names one
    folder (val2017, a gigabyte) to draw both train and validation from: `validation_fraction` of its pictures, by a hash of their
    names, are held out.
    """

    year: int | None = None
    train_from: str | None = None
    validation_fraction: float = 0.1

    def layout(self) -> dict[str, str]:
        """Split -> its name on disk, as train -> train2017. Raises FileNotFoundError for none, ValueError for two."""
        if self.train_from:
            wanted = (
                os.path.join(self.data_dir, self.train_from),
                _annotations(self.data_dir, "captions", self.train_from),
            )
            if missing := [path for path in wanted if not os.path.exists(path)]:
                raise FileNotFoundError(
                    f"train_from={self.train_from}: there is no {' and no '.join(missing)}; "
                    f"python recipes/download_coco.py --root {self.data_dir} --split {self.train_from} brings both"
                )
            return dict.fromkeys(SPLITS, self.train_from)
        found = {
            year: {
                split: f"{short}{year}"
                for split, short in SPLITS.items()
                if os.path.isdir(os.path.join(self.data_dir, f"{short}{year}"))
                and os.path.isfile(_annotations(self.data_dir, "captions", f"{short}{year}"))
            }
            for year in ([self.year] if self.year else YEARS)
        }
        found = {year: splits for year, splits in found.items() if splits}
        if len(found) > 1:
            raise ValueError(f"{self.data_dir} holds COCO {' and '.join(map(str, found))}; choose with year=")
        if not found:
            year = self.year or YEARS[0]
            raise FileNotFoundError(
                f"no COCO in {self.data_dir}: expected train{year}/ with annotations/captions_train{year}.json, or "
                f"val{year}/ with annotations/captions_val{year}.json, or both; found {listing(self.data_dir)}; "
                f"in annotations/: {listing(os.path.join(self.data_dir, 'annotations'))}"
            )
        return next(iter(found.values()))

    def sources(self) -> list[str]:
        paths = []
        for name in self.layout().values():
            # a folder's own time changes as pictures come and go
            paths += [os.path.join(self.data_dir, name), _annotations(self.data_dir, "captions", name)]
            instances = _annotations(self.data_dir, "instances", name)
            paths += [instances] if os.path.isfile(instances) else []
        return paths


class Coco(FolderBuilder):
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = CocoConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=__doc__,
            features=CAPTION_FEATURES,
            homepage="https://cocodataset.org",
            license="CC-BY-4.0 (annotations)",
        )

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(split, gen_kwargs={"name": name, "split": split})
            for split, name in self.config.layout().items()
        ]

    def _generate_examples(self, name: str, split: str) -> Iterator[tuple[str, dict]]:
        folder = os.path.join(self.config.data_dir, name)
        captions_file = _annotations(self.config.data_dir, "captions", name)
        instances_file = _annotations(self.config.data_dir, "instances", name)
        pictures, captions, blank = _captions(captions_file)
        regions: dict[str, list[dict]] = {}
        if os.path.isfile(instances_file):
            more, regions = _regions(instances_file)
            for key in more.keys() & pictures.keys():
                if more[key] != pictures[key]:
                    raise ValueError(
                        f"{instances_file}: image {key} is {more[key]}, but {pictures[key]} in {captions_file}"
                    )
            pictures = {**more, **pictures}
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries if entry.is_file()}
        silent = [file for key, file in pictures.items() if key not in captions]
        missing = [file for key, file in pictures.items() if key in captions and file not in there]
        # counted before the first row, so that a stream that is left early has said it too
        report(captions_file, "blank captions skipped, of pictures", blank)
        report(captions_file, "pictures without captions left out", silent)
        report(captions_file, f"pictures skipped that are not in {folder}", missing)
        if len(silent) + len(missing) == len(pictures):
            raise ValueError(f"{captions_file}: none of its {len(pictures)} pictures is in {folder} and has a caption")
        usable = {key: file for key, file in pictures.items() if key in captions and file in there}
        if self.config.train_from:
            out = held_out(usable.values(), self.config.validation_fraction, captions_file)
            usable = {key: file for key, file in usable.items() if (file in out) == (split == "validation")}
        for key, file in usable.items():
            path = os.path.join(folder, file)
            rows = caption_rows([path], captions[key], key, self.config.prompt, regions.get(key, []), self.config.rows)
            for i, row in enumerate(rows):
                yield f"{key}-{i}", row


def _annotations(data_dir: str, kind: str, name: str) -> str:
    return os.path.join(data_dir, "annotations", f"{kind}_{name}.json")


def _without_outline(record: dict) -> dict:
    record.pop("segmentation", None)  # nine tenths of an instances file, gigabytes as Python objects, and not needed
    return record


def _read(path: str) -> dict:
    try:
        # -sig: some editors begin a file with a byte order mark
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=_without_outline)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets within each other
        raise ValueError(f"{path} is not JSON: {error}") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path} has no list {key!r}; is it a COCO annotation file?")
    return content


def _field(path: str, record: Any, key: str, kind: type) -> Any:
    """`record[key]`, which must be a `kind`, and if a string, one that can be written as UTF-8."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (kind is str and not _is_text(value)):
        raise ValueError(f"{path}: {key!r} is {value!r:.100} in record {str(record)[:300]}")
    return value


def _is_text(string: str) -> bool:
    try:
        return string.isascii() or bool(string.encode())
    except UnicodeEncodeError:  # JSON can hold half a character, as "\ud83d"; Arrow cannot
        return False


def _id(path: str, record: Any, key: str) -> str:
    """An id, which is a whole number or a string: 7 and "7" are one, as they are in the column `image_id`."""
    value = record.get(key) if isinstance(record, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _field(path, record, key, str)


def _pictures(path: str, content: dict) -> dict[str, str]:
    pictures = {}
    for record in content["images"]:
        key = _id(path, record, "id")
        if key in pictures:
            raise ValueError(f"{path}: two images have id {key}")
        file = pictures[key] = _field(path, record, "file_name", str)
        if not file or file.startswith("/") or ".." in file.split("/"):
            raise ValueError(
                f"{path}: image {key} has file_name {file!r}; expected the name of a file in the pictures' folder"
            )
    return pictures


def _picture_of(path: str, annotation: Any, pictures: dict) -> str:
    key = _id(path, annotation, "image_id")
    if key not in pictures:
        raise ValueError(f"{path}: annotation {annotation.get('id')!r} is of image {key}, which is not in 'images'")
    return key


def _captions(path: str) -> tuple[dict, dict[str, list[str]], list[str]]:
    """Picture id -> file name, picture id -> captions, and the file names of pictures with a blank one."""
    content = _read(path)
    pictures, captions, blank = _pictures(path, content), defaultdict(list), []
    for annotation in content["annotations"]:
        key = _picture_of(path, annotation, pictures)
        # annotators pressed return: some captions end in newlines, some have one inside
        caption = " ".join(_field(path, annotation, "caption", str).split())
        if caption:
            captions[key].append(caption)
        else:
            blank.append(pictures[key])
    return pictures, dict(captions), blank


def _is_length(number: Any) -> bool:
    """Whether it can be a place in a picture: neither true, which Python counts as 1, nor NaN, nor 1e308."""
    return isinstance(number, (int, float)) and not isinstance(number, bool) and -1e9 < number < 1e9


def _regions(path: str) -> tuple[dict, dict[str, list[dict]]]:
    """Picture id -> file name, and picture id -> regions. Boxes without an area (COCO has some) are left out."""
    content = _read(path)
    if not isinstance(content.get("categories"), list):
        raise ValueError(f"{path} has no list 'categories'; is it an instances file?")
    categories: dict[str, str] = {}
    for record in content["categories"]:
        key = _id(path, record, "id")
        if key in categories:
            raise ValueError(f"{path}: two categories have id {key}")
        categories[key] = _field(path, record, "name", str)
    pictures, regions, flat = _pictures(path, content), defaultdict(list), []
    for annotation in content["annotations"]:
        key = _picture_of(path, annotation, pictures)
        category = _id(path, annotation, "category_id")
        if category not in categories:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')!r} has category {category}, which is not in 'categories'"
            )
        box = _field(path, annotation, "bbox", list)
        if len(box) != 4 or not all(_is_length(number) for number in box):
            raise ValueError(
                f"{path}: annotation {annotation.get('id')!r} has bbox {box!r:.100}; expected four numbers x, y, width, height"
            )
        x, y, width, height = map(float, box)
        if width > 0 and height > 0:
            regions[key].append({"box": [x, y, x + width, y + height], "phrase": categories[category]})
        else:
            flat.append(pictures[key])
    report(path, "boxes without an area left out, of pictures", flat)
    return pictures, dict(regions)
