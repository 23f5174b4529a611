"""PixMo in miniature: parquet files with the official columns, pictures laid where the download would lay them."""

import json
import logging
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_scripts import load_rows
from datasets_scripts.canonical import PROMPT
from datasets_scripts.open_picture import open_picture
from datasets_scripts.picture_links import Links, name_of
from datasets_scripts.pixmo import Pixmo, PixmoConfig
from tests.conftest import picture


URLS = [f"https://host{i % 7}.example/{i}.jpg" for i in range(200)]
SIZES = {"num_train": 20, "num_validation": 5, "num_test": 6}


def captions(root: Path, rows: list[tuple[str, str]] | None = None, files: int = 2) -> Path:
    """allenai/pixmo-cap as its parquet files lie on disk."""
    rows = rows or [(url, f"Picture {i}.") for i, url in enumerate(URLS)]
    (root / "data").mkdir(parents=True)
    for number in range(files):
        part = rows[number::files]
        table = {"image_url": [r[0] for r in part], "caption": [r[1] for r in part]}
        table["transcripts"] = [["well", "hm"]] * len(part)
        pq.write_table(pa.table(table), root / "data" / f"train-{number:05}-of-{files:05}.parquet")
    return root


def questions(root: Path, rows: list[dict]) -> Path:
    (root / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / "train-00000-of-00001.parquet")
    return root


def arrive(root: Path, urls=URLS) -> None:
    """The pictures, as if downloaded."""
    for i, url in enumerate(urls):
        path = Links(root).path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path, "PNG")


def die(root: Path, **whys: list[str]) -> None:
    with (root / "links.jsonl").open("a") as file:
        file.writelines(json.dumps({"url": url, "dead": why.strip("_")}) + "\n" for why in whys for url in whys[why])


