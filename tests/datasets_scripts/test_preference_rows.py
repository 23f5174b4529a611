"""Pairs in the formats in which they are published, through load_rows from a folder of parquet as from a Hub id."""

import logging
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value

from datasets_scripts import load_rows, split_names
from datasets_scripts.open_picture import open_picture
from datasets_scripts.preference_rows import PREFERENCE_FEATURES, drawn, fault, pair
from tests.conftest import picture


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CANONICAL = {"prompt": [user("What?")], "chosen": [said("A dog.")], "rejected": [said("A cat.")]}


def parts(turn: dict[str, str], *before: dict) -> dict:
    return {"role": turn["role"], "content": [*before, {"type": "text", "text": turn["content"]}]}


@pytest.mark.parametrize(
    "published",
    [
        ("What?", " A dog. ", "A cat."),
        ([user("What?")], [said("A dog.")], [said("A cat.")]),
        ("What?", [user("What?"), said("A dog.")], [user("What?"), said("A cat.")]),
        (None, [user("What?"), said("A dog.")], [user("What?"), said("A cat.")]),
        ([parts(user("What?"), {"type": "image", "text": None})], [parts(said("A dog."))], [parts(said("A cat."))]),
    ],
    ids=["strings", "turns", "whole conversations", "no prompt", "contents in parts"],
)
def test_a_pair_is_read_however_it_is_published(published):
    assert pair(*published) == CANONICAL and not fault(pair(*published))


def test_earlier_turns_are_the_prompts():
    before = [{"role": "system", "content": ""}, user("What?"), said("A dog."), user("Sure?")]
    read = pair("Sure?", [*before, said("Yes.")], [*before, said("No.")])
    assert read == {"prompt": before, "chosen": [said("Yes.")], "rejected": [said("No.")]} and not fault(read)


@pytest.mark.parametrize(
    ("published", "why"),
    [
        (("What?", "A dog.", " A dog.\n"), "both sides are the same"),
        (("What?", "A dog.", " "), "a side or the prompt is empty"),
        (("What?", None, "A dog."), "a side or the prompt is empty"),
        (("", "A dog.", "A cat."), "a side or the prompt is empty"),
        ((None, "A dog.", "A cat."), "a side or the prompt is empty"),
        ((None, [user("What?"), said("A dog.")], [user("Who?"), said("A cat.")]), "a side or the prompt is empty"),
        (("What?", [user("What?")], [user("What?"), said("A cat.")]), "a side or the prompt is empty"),
    ],
)
def test_a_pair_that_teaches_nothing_is_known(published, why):
    assert fault(pair(*published)) == why


@pytest.mark.parametrize("wrong", [3, [3], [{"content": "a"}], {"role": "user", "content": "a"}])
def test_what_is_neither_text_nor_turns_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected a string or turns, \[{role, content}, …\]; is "):
        pair(wrong, "a", "b")


def test_what_is_drawn_follows_from_the_keys_the_seed_and_the_count_alone(caplog):
    keys = {number: f"k{number // 2}" for number in range(20)}
    whole = drawn(keys, None, "here", "s")
    assert sorted(whole) == list(range(20)) and whole != list(range(20)) and whole != drawn(keys, None, "here", "t")
    assert [keys[number] for number in whole[::2]] == [keys[number] for number in whole[1::2]], "equal keys together"
    turned = dict(sorted(keys.items(), reverse=True))
    assert [keys[number] for number in drawn(turned, 6, "here", "s")] == [keys[number] for number in whole[:6]]
    assert not caplog.text and drawn(keys, 0, "here", "s") == []
    assert len(drawn(keys, 21, "here", "s")) == 20
    assert "here: 21 pairs are asked for, and there are 20: all are taken" in caplog.text
    with pytest.raises(ValueError, match="here: -1 rows are asked for"):
        drawn(keys, -1, "here", "s")
    with pytest.raises(ValueError, match="here: there is no pair to take"):
        drawn({}, 1, "here", "s")


