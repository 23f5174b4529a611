"""
Flickr8k as its authors or Kaggle give it, unpacked. Nothing is downloaded or copied.

    data_dir/Flicker8k_Dataset/*.jpg        or Flickr8k_Dataset/, or Kaggle's Images/
    data_dir/Flickr8k.token.txt             NAME.jpg#0<TAB>caption; or Kaggle's captions.txt: CSV with the header image,caption
    data_dir/Flickr_8k.trainImages.txt      a name a line; .devImages.txt, .testImages.txt; text files may lie in Flickr8k_text/

    Flickr8k(data_dir="flickr8k").download_and_prepare()                       one row a caption, the answer to a question
    Flickr8k(data_dir="flickr8k", rows="image").as_streaming_dataset("test")   one row a picture, for evaluation

Unusual: captions are answers. Training rows ask one of QUESTIONS, by a hash of the picture's name and the caption's number;
evaluation rows all ask `prompt`, the first of them, so that scores compare. Captions came in tokens (a dog 's ball , " red " .) and
are put down as people write (a dog's ball, "red".); metrics/ finds the same words in both. Where the split files are missing, as
in Kaggle's copy, pictures are split 6 : 1 : 1 by a hash of their names, and the log says so. What is incomplete is skipped and
counted in the log; what contradicts itself is a ValueError that names file and line.
Source: Hodosh, Young and Hockenmaier 2013, "Framing Image Description as a Ranking Task", JAIR 47.
"""

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import datasets

from datasets_scripts import canonical
from datasets_scripts.canonical import PROMPT, FolderBuilder, FolderConfig, caption_rows, held_out, report


PICTURES = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")
CAPTIONS = ("Flickr8k.token.txt", "captions.txt")  # of both, the first: the second was made of it
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
QUESTIONS = (
    PROMPT,
    "What is happening in the picture?",
    "What does the picture show?",
    "What can be seen here?",
    "Describe the image.",
    "Give a short description of this photograph.",
    "Say in one sentence what is in the picture.",
    "What is going on here?",
    "Write a caption for this photo.",
    "How would you describe this scene?",
    "Tell me what you see.",
    "What is this a picture of?",
)


@dataclass
class Flickr8kConfig(FolderConfig):
    """`questions=False`: training rows ask `prompt` too. `split_seed`: of the split by hash, where there is no official one."""

    questions: bool = True
    split_seed: int = 0

    def layout(self) -> tuple[str, str, dict[str, str]]:
        """Pictures' folder, captions' file, split -> its file. Raises FileNotFoundError for none, ValueError for two folders."""
        folders = [path for name in PICTURES if os.path.isdir(path := os.path.join(self.data_dir, name))]
        if len(folders) > 1:
            raise ValueError(f"{folders[0]} and {folders[1]}: keep one")
        captions = [path for name in CAPTIONS if (path := self._text(name))]
        if not folders or not captions:
            raise FileNotFoundError(
                f"no Flickr8k in {self.data_dir}: expected pictures in {' or '.join(PICTURES)}, and their captions in "
                f"{' or '.join(CAPTIONS)}; found {canonical.listing(self.data_dir)}"
            )
        files = {split: self._text(f"Flickr_8k.{short}Images.txt") for split, short in SPLITS.items()}
        return folders[0], captions[0], {split: path for split, path in files.items() if path}

    def _text(self, name: str) -> str | None:
        paths = (os.path.join(self.data_dir, folder, name) for folder in ("", "Flickr8k_text"))
        return next(filter(os.path.isfile, paths), None)

    def sources(self) -> list[str]:
        folder, captions, files = self.layout()
        return [folder, captions, *files.values()]