@pytest.fixture
def rows_of(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def rows_of(folder: Path, split: str = "train", rows: str = "caption", **options):
        return load_rows("pixmo", split, rows, data_dir=str(folder), **SIZES | options)

    return rows_of


def members(root: Path, name: str = "captions", **options) -> dict[str, list[str]]:
    links = PixmoConfig(name=name, data_dir=str(root), **SIZES | options).links()
    return {split: list(urls) for split, urls in links.items()}


def test_a_caption_is_a_row_with_its_picture_and_its_link_as_its_name(tmp_path, rows_of):
    root = captions(tmp_path / "p")
    arrive(root)
    wanted = members(root)["train"]
    rows = rows_of(root)
    assert rows["image_id"][:] == wanted and len(wanted) == 20
    at = URLS.index(wanted[3])
    row = rows[3]
    assert row["images"] == [{"bytes": None, "path": str(root / "images" / name_of(wanted[3]))}]
    assert open_picture(row["images"][0]).tobytes() == picture(at).tobytes()
    assert row["prompt"] == [{"role": "user", "content": PROMPT}]
    assert row["completion"] == [{"role": "assistant", "content": f"Picture {at}."}]
    assert row["references"] == [f"Picture {at}."] and row["regions"] == []
    assert list(rows_of(root, streaming=True)) == list(rows)


def test_alignment_rows_are_a_picture_and_its_caption(tmp_path, rows_of):
    root = captions(tmp_path / "p")
    arrive(root)
    rows = rows_of(root, "test", "alignment")
    assert rows.column_names == ["image", "text"] and len(rows) == 6
    assert rows["text"][:] == [f"Picture {URLS.index(url)}." for url in members(root)["test"]]
    assert rows[0]["image"]["path"].endswith(name_of(members(root)["test"][0]))


def test_a_link_with_two_captions_is_one_picture(tmp_path, rows_of):
    root = captions(tmp_path / "p", [(url, f"{said} {i}") for said in ("One", "Two") for i, url in enumerate(URLS)])
    arrive(root)
    splits = members(root)
    first = URLS.index(splits["train"][0])
    rows = rows_of(root)
    assert len(rows) == 40 and rows[0]["references"] == rows[1]["references"] == [f"One {first}", f"Two {first}"]
    assert [row["completion"][0]["content"] for row in rows.select(range(2))] == [f"One {first}", f"Two {first}"]
    assert rows_of(root, rows="image")["image_id"][:] == splits["train"]


def test_splits_share_no_picture_and_keep_their_sizes(tmp_path):
    splits = members(captions(tmp_path / "p"))
    assert {split: len(urls) for split, urls in splits.items()} == {"train": 20, "validation": 5, "test": 6}
    assert len({url for urls in splits.values() for url in urls}) == 31
    assert list(members(tmp_path / "p", num_validation=0)) == ["train", "test"]
    whole = members(tmp_path / "p", num_train=None, num_validation=None, num_test=None)
    assert sum(map(len, whole.values())) == 200 and 140 < len(whole["train"]) < 180


def test_the_hash_of_the_link_alone_decides(tmp_path):
    root = captions(tmp_path / "p")
    places = {url: int(sha256(f"pixmo 3 {url}".encode()).hexdigest()[:12], 16) / 16**12 for url in URLS}
    order = sorted(URLS, key=places.get)
    splits = members(root, split_seed=3)
    assert splits["test"] == order[:6]
    assert splits["validation"] == [url for url in order if places[url] >= 0.1][:5]
    assert splits["train"] == [url for url in order if places[url] >= 0.2][:20]
    assert splits != members(root), "another seed, other splits"


def test_neither_dead_links_nor_other_sizes_nor_another_data_set_move_a_picture_to_another_side(tmp_path):
    root = captions(tmp_path / "p")
    before = members(root)
    arrive(root, URLS[:30])
    die(root, _404=URLS[30:60])
    assert members(root) == before
    more = members(root, num_train=100, num_test=12)
    assert more["train"][:20] == before["train"] and more["test"][:6] == before["test"]
    asked = [{"image_url": url, "question": "What?", "answer": "This."} for url in URLS[::2]]
    whole = {"num_train": None, "num_validation": None, "num_test": None}
    some = members(questions(tmp_path / "q", asked), "questions", **whole)
    every = members(root, **whole)
    assert all(set(some[split]) == set(every[split]) & set(URLS[::2]) for split in every)


def test_what_is_dead_is_left_out_and_counted_for_each_split(tmp_path, rows_of, caplog):
    root = captions(tmp_path / "p")
    train = members(root)["train"]
    gone = {*train[:3], train[5]}
    arrive(root, [url for url in URLS if url not in gone])
    die(root, _404=train[:3], timeout=[train[5]])
    with caplog.at_level(logging.INFO):
        rows = rows_of(root)
    assert rows["image_id"][:] == [url for url in train if url not in gone]
    said = caplog.text
    assert "captions, train: 16 of 20 pictures there (80.0 %); 4 dead links: 3 404, 1 timeout" in said
    assert "captions, validation: 5 of 5 pictures there (100.0 %)" in said
    levels = {record.levelname for record in caplog.records if "pictures there" in record.message}
    assert levels == {"WARNING", "INFO"} and "download_pictures.py" not in said


def test_what_was_not_asked_for_yet_is_told_with_the_command_that_asks(tmp_path, rows_of, caplog):
    root = captions(tmp_path / "p")
    with pytest.raises(ValueError, match=r"0 of 20 pictures there .*; 20 not asked for yet.*recipes/download_pictures"):
        rows_of(root)
    splits = members(root)
    arrive(root, [*splits["train"][:4], *splits["validation"], *splits["test"]])
    assert len(rows_of(root)) == 4
    command = f"python recipes/download_pictures.py --dataset pixmo --config_name captions --data_dir {root}"
    command += ' --dataset_options \'{"num_train": 20, "num_validation": 5, "num_test": 6}\''
    assert PixmoConfig(data_dir="/a b").command().endswith("--data_dir '/a b'")
    assert "16 not asked for yet" in caplog.text and command in caplog.text


def test_a_cache_does_not_outlive_the_pictures_it_was_made_of(tmp_path, rows_of):
    root = captions(tmp_path / "p")
    arrive(root)
    assert len(rows_of(root)) == 20
    Links(root).path(members(root)["train"][7]).unlink()
    assert len(rows_of(root)) == 19


ASKED = [
    {"image_url": URLS[0], "image_sha256": "ab", "question": " What is it? ", "answer": "A tree."},
    {"image_url": URLS[0], "image_sha256": "ab", "question": "[USER] Is it big? [ASSISTANT]", "answer": "Yes."},
    {"image_url": URLS[0], "image_sha256": "ab",
     "question": "[USER]\nWhat colour? [ASSISTANT] Green.\n[USER] Sure? [ASSISTANT]", "answer": "Quite."},
    {"image_url": URLS[1], "image_sha256": "cd", "question": "How many?", "answer": "Two."},
]  # fmt: skip
ALL = {"num_train": None, "num_validation": 0, "num_test": 0, "split_seed": 6}  # of URLS[:2], both are in train


def test_a_question_is_a_row_and_earlier_turns_are_in_its_prompt(tmp_path, rows_of):
    root = questions(tmp_path / "q", ASKED)
    arrive(root, URLS[:2])
    rows = rows_of(root, config_name="questions", **ALL)
    of_first = [row for row in rows if row["image_id"] == URLS[0]]
    assert [row["completion"][0]["content"] for row in of_first] == ["A tree.", "Yes.", "Quite."]
    assert of_first[0]["prompt"] == [{"role": "user", "content": "What is it?"}]
    assert of_first[1]["prompt"] == [{"role": "user", "content": "Is it big?"}]
    assert of_first[2]["prompt"] == [
        {"role": "user", "content": "What colour?"},
        {"role": "assistant", "content": "Green."},
        {"role": "user", "content": "Sure?"},
    ]
    assert of_first[2]["references"] == ["Quite."]
    rows = rows_of(root, rows="image", config_name="questions", **ALL)
    assert {row["image_id"]: row["completion"][0]["content"] for row in rows} == {URLS[0]: "A tree.", URLS[1]: "Two."}


def test_the_sha256_of_a_picture_goes_with_its_link_where_it_is_told(tmp_path):
    root = questions(tmp_path / "q", ASKED)
    links = PixmoConfig(name="questions", data_dir=str(root), **ALL).links()
    assert links == {"train": {URLS[0]: "ab", URLS[1]: "cd"}}
    bare = captions(tmp_path / "p")
    assert set(PixmoConfig(data_dir=str(bare), **SIZES).links()["test"].values()) == {None}


def test_blank_texts_and_broken_conversations_are_left_out_and_counted(tmp_path, rows_of, caplog):
    wrong = [(" ", "An answer."), (None, "An answer."), ("What?", " "), ("[USER] What? [USER] Who?", "It."),
             ("[USER] What? [ASSISTANT] This.", "It."), ("[USER] [ASSISTANT]", "It."),
             ("[USER] a [ASSISTANT] [USER] b [ASSISTANT]", "It."),
             ("[USER] a [USER]", "It.")]  # fmt: skip
    asked = [{"image_url": URLS[0], "question": question, "answer": answer} for question, answer in wrong]
    asked += [{"image_url": None, "question": "a", "answer": "b"}, *ASKED[3:]]
    root = questions(tmp_path / "q", [{"image_sha256": None, **row} for row in asked])
    arrive(root, URLS[:2])
    rows = rows_of(root, config_name="questions", **ALL)
    assert rows["image_id"][:] == [URLS[1]]
    assert f"8 blank questions, or not [USER] … [ASSISTANT], left out, of pictures ({URLS[0]}" in caplog.text
    told = [(url, None if i == 150 else "  " if i == 151 else f" Picture {i}. ") for i, url in enumerate(URLS)]
    root = captions(tmp_path / "p", told)
    arrive(root)
    rows = rows_of(root, **dict.fromkeys(SIZES))
    assert "2 blank captions left out, of pictures (https" in caplog.text
    assert {URLS[150], URLS[151]}.isdisjoint(rows["image_id"])
    assert {said[0] for said in rows["references"]} <= {f"Picture {i}." for i in range(200)}


def test_a_wrong_layout_is_told_with_what_is_there(tmp_path, rows_of):
    (tmp_path / "empty" / "stuff").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"expected data/train-\*.parquet, as in allenai/pixmo-cap; found stuff"
    ):
        rows_of(tmp_path / "empty")
    root = captions(tmp_path / "p", files=3)
    (root / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(
        FileNotFoundError, match="not all of it.*train-00000-of-00003.parquet, train-00002-of-00003.parq"
    ):
        rows_of(root)
    root = captions(tmp_path / "c")
    with pytest.raises(
        ValueError, match="no answer, question for 'questions'; it has image_url, caption.*'captions' reads"
    ):
        rows_of(root, config_name="questions")
    with pytest.raises(ValueError, match="config_name must be one of captions, questions; got 'points'"):
        rows_of(root, config_name="points")
    (root / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match="train-00001-of-00002.parquet: cannot be read as parquet"):
        rows_of(root)
    with pytest.raises(ValueError, match="needs data_dir"):
        load_rows("pixmo", "train")


@pytest.mark.parametrize("count", [-1, 181])
def test_more_pictures_than_there_are_on_a_side_are_refused(tmp_path, count):
    with pytest.raises(ValueError, match=rf"of 200 links, \d+ are on the side of train; num_train={count} asks for"):
        members(captions(tmp_path / "p"), num_train=count)


def test_by_default_there_are_fourteen_three_and_three_thousand():
    config = PixmoConfig(data_dir="x")
    assert (config.num_train, config.num_validation, config.num_test) == (14_000, 3_000, 3_000)
    assert config.name == "captions" and Pixmo.BUILDER_CONFIG_CLASS is PixmoConfig
