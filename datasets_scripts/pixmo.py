"""
PixMo (Molmo's data) as it comes from the Hub: parquet files of links and texts; its pictures as recipes/download_pictures.py
brings them. Nothing is downloaded here.

    data_dir/data/train-00000-of-00004.parquet …   allenai/pixmo-cap: image_url, caption (and transcripts, which are not read)
                                                   or allenai/pixmo-ask-model-anything: image_url, image_sha256, question, answer
                                                   or allenai/pixmo-cap-qa: image_url, question, answer (and messages, not read)
    data_dir/images/3f/9c01….jpg, links.jsonl      the pictures (picture_links.py)

    Pixmo(config_name="captions", data_dir="pixmo-cap").download_and_prepare()       a row a caption, of about 200 words
    Pixmo(config_name="questions", data_dir="pixmo-ask", rows="image")               one question a picture

Unusual: there is one official split, train, so we draw ours: on which side a picture is follows from a hash of its link alone, in
all of PixMo alike: a picture that is learned from in one data set is never judged by in another. (The same picture under two links
is two pictures.) Of each side, the first num_* by that hash are taken, whether their links are dead or not: two people have the
same splits, less the links that were dead for each; the log says how many. "[USER] … [ASSISTANT] …" becomes a prompt of turns.
Source: Deitke et al. 2024, "Molmo and PixMo: Open Weights and Open Data for State-of-the-Art Vision-Language Models".
"""

import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets_scripts import canonical
from datasets_scripts.canonical import CAPTION_FEATURES, FolderBuilder, FolderConfig, caption_rows, place, report, turns
from datasets_scripts.picture_links import PICTURES_IN, Links


COLUMNS = {"captions": ["image_url", "caption"], "questions": ["image_url", "question", "answer"]}
SIDES = {"train": (0.2, 1.0), "validation": (0.1, 0.2), "test": (0.0, 0.1)}  # where the hash of a link falls


@dataclass
class PixmoConfig(FolderConfig):
    """
    num_train, num_validation, num_test: pictures of a split, dead links included; None: all of its side (sides are 8 : 1 : 1);
    0: no such split. split_seed: another draws other sides. Raises ValueError for a config other than "captions" and "questions".
    """

    num_train: int | None = 14_000
    num_validation: int | None = 3_000
    num_test: int | None = 3_000
    split_seed: int = 0

    # what recipes/download_pictures.py asks the Hub for
    HUB = {"captions": "allenai/pixmo-cap", "questions": "allenai/pixmo-ask-model-anything"}
    PATTERN = "data/train-*.parquet"

    def __post_init__(self):
        self.name = "captions" if self.name == "default" else self.name
        if self.name not in COLUMNS:
            raise ValueError(f"pixmo: config_name must be one of {', '.join(COLUMNS)}; got {self.name!r}")
        super().__post_init__()

    def command(self) -> str:
        """What downloads the pictures of these splits."""
        own = ("num_train", "num_validation", "num_test", "split_seed")
        options = {name: getattr(self, name) for name in own if getattr(self, name) != getattr(PixmoConfig, name)}
        command = ["python", "recipes/download_pictures.py", "--dataset", "pixmo", "--config_name", self.name]
        command += ["--data_dir", self.data_dir] + (["--dataset_options", json.dumps(options)] if options else [])
        return shlex.join(command)

    def metadata(self) -> list[str]:
        """The parquet files. Raises FileNotFoundError where there are none, or not all: then splits would be others."""
        found = sorted(map(str, Path(self.data_dir).glob(self.PATTERN)))
        totals = {int(match[1]) for path in found if (match := re.search(r"-of-(\d+)\.parquet$", path))}
        if not found or totals - {len(found)}:
            have = ", ".join(map(os.path.basename, found)) or canonical.listing(self.data_dir)
            raise FileNotFoundError(
                f"no PixMo in {self.data_dir}, or not all of it: expected {self.PATTERN}, as in {self.HUB[self.name]}; found "
                f"{have}. To download it: {self.command()}"
            )
        return found

    def sources(self) -> list[str]:
        # a folder's own time changes as pictures come and go
        return self.metadata() + sorted(map(str, Path(self.data_dir, PICTURES_IN).glob("*")))

    def links(self) -> dict[str, dict[str, str | None]]:
        """
        Split -> link -> its picture's sha256 where it is told; the same whatever is dead. Raises ValueError for a side with fewer
        links than num_* asks for.
        """
        found: dict[str, str | None] = {}
        for path in self.metadata():
            for batch in _batches(path, self.name, ["image_url"], ["image_sha256"]):
                for url, digest in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    if url and url.strip():
                        found.setdefault(url, digest)
        sides: dict[str, list[tuple[float, str]]] = {split: [] for split in SIDES}
        for url in found:
            number = place(f"pixmo {self.split_seed} {url}")
            sides[next(split for split, (low, high) in SIDES.items() if low <= number < high)].append((number, url))
        taken = {}
        for split, side in sides.items():
            count = getattr(self, f"num_{split}")
            count = len(side) if count is None else count
            if not 0 <= count <= len(side):
                raise ValueError(
                    f"{self.data_dir}: of {len(found)} links, {len(side)} are on the side of {split}; num_{split}={count} asks for "
                    "more than that, or for less than none. Set it to as many at most, or to None for all of them"
                )
            if count:
                taken[split] = {url: found[url] for _, url in sorted(side)[:count]}
        return taken


