"""benchmarks/caption_step.py as a user runs it, at its smallest size and without a peer; and that it cannot pass a wrong loss."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "caption_step.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("caption_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_finds_equal_losses_and_prints_every_ratio(tmp_path):
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--rounds", "3", "--batch_size", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ratios = re.findall(r"^ratio (\w+) / (\w+): ([\d.]+) \(([\d.]+) to ([\d.]+)\)", done.stdout, flags=re.MULTILINE)
    assert [pair[:2] for pair in ratios] == [("plain", "ours"), ("plain", "ours_tower"), ("ours_tower", "ours")]
    for *_, middle, least, greatest in ratios:
        assert 0 < float(least) <= float(middle) <= float(greatest)
    assert re.search(r"^ours equals the plain way: loss \d", done.stdout, flags=re.MULTILINE)
    # 16 and 24 tokens of captions; 25 + 4 + 9 + 24 tokens a row
    assert "2 rows of 62 tokens, 4 of a picture; 40 of 124 positions are labelled" in done.stdout
    if sys.platform == "linux":
        rows = re.findall(r"^  \w+ +[\d.]+ +[\d.]+ +(\d+) +(\d+)$", done.stdout, flags=re.MULTILINE)
        assert len(rows) == 3 and all(0 < int(before) <= int(peak) for before, peak in rows)


def louder(loss: torch.Tensor) -> torch.Tensor:
    """The same value, twice the gradient."""
    return 2 * loss - loss.detach()


WRONG = {
    "another_picture": lambda b, model, batch: b.plain_loss(model, batch | {"pixel_values": -batch["pixel_values"]}),
    "labels_one_too_late": lambda b, model, batch: b.plain_loss(model, batch | {"labels": batch["labels"].roll(1, 1)}),
    "gradients_too_large": lambda b, model, batch: louder(b.plain_loss(model, batch)),
    "gradients_missing": lambda b, model, batch: b.plain_loss(model, batch).detach().requires_grad_(),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_loss_or_gradient_is_not_called_equal(benchmark, name):
    model = benchmark.make_ossight("tiny")
    batch = benchmark.add_features(model, benchmark.make_batch("tiny", 3))
    for ours in (benchmark.our_loss, benchmark.our_loss_with_tower):
        benchmark.assert_equal(model, batch, ours, benchmark.plain_loss)
        with pytest.raises(AssertionError, match="differ|gradient"):
            benchmark.assert_equal(model, batch, ours, lambda model, batch: WRONG[name](benchmark, model, batch))


def test_ours_runs_no_vision_tower_where_features_are_cached(benchmark, monkeypatch):
    model = benchmark.make_ossight("tiny")
    batch = benchmark.add_features(model, benchmark.make_batch("tiny", 2))
    monkeypatch.setattr(model.model.vision_tower, "forward", lambda *args, **kwargs: pytest.fail("the tower ran"))
    benchmark.our_loss(model, batch)
    with pytest.raises(pytest.fail.Exception):
        benchmark.our_loss_with_tower(model, batch)
