"""benchmarks/spin_decode.py as a user runs it, at its smallest size; and that it times no suppression but the published one."""

import importlib.util
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import pytest
import torch

from modeling import head_suppression


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "spin_decode.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("spin_decode", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(benchmark):
    model = benchmark.make_model("tiny", 2, 100, torch.float32, "cpu")
    return model, benchmark.make_prompt(model)


def test_it_finds_the_published_tokens_and_prints_every_ratio(tmp_path):
    command = [sys.executable, str(SCRIPT), "--geometry", "tiny", "--rounds", "2", "--tokens", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    number = r"([\d.]+)"
    ratios = re.findall(
        rf"^ratio (\w+) / plain: {number} \({number} to {number}\) tokens/s$", done.stdout, re.MULTILINE
    )
    assert [row[0] for row in ratios] == ["spin_logits", "spin_mass", "published", "two_passes", "plain_again"]
    for _, middle, least, greatest in ratios:
        assert 0 < float(least) <= float(middle) <= float(greatest)
    assert "1 threads, float32" in done.stdout and "631 tokens, 576 of a picture; 4 new ones" in done.stdout
    assert "bit for bit; both scores give the literal rule's tokens" in done.stdout
    rows = re.findall(rf"^  (\w+) +{number} +{number} +{number}$", done.stdout, flags=re.MULTILINE)
    assert len(rows) == 6
    for _, _, milliseconds, speed in rows:
        assert float(speed) == pytest.approx(1000 / float(milliseconds), rel=0.02)
    assert re.search(r"token, spin_logits: sdpa_attention_forward \d+, logit_scores \d+, gates \d+", done.stdout)
    assert re.search(r"token, spin_mass: .*mass_scores \d+", done.stdout)


def wrong_scores(monkeypatch, part):
    right = getattr(head_suppression, part)
    monkeypatch.setattr(head_suppression, part, lambda *args: -right(*args))


def too_many_heads(monkeypatch, _):
    monkeypatch.setattr(head_suppression.SpinConfig, "heads", lambda self, count: count - 3)


def not_bit_equal(monkeypatch, _):
    right = head_suppression.sdpa_attention_forward
    monkeypatch.setattr(
        head_suppression, "sdpa_attention_forward", lambda *args, **kw: (right(*args, **kw)[0] * 1.0001, None)
    )


def nothing_is_gated(monkeypatch, _):
    monkeypatch.setattr(head_suppression, "turn_down", lambda output, gate: output)


WRONG = {
    "logits": (wrong_scores, "logit_scores", "logits: the tokens differ|logits: the logits differ"),
    "mass": (wrong_scores, "mass_scores", "mass: the tokens differ|mass: the logits differ"),
    "heads": (too_many_heads, None, "logits: the tokens differ|logits: the logits differ"),
    "bits": (not_bit_equal, None, "suppression by 1 differs from plain"),
    "gate": (nothing_is_gated, None, "logits: the tokens differ|logits: the logits differ"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_suppression_is_not_called_equal(benchmark, tiny, monkeypatch, name):
    wrong, part, problem = WRONG[name]
    assert benchmark.assert_equal(*tiny, 4) <= benchmark.TOLERANCE
    wrong(monkeypatch, part)
    with pytest.raises(AssertionError, match=problem):
        benchmark.assert_equal(*tiny, 4)


def test_suppression_that_changes_nothing_is_not_compared(benchmark, tiny, monkeypatch):
    """Neither ours nor the literal rule does anything: equal, and no evidence."""
    for side in ("spin", "published"):
        monkeypatch.setattr(benchmark, side, lambda model, config: nullcontext())
    with pytest.raises(AssertionError, match="suppression changes nothing"):
        benchmark.assert_equal(*tiny, 4)


def test_decoding_that_is_not_what_generate_does_is_not_timed(benchmark, tiny, monkeypatch):
    right = benchmark.decode
    monkeypatch.setattr(benchmark, "decode", lambda *args: ((token + 1, seconds) for token, seconds in right(*args)))
    with pytest.raises(AssertionError, match="other tokens than generate"):
        benchmark.assert_equal(*tiny, 4)


def test_every_contender_attends_in_its_own_way_and_runs_the_model_as_often_as_it_says(benchmark, tiny):
    model, prompt = tiny
    text, ways, spinning = model.model.language_model, [], head_suppression.ATTENTION
    hook = text.register_forward_hook(lambda *_: ways.append(text.config._attn_implementation))
    found = {}
    for name, (context, passes) in benchmark.CONTENDERS.items():
        ways.clear()
        with context(model):
            list(islice(benchmark.decode(model, prompt, passes), 3))
        found[name] = list(ways)
    hook.remove()
    assert found == {
        "plain": ["sdpa"] * 3,
        "spin_logits": [spinning] * 3,
        "spin_mass": [spinning] * 3,
        "published": ["published_spin"] * 3,
        "two_passes": ["sdpa"] * 6,
        "plain_again": ["sdpa"] * 3,
    }


def test_contenders_take_turns_on_one_set_of_weights_and_leave_the_model_as_it_was(benchmark, tiny, monkeypatch):
    model, prompt = tiny
    turns, right = [], benchmark.decode

    def watched(twin, *args):
        assert all(one is other for one, other in zip(twin.parameters(), model.parameters(), strict=True))
        assert twin.config is not model.config, "suppression of one would be suppression of all"
        for step in right(twin, *args):
            turns.append(id(twin))
            yield step

    monkeypatch.setattr(benchmark, "decode", watched)
    seconds = benchmark.race(model, prompt, 3)
    assert {name: len(each) for name, each in seconds.items()} == dict.fromkeys(benchmark.CONTENDERS, 3)
    assert all(len(set(turns[i : i + 6])) == 6 for i in (0, 6, 12)), "each once before any again"
    assert model.config.text_config._attn_implementation == "sdpa"
