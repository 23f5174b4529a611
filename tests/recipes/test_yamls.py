"""Every shipped YAML: what its head says, and that the recipe it is for knows each of its keys."""

import sys
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from trainers.captioning_config import CaptioningConfig
from trainers.contrastive_config import ContrastiveConfig
from trainers.preference_config import PreferenceConfig
from trainers.reward_config import RewardConfig


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes"))
import align  # noqa: E402  recipes are scripts, not a package
import augment  # noqa: E402
import caption  # noqa: E402
import prefer  # noqa: E402
import pretrain_detector  # noqa: E402
import pretrain_language  # noqa: E402
import pretrain_vision  # noqa: E402
import reward  # noqa: E402


LANGUAGE, VISION = (pretrain_language.Recipe, SFTConfig), (pretrain_vision.Recipe, TrainingArguments)
MINIATURE = {"qwen2": LANGUAGE, "gpt2": LANGUAGE, "siglip": VISION, "clip": VISION, "clip_crops": VISION}
MINIATURE |= {
    "llava": (caption.Recipe, CaptioningConfig),
    "grounding_dino": (pretrain_detector.Recipe, TrainingArguments),
}
FOLDERS = {
    "aligner": (align.Recipe, ContrastiveConfig),
    "contrastive_gpt2": (align.Recipe, ContrastiveConfig),
    "grounded": (caption.Recipe, CaptioningConfig),
    "ossight": (caption.Recipe, CaptioningConfig),
    "reward": (reward.Recipe, RewardConfig),
    "spin": (caption.Recipe, CaptioningConfig),
}
YAMLS = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_yaml_opens_with_what_it_shows_and_has_no_unknown_key(path):
    text = path.read_text()
    assert text.startswith("# ") and "Time:" in text
    keys = set(yaml.safe_load(text))
    if "trainer" in keys:
        known = prefer.Recipe, {"joint": PreferenceConfig, "dpo": DPOConfig}[yaml.safe_load(text)["trainer"]]
    elif "detector" in keys:
        known = (augment.Recipe,)
    elif path.parent.name == "miniature":
        known = MINIATURE[path.stem]
    else:
        known = FOLDERS[path.parent.name]
    assert not keys - {name for kind in known for name in kind.__dataclass_fields__}
