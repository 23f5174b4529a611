"""
Conceptual Captions (CC3M): captions of pictures all over the web, published as links; its pictures as recipes/download_pictures.py
brings them. Nothing is downloaded here.

    data_dir/Train_GCC-training.tsv                 caption<TAB>link, a line each, no header: as Google gives it
    data_dir/Validation_GCC-1.1.0-Validation.tsv    (https://ai.google.com/research/ConceptualCaptions/download)
    data_dir/unlabeled/train-*.parquet …            or: image_url, caption, as google-research-datasets/conceptual_captions has it
    data_dir/images/3f/9c01….jpg, links.jsonl       the pictures (picture_links.py)

    ConceptualCaptions(data_dir="cc3m").download_and_prepare()       10,000 pictures of train, 1,000 of validation and of test

Unusual: many links are dead, so more are asked for than num_* (by `spare`), and the first num_* whose pictures came are taken, in
the order of a hash of the link: two people have the same but for what was dead for one of them. How much came is in the log and in
`info.description`. There is no official test with captions: test and validation are halves of the official validation, by that hash
too. A picture of theirs that is in train as well is not trained on. Captions stay as published: lower case, in tokens, names
replaced by what they stand for ("person"). Source: Sharma et al. 2018, "Conceptual Captions: A Cleaned, Hypernymed, Image Alt-text
Dataset For Automatic Image Captioning", ACL.
"""

import json
import logging
import math
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_scripts import canonical
from datasets_scripts.canonical import CAPTION_FEATURES, FolderBuilder, FolderConfig, caption_rows, place, report
from datasets_scripts.picture_links import JOURNAL, PICTURES_IN, Links


FILES = {"train": "Train_GCC-training.tsv", "validation": "Validation_GCC-1.1.0-Validation.tsv"}
OFFICIAL = {"train": "train", "validation": "validation", "test": "validation"}  # split -> the file it is drawn from


@dataclass
class ConceptualCaptionsConfig(FolderConfig):
    """
    num_train, num_eval: pictures of train, and of validation and test each, fewer where fewer came; None: all that came; 0: no such
    split. spare: how many more links are asked for, as a fraction of num_*. split_seed: another draws others, and other halves.
    Raises ValueError for sizes below 0, and for a config's name: there is but one.
    """

    num_train: int | None = 10_000
    num_eval: int | None = 1_000
    spare: float = 0.6
    split_seed: int = 0

    # what recipes/download_pictures.py asks the Hub for
    HUB = {"default": "google-research-datasets/conceptual_captions"}
    PATTERN = "unlabeled/*.parquet"

    def __post_init__(self):
        super().__post_init__()
        if self.name != "default":
            raise ValueError(f"conceptual_captions: leave out config_name={self.name!r}; there is one config")
        for name in ("num_train", "num_eval", "spare"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"conceptual_captions: {name} must be at least 0; got {getattr(self, name)}")

    def command(self) -> str:
        """What downloads the pictures of these splits."""
        own = ("num_train", "num_eval", "spare", "split_seed")
        default = ConceptualCaptionsConfig
        options = {name: getattr(self, name) for name in own if getattr(self, name) != getattr(default, name)}
        command = ["python", "recipes/download_pictures.py", "--dataset", "conceptual_captions"]
        command += ["--data_dir", self.data_dir] + (["--dataset_options", json.dumps(options)] if options else [])
        return shlex.join(command)

    def metadata(self) -> dict[str, list[str]]:
        """
        "train" and "validation" -> its files; of Google's tables, one is enough. Raises FileNotFoundError for neither, or a part of
        the parquet files (splits would be others), ValueError for both layouts side by side.
        """
        tables = {name: [str(path)] for name, file in FILES.items() if (path := Path(self.data_dir, file)).is_file()}
        parquet = {name: sorted(map(str, Path(self.data_dir).glob(f"unlabeled/{name}-*.parquet"))) for name in FILES}
        if tables and any(parquet.values()):
            raise ValueError(f"{self.data_dir} has {', '.join(FILES.values())} and {self.PATTERN}: keep one of the two")
        if not tables and not all(map(_whole, parquet.values())):
            have = [os.path.relpath(path, self.data_dir) for paths in parquet.values() for path in paths]
            raise FileNotFoundError(
                f"no Conceptual Captions in {self.data_dir}, or not all of it: expected {' and '.join(FILES.values())}, or "
                f"{self.PATTERN} as in {self.HUB['default']}; found {', '.join(have) or canonical.listing(self.data_dir)}. "
                f"To download it: {self.command()}"
            )
        return tables or parquet

    def sources(self) -> list[str]:
        journal = Path(self.data_dir, JOURNAL)
        # a folder's own time changes as pictures come and go
        folders = sorted(map(str, Path(self.data_dir, PICTURES_IN).glob("*")))
        return sum(self.metadata().values(), folders) + [str(journal)] * journal.exists()

    def sizes(self) -> dict[str, int | None]:
        """Split -> how many pictures it is to have."""
        there = self.metadata()
        sizes = {"train": self.num_train, "validation": self.num_eval, "test": self.num_eval}
        return {split: size for split, size in sizes.items() if size != 0 and OFFICIAL[split] in there}

    def links(self) -> dict[str, dict[str, None]]:
        """Split -> the links to ask for (no sha256 is told), in the order in which they are taken."""
        return {split: dict.fromkeys(self.said(split)) for split in self.sizes()}

    def said(self, split: str) -> dict[str, list[str]]:
        """Link -> captions, of the links of a split that are asked for, in the order in which they are taken."""
        files, size = self.metadata(), self.sizes()[split]
        # places alone: three million links would fill a gigabyte
        where = np.fromiter((self._place(url) for url, _ in _lines(files[OFFICIAL[split]])), float)
        if split == "train":
            evaluated = [self._place(url) for url, _ in _lines(files.get("validation", []))]
            mine = np.unique(where[~np.isin(where, evaluated)])
        else:
            mine = np.unique(where[(where < 0.5) == (split == "test")])
        if size is not None:
            mine = mine[: math.ceil(size * (1 + self.spare))]
        asked = np.isin(where, mine)
        said: dict[str, list[str]] = {}
        blank = []
        for line, (url, caption) in enumerate(_lines(files[OFFICIAL[split]])):
            if asked[line]:
                captions = said.setdefault(url, [])
                if caption:
                    captions += [caption] if caption not in captions else []
                else:
                    blank.append(url)
        report(f"{self.data_dir}, {split}", "blank captions left out, of pictures", blank)
        return {url: said[url] for url in sorted(said, key=self._place) if said[url]}

    def _place(self, url: str) -> float:
        return place(f"conceptual_captions {self.split_seed} {url}")


