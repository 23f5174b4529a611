"""Grounded captions as recipes/augment.py leaves them, by its contract written here by hand."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from datasets_scripts import load_rows
from datasets_scripts.open_picture import open_picture


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def example(kind, image_id, text, box=None, image=None, caption=None):
    return {
        "kind": kind, "image_id": image_id, "image": image or f"pictures/{image_id}.png", "width": 20, "height": 10,
        "caption_id": 3, "caption": caption or f"A {text} somewhere.", "text": text, "phrase": text if box else None, "box": box,
        "detector_score": 0.5 if box else None, "clip_score": None, "detector": "org/detector@abc", "similarity_model": None,
        "captioner": None,
    }  # fmt: skip


def write(folder, rows, split="train"):
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        Pillow.new("RGB", (20, 10), "red").save(folder / f"pictures/{name}.png")
    schema = pa.schema(
        [("width", pa.int64()), ("height", pa.int64()), ("caption_id", pa.int64()), ("box", pa.list_(pa.float64())),
         ("detector_score", pa.float64()), ("clip_score", pa.float64())]
        + [(name, pa.string()) for name in ("kind", "image_id", "image", "caption", "text", "phrase", "detector",
                                            "similarity_model", "captioner")]
    )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{split}.parquet")
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    absolute = str(tmp_path / "out/pictures/b.png")
    rows = [
        example("caption", "a", "one", caption="first"), example("region", "a", "red dog", [5, 1, 15, 6], caption="first"),
        example("caption", "b", "two", image=absolute, caption="of b"),
        example("region", "b", "cat", [0, 0, 40, 10], image=absolute, caption="of b"),
        example("region", "a", "tail", [0, 0, 2, 2], caption="second"), example("caption", "a", "three", caption="second"),
    ]  # fmt: skip
    return write(tmp_path / "out", rows)


def said(rows):
    return [(row["image_id"], row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
def test_captions_and_regions_lie_among_each_other_as_they_were_written(folder, streaming):
    rows = list(load_rows("grounded", "train", data_dir=folder, streaming=streaming))
    assert said(rows) == [
        ("a", "Describe the picture.", "one"), ("a-0", "Describe the region [0.25, 0.10, 0.75, 0.60].", "red dog"),
        ("b", "Describe the picture.", "two"), ("b-0", "Describe the region [0.00, 0.00, 1.00, 1.00].", "cat"),
        ("a-1", "Describe the region [0.00, 0.00, 0.10, 0.20].", "tail"), ("a", "Describe the picture.", "three"),
    ]  # fmt: skip
    assert rows[0]["references"] == rows[5]["references"] == ["first", "second"]
    assert rows[1]["references"] == ["red dog"] and rows[2]["references"][0] == "of b"
    assert [open_picture(row["images"][0]).size for row in rows] == [(20, 10)] * 6
    assert list(rows[0]) == ["images", "prompt", "completion", "references", "image_id", "regions"]


def test_either_kind_alone(folder):
    captions = load_rows("grounded", "train", data_dir=folder, examples="captions")
    assert [name for name, *_ in said(captions)] == ["a", "b", "a"]
    for how in ({"examples": "regions"}, {"rows": "region"}):
        assert [name for name, *_ in said(load_rows("grounded", "train", data_dir=folder, **how))] == [
            "a-0",
            "b-0",
            "a-1",
        ]


@pytest.mark.parametrize("streaming", [False, True])
def test_regions_may_be_cut_out(folder, streaming):
    rows = list(load_rows("grounded", "train", data_dir=folder, regions="crop", margin=0, streaming=streaming))
    sizes = [open_picture(row["images"][0]).size for row in rows]
    assert sizes == [(20, 10), (10, 5), (20, 10), (20, 10), (2, 2), (20, 10)]
    assert {prompt for _, prompt, _ in said(rows)} == {"Describe the picture."}


def test_pictures_that_are_gone_and_boxes_outside_are_left_out_and_counted(tmp_path, caplog):
    rows = [example("caption", "a", "x"), example("region", "a", "y", [20, 0, 30, 5]), example("region", "gone", "z", [0, 0, 1, 1]),
            example("caption", "gone", "z")]  # fmt: skip
    path = write(tmp_path / "out", rows)
    with caplog.at_level(logging.WARNING):
        left = load_rows("grounded", "train", data_dir=path)
    assert [name for name, *_ in said(left)] == ["a"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}/train.parquet: 1 pictures that are not there left out ({path}/pictures/gone.png)",
        f"{path}/train.parquet: 1 regions without area in their picture left out (a-0)",
    ]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"kind": "question"}, "row 0: kind must be caption or region, is 'question'"),
        ({"kind": "region", "box": None}, "row 0: a region needs a box of four pixels x0, y0, x1, y1; it has None"),
        ({"kind": "region", "box": [1.0, 2.0]}, r"row 0: a region needs a box .* has \[1.0, 2.0\]"),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path, changes, message):
    path = write(tmp_path / "out", [example("caption", "a", "x") | changes])
    with pytest.raises(ValueError, match=message):
        load_rows("grounded", "train", data_dir=path)


def test_a_folder_that_is_none_says_what_is_missing(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no train.parquet in .*: recipes/augment.py writes it; found nothing"):
        (tmp_path / "empty").mkdir()
        load_rows("grounded", "train", data_dir=str(tmp_path / "empty"))
    pq.write_table(pa.table({"kind": ["caption"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="lacks the columns box, caption, height, image, image_id, text, width"):
        load_rows("grounded", "train", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="has no split 'validation'; it has train"):
        load_rows("grounded", "validation", data_dir=folder)
    with pytest.raises(ValueError, match="grounded is for learning"):
        load_rows("grounded", "train", rows="image", data_dir=folder)
    with pytest.raises(ValueError, match="examples must be one of all, captions, regions; got 'some'"):
        load_rows("grounded", "train", data_dir=folder, examples="some")
    with pytest.raises(ValueError, match="regions must be one of box, crop; got 'mask'"):
        load_rows("grounded", "train", data_dir=folder, regions="mask")
