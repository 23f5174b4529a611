"""Rows read to figures: what is counted, what is unreadable, what is there twice, and what is said of it."""

import struct
import wave
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from datasets_scripts.canonical import turns
from datasets_scripts.open_picture import open_picture
from tests.trainers.test_dataset_statistics import drawn, encoded, scene
from trainers.dataset_reading import Split, read_split
from trainers.dataset_report import describe
from trainers.dataset_rows import captions_of, prompt_of, rows_at, some_rows


def png(image: Image.Image) -> dict:
    file = BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def shown(image: Image.Image | dict | None, *captions: str, name: str = "", prompt: str = "What?", **columns) -> dict:
    source = image if isinstance(image, dict) or image is None else png(image)
    told = {"references": list(captions), **turns(prompt, captions[0])}
    return {"images": [source] if source else [], "image_id": name, "regions": [], **told, **columns}


def read(name: str, rows: list[dict], **options) -> Split:
    split = Split(name, range(len(rows)), len(rows))
    with ThreadPoolExecutor(2) as pool:
        read_split(split, rows, pool, **options)
    return split


def test_captions_are_counted_by_hand():
    train = [
        shown(scene(0), "A red dog.", "a dog, red"),
        shown(scene(1), "a Dog a dog"),
        shown(scene(2), "A red dog!", "…"),
        shown(scene(3), "a red dog", prompt="Who?"),
    ]
    test = [shown(scene(4), "a zebra", "a red dog"), shown(scene(5), "two zebras and a zebra")]
    figures = describe([read("train", train), read("test", test)])
    said, asked = figures["splits"]["train"]["captions"], figures["splits"]["train"]["prompts"]
    assert (said["number"], said["distinct"], said["empty"]) == (6, 3, 1)
    assert said["words"] == {
        "mean": 2.6667,
        "min": 0,
        "p5": 0.75,
        "p25": 3,
        "median": 3,
        "p75": 3,
        "p95": 3.75,
        "max": 4,
    }
    assert (said["words_in_all"], said["vocabulary"], said["once"]) == (16, 3, 0)
    assert said["frequent"] == [("a", 6), ("dog", 6), ("red", 4)]
    assert said["repeated"] == [["A red dog!", 3]]
    assert (asked["number"], asked["distinct"], asked["repeated"]) == (4, 2, [["What?", 3]])
    other = figures["splits"]["test"]["captions"]
    assert other["unseen"] == {
        "of": "train", "words": 4, "share_of_text": 0.5, "captions_seen": 1,
        "frequent": [("zebra", 2), ("two", 1), ("zebras", 1), ("and", 1)],
    }  # fmt: skip
    assert other["once_among_them"] == ["and", "dog", "red", "two", "zebras"]
    assert "unseen" not in said
    assert figures["leakage"][0]["captions_same"] == 1 and figures["leakage"][0]["captions"] == 3
    assert figures["histograms"]["words"]["counts"]["train"] == [1, 0, 0, 4, 1, 0]
    assert figures["warnings"] == ["1 caption of train has no words."]


def test_captions_are_references_or_completions_or_texts_and_of_parts_the_words():
    row = shown(None, "one", "two") | {
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "three"}]}]
    }
    assert captions_of(row, True) == ["one", "two"] and captions_of(row, False) == ["three"]
    assert captions_of(row | {"references": []}, True) == ["three"]
    assert captions_of({"text": "four", "image": None}, True) == ["four"] and captions_of({"text": None}, True) == [""]
    assert captions_of({"chosen": turns("", "good")["completion"], "images": []}, True) == ["good"]
    parts = [{"type": "image"}, {"type": "text", "text": "Who?"}]
    assert prompt_of({"prompt": [{"role": "user", "content": parts}]}) == "Who?" and prompt_of({"text": "x"}) == ""