class ConceptualCaptions(FolderBuilder):
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ConceptualCaptionsConfig

    def _info(self) -> datasets.DatasetInfo:
        self._told: dict[str, str] = {}
        page = "https://ai.google.com/research/ConceptualCaptions"
        return datasets.DatasetInfo(description=__doc__, features=CAPTION_FEATURES, homepage=page)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(split, gen_kwargs={"split": split, "size": size})
            for split, size in self.config.sizes().items()
        ]

    def _generate_examples(self, split: str, size: int | None) -> Iterator[tuple[str, dict]]:
        config, links = self.config, self._links
        said = config.said(split)
        came = [url for url in said if links.there(url)]
        taken = came[:size]
        told = links.completeness(said)
        self._told[split] = f"{split}: {told}; of these, {len(taken):,} are taken"
        where = f"{config.data_dir}: {self._told[split]}"
        short = len(taken) < (len(said) if size is None else size)
        if short:
            where += f", fewer than the {size:,} asked for" if size else ""
            where += f". To download what was not asked for: {config.command()}" if told.unasked else ""
        if not taken:
            raise ValueError(where)
        canonical.logger.log(logging.WARNING if short else logging.INFO, where)
        self.info.description = "\n".join([__doc__, *self._told.values()])
        for url in taken:
            picture = [str(links.path(url))]
            rows = caption_rows(picture, said[url], url, config.prompt, [], config.rows)
            for number, row in enumerate(rows):
                yield f"{url}-{number}", row

    @cached_property
    def _links(self) -> Links:
        return Links(self.config.data_dir)


def _whole(paths: list[str]) -> bool:
    totals = {int(match[1]) for path in paths if (match := re.search(r"-of-(\d+)\.parquet$", path))}
    return bool(paths) and totals <= {len(paths)}


def _lines(paths: list[str]) -> Iterator[tuple[str, str]]:
    """(link, caption), a blank one too. Raises ValueError, naming file and line, for what is neither."""
    for path in paths:
        yield from _table(path) if path.endswith(".tsv") else _parquet(path)


def _table(path: str) -> Iterator[tuple[str, str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error}); download it again") from error
            if text in ("", "caption\turl"):  # a header that other programs need
                continue
            cells = text.split("\t")
            if len(cells) != 2 or "://" not in cells[1]:
                raise ValueError(f"{path}, line {number}: expected caption<TAB>link; is {text[:200]!r}")
            yield cells[1].strip(), " ".join(cells[0].split())


def _parquet(path: str) -> Iterator[tuple[str, str]]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(columns=["image_url", "caption"]):
            columns = {name: batch.column(name).to_pylist() for name in ("image_url", "caption")}
            for url, caption in zip(columns["image_url"], columns["caption"], strict=True):
                if url and url.strip():
                    yield url.strip(), " ".join((caption or "").split())
    except (KeyError, pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as parquet with image_url and caption ({error}); download it again"
        ) from error
