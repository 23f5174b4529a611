"""benchmarks/align_step.py as a user runs it, at its smallest; and that wrong gradients are not timed."""

import re
import sys

import align_step
import pytest


ARGS = {
    "towers": "miniature",
    "batch_size": 4,
    "steps": 2,
    "rounds": 2,
    "large_batch": 32,
    "chunk_size": 8,
    "device": "cpu",
}


@pytest.fixture
def args():
    return align_step.Namespace(**ARGS)


def ratios(printed: str) -> list[tuple[str, str, float, float, float]]:
    found = re.findall(r"ratio (\w+) / (\w+): ([\d.]+) \(([\d.]+) to ([\d.]+)\)", printed)
    return [(slow, fast, *map(float, numbers)) for slow, fast, *numbers in found]


def test_chunks_are_found_equal_and_every_figure_is_printed(args, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(align_step, "memory_of", lambda rows, chunk: asked.append((rows, chunk)) or 1.0)
    align_step.gradcache(args)
    printed = capsys.readouterr().out
    ((slow, fast, middle, least, most),) = ratios(printed)
    assert (slow, fast) == ("chunks", "whole") and 0 < least <= middle <= most
    assert "batch 32 in chunks of 8" in printed
    assert asked == [(8, 0), (16, 0), (32, 0), (8, 8), (16, 8), (32, 8)]


def test_chunks_that_are_not_the_whole_batch_are_not_timed(args, monkeypatch):
    steps = align_step.one_step

    def fewer(model, batch, rows, chunk, device):
        return steps(model, batch if chunk is None else {k: v[:-1] for k, v in batch.items()}, rows, chunk, device)

    monkeypatch.setattr(align_step, "one_step", fewer)
    with pytest.raises(AssertionError, match="not the whole"):
        align_step.gradcache(args)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_counts_what_a_step_holds(args):
    args.memory_of = 256, 0
    assert align_step.memory(args) > 50  # 256 pictures of 36 patches through two layers of 128 numbers


def test_open_clips_own_loop_has_our_loss_and_is_timed_beside_ours(args, capsys):
    pytest.importorskip("open_clip_train")
    align_step.loop(args)
    assert [found[:2] for found in ratios(capsys.readouterr().out)] == [("open_clip", "ours")]


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_wrong_matryoshka_loss_is_not_timed(wrong, monkeypatch):
    def another(similarity):
        right = info_nce(similarity)
        return right * 1.01 if wrong == "loss" else 2 * right - right.detach()

    info_nce = align_step.info_nce
    monkeypatch.setattr(align_step, "info_nce", another)
    monkeypatch.setattr(align_step, "SIZES", ((8, 64),))
    with pytest.raises(AssertionError, match="differ"):
        align_step.matryoshka(align_step.Namespace(device="cpu", rounds=1))
    monkeypatch.setattr(align_step, "info_nce", info_nce)
    align_step.matryoshka(align_step.Namespace(device="cpu", rounds=1))
