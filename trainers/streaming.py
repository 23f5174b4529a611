"""
Streaming: rows that are read as they are trained on, from the Hub or from disk, never all at once.

    rows -> shuffled through a buffer, anew each epoch -> this process's share -> what an earlier run has used passed over -> batch

Unusual: a resumed run reads again, without opening pictures, what it has trained on, and so arrives at the very next sample;
a saved position in a shuffled stream would lose what the buffer held. It takes as long as reading takes.
"""

from collections.abc import Callable, Iterator
from itertools import count

import datasets
import torch
from datasets.distributed import split_dataset_by_node


class EndlessStream(torch.utils.data.IterableDataset):
    """
    One process's rows of epochs without end, from its `start()`-th row on (asked when the first row is). Raises ValueError where
    an epoch has no row for this process.
    """

    def __init__(self, rows: datasets.IterableDataset, index: int, processes: int, start: Callable[[], int] = int):
        self.rows = rows
        self.index = index
        self.processes = processes
        self.start = start

    def __iter__(self) -> Iterator[dict]:
        left = self.start()
        share = split_dataset_by_node(self.rows, self.index, self.processes)
        for epoch in count():
            share.set_epoch(epoch)
            seen = 0
            for row in share:
                seen += 1
                if left:
                    left -= 1
                else:
                    yield row
            if not seen:
                raise ValueError(
                    f"process {self.index} of {self.processes} has no rows: the stream is shorter than that"
                )


def first_rows(rows: datasets.IterableDataset, count: int) -> datasets.Dataset:
    """The first rows of a stream, held in memory: what a streamed training is judged by."""
    return datasets.Dataset.from_list(list(rows.take(count)), features=rows.features)
