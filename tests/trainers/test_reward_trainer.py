"""RewardTrainer: the loss by hand, what a batch holds, what is skipped, logged and judged; and captions chosen by reward."""

import math

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from torch import nn
from torch.testing import assert_close

from datasets_scripts import load_rows
from datasets_scripts.canonical import CAPTION_FEATURES
from modeling import VisionRewardForSequenceClassification
from tests.conftest import make_ossight, make_processor, picture
from trainers import reward_evaluation
from trainers.captioning_evaluation import generate_captions
from trainers.reward_config import RewardConfig
from trainers.reward_data import AnswerCollator, PreferenceCollator
from trainers.reward_evaluation import best_of_figures, evaluate_preferences, judge_pairs
from trainers.reward_scores import best_of, reward_scores
from trainers.reward_trainer import RewardTrainer, preference_loss
from trainers.run_folder import read_json, read_jsonl


TURNS = CAPTION_FEATURES["prompt"]
FEATURES = Features(
    {"images": List(Image(decode=False)), "prompt": TURNS, "chosen": TURNS, "rejected": TURNS}
    | {"image_id": Value("string"), "flaw": Value("string")}
)
COLOURS = ("red", "blue", "green")


def says(words):
    return [{"role": "assistant", "content": words}]


def one(i, chosen=None, rejected=None, path=None):
    """Every picture has its colour word; the other side names the next."""
    return {
        "images": [{"path": path, "bytes": None}] if path else [picture(i % 3)],
        "prompt": [{"role": "user", "content": "what colour is it"}],
        "chosen": says(COLOURS[i % 3] if chosen is None else chosen),
        "rejected": says(COLOURS[(i + 1) % 3] if rejected is None else rejected),
        "image_id": str(i),
        "flaw": ("colour", "hue")[i % 2],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny reward model as a user would have it on disk."""
    folder = tmp_path_factory.mktemp("tiny_reward")
    make_ossight().save_pretrained(folder / "vlm")
    torch.manual_seed(0)
    VisionRewardForSequenceClassification.from_vlm(str(folder / "vlm")).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def reward(folder):
    return VisionRewardForSequenceClassification.from_pretrained(folder)


@pytest.fixture
def rows(tmp_path):
    listed = [one(i) for i in range(12)]
    for i, row in enumerate(listed):
        row["images"][0].save(tmp_path / f"{i}.png")
        row["images"] = [{"path": str(tmp_path / f"{i}.png"), "bytes": None}]
    return Dataset.from_list(listed, features=FEATURES)


@pytest.fixture
def spoilt(rows, tmp_path):
    """Rows 1 (unreadable), 3 (nothing chosen), 6 (equal sides) and 8 (nothing rejected) are of no use."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    listed = list(rows)
    listed[1]["images"] = [{"path": str(tmp_path / "broken.png"), "bytes": None}]
    listed[3]["chosen"], listed[6]["chosen"], listed[8]["rejected"] = says(" "), says("blue "), says("")
    return Dataset.from_list(listed, features=FEATURES)


def trainer(model, rows, output_dir, **args):
    defaults = {
        "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True, "logging_steps": 1,
        "save_strategy": "no", "seed": 0, "disable_tqdm": True,
    }  # fmt: skip
    config = RewardConfig(output_dir=str(output_dir), **(defaults | args))
    return RewardTrainer(model, config, make_processor(), train_dataset=rows, eval_dataset=rows)


def rewards_of(model, batch):
    return model(**{k: v for k, v in batch.items() if k not in ("labels", "margin", "row", "skipped")}).logits[:, 0]


def test_the_loss_of_a_pair_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    by_hand = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))]
    assert_close(preference_loss(chosen, rejected), torch.tensor(by_hand))
    by_hand = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(1))]  # ahead by 1 - 0.5, and by -2 + 1
    assert_close(preference_loss(chosen, rejected, torch.tensor([0.5, -1.0])), torch.tensor(by_hand))
    by_hand = [math.log(1 + math.exp(-1)) + 0.1 * 1, math.log(1 + math.exp(2)) + 0.1 * 4]
    assert_close(preference_loss(chosen, rejected, center_rewards_coefficient=0.1), torch.tensor(by_hand))
    assert preference_loss(chosen.half(), rejected.half()).dtype == torch.float32


