"""The full-size commands of the README, on small towers that stand under the real ids on a loopback Hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling  # noqa: F401
import processing  # noqa: F401
from tests.loopback_hub import LoopbackHub


ROOT = Path(__file__).parents[2]
FEW = "--max_steps 4 --eval_steps 2 --save_steps 2 --logging_steps 1 --eval_examples 3 --max_new_tokens 4 --warmup_steps 1"
S0 = "accelerate launch recipes/caption.py --config recipes/ossight/s0_coco.yaml"
S1 = "accelerate launch recipes/caption.py --config recipes/ossight/s1_lora.yaml"


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub(alias_pins=True) as hub:
        hub.seed("google/siglip-base-patch16-224", ROOT / "model_cards/miniature_siglip")
        hub.seed("Qwen/Qwen2.5-1.5B-Instruct", ROOT / "model_cards/miniature_qwen2")
        yield hub


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a user would stand: recipes/ beside data/, which holds a small COCO."""
    place = tmp_path_factory.mktemp("full_size")
    (place / "recipes").symlink_to(ROOT / "recipes")
    (place / "data/annotations").mkdir(parents=True)
    for name, count in (("val2017", 12), ("train2017", 20)):
        (place / "data" / name).mkdir()
        images, annotations = [], []
        for i in range(count):
            file = f"{i:012}.jpg"
            Image.new("RGB", (64 + i, 48), (20 * i % 256, 90, 200 - 9 * i)).save(place / "data" / name / file)
            images.append({"id": i, "file_name": file})
            annotations += [
                {"id": 5 * i + j, "image_id": i, "caption": f"A {'blue' if i % 2 else 'red'} thing, {j}."}
                for j in range(5)
            ]
        (place / "data" / name / f"{4:012}.jpg").write_bytes(b"")
        cut = place / "data" / name / f"{5:012}.jpg"
        cut.write_bytes(cut.read_bytes()[:400])
        text = json.dumps({"images": images, "annotations": annotations})
        (place / f"data/annotations/captions_{name}.json").write_text(text)
    return place


def environment(hub, place):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        **hub.env(),
        "HF_DATASETS_CACHE": str(place / "datasets"),
        "OMP_NUM_THREADS": "1",
        "PATH": path,
    }


