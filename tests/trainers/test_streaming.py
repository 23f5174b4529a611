"""Streams: every row once an epoch, each on one process, and a resumed run at the very next."""

from itertools import islice

import pytest
from datasets import Dataset, IterableDataset

from trainers.streaming import EndlessStream, first_rows


def stream(count=10, shards=1, shuffle=True):
    rows = Dataset.from_dict({"x": list(range(count))}).to_iterable_dataset(num_shards=shards)
    return rows.shuffle(seed=3, buffer_size=4) if shuffle else rows


def taken(count, index=0, processes=1, start=0, **kwargs):
    return [row["x"] for row in islice(iter(EndlessStream(stream(**kwargs), index, processes, lambda: start)), count)]


def test_every_epoch_brings_every_row_once_in_another_order():
    rows = taken(20)
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_processes_see_disjoint_rows_and_together_all(shards):
    here, there = (one_epoch(index, shards) for index in (0, 1))
    assert not set(here) & set(there)
    assert sorted(here + there) == list(range(12))


def one_epoch(index, shards):
    """Of one of two processes."""
    return [row["x"] for row in islice(iter(EndlessStream(stream(12, shards), index, 2)), 6)]


@pytest.mark.parametrize("start", [0, 1, 7, 10, 13, 25])
def test_it_starts_at_the_row_after_the_last_that_was_used(start):
    assert taken(8, start=start) == taken(start + 8)[start:]


def test_a_process_without_rows_says_so_instead_of_waiting_for_ever():
    with pytest.raises(ValueError, match="process 1 of 2 has no rows"):
        next(iter(EndlessStream(stream(1), 1, 2)))


def test_the_first_rows_are_held_in_memory():
    rows = first_rows(stream(10, shuffle=False), 3)
    assert isinstance(rows, Dataset) and rows["x"][:] == [0, 1, 2]
    assert isinstance(stream(), IterableDataset)
