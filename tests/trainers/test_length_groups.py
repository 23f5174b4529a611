"""Batches of like lengths: every row once, little padding, another order each epoch, the same one again."""

import torch

from trainers.length_groups import LengthGroups


def test_every_row_comes_once_and_batches_hold_rows_of_like_length():
    lengths = torch.randint(1, 100, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = list(LengthGroups(lengths, 10, seed=0))
    assert sorted(rows) == list(range(1003))
    widths = [[lengths[i] for i in rows[start : start + 10]] for start in range(0, 1003, 10)]
    unlike = sum(max(some) > 2 * max(16, min(some)) for some in widths)
    assert unlike < 0.15 * len(widths), "of fifty sorted batches, those on a border"
    firsts = [max(some) for some in widths]
    rises = sum(one < other for one, other in zip(firsts, firsts[1:], strict=False))
    assert 0.35 * len(firsts) < rises < 0.65 * len(firsts), "batches come in no order of length"


def test_lengths_that_differ_little_come_together():
    """Else a batch would hold one answer: "no" is shorter than "yes"."""
    rows = list(LengthGroups([2, 3] * 200, 10, seed=0))
    batches = [rows[start : start + 10] for start in range(0, 400, 10)]
    assert all(1 < sum(i % 2 for i in batch) < 9 for batch in batches)


def test_an_epoch_has_its_own_order_and_keeps_it():
    groups = LengthGroups(list(range(16, 80)), 4, seed=0)
    first = list(groups)
    assert list(groups) == first
    groups.set_epoch(1)
    assert list(groups) != first
    groups.set_epoch(0)
    assert list(groups) == first
    assert list(LengthGroups(list(range(16, 80)), 4, seed=1)) != first
