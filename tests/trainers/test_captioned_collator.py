"""CaptionedCollator and the caption loss of ContrastiveTrainer: what a model that writes and embeds learns of image and text."""

import pytest
import torch
from torch.testing import assert_close

from modeling.contrastive_losses import info_nce
from tests.conftest import picture
from tests.modeling.test_modeling_aligner import make_aligner, make_aligner_processor
from tests.modeling.test_modeling_contrastive_gpt2 import make_contrastive_gpt2, make_contrastive_processor
from trainers.contrastive_config import ContrastiveConfig
from trainers.contrastive_data import CaptionedCollator
from trainers.contrastive_trainer import ContrastiveTrainer
from trainers.retrieval_evaluation import embed_rows


TEXTS = ["red", "what colour is it", "blue green", "red"]


def rows() -> list[dict]:
    return [{"image": picture(i), "text": text} for i, text in enumerate(TEXTS)]


def trainer_of(model, tmp_path, processor=None, **settings) -> ContrastiveTrainer:
    args = ContrastiveConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", **settings)
    return ContrastiveTrainer(model, args, processor or make_contrastive_processor())


def test_a_caption_is_written_behind_the_picture_and_read_alone():
    batch = CaptionedCollator(make_contrastive_processor(), prompt="what")(rows())
    tokens = make_contrastive_processor().tokenizer
    written = [row[row != -100].tolist() for row in batch["labels"]]
    assert written[1] == tokens("what colour is it")["input_ids"] + [1]
    assert (batch["input_ids"] == 3).sum() == 4 * 4 and not (batch["text_input_ids"] == 3).any()
    assert batch["text_input_ids"][1].tolist() == written[1]
    keys = batch["text_key"].tolist()
    assert keys[0] == keys[3] and len(set(keys)) == 3 and len(set(batch["image_key"].tolist())) == 4
    alone = CaptionedCollator(make_contrastive_processor(), captions=False)(rows())
    assert not {"input_ids", "labels"} & alone.keys() and "pixel_values" in alone


def test_the_loss_is_contrast_and_caption_and_what_cannot_be_read_changes_nothing(tmp_path):
    model = make_contrastive_gpt2()
    collate = CaptionedCollator(make_contrastive_processor())
    batch = collate(rows())
    out = model(**{k: v for k, v in batch.items() if "there" not in k and "key" not in k})
    alike = torch.tensor([[one == other for one in TEXTS] for other in TEXTS])
    expected = info_nce(out.image_embeds @ out.text_embeds.T / 0.07, alike) + 0.5 * out.loss
    trainer = trainer_of(model, tmp_path, caption_weight=0.5)
    assert_close(trainer.compute_loss(model, dict(batch)), expected, rtol=1e-5, atol=1e-5)
    mixed = collate([*rows(), {"image": {"bytes": b"no picture", "path": None}, "text": "it"}])
    assert mixed["skipped"] == 1
    assert_close(trainer.compute_loss(model, mixed), expected, rtol=1e-5, atol=1e-5)
    assert trainer._skipped == 1 and {"image_text_loss", "caption_loss"} == set(trainer._components)


def test_its_embeddings_are_searched_as_an_aligners_are(tmp_path):
    from datasets import Dataset

    model, processor = make_contrastive_gpt2(), make_contrastive_processor()
    embedded = embed_rows(model, processor, Dataset.from_list(rows()), batch_size=3, progress=False)
    assert embedded.items["image"].shape == (4, 16) and embedded.items["text"].shape == (3, 16)
    assert embedded.rows["text"].tolist() == [0, 1, 2, 0]
    read = model.get_text_features(**processor.encode_text(["blue green"])).pooler_output
    assert_close(embedded.items["text"][2], read[0], rtol=1e-4, atol=1e-5)


def test_settings_for_another_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="caption_weight=1.0: AlignerModel writes no captions"):
        trainer_of(make_aligner(), tmp_path, make_aligner_processor(), caption_weight=1.0)
    with pytest.raises(ValueError, match="chunk_size is not for ContrastiveGPT2ForConditionalGeneration"):
        trainer_of(make_contrastive_gpt2(), tmp_path, chunk_size=2)
    with pytest.raises(ValueError, match="caption_weight must be at least 0; got -1"):
        ContrastiveConfig(output_dir=str(tmp_path), use_cpu=True, caption_weight=-1)
