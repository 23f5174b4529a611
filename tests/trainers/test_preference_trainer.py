"""PreferenceTrainer: the losses by hand, the schedule, a batch, pairs that cannot be used, resuming, several processes."""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from torch.testing import assert_close

from datasets_scripts.canonical import turns
from modeling.contrastive_losses import info_nce
from tests.conftest import ROOT, picture
from tests.modeling.test_modeling_contrastive_gpt2 import make_contrastive_gpt2, make_contrastive_processor
from trainers.preference_config import PreferenceConfig
from trainers.preference_data import PairCollator
from trainers.preference_losses import alpha_at, bradley_terry_loss
from trainers.preference_trainer import PreferenceTrainer
from trainers.vision_features import cache_vision_features


SAID = [("it is red", "it is blue"), ("green", "a b c"), ("what colour is it", "it"), ("red blue", "blue red")]
_TURNS = List({"role": Value("string"), "content": Value("string")})
FEATURES = Features(
    {"images": List(ImageFeature(decode=False)), "prompt": _TURNS, "chosen": _TURNS, "rejected": _TURNS}
    | {"image_id": Value("string"), "flaw": Value("string")}
)


def pair(number: int, chosen: str, rejected: str, image=None) -> dict:
    asked = turns("what", chosen)
    return {
        "images": [picture(number) if image is None else image], "prompt": asked["prompt"], "chosen": asked["completion"],
        "rejected": turns("", rejected)["completion"], "image_id": str(number), "flaw": ["order", "words"][number % 2],
    }  # fmt: skip


def pairs() -> list[dict]:
    """Four pairs; the last two are about one picture."""
    rows = [pair(i, *said) for i, said in enumerate(SAID)]
    rows[3]["images"] = rows[2]["images"]
    return rows


def dataset(rows: list[dict] | None = None) -> Dataset:
    rows = rows or pairs()
    return Dataset.from_list([row | {"images": [_bytes(p) for p in row["images"]]} for row in rows], features=FEATURES)


def _bytes(image) -> dict:
    from io import BytesIO

    if isinstance(image, dict):
        return image
    buffer = BytesIO()
    image.save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def trainer_of(model, tmp_path, train=None, held_out=None, features=None, ref_model=None, **settings):
    settings = {
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "logging_steps": 1,
    } | settings
    args = PreferenceConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, **settings)
    return PreferenceTrainer(
        model, ref_model, args, make_contrastive_processor(), features, train_dataset=train, eval_dataset=held_out
    )


def test_bradley_terry_by_hand():
    losses = bradley_terry_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]), 0.1)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-0.9)), math.log(1 + math.exp(3.1))], rel=1e-6)


def test_alpha_is_linear_in_optimiser_steps():
    assert [round(alpha_at(step, 5, 0.7, 0.3), 6) for step in range(7)] == [0.7, 0.6, 0.5, 0.4, 0.3, 0.3, 0.3]
    assert alpha_at(0, 1, 0.7, 0.3) == 0.7


def test_a_batch_is_chosen_sides_then_rejected_ones_and_pictures_once():
    batch = PairCollator(make_contrastive_processor())(pairs())
    assert batch["input_ids"].shape[0] == 8 and batch["pixel_values"].shape[0] == 4 and batch["image_repeats"] == 2
    # "</s>" is 1: USER: <image>x4 what ASSISTANT: | it is red </s>
    learned = [row[row != -100].tolist() for row in batch["labels"]]
    words = make_contrastive_processor().tokenizer
    assert learned[0] == words("it is red")["input_ids"] + [1] and learned[4] == words("it is blue")["input_ids"] + [1]
    assert batch["text_input_ids"][0].tolist()[:4] == learned[0]
    keys = batch["image_key"].tolist()
    assert keys[2] == keys[3] and len(set(keys)) == 3 and len(set(batch["text_key"].tolist())) == 4


