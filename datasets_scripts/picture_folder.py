"""
A folder of one's own pictures, described in a metadata file beside them as `datasets`' imagefolder has it.

    FOLDER/metadata.jsonl, FOLDER/cat.jpg, …      or the same in each of FOLDER/train/, FOLDER/validation/, FOLDER/test/

    {"file_name": "cat.jpg", "caption": "A cat asleep on a keyboard."}           caption, text, captions or references:
    {"file_name": "cat.jpg", "captions": ["A sleeping cat.", "A cat, asleep."]}  a string or a list of them
    {"file_name": "cat.jpg", "question": "Is it awake?", "answer": "no"}         prompt, question; answer, completion
    {…, "objects": {"bbox": [[x, y, width, height]], "categories": ["cat"]}}     pixels of the upright picture

metadata.csv has the same columns but objects, one string a cell. Lines about one picture that ask the same are taken
together: their captions are each other's references.

Unusual: where train is alone, pictures are held out for validation by a hash of their names. A picture is on one side
with everything said about it, and stays there as lines are reordered and others added, so that yesterday's validation
picture is not trained on today.
"""

import csv
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets

from datasets_scripts.canonical import CAPTION_FEATURES, FolderBuilder, FolderConfig, caption_rows, held_out


SPLITS = ("train", "validation", "test")
FILES = ("metadata.jsonl", "metadata.csv")
EXAMPLE = '{"file_name": "cat.jpg", "caption": "A cat asleep on a keyboard."}'
CAPTIONS = ("caption", "text", "captions", "references")
ANSWERS = ("answer", "completion")
PROMPTS = ("prompt", "question")


@dataclass
class PictureFolderConfig(FolderConfig):
    """`validation_fraction` of the pictures (at least one, not all; 0: none) are held out of a train that is alone."""

    validation_fraction: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1; got {self.validation_fraction}")

    def metadata(self) -> dict[str, str]:
        """Split -> its metadata file. Raises FileNotFoundError for none, ValueError if it is not clear which counts."""
        beside = _metadata_in(self.data_dir)
        below = {}
        for name in sorted(os.listdir(self.data_dir)) if os.path.isdir(self.data_dir) else []:
            if path := _metadata_in(os.path.join(self.data_dir, name)):
                if name not in SPLITS:
                    raise ValueError(f"{path} belongs to no split: name its folder one of {', '.join(SPLITS)}")
                below[name] = path
        if beside and below:
            raise ValueError(
                f"{beside} and {next(iter(below.values()))}: keep the one file, or one in each split's folder"
            )
        if not beside and not below:
            raise FileNotFoundError(
                f"no metadata.jsonl or metadata.csv in {self.data_dir}, nor in its folders {', '.join(SPLITS)}. "
                f"Write metadata.jsonl beside the pictures, one line a picture, as: {EXAMPLE}"
            )
        return {split: below[split] for split in SPLITS if split in below} or {"train": beside}

    def sources(self) -> list[str]:
        return list(self.metadata().values())


class PictureFolder(FolderBuilder):
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = PictureFolderConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=CAPTION_FEATURES)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        files = self.config.metadata()
        if list(files) == ["train"] and self.config.validation_fraction:
            return [
                datasets.SplitGenerator(split, gen_kwargs={"path": files["train"], "part": split})
                for split in ("train", "validation")
            ]
        return [
            datasets.SplitGenerator(split, gen_kwargs={"path": path, "part": "all"}) for split, path in files.items()
        ]

    def _generate_examples(self, path: str, part: str) -> Iterator[tuple[str, dict]]:
        said = _grouped(path, self.config.prompt)
        if part != "all":
            out = held_out({name for name, _ in said}, self.config.validation_fraction, path)
            said = {key: value for key, value in said.items() if (key[0] in out) == (part == "validation")}
        for i, ((name, prompt), (captions, regions)) in enumerate(said.items()):
            picture = os.path.join(os.path.dirname(path), name)
            for j, row in enumerate(caption_rows([picture], captions, name, prompt, regions, self.config.rows)):
                yield f"{i}-{j}", row


def _metadata_in(folder: str) -> str | None:
    found = [path for path in (os.path.join(folder, name) for name in FILES) if os.path.isfile(path)]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]}: keep one")
    return found[0] if found else None


