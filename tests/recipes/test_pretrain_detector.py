"""recipes/pretrain_detector.py: what is asked of a scene, the loss against transformers' own, and a run of a few steps."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, GroundingDinoConfig
from transformers.loss.loss_grounding_dino import GroundingDinoForObjectDetectionLoss, GroundingDinoHungarianMatcher

from datasets_scripts.scene_description import describe
from datasets_scripts.scenes import Scenes
from tests.grounding.stand_ins import make_detector
from trainers.scoring import load_metric


ROOT = Path(__file__).parents[2]
METRIC = load_metric("phrase_grounding")
sys.path.insert(0, str(ROOT / "recipes"))
from pretrain_detector import (  # noqa: E402  recipes are scripts, not a package
    Collator,
    Grounding,
    Recipe,
    grounding_loss,
    phrases_of,
    tokenizer_of,
    words,
)


def test_a_phrase_fits_the_objects_that_have_all_it_says():
    asked = 0
    for index in range(20):
        things = [thing._asdict() for thing in describe(0, "train", index).objects]
        fits = phrases_of(things, Random(index), partial=0.5, absent=3)
        for phrase, numbers in fits.items():
            box = {"boxes": [[0, 0, 1, 1]], "phrases": [phrase]}
            for number, thing in enumerate(things):
                truth = {"boxes": [[0, 0, 1, 1]], "phrases": [f"{thing['size']} {thing['colour']} {thing['shape']}"]}
                right = METRIC.compute(predictions=[box], references=[truth], n_bootstrap=1)["grounding_precision"]
                assert right == (number in numbers), (phrase, truth)
                asked += 1
        assert fits
    assert asked > 100


def test_every_word_of_the_world_is_a_token_and_berts_marks_have_berts_ids():
    tokenizer = tokenizer_of(words())
    for index in range(40):
        things = [thing._asdict() for thing in describe(0, "train", index).objects]
        for phrase in phrases_of(things, Random(index), 0.3, 3):
            assert tokenizer.unk_token_id not in tokenizer(phrase)["input_ids"], phrase
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]", ".", "?"]) == [0, 101, 102, 1012, 1029]


def random_case(pictures):
    torch.manual_seed(1)
    logits, boxes = torch.randn(pictures, 6, 12), torch.rand(pictures, 6, 4) * 0.4 + 0.2
    labels = []
    for number in range(pictures):
        count = number + 1
        spans = torch.zeros(count, 12)
        for thing in range(count):
            spans[thing, 1 + 3 * thing : 3 + 3 * thing] = 1
        labels.append({"boxes": torch.rand(count, 4) * 0.4 + 0.2, "words": spans})
    mask = torch.ones(pictures, 12, dtype=torch.bool)
    return logits, boxes, mask, labels


def test_of_one_picture_the_loss_is_transformers_own():
    logits, boxes, mask, labels = random_case(1)
    labels[0] = {"boxes": torch.rand(3, 4) * 0.4 + 0.2, "words": torch.eye(12)[[2, 5, 7]]}
    mask[0, 9:] = False
    config = GroundingDinoConfig(two_stage=False)
    told = [{"boxes": labels[0]["boxes"], "class_labels": torch.arange(3)}]
    map_of = (labels[0]["words"],)
    reference, *_ = GroundingDinoForObjectDetectionLoss(
        logits, told, "cpu", boxes, config, map_of, mask[:, None].expand_as(logits)
    )
    found = grounding_loss(logits, boxes, mask, labels, GroundingDinoHungarianMatcher(1, 5, 2))
    assert found.item() == pytest.approx(reference.item(), rel=1e-6)


def test_of_a_batch_it_is_the_mean_over_objects():
    logits, boxes, mask, labels = random_case(3)  # of 1, 2 and 3 objects
    matcher = GroundingDinoHungarianMatcher(1, 5, 2)
    each = [
        grounding_loss(logits[i : i + 1], boxes[i : i + 1], mask[i : i + 1], labels[i : i + 1], matcher)
        for i in range(3)
    ]
    expected = sum((i + 1) * loss for i, loss in enumerate(each)) / 6
    assert grounding_loss(logits, boxes, mask, labels, matcher).item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_part_learns_the_encoders_proposals_too():
    model, processor = make_detector()
    rows = list(Scenes(config_name="captions", num_train=4).as_streaming_dataset("train"))
    recipe = Recipe(image_size=32)
    batch = Collator(recipe, processor, model.config.max_text_len)(rows)
    outputs = Grounding(model.train())(**batch)
    outputs["loss"].backward()
    moved = {
        name.split(".")[1] for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()
    }
    assert {"backbone", "text_backbone", "encoder", "decoder", "encoder_output_bbox_embed", "enc_output"} <= moved
    assert torch.isfinite(outputs["loss"]) and 0 < outputs["last_layer"] < outputs["loss"]


def test_a_run_leaves_a_detector_that_loads_and_its_figures(tmp_path):
    given = [
        "--max_steps",
        "2",
        "--per_device_train_batch_size",
        "2",
        "--num_eval",
        "4",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    script = [
        sys.executable,
        ROOT / "recipes/pretrain_detector.py",
        "--config",
        ROOT / "recipes/miniature/grounding_dino.yaml",
    ]
    done = subprocess.run([*map(str, script), *given], capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stderr[-3000:]
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {"grounding_precision", "grounding_recall", "protocol"} == set(figures)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float16 and processor.tokenizer.decode(
        processor.tokenizer("big red star.")["input_ids"]
    )