@pytest.mark.parametrize("loss_type", ["bradley_terry", "dpo"])
def test_loss_and_gradients_are_those_by_hand(loss_type, tmp_path):
    model = make_contrastive_gpt2()
    before = copy.deepcopy(model)
    with torch.no_grad():
        before.lm_head.weight.add_(0.05 * torch.randn(before.lm_head.weight.shape))
    plain = copy.deepcopy(model).train()
    batch = PairCollator(make_contrastive_processor())(pairs())

    def logps(net, sides):  # one side at a time, one row at a time, from whole logits
        out = []
        for row in sides:
            one = {k: batch[k][row : row + 1] for k in ("input_ids", "attention_mask")}
            logits = net(**one, pixel_values=batch["pixel_values"][row % 4 : row % 4 + 1]).logits[0].log_softmax(-1)
            labels = batch["labels"][row]
            out.append(torch.stack([logits[t - 1, i] for t, i in enumerate(labels.tolist()) if i != -100]))
        return out

    chosen, rejected = logps(plain, range(4)), logps(plain, range(4, 8))
    if loss_type == "dpo":
        with torch.no_grad():
            held = logps(before, range(4)), logps(before, range(4, 8))
        ahead = [(a.sum() - c.sum()) - (b.sum() - d.sum()) for a, b, c, d in zip(chosen, rejected, *held, strict=True)]
    else:
        ahead = [a.mean() - b.mean() for a, b in zip(chosen, rejected, strict=True)]
    preference = torch.stack([-torch.nn.functional.logsigmoid(0.1 * one - 0.1) for one in ahead]).mean()
    seen = plain.get_image_features(batch["pixel_values"]).pooler_output
    read = plain.get_text_features(batch["text_input_ids"], batch["text_attention_mask"]).pooler_output
    same_picture = torch.eye(4, dtype=torch.bool)
    same_picture[2, 3] = same_picture[3, 2] = True
    contrastive = info_nce(seen @ read.T / 0.07, same_picture)
    caption = -torch.cat(chosen).mean()
    expected = 0.7 * contrastive + 0.3 * preference + 0.5 * caption
    expected.backward()

    ref_model = before if loss_type == "dpo" else None
    trainer = trainer_of(model, tmp_path, ref_model=ref_model, loss_type=loss_type, caption_weight=0.5)
    trainer.state.max_steps = 5
    got = trainer.compute_loss(model.train(), dict(batch))
    got.backward()
    assert_close(got.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    for (name, one), (_, other) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        if other.grad is not None:
            assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    logged = {name: values[0].item() for name, values in trainer._logged.items()}
    assert logged["alpha"] == pytest.approx(0.7) and logged["contrastive_loss"] == pytest.approx(
        contrastive.item(), rel=1e-5
    )
    assert logged["rewards/accuracies"] == pytest.approx(sum(one.item() > 0 for one in ahead) / 4)


def test_pairs_that_cannot_be_used_are_named_and_change_nothing(tmp_path):
    model = make_contrastive_gpt2()
    good = PairCollator(make_contrastive_processor())(pairs()[:2])
    bad = [
        pair(5, "red", "blue", {"bytes": b"no picture", "path": None}), pair(6, "red", " "), pair(7, "red", "red"),
    ]  # fmt: skip
    mixed = PairCollator(make_contrastive_processor())([*pairs()[:2], *bad])
    problems = " | ".join(f"{one['image_id']} ({one['flaw']}): {one['problem']}" for one in mixed["skipped"])
    assert "5 (words): " in problems and "6 (order): the rejected side is empty" in problems
    assert "7 (words): both sides say the same" in problems
    losses = []
    for batch in (good, mixed):
        trainer = trainer_of(model, tmp_path, caption_weight=0.5)
        losses.append(trainer.compute_loss(model.eval(), dict(batch)).detach())
    assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_sides_of_very_different_length_are_compared_a_token(tmp_path):
    long = pair(1, "red", "it is red blue green " * 8)
    model = make_contrastive_gpt2().eval()
    trainer = trainer_of(model, tmp_path, alpha_start=0, alpha_end=0)
    loss = trainer.compute_loss(
        model, PairCollator(make_contrastive_processor(), contrasts=False)([long, pair(2, "a", "b")])
    )
    assert torch.isfinite(loss) and loss < 1.5
    skipped = PairCollator(make_contrastive_processor(), max_length=20)([long, pair(2, "a", "b")])["skipped"]
    assert (skipped[0]["image_id"], skipped[0]["flaw"]) == ("1", "words") and "over 20" in skipped[0]["problem"]


def test_pairs_without_pictures_teach_words_and_nothing_to_the_space(tmp_path):
    bare = [row | {"images": []} for row in pairs()]
    with pytest.raises(ValueError, match=r"needs pictures, and 0 \(order\), 1 \(words\), 2 \(order\) has none"):
        PairCollator(make_contrastive_processor())(bare)
    model = make_contrastive_gpt2().eval()
    trainer = trainer_of(model, tmp_path, alpha_start=0, alpha_end=0)
    loss = trainer.compute_loss(model, PairCollator(make_contrastive_processor(), contrasts=False)(bare))
    assert torch.isfinite(loss)


def test_a_loss_that_is_no_number_stops_and_names_its_rows(tmp_path):
    model = make_contrastive_gpt2()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    trainer = trainer_of(model, tmp_path)
    with pytest.raises(ValueError, match=r"the loss of 0 \(order\), 1 \(words\), .* is not finite"):
        trainer.compute_loss(model, PairCollator(make_contrastive_processor())(pairs()))


def test_what_is_logged_has_trls_names_and_every_steps_alpha(tmp_path):
    trainer = trainer_of(make_contrastive_gpt2(), tmp_path, dataset(), dataset(), max_steps=3, eval_strategy="steps",
                         eval_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2)  # fmt: skip
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["alpha"] for entry in steps] == [0.7, 0.5, 0.3]  # of optimiser steps, not of batches
    names = {"contrastive_loss", "preference_loss", "rewards/chosen", "rewards/rejected", "rewards/margins"}
    assert names | {"rewards/accuracies", "logps/chosen", "logps/rejected"} <= steps[0].keys()
    told = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert {"eval_preference_accuracy", "eval_preference_accuracy_order", "eval_rewards/margins"} <= told.keys()
    trainer.save_log()
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_an_evaluation_gives_the_losses_of_training(tmp_path):
    model = make_contrastive_gpt2().eval()
    for settings in ({}, {"loss_type": "dpo"}):
        trainer = trainer_of(model, tmp_path, held_out=dataset(), alpha_start=0, alpha_end=0, **settings)
        batch = PairCollator(make_contrastive_processor(), contrasts=False)(pairs())
        with torch.no_grad():
            expected = trainer.compute_loss(model, batch).item()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_cached_features_train_as_pixels_do(tmp_path):
    weights = []
    for cached in (False, True):
        model, rows, features = make_contrastive_gpt2(), dataset(), None
        model.freeze_towers("vision")
        if cached:
            features, rows = cache_vision_features(model, make_contrastive_processor(), rows, tmp_path / "features")
        trainer_of(model, tmp_path / str(cached), rows, features=features, max_steps=2).train()
        weights.append(model.state_dict())
    for name in weights[0]:
        assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    many = dataset([pair(i, *SAID[i % 4]) for i in range(12)])
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
    whole = trainer_of(make_contrastive_gpt2(), tmp_path / "whole", many, **settings)
    whole.train()
    resumed = trainer_of(make_contrastive_gpt2(), tmp_path / "resumed", many, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for (name, one), (_, other) in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert_close(one, other, rtol=0, atol=0, msg=name)
    alphas = [[e["alpha"] for e in t.state.log_history if "alpha" in e] for t in (whole, resumed)]
    assert alphas[0] == alphas[1] == [0.7, 0.62, 0.54, 0.46, 0.38, 0.3]


TWO = """
import json, sys, torch
sys.path.insert(0, {root!r})
from tests.trainers.test_preference_trainer import *
model = make_contrastive_gpt2()
rows = pairs(); rows[1]["chosen"] = turns("", "")["completion"]  # a pair that cannot be used, in one process
trainer = trainer_of(model, {out!r}, dataset(rows), dataset(), max_steps=2, caption_weight=0.5, per_device_train_batch_size={batch},
                     eval_strategy="steps", eval_steps=2, train_sampling_strategy="sequential", optim="sgd", learning_rate=0.01)
trainer.train()
if trainer.is_world_process_zero():
    log = [{{k: v for k, v in entry.items() if "time" not in k and "second" not in k}} for entry in trainer.state.log_history]
    torch.save({{"weights": model.state_dict(), "log": json.dumps(log)}}, {out!r} + ".pt")
"""


def test_two_processes_learn_what_one_does(tmp_path):
    found = []
    for count, batch in ((1, 4), (2, 2)):
        script = tmp_path / f"run{count}.py"
        script.write_text(TWO.format(root=str(ROOT), out=str(tmp_path / f"out{count}"), batch=batch))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if count == 2 else []
        subprocess.run([sys.executable, *launch, str(script)], check=True, cwd=ROOT, capture_output=True, timeout=300)
        found.append(torch.load(tmp_path / f"out{count}.pt", weights_only=True))
    for name in found[0]["weights"]:
        assert_close(found[0]["weights"][name], found[1]["weights"][name], rtol=1e-4, atol=1e-6, msg=name)
    one, two = (json.loads(some["log"]) for some in found)
    for entry, other in zip(one, two, strict=True):
        for name in ("loss", "contrastive_loss", "preference_loss", "caption_loss", "rewards/margins", "eval_loss"):
            if name in entry:
                assert entry[name] == pytest.approx(other[name], rel=1e-3, abs=2e-4), name


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"loss_type": "ipo"}, "loss_type must be one of bradley_terry, dpo; got 'ipo'"),
        ({"alpha_start": 1.5}, "alpha_start must be between 0 and 1; got 1.5"),
        ({"beta": -1}, "beta must be at least 0; got -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        PreferenceConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
