"""recipes/score_regions.py, on runs written by hand about scenes whose truth is known."""

import json
import sys
from pathlib import Path

import pytest

from datasets_scripts import load_rows
from grounding.shards import shard_path
from trainers.run_folder import read_json, write_json, write_jsonl


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes"))
from score_regions import Arguments, main  # noqa: E402  recipes are scripts, not a package


OPTIONS = {"num_train": 6, "num_eval": 2}


@pytest.fixture
def run(tmp_path):
    """Each scene's objects found, believed with 0.9; its first object a second time under a wrong name, 0.2, rejected."""
    rows = load_rows("scenes", "train", rows="image", **OPTIONS)
    records = []
    for row in rows:
        common = {"image_id": row["image_id"]}
        records.append({"kind": "caption", **common, "reason": ""})
        for region in row["regions"]:
            told = {"box": region["box"], "phrase": region["phrase"], "detector_score": 0.8, "clip_score": 0.9}
            records.append({"kind": "region", **common, **told, "reason": ""})
        wrong = {"box": row["regions"][0]["box"], "phrase": "a submarine", "detector_score": 0.5, "clip_score": 0.2}
        records.append({"kind": "region", **common, **wrong, "reason": "picture and words do not agree"})
        records.append({"kind": "region", **common, **wrong, "clip_score": None, "reason": "too small"})
    write_jsonl(shard_path(tmp_path, 0, 1), records)
    told = {
        "dataset": "scenes",
        "split": "train",
        "dataset_options": OPTIONS,
        "clip_threshold": 0.5,
        "clip_percentile": None,
    }
    write_json(tmp_path / "augmentation.json", told)
    return tmp_path, rows


def test_figures_and_curve_by_hand(run, capsys):
    folder, rows = run
    main(Arguments(str(folder)))
    figures = read_json(folder / "scores/metrics.json")
    true = sum(len(row["regions"]) for row in rows)
    assert figures["grounding_precision"]["value"] == pytest.approx(true / (true + 6), abs=1e-6)
    assert figures["grounding_precision"]["n"] == true + 6 and figures["grounding_recall"]["value"] == 1
    assert figures["kept_precision"] == {"value": 1.0, "ci95": [1.0, 1.0], "n": true}
    assert figures["precision_gain"]["value"] == pytest.approx(6 / (true + 6), abs=1e-6)
    assert figures["precision_gain"]["ci95"][0] > 0
    curves = json.loads((folder / "scores/curve.json").read_text())
    by_belief = {point["threshold"]: point["precision"] for point in curves["clip_score"]}
    assert by_belief == {0.2: pytest.approx(true / (true + 6)), 0.9: 1.0}
    assert (folder / "scores/curve.png").read_bytes().startswith(b"\x89PNG")
    assert "kept_precision" in capsys.readouterr().out


def test_pictures_that_are_not_among_the_rows_are_refused(run):
    folder, _ = run
    told = read_json(folder / "augmentation.json")
    write_json(folder / "augmentation.json", told | {"dataset_options": {"num_train": 3, "num_eval": 2}})
    with pytest.raises(ValueError, match="3 pictures of .* are not among the 3 rows of scenes, train"):
        main(Arguments(str(folder)))
