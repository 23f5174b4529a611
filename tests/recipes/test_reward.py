"""recipes/reward.py as a user runs it, on a tiny model: the whole way, killed and gone on with, by two processes, with LoRA."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoProcessor, TrainingArguments

from datasets_scripts import load_rows
from trainers.reward_config import RewardConfig
from trainers.reward_scores import reward_scores
from trainers.run_folder import read_json, read_jsonl


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes/reward.py"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FLAWS = {"invented_object", "wrong_attribute", "wrong_relation", "broken_grammar"}


def start(place, *words, **kwargs):
    environment = {**os.environ, "HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=place, env=environment, text=True, start_new_session=True, **kwargs)


def run(place, *words, check=True):
    process = start(place, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = process.communicate()
    if check and process.returncode:
        raise AssertionError(error[-4000:])
    return out, error, process.returncode


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    """A working directory with quickstart.yaml made tiny, and what one process leaves by it, uninterrupted."""
    place = tmp_path_factory.mktemp("reward")
    settings = yaml.safe_load((ROOT / "recipes/reward/quickstart.yaml").read_text())
    settings |= {
        "model": str(tiny_folder), "dataset_options": {"num_train": 32, "num_eval": 6}, "test_examples": 20, "best_of": 2,
        "best_of_examples": 2, "max_steps": 6, "per_device_train_batch_size": 4, "eval_steps": 3, "save_steps": 3,
        "eval_examples": 10, "logging_steps": 1, "warmup_steps": 0, "optim": "sgd", "learning_rate": 0.1,
        "max_grad_norm": 0.0, "output_dir": "out",
    }  # fmt: skip
    (place / "tiny.yaml").write_text(yaml.safe_dump(settings))
    run(place, SCRIPT, "--config", "tiny.yaml", "--output_dir", "one")
    return place


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_one_folder_holds_model_code_figures_and_what_made_them(place, tiny_folder):
    folder = place / "one"
    made = {path.name for path in folder.iterdir()}
    assert {
        "modeling_vision_reward.py",
        "modeling_ossight.py",
        "processing_ossight.py",
        "processor_config.json",
    } <= made
    assert {"predictions.jsonl", "contact_sheet.png", "train_log.jsonl", "loss.png", "recipe.yaml"} <= made
    assert not [name for name in made if name.endswith((".tmp", ".pt"))]
    figures = read_json(folder / "metrics.json")
    accuracies = {f"{blind}preference_accuracy_{flaw}" for flaw in FLAWS for blind in ("", "blind_")}
    assert accuracies | {"preference_accuracy", "blind_preference_accuracy", "best_of_2_scene_f1"} <= figures.keys()
    assert figures["preference_accuracy"]["n"] == 20 and figures["protocol"]["best_of"]["captioner"] == str(tiny_folder)
    trained, begun = weights(folder), load_file(tiny_folder / "model.safetensors")
    moved = {name.split(".")[1] for name in trained if name in begun and not torch.equal(trained[name], begun[name])}
    assert "language_model" in moved and "vision_tower" not in moved

    rows = load_rows("scenes", "test", rows="preference", num_train=32, num_eval=6).select(range(20))
    written = read_jsonl(folder / "predictions.jsonl")
    scores = reward_scores(folder, rows, [row["rejected"] for row in written], 7, progress=False)
    assert_close(scores, [row["reward_rejected"] for row in written], rtol=0, atol=1e-5)


def test_a_run_killed_after_a_checkpoint_ends_with_the_weights_it_would_have_had(place):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [SCRIPT, "--config", "tiny.yaml", "--output_dir", "cut"]
    process, until = start(place, *command, **quiet), time.time() + 300
    while not (place / "cut/checkpoint-3/seal.json").exists() and time.time() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "cut/metrics.json").exists(), "it was to be killed before its end"
    run(place, *command, "--resume_from_checkpoint", "true")
    one, cut = weights(place / "one"), weights(place / "cut")
    assert all(torch.equal(one[name], cut[name]) for name in one)


def test_two_processes_learn_what_one_learns(place):
    run(place, *TWO, SCRIPT, "--config", "tiny.yaml", "--per_device_train_batch_size", "2", "--output_dir", "two")
    logs = [read_jsonl(place / name / "train_log.jsonl") for name in ("one", "two")]
    assert [[entry["epoch"] for entry in log] for log in logs][0] == [entry["epoch"] for entry in logs[1]]
    for entries in zip(*logs, strict=True):
        # not accuracies: to a tokenizer of few words both sides of a pair may read alike
        for name in entries[0].keys() & {"margin", "mean_reward", "max_reward", "eval_margin", "eval_mean_reward"}:
            assert_close(entries[1][name], entries[0][name], rtol=1e-3, atol=1e-5)
    one, two = weights(place / "one"), weights(place / "two")
    for name in one:
        assert_close(two[name], one[name], rtol=1e-5, atol=1e-5)
    for row, other in zip(*(read_jsonl(place / name / "predictions.jsonl") for name in ("one", "two")), strict=True):
        assert_close(other["reward_chosen"], row["reward_chosen"], rtol=1e-4, atol=1e-5)


def test_a_reward_model_goes_on_with_lora_and_is_loaded_with_it(place):
    lora = {"r": 2, "target_modules": r".*language_model.*\.(q|v)_proj"}
    short = ["--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--test_examples", "2"]
    more = ["--model", "one", "--captioner", "none", "--lora", json.dumps(lora), "--output_dir", "lora"]
    settings = yaml.safe_load((place / "tiny.yaml").read_text())
    del settings["best_of"]
    (place / "lora.yaml").write_text(yaml.safe_dump(settings))
    run(place, SCRIPT, "--config", "lora.yaml", *short, *more)
    assert {"adapter_model.safetensors", "model.safetensors", "config.json"} <= {
        p.name for p in (place / "lora").iterdir()
    }
    model = AutoModelForSequenceClassification.from_pretrained(place / "lora")
    begun = weights(place / "one")["score.weight"]
    assert not torch.equal(dict(model.named_parameters())["score.modules_to_save.default.weight"], begun)
    assert type(AutoProcessor.from_pretrained(place / "lora")).__name__ == "OSSightProcessor"


def test_what_cannot_be_is_said_at_once(place):
    _, error, code = run(place, SCRIPT, "--config", "tiny.yaml", "--learnin_rate", "1", check=False)
    assert code and "learnin_rate" in error


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/reward").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_yaml_says_what_it_shows_and_has_no_unknown_key(path):
    sys.path.insert(0, str(ROOT / "recipes"))
    import reward

    text = path.read_text()
    assert text.startswith("# ") and all(f"{word}" in text for word in ("Shows:", "Does not show:", "Expect:", "Time:"))
    fields = {name for kind in (reward.Recipe, RewardConfig) for name in kind.__dataclass_fields__}
    assert not set(yaml.safe_load(text)) - fields
    assert RewardConfig.__dataclass_fields__.keys() > TrainingArguments.__dataclass_fields__.keys()
