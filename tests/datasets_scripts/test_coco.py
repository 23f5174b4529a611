"""COCO from disk: miniature copies of the official layout, whole and broken; and real pictures where there are any."""

import json
import logging
import os
from pathlib import Path

import pytest
from datasets import Image, List
from PIL import Image as Pillow

from datasets_scripts.coco import Coco


CAPTIONS = {
    "images": [{"id": 7, "file_name": "000000000007.jpg"}, {"id": 9, "file_name": "000000000009.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "A dog runs.\n"},
        {"id": 2, "image_id": 7, "caption": "A cat."},
        {"id": 3, "image_id": 9, "caption": "A  dog,\nrunning."},
    ],
}
INSTANCES = {
    "images": CAPTIONS["images"],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 5, "image_id": 9, "category_id": 18, "bbox": [1.5, 2, 4, 3.25], "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"id": 6, "image_id": 9, "category_id": 1, "bbox": [0, 0, 8, 6], "iscrowd": 1},
    ],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "coco"
    write(root, "train2017", CAPTIONS, INSTANCES)
    write(root, "val2017", CAPTIONS)
    return root


def write(root: Path, name: str, captions: dict, instances: dict | None = None, mode: str = "RGB") -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for image in captions["images"]:
        Pillow.new(mode, (8, 6), 200).save(root / name / image["file_name"])
    for kind, content in (("captions", captions), ("instances", instances)):
        if content:
            (root / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(content))


def coco(folder: Path, **config) -> Coco:
    return Coco(data_dir=str(folder), cache_dir=str(folder.parent / "cache"), **config)


def prepared(folder: Path, split: str = "train", **config):
    builder = coco(folder, **config)
    builder.download_and_prepare()
    return builder.as_dataset(split)


def without(record: dict, key: str) -> dict:
    return {k: v for k, v in record.items() if k != key}


def changed(content: dict, part: str, index: int, **fields) -> dict:
    records = list(content[part])
    records[index] = records[index] | fields
    return content | {part: records}


def test_a_caption_is_a_row_and_all_captions_of_its_picture_are_its_references(folder):
    rows = prepared(folder)
    assert [row["completion"] for row in rows] == [
        [{"role": "assistant", "content": said}] for said in ("A cat.", "A dog runs.", "A dog, running.")
    ]
    assert rows["references"][:] == [["A cat."], *[["A dog runs.", "A dog, running."]] * 2]
    assert rows["image_id"][:] == ["7", "9", "9"]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Describe the picture."}]
    assert rows[0]["images"][0].size == (8, 6)


def test_one_folder_can_be_both_trained_on_and_judged_by(folder):
    many = {
        "images": [{"id": i, "file_name": f"{i:012}.jpg"} for i in range(30)],
        "annotations": [{"id": i, "image_id": i // 2, "caption": f"Caption {i}."} for i in range(60)],
    }
    write(folder, "val2017", many)
    config = {"train_from": "val2017", "validation_fraction": 0.2}
    train, validation = (set(prepared(folder, split, **config)["image_id"]) for split in ("train", "validation"))
    assert not train & validation and len(train | validation) == 30 and len(validation) < 15
    assert len(prepared(folder, "train", **config)) == 2 * len(train), "a row for each caption"
    with pytest.raises(FileNotFoundError, match="--split train2014 brings both"):
        prepared(folder, train_from="train2014")


def test_rows_image_gives_every_picture_once_with_its_first_caption(folder):
    rows = prepared(folder, rows="image", prompt="What is this?")
    assert rows["image_id"][:] == ["7", "9"]
    assert rows[1]["completion"][0]["content"] == "A dog runs."
    assert rows[1]["references"] == ["A dog runs.", "A dog, running."]
    assert rows[1]["prompt"][0]["content"] == "What is this?"


def test_boxes_become_corners_with_the_name_of_their_category(folder):
    rows = prepared(folder, rows="image")
    assert rows[0]["regions"] == []
    dog, crowd = {"box": [1.5, 2, 5.5, 5.25], "phrase": "dog"}, {"box": [0, 0, 8, 6], "phrase": "person"}
    assert rows[1]["regions"] == [dog, crowd]
    assert prepared(folder, "validation", rows="image")["regions"][:] == [[], []]  # no instances file there


def test_pictures_stay_where_they_are_and_arrow_holds_their_absolute_paths(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    rows = prepared(Path("coco"))
    stored = rows.cast_column("images", List(Image(decode=False)))[0]["images"][0]
    assert stored == {"bytes": None, "path": str(folder / "train2017" / "000000000007.jpg")}


def test_grey_pictures_are_read_in_colour(folder):
    write(folder, "train2017", CAPTIONS, mode="L")
    assert prepared(folder)[0]["images"][0].mode == "RGB"


@pytest.mark.parametrize("rows", ["caption", "image"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_streaming_gives_the_rows_of_the_prepared_one(folder, split, rows):
    streamed = list(coco(folder, rows=rows).as_streaming_dataset(split))
    assert streamed == list(prepared(folder, split, rows=rows)) and streamed


def test_one_split_alone_is_enough(folder):
    (folder / "annotations" / "captions_train2017.json").unlink()
    assert list(coco(folder).as_streaming_dataset()) == ["validation"]


def test_the_layout_of_2014_is_recognised(tmp_path):
    write(tmp_path / "coco", "val2014", CAPTIONS)
    assert list(coco(tmp_path / "coco").as_streaming_dataset()) == ["validation"]


def test_two_years_side_by_side_must_be_chosen_between(folder):
    write(folder, "train2014", CAPTIONS)
    with pytest.raises(ValueError, match="2017 and 2014; choose with year="):
        coco(folder)
    assert list(coco(folder, year=2014).as_streaming_dataset()) == ["train"]


def test_a_folder_that_is_not_coco_says_what_was_expected_and_what_was_found(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "person_keypoints.json").touch()
    with pytest.raises(FileNotFoundError) as raised:
        coco(tmp_path)
    for word in ("train2017/", "annotations/captions_val2017.json", "annotations, pictures", "person_keypoints.json"):
        assert word in str(raised.value)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        coco(tmp_path / "nowhere")


def test_a_picture_without_captions_is_left_out_and_counted(folder, caplog):
    more = CAPTIONS | {"images": [*CAPTIONS["images"], {"id": 11, "file_name": "000000000011.jpg"}]}
    write(folder, "train2017", more)
    with caplog.at_level(logging.WARNING):
        assert set(prepared(folder)["image_id"]) == {"7", "9"}
    assert "1 pictures without captions left out (000000000011.jpg)" in caplog.text


def test_a_picture_only_of_the_instances_file_counts_as_one_without_captions(folder, caplog):
    write(
        folder, "train2017", CAPTIONS, INSTANCES | {"images": [*INSTANCES["images"], {"id": 1, "file_name": "1.jpg"}]}
    )
    list(coco(folder).as_streaming_dataset("train"))
    assert "1 pictures without captions left out (1.jpg)" in caplog.text


def test_a_missing_picture_is_skipped_and_counted(folder, caplog):
    (folder / "train2017" / "000000000009.jpg").unlink()
    assert prepared(folder)["image_id"][:] == ["7"]
    assert "1 pictures skipped" in caplog.text and "000000000009.jpg" in caplog.text


def test_only_the_first_few_names_are_logged(folder, caplog):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(100, 110)]
    write(folder, "train2017", CAPTIONS | {"images": CAPTIONS["images"] + images})
    list(coco(folder).as_streaming_dataset("train"))
    assert "10 pictures without captions left out (100.jpg, 101.jpg, 102.jpg, …)" in caplog.text


def test_a_blank_caption_is_skipped_and_counted(folder, caplog):
    write(folder, "train2017", changed(CAPTIONS, "annotations", 0, caption=" \n"))
    assert prepared(folder, rows="image")["references"][:] == [["A cat."], ["A dog, running."]]
    assert "1 blank captions skipped, of pictures (000000000009.jpg)" in caplog.text


def test_a_box_without_an_area_is_left_out_and_counted(folder, caplog):
    write(folder, "train2017", CAPTIONS, changed(INSTANCES, "annotations", 0, bbox=[1, 1, 5, 0]))
    assert [region["phrase"] for region in prepared(folder, rows="image")[1]["regions"]] == ["person"]
    assert "1 boxes without an area left out, of pictures (000000000009.jpg)" in caplog.text


def test_no_picture_at_all_is_an_error(folder):
    for picture in (folder / "train2017").iterdir():
        picture.unlink()
    with pytest.raises(ValueError, match=r"captions_train2017.json: none of its 2 pictures is in .*train2017"):
        prepared(folder)


def test_a_folder_that_has_the_name_of_a_picture_is_a_missing_picture(folder, caplog):
    (folder / "train2017" / "000000000009.jpg").unlink()
    (folder / "train2017" / "000000000009.jpg").mkdir()
    assert prepared(folder)["image_id"][:] == ["7"]
    assert "1 pictures skipped" in caplog.text


@pytest.mark.parametrize("said", ["<image>", "a\0b\x07c\x1b[2J", "word " * 9_999 + "word", "ein Löwe 🦁", "</s>", "{}"])
def test_what_a_caption_holds_is_kept(folder, said):
    write(folder, "train2017", changed(CAPTIONS, "annotations", 1, caption=said))
    row = prepared(folder)[0]
    assert row["completion"][0]["content"] == said and row["references"] == [said]


def test_an_id_may_be_a_string_in_one_place_and_a_number_in_another(folder):
    captions, instances = changed(CAPTIONS, "images", 1, id="9"), changed(INSTANCES, "annotations", 0, category_id="18")
    write(folder, "train2017", captions, instances)
    rows = prepared(folder, rows="image")
    assert rows["image_id"][:] == ["7", "9"]
    assert [region["phrase"] for region in rows[1]["regions"]] == ["dog", "person"]


def test_a_byte_order_mark_is_passed_over(folder):
    file = folder / "annotations" / "captions_train2017.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(prepared(folder)) == 3


TWICE = CAPTIONS | {"images": [*CAPTIONS["images"], {"id": 7, "file_name": "x.jpg"}]}
BROKEN = {
    "caption_not_a_string": (
        changed(CAPTIONS, "annotations", 1, caption=5),
        None,
        "'caption' is 5 in record .*'id': 2",
    ),
    "caption_missing": (
        CAPTIONS | {"annotations": [without(CAPTIONS["annotations"][0], "caption")]},
        None,
        "'caption' is None in record .*'id': 1",
    ),
    "picture_unknown": (changed(CAPTIONS, "annotations", 1, image_id=8), None, "annotation 2 is of image 8"),
    "annotation_not_an_object": (CAPTIONS | {"annotations": ["hm"]}, None, "'image_id' is None in record hm"),
    "file_name_missing": (
        CAPTIONS | {"images": [{"id": 7}, CAPTIONS["images"][1]]},
        None,
        "'file_name' is None in record .*7",
    ),
    "picture_twice": (TWICE, None, "two images have id 7"),
    "picture_twice_once_as_text": (changed(CAPTIONS, "images", 1, id="7"), None, "two images have id 7"),
    "category_twice": (CAPTIONS, changed(INSTANCES, "categories", 1, id="18"), "two categories have id 18"),
    "id_true": (changed(CAPTIONS, "images", 0, id=True), None, "'id' is True in record .*000000000007"),
    "id_float": (changed(CAPTIONS, "annotations", 0, image_id=9.0), None, "'image_id' is 9.0 in record .*A dog"),
    "id_list": (changed(CAPTIONS, "annotations", 0, image_id=[9]), None, r"'image_id' is \[9\] in record .*A dog"),
    "picture_not_an_object": (CAPTIONS | {"images": [["a.jpg"]]}, None, r"'id' is None in record \['a.jpg'\]"),
    "category_not_an_object": (CAPTIONS, INSTANCES | {"categories": ["dog"]}, "'id' is None in record dog"),
    "file_name_above": (changed(CAPTIONS, "images", 0, file_name="../a.jpg"), None, "image 7 has file_name '../a.jpg'"),
    "file_name_absolute": (changed(CAPTIONS, "images", 0, file_name="/a.jpg"), None, "image 7 has file_name '/a.jpg'"),
    "file_name_empty": (changed(CAPTIONS, "images", 0, file_name=""), None, "image 7 has file_name ''"),
    "half_a_character": (changed(CAPTIONS, "annotations", 0, caption="a \ud83d"), None, r"'caption' is 'a \\ud83d'"),
    **{
        f"box_with_{number}": (
            CAPTIONS,
            changed(INSTANCES, "annotations", 0, bbox=[number, 1, 2, 3]),
            "annotation 5 has",
        )
        for number in (float("nan"), float("inf"), -float("inf"), 1e308, 10**400, True, "1", None, [1])
    },
    "box_without_end": (
        CAPTIONS,
        changed(INSTANCES, "annotations", 0, bbox=[1, 1, float("nan"), 1]),
        "annotation 5 has",
    ),
    "no_annotations": (without(CAPTIONS, "annotations"), None, "no list 'annotations'"),
    "region_of_unknown_picture": (
        CAPTIONS,
        changed(INSTANCES, "annotations", 0, image_id=8),
        "annotation 5 is of image 8",
    ),
    "category_unknown": (CAPTIONS, changed(INSTANCES, "annotations", 0, category_id=3), "annotation 5 has category 3"),
    "no_categories": (CAPTIONS, without(INSTANCES, "categories"), "no list 'categories'"),
    "box_of_three": (
        CAPTIONS,
        changed(INSTANCES, "annotations", 1, bbox=[0, 0, 8]),
        r"annotation 6 has bbox \[0, 0, 8\]",
    ),
    "files_disagree": (
        CAPTIONS,
        changed(INSTANCES, "images", 0, file_name="y.jpg"),
        "image 7 is y.jpg, but 000000000007.jpg in",
    ),
}


@pytest.mark.parametrize("captions, instances, said", BROKEN.values(), ids=BROKEN)
def test_what_contradicts_itself_is_an_error_that_names_file_and_record(folder, captions, instances, said):
    for name, content in (("captions", captions), ("instances", instances)):
        if content:
            (folder / "annotations" / f"{name}_train2017.json").write_text(json.dumps(content))
    file = "instances" if instances else "captions"
    for read in (prepared, lambda folder: list(coco(folder).as_streaming_dataset("train"))):
        with pytest.raises(ValueError, match=f"{file}_train2017.json.*{said}"):
            read(folder)


def test_half_a_json_file_is_an_error_that_names_it(folder):
    file = folder / "annotations" / "captions_train2017.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match="captions_train2017.json is not JSON"):
        prepared(folder)


NOT_COCO = {
    "empty": (b"", "is not JSON: Expecting value"),
    "a_list": (b"[]", "has no list 'images'"),
    "text": (b'"images"', "has no list 'images'"),
    "an_object_for_a_list": (b'{"images": {"id": 7}, "annotations": []}', "has no list 'images'"),
    "brackets_in_brackets": (b"[" * 100_000, "is not JSON: maximum recursion"),
    "a_number_of_5000_digits": (b'{"images": [{"id": %s}]}' % (b"1" * 5000), "is not JSON: Exceeds the limit"),
    "latin_1": ('{"images": "café"}'.encode("latin-1"), "is not UTF-8 .*; save it as UTF-8"),
    "utf_16": ('{"images": []}'.encode("utf-16"), "is not UTF-8 .*; save it as UTF-8"),
}


@pytest.mark.parametrize("content, said", NOT_COCO.values(), ids=NOT_COCO)
def test_a_file_that_is_something_else_is_an_error_that_names_it(folder, content, said):
    (folder / "annotations" / "captions_train2017.json").write_bytes(content)
    for read in (prepared, lambda folder: list(coco(folder).as_streaming_dataset("train"))):
        with pytest.raises(ValueError, match=f"captions_train2017.json {said}"):
            read(folder)


def test_a_config_that_cannot_be_is_refused_at_once(folder):
    with pytest.raises(ValueError, match="rows must be one of caption, image; got 'word'"):
        coco(folder, rows="word")
    with pytest.raises(ValueError, match="data_dir="):
        Coco()


def test_a_cache_is_not_used_for_other_annotations_pictures_or_settings(folder):
    def cache() -> str:
        return coco(folder).cache_dir

    before = cache()
    assert before == cache() == coco(folder, rows="caption").cache_dir
    assert before != coco(folder, rows="image").cache_dir
    assert before != coco(folder, prompt="What is this?").cache_dir
    file = folder / "annotations" / "instances_train2017.json"
    os.utime(file, ns=(0, 1))
    touched = cache()
    assert touched != before
    file.write_text(file.read_text() + " ")
    os.utime(file, ns=(0, 1))
    longer = cache()
    assert longer != touched
    picture = folder / "train2017" / "000000000009.jpg"
    os.utime(picture.parent, ns=(0, 1))
    settled = cache()
    picture.unlink()
    assert cache() != settled


def test_relative_folders_of_one_name_do_not_share_a_cache(folder, monkeypatch):
    here = coco(folder).cache_dir
    monkeypatch.chdir(folder.parent)
    assert Coco(data_dir="coco", cache_dir=folder.parent / "cache").cache_dir == here
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError):
        Coco(data_dir="coco", cache_dir=folder.parent / "cache")


@pytest.mark.real_data
def test_real_pictures_carry_five_captions_and_boxes_inside_them(real_data, tmp_path, caplog):
    builder = Coco(data_dir=str(real_data / "coco2017"), cache_dir=str(tmp_path), rows="image")
    builder.download_and_prepare()
    train, validation = builder.as_dataset("train"), builder.as_dataset("validation")
    assert (len(train), len(validation)) == (33, 10)
    assert "85 pictures without captions left out" in caplog.text
    for row in [*train, *validation]:
        assert len(row["references"]) == 5 and row["regions"]
        (image,) = row["images"]
        assert image.mode == "RGB"
        for region in row["regions"]:
            x0, y0, x1, y1 = region["box"]
            assert 0 <= x0 < x1 <= image.width + 1 and 0 <= y0 < y1 <= image.height + 1, row["image_id"]


@pytest.mark.real_data
def test_real_pictures_stream_as_they_are_prepared(real_data, tmp_path):
    builder = Coco(data_dir=str(real_data / "coco2017"), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    prepared, streamed = builder.as_dataset("validation"), builder.as_streaming_dataset("validation")
    assert len(prepared) == 50
    bare = prepared.remove_columns("images"), streamed.remove_columns("images")
    assert list(bare[0]) == list(bare[1])
    assert next(iter(streamed))["images"] == prepared[0]["images"]
