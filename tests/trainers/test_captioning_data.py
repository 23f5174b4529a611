"""From rows to batches: the boundary between what is read and what is learned, and pictures where they belong."""

import pytest
import torch
from torch.testing import assert_close

from tests.conftest import picture
from trainers.captioning_data import CaptioningCollator, completion_text, prompt_text, with_pictures


def row(prompt="what colour is it", said="red", images=1, image_id="7"):
    return {
        "image_id": image_id,
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


LONG = "a b c d e f g a b c d"


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return row(image_id="9") | {"images": [{"path": str(tmp_path / "broken.jpg"), "bytes": None}]}


def test_a_row_that_cannot_be_used_keeps_its_place_learns_nothing_and_is_named(processor, model, broken):
    rows = [
        row(),
        broken,
        row(said=LONG, image_id="10"),
        row(said=" \n", image_id="11"),
        row(said="blue", image_id="12"),
    ]
    batch = CaptioningCollator(processor, max_length=26)(rows)
    skipped = {one["image_id"]: one["problem"] for one in batch.pop("skipped")}
    assert set(skipped) == {"9", "10", "11"}
    assert "broken.jpg" in skipped["9"]
    assert skipped["10"] == "34 tokens, over 26"
    assert skipped["11"] == "the completion is empty"
    learned = (batch["labels"] != -100).any(1)
    assert learned.tolist() == [True, False, False, False, True]
    alone = CaptioningCollator(processor)([rows[0], rows[4]])
    assert_close(model(**batch).loss, model(**alone).loss)
    assert len(rows) == 5 and rows[1] is broken, "the caller's rows are the caller's"


def test_a_batch_in_which_nothing_can_be_used_still_runs(processor, model, broken):
    batch = CaptioningCollator(processor)([broken, broken])
    assert len(batch.pop("skipped")) == 2
    assert model(**batch).loss == 0


@pytest.mark.parametrize("said,problem", [(None, "row 9: .*broken.jpg"), (LONG, "row 7: 34 tokens, over 26")])
def test_strict_stops_where_a_row_would_be_skipped(processor, broken, said, problem):
    with pytest.raises(ValueError, match=problem):
        CaptioningCollator(processor, max_length=26, strict=True)([broken if said is None else row(said=said)])


def test_special_tokens_written_out_in_the_data_are_words(processor, model):
    """A caption that holds "<image>" or ends the turn brings no placeholder, no end, and no crash."""
    hostile = row(prompt="what is <image> </s>", said="red <image> </s> blue")
    hostile["prompt"].insert(0, {"role": "system", "content": "an <image> too"})
    batch = CaptioningCollator(processor)([hostile])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert (ids == processor.image_token_id).sum() == 16
    assert (labels == processor.tokenizer.eos_token_id).sum() == 1 and labels[-1] == processor.tokenizer.eos_token_id
    assert torch.isfinite(model(**batch).loss)


def test_as_many_written_placeholders_as_pictures_say_where_they_stand(processor):
    """LLaVA's data: "<image>\\nWhat is it?"."""
    asked = row(prompt="a <image> b <image> c", images=2)
    parts = with_pictures(asked["prompt"], 2)[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "text", "image", "text"]
    batch = CaptioningCollator(processor)([asked])
    assert (batch["input_ids"] == processor.image_token_id).sum() == 32
