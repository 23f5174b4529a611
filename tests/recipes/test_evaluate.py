"""recipes/evaluate.py --metrics chair pope, as a user runs it, on a tiny model."""

import json
import sys

from tests.recipes.test_caption import ROOT, run


def test_hallucination_is_measured_by_captions_and_by_questions_with_heads_suppressed(tiny_folder, tmp_path):
    options = json.dumps({"num_train": 1, "num_eval": 6})
    command = [sys.executable, ROOT / "recipes/evaluate.py", "--model", tiny_folder, "--dataset", "scenes"]
    command += ["--dataset_options", options, "--split", "test", "--num_examples", "5", "--max_new_tokens", "4"]
    command += ["--metrics", "chair", "pope", "--spin", "keep_ratio=0.5", "--batch_size", "3", "--output", "out"]
    said = run(*command, cwd=tmp_path).stdout
    assert "| pope_adversarial_yes_ratio | " in said
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    protocol = figures.pop("protocol")
    assert {"chair_i", "chair_s", "chair_length", "chair_recall", "chair_f1"} <= figures.keys()
    strategies = {name.split("_")[1] for name in figures if name.startswith("pope_")}
    assert strategies == {"random", "popular", "adversarial"} and len(figures) == 6 + 3 * 6
    assert {figures[name]["n"] for name in figures if name.startswith("pope_")} == {10}
    assert protocol["spin"]["keep_ratio"] == 0.5 and protocol["pope"]["pictures"] == 5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "pope.jsonl",
        "predictions.jsonl",
        "contact_sheet.png",
    }
    lines = [json.loads(line) for line in (tmp_path / "out/pope.jsonl").read_text().splitlines()]
    assert len(lines) == 30 and all(line["question"].endswith(" in the picture?") for line in lines)