def test_a_batch_is_all_chosen_answers_then_all_rejected_ones_with_the_pictures_once():
    processor = make_processor()
    listed = [one(0), one(1, rejected="a red b") | {"margin": 0.5}]
    batch = PreferenceCollator(processor)(listed)
    prompt = "USER: " + "<image> " * 16 + "what colour is it ASSISTANT: "
    said = ["red </s>", "blue </s>", "blue </s>", "a red b </s>"]
    for ids, mask, answer in zip(batch["input_ids"], batch["attention_mask"], said, strict=True):
        expected = processor.tokenizer(prompt + answer)["input_ids"]
        assert ids[mask.bool()].tolist() == expected and mask.tolist()[: len(expected)] == [1] * len(expected)
    assert batch["pixel_values"].shape == (2, 3, 16, 16) and batch["answers"] == 2
    assert batch["margin"].tolist() == [0.0, 0.5] and batch["labels"].tolist() == [1, 1]
    assert batch["row"] == ["0 (colour)", "1 (hue)"] and "skipped" not in batch


def test_what_a_processor_says_of_each_token_reaches_over_the_answer(monkeypatch):
    processor = make_processor()
    read = AnswerCollator._read

    def with_types(self, prompts, seen):
        out = read(self, prompts, seen)
        return {**out, "token_type_ids": [[1] * len(ids) for ids in out["input_ids"]]}

    monkeypatch.setattr(AnswerCollator, "_read", with_types)
    batch = PreferenceCollator(processor)([one(0, rejected="a red b")])
    length = batch["attention_mask"][0].sum() - 2  # less "red </s>"
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    assert batch["token_type_ids"].sum(1).tolist() == [length, length]


def test_a_row_that_cannot_be_used_is_named_and_counts_nothing(reward, spoilt, tmp_path):
    collator = PreferenceCollator(make_processor(), max_length=30)
    listed = list(spoilt) + [one(12, rejected="a b c d e f g a b c d e f g")]
    batch = collator(listed)
    told = {row["image_id"]: row["problem"] for row in batch["skipped"]}
    assert "broken.png" in told.pop("1")
    assert told == {
        "3": "the chosen side is empty", "6": "both sides say the same", "8": "the rejected side is empty",
        "12": "37 tokens, over 30",
    }  # fmt: skip
    assert [i for i, label in enumerate(batch["labels"].tolist()) if label == -100] == [1, 3, 6, 8, 12]
    good = collator([row for i, row in enumerate(listed) if i not in (1, 3, 6, 8, 12)])
    run = trainer(reward, spoilt, tmp_path)
    assert_close(run.compute_loss(reward, dict(batch)), run.compute_loss(reward, dict(good)))
    chosen, rejected = rewards_of(reward, good).chunk(2)
    assert_close(run.compute_loss(reward, dict(good)), preference_loss(chosen, rejected).mean())
    with pytest.raises(ValueError, match="row 3: the chosen side is empty"):
        PreferenceCollator(make_processor(), strict=True)(listed[2:4])


def test_training_goes_on_without_rows_that_cannot_be_used_and_logs_by_trl_s_names(reward, spoilt, tmp_path):
    run = trainer(reward, spoilt, tmp_path / "run", max_steps=6, eval_strategy="steps", eval_steps=6)
    run.train()
    run.save_log()
    steps = [entry for entry in run.state.log_history if "loss" in entry]
    assert steps[-1]["skipped"] == 4 and len(read_jsonl(tmp_path / "run/skipped.jsonl")) == 4
    for entry in steps:
        assert {"accuracy", "margin", "mean_reward", "min_reward", "max_reward"} <= entry.keys()
        assert entry["min_reward"] <= entry["mean_reward"] <= entry["max_reward"]
    (judged,) = [entry for entry in run.state.log_history if "eval_accuracy" in entry]
    assert {"eval_loss", "eval_margin", "eval_accuracy_colour", "eval_accuracy_hue"} <= judged.keys()
    assert (tmp_path / "run/loss.png").exists() and (tmp_path / "run/train_log.jsonl").exists()


def test_what_is_logged_is_of_the_pairs_trained_on(reward, rows, tmp_path):
    chosen, rejected = rewards_of(reward, PreferenceCollator(make_processor())(list(rows))).chunk(2)
    run = trainer(reward, rows, tmp_path, max_steps=1, per_device_train_batch_size=12)
    run.train()
    logged = run.state.log_history[0]
    assert_close(logged["accuracy"], (chosen > rejected).float().mean().item(), atol=1e-5, rtol=0)
    assert_close(logged["margin"], (chosen - rejected).mean().item(), atol=1e-5, rtol=0)
    assert_close(logged["max_reward"], max(chosen.max(), rejected.max()).item(), atol=1e-5, rtol=0)
    assert_close(float(logged["loss"]), preference_loss(chosen, rejected).mean().item(), atol=1e-3, rtol=0)