class Pixmo(FolderBuilder):
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = PixmoConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=CAPTION_FEATURES, license="ODC-BY-1.0 (texts)")

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(split, gen_kwargs={"split": split}) for split in self._links]

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        config, links = self.config, Links(self.config.data_dir)
        told = links.completeness(self._links[split])
        where = f"{config.data_dir}: {config.name}, {split}: {told}"
        if told.unasked:
            where += f". To download what was not asked for: {config.command()}"
        if not told.there:
            raise ValueError(where)
        canonical.logger.log(logging.INFO if told.there == told.asked else logging.WARNING, where)
        for url in self._links[split]:
            if url not in self._said or not links.there(url):
                continue
            picture = [str(links.path(url))]
            if config.name == "captions":
                captions = [caption for (caption,) in self._said[url]]
                rows = caption_rows(picture, captions, url, config.prompt, [], config.rows)
            else:
                asked = self._said[url] if config.rows == "caption" else self._said[url][:1]
                rows = (
                    {**row, "prompt": prompt}
                    for prompt, answer in asked
                    for row in caption_rows(picture, [answer], url, "", [], "image")
                )
            for number, row in enumerate(rows):
                yield f"{url}-{number}", row

    @cached_property
    def _links(self) -> dict[str, dict[str, str | None]]:
        return self.config.links()

    @cached_property
    def _said(self) -> dict[str, list]:
        """Link -> its [caption]s, or its [prompt, answer]s, in the order of the files."""
        wanted = pa.array([url for links in self._links.values() for url in links])
        said: dict[str, list] = {}
        unusable = []
        for path in self.config.metadata():
            for batch in _batches(path, self.config.name, COLUMNS[self.config.name]):
                batch = batch.filter(pc.is_in(batch.column("image_url"), value_set=wanted.cast(batch.schema.types[0])))
                for url, *texts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    texts = [text.strip() if text else "" for text in texts]
                    usable = texts if self.config.name == "captions" else [_asked(texts[0]), texts[1]]
                    if all(usable):
                        said.setdefault(url, []).append(usable)
                    else:
                        unusable.append(url)
        texts = "captions" if self.config.name == "captions" else "questions, or not [USER] … [ASSISTANT],"
        report(self.config.data_dir, f"blank {texts} left out, of pictures", unusable)
        return said


def _batches(path: str, name: str, columns: list[str], if_there: tuple | list = ()) -> Iterator[pa.RecordBatch]:
    """`columns`, and `if_there` or nulls. Raises ValueError, naming the file, where columns are missing or it is no parquet."""
    try:
        file = pq.ParquetFile(path)
        there = file.schema_arrow.names
        if missing := set(COLUMNS[name]) - set(there):
            fits = [other for other, needs in COLUMNS.items() if set(needs) <= set(there)]
            hint = f"; config_name={fits[0]!r} reads it" if fits else ""
            raise ValueError(
                f"{path} has no {', '.join(sorted(missing))} for {name!r}; it has {', '.join(there)}{hint}"
            )
        for batch in file.iter_batches(columns=columns + [column for column in if_there if column in there]):
            for column in if_there:
                if column not in there:
                    batch = batch.append_column(column, pa.nulls(len(batch), pa.string()))
            yield batch
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: cannot be read as parquet ({error}); delete it, and download it again") from error


def _asked(question: str) -> list[dict[str, str]]:
    """The turns before the answer; none for a conversation whose turns are out of order."""
    if not question.startswith("[USER]"):
        return turns(question, "")["prompt"] if question else []
    words = [word.strip() for word in re.split(r"\[(?:USER|ASSISTANT)\]", question)]
    roles = re.findall(r"\[(USER|ASSISTANT)\]", question)
    in_turn = roles == ["USER", "ASSISTANT"] * (len(roles) // 2)
    # the last is the assistant's, who has yet to speak
    if not in_turn or words[-1] or not all(words[1:-1]):
        return []
    return [{"role": role.lower(), "content": said} for role, said in zip(roles, words[1:-1], strict=False)]
