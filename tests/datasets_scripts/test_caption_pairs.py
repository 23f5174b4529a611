"""Pairs of captions: by hand on a few pictures, and through load_rows on a folder, Flickr8k, COCO, scenes and a Hub id."""

import json
import logging
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List

from datasets_scripts import load_rows
from datasets_scripts.canonical import CAPTION_FEATURES, caption_rows
from datasets_scripts.caption_pairs import caption_pairs
from tests.conftest import picture


COLUMNS = ["images", "prompt", "chosen", "rejected", "image_id", "flaw"]
FEATURES = Features({**CAPTION_FEATURES, "images": List(Image(decode=False))})


def captioned(
    said: dict[str, list[str]], regions: dict[str, list[str]] | None = None, rows: str = "caption"
) -> Dataset:
    """Rows of pictures that are nowhere: whoever opened one would fail."""
    some = []
    for name, captions in said.items():
        boxes = [{"box": [0, 0, 1, 1], "phrase": phrase} for phrase in (regions or {}).get(name, [])]
        some += caption_rows(
            [{"path": f"/nowhere/{name}.jpg", "bytes": None}], captions, name, "Describe it.", boxes, rows
        )
    return Dataset.from_list(some, features=FEATURES)


def texts(rows: Dataset, side: str = "rejected") -> list[str]:
    return [row[side][0]["content"] for row in rows]


TOWN = {f"p{i}": [f"caption {i} {word}" for word in ("a", "b", "c")] for i in range(12)}


def test_shuffled_gives_every_picture_the_captions_of_one_other_and_no_caption_twice():
    pairs = caption_pairs(captioned(TOWN))
    assert pairs.column_names == COLUMNS and set(pairs["flaw"]) == {"shuffled"}
    assert texts(pairs, "chosen") == [text for captions in TOWN.values() for text in captions]
    assert sorted(texts(pairs)) == sorted(texts(pairs, "chosen")), "both sides say the same, of other pictures"
    donors = {}
    for row, text in zip(pairs, texts(pairs), strict=True):
        donors.setdefault(row["image_id"], set()).add("p" + text.split()[1])
        assert row["rejected"] == [{"role": "assistant", "content": text}]
    assert all(len(some) == 1 and name not in some for name, some in donors.items())
    assert len(set.union(*donors.values())) == 12


def test_the_rest_of_a_row_stays_as_it_was_and_no_picture_is_opened():
    rows = captioned(TOWN)
    pairs = caption_pairs(rows, "swapped")
    for name in ("images", "prompt", "image_id"):
        assert pairs[name][:] == rows[name][:]
    assert pairs["chosen"][:] == rows["completion"][:]
    assert pairs[0]["images"] == [{"path": "/nowhere/p0.jpg", "bytes": None}]
    some = caption_pairs(rows.select([5, 0, 30]))
    assert some["image_id"][:] == ["p1", "p0", "p10"] and texts(some, "chosen") == [
        "caption 1 c",
        "caption 0 a",
        "caption 10 a",
    ]


def test_the_seed_alone_decides_and_rows_in_another_order_are_paired_alike():
    rows = captioned(TOWN)
    assert texts(caption_pairs(rows, seed=3)) == texts(caption_pairs(rows, seed=3)) != texts(caption_pairs(rows))
    one = captioned(TOWN, rows="image")
    paired = dict(zip(one["image_id"][:], texts(caption_pairs(one)), strict=True))
    turned = one.select(range(11, -1, -1))
    assert dict(zip(turned["image_id"][:], texts(caption_pairs(turned)), strict=True)) == paired


def test_a_caption_that_is_said_of_the_picture_itself_is_never_its_rejected_one():
    said = {f"p{i}": ["A dog.", f"caption {i}"] for i in range(6)} | {"odd": ["a  dog", "Caption 3!"]}
    for seed in range(8):
        pairs = caption_pairs(captioned(said), seed=seed)
        own = {name: {"a dog", *(text.lower().strip("!.") for text in some)} for name, some in said.items()}
        assert all(
            text.lower().strip(".!") not in own[row["image_id"]] for row, text in zip(pairs, texts(pairs), strict=True)
        )
    with pytest.raises(ValueError, match="of 2 pictures, none has a caption that . has not; add pictures"):
        caption_pairs(captioned({"a": ["A dog."], "b": ["a dog"]}))
    with pytest.raises(ValueError, match="of 1 pictures, none has a caption that a has not"):
        caption_pairs(captioned({"a": ["A dog."]}))


