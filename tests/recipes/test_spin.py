"""The SPIN VLM's recipes: both stages by accelerate launch, before a timm ViT that stands under its real id on a loopback Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.datasets_scripts.test_flickr8k import lay_out_as_flickr8k
from tests.loopback_hub import LoopbackHub


ROOT = Path(__file__).parents[2]
NAME = "vit_tiny_patch16_224"
TINY = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "eval_examples": 4, "test_examples": 6}
TINY |= {"max_new_tokens": 4, "warmup_steps": 0, "per_device_train_batch_size": 4, "use_cpu": True}
DECODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SCENES = {"config_name": "instructions", "num_train": 40, "num_eval": 8}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """timm's vit_tiny in timm's own format, with fewer blocks so that it is quick."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"depth": 1, "embed_dim": 48}
    save_file(timm.create_model(NAME, **sizes).state_dict(), folder / "model.safetensors")
    shape = {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "num_classes": 1000,
    }
    told = {"architecture": NAME, "num_classes": 1000, "model_args": sizes, "pretrained_cfg": shape}
    (folder / "config.json").write_text(json.dumps(told))
    with LoopbackHub() as hub:
        hub.seed("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", folder)
        yield hub


def launch(hub, place, stage: str, **changes) -> Path:
    """A shipped YAML with a few steps; the folder it leaves."""
    settings = yaml.safe_load((ROOT / f"recipes/spin/{stage}.yaml").read_text()) | TINY | changes
    (place / f"{stage}.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, **hub.env(), "HF_DATASETS_CACHE": str(place / "datasets"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        ROOT / "recipes/accelerate/cpu.yaml",
    ]
    command += [ROOT / "recipes/caption.py", "--config", f"{stage}.yaml"]
    done = subprocess.run(map(str, command), cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return place / settings["output_dir"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("spin")


@pytest.fixture(scope="module")
def warm(hub, place):
    size = DECODER | {"max_position_embeddings": 300}
    return launch(hub, place, "warmup", vision_model=NAME, vocab_size=300, model_config=size, dataset_options=SCENES)


@pytest.fixture(scope="module")
def tuned(hub, place, warm):
    return launch(hub, place, "finetune", dataset_options=SCENES)


def tower(folder: Path) -> dict:
    return {
        name: weight for name, weight in load_file(folder / "model.safetensors").items() if ".vision_tower." in name
    }


def test_stage_1_learns_the_decoder_alone(hub, place, warm):
    first = tower(place / "outputs/spin/warmup/checkpoint-2")
    assert first and all(torch.equal(weight, first[name]) for name, weight in tower(warm).items())
    assert {"scene_f1", "blind_scene_f1", "cider", "protocol"} <= json.loads((warm / "metrics.json").read_text()).keys()
    assert {"modeling_spin.py", "configuration_spin.py", "towers.py", "processing_spin.py"} <= {
        p.name for p in warm.iterdir()
    }


def test_stage_2_learns_the_tower_too_and_keeps_the_best(warm, tuned):
    before, after = tower(warm), tower(tuned)
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    state = json.loads((tuned / "checkpoint-4/trainer_state.json").read_text())
    best = load_file(Path(tuned.parents[2], state["best_model_checkpoint"]) / "model.safetensors")
    final = load_file(tuned / "model.safetensors")
    assert all(torch.equal(best[name], final[name]) for name in final)


def test_the_saved_folder_needs_no_download(tuned, tmp_path):
    """In a fresh interpreter without Hub, cache or this repository."""
    Image.new("RGB", (50, 40), "red").save(tmp_path / "one.png")
    code = f"""
from transformers import pipeline
describe = pipeline("image-text-to-text", {str(tuned)!r}, trust_remote_code=True)
turns = [{{"role": "user", "content": [{{"type": "image", "path": "one.png"}}, {{"type": "text", "text": "What is it?"}}]}}]
print(describe(turns, max_new_tokens=3, return_full_text=False)[0]["generated_text"])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_it_describes_with_heads_suppressed(tuned, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "one.png")
    command = [sys.executable, ROOT / "recipes/describe.py", "--model", tuned, "--max_new_tokens", "3", "one.png"]
    command += ["--prompt", "What is the person doing in the image?", "--spin", "keep_ratio=0.5"]
    done = subprocess.run(map(str, command), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("one.png\t"), done.stderr[-3000:]


@pytest.mark.real_data
def test_photographs_in_flickr8ks_layout_go_in(hub, tmp_path, real_data):
    lay_out_as_flickr8k(real_data / "coco2017", tmp_path / "flickr", table=True)
    vocabulary = {word: i for i, word in enumerate("<pad> <start> <end> <unk> a the of on in with man woman".split())}
    (tmp_path / "finetuned_vocab.json").write_text(json.dumps(vocabulary))
    changes = {"eval_strategy": "steps", "save_strategy": "steps", "model_config": DECODER, "num_train_epochs": 1}
    for name, tokenizer in (("learned", None), ("imported", "finetuned_vocab.json")):
        made = launch(hub, tmp_path, "flickr8k", data_dir=str(tmp_path / "flickr"), vocab_size=300, tokenizer=tokenizer,
                      output_dir=name, **changes)  # fmt: skip
        assert "cider" in json.loads((made / "metrics.json").read_text())
