"""recipes/caption.py, evaluate.py and describe.py as a user runs them, on tiny towers; and every YAML that is shipped."""

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
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, SiglipImageProcessor

from tests.conftest import make_ossight, make_tokenizer


ROOT = Path(__file__).parents[2]
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    str(ROOT / "recipes/accelerate/cpu.yaml"),
]


def run(*command, cwd, check=True, **kwargs):
    environment = {**os.environ, "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment, **kwargs)
    if check and done.returncode:
        raise AssertionError(done.stderr[-4000:])
    return done


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """Two tiny towers as folders, as the miniature ones are."""
    folder = tmp_path_factory.mktemp("towers")
    make_ossight().model.vision_tower.save_pretrained(folder / "eyes")
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "eyes")
    tokenizer = make_tokenizer()
    source = make_ossight()
    AutoModelForCausalLM.from_config(source.config.text_config).save_pretrained(folder / "mouth")
    tokenizer.save_pretrained(folder / "mouth")
    return folder


@pytest.fixture
def recipe(towers, tmp_path):
    """quickstart.yaml, with tiny towers and few steps."""
    settings = yaml.safe_load((ROOT / "recipes/ossight/quickstart.yaml").read_text())
    settings |= {
        "vision_model": str(towers / "eyes"), "text_model": str(towers / "mouth"),
        "dataset_options": {"num_train": 64, "num_eval": 12},
        "model_config": {"alpha_align": 0.1}, "max_steps": 6, "per_device_train_batch_size": 4, "eval_steps": 3, "save_steps": 3,
        "test_examples": 10, "eval_examples": 4, "max_new_tokens": 4, "output_dir": "out", "logging_steps": 1, "warmup_steps": 0,
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_whole_way_from_towers_to_captions(recipe, tmp_path):
    run(*LAUNCH, ROOT / "recipes/caption.py", "--config", recipe, cwd=tmp_path)
    out = tmp_path / "out"
    figures = json.loads((out / "metrics.json").read_text())
    assert {"scene_f1", "blind_scene_f1", "bleu_4", "rouge_l", "cider", "protocol"} <= figures.keys()
    made = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "modeling_ossight.py",
        "bridges.py",
        "fusion.py",
        "processing_ossight.py",
    } <= made
    assert {"contact_sheet.png", "predictions.jsonl", "train_log.jsonl", "loss.png", "recipe.yaml", "sheets"} <= made
    assert not [name for name in made if name.endswith((".tmp", ".pt"))]

    # scored again by its folder, it has the same figures
    score = [
        sys.executable,
        ROOT / "recipes/evaluate.py",
        "--model",
        "out",
        "--dataset",
        "pictures",
        "--split",
        "validation",
    ]
    run(sys.executable, ROOT / "recipes/draw_scenes.py", "--output", "own", "--count", "6", cwd=tmp_path)
    for name in ("a", "b"):
        run(*score, "--data_dir", "own", "--max_new_tokens", "4", "--output", name, cwd=tmp_path)
    assert (tmp_path / "a/metrics.json").read_bytes() == (tmp_path / "b/metrics.json").read_bytes()
    assert json.loads((tmp_path / "a/metrics.json").read_text())["protocol"]["revision"].startswith("sha256:")

    # it describes files and folders, skips what is no picture, and goes on where it was stopped
    (tmp_path / "own/broken.png").write_bytes(b"no picture")
    Image.new("RGB", (3, 7), "red").save(tmp_path / "one.jpg")
    describe = [
        sys.executable,
        ROOT / "recipes/describe.py",
        "--model",
        "out",
        "--max_new_tokens",
        "4",
        "one.jpg",
        "own",
    ]
    done = run(*describe, "--output", "said.jsonl", cwd=tmp_path)
    assert "skipped own/broken.png" in done.stderr
    lines = (tmp_path / "said.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 7 and json.loads(lines[0])["file"] == "one.jpg"
    (tmp_path / "said.jsonl").write_text("".join(lines[:3]) + lines[3][:9])
    done = run(*describe, "--output", "said.jsonl", cwd=tmp_path)
    assert "3 pictures described already" in done.stderr
    assert (tmp_path / "said.jsonl").read_text() == "".join(lines)

    # and a stranger gets its logits
    done = run(sys.executable, ROOT / "recipes/stranger.py", "--model", "out", cwd=tmp_path)
    assert "same logits" in done.stdout


def test_an_unknown_key_is_an_error(recipe, tmp_path):
    recipe.write_text(recipe.read_text() + "learning_rat: 1\n")
    done = run(*LAUNCH, ROOT / "recipes/caption.py", "--config", recipe, cwd=tmp_path, check=False)
    assert done.returncode and "learning_rat" in done.stderr


def test_a_mapping_may_be_given_on_the_command_line_and_what_is_none_is_named(recipe, tmp_path):
    short = ["--max_steps", "1", "--eval_strategy", "no", "--test_examples", "2"]
    said = ["--model_config", '{"fusion": "none"}', "--dataset_options", '{"num_train": 8, "num_eval": 4}']
    run(*LAUNCH, ROOT / "recipes/caption.py", "--config", recipe, *short, *said, cwd=tmp_path)
    assert json.loads((tmp_path / "out/config.json").read_text())["fusion"] == "none"
    done = run(*LAUNCH, ROOT / "recipes/caption.py", "--config", recipe, "--lora", "r=2", cwd=tmp_path, check=False)
    assert done.returncode and "lora: 'r=2' is not JSON" in done.stderr


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_run_killed_after_a_checkpoint_ends_with_the_weights_it_would_have_had(recipe, tmp_path):
    settings = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump(settings | {"max_steps": 12, "eval_strategy": "no", "blind_control": False}))
    command = [*LAUNCH, ROOT / "recipes/caption.py", "--config", recipe]
    run(*command, "--output_dir", "whole", cwd=tmp_path)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*map(str, command), "--output_dir", "cut"], cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.time() + 300
    while not (tmp_path / "cut/checkpoint-3/trainer_state.json").exists() and time.time() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/metrics.json").exists(), "it was to be killed before its end"
    run(*command, "--output_dir", "cut", "--resume_from_checkpoint", "true", cwd=tmp_path)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


