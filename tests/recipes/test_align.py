"""recipes/align.py end to end: the shipped YAML, two processes, a killed run, folders of classes, the folder it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from datasets_scripts.picture_links import Links
from tests.loopback_hub import LoopbackHub


ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "recipes/accelerate/cpu.yaml"]
TINY = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "logging_steps": 1,
}
TINY |= {"per_device_train_batch_size": 10, "warmup_steps": 0, "eval_examples": 8, "use_cpu": True, "output_dir": "out"}
SPACE = {
    "embed_dim": 64,
    "matryoshka_dimensions": [16, 64],
    "projector_dim": 16,
    "num_attention_heads": 2,
    "num_queries": 2,
}


def run(*command, cwd: Path) -> None:
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cwd / "datasets"), "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command)], cwd=cwd, check=True, env=environment)


@pytest.fixture
def recipe(tmp_path) -> Path:
    """The shipped quickstart with a few steps of a few rows."""
    settings = yaml.safe_load((ROOT / "recipes/aligner/quickstart.yaml").read_text()) | TINY
    settings["model_config"] |= SPACE
    settings["dataset_options"] = {"num_train": 40, "num_eval": 20}
    settings["test_options"] = {"num_eval": 20, "distinct": True, "wording": 4}
    settings |= {name: str(ROOT / settings[name]) for name in ("vision_model", "text_model")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_shipped_recipe_leaves_a_folder_that_is_scored_again(recipe, tmp_path):
    run(*LAUNCH, ROOT / "recipes/align.py", "--config", recipe, cwd=tmp_path)
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {"text_to_image_r1", "image_to_text_r10@16", "text_to_image_median_rank"} <= figures.keys()
    assert figures["protocol"]["gallery"] == {"image": 20, "text": 20}
    command = [sys.executable, ROOT / "recipes/evaluate.py", "--model", "out", "--dataset", "scenes", "--split", "test"]
    options = json.dumps({"num_eval": 20, "num_train": 40, "distinct": True, "wording": 4})
    command += ["--dataset_options", options, "--metrics", "retrieval"]
    run(*command, "--output", "again", cwd=tmp_path)
    again = json.loads((tmp_path / "again/metrics.json").read_text())
    assert {k: v for k, v in again.items() if k != "protocol"} == {k: v for k, v in figures.items() if k != "protocol"}
    run(*command, "--dims", 8, 32, "--output", "other", cwd=tmp_path)
    other = json.loads((tmp_path / "other/metrics.json").read_text())
    assert other["text_to_image_r1"] == figures["text_to_image_r1"]
    assert {name.partition("@")[2] for name in other} == {"", "8", "32"}
    told = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
    assert told["model_config"]["embed_dim"] == 64 and told["per_device_train_batch_size"] == 10


SLOWER = ({"chunk_size": 3}, {"cache_features": False, "freeze": ["vision"]})


@pytest.mark.parametrize("way", [{}, *(pytest.param(way, marks=pytest.mark.slow) for way in SLOWER)])
def test_two_processes_learn_what_one_learns(recipe, tmp_path, way):
    settings = yaml.safe_load(recipe.read_text()) | way | {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    recipe.write_text(yaml.safe_dump(settings))
    run(*LAUNCH, ROOT / "recipes/align.py", "--config", recipe, "--output_dir", "one", cwd=tmp_path)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    half = ["--per_device_train_batch_size", "5", "--output_dir", "two"]
    run(*two, ROOT / "recipes/align.py", "--config", recipe, *half, cwd=tmp_path)
    logs = [
        [json.loads(line)["epoch"] for line in (tmp_path / name / "train_log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert logs[0] == logs[1], "there were two processes, and they shared the rows"
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)


def test_a_stopped_run_goes_on_to_the_same_weights(recipe, tmp_path):
    command = [*LAUNCH, ROOT / "recipes/align.py", "--config", recipe]
    run(*command, cwd=tmp_path)
    whole = load_file(tmp_path / "out/model.safetensors")
    assert (tmp_path / "out/checkpoint-2").is_dir()
    subprocess.run(
        ["rm", "-r", str(tmp_path / "out/checkpoint-4"), str(tmp_path / "out/model.safetensors")], check=True
    )
    run(*command, "--resume_from_checkpoint", "true", cwd=tmp_path)
    again = load_file(tmp_path / "out/model.safetensors")
    for name in whole:
        assert_close(again[name], whole[name], rtol=0, atol=0)


@pytest.mark.real_data
def test_satellite_pictures_by_class_go_in_from_scratch(real_data, tmp_path):
    settings = yaml.safe_load((ROOT / "recipes/aligner/eurosat.yaml").read_text()) | TINY
    settings |= {
        "per_device_train_batch_size": 32,
        "dataset_options": settings["dataset_options"] | {"test_fraction": 0.05},
    }
    settings |= {name: str(ROOT / settings[name]) for name in ("vision_model", "text_model") if settings.get(name)}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    run(
        *LAUNCH,
        ROOT / "recipes/align.py",
        "--config",
        "own.yaml",
        "--data_dir",
        real_data / "eurosat_rgb",
        cwd=tmp_path,
    )
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert 0 <= figures["zero_shot_accuracy"]["value"] <= 1 and figures["zero_shot_accuracy"]["n"] > 300


def shrunk(yaml_name: str, path: Path, **changes) -> Path:
    """A shipped recipe with a few steps of a few rows, written to `path`."""
    settings = yaml.safe_load((ROOT / "recipes/aligner" / yaml_name).read_text()) | TINY | changes
    settings["model_config"] |= SPACE
    for name in ("vision_model", "text_model"):
        if str(settings.get(name)).startswith("model_cards"):
            settings[name] = str(ROOT / settings[name])
    path.write_text(yaml.safe_dump(settings))
    return path


def test_pictures_and_sounds_meet_in_words_alone(tmp_path):
    few = {"dataset_options": {"num_train": 40, "num_eval": 20, "sounds": True}}
    few["test_options"] = {"num_eval": 20, "distinct": True, "wording": 4, "sounds": True}
    recipe = shrunk("trimodal.yaml", tmp_path / "recipe.yaml", **few)
    run(*LAUNCH, ROOT / "recipes/align.py", "--config", recipe, cwd=tmp_path)
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {
        "audio_to_image_r1",
        "audio_to_text_r1@16",
        "text_to_audio_r5",
        "image_to_audio_median_rank",
    } <= figures.keys()
    logged = [json.loads(line) for line in (tmp_path / "out/train_log.jsonl").read_text().splitlines()]
    losses = {name for line in logged for name in line if name.endswith("_loss") and not name.startswith("eval")}
    assert {"image_text_loss", "audio_text_loss"} <= losses and "image_audio_loss" not in losses


@pytest.mark.real_data
def test_sounds_by_class_go_in_from_scratch(real_data, tmp_path):
    recipe = shrunk("esc10.yaml", tmp_path / "own.yaml")
    run(*LAUNCH, ROOT / "recipes/align.py", "--config", recipe, "--data_dir", real_data / "esc10", cwd=tmp_path)
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert figures["zero_shot_accuracy"]["n"] >= 10


def test_pixmo_is_learned_from_as_far_as_its_links_are_alive_with_towers_from_the_hub(tmp_path, monkeypatch):
    data = tmp_path / "data/pixmo"
    (data / "data").mkdir(parents=True)
    urls = [f"https://example.com/{number}.jpg" for number in range(200)]
    captions = [f"A picture of the number {number}, in {number % 7} colours." for number in range(200)]
    pq.write_table(pa.table({"image_url": urls, "caption": captions}), data / "data/train-00000-of-00001.parquet")
    for number, url in enumerate(urls):
        if number % 10:  # of ten links one is dead
            path = Links(data).path(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (number, 2 * number % 256, 90)).save(path, "JPEG")
    sizes = {"num_train": 40, "num_validation": 10, "num_test": 10}
    # fewer rows, and as many a batch as there are: the YAML's 1,024 are more
    recipe = shrunk("pixmo_clip_mlp.yaml", tmp_path / "recipe.yaml", dataset_options=sizes)
    with LoopbackHub(alias_pins=True) as hub:
        hub.seed("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ROOT / "model_cards/miniature_siglip")
        hub.seed("sentence-transformers/all-mpnet-base-v2", ROOT / "model_cards/miniature_siglip")
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        run(*LAUNCH, ROOT / "recipes/align.py", "--config", recipe, cwd=tmp_path)
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert 5 <= figures["text_to_image_r1"]["n"] <= 10
