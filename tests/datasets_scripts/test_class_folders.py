"""Folders of classes: names in words, splits that stay, what is no such folder."""

import numpy as np
import pytest
import soundfile

from datasets_scripts import load_rows
from datasets_scripts.class_folders import words_of
from tests.conftest import picture


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("001 - Dog bark", "dog bark"),
        ("AnnualCrop", "annual crop"),
        ("SeaLake", "sea lake"),
        ("fire_truck", "fire truck"),
        ("Forest", "forest"),
        ("1977", "1977"),
    ],
)
def test_names_of_folders_in_words(folder, words):
    assert words_of(folder) == words


@pytest.fixture
def folder(tmp_path):
    for name, count in (("Forest", 20), ("AnnualCrop", 10)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            picture(i).save(tmp_path / "data" / name / f"{name}_{i}.png")
    (tmp_path / "data" / "notes.txt").write_text("no class")
    return tmp_path / "data"


def rows_of(folder, split, **options):
    return load_rows("classes", split, rows="alignment", data_dir=str(folder), **options)


def test_each_class_is_in_every_split_and_captions_name_it(folder, tmp_path):
    splits = {s: rows_of(folder, s, cache_dir=str(tmp_path / "cache")) for s in ("train", "validation", "test")}
    for rows in splits.values():
        assert set(rows["label"]) == {"Forest", "AnnualCrop"}
    assert len(splits["train"]) > 15
    assert set(splits["train"]["text"]) == {"a photo of a forest", "a photo of an annual crop"}
    paths = [row["image"]["path"] for rows in splits.values() for row in rows]
    assert len(set(paths)) == 30
    told = rows_of(folder, "test", template="land: {name}", cache_dir=str(tmp_path / "cache"))
    assert set(told["text"]) == {"land: forest", "land: annual crop"}


def test_files_stay_on_their_side_when_others_are_added(folder, tmp_path):
    before = {row["image"]["path"] for row in rows_of(folder, "train", cache_dir=str(tmp_path / "a"))}
    for i in range(20, 60):
        picture(i).save(folder / "Forest" / f"Forest_{i}.png")
    after = {row["image"]["path"] for row in rows_of(folder, "train", cache_dir=str(tmp_path / "b"))}
    assert before <= after


def test_a_folder_with_splits_keeps_them(folder, tmp_path):
    (tmp_path / "whole").mkdir()
    folder.rename(tmp_path / "whole" / "train")
    rows = rows_of(tmp_path / "whole", "train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 30
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        rows_of(tmp_path / "whole", "test", cache_dir=str(tmp_path / "cache"))


def test_sounds_go_in_likewise(tmp_path):
    for name in ("001 - Dog bark", "002 - Rain"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            soundfile.write(tmp_path / "data" / name / f"{i}.ogg", np.random.default_rng(i).normal(size=800) / 9, 8000)
    rows = rows_of(tmp_path / "data", "train", cache_dir=str(tmp_path / "cache"), template="the sound of {a_name}")
    assert set(rows["text"]) == {"the sound of a dog bark", "the sound of a rain"}
    assert rows[0]["audio"]["path"].endswith(".ogg")
    picture(0).save(tmp_path / "data" / "002 - Rain" / "cover.png")
    with pytest.raises(ValueError, match="pictures and sounds stand side by side"):
        rows_of(tmp_path / "data", "train", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"template": "a photo"}, "names no class"),
        ({"test_fraction": 0.6, "validation_fraction": 0.4}, "together below 1"),
    ],
)
def test_settings_that_leave_nothing_are_refused(folder, options, problem):
    with pytest.raises(ValueError, match=problem):
        rows_of(folder, "train", **options)


def test_what_is_no_such_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        rows_of(tmp_path / "missing", "train")
    with pytest.raises(ValueError, match="no folders with pictures or sounds"):
        rows_of(tmp_path, "train")
