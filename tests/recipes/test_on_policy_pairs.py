"""recipes/on_policy_pairs.py: what a tiny model says, judged by the truth and by a tiny reward model, as pairs."""

import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import HfArgumentParser

from datasets_scripts import load_rows
from modeling import VisionRewardForSequenceClassification
from trainers.captioning_evaluation import generate_captions
from trainers.on_policy_pairs import Judge, own_captions, pairs_of
from trainers.reward_scores import load_reward_model, reward_scores


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes"))
import on_policy_pairs as recipe  # noqa: E402  recipes are scripts, not a package


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    """Where a cache of seven scenes lies, and the folder of a reward model, `judge`."""
    place = tmp_path_factory.mktemp("on_policy")
    judge = VisionRewardForSequenceClassification.from_vlm(str(tiny_folder))
    judge.score.weight.data.normal_()
    judge.save_pretrained(place / "judge")
    for path in tiny_folder.iterdir():
        if path.name not in ("config.json", "model.safetensors", "generation_config.json"):
            (place / "judge" / path.name).write_bytes(path.read_bytes())
    return place


def told(place, tiny_folder, output, **changes):
    options = {"num_train": 7, "num_eval": 2, "cache_dir": str(place / "cache")}
    settings = {"model": str(tiny_folder), "judge": str(place / "judge"), "samples": 3, "max_new_tokens": 6}
    return recipe.Recipe(**settings | {"output": str(output), "dataset_options": options} | changes)


def scenes(place):
    return load_rows("scenes", "train", rows="image", num_train=7, num_eval=2, cache_dir=str(place / "cache"))


