"""recipes/evaluate.py on a tiny model: chair and pope as a user runs it, then pairs, an earlier run, a CLIP."""

import importlib.util
import json
import sys

import pytest

from datasets_scripts import load_rows
from tests.metrics.test_clip_score import make_clip
from tests.recipes.test_caption import ROOT, run
from trainers.captioning_evaluation import evaluate_captions
from trainers.scoring import clip_scored, load_metric, score


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


SCENES = {"dataset": "scenes", "split": "test", "dataset_options": json.dumps({"num_train": 1, "num_eval": 6})}


@pytest.fixture(scope="module")
def recipe():
    """recipes/evaluate.py, for runs without another interpreter."""
    spec = importlib.util.spec_from_file_location("recipe_evaluate", ROOT / "recipes/evaluate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipe_evaluate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def evaluate(recipe, tiny_folder, tmp_path):
    """Runs the recipe on the tiny model and scenes; returns figures and protocol."""

    def run_it(output: str, **options) -> tuple[dict, dict]:
        told = {"model": str(tiny_folder), **SCENES, "max_new_tokens": 4, "output": str(tmp_path / output)}
        recipe.main(recipe.Arguments(**told | options))
        figures = json.loads((tmp_path / output / "metrics.json").read_text())
        return figures, figures.pop("protocol")

    return run_it


def test_what_a_model_holds_likelier_is_measured_by_flaw(evaluate, tmp_path, capsys):
    figures, protocol = evaluate("out", metrics=["preference_accuracy"], num_examples=9, batch_size=4)
    assert "| normalised_preference_accuracy_invented_object | " in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    pairs = load_rows("scenes", "test", rows="preference", num_train=1, num_eval=6)
    assert [line["flaw"] for line in lines] == list(pairs["flaw"])[:9]
    assert [line["rejected"] for line in lines] == [row["rejected"][0]["content"] for row in pairs][:9]
    for name, some in {"": lines, "_broken_grammar": [x for x in lines if x["flaw"] == "broken_grammar"]}.items():
        better = [x["chosen_log_probability"] > x["rejected_log_probability"] for x in some]
        ties = [x["chosen_log_probability"] == x["rejected_log_probability"] for x in some]
        right = (sum(better) + sum(ties) / 2) / len(some)
        assert figures[f"preference_accuracy{name}"]["value"] == pytest.approx(right, abs=1e-6)
        assert figures[f"preference_accuracy{name}"]["n"] == len(some)
    assert protocol["dataset"] == "scenes" and protocol["revision"].startswith("sha256:")
    assert protocol["num_examples"] == 9 and protocol["batch_size"] == 4


def test_captions_are_compared_with_an_earlier_runs_and_looked_at_by_a_clip(evaluate, tmp_path):
    clip = make_clip("clip", tmp_path / "clip")
    evaluate("earlier", metrics=["rouge_l"])
    path = tmp_path / "earlier/predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rows = load_rows("scenes", "test", rows="image", num_train=1, num_eval=6)
    lines[0]["prediction"] = rows[0]["references"][0]  # of one picture the truth, which a tiny model does not say
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures, protocol = evaluate(
        "out", metrics=["rouge_l", "clip_score"], clip_model=str(clip), baseline=str(tmp_path / "earlier")
    )
    rate = figures["win_rate"]
    assert (rate["wins"], rate["ties"], rate["losses"], rate["sign_test_p"]) == (0, 5, 1, 1.0)
    assert rate["value"] == pytest.approx(2.5 / 6, abs=1e-6) and figures["win_rate_shuffled"]["n"] == 6
    assert protocol["win_rate"]["judge"].startswith("truth") and "reward_model" not in protocol
    assert protocol["metric_versions"].keys() == {"rouge_l", "clip_score", "win_rate"}

    told = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    pictures = [row["images"][0]["bytes"] for row in rows]
    expected = load_metric("clip_score").compute(
        predictions=[line["prediction"] for line in told],
        references=[line["references"] for line in told],
        images=pictures,
        clip_model=clip,
    )
    for name in ("clip_score", "ref_clip_score"):
        assert figures[name]["value"] == pytest.approx(expected[name], abs=1e-5) and figures[name]["n"] == 6
    assert figures["ref_clip_score"]["value"] != figures["clip_score"]["value"]
    assert protocol["clip_score"]["revision"].startswith("sha256:") and protocol["clip_score"]["model"] == str(clip)
    assert protocol["clip_score"]["truncated"] == expected["clip_score_protocol"]["truncated"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["preference_accuracy", "rouge_l"]}, "preference_accuracy scores no captions"),
        ({"metrics": ["cider", "retrieval"]}, "retrieval scores no captions"),
        ({"metrics": ["preference_accuracy"], "baseline": "x", "spin": []}, "baseline, spin: preference_accuracy"),
        ({"reward_model": "x"}, "reward_model judges between captions"),
        ({"metrics": ["clip_score"]}, "clip_score and clip_model go together; asked for are clip_score by None"),
        ({"metrics": ["win_rate"]}, "win_rate compares with an earlier run; .*--baseline FOLDER"),
    ],
)
def test_what_is_asked_in_vain_is_refused(evaluate, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate("out", **options)
    assert not (tmp_path / "out").exists()


def test_a_clip_that_nothing_asks_for_is_refused(evaluate, tiny_folder):
    with pytest.raises(ValueError, match="asked for are rouge_l by "):
        evaluate("out", metrics=["rouge_l"], clip_model=str(tiny_folder))


@pytest.mark.parametrize("name", ["pope", "clip_score", "preference_accuracy", "win_rate"])
def test_while_training_these_are_refused_by_what_to_run_instead(name):
    with pytest.raises(ValueError, match=f"{name} .*; recipes/evaluate.py --"):
        score([name], ["a"], load_rows("scenes", "test", rows="image", num_train=1, num_eval=1))


def test_clip_score_is_of_one_picture_a_row():
    rows = load_rows("scenes", "test", rows="image", num_train=1, num_eval=3)
    both = rows.map(lambda row, i: {"images": row["images"] * (2 if i == 1 else 1)}, with_indices=True)
    name = rows[1]["image_id"]
    with pytest.raises(ValueError, match=f"of one picture; row {name} has 2"):
        clip_scored(["a"] * 3, both, "no/model")
    with pytest.raises(ValueError, match="of one picture"):  # and before anything is captioned
        evaluate_captions(None, None, both, ["clip_score"], None, {}, clip_model="no/model")