# what each picture holds; of "sky", nothing is named
ZOO = {
    "dog": "A dog on a couch.",
    "cat": "The cat sleeps.",
    "bus": "two buses by a dog",
    "owl": "Owls.",
    "sky": "Blue sky.",
}
HOLDS = {"dog": ["dog", "couch"], "cat": ["cat"], "bus": ["bus", "dog"], "owl": ["the Owl"], "sky": ["airplane"]}


def test_swapped_puts_a_thing_from_elsewhere_in_the_place_of_one_that_is_there(caplog):
    wrong = set()
    for seed in range(60):
        rows = captioned({name: [text] for name, text in ZOO.items()}, HOLDS)
        pairs = caption_pairs(rows, "swapped", seed, where="zoo")
        assert pairs["flaw"][:] == ["swapped_object"] * 4 + ["shuffled"]
        assert texts(pairs)[4] in set(ZOO.values()) - {ZOO["sky"]}
        wrong |= set(texts(pairs)[:4])
    assert wrong == {
        *(f"{a} on a couch." for a in ("A bus", "A cat", "An owl", "An airplane")),
        *(f"A dog on {a}." for a in ("a bus", "a cat", "an owl", "an airplane")),
        *(f"The {a} sleeps." for a in ("bus", "dog", "couch", "owl", "airplane")),
        *(f"two {a} by a dog" for a in ("cats", "couches", "owls", "airplanes")),
        *(f"two buses by {a}" for a in ("a cat", "a couch", "an owl", "an airplane")),
        *("Buses.", "Cats.", "Dogs.", "Couches.", "Airplanes."),
    }
    assert "zoo: 1 captions name nothing that could be swapped, and are shuffled; of pictures (sky)" in caplog.text


def swapped(text: str, holds: list[str], elsewhere: list[str], seed: int = 0, references: tuple = ()) -> str | None:
    """What becomes of a caption where other pictures hold other things; None where it is shuffled."""
    said = {"it": [text, *references], "other": ["Nothing."]}
    rows = captioned(said, {"it": holds, "other": elsewhere}, "image")
    row = caption_pairs(rows, "swapped", seed)[0]
    return row["rejected"][0]["content"] if row["flaw"] == "swapped_object" else None


def test_what_the_picture_holds_or_is_said_to_hold_is_not_put_in():
    assert swapped("A dog.", ["dog"], ["cat"]) == "A cat."
    assert swapped("A dog.", ["dog", "cat"], ["cat"]) is None, "it has a box"
    assert swapped("A dog.", ["dog"], ["cat"], references=("With two cats.",)) is None, "somebody saw it"
    assert swapped("A dog.", ["dog", "small white cat"], ["cat"]) is None, "whatever kind of it"
    assert swapped("A dog.", ["dog"], ["dining table"], references=("On tables.",)) is None, (
        "a table may be a dining table"
    )
    assert swapped("A dog.", ["dog"], ["person"], references=("A girl.",)) is None, "a girl is a person"
    assert swapped("A dog.", ["dog"], ["t-shirt"], references=("T-shirts.",)) is None
    assert swapped("A dog.", ["dog"], ["dining table"], references=("Dining.",)) == "A dining table."


