"""CaptioningTrainer: captions scored while it trains, what is logged, and gradients that do not care how a batch is cut."""

import json
import shutil

import pytest
import torch
from datasets import Dataset, Features, Image, List
from torch.testing import assert_close
from transformers import EarlyStoppingCallback

from datasets_scripts.canonical import CAPTION_FEATURES
from tests.conftest import make_ossight, make_processor, picture
from trainers.captioning_config import CaptioningConfig
from trainers.captioning_trainer import CaptioningTrainer
from trainers.run_folder import read_jsonl


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


def test_a_vision_tower_that_learns_may_have_a_rate_of_its_own(rows, tmp_path):
    """By SGD, a step's size is the rate: a tenth of it moves a tower a tenth as far; of everything there is one group."""
    moved = []
    for rate in (None, 1e-3):
        run = trainer(rows, tmp_path, max_steps=1, optim="sgd", max_grad_norm=0.0, vision_learning_rate=rate)
        run.model.freeze_towers(vision=False)
        before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
        run.train()
        moved.append({name: weight.detach() - before[name] for name, weight in run.model.named_parameters()})
        groups = run.optimizer.param_groups
        assert sum(len(group["params"]) for group in groups) == sum(w.requires_grad for w in run.model.parameters())
    for name, step in moved[0].items():
        assert_close(moved[1][name], step / 10 if "vision_tower" in name else step, rtol=1e-2, atol=1e-7)
    assert any(step.abs().max() > 1e-6 for name, step in moved[0].items() if "vision_tower" in name)


def spoilt(rows, tmp_path):
    """Two of the rows show a file that is no picture, one has no words."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    undecoded = Features({**CAPTION_FEATURES, "images": List(Image(decode=False))})
    listed = list(rows.cast(undecoded))
    for number in (1, 10):
        listed[number]["images"] = [{"path": str(tmp_path / "broken.png"), "bytes": None}]
    listed[3]["completion"] = [{"role": "assistant", "content": " "}]
    return Dataset.from_list(listed, features=undecoded)


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_that_cannot_be_used_are_counted_and_named_and_training_goes_on(rows, tmp_path, workers):
    run = trainer(spoilt(rows, tmp_path), tmp_path / "run", max_steps=12, dataloader_num_workers=workers)
    run.train()
    log = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(log) == 12 and log[-1]["skipped"] == 3
    told = {row["image_id"]: row["problem"] for row in read_jsonl(tmp_path / "run/skipped.jsonl")}
    assert set(told) == {"1", "3", "10"}
    assert "broken.png" in told["1"] and told["3"] == "the completion is empty"


def test_a_step_in_which_nothing_can_be_used_changes_nothing(rows, tmp_path):
    bad = spoilt(rows, tmp_path).select([1, 3, 10, 1, 3])
    run = trainer(bad, tmp_path / "run", max_steps=2, optim="sgd", learning_rate=1.0, weight_decay=0.0)
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    run.train()
    for name, weight in run.model.named_parameters():
        assert torch.equal(weight, before[name])


def test_strict_training_stops_at_the_first_row_that_cannot_be_used(rows, tmp_path):
    with pytest.raises(ValueError, match="row (1|3|10): "):
        trainer(spoilt(rows, tmp_path), tmp_path / "run", max_steps=6, strict=True).train()


def test_evaluation_leaves_out_what_cannot_be_read_and_says_so(rows, tmp_path, caplog):
    run = trainer(rows, tmp_path / "run")
    with caplog.at_level("WARNING"):
        figures = run.evaluate(spoilt(rows, tmp_path).select(range(5)))
    assert figures["eval_samples_per_second"] > 0 and "eval_rouge_l" in figures
    assert "row 1 is not captioned: " in caplog.text
    with pytest.raises(ValueError, match="row 1: .*broken.png"):
        trainer(rows, tmp_path / "run", strict=True).evaluate(spoilt(rows, tmp_path).select(range(5)))


def streamed(rows, resume=False, **args):
    stream = rows.to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=8)
    run = trainer(rows, args.pop("output_dir"), save_steps=3, **{"save_strategy": "steps", "max_steps": 10} | args)
    run = CaptioningTrainer(run.model, run.args, make_processor(), train_dataset=stream, eval_dataset=rows)
    run.train(resume_from_checkpoint=resume)
    return {name: weight for name, weight in run.model.state_dict().items() if "adapter" in name}


def test_a_streamed_run_resumes_at_the_very_next_row(rows, tmp_path):
    """24 rows, 4 a step: step 9 is in the second epoch."""
    whole = streamed(rows, output_dir=tmp_path / "whole")
    streamed(rows, output_dir=tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoint-10")
    resumed = streamed(rows, output_dir=tmp_path / "cut", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    shutil.rmtree(tmp_path / "cut/checkpoint-9")
    shutil.rmtree(tmp_path / "cut/checkpoint-10")
    resumed = streamed(rows, output_dir=tmp_path / "cut", resume=True)  # from step 6, where an epoch ends
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_stream_with_workers_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="set dataloader_num_workers to 0"):
        streamed(rows, output_dir=tmp_path, dataloader_num_workers=1)