def test_it_learns_which_answer_belongs_to_a_picture(reward, rows, tmp_path):
    run = trainer(reward, rows, tmp_path, max_steps=25, learning_rate=1e-2, center_rewards_coefficient=0.01)
    run.train()
    judged, _ = judge_pairs(run.model, run.data_collator, rows, 5, progress=False)
    assert all(pair["chosen"] > pair["rejected"] for pair in judged)


def test_accumulated_batches_with_unequal_numbers_of_usable_pairs_equal_one(folder, spoilt, tmp_path):
    def weights(name, **args):
        model = VisionRewardForSequenceClassification.from_pretrained(folder)
        run = trainer(model, spoilt, tmp_path / name, max_grad_norm=0.0, optim="sgd", learning_rate=0.1, **args)
        run.train()
        return run.model.state_dict()

    whole = weights("a", per_device_train_batch_size=6)
    parts = weights("b", per_device_train_batch_size=2, gradient_accumulation_steps=3)
    start = VisionRewardForSequenceClassification.from_pretrained(folder).state_dict()
    assert not torch.allclose(whole["score.weight"], start["score.weight"])
    for name in whole:
        assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)


def test_a_step_in_which_nothing_can_be_used_changes_nothing(reward, spoilt, tmp_path):
    before = {name: weight.clone() for name, weight in reward.state_dict().items()}
    run = trainer(reward, spoilt.select([1, 3, 6, 8]), tmp_path, optim="sgd", learning_rate=1.0, weight_decay=0.0)
    run.train()
    assert_close(dict(run.model.state_dict()), before, rtol=0, atol=0)


def test_a_loss_that_is_no_number_stops_with_the_rows_named(reward, rows, tmp_path):
    hook = lambda module, args, out: out.index_fill(0, torch.tensor([1]), math.nan)  # noqa: E731  the second chosen answer
    reward.score.register_forward_hook(hook)
    collator = PreferenceCollator(make_processor())
    with pytest.raises(ValueError, match=r"the loss of 4 \(colour\) is not finite"):
        trainer(reward, rows, tmp_path).compute_loss(reward, collator([rows[3], rows[4], rows[5]]))
    with pytest.raises(ValueError, match=r"the reward of 1 \(hue\) is not finite"):
        judge_pairs(reward, collator, rows, 50, progress=False)


def test_dropout_is_off_unless_it_is_wanted(reward, rows, tmp_path):
    reward.model.language_model.extra = nn.Dropout(0.5)
    trainer(reward, rows, tmp_path, disable_dropout=False)
    assert reward.model.language_model.extra.p == 0.5
    trainer(reward, rows, tmp_path)
    assert reward.model.language_model.extra.p == 0.0


def test_a_checkpoint_of_another_model_is_not_gone_on_with(reward, rows, tmp_path):
    run = trainer(reward, rows, tmp_path)
    with pytest.raises(ValueError, match="the checkpoint is of another model: score.weight"):
        run._issue_warnings_after_load(reward.load_state_dict({}, strict=False).__class__(["score.weight"], []))


def test_pairs_are_judged_by_flaw_and_blind_and_written_down(reward, spoilt, tmp_path):
    collator = PreferenceCollator(make_processor())
    figures = evaluate_preferences(reward, collator, spoilt, tmp_path, {"split": "test"}, 5, blind_control=True)
    used = [row for i, row in enumerate(spoilt) if i not in (1, 3, 6, 8)]
    chosen, rejected = rewards_of(reward, collator(used)).chunk(2)
    right = (chosen > rejected).tolist()
    assert figures["preference_accuracy"]["value"] == round(sum(right) / 8, 6)
    hue = [ok for ok, row in zip(right, used, strict=True) if row["flaw"] == "hue"]
    assert figures["preference_accuracy_hue"] | {"ci95": 0} == {"value": round(sum(hue) / 4, 6), "ci95": 0, "n": 4}
    assert_close(figures["preference_margin"]["value"], (chosen - rejected).mean().item(), atol=1e-5, rtol=0)
    shifted = [row | {"images": spoilt[(i + 6) % 12]["images"]} for i, row in enumerate(spoilt)]
    kept = [row for i, row in enumerate(shifted) if i not in (3, 6, 7, 8)]  # row 7 is shown row 1's picture
    chosen, rejected = rewards_of(reward, collator(kept)).chunk(2)
    assert figures["blind_preference_accuracy"]["value"] == round((chosen > rejected).float().mean().item(), 6)
    written = read_jsonl(tmp_path / "predictions.jsonl")
    assert len(written) == 8 and written[0]["chosen"] == "red" and written[0]["flaw"] == "colour"
    protocol = read_json(tmp_path / "metrics.json")["protocol"]
    assert protocol["num_pairs"] == 8 and len(protocol["skipped"]) == 4 and protocol["split"] == "test"
    assert (tmp_path / "contact_sheet.png").exists()
    with pytest.raises(ValueError, match="none of the 1 pairs can be used; the first: both sides say the same"):
        evaluate_preferences(reward, collator, spoilt.select([6]), tmp_path, {}, 5)


