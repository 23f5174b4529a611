"""
A run in shards: what is done stays done, whoever is stopped.

    OUTPUT/augmentation.json                 what decides every record; another answer needs another folder
    OUTPUT/shards/shard-00007-of-00079.jsonl all records of some pictures, kept or not, there when it is whole
    OUTPUT/<split>.jsonl, <split>.parquet    what is kept, in order                         written at the end, from the shards
    OUTPUT/rejected.jsonl, statistics.json

Unusual: memory does not grow with the number of pictures: shards are merged line by line, figures are counts.
"""

import errno
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from trainers.run_folder import read_json, write_json, write_jsonl, write_whole


TEXTS = ("kind", "image_id", "image", "caption", "text", "phrase", "detector", "similarity_model", "captioner")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in TEXTS]
    + [(name, pa.int32()) for name in ("width", "height", "caption_id")]
    + [("box", pa.list_(pa.float64()))]
    + [(name, pa.float64()) for name in ("detector_score", "clip_score")]
)
BATCH = 4096  # rows of a Parquet group
BINS = 40  # of a histogram of scores, from -1 to 1


def agree(folder: Path, made_of: dict[str, Any]) -> None:
    """
    Writes what decides the records of a run, or holds it against what an earlier one wrote. Raises ValueError, naming each
    difference, where the two are not the same.
    """
    path = folder / "augmentation.json"
    if not path.exists():
        write_json(path, made_of)
        return
    there, now = read_json(path), json.loads(json.dumps(made_of))
    different = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    if different:
        told = "; ".join(f"{name} was {there.get(name)!r}, is {now.get(name)!r}" for name in different)
        raise ValueError(
            f"{folder} holds a run that was told otherwise: {told}. Go on with what it was told, or name another output"
        )


def shard_path(folder: Path, number: int, count: int) -> Path:
    return folder / "shards" / f"shard-{number:05d}-of-{count:05d}.jsonl"


def write_shards(
    folder: Path,
    rows: int,
    size: int,
    compute: Callable[[range], list[dict]],
    process: tuple[int, int] = (0, 1),
    wait: Callable[[], Any] = lambda: None,
) -> int:
    """
    Writes the shards of `rows` rows, `size` each, that are not there; returns how many there are. compute: a range of rows -> their
    records. process: (index, count) of this process among those that share the work; `wait` returns when all have come there.
    Raises OSError where the disk is full, and leaves nothing half written.
    """
    count = -(-rows // size)
    missing = [number for number in range(count) if not shard_path(folder, number, count).exists()]
    index, processes = process
    mine = [number for number in missing if number % processes == index]  # whatever the others have done meanwhile
    done = count - len(missing)
    with tqdm(total=rows, initial=min(done * size, rows), unit="picture", desc="augmenting", disable=index > 0) as bar:
        for number in mine:
            here = range(number * size, min((number + 1) * size, rows))
            records = compute(here)
            try:
                write_jsonl(shard_path(folder, number, count), records)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OSError(
                    error.errno,
                    f"the disk is full at shard {number} of {count}: make room and run the same command again; what is there is "
                    "kept, and nothing is half written",
                    str(folder),
                ) from error
            bar.update(min(len(here) * processes, rows - bar.n))
    wait()
    return count


def read_shards(folder: Path, count: int) -> Iterator[dict]:
    """All records, in order."""
    for number in range(count):
        with shard_path(folder, number, count).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


def _examples(records: Iterable[dict]) -> Iterator[dict]:
    for record in records:
        if record["kind"] != "unreadable" and not record["reason"]:
            yield {name: record.get(name) for name in SCHEMA.names}


def _write_lines(path: Path, records: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_parquet(path: Path, records: Iterable[dict]) -> None:
    with pq.ParquetWriter(path, SCHEMA) as writer:
        some: list[dict] = []
        for record in records:
            some.append(record)
            if len(some) == BATCH:
                writer.write_table(pa.Table.from_pylist(some, SCHEMA))
                some = []
        writer.write_table(pa.Table.from_pylist(some, SCHEMA))


def merge(folder: Path, split: str, count: int) -> dict:
    """Writes the examples of a run, what it rejected, and statistics.json; returns the statistics."""

    def rejected() -> Iterator[dict]:
        return (record for record in read_shards(folder, count) if record["reason"])

    write_whole(folder / f"{split}.jsonl", lambda path: _write_lines(path, _examples(read_shards(folder, count))))
    write_whole(folder / f"{split}.parquet", lambda path: _write_parquet(path, _examples(read_shards(folder, count))))
    write_whole(folder / "rejected.jsonl", lambda path: _write_lines(path, rejected()))
    figures = statistics(read_shards(folder, count))
    write_json(folder / "statistics.json", figures)
    return figures


def _bin(score: float) -> int:
    return min(int((score + 1) / 2 * BINS), BINS - 1)


def statistics(records: Iterable[dict]) -> dict:
    """How many of everything there are, why regions are rejected, the commonest phrases, and histograms of both scores, -1 to 1."""
    numbers, reasons, phrases, pictures = Counter(), Counter(), Counter(), Counter()
    histograms = {name: {way: [0] * BINS for way in ("kept", "rejected")} for name in ("detector_score", "clip_score")}
    before = None
    for record in records:
        if record["kind"] == "unreadable":
            pictures["unreadable"] += 1
            continue
        if record["image_id"] != before:
            before, found = record["image_id"], False
            pictures["read"] += 1
            pictures["without_phrases"] += not record["phrases"]
            numbers["phrases"] += record["phrases"]
        if record["kind"] == "caption":
            numbers["captions"] += 1
            continue
        pictures["with_detections"] += not found
        found = True
        kept = not record["reason"]
        numbers["detections"] += 1
        numbers["kept"] += kept
        reasons[record["reason"]] += not kept
        phrases[record["phrase"]] += kept
        for name, histogram in histograms.items():
            if record[name] is not None:
                histogram["kept" if kept else "rejected"][_bin(record[name])] += 1
    pictures["without_detections"] = pictures["read"] - pictures["with_detections"]
    names = ("read", "unreadable", "without_phrases", "without_detections")
    return {
        "pictures": {name: pictures[name] for name in names},
        **{name: numbers[name] for name in ("captions", "phrases", "detections", "kept")},
        "rejected": {reason: number for reason, number in reasons.most_common() if reason and number},
        "phrases_kept": dict(phrases.most_common(50)),
        "histograms": {"from": -1, "to": 1, **histograms},
    }
