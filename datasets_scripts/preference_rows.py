"""
The canonical preference columns, and what data sets of pairs have in common.

    prompt, chosen, rejected: strings, or turns, or the prompt's turns at the head of both sides  ->  pair  ->  turns
    a data set of them, with pictures or without  ->  canonical_pairs  ->  images, prompt, chosen, rejected, image_id, flaw

Unusual: a pair whose sides are the same, or one of them empty, teaches nothing: it is left out and counted.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, Features, Image, IterableDataset, List, Value, load_dataset

from datasets_scripts.canonical import CAPTION_FEATURES, logger, place, report


Turns = list[dict[str, str]]

SPLITS = ("train", "validation", "test")
SIDES = ("prompt", "chosen", "rejected")
PREFERENCE_FEATURES = Features(
    {
        "images": List(Image(decode=False)),  # none: a pair of texts
        **dict.fromkeys(SIDES, CAPTION_FEATURES["prompt"]),
        "image_id": Value("string"),
        "flaw": Value("string"),  # in what the rejected side is worse; empty where nobody says
    }
)


def from_hub(repo_id: str, files: str, revision: str | None) -> Dataset:
    """The rows of those parquet files of a data set on the Hub, and no others. The log asks for a revision where none is named."""
    if revision is None:
        logger.warning("%s: no revision is named, so it is today's; revision=COMMIT keeps its rows the same", repo_id)
    return load_dataset(repo_id, data_files={"train": files}, split="train", revision=revision)


def from_files(paths: list[str]) -> Dataset:
    """The rows of parquet files on disk, in their order."""
    return load_dataset("parquet", data_files={"train": paths}, split="train")


def lacking(rows: Dataset | IterableDataset, columns: tuple[str, ...], where: str) -> None:
    """Raises ValueError where rows have not all of these columns."""
    if missing := set(columns) - set(rows.column_names):
        raise ValueError(
            f"{where} lacks the columns {', '.join(sorted(missing))}; it has {', '.join(rows.column_names)}"
        )


def pair(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Turns]:
    """
    The three as turns of plain text. Each may be a string, turns (also with contents in parts, of which the texts are kept) or
    None; where both sides begin with the prompt's turns, the prompt is taken from them. A prompt that the sides do not share is
    empty. Raises ValueError for what is none of these.
    """
    asked = _turns(prompt, "user")
    (heading, good), (other, bad) = (_parted(_turns(side, "assistant")) for side in (chosen, rejected))
    if heading or other:
        asked = heading if heading == other else []
    return {"prompt": asked, "chosen": good, "rejected": bad}


def fault(row: dict[str, Turns]) -> str:
    """Why there is nothing to learn from a pair, or nothing."""
    if not all(any(turn["content"] for turn in row[side]) for side in SIDES):
        return "a side or the prompt is empty"
    return "both sides are the same" if row["chosen"] == row["rejected"] else ""


def usable(rows: Dataset, where: str) -> Iterator[tuple[int, dict[str, Turns]]]:
    """(number, pair) of each row without a fault. The others are counted in the log once all are read."""
    left_out = defaultdict(list)
    texts = rows.select_columns([side for side in SIDES if side in rows.column_names])
    for number, row in enumerate(texts):
        read = pair(row.get("prompt"), row["chosen"], row["rejected"])
        if why := fault(read):
            left_out[why].append(f"row {number}")
        else:
            yield number, read
    for why, which in left_out.items():
        report(where, f"pairs left out: {why}", which)


def drawn(keys: dict[int, str], count: int | None, where: str, seed: str) -> list[int]:
    """
    `count` of the numbers whose keys are given, in the order of their keys' hashes, which another seed changes; equal keys follow
    each other. None: all of them. Where there are fewer, all, and the log says so. Raises ValueError for a negative count, and
    where there are none at all.
    """
    if count is not None and count < 0:
        raise ValueError(f"{where}: {count} rows are asked for; a number of rows is at least 0")
    if not keys:
        raise ValueError(f"{where}: there is no pair to take")
    if count is not None and len(keys) < count:
        logger.warning("%s: %d pairs are asked for, and there are %d: all are taken", where, count, len(keys))
    return sorted(keys, key=lambda number: place(f"{seed} {keys[number]}"))[:count]


def canonical_pairs(rows: Dataset | IterableDataset, name: Callable[[dict, int], str]) -> Dataset | IterableDataset:
    """
    Rows with `chosen` and `rejected`, perhaps `prompt`, and `images`, `image` or no picture, in the columns of
    PREFERENCE_FEATURES; none is left out. name: of a row and its number -> `image_id`, where there is none. No picture is opened.
    """
    there = rows.column_names or list(next(iter(rows), {}))
    kept = {"images": List(Image(decode=False)), "image": Image(decode=False)}
    for column in kept.keys() & set(there):
        rows = rows.cast_column(column, kept[column])

    def canonical(row: dict, number: int) -> dict:
        pictures = row.get("images") or [row.get("image")]
        return {
            "images": [picture for picture in pictures if picture is not None],
            **pair(row.get("prompt"), row["chosen"], row["rejected"]),
            "image_id": str(row.get("image_id") or name(row, number)),
            "flaw": row.get("flaw") or "",
        }

    return rows.map(
        canonical,
        with_indices=True,
        remove_columns=[column for column in there if column not in PREFERENCE_FEATURES],
        features=PREFERENCE_FEATURES,
    )


def own_pairs(rows: Dataset | IterableDataset, where: str, split: str) -> Dataset | IterableDataset:
    """
    Rows that have pairs of their own, canonical, without those that have a fault; these are counted, unless they are streamed.
    Raises ValueError where none is left.
    """
    paired = canonical_pairs(rows, lambda row, number: f"{split}-{number}")
    if isinstance(paired, IterableDataset):
        return paired.filter(lambda row: not fault(row))
    kept = [number for number, _ in usable(paired, where)]
    if not kept:
        raise ValueError(
            f"{where}: none of {len(paired)} pairs has two different sides and a prompt, as `prompt` or as turns that both sides "
            "begin with"
        )
    return paired.select(kept)


def _turns(value: Any, role: str) -> Turns:
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value.strip()}]
    if not isinstance(value, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value
    ):
        raise ValueError(f"expected a string or turns, [{{role, content}}, …]; is {value!r:.200}")
    return [{"role": turn["role"], "content": _text(turn["content"])} for turn in value]


def _text(content: Any) -> str:
    if isinstance(content, list):  # [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        content = "\n".join(part["text"] for part in content if part.get("text"))
    return (content or "").strip()


def _parted(side: Turns) -> tuple[Turns, Turns]:
    """The turns up to the last that is not the assistant's, and those after it."""
    asked = max((number for number, turn in enumerate(side, 1) if turn["role"] != "assistant"), default=0)
    return side[:asked], side[asked:]
