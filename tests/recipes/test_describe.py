"""recipes/describe.py with a method that changes what the model says, and with a reward that chooses: as these say it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modeling import OSSightForConditionalGeneration, VisionRewardForSequenceClassification
from modeling.attention_amplification import PAIConfig, pai
from modeling.contrastive_decoding import VCDConfig, vcd
from processing import OSSightProcessor
from tests.conftest import picture
from trainers.captioning_evaluation import generate_captions
from trainers.reward_scores import best_of


SCRIPT = Path(__file__).parents[2] / "recipes/describe.py"
PROMPT = "what colour is it"


def describe(folder: Path, place: Path, *words: str) -> subprocess.CompletedProcess:
    picture(1).save(place / "one.png")
    how = ["--prompt", PROMPT, "--max_new_tokens", "6", *words, "--model", str(folder), "one.png"]
    return subprocess.run([sys.executable, str(SCRIPT), *how], cwd=place, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words,method",
    [
        (["--vcd", "alpha=2.5", "noise_step=999"], lambda model: vcd(model, VCDConfig(alpha=2.5, noise_step=999))),
        (
            ["--pai", "alpha=4", "gamma=3", "start_layer=0"],
            lambda model: pai(model, PAIConfig(alpha=4.0, gamma=3.0, start_layer=0)),
        ),
    ],
    ids=["vcd", "pai"],
)
def test_a_method_named_on_the_command_line_is_on(words, method, tiny_folder, tmp_path):
    done = describe(tiny_folder, tmp_path, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    model = OSSightForConditionalGeneration.from_pretrained(tiny_folder).eval()
    processor = OSSightProcessor.from_pretrained(tiny_folder)
    rows = [{"prompt": [{"role": "user", "content": PROMPT}], "images": [picture(1)]}]
    how = {"progress": False, "max_new_tokens": 6, "do_sample": False}
    plain = generate_captions(model, processor, rows, 1, **how)[0]
    with method(model):
        changed = generate_captions(model, processor, rows, 1, **how)[0]
    assert done.stdout == f"one.png\t{changed}\n" and changed != plain


def test_one_method_at_a_time_and_settings_that_it_has(tiny_folder, tmp_path):
    done = describe(tiny_folder, tmp_path, "--vcd", "--pai")
    assert done.returncode and "--pai: not allowed with argument --vcd" in done.stderr
    done = describe(tiny_folder, tmp_path, "--vcd", "gamma=2")
    assert done.returncode and "'gamma=2' is none of alpha=" in done.stderr


def test_the_caption_with_the_highest_reward_is_kept_and_the_reward_told(tiny_folder, tmp_path):
    model = OSSightForConditionalGeneration.from_pretrained(tiny_folder).eval()
    processor = OSSightProcessor.from_pretrained(tiny_folder)
    reward = VisionRewardForSequenceClassification.from_vlm(str(tiny_folder))
    reward.score.weight.data *= 100  # so that rewards differ in what is written of them
    reward.save_pretrained(tmp_path / "reward")
    processor.save_pretrained(tmp_path / "reward")
    words = [
        "--reward_model",
        "reward",
        "--best_of",
        "5",
        "--temperature",
        "2.0",
        "--seed",
        "3",
        "--output",
        "said.jsonl",
    ]
    done = describe(tiny_folder, tmp_path, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [{"prompt": [{"role": "user", "content": PROMPT}], "images": [picture(1)], "image_id": "one.png"}]
    how = {"batch_size": 8, "progress": False, "max_new_tokens": 6, "do_sample": False}
    asked = model, processor, reward, processor, rows, 5
    ((captions, rewards),) = best_of(*asked, temperature=2.0, seed=3, **how)
    best = max(range(6), key=lambda i: rewards[i])
    assert best != 0 and min(rewards) < rewards[best]
    told = json.loads((tmp_path / "said.jsonl").read_text())
    assert told == {"file": "one.png", "caption": captions[best], "reward": pytest.approx(rewards[best], abs=1e-4)}
    assert done.stdout == f"one.png\t{captions[best]}\n"


def test_there_is_no_best_without_a_reward(tiny_folder, tmp_path):
    done = describe(tiny_folder, tmp_path, "--best_of", "4")
    assert done.returncode and "need --reward_model" in done.stderr
