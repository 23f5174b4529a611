"""CaptioningTrainer: captions scored while it trains, what is logged, and gradients that do not care how a batch is cut."""

import json

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close
from transformers import EarlyStoppingCallback

from datasets_scripts.canonical import CAPTION_FEATURES
from tests.conftest import make_ossight, make_processor, picture
from trainers.captioning_config import CaptioningConfig
from trainers.captioning_trainer import CaptioningTrainer


COLOURS = ("red", "blue", "green")


@pytest.fixture
def rows():
    def one(i):
        said = " ".join([COLOURS[i % 3]] * (1 + i % 2))
        turns = {"prompt": [{"role": "user", "content": "what colour is it"}]}
        turns["completion"] = [{"role": "assistant", "content": said}]
        return {"images": [picture(i % 3)], **turns, "references": [said], "image_id": str(i), "regions": []}

    return Dataset.from_list([one(i) for i in range(24)], features=CAPTION_FEATURES)


def trainer(rows, output_dir, callbacks=(), **args):
    defaults = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True, "logging_steps": 1,
        "save_strategy": "no", "max_new_tokens": 3, "eval_metrics": ["rouge_l"], "seed": 0, "disable_tqdm": True,
    }  # fmt: skip
    model = make_ossight()
    model.generation_config.eos_token_id = 1
    model.freeze_towers()
    config = CaptioningConfig(output_dir=str(output_dir), **(defaults | args))
    return CaptioningTrainer(
        model,
        config,
        make_processor(),
        train_dataset=rows,
        eval_dataset=rows.select(range(5)),
        callbacks=list(callbacks),
    )


def test_captions_are_scored_and_drawn_while_it_trains(rows, tmp_path):
    run = trainer(rows, tmp_path, eval_strategy="steps", eval_steps=2)
    run.train()
    run.save_log()
    scored = [entry for entry in run.state.log_history if "eval_rouge_l" in entry]
    assert [entry["step"] for entry in scored] == [2, 4]
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"step_000002.png", "step_000004.png"}
    assert (tmp_path / "loss.png").exists()
    log = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert log == run.state.log_history


def test_it_learns_and_its_loss_components_add_up(rows, tmp_path):
    run = trainer(rows, tmp_path, max_steps=30, gradient_accumulation_steps=2)
    run.train()
    log = [entry for entry in run.state.log_history if "loss" in entry]
    for entry in log:
        assert_close(entry["caption_loss"] + 0.1 * entry["align_loss"], float(entry["loss"]), rtol=1e-2, atol=1e-3)
    assert float(log[-1]["loss"]) < 0.5 * float(log[0]["loss"])


def test_the_best_model_by_a_chosen_metric_is_kept_and_patience_ends(rows, tmp_path):
    run = trainer(
        rows, tmp_path, callbacks=[EarlyStoppingCallback(1)], max_steps=20, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, metric_for_best_model="rouge_l", load_best_model_at_end=True,
        learning_rate=0.0,
    )  # fmt: skip
    run.train()
    assert run.state.global_step == 4  # nothing improves on the first
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")


def test_one_batch_of_eight_equals_two_of_four_accumulated(rows, tmp_path):
    def weights(name, **args):
        run = trainer(rows, tmp_path / name, max_steps=3, max_grad_norm=0.0, optim="sgd", **args)
        run.train()
        return {k: v for k, v in run.model.state_dict().items() if "adapter" in k or "fusion" in k}

    whole = weights("a", per_device_train_batch_size=8)
    parts = weights("b", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for name in whole:
        assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)


def test_frozen_towers_do_not_move(rows, tmp_path):
    run = trainer(rows, tmp_path)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.train()
    moved = {k.split(".")[1] for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"adapter", "fusion"}
