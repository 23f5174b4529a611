"""
Features computed once and kept as Arrow: what every cache of a frozen tower's features shares.

    what decides a feature (weights, settings, preprocessing, items) -> key -> FOLDER/<key>/shard-00007-of-00036.arrow

Unusual: the key is of everything that decides a feature, so a cache is never stale, only absent. Every process computes its share
of the shards, each is renamed into place when it is whole, and a run that was stopped goes on with those that are missing.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value, concatenate_datasets, config
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from tqdm.auto import tqdm

from trainers.run_folder import write_json, write_whole


SHARD = 256  # items
COLUMNS = Features({"patches": Value("large_binary"), "problem": Value("string")})


def identity(value: Any) -> str:
    """What tells one picture, text or sound from another: its words, its bytes' hash, or its path, size and time."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        return sha256(value.tobytes()).hexdigest()
    if value.get("bytes") is not None:
        return sha256(value["bytes"]).hexdigest()
    if value.get("array") is not None:
        return sha256(torch.as_tensor(value["array"]).numpy().tobytes()).hexdigest()
    try:
        state = os.stat(value["path"])
    except OSError:
        return f"{value['path']} missing"
    return f"{value['path']} {state.st_size} {state.st_mtime_ns}"


def each_once(values: Iterable, key: Callable[[Any], Any] = identity) -> tuple[list, list, list[int | None]]:
    """Values, each once by its key; their keys; and for each of the given its index (None for None)."""
    once, indices = [], []
    known: dict[Any, int] = {}
    for value in values:
        if value is None:
            indices.append(None)
            continue
        name = key(value)
        if name not in known:
            known[name] = len(once)
            once.append(value)
        indices.append(known[name])
    return once, list(known), indices


class CachedFeatures:
    """
    Features by index, from `feature_shards`' rows: each of `shape`, of which one length may be -1, in the tower's dtype. Raises
    `unreadable` where there are none.
    """

    def __init__(self, table: Dataset, shape: tuple[int, ...], dtype: torch.dtype, unreadable: type[Exception]):
        self._table, self._shape, self._dtype, self._unreadable = table, shape, dtype, unreadable

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Tensor:
        row = self._table[index]
        if row["problem"] is not None:
            raise self._unreadable(row["problem"])
        return torch.frombuffer(bytearray(row["patches"]), dtype=self._dtype).view(self._shape)


def feature_shards(
    folder: str | Path | None,
    what: str,
    made_of: dict[str, Any],
    count: int,
    size: int,
    compute: Callable[[range], Iterable[tuple[Tensor, str | None]]],
    process: tuple[int, int] = (0, 1),
    wait: Callable[[], Any] = lambda: None,
    told: dict[str, Any] | None = None,
) -> Dataset:
    """
    The features of `count` items as rows {"patches": bytes, "problem": why there are none, or None}.

    folder: default, beside the datasets' cache. what: the kind, a folder's name. made_of: what decides them, as JSON. size: bytes
    of one. compute: a range of items -> (feature, problem) of each. process: (index, count) of this process among those that share
    the work; `wait` returns when all have come there. told: written beside made_of, without a say in the key. Raises OSError where
    the disk is too small.
    """
    key = sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = Path(folder or Path(config.HF_DATASETS_CACHE) / what) / key
    folder.mkdir(parents=True, exist_ok=True)
    total = -(-count // SHARD)
    shards = [folder / f"shard-{number:05d}-of-{total:05d}.arrow" for number in range(total)]
    missing = [number for number in range(total) if not shards[number].exists()]
    needed, free = size * SHARD * len(missing), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"features of {count:,} items need {needed / 2**30:.1f} GiB more in {folder}, where {free / 2**30:.1f} are free; make "
            f"room, name another {what}_dir, or set cache_{what}: false"
        )
    index, processes = process
    wait()  # until every process has seen what is missing
    if index == 0:
        write_json(folder / "made_of.json", made_of | (told or {}) | {"count": count})
    mine = missing[index::processes]
    for number in tqdm(mine, desc=f"caching {what.replace('_', ' ')}", unit="shard", disable=index > 0 or not mine):
        here = range(number * SHARD, min((number + 1) * SHARD, count))
        write_whole(shards[number], lambda path, here=here: _write(path, compute(here)))
    wait()
    return concatenate_datasets([Dataset.from_file(str(path)) for path in shards])


def _write(path: Path, features: Iterable[tuple[Tensor, str | None]]) -> None:
    with ArrowWriter(path=str(path), features=COLUMNS) as writer:
        for feature, problem in features:
            content = b"" if problem is not None else feature.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            writer.write({"patches": content, "problem": problem})
        writer.finalize()
