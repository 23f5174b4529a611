"""
Batches of rows that are about equally long, so that little of a batch is padding.

Unusual: unlike transformers' sampler, the order of the batches is drawn too (theirs goes from long to short, so that captions and
one-word answers would come in turns of dozens of steps), and an epoch's order depends on seed and epoch alone, so that a resumed
run sees it again. And lengths are alike when they are within a factor of two: sorted exactly, all answers "yes" to one sort of
question would come in one batch, and the answers "no" in the next, and a model would learn to say whatever it heard last.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


SHORT = 16  # characters, below which all are alike
GROUPED = 50  # batches that are sorted among one another


class LengthGroups(Sampler[int]):
    """Indices of rows of these `lengths`; every `batch_size` (of all processes together) consecutive ones are alike."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths = torch.tensor([max(length, SHORT).bit_length() for length in lengths])
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randperm(len(self), generator=generator).split(GROUPED * self.batch_size)
        batches = [
            batch for group in drawn for batch in group[self.lengths[group].argsort(stable=True)].split(self.batch_size)
        ]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        order = torch.randperm(len(whole), generator=generator).tolist()
        rest = [
            batch for batch in batches if len(batch) < self.batch_size
        ]  # at most one; last, or all after it would shift
        return iter(torch.cat([whole[i] for i in order] + rest).tolist())