def test_pictures_are_measured_upright_and_opened_once_however_many_rows_show_them(tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    scene(0, (300, 100)).save(tmp_path / "turned.jpg", exif=turned)
    Image.new("L", (50, 200), 90).save(tmp_path / "grey.png")
    one, grey = ({"bytes": None, "path": str(tmp_path / name)} for name in ("turned.jpg", "grey.png"))
    opened = []
    monkeypatch.setattr(
        "trainers.dataset_reading.open_picture", lambda source: opened.append(source) or open_picture(source)
    )
    rows = [shown(one, "a"), shown(one, "b"), shown(grey, "c"), shown(one, "a"), shown(None, "d")]
    split = read("train", rows, root=str(tmp_path))
    assert [source["path"] for source in opened] == [one["path"], grey["path"]]
    assert split.pictures.names == ["turned.jpg", "grey.png"] and split.repeated == 1
    pictures = describe([split])["splits"]["train"]["pictures"]
    assert pictures["sizes"] == [[100, 300, 1], [50, 200, 1]] and pictures["different_sizes"] == 2
    assert (pictures["width"]["mean"], pictures["height"]["max"], pictures["megapixels"]["max"]) == (75, 300, 0.03)
    assert pictures["aspect"]["min"] == 0.25
    assert dict(pictures["kinds"]) == {"JPEG RGB": 1, "PNG L": 1}
    assert (pictures["plain"], pictures["plain_among_them"]) == (1, ["grey.png"])
    bytes_ = [(tmp_path / name).stat().st_size for name in ("turned.jpg", "grey.png")]
    assert pictures["bytes_in_all"] == sum(bytes_) and pictures["kilobytes"]["min"] == round(min(bytes_) / 1000, 4)


def test_what_cannot_be_read_is_named_with_its_reason_and_the_rest_is_counted(tmp_path):
    scene(0).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    files = [{"bytes": None, "path": str(tmp_path / name)} for name in ("whole.jpg", "cut.jpg", "gone.jpg")]
    box = [{"box": [0, 0, 10, 10], "phrase": "dog"}]
    nothing = [{"bytes": None, "path": None}, {"bytes": None, "path": None}]
    rows = [shown(file, "x", name="id 7", regions=box) for file in [*files, *nothing]]
    figures = describe([read("train", rows, root=str(tmp_path))])
    reasons = {(one["row"], one["name"]): one["reason"] for one in figures["unreadable"]["pictures"]}
    assert reasons[1, "cut.jpg"].startswith(("cannot be read", "image file is truncated"))
    assert reasons[2, "gone.jpg"] == "No such file or directory"
    assert reasons[3, "id 7"] == reasons[4, "id 7"] == "no picture: neither bytes nor a path"
    assert figures["splits"]["train"]["pictures"]["number"] == 1
    assert figures["splits"]["train"]["regions"]["number"] == 5  # of which one has a picture to be a share of
    assert figures["histograms"]["region_percent"]["counts"]["train"] == [1]
    assert "4 pictures of train cannot be read, and are named below with the reason." in figures["warnings"]


@pytest.fixture(scope="module")
def leaking() -> dict:
    """train: 0 … 5, 5 twice, 4 again; validation: 6, 1, 2 resized, 1 as another file; test: 7, 2, 6 again, 4 (so 4 again too)."""
    jpeg = BytesIO()
    scene(5).save(jpeg, "PNG", compress_level=1)
    train = [shown(scene(i), f"t {i}") for i in range(6)]
    train += [shown({"bytes": jpeg.getvalue(), "path": "five.png"}, "five"), shown(encoded(scene(4), 50), "four")]
    small = scene(2).resize((160, 120), Image.Resampling.LANCZOS)
    other = {"bytes": png(scene(1))["bytes"] + b" ", "path": "one.png"}
    validation = [shown(one, f"v {i}") for i, one in enumerate([scene(6), scene(1), small, other])]
    test = [shown(one, f"e {i}") for i, one in enumerate([scene(7), scene(2), encoded(scene(6), 50), scene(4)])]
    return describe([read("train", train), read("validation", validation), read("test", test)])


def test_a_picture_that_two_splits_show_is_a_leak_the_same_or_nearly(leaking):
    found = {(leak["from"], leak["to"]): leak for leak in leaking["leakage"]}
    assert list(found) == [("train", "validation"), ("train", "test"), ("validation", "test")]
    assert {both: (leak["same"], leak["alike"], leak["pictures"]) for both, leak in found.items()} == {
        ("train", "validation"): (2, 1, 4),
        ("train", "test"): (2, 0, 4),
        ("validation", "test"): (0, 2, 4),
    }

    def rows(leak: dict, kind: str) -> list[list[int]]:
        return [[place["row"] for place in pair] for pair in leak[kind]]

    assert rows(found["train", "validation"], "pairs_same") == [[1, 1], [1, 3]]
    assert rows(found["train", "validation"], "pairs_alike") == [[2, 2]]
    assert rows(found["train", "test"], "pairs_same") == [[2, 1], [4, 3]]
    assert rows(found["validation", "test"], "pairs_alike") == [[2, 1], [0, 2]]
    assert found["train", "validation"]["pairs_same"][1][1] == {
        "split": "validation",
        "row": 3,
        "place": 0,
        "name": "one.png",
    }
    assert leaking["warnings"][:4] == [
        "2 pictures of validation are in train too, pixel for pixel (50.0%).",
        "1 picture of validation is nearly the same as one in train.",
        "2 pictures of test are in train too, pixel for pixel (50.0%).",
        "2 pictures of test are nearly the same as one in validation.",
    ]


def test_copies_within_a_split_are_counted_apart_from_leaks(leaking):
    twice = leaking["duplicates"]
    assert twice["within"] == {
        "train": {"copies": 1, "alike": 2, "sounds": 0},
        "validation": {"copies": 1, "alike": 0, "sounds": 0},
        "test": {"copies": 0, "alike": 0, "sounds": 0},
    }

    def places(groups: list) -> set:
        return {tuple((one["split"], one["row"]) for one in group) for group in groups}

    assert places(twice["same"]) == {
        (("train", 1), ("validation", 1), ("validation", 3)),
        (("train", 5), ("train", 6)),
        (("train", 2), ("test", 1)),
        (("train", 4), ("test", 3)),
    }
    assert places(twice["alike"]) == {
        (("train", 4), ("train", 7)),
        (("train", 2), ("validation", 2)),
        (("validation", 0), ("test", 2)),
    }
    assert "1 picture of train is a copy of another in train, pixel for pixel." in leaking["warnings"]
    assert "2 pictures of train are nearly the same as another in train." in leaking["warnings"]


def test_of_a_row_with_several_pictures_each_counts_and_regions_are_of_the_first():
    two = {"images": [png(scene(0, (100, 50))), png(scene(1, (50, 100)))], "image_id": "both"}
    row = shown(None, "two pictures", regions=[{"box": [0, 0, 100, 50], "phrase": "all"}]) | two
    split = read("train", [row])
    assert list(split.pictures.places) == [0, 1] and split.pictures.names == ["both", "both"]
    assert list(split.regions.shares) == [1.0]
    assert describe([split])["warnings"] == []


def test_pictures_laid_out_alike_in_other_colours_are_no_copies():
    rows = [shown(drawn(30, colour), "a square") for colour in ((200, 0, 0), (0, 102, 0), (200, 0, 1))]
    twice = describe([read("train", rows)])["duplicates"]
    assert [[one["row"] for one in group] for group in twice["alike"]] == [[0, 2]] and not twice["same"]


def test_regions_are_of_a_picture_and_those_that_cannot_be_are_named():
    boxes = [[0, 0, 50, 50], [90, 40, 120, 60], [10, 10, 10, 20], [0, 0, 100.9, 50]]
    regions = [{"box": box, "phrase": phrase} for box, phrase in zip(boxes, ("dog", "cat", "cat", "dog"), strict=True)]
    rows = [shown(scene(0, (100, 50)), caption, name="a", regions=regions) for caption in ("one", "two")]
    rows.append(shown(scene(1), "three", regions=regions[:1]))
    figures = describe([read("train", rows)])
    told = figures["splits"]["train"]["regions"]
    assert (told["number"], told["pictures"], told["a_picture"]["mean"]) == (5, 2, 2.5)
    assert told["frequent"] == [("dog", 3), ("cat", 2)] and told["phrases"] == 2 and told["flat"] == 1
    assert told["outside"] == [{"row": 0, "name": "a", "box": [90, 40, 120, 60], "picture": [100, 50]}]
    # 50 x 50, 30 x 20 and all of 100 x 50, and 50 x 50 of 320 x 240
    assert sorted([told["percent"]["min"], told["percent"]["median"], told["percent"]["max"]]) == pytest.approx(
        [100 * 2500 / 76800, (12 + 50) / 2, 100], abs=1e-3
    )
    assert "1 box of train reaches over the edge of the picture." in figures["warnings"]
    assert "1 box of train has no area." in figures["warnings"]


def sound(samples: np.ndarray, rate: int = 8000) -> dict:
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples * 32767).astype("<i2").tobytes())
    return {"bytes": file.getvalue(), "path": None}