def _records(path: str) -> Iterator[tuple[str, dict]]:
    """(where, record) for every line that is not blank."""
    try:
        # -sig: spreadsheets begin a file with a byte order mark
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.endswith(".csv"):
                lines = csv.DictReader(file, strict=True)
                names = [name for name in lines.fieldnames or () if name]
                if len(set(names)) < len(names):
                    raise ValueError(f"{path}, line 1: two columns have one name, in {', '.join(names)}")
                for record in lines:
                    if None in record:
                        raise ValueError(
                            f"{path}, line {lines.line_num}: more cells than the {len(lines.fieldnames)} columns"
                        )
                    yield f"{path}, line {lines.line_num}", record
            else:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        try:
                            record = json.loads(line)
                            if "\\ud" in line.lower():  # half a character, which Arrow cannot hold, is written so
                                json.dumps(record, ensure_ascii=False).encode()
                        except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets
                            raise ValueError(
                                f"{path}, line {number}: not JSON ({error}); a line is, as: {EXAMPLE}"
                            ) from error
                        if not isinstance(record, dict):
                            raise ValueError(f"{path}, line {number}: not an object {{…}}; a line is, as: {EXAMPLE}")
                        yield f"{path}, line {number}", record
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.reader.line_num}: not CSV ({error})") from error


def _grouped(path: str, prompt: str) -> dict[tuple[str, str], tuple[list[str], list[dict]]]:
    """(file name, prompt) -> (captions, regions), in the order in which lines bring them."""
    said: dict[tuple[str, str], tuple[list[str], list[dict]]] = {}
    for where, record in _records(path):
        name = _file_name(where, os.path.dirname(path), record)
        asked = _strings(where, record, PROMPTS)
        if len(asked) > 1:
            raise ValueError(f"{where}: {len(asked)} prompts; give each its own line")
        new = _strings(where, record, ANSWERS) + _strings(where, record, CAPTIONS)
        if not new:
            raise ValueError(f"{where}: {name} has no caption: expected one of {', '.join(CAPTIONS + ANSWERS)}")
        captions, regions = said.setdefault((name, asked[0] if asked else prompt), ([], []))
        captions += [caption for caption in dict.fromkeys(new) if caption not in captions]
        regions += [region for region in _regions(where, record) if region not in regions]
    if not said:
        raise ValueError(f"{path} has no rows; a line is, as: {EXAMPLE}")
    return said


def _file_name(where: str, folder: str, record: dict) -> str:
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: no file_name; a line is, as: {EXAMPLE}")
    name = posixpath.normpath(name)
    if posixpath.isabs(name) or name.startswith("../"):
        raise ValueError(f"{where}: {name} is outside {folder}; file_name is relative to it and stays inside")
    if not os.path.isfile(os.path.join(folder, name)):
        raise ValueError(f"{where}: there is no picture {os.path.join(folder, name)}")
    return name


def _strings(where: str, record: dict, keys: tuple[str, ...]) -> list[str]:
    """The string or strings under whichever of the keys the record has; an empty cell of a table is not there."""
    given = [key for key in keys if record.get(key) not in (None, "")]
    if len(given) > 1:
        raise ValueError(f"{where}: {' and '.join(given)} mean the same; keep one")
    value = record[given[0]] if given else []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: {given[0]} must be a string or a list of strings, none blank; is {value!r:.100}")
    return [text.strip() for text in texts]


def _regions(where: str, record: dict) -> list[dict[str, Any]]:
    objects = record.get("objects")
    if objects in (None, ""):
        return []
    boxes, phrases = (objects.get("bbox"), objects.get("categories")) if isinstance(objects, dict) else (None, None)
    if not isinstance(boxes, list) or not isinstance(phrases, list):
        raise ValueError(
            f'{where}: objects must be {{"bbox": [[x, y, width, height]], "categories": ["name"]}}, in metadata.jsonl'
        )
    if len(boxes) != len(phrases):
        raise ValueError(f"{where}: objects has {len(boxes)} bbox and {len(phrases)} categories")
    regions = []
    for box, phrase in zip(boxes, phrases, strict=True):
        numbers = isinstance(box, list) and len(box) == 4 and all(_is_length(number) for number in box)
        if not numbers or not (box[2] > 0 and box[3] > 0) or not isinstance(phrase, str):
            raise ValueError(
                f"{where}: object {phrase!r} with bbox {box!r:.100}: expected a name, and x, y, width > 0, height > 0"
            )
        x, y, width, height = map(float, box)
        regions.append({"box": [x, y, x + width, y + height], "phrase": phrase})
    return regions


def _is_length(number: Any) -> bool:
    """Whether it can be a place in a picture: neither true, which Python counts as 1, nor NaN, nor 1e308."""
    return isinstance(number, (int, float)) and not isinstance(number, bool) and -1e9 < number < 1e9
