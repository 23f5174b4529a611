"""Checkpoints that are whole or not there: what is believed, what is passed over, and twenty kills."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from trainers.sealed_checkpoints import SealedCheckpoints, broken, newest_sealed


class SealedTrainer(SealedCheckpoints, Trainer):
    pass


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 1)
        self.dropout = torch.nn.Dropout(0.5)  # resuming has to restore the random state as well

    def forward(self, x, labels=None):
        out = self.linear(self.dropout(x)).squeeze(-1)
        return {"loss": ((out - labels) ** 2).mean(), "logits": out}


def rows():
    points = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return [{"x": x, "labels": x.sum()} for x in points]


def train(folder, callbacks=(), resume=False, **args):
    defaults = {"max_steps": 8, "save_steps": 2, "save_strategy": "steps", "per_device_train_batch_size": 4}
    defaults |= {"learning_rate": 0.05, "use_cpu": True, "disable_tqdm": True, "report_to": [], "save_total_limit": 2}
    arguments = TrainingArguments(str(folder), **(defaults | args))
    trainer = SealedTrainer(Line(), arguments, train_dataset=rows(), eval_dataset=rows()[:8], callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return trainer


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_are_sealed_and_the_oldest_go(tmp_path):
    train(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    assert not list(tmp_path.glob(".saving-*"))
    assert broken(tmp_path / "checkpoint-8") is None
    files = json.loads((tmp_path / "checkpoint-8/seal.json").read_text())["files"]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= files.keys()
    assert newest_sealed(tmp_path) == str(tmp_path / "checkpoint-8")
    assert newest_sealed(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "harm,problem",
    [
        (lambda c: (c / "seal.json").unlink(), "it has no seal"),
        (lambda c: (c / "seal.json").write_text('{"fil'), "its seal cannot be read"),
        (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda c: (c / "optimizer.pt").write_bytes(b"half"), "optimizer.pt has 4 bytes"),
        (lambda c: flip(c / "model.safetensors"), "model.safetensors is not what was sealed"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over_and_named(tmp_path, caplog, harm, problem):
    train(tmp_path)
    final = weights(tmp_path)
    harm(tmp_path / "checkpoint-8")
    with caplog.at_level("WARNING"):
        assert newest_sealed(tmp_path) == str(tmp_path / "checkpoint-6")
    assert problem in caplog.text and "checkpoint-8" in caplog.text
    with pytest.raises(ValueError, match=f"cannot resume from .*checkpoint-8: {problem}"):
        train(tmp_path, resume=str(tmp_path / "checkpoint-8"))
    train(tmp_path, resume="true")  # from 6; 8 is written anew over the broken one
    assert broken(tmp_path / "checkpoint-8") is None
    assert equal(weights(tmp_path), final)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_best_checkpoint_is_named_where_it_lies(tmp_path):
    trainer = train(
        tmp_path, eval_strategy="steps", eval_steps=2, metric_for_best_model="loss", load_best_model_at_end=True,
    )  # fmt: skip
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path and broken(best) is None
    told = json.loads((tmp_path / "checkpoint-8/trainer_state.json").read_text())["best_model_checkpoint"]
    assert told == str(best)


def test_only_what_is_sealed_is_pushed(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **kwargs: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, path: pushed.append((path, broken(Path(path)))))
    train(tmp_path, push_to_hub=True, max_steps=4)
    assert pushed == [(str(tmp_path / f"checkpoint-{step}"), None) for step in (2, 4)]


class KilledWhileSaving(TrainerCallback):
    """Dies in the middle of Trainer's own save: the model is written, the optimizer is not."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            torch.save = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)


def child(target, *args, **kwargs):
    process = multiprocessing.get_context("fork").Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process


def test_a_run_killed_in_the_middle_of_a_save_resumes_from_the_one_before(tmp_path):
    whole = child(train, tmp_path / "whole")
    cut = child(train, tmp_path / "cut", [KilledWhileSaving(4)])
    whole.join(), cut.join()
    assert cut.exitcode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "cut").iterdir()].count("checkpoint-4") == 0
    assert newest_sealed(tmp_path / "cut") == str(tmp_path / "cut/checkpoint-2")
    again = child(train, tmp_path / "cut", resume=True)
    again.join()
    assert again.exitcode == 0
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert not list((tmp_path / "cut").glob(".saving-*"))


class KilledWhileRemoving(TrainerCallback):
    """Dies while the oldest checkpoint goes, one file of it gone already."""

    def on_save(self, args, state, control, **kwargs):
        def die(folder, *a, **k):
            next(path for path in Path(folder).rglob("*.safetensors")).unlink()
            os.kill(os.getpid(), signal.SIGKILL)

        if state.global_step == 4:
            shutil.rmtree = die


def test_a_run_killed_while_it_removes_a_checkpoint_leaves_none_half_deleted(tmp_path):
    cut = child(train, tmp_path, [KilledWhileRemoving()])
    cut.join()
    assert cut.exitcode == -signal.SIGKILL
    assert [p.name for p in tmp_path.glob(".removing-*")] == [".removing-checkpoint-2"]
    left = sorted(tmp_path.glob("checkpoint-*"))
    assert [p.name for p in left] == ["checkpoint-4", "checkpoint-6"]
    assert [broken(p) for p in left] == [None, None]
    again = child(train, tmp_path, resume=True)
    again.join()
    assert again.exitcode == 0
    assert not list(tmp_path.glob(".*-*"))


def test_what_is_saved_writes_with_a_cache_though_it_was_trained_without(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    model.generation_config.use_cache = False  # as of a tower that was trained by Trainer
    args = TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    data = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 8
    trainer = SealedTrainer(model, args, train_dataset=data)
    trainer.train()
    assert model.config.use_cache is False  # Trainer's doing; where it stops doing it, this can go
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        saved = GPT2LMHeadModel.from_pretrained(folder)
        assert saved.config.use_cache and saved.generation_config.use_cache is not False
    assert model.config.use_cache is False