def run(command, hub, place):
    done = subprocess.run(command.split(), cwd=place, env=environment(hub, place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return done


@pytest.fixture(scope="module")
def s0(hub, place):
    run(f"{S0} {FEW}", hub, place)
    return place / "outputs/ossight/s0_coco"


@pytest.fixture(scope="module")
def s1(hub, place, s0):
    run(f"{S1} {FEW} --resume_from_checkpoint true", hub, place)  # nothing to resume: it begins
    return place / "outputs/ossight/s1_lora"


def test_stage_0_leaves_a_light_folder(s0):
    weights = load_file(s0 / "model.safetensors")
    assert {name.split(".")[1] for name in weights} == {"adapter", "fusion"}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    towers = json.loads((s0 / "config.json").read_text())["towers"]
    assert towers["vision_tower"]["id"] == "google/siglip-base-patch16-224"
    assert towers["language_model"]["id"] == "Qwen/Qwen2.5-1.5B-Instruct"
    assert towers["language_model"]["commit"] == "989aa7980e4cf806f80c7fef2b1adb7bc71aa306"
    assert towers["language_model"]["quantization"]["bnb_4bit_quant_type"] == "nf4"
    figures = json.loads((s0 / "metrics.json").read_text())
    assert {"bleu_4", "rouge_l", "cider"} <= figures.keys()
    log = [json.loads(line) for line in (s0 / "train_log.jsonl").read_text().splitlines()]
    assert all(float(entry["loss"]) > 0 for entry in log if "loss" in entry)


def test_stage_0_used_the_cache_of_vision_features(s0, place):
    (made_of,) = (place / "datasets/vision_features").glob("*/made_of.json")
    told = json.loads(made_of.read_text())
    assert told["tower_source"]["id"] == "google/siglip-base-patch16-224" and told["dtype"] == "torch.float16"


def test_pictures_that_cannot_be_read_are_named_by_either_stage(s0, s1):
    """Stage 0 meets them as it caches, stage 1 as it trains; either may have held one out."""
    for folder in (s0, s1):
        told = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
        unreadable = json.loads((folder / "metrics.json").read_text())["protocol"].get("unreadable", [])
        assert {row["image_id"] for row in told} | set(unreadable) == {"4", "5"}
        assert all(f"{int(row['image_id']):012}.jpg" in row["problem"] for row in told)


@pytest.mark.slow
def test_every_tool_takes_the_light_folder(hub, place, s0):
    run(f"{sys.executable} recipes/stranger.py --model {s0}", hub, place)
    score = f"{sys.executable} recipes/evaluate.py --model {s0} --dataset pictures --data_dir data --split validation"
    score += ' --dataset_options {"train_from":"val2017"}'
    run(f"{score} --output scores --dtype float16 --num_examples 3 --max_new_tokens 4", hub, place)
    done = run(
        f"{sys.executable} recipes/describe.py --model {s0} data/val2017/000000000001.jpg --max_new_tokens 4",
        hub,
        place,
    )
    assert "000000000001.jpg" in done.stdout


def test_stage_1_leaves_base_and_adapter_in_one_folder_that_merges(hub, place, s0, s1, monkeypatch):
    adapter = load_file(s1 / "adapter_model.safetensors")
    kinds = {"lora" if "lora_" in name else name.split(".")[3] for name in adapter}
    assert kinds == {"lora", "adapter", "fusion"}
    assert all(".language_model." in name and "_proj" in name for name in adapter if "lora_" in name)
    assert json.loads((s1 / "config.json").read_text())["towers"].keys() == {"vision_tower", "language_model"}
    run(f"{sys.executable} recipes/stranger.py --model {s1}", hub, place)

    for name, value in environment(hub, place).items():
        monkeypatch.setenv(name, value)
    hub.patch(monkeypatch)
    run(f"{sys.executable} recipes/merge.py --model {s1} --output merged", hub, place)
    processor = AutoProcessor.from_pretrained(s1)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=[text], images=[Image.new("RGB", (50, 60), "red")], return_tensors="pt")
    tuned, merged, base = (
        AutoModelForImageTextToText.from_pretrained(f, dtype="float32") for f in (s1, place / "merged", s0)
    )
    logits = [model.eval()(**inputs).logits for model in (tuned, merged, base)]
    # trained beside 4-bit weights and merged into full ones: what it adds is the same, what it is added to nearly
    apart, moved = ((logits[0] - other).abs().mean() for other in (logits[1], logits[2]))
    assert 0 < apart < 0.5 and moved > 0
    weights = load_file(place / "merged/model.safetensors")
    assert any(".language_model." in name for name in weights) and not any(".vision_tower." in name for name in weights)


def test_a_killed_stage_1_goes_on(hub, place, s0):
    command = f"{S1} {FEW} --output_dir cut".split()
    process = subprocess.Popen(
        command, cwd=place, env=environment(hub, place), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.time() + 300
    while not (place / "cut/checkpoint-2").exists() and time.time() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "cut/metrics.json").exists(), "it was to be killed before its end"
    shutil.rmtree(place / "cut/checkpoint-4", ignore_errors=True)
    run(" ".join(command) + " --resume_from_checkpoint true", hub, place)
    run(f"{S1} {FEW} --output_dir whole", hub, place)
    one, other = (load_file(place / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    for name in one:
        assert_close(one[name], other[name], rtol=0, atol=0)


@pytest.mark.slow
def test_the_commands_run_as_they_stand(hub, place):
    """Stage 0 to its end; stage 1, which is a night's work, to its first sealed checkpoint."""
    run(S0, hub, place)
    assert (place / "outputs/ossight/s0_coco/checkpoint-1200/seal.json").exists()
    process = subprocess.Popen(S1.split(), cwd=place, env=environment(hub, place), start_new_session=True)
    until = time.time() + 1800
    while not (place / "outputs/ossight/s1_lora/checkpoint-250/seal.json").exists() and process.poll() is None:
        assert time.time() < until
        time.sleep(1)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