def test_sounds_are_measured_and_those_that_are_wrong_are_said():
    pytest.importorskip("soundfile")
    note = np.sin(np.arange(4000) / 9) * 0.5
    heard = [note, note * 0, np.clip(note * 9, -1, 1), note]
    rows = [{"audio": sound(one), "text": f"sound {i}", "image_id": f"s{i}"} for i, one in enumerate(heard)]
    rows[3]["audio"]["bytes"] += struct.pack("<4sI", b"LIST", 0)  # another file, the same sound
    rows.append({"audio": {"bytes": b"no sound", "path": None}, "text": "none", "image_id": "bad"})
    test = [{"audio": sound(note), "text": "again"}, {"audio": sound(note, 16000), "text": "faster"}]
    figures = describe([read("train", rows), read("test", test)])
    told = figures["splits"]["train"]["sounds"]
    assert (told["number"], told["unreadable"], told["seconds"]["max"], told["hours"]) == (
        4,
        1,
        0.5,
        round(2 / 3600, 4),
    )
    assert (told["silent"], told["clipped"], told["rates"], told["channels"]) == (["s1"], ["s2"], [(8000, 4)], [(1, 4)])
    assert figures["unreadable"]["sounds"][0]["name"] == "bad"
    assert figures["splits"]["train"]["pictures"] is None and figures["histograms"]["megapixels"] is None
    assert figures["leakage"][0]["sounds_same"] == 1 and figures["leakage"][0]["sounds"] == 2
    assert [line.split(",")[0].split(":")[0].rstrip(".") for line in figures["warnings"]] == [
        "1 sound of test is in train too",
        "1 sound of train cannot be read",
        "1 sound of train is a copy of another in train",
        "1 sound of train is silent",
        "1 sound of train is clipped",
    ]


