"""Similarity, against the model asked one picture and one text at a time."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from grounding.similarity import similarity
from tests.grounding.stand_ins import make_clip


def test_batches_and_texts_said_twice_change_nothing():
    model, processor = make_clip()
    pictures = [Image.new("RGB", (20 + 5 * i, 30), (40 * i, 255 - 40 * i, 90)) for i in range(5)]
    texts = ["big red star", "tree", "big red star", "blue boat", "tree"]
    found = similarity(model, processor, pictures, texts, batch_size=2)
    assert len(set(found)) == 5
    for picture, text, cosine in zip(pictures, texts, found, strict=True):
        pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        ids = processor.tokenizer(text, padding="max_length", max_length=16, return_tensors="pt")
        with torch.no_grad():
            seen = model.get_image_features(pixels).pooler_output
            read = model.get_text_features(ids["input_ids"], ids["attention_mask"]).pooler_output
        assert cosine == pytest.approx(F.cosine_similarity(seen, read).item(), abs=1e-5)


def test_nothing_is_like_nothing_and_each_needs_its_own():
    model, processor = make_clip()
    assert similarity(model, processor, [], []) == []
    with pytest.raises(ValueError, match="1 pictures and 2 texts"):
        similarity(model, processor, [Image.new("RGB", (4, 4))], ["a", "b"])


def test_a_text_longer_than_the_model_reads_is_cut():
    model, processor = make_clip()
    picture = Image.new("RGB", (32, 32), "red")
    (long,), (cut,) = (similarity(model, processor, [picture], ["red " * number]) for number in (40, 14))
    assert long == pytest.approx(cut, abs=1e-5)
