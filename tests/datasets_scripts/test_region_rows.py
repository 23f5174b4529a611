"""Region rows: whole pictures with a box in the prompt, or parts cut out as they are asked for; of scenes, of COCO, of anything."""

import json
import logging
from importlib import import_module

import pytest
from datasets import Dataset, Features, Image, List
from PIL import Image as Pillow

from datasets_scripts import load_rows, split_names
from datasets_scripts.canonical import CAPTION_FEATURES, turns
from datasets_scripts.open_picture import open_picture, upright_size


region_rows = import_module("datasets_scripts.region_rows")  # beside its function of that name
SMALL = {"num_train": 6, "num_eval": 2}
RAW = Features({**CAPTION_FEATURES, "images": List(Image(decode=False))})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def photo(path, size=(20, 10), orientation=None):
    """Red to the left, blue to the right, as it is stored."""
    picture = Pillow.new("RGB", size, (255, 0, 0))
    picture.paste((0, 0, 255), (size[0] // 2, 0, *size))
    exif = Pillow.Exif()
    if orientation:
        exif[0x0112] = orientation
    picture.save(path, exif=exif)
    return {"bytes": None, "path": str(path)}


def row(picture, *regions, image_id="p"):
    named = [{"box": list(map(float, box)), "phrase": phrase} for box, phrase in regions]
    return {"images": [picture], **turns("Describe the picture.", "all of it"), "references": ["all of it"],
            "image_id": image_id, "regions": named}  # fmt: skip


def made(*rows, streaming=False, **how):
    rows = Dataset.from_list(list(rows), features=RAW)
    return region_rows.region_rows(rows.to_iterable_dataset() if streaming else rows, **how)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_box_is_asked_of_in_hundredths_of_the_sides_over_the_whole_picture(tmp_path, streaming):
    picture = photo(tmp_path / "a.png")
    source = row(picture, ((5, 1, 15, 6), " a thing "), ((0, 0, 20, 10), "everything")), row(picture, image_id="q")
    rows = list(made(*source, streaming=streaming))
    assert [one["prompt"][0]["content"] for one in rows] == [
        "Describe the region [0.25, 0.10, 0.75, 0.60].",
        "Describe the region [0.00, 0.00, 1.00, 1.00].",
    ]
    assert rows[0] == {
        "images": [picture], **turns("Describe the region [0.25, 0.10, 0.75, 0.60].", "a thing"), "references": ["a thing"],
        "image_id": "p-0", "regions": [{"box": [5, 1, 15, 6], "phrase": "a thing"}],
    }  # fmt: skip
    assert rows[1]["image_id"] == "p-1"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_crop_is_the_box_and_its_margin_and_no_more_than_the_picture(tmp_path, streaming):
    source = row(photo(tmp_path / "a.png"), ((12, 2, 18, 7), "blue"), ((0, 0, 10, 10), "red"))
    blue, red = made(source, how="crop", margin=0.5, streaming=streaming)
    # 3 and 2.5 pixels around 6 x 5: from 9 to 21, which is 20, and from -0.5, which is 0, to 9.5, whose pixel is the tenth
    part = open_picture(blue["images"][0])
    assert part.size == (11, 10)
    assert part.getpixel((0, 0)) == (255, 0, 0) and part.getpixel((1, 0)) == (0, 0, 255)
    assert blue["prompt"][0]["content"] == "Describe the picture." and blue["completion"][0]["content"] == "blue"
    assert blue["regions"] == [{"box": [3, 2, 9, 7], "phrase": "blue"}]
    (exact,) = made(row(photo(tmp_path / "b.png"), ((12.2, 2, 17.8, 7), "blue")), how="crop", margin=0)
    assert open_picture(exact["images"][0]).size == (6, 5), "pixels that the box touches are in"
    assert open_picture(red["images"][0]).size == (15, 10)


@pytest.mark.parametrize("orientation,left", [(6, (255, 0, 0)), (3, (0, 0, 255)), (None, (255, 0, 0))])
def test_boxes_are_of_the_upright_picture(tmp_path, orientation, left):
    """Orientation 6: to be turned a quarter clockwise, so that what is stored 20 wide is seen 20 high, its left end on top."""
    picture = photo(tmp_path / "a.jpg", (32, 16), orientation)
    size = (16, 32) if orientation == 6 else (32, 16)
    assert upright_size(picture) == size == open_picture(picture).size
    source = row(picture, ((0, 0, size[0] / 2, size[1] / 4), "corner"))
    (asked,) = made(source)
    assert asked["prompt"][0]["content"] == "Describe the region [0.00, 0.00, 0.50, 0.25]."
    (cut,) = made(source, how="crop", margin=0)
    part = open_picture(cut["images"][0])
    assert part.size == (size[0] // 2, size[1] // 4)
    assert sum(abs(a - b) for a, b in zip(part.getpixel((1, 1)), left, strict=True)) < 30


def test_a_turned_tiff_is_as_wide_as_it_opens(tmp_path):
    picture = photo(tmp_path / "a.tif", (32, 16), 6)
    assert upright_size(picture) == open_picture(picture).size
    assert upright_size(open_picture(picture)) == upright_size(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("streaming", [False, True])
def test_boxes_are_clipped_and_what_is_left_without_area_is_counted(tmp_path, caplog, streaming):
    outside = (
        ((30, 0, 40, 5), "gone"),
        ((5, 5, 5, 9), "flat"),
        ((-4, 0, 0, 5), "beside"),
        ((0, 0, float("nan"), 5), "nan"),
    )
    broken = row({"bytes": None, "path": str(tmp_path / "none.png")}, ((0, 0, 1, 1), "a"), image_id="q")
    source = row(photo(tmp_path / "a.png"), *outside, ((-5, -5, 10, 50), "half")), broken
    with caplog.at_level(logging.WARNING):
        rows = list(made(*source, streaming=streaming, where="mine, train"))
    assert [(one["image_id"], one["prompt"][0]["content"]) for one in rows] == [
        ("p-4", "Describe the region [0.00, 0.00, 0.50, 1.00].")
    ]
    assert rows[0]["regions"][0]["box"] == [0, 0, 10, 10]
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "mine, train: 4 regions without area in their picture left out (p-0, p-1, p-2, …)",
        f"mine, train: 1 pictures left out with their regions ({tmp_path / 'none.png'}: No such file or directory)",
    ]


def test_no_picture_is_cut_before_its_row_is_asked_for(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(region_rows, "open_picture", lambda picture: opened.append(picture) or open_picture(picture))
    rows = made(
        *(row(photo(tmp_path / f"{i}.png"), ((0, 0, 9, 9), "a"), image_id=str(i)) for i in range(5)), how="crop"
    )
    rows = rows.shuffle(seed=1).select(range(4))
    assert rows.select_columns(["prompt", "completion"])[0]["completion"][0]["content"] == "a"
    assert not opened, "words need no picture"
    assert list(rows[2]) == list(CAPTION_FEATURES)
    assert len(opened) == 1
    assert set(rows[2]["images"][0]) == {"bytes", "path"} and rows[2]["images"][0]["bytes"].startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="take all columns, or regions: box"):
        rows.select_columns("images")[0]


def test_a_picture_that_is_damaged_later_is_left_to_whoever_opens_it(tmp_path):
    picture = photo(tmp_path / "a.png")
    rows = made(row(picture, ((0, 0, 9, 9), "a")), how="crop")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert rows[0]["images"] == [picture]


def test_what_is_asked_may_be_said_otherwise(tmp_path):
    source = row(photo(tmp_path / "a.png"), ((0, 0, 10, 5), "a"))
    (one,) = made(source, prompt="What is in {box}?")
    assert one["prompt"][0]["content"] == "What is in [0.00, 0.00, 0.50, 0.50]?"
    with pytest.raises(ValueError, match="of regions: box must say where the box goes"):
        made(source, prompt="What is it?")
    with pytest.raises(ValueError, match="of regions: crop knows no {box}"):
        made(source, how="crop", prompt="What is in {box}?")
    with pytest.raises(ValueError, match="regions must be one of box, crop; got 'mask'"):
        made(source, how="mask")
    with pytest.raises(ValueError, match="margin must be at least 0"):
        made(source, margin=-0.1)
    with pytest.raises(ValueError, match="none of 1 rows has a region"):
        made(row(photo(tmp_path / "a.png")))
    two = source | {"images": [*source["images"], *source["images"]]}
    with pytest.raises(ValueError, match="row p has 2 pictures"):
        made(two)


@pytest.mark.parametrize("how", ["box", "crop"])
@pytest.mark.parametrize("rows", ["region", "both"])
def test_scenes_have_region_rows_and_captions_beside_them_streamed_or_not(how, rows):
    whole = list(load_rows("scenes", "train", rows=rows, regions=how, **SMALL))
    streamed = list(load_rows("scenes", "train", rows=rows, regions=how, streaming=True, **SMALL))
    key = lambda row: (row["image_id"], row["prompt"][0]["content"])  # noqa: E731
    assert sorted(streamed, key=key) == sorted(whole, key=key)
    scenes = list(load_rows("scenes", "train", **SMALL))
    told = {
        f"{scene['image_id']}-{i}": region["phrase"] for scene in scenes for i, region in enumerate(scene["regions"])
    }
    captions = {scene["image_id"]: scene["completion"][0]["content"] for scene in scenes} if rows == "both" else {}
    assert {row["image_id"]: row["completion"][0]["content"] for row in whole} == told | captions
    assert len(whole) == len(told) + len(captions)
    for row in whole:
        size = open_picture(row["images"][0]).size
        assert (size == (60, 60)) == (how == "box" or row["image_id"] in captions)


def test_coco_is_found_by_its_variable_and_val_is_its_validation(tmp_path, monkeypatch):
    (tmp_path / "coco/val2017").mkdir(parents=True)
    (tmp_path / "coco/annotations").mkdir()
    photo(tmp_path / "coco/val2017/7.jpg")
    images = [{"id": 7, "file_name": "7.jpg"}]
    for kind, content in {
        "captions": {"annotations": [{"id": i, "image_id": 7, "caption": f"A dog {i}."} for i in range(2)]},
        "instances": {"annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 1, 4, 5]}],
                      "categories": [{"id": 3, "name": "dog"}]},
    }.items():  # fmt: skip
        (tmp_path / f"coco/annotations/{kind}_val2017.json").write_text(json.dumps({"images": images, **content}))
    monkeypatch.delenv("COCO_ROOT", raising=False)
    with pytest.raises(ValueError, match="set COCO_ROOT to the folder .* or give it as data_dir"):
        load_rows("coco", "val")
    monkeypatch.setenv("COCO_ROOT", str(tmp_path / "coco"))
    assert len(load_rows("coco", "val")) == 2 and len(load_rows("coco", "validation", rows="image")) == 1
    both = load_rows("coco", "val", rows="both", regions="box")
    assert [row["completion"][0]["content"] for row in both] == ["A dog 0.", "A dog 1.", "dog"]
    assert both[2]["prompt"][0]["content"] == "Describe the region [0.10, 0.10, 0.30, 0.60]."
    cut = load_rows("coco", "val", rows="both", regions="crop", margin=0, data_dir=str(tmp_path / "coco"))
    assert [open_picture(row["images"][0]).size for row in cut] == [(20, 10), (20, 10), (4, 5)]
    assert split_names("coco", rows="region", regions="crop") == ["validation"]