def test_some_rows_are_drawn_at_random_and_of_a_stream_the_first():
    rows = Dataset.from_dict({"text": [f"row {i}" for i in range(100)]})
    some, numbers, there = some_rows(rows, 10, "seed")
    assert there == 100 and len(set(numbers)) == 10 and max(numbers) > 20
    assert [row["text"] for row in some] == [f"row {number}" for number in numbers] and sorted(numbers) == numbers
    assert some_rows(rows, 10, "seed")[1] == numbers != some_rows(rows, 10, "other")[1]
    assert some_rows(rows, 100, "seed")[1] == range(100) and some_rows(rows, None, "seed")[0] is rows
    stream = rows.to_iterable_dataset()
    some, numbers, there = some_rows(stream, 3, "seed")
    assert there is None and [row["text"] for row in some] == ["row 0", "row 1", "row 2"] and numbers[2] == 2
    for kind in (rows, stream):
        assert rows_at(kind, {40, 2}) == {2: {"text": "row 2"}, 40: {"text": "row 40"}} and rows_at(kind, set()) == {}


def test_a_sample_a_stream_and_a_reading_that_was_stopped_are_said_to_be_so():
    rows = [{"text": f"row {i}"} for i in range(10)]
    asked = []
    stopped = read("train", rows, stop=lambda: asked.append(1) or len(asked) > 4)
    some, stream, whole = Split("some", [1, 5, 9], 10), Split("stream", range(2**62), None), read("all", rows)
    for split in (some, stream):
        with ThreadPoolExecutor(1) as pool:
            read_split(split, [rows[i] for i in (1, 5, 9)], pool)
    notes = describe([stopped, some, stream, whole])["notes"]
    assert notes == [
        "train: stopped after 4 of 10 rows; the figures are of these.",
        "some: a random sample, 3 of 10 rows. Of copies and leaks, a sample shows only some.",
        "stream: the first 3 rows of a stream.",
    ]
    assert set(some.sheet(2, seed=0)) < {1, 5, 9} and stopped.sheet(99, seed=0) == [0, 1, 2, 3]
    assert whole.sheet(4, seed=0) == whole.sheet(4, seed=0) != whole.sheet(4, seed=1)


def test_a_split_without_rows_is_said_and_breaks_nothing():
    figures = describe([read("train", []), read("test", [{"text": "a dog"}])])
    assert figures["warnings"] == ["train has no rows."]
    assert figures["splits"]["train"]["captions"]["words"] is None
    assert figures["splits"]["test"]["captions"]["unseen"]["share_of_text"] == 1.0
