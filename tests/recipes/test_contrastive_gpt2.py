"""The contrastive GPT-2's YAMLs end to end, shrunk: phase 1, phase 2, the ablation, the comparison, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.loopback_hub import LoopbackHub


ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "recipes/accelerate/cpu.yaml"]
TINY = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 2}
TINY |= {"logging_steps": 1, "warmup_steps": 0, "eval_examples": 8}


def run(*command, cwd: Path) -> str:
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cwd / "datasets"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def shrunk(name: str, folder: Path, **changes) -> Path:
    """A shipped YAML with few steps of few rows."""
    settings = yaml.safe_load((ROOT / f"recipes/contrastive_gpt2/{name}.yaml").read_text()) | TINY | changes
    settings["dataset_options"] = {"num_train": 24, "num_eval": 12}
    for options in ("test_options", "retrieval_options"):
        if options in settings:
            settings[options] = {"num_eval": 12, "distinct": True, "wording": 4}
    settings |= {key: str(ROOT / settings[key]) for key in ("vision_model", "text_model") if key in settings}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return folder / f"{name}.yaml"


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which phase 1 has run."""
    folder = tmp_path_factory.mktemp("contrastive_gpt2")
    run(
        *LAUNCH,
        ROOT / "recipes/align.py",
        "--config",
        shrunk("phase1", folder, per_device_train_batch_size=8),
        cwd=folder,
    )
    return folder


def test_phase_1_leaves_captions_and_retrieval_and_a_model_that_describes(place):
    out = place / "outputs/contrastive_gpt2/phase1"
    figures = metrics(out)
    assert {"scene_f1", "cider", "chair_i", "text_to_image_r1", "image_to_text_r5"} <= figures.keys()
    assert figures["protocol"]["retrieval"]["gallery"] == {"image": 12, "text": 12}
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 12
    log = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert {"image_text_loss", "caption_loss"} <= log[0].keys()
    run(sys.executable, ROOT / "recipes/draw_scenes.py", "--count", 2, "--output", "pictures", cwd=place)
    said = run(sys.executable, ROOT / "recipes/describe.py", "--model", out, "pictures", cwd=place)
    assert len(said.strip().splitlines()) == 2
    run(sys.executable, ROOT / "recipes/stranger.py", "--model", out, cwd=place)


def test_phase_2_begins_there_and_is_compared_with_it(place):
    config = shrunk("phase2", place, per_device_train_batch_size=4, eval_steps=2)
    run(*LAUNCH, ROOT / "recipes/prefer.py", "--config", config, cwd=place)
    out = place / "outputs/contrastive_gpt2/phase2"
    figures = metrics(out)
    kinds = {
        f"normalised_preference_accuracy_{flaw}" for flaw in ("invented_object", "wrong_attribute", "broken_grammar")
    }
    assert kinds | {"win_rate", "win_rate_shuffled", "chair_i", "text_to_image_r1"} <= figures.keys()
    assert figures["protocol"]["win_rate"]["judge"].startswith("truth")
    log = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert [entry["alpha"] for entry in log if "alpha" in entry] == pytest.approx([0.7, 0.566667, 0.433333, 0.3])
    assert (out / "loss.png").stat().st_size > 1000


def test_the_ablation_contrasts_alone(place):
    config = shrunk("ablation", place, per_device_train_batch_size=8)
    run(*LAUNCH, ROOT / "recipes/align.py", "--config", config, cwd=place)
    log = (place / "outputs/contrastive_gpt2/ablation/train_log.jsonl").read_text().splitlines()
    assert "image_text_loss" in json.loads(log[0]) and "caption_loss" not in json.loads(log[0])


def test_the_comparison_runs_what_is_missing_and_writes_one_table(place):
    config = shrunk("phase2", place, per_device_train_batch_size=4, max_steps=2, eval_strategy="no", load_best_model_at_end=False,
                    early_stopping_patience=None, save_strategy="no")  # fmt: skip
    compare = [
        sys.executable,
        ROOT / "recipes/compare_preferences.py",
        "--config",
        config,
        "--seeds",
        1,
        "--output",
        "all",
    ]
    run(*compare, "--ways", "joint_alpha_t", "dpo", cwd=place)
    table = (place / "all/table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["phase_1", "joint_alpha_t", "dpo"]
    assert "–" not in table[3] and (place / "all/dpo_1/metrics.json").exists()
    log = [json.loads(line) for line in (place / "all/dpo_1/train_log.jsonl").read_text().splitlines()]
    assert log[0]["alpha"] == 0 and log[0]["preference_loss"] == pytest.approx(
        0.693147, abs=1e-5
    )  # log 2: the reference itself
    before = (place / "all/dpo_1/metrics.json").stat().st_mtime_ns
    run(*compare, "--ways", "dpo", cwd=place)
    assert (place / "all/dpo_1/metrics.json").stat().st_mtime_ns == before


def test_both_phases_run_on_photographs_with_towers_from_the_hub(real_data, tmp_path, monkeypatch):
    changes = {
        "per_device_train_batch_size": 4,
        "max_new_tokens": 4,
        "num_beams": 2,
        "use_cpu": True,
    }
    changes |= {"data_dir": str(real_data / "coco2017"), "max_steps": 2, "eval_steps": 2}
    fewer = {"phase1_coco": {"caption_examples": 3}, "phase2_coco": {"test_examples": 3}}
    with LoopbackHub(alias_pins=True) as hub:
        hub.seed("openai/clip-vit-base-patch32", ROOT / "model_cards/miniature_clip")
        hub.seed("openai-community/gpt2", ROOT / "model_cards/miniature_gpt2")
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        for script, phase in (("align.py", "phase1_coco"), ("prefer.py", "phase2_coco")):
            path = ROOT / f"recipes/contrastive_gpt2/{phase}.yaml"
            settings = yaml.safe_load(path.read_text()) | TINY | changes | fewer[phase]
            (tmp_path / f"{phase}.yaml").write_text(yaml.safe_dump(settings))
            run(*LAUNCH, ROOT / f"recipes/{script}", "--config", f"{phase}.yaml", cwd=tmp_path)
    out = tmp_path / "outputs/contrastive_gpt2"
    assert {"cider", "text_to_image_r1"} <= metrics(out / "phase1_coco").keys()
    assert {"cider", "normalised_preference_accuracy_swapped_object"} <= metrics(out / "phase2_coco").keys()