def test_a_name_is_found_in_the_singular_and_the_plural_and_the_longest_first():
    assert swapped("two puppies", ["puppy"], ["cat"]) == "two cats"
    assert swapped("two dogs", ["dog"], ["knife"]) == "two knives"
    assert swapped("three knives", ["knife"], ["fox"]) == "three foxes"
    assert swapped("one bus", ["buses"], ["cat"]) == "one cat"
    assert swapped("a dogma, a bulldog", ["dog"], ["cat"]) is None, "words are whole"
    assert swapped("A hot dog.", ["hot dog", "bun"], ["cat"]) == "A cat."
    assert swapped("A hot dog.", ["dog"], ["cat", "hot dog"]) is None, "a hot dog is no dog"
    assert swapped("A dining-table.", ["dining table"], ["cat"]) == "A cat."
    assert swapped("a tie (red)", ["tie"], ["pair of scissors"]) == "a pair of scissors (red)"
    assert swapped("a flock of sheep", ["sheep"], ["cat"]) == "a flock of cats"
    assert swapped("a white sheep", ["sheep"], ["cat"]) == "a white cat"
    assert swapped("A c++ book.", ["c++ book"], ["cat"]) == "A cat.", "a name is no pattern"


def test_people_are_found_by_many_words_and_swapped_only_where_nothing_else_is_named():
    assert swapped("Two women laugh.", ["person"], ["cat"]) == "Two cats laugh."
    for seed in range(6):
        assert swapped("A man with a kite.", ["person", "kite"], ["cat"], seed) == "A man with a cat."


def test_articles_and_capitals_go_with_what_is_put_in():
    assert swapped("An apple.", ["apple"], ["cat"]) == "A cat."
    assert swapped("see a cat", ["cat"], ["apple"]) == "see an apple"
    assert swapped("Dogs run.", ["dog"], ["cat"]) == "Cats run."
    assert swapped("He throws a Frisbee. Dogs run.", ["frisbee"], ["cat"]) == "He throws a cat. Dogs run."
    assert swapped("It rains. Dogs run.", ["dog"], ["cat"]) == "It rains. Cats run."


def test_what_is_put_in_is_drawn_as_often_as_captions_name_it():
    said = {f"d{i}": ["A dog."] for i in range(95)} | {f"z{i}": [text] for i, text in enumerate(("A zebra.", "A yak."))}
    holds = {name: [texts_[0].strip(".").split()[1]] for name, texts_ in said.items()} | {"x": ["fox"]}
    said |= {f"c{i}": ["A cat."] for i in range(95)} | {"x": ["Nothing."]}
    holds |= {f"c{i}": ["cat"] for i in range(95)}
    put = texts(caption_pairs(captioned(said, holds), "swapped"))
    assert put[:95].count("A cat.") > 85 and put[98:].count("A dog.") > 85
    assert len(set(put)) > 3, "and what none names now and then"


