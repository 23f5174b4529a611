"""The page: which regions it shows, and that what comes from the data cannot speak in it."""

from PIL import Image

from grounding.gallery import gallery, sample
from grounding.shards import statistics
from tests.grounding.test_shards import record


def test_some_of_each_reason_are_drawn_the_same_ones_every_time():
    records = [record(i, "caption") for i in range(30)] + [record(i) for i in range(30)]
    records += [record(i, reason="too small") for i in range(3)]
    drawn = sample(records, 5)
    assert {reason: len(some) for reason, some in drawn.items()} == {"": 5, "too small": 3}
    assert drawn == sample(records, 5)
    names = [int(one["image_id"][1:]) for one in drawn[""]]
    assert names == sorted(names) and names != [0, 1, 2, 3, 4]  # in the data's order, but not its beginning


def test_a_page_shows_scores_and_reasons_and_escapes_what_it_is_given(tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "0.png")
    hostile = "<script>alert(1)</script>"
    records = [
        record(0, "caption"),
        record(0, phrase=hostile, text=hostile, caption=hostile),
        record(1, "caption"),  # whose picture is gone
        record(1, reason="picture and words do not agree", clip_score=-0.12),
        record(2, "unreadable", "is empty"),
    ]
    page = gallery(tmp_path, "a run", {"box_threshold": 0.3, "captioner": None}, statistics(records), records)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "box_threshold 0.3" in page and "captioner" not in page
    assert "Rejected: picture and words do not agree <small>1, 1 shown" in page and "similarity -0.12" in page
    assert page.count("data:image/jpeg") == 1 and page.count("cannot be read</div>") == 1
    assert "1 pictures cannot be read" in page and "<svg" in page