def written(folder):
    """Every row of the folder's files, in their order."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in Dataset.from_parquet(str(path)).to_list()]


# ---- pairs


def row(name):
    return {"image_id": name, "images": [{"bytes": name.encode(), "path": None}], "prompt": [{"role": "user"}]}


def sides(said, scores):
    (pair,) = pairs_of([row("a")], [said], [scores])
    return pair["chosen"][0]["content"], pair["rejected"][0]["content"]


def test_the_best_caption_is_chosen_and_the_worse_one_rejected_whose_words_are_most_alike():
    said, scores = ["a green boat", "a star", "there is a blue star", "there is a red star"], [0.0, 0.5, 1.0, 0.5]
    (pair,) = pairs_of([row("a")], [said], [scores])
    assert pair["chosen"] == [{"role": "assistant", "content": "there is a blue star"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "there is a red star"}]
    assert (pair["chosen_score"], pair["rejected_score"]) == (1.0, 0.5)
    assert (pair["captions"], pair["scores"], pair["image_id"]) == (said, scores, "a")
    assert pair["images"] == [{"bytes": b"a", "path": None}]


def test_of_equally_good_captions_that_is_chosen_which_is_most_like_a_worse_one():
    said = ["a red star", "there is one blue star", "a blue star", "one star and it is blue"]
    assert sides(said, [0.0, 1.0, 1.0, 1.0]) == ("a blue star", "a red star")
    assert sides(["x", "y", "z", "u"], [1.0, 1.0, 0.0, 0.0]) == ("x", "z")  # and of equally like ones the first


def test_pairs_that_are_less_alike_than_asked_for_are_left_out():
    said, scores = [["a blue star", "a red star"]], [[1.0, 0.0]]  # two words of three, in each
    assert len(pairs_of([row("a")], said, scores, least_alike=0.6)) == 1
    assert pairs_of([row("a")], said, scores, least_alike=0.7) == []


def test_equally_good_captions_unread_pictures_and_captions_without_words_make_no_pair():
    rows = [row(name) for name in "abcd"]
    said = [["x", "y"], [], ["", "z"], ["", "good", "bad"]]
    pairs = pairs_of(rows, said, [[0.5, 0.5], [], [0.0, 1.0], [-1.0, 1.0, 0.5]])
    assert [(one["image_id"], one["rejected"][0]["content"]) for one in pairs] == [("d", "bad")]


def test_a_picture_on_disk_travels_with_its_pair(tmp_path):
    (tmp_path / "a.png").write_bytes(b"pixels")
    there = row("a") | {"images": [{"bytes": None, "path": str(tmp_path / "a.png")}]}
    (pair,) = pairs_of([there], [["x", "y"]], [[0.0, 1.0]])
    assert pair["images"] == [{"bytes": b"pixels", "path": None}]


def test_the_truth_judges_each_caption_by_its_own_scene(place):
    rows = scenes(place).take(3)
    right = [", ".join(region["phrase"] for region in regions) for regions in rows["regions"]]
    one = rows["regions"][2][0]["phrase"]
    count = len(rows["regions"][2])
    scores = Judge("scene_f1", rows).scores(rows, [[right[0], "nothing"], [], [one, right[2]]])
    assert scores == [[1.0, 0.0], [], [pytest.approx(2 / (1 + count)), 1.0]]
    assert count > 1


def test_the_truth_cannot_judge_what_is_not_a_scene():
    unknown = Dataset.from_list([{"image_id": "a", "references": ["x"]}])
    with pytest.raises(ValueError, match="regions"):
        Judge("scene_f1", unknown)


# ---- captions


@pytest.fixture(scope="module")
def speaker(tiny_folder):
    return recipe.AutoModelForImageTextToText.from_pretrained(tiny_folder).eval(), recipe.AutoProcessor.from_pretrained(
        tiny_folder
    )


def test_the_greedy_caption_comes_first_and_samples_follow_the_seed(place, speaker):
    rows, how = scenes(place).take(3), {"max_new_tokens": 6}
    first, again = (own_captions(*speaker, rows, 4, **how) for _ in range(2))
    other = own_captions(*speaker, rows, 4, seed=1, **how)
    assert [some[0] for some in first] == generate_captions(*speaker, rows, do_sample=False, progress=False, **how)
    assert [len(some) for some in first] == [5, 5, 5]
    assert first == again and first != other
    assert len({tuple(some[1:]) for some in first}) == 3  # each row's own samples


def test_a_row_whose_picture_cannot_be_read_has_no_captions_and_moves_no_other(place, speaker):
    rows, how = scenes(place).take(3), {"max_new_tokens": 6}
    lost = [
        one | ({"images": [{"bytes": b"no picture", "path": None}]} if i == 1 else {}) for i, one in enumerate(rows)
    ]
    captions = own_captions(*speaker, Dataset.from_list(lost, rows.features), 2, **how)
    assert [len(some) for some in captions] == [3, 0, 3]
    assert captions[2][0] == generate_captions(*speaker, rows, do_sample=False, progress=False, **how)[2]


# ---- the whole way


def test_a_reward_model_judges_and_the_folder_is_read_as_preference_rows(place, tiny_folder, tmp_path):
    recipe.main(told(place, tiny_folder, tmp_path / "pairs", num_examples=5))
    rows = written(tmp_path / "pairs")
    read = load_rows(str(tmp_path / "pairs"), "train", rows="preference")
    assert read["image_id"] == [row["image_id"] for row in rows] and len(rows) >= 3
    assert {"images", "prompt", "chosen", "rejected", "image_id", "flaw"} == set(read.column_names)
    seen = {row["image_id"]: row for row in scenes(place).take(5)}
    model, processor = load_reward_model(place / "judge")
    for one, there in zip(rows, read, strict=True):
        assert there["images"][0]["bytes"] == seen[one["image_id"]]["images"][0]["bytes"]
        rewards = reward_scores(
            model, [seen[one["image_id"]]] * 4, one["captions"], processor=processor, progress=False
        )
        assert one["scores"] == pytest.approx(rewards, abs=1e-4)
        assert (one["chosen_score"], one["rejected_score"] < max(one["scores"])) == (max(one["scores"]), True)
        assert there["chosen"][0]["content"] == one["captions"][one["scores"].index(max(one["scores"]))]


def test_a_killed_run_goes_on_and_leaves_the_pairs_it_would_have_left(place, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SHARD", 3)
    recipe.main(told(place, tiny_folder, tmp_path / "whole"))
    calls, whole = [], recipe.pairs_of

    def killed(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(recipe, "pairs_of", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(told(place, tiny_folder, tmp_path / "killed"))
    first = tmp_path / "killed/train-00000-of-00003.parquet"
    half = tmp_path / "killed/train-00001-of-00003.parquet.17.tmp"
    half.write_bytes(b"half")
    stamp = first.stat().st_mtime_ns
    recipe.main(told(place, tiny_folder, tmp_path / "killed"))
    assert len(calls) == 4 and first.stat().st_mtime_ns == stamp and not half.exists()
    assert written(tmp_path / "killed") == written(tmp_path / "whole") != []
    assert {path.name for path in (tmp_path / "killed").glob("*.parquet")} == {
        f"train-0000{i}-of-00003.parquet" for i in range(3)
    }


def test_pairs_made_otherwise_are_not_mixed_with_those_of_a_folder(place, tiny_folder, tmp_path):
    recipe.main(told(place, tiny_folder, tmp_path, num_examples=2))
    with pytest.raises(ValueError, match="differs in count, num_examples, pictures, temperature; write elsewhere"):
        recipe.main(told(place, tiny_folder, tmp_path, temperature=0.5, num_examples=3))


@pytest.mark.parametrize("name, value", [("samples", 0), ("num_examples", 0), ("batch_size", 0), ("temperature", 0.0)])
def test_a_number_that_makes_no_pair_is_refused_by_name(name, value):
    words = ["--model", "m", "--output", "o", f"--{name}", str(value)]
    with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
        HfArgumentParser(recipe.Recipe).parse_args_into_dataclasses(words)
