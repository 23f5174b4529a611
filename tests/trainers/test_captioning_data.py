"""From rows to batches: the boundary between what is read and what is learned, and pictures where they belong."""

import pytest
import torch
from datasets import Dataset

from tests.conftest import picture
from trainers.captioning_data import CaptioningCollator, completion_text, drop_overlong, prompt_text, with_pictures


def row(prompt="what colour is it", said="red", images=1):
    return {
        "images": [picture(i) for i in range(images)],
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": said}],
    }


def test_pictures_go_before_the_first_user_words_unless_they_are_placed():
    said = with_pictures([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], 2)
    assert said[1]["content"] == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "b"}]
    placed = [{"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "image"}]}]
    assert with_pictures(placed, 1) == placed
    with pytest.raises(ValueError, match="places 1 pictures and the row has 2"):
        with_pictures(placed, 2)


def test_labels_are_the_completion_and_its_end_and_nothing_else(processor):
    batch = CaptioningCollator(processor)([row(), row(said="blue green")])
    tokenizer = processor.tokenizer
    for ids, labels, text in zip(batch["input_ids"], batch["labels"], ("red </s>", "blue green </s>"), strict=True):
        assert tokenizer.decode(labels[labels != -100]) == text
        learned = (labels != -100).nonzero().flatten()
        assert torch.equal(ids[learned], labels[learned])
        assert tokenizer.decode(ids[: learned[0]]).endswith("ASSISTANT:")
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert (batch["input_ids"] == processor.image_token_id).sum() == 2 * 16
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([16 + 1 + 4 + 1 + 2, 16 + 1 + 4 + 1 + 3]))


def test_rows_with_two_one_and_no_pictures_share_a_batch(processor, model):
    batch = CaptioningCollator(processor)([row(images=2), row(images=0), row(images=1)])
    assert batch["pixel_values"].shape[0] == 3
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [32, 0, 16]
    assert torch.isfinite(model(**batch).loss)
    assert "pixel_values" not in CaptioningCollator(processor)([row(images=0)])


def test_the_fast_way_through_the_template_says_what_the_slow_way_says(processor):
    collate = CaptioningCollator(processor)
    for one in (row(), row(said=" blue "), row(prompt="is it green"), row(images=2), row(said="a b c")):
        clean = {**one, "completion": [{"role": "assistant", "content": one["completion"][0]["content"].strip()}]}
        assert collate._texts(one) == (prompt_text(processor, one), completion_text(processor, clean))


def test_overlong_rows_are_left_out_and_counted_never_cut(processor, caplog):
    rows = Dataset.from_list([row(), row(said="a b c d e f g a b c d")])
    with caplog.at_level("WARNING"):
        kept = drop_overlong(rows, processor, 26)
    assert len(kept) == 1 and kept[0]["completion"][0]["content"] == "red"
    assert "1 of 2 rows are over 26 tokens" in caplog.text