def test_scores_of_captions_are_those_of_pairs(reward, folder, rows):
    chosen = [row["chosen"][0]["content"] for row in rows]
    expected = rewards_of(reward, PreferenceCollator(make_processor())(list(rows))).chunk(2)[0]
    assert_close(torch.tensor(reward_scores(folder, rows, chosen, 5)), expected, rtol=1e-4, atol=1e-5)
    assert_close(torch.tensor(reward_scores(reward, rows, chosen, 50)), expected, rtol=1e-4, atol=1e-5)
    assert math.isfinite(reward_scores(reward, rows.select([0]), [""], 1)[0])
    with pytest.raises(ValueError, match="12 rows, but 11 captions"):
        reward_scores(reward, rows, chosen[1:], 5)


def test_of_several_captions_the_first_is_the_greedy_one_and_samples_depend_on_the_row_alone(reward, rows):
    captioner, processor = make_ossight(), make_processor()
    how = {"temperature": 3.0, "batch_size": 4, "progress": False, "do_sample": False, "max_new_tokens": 4}
    asked = captioner, processor, reward, processor
    found = best_of(*asked, rows.select(range(3)), 4, seed=7, **how)
    greedy = generate_captions(captioner, processor, rows.select(range(3)), **{"max_new_tokens": 4, "do_sample": False})
    assert [captions[0] for captions, _ in found] == greedy
    for row, (captions, rewards) in zip(rows, found, strict=False):
        assert len(captions) == len(rewards) == 5 and len(set(captions)) > 2
        assert_close(rewards, reward_scores(reward, [row] * 5, captions, 4), rtol=1e-4, atol=1e-5)
    assert best_of(*asked, rows.select([2]), 4, seed=7, **how)[0][0] == found[2][0]
    assert best_of(*asked, rows.select([2]), 4, seed=8, **how)[0][0] != found[2][0]
    assert found[0][0][1:] != best_of(*asked, [rows[0] | {"image_id": "other"}], 4, seed=7, **how)[0][0][1:]
    with pytest.raises(ValueError, match="the best of 0 captions"):
        best_of(*asked, rows, 0, **how)


def test_the_gain_of_the_best_caption_is_what_the_truth_says(monkeypatch):
    """Two scenes: of the first the reward finds a better caption than the greedy one, of the second a worse one."""
    scenes = load_rows("scenes", "test", rows="image", num_train=1, num_eval=2)
    right = [row["references"][0] for row in scenes]
    found = [(["a purple cross", right[0], "none"], [0.1, 0.9, 0.2]), ([right[1], right[1], "none"], [0.0, -1.0, 0.5])]
    monkeypatch.setattr(reward_evaluation, "best_of", lambda rows, count, **how: found)
    figures = best_of_figures(scenes, 2)
    assert figures["greedy_scene_f1"]["value"] < 1 and figures["oracle_of_2_scene_f1"]["value"] == 1
    assert figures["sample_scene_f1"]["value"] == 1
    assert figures["best_of_2_gain_over_greedy"]["value"] == 0  # + 1 and - 1
    assert figures["best_of_2_gain_over_sample"]["value"] == 0  # + 1/2 and - 1/2
    found[1] = found[1][0], [0.0, 1.0, 0.5]
    assert best_of_figures(scenes, 2)["best_of_2_gain_over_greedy"]["value"] == 0.5
    assert best_of_figures(scenes, 2)["best_of_2_scene_f1"]["value"] == 1