class Flickr8k(FolderBuilder):
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = Flickr8kConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=canonical.CAPTION_FEATURES)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        splits = self.config.layout()[2] or SPLITS
        return [datasets.SplitGenerator(split, gen_kwargs={"split": split}) for split in splits]

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        folder, captions, _ = self.config.layout()
        if not self._rows[split]:
            raise ValueError(f"{captions}: no picture of {split} is in {folder} and has a caption")
        for name, said in self._rows[split].items():
            picture = os.path.join(folder, name)
            rows = caption_rows([picture], list(said.values()), name, self.config.prompt, [], self.config.rows)
            for number, row in zip(said, rows, strict=False):  # rows="image": the first alone
                if self.config.questions and self.config.rows == "caption":
                    question = QUESTIONS[int(canonical.place(f"{name}#{number}") * len(QUESTIONS))]
                    row |= canonical.turns(question, said[number])
                yield f"{name}-{number}", row

    @cached_property  # for all splits at once: what is left out is said once
    def _rows(self) -> dict[str, dict[str, dict[int, str]]]:
        """Split -> picture -> number -> caption, of what can be used."""
        folder, path, files = self.config.layout()
        captions, blank = _captions(path)
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries if entry.is_file()}
        silent = sorted(name for name in there if name.endswith(".jpg") and name not in captions)
        report(path, "blank captions skipped, of pictures", blank)
        report(path, "pictures without captions left out", silent)
        report(path, f"pictures skipped that are not in {folder}", [name for name in captions if name not in there])
        usable = {name: said for name, said in captions.items() if name in there}
        members = _official(files) if files else self._by_hash(usable, path)
        for split, names in members.items():
            report(files.get(split, path), "names without captions left out", sorted(names - captions.keys()))
        report(path, "pictures left out that are in no split", sorted(usable.keys() - set().union(*members.values())))
        return {
            split: {name: said for name, said in usable.items() if name in names} for split, names in members.items()
        }

    def _by_hash(self, usable: dict, path: str) -> dict[str, set[str]]:
        if len(usable) < len(SPLITS):
            raise ValueError(
                f"{path}: {len(usable)} pictures with captions there cannot be split into {', '.join(SPLITS)}"
            )
        # a hash for each: as pictures come and go, the others stay (but where a split would be empty, one is moved)
        test = held_out(usable, 1 / 8, path, f"{self.config.split_seed} test ")
        validation = held_out(usable.keys() - test, 1 / 7, path, f"{self.config.split_seed} validation ")
        members = {"train": usable.keys() - test - validation, "validation": validation, "test": test}
        sizes = ", ".join(f"{len(names)} {split}" for split, names in members.items())
        how = "%s: no Flickr_8k.trainImages.txt, so split by a hash of names (%s), unlike published results"
        canonical.logger.warning(how, path, sizes)
        return members


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """(where, line) for every line that is not blank."""
    with open(path, "rb") as file:
        lines = file.read().removeprefix(b"\xef\xbb\xbf").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            if text := line.decode().strip():
                yield f"{path}, line {number}", text
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error}); save it as UTF-8") from error


def _official(files: dict[str, str]) -> dict[str, set[str]]:
    """Split -> the names in its file. Raises ValueError for a picture in two."""
    first: dict[str, str] = {}
    for split, path in files.items():
        for where, name in _lines(path):
            if first.setdefault(name, split) != split:
                raise ValueError(f"{where}: {name} is in {files[first[name]]} too; keep it in one")
    return {split: {name for name in first if first[name] == split} for split in files}


def _captions(path: str) -> tuple[dict[str, dict[int, str]], list[str]]:
    """Picture -> number -> caption, in the order of the file, and the pictures of blank ones."""
    table = path.endswith(CAPTIONS[1])
    said: dict[str, list[str]] = {}
    for i, (where, line) in enumerate(_lines(path)):
        if table:
            try:
                # line by line: a quote that is not closed must not take in the lines that follow
                cells = [cell.strip() for cell in next(csv.reader([line], strict=True, skipinitialspace=True))]
            except csv.Error as error:
                raise ValueError(f"{where}: not CSV ({error}): {line:.100}") from error
        else:
            found = re.fullmatch(r"([^\t]+)#[0-9]+(?:\t([^\t]*))?", line)
            cells = found.groups("") if found else ()
        if table and i == 0:
            if cells != ["image", "caption"]:
                raise ValueError(f"{where}: expected the header image,caption; is {line:.100}")
        elif len(cells) != 2 or not cells[0]:
            expected = 'NAME.jpg,"caption, in quotes if it has commas"' if table else "NAME.jpg#0, a tab, and a caption"
            raise ValueError(f"{where}: expected {expected}; is {line:.100}")
        else:
            said.setdefault(cells[0], []).append(_written(cells[1]))
    blank = [name for name, captions in said.items() for caption in captions if not caption]
    kept = {name: {i: caption for i, caption in enumerate(captions) if caption} for name, captions in said.items()}
    return {name: captions for name, captions in kept.items() if captions}, blank


def _written(caption: str) -> str:
    """A caption in tokens as people write; without a stray quote at an end, or a pair around all; empty if nothing is said."""
    caption = " ".join(caption.split())
    if caption.count('"') == 1 or re.fullmatch('"[^"]*"', caption):
        caption = caption.strip('" ')
    caption = re.sub(r' ([.,;:!?)]+)(?=[ "]|$)', r"\1", caption.replace("( ", "("))
    caption = re.sub(r" ('(?:s|re|ve|ll|d|m)|n't)\b", r"\1", caption)
    if caption.count('"') % 2 == 0:
        caption = re.sub('" ?([^"]*?) ?"', r'"\1"', caption)
    return caption if caption.strip(' ."') else ""
