"""
What a canonical row shows, lets hear, asks and says, whichever columns it has; and some rows of a split instead of all.

    {images, prompt, completion, references}, {image, text, audio}, …  ->  media_of, prompt_of, captions_of
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random

from datasets import Dataset, IterableDataset

from trainers.dataset_statistics import digest


def some_rows(
    rows: Dataset | IterableDataset, number: int | None, seed: str
) -> tuple[Dataset | IterableDataset, Sequence[int], int | None]:
    """
    `number` rows drawn at random (of a stream: the first ones; None: all), their numbers in the order of the split, and how many
    rows there are (of a stream: None).
    """
    if isinstance(rows, IterableDataset):
        return (rows if number is None else rows.take(number)), range(2**62), None
    if number is None or number >= len(rows):
        return rows, range(len(rows)), len(rows)
    numbers = sorted(Random(seed).sample(range(len(rows)), number))
    return rows.select(numbers), numbers, len(rows)


def rows_at(rows: Dataset | IterableDataset, numbers: Iterable[int]) -> dict[int, dict]:
    """The rows of these numbers. A stream is read again as far as the last of them."""
    wanted = set(numbers)
    if isinstance(rows, Dataset):
        return {number: rows[number] for number in sorted(wanted)}
    stream = rows.take(max(wanted, default=-1) + 1)
    return {number: row for number, row in enumerate(stream) if number in wanted}


def media_of(row: dict) -> Iterator[tuple[str, Mapping]]:
    """("image" or "audio", what stands for it undecoded) of all that a row shows and lets hear."""
    pictures = row["images"] if "images" in row else [row.get("image")]
    for kind, source in [*(("image", picture) for picture in pictures or []), ("audio", row.get("audio"))]:
        if source is not None:
            yield kind, source


def key_of(kind: str, source: Mapping) -> int | None:
    """Equal for the same file, or the same bytes; None for what has neither."""
    what = source.get("bytes") or (source.get("path") or "").encode()
    return digest(kind.encode() + what) if what else None


def name_of(source: Mapping, row: dict, root: str | None) -> str:
    """A file's name, from `root` on if it lies there; else what the row calls it."""
    path = source.get("path")
    if not path:
        return str(row.get("image_id") or "")
    inside = root and os.path.isabs(path) and not os.path.relpath(path, root).startswith("..")
    return os.path.relpath(path, root) if inside else path


def said(turns: list[dict] | None) -> str:
    """The words of a conversation's turns, whether a turn is a string or parts."""
    contents = [turn["content"] for turn in turns or []]
    parts = [
        text
        for content in contents
        for text in ([content] if isinstance(content, str) else [part.get("text") or "" for part in content or []])
    ]
    return "\n".join(part for part in parts if part)


def prompt_of(row: dict) -> str:
    return said(row.get("prompt"))


def captions_of(row: dict, references: bool) -> list[str]:
    """What a row says of its picture or sound: `text`; else its references, if asked for and there; else its completion,
    or of preferences the chosen one."""
    if "text" in row:
        return [row["text"] or ""]
    return (references and row.get("references")) or [said(row.get("completion") or row.get("chosen"))]
