"""Batches of like lengths: every row once, little padding, another order each epoch, the same one again."""

import torch

from trainers.length_groups import LengthGroups


def test_every_row_comes_once_and_batches_hold_rows_of_like_length():
    lengths = torch.randint(1, 100, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = list(LengthGroups(lengths, 10, seed=0))
    assert sorted(rows) == list(range(1003))
    widths = [[lengths[i] for i in rows[start : start + 10]] for start in range(0, 1003, 10)]
    padding = sum(max(some) * len(some) - sum(some) for some in widths)
    assert padding < 0.05 * sum(lengths)
    firsts = [max(some) for some in widths]
    rises = sum(one < other for one, other in zip(firsts, firsts[1:], strict=False))
    assert 0.35 * len(firsts) < rises < 0.65 * len(firsts), "batches come in no order of length"


def test_an_epoch_has_its_own_order_and_keeps_it():
    groups = LengthGroups(list(range(64)), 4, seed=0)
    first = list(groups)
    assert list(groups) == first
    groups.set_epoch(1)
    assert list(groups) != first
    groups.set_epoch(0)
    assert list(groups) == first
    assert list(LengthGroups(list(range(64)), 4, seed=1)) != first
