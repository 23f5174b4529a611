"""recipes/hallucination.py: measured, stopped, gone on with; and how a setting is chosen."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.modeling.test_modeling_spin import make_spin, make_spin_processor
from tests.recipes.test_caption import ROOT, run


sys.path.insert(0, str(ROOT / "recipes"))


@pytest.fixture(scope="module")
def hallucination():
    import hallucination

    return hallucination


def test_every_method_is_measured_and_a_stopped_run_goes_on(tmp_path):
    for seed in (0, 1):
        make_spin(dropout=seed / 10).save_pretrained(tmp_path / f"seed_{seed}")
        make_spin_processor().save_pretrained(tmp_path / f"seed_{seed}")
    settings = ["greedy", "spin keep_ratio=0.5", "vcd alpha=1.0", "pai alpha=0.5 start_layer=0"]
    command = [sys.executable, ROOT / "recipes/hallucination.py", "--models", "seed_0", "seed_1", "--output", "out"]
    command += ["--num_examples", "3", "--max_new_tokens", "3", "--settings", *settings]
    said = run(*command, cwd=tmp_path).stdout
    assert "± " in said and said.count("pai alpha=0.5 start_layer=0") >= 2
    path = tmp_path / "out/results.jsonl"
    whole = path.read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len(rows) == 2 * 2 * 4 and {row["split"] for row in rows} == {"validation", "test"}
    assert {"chair_i", "chair_f1", "pope_yes_ratio", "tokens_per_second", "scene_f1"} <= rows[0].keys()
    assert (tmp_path / "out/plot.png").stat().st_size > 10_000

    path.write_text(whole[:-40])  # as a kill leaves it
    kept = whole[:-40].splitlines()[:-1]
    again = run(*command, cwd=tmp_path)
    assert "1/1" in again.stderr, "only what is missing is measured"
    lines = path.read_text().splitlines()
    assert [line for line in lines if line in kept] == kept and len(lines) >= len(rows)


def test_of_what_costs_little_the_setting_that_invents_least_is_chosen(hallucination):
    figures = {  # chair_i, chair_f1
        "greedy": (0.10, 0.90), "spin a": (0.05, 0.88), "spin b": (0.08, 0.895), "spin c": (0.09, 0.95), "vcd": (0.01, 0.5),
    }  # fmt: skip
    place = {"chair_i": 0, "chair_f1": 1}
    results = SimpleNamespace(of=lambda args, split, setting, name: np.array([figures[setting][place[name]]] * 2))
    args = SimpleNamespace(choose_on="validation")
    chosen = hallucination.choose(results, args, list(figures))
    assert chosen == {"greedy": "greedy", "spin": "spin b"}


def test_intervals_are_students(hallucination):
    mean, half = hallucination.interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and half == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert np.isnan(hallucination.interval(np.array([1.0]))[1])


def test_a_setting_that_there_is_not_is_named(hallucination):
    with pytest.raises(ValueError, match="'opera x': the method is one of greedy, spin, vcd, pai"):
        hallucination.attending(None, "opera x")
