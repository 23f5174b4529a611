"""RLAIF-V in miniature: its parquet files with pictures in them, on disk and on a Hub of this machine."""

import io
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_scripts import load_rows
from datasets_scripts.open_picture import open_picture
from datasets_scripts.preference_rows import PREFERENCE_FEATURES
from tests.conftest import picture
from tests.loopback_hub import LoopbackHub


PICTURES = 40


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    picture(i, 8).save(buffer, "PNG")
    return buffer.getvalue()


def row(i: int, question: int = 0, worse: str = "worse") -> dict:
    return {
        "ds_name": "RLAIF-V",
        "image": {"bytes": png(i), "path": f"{question}.jpg"},
        "question": f"What {i} {question}?",
        "chosen": f"better {i} {question}",
        "rejected": f"{worse} {i} {question}",
        "origin_dataset": "COCO",
        "origin_split": "{}",
        "idx": f"{i}-{question}",
        "image_path": f"./{i}-{question}.jpg",
    }


def write(folder: Path, *files: list[dict]) -> Path:
    folder.mkdir()
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"RLAIF-V-Dataset_{number:03}.parquet")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two questions about each picture, in two files."""
    return write(tmp_path / "rlaif", *([row(i, question) for i in range(PICTURES)] for question in (0, 1)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def load(folder: Path | None, split: str, **options):
    return load_rows("rlaif_v", split, "preference", folder and str(folder), **options)


def name(i: int) -> str:
    return sha256(png(i)).hexdigest()[:16]


def at(i: int, seed: int = 0) -> float:
    return int(sha256(f"rlaif_v {seed} {name(i)}".encode()).hexdigest()[:12], 16) / 16**12


def test_a_question_is_a_row_with_its_picture_unopened(folder):
    rows = load(folder, "train")
    assert rows.features == PREFERENCE_FEATURES
    one = next(one for one in rows if one["image_id"] == name(3))
    number = one["prompt"][0]["content"][-2]
    assert one["images"] == [{"bytes": png(3), "path": f"{number}.jpg"}]
    assert open_picture(one["images"][0]).tobytes() == picture(3, 8).tobytes()
    assert one["prompt"] == [{"role": "user", "content": f"What 3 {number}?"}]
    assert one["chosen"] == [{"role": "assistant", "content": f"better 3 {number}"}]
    assert one["rejected"] == [{"role": "assistant", "content": f"worse 3 {number}"}] and one["flaw"] == ""


@pytest.mark.parametrize("seed", [0, 4])
def test_all_questions_about_a_picture_are_on_the_side_that_the_hash_of_its_bytes_says(folder, seed):
    sides = {"train": (0.2, 1.0), "validation": (0.1, 0.2), "test": (0.0, 0.1)}
    for split, (low, high) in sides.items():
        wanted = sorted((i for i in range(PICTURES) if low <= at(i, seed) < high), key=lambda i: at(i, seed))
        assert wanted, "the fixture has pictures on every side"
        assert load(folder, split, split_seed=seed)["image_id"][:] == [name(i) for i in wanted for _ in range(2)]


def test_as_many_as_asked_for_are_taken_and_too_few_are_told(folder, caplog):
    every = load(folder, "train", num_train=None)
    assert not caplog.text
    assert load(folder, "train", num_train=9)[:] == every[:9]
    assert len(load(folder, "validation", num_eval=1)) == 1
    assert len(load(folder, "train")) == len(every)
    assert f"{folder}, train: 10000 pairs are asked for, and there are {len(every)}: all are taken" in caplog.text


def test_some_of_the_files_give_some_of_the_same_rows(folder):
    part = load(folder, "train", files="RLAIF-V-Dataset_000.parquet")
    every = load(folder, "train")
    assert part["image_id"][:] == every["image_id"][::2]
    assert all(prompt[0]["content"].endswith("0?") for prompt in part["prompt"])


def test_pairs_that_teach_nothing_are_left_out_and_counted(tmp_path, caplog):
    rows = [row(i, worse="better" if i in (4, 5) else "worse") for i in range(PICTURES)]
    rows[6]["rejected"] = None
    folder = write(tmp_path / "some", rows)
    taken = {name for split in ("train", "validation", "test") for name in load(folder, split)["image_id"]}
    assert taken == {name(i) for i in range(PICTURES) if i not in (4, 5, 6)}
    assert "train: 2 pairs left out: both sides are the same (row 4, row 5)" in caplog.text
    assert "1 pairs left out: a side or the prompt is empty (row 6)" in caplog.text


def test_what_is_missing_is_told_with_what_is_there(tmp_path):
    (tmp_path / "empty" / "stuff").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"expected \*.parquet, as RLAIF-V-Dataset_000.parquet.*; found stuff"):
        load(tmp_path / "empty", "train")
    folder = write(tmp_path / "other", [{"image": {"bytes": png(0), "path": ""}, "text": "a"}])
    with pytest.raises(ValueError, match="lacks the columns chosen, question, rejected; it has image, text"):
        load(folder, "train")
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation, test"):
        load(folder, "dev")


def test_from_the_hub_only_the_named_files_of_the_named_revision_are_read(folder, monkeypatch, caplog):
    with LoopbackHub() as hub:
        hub.patch(monkeypatch)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        sha = hub.seed("openbmb/RLAIF-V-Dataset", folder, "dataset")
        some = load(None, "train", revision=sha, files="RLAIF-V-Dataset_001.parquet")
        fetched = {path.name for path in Path(hub._tmp.name).rglob("*.parquet")}
    assert some[:] == load(folder, "train", files="*_001.parquet")[:]
    assert fetched == {"RLAIF-V-Dataset_001.parquet"} and "no revision" not in caplog.text