def test_wrong_rows_are_refused_with_what_to_do():
    rows = captioned(TOWN)
    with pytest.raises(ValueError, match="rejected must be one of shuffled, swapped; got 'worse'"):
        caption_pairs(rows, "worse")
    with pytest.raises(ValueError, match="load it with streaming=False"):
        caption_pairs(rows.to_iterable_dataset())
    with pytest.raises(ValueError, match="here lacks the columns references; it has images"):
        caption_pairs(rows.remove_columns("references"), where="here")
    asked = list(caption_rows([], ["yes"], "p", "Is it?", [], "image")) + list(
        caption_rows([], ["red"], "p", "What?", [], "image")
    )
    with pytest.raises(ValueError, match="picture p have different references, so they answer questions"):
        caption_pairs(Dataset.from_list(asked, features=FEATURES))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """One's own pictures, with boxes."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "own"
    root.mkdir()
    lines = []
    for i, thing in enumerate(("dog", "cat", "bus", "owl", "fox", "cow", "car", "pig")):
        picture(i).save(root / f"{thing}.png")
        boxes = {"bbox": [[0, 0, 4, 4]], "categories": [thing]}
        lines.append(
            {"file_name": f"{thing}.png", "captions": [f"A {thing} is here.", f"See the {thing}."], "objects": boxes}
        )
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def test_load_rows_makes_pairs_of_a_folders_captions(folder):
    pairs = load_rows("pictures", "train", rows="preference", data_dir=str(folder))
    assert pairs.column_names == COLUMNS and set(pairs["flaw"]) == {"shuffled"}
    captions = load_rows("pictures", "train", data_dir=str(folder))
    assert pairs["chosen"][:] == captions["completion"][:] and pairs["images"][:] == captions["images"][:]
    assert sorted(texts(pairs)) == sorted(texts(pairs, "chosen"))
    other = load_rows("pictures", "train", rows="preference", data_dir=str(folder), rejected="swapped", seed=2)
    assert set(other["flaw"]) == {"swapped_object"} and other.features == pairs.features
    assert texts(other) != texts(load_rows("pictures", "train", "preference", str(folder), rejected="swapped", seed=3))
    with pytest.raises(ValueError, match="streaming=False"):
        load_rows("pictures", "train", rows="preference", data_dir=str(folder), streaming=True)
    with pytest.raises(ValueError, match="pictures.* needs data_dir"):
        load_rows("pictures", "train", rows="preference")
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        load_rows("pictures", "test", rows="preference", data_dir=str(folder))


def test_load_rows_makes_pairs_of_flickr8k_and_of_a_hub_id_with_captions(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "flickr" / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for i in range(9):
        picture(i).save(tmp_path / "flickr" / "Images" / f"{i}.jpg")
        lines += [f"{i}.jpg,Caption {i} {word} ." for word in "ab"]
    (tmp_path / "flickr" / "captions.txt").write_text("\n".join(lines))
    pairs = load_rows("flickr8k", "train", rows="preference", data_dir=str(tmp_path / "flickr"))
    assert pairs.column_names == COLUMNS and sorted(texts(pairs)) == sorted(texts(pairs, "chosen"))
    (tmp_path / "hub").mkdir()
    table = {"jpg": [b"1", b"2", b"3"], "txt": ["one", "two", "three"]}
    Dataset.from_dict(table).to_parquet(tmp_path / "hub" / "train.parquet")
    pairs = load_rows(str(tmp_path / "hub"), "train", "preference", columns={"image": "jpg", "caption": "txt"}, seed=1)
    assert pairs.column_names == COLUMNS and sorted(texts(pairs)) == ["one", "three", "two"]
    assert pairs["images"][:] == [[{"bytes": b, "path": None}] for b in (b"1", b"2", b"3")]
    with pytest.raises(
        ValueError, match=r"has no preference rows: neither chosen.*it has \['jpg', 'txt'\].*columns: {image"
    ):
        load_rows(str(tmp_path / "hub"), "train", "preference")


def test_what_has_no_captions_to_make_pairs_of_says_what_to_take(tmp_path):
    for dataset, options in (("classes", {}), ("spoken_captions", {}), ("pixmo", {"config_name": "questions"})):
        with pytest.raises(
            ValueError, match=f"{dataset} has no preference rows.*take scenes, ultrafeedback, rlaif_v, or"
        ):
            load_rows(dataset, "train", "preference", str(tmp_path), **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_scenes_give_their_own_pairs(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = list(load_rows("scenes", "train", rows="preference", streaming=streaming, num_train=6, num_eval=2, seed=1))
    assert set(COLUMNS) <= rows[0].keys() and rows[0]["images"][0]["bytes"]
    assert {row["flaw"] for row in rows} <= {"invented_object", "wrong_attribute", "wrong_relation", "broken_grammar"}
    assert len({row["image_id"] for row in rows}) == 6 < len(rows)
    assert all(row["chosen"] != row["rejected"] for row in rows)


@pytest.mark.real_data
def test_real_captions_of_coco_are_swapped_for_what_is_not_there(real_data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data_dir = str(real_data / "coco2017")
    with caplog.at_level(logging.WARNING):
        pairs = load_rows("pictures", "train", rows="preference", data_dir=data_dir, rejected="swapped")
    assert len(pairs) == 165 and pairs["flaw"][:].count("swapped_object") == 133
    assert "32 captions name nothing" in caplog.text
    rows = load_rows("pictures", "train", data_dir=data_dir)
    for before, after in zip(rows, pairs, strict=True):
        chosen, wrong = (after[side][0]["content"].split() for side in ("chosen", "rejected"))
        if after["flaw"] == "shuffled":
            assert " ".join(wrong) not in [" ".join(text.split()) for text in before["references"]]
        else:
            changed = next(i for i, (a, b) in enumerate(zip(chosen, wrong, strict=False)) if a != b)
            assert chosen[:changed] == wrong[:changed] and len(chosen) - 2 <= len(wrong) <= len(chosen) + 2