SLOWER = ({"streaming": True, "stream_buffer": 9}, {"cache_vision_features": True})


@pytest.mark.parametrize("way", [{}, *(pytest.param(way, marks=pytest.mark.slow) for way in SLOWER)], ids=str)
def test_two_processes_learn_what_one_learns(recipe, tmp_path, way):
    settings = yaml.safe_load(recipe.read_text()) | way
    settings |= {"eval_strategy": "steps", "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    recipe.write_text(yaml.safe_dump(settings))
    run(*LAUNCH, ROOT / "recipes/caption.py", "--config", recipe, "--output_dir", "one", cwd=tmp_path)
    # accelerate starts several processes by torchrun too, but on GPUs only
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    half = ["--per_device_train_batch_size", "2", "--output_dir", "two"]
    run(*two, ROOT / "recipes/caption.py", "--config", recipe, *half, cwd=tmp_path)
    logs = [(tmp_path / name / "train_log.jsonl").read_text() for name in ("one", "two")]
    epochs = [[json.loads(line)["epoch"] for line in log.splitlines()] for log in logs]
    assert epochs[0] == epochs[1], "there were two processes, and they shared the rows"
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)
    scores = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert scores[0]["rouge_l"] == scores[1]["rouge_l"]


@pytest.mark.real_data
def test_real_photographs_go_in_by_the_same_command(real_data, towers, tmp_path):
    settings = yaml.safe_load((ROOT / "recipes/ossight/my_pictures.yaml").read_text())
    settings |= {
        "vision_model": str(towers / "eyes"), "text_model": str(towers / "mouth"),
        "model_config": {}, "max_steps": 12, "eval_steps": 6,
        "save_steps": 6, "output_dir": "out", "logging_steps": 2, "warmup_steps": 0, "max_new_tokens": 8,
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    command = [*LAUNCH, ROOT / "recipes/caption.py", "--config", "own.yaml", "--data_dir", real_data / "coco2017"]
    run(*command, cwd=tmp_path)
    log = [json.loads(line) for line in (tmp_path / "out/train_log.jsonl").read_text().splitlines()]
    losses = [float(entry["loss"]) for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]
    assert "cider" in json.loads((tmp_path / "out/metrics.json").read_text())