@pytest.fixture
def published(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()

    def published(rows: list[dict], features: dict) -> str:
        Dataset.from_list(rows, features=Features(features)).to_parquet(tmp_path / "hub" / "train.parquet")
        return str(tmp_path / "hub")

    return published


TEXTS = {"prompt": Value("string"), "chosen": Value("string"), "rejected": Value("string")}


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_of_strings_with_a_picture_become_canonical_without_it_being_opened(published, streaming):
    rows = [
        {"image": picture(i), "prompt": f"What {i}?", "chosen": "A dog.", "rejected": f"{i} cats."} for i in range(4)
    ]
    rows[3]["image"] = {"bytes": b"no picture", "path": None}
    loaded = load_rows(published(rows, {"image": Image(), **TEXTS}), "train", "preference", streaming=streaming)
    loaded = list(loaded)
    assert [set(row) == set(PREFERENCE_FEATURES) for row in loaded] == [True] * 4
    assert open_picture(loaded[2]["images"][0]).tobytes() == picture(2).tobytes()
    assert loaded[3]["images"] == [{"bytes": b"no picture", "path": None}]
    assert loaded[2]["prompt"] == [user("What 2?")] and loaded[2]["rejected"] == [said("2 cats.")]
    assert loaded[2]["image_id"] == "train-2" and loaded[2]["flaw"] == ""


def test_pairs_in_trls_columns_pass_through_with_their_names_and_flaws(published):
    rows = [
        {"images": [picture(i), picture(9)], **CANONICAL, "image_id": i + 7, "flaw": "worse", "other": 1.5}
        for i in range(3)
    ]
    turns = PREFERENCE_FEATURES["prompt"]
    kinds = {"prompt": turns, "chosen": turns, "rejected": turns, "image_id": Value("int64"), "flaw": Value("string")}
    folder = published(rows, {"images": List(Image()), **kinds, "other": Value("float64")})
    loaded = load_rows(folder, "train", rows="preference")
    assert loaded.features == PREFERENCE_FEATURES and loaded["image_id"][:] == ["7", "8", "9"]
    assert len(loaded[1]["images"]) == 2 and loaded["flaw"][:] == ["worse"] * 3
    assert {side: loaded[1][side] for side in CANONICAL} == CANONICAL
    assert split_names(folder, "preference", rejected="swapped", seed=3) == ["train"]
    with pytest.raises(ValueError, match="has pairs of its own, in chosen and rejected: leave out rejected, seed"):
        load_rows(folder, "train", rows="preference", rejected="swapped", seed=3)
    with pytest.raises(ValueError, match="has pairs of its own.*leave out columns"):
        load_rows(folder, "train", rows="preference", columns={"image": "images", "caption": "chosen"})


def test_pairs_without_pictures_have_none_and_those_that_teach_nothing_are_counted(published, caplog):
    rows = [{"prompt": "What?", "chosen": "a", "rejected": rejected} for rejected in ("b", "a", "", "c", "a ")]
    folder = published(rows, TEXTS)
    with caplog.at_level(logging.WARNING):
        loaded = load_rows(folder, "train", rows="preference")
    assert loaded["images"][:] == [[], []] and loaded["image_id"][:] == ["train-0", "train-3"]
    assert f"{folder}, train: 2 pairs left out: both sides are the same (row 1, row 4)" in caplog.text
    assert "1 pairs left out: a side or the prompt is empty (row 2)" in caplog.text
    assert list(load_rows(folder, "train", rows="preference", streaming=True)) == list(loaded)


def test_pairs_without_any_prompt_are_refused(published):
    folder = published([{"chosen": "a", "rejected": "b"}], {name: Value("string") for name in ("chosen", "rejected")})
    with pytest.raises(ValueError, match="none of 1 pairs has two different sides and a prompt"):
        load_rows(folder, "train", rows="preference")


def test_a_picture_that_is_missing_leaves_a_pair_of_texts(published):
    rows = [{"image": None, "prompt": "What?", "chosen": "a", "rejected": "b"}]
    loaded = load_rows(published(rows, {"image": Image(), **TEXTS}), "train", "preference")
    assert loaded["images"][:] == [[]]


def test_pairs_of_one_kind_are_rows_of_no_other(tmp_path: Path):
    for dataset in ("ultrafeedback", "rlaif_v"):
        with pytest.raises(ValueError, match=f"{dataset} has rows='preference', not 'caption'"):
            load_rows(dataset, "train", data_dir=str(tmp_path))
        assert split_names(dataset, "preference") == ["train", "validation", "test"]
