"""UltraFeedback in miniature: its parquet files on disk, and on a Hub of this machine."""

from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import IterableDataset

from datasets_scripts import load_rows
from datasets_scripts.preference_rows import PREFERENCE_FEATURES
from tests.loopback_hub import LoopbackHub


def row(i: int, prompt: str = "", worse: str = "worse") -> dict:
    prompt = prompt or f"Question {i}?"
    asked = {"role": "user", "content": prompt}
    return {
        "prompt": prompt,
        "prompt_id": f"id{i}",
        "chosen": [asked, {"role": "assistant", "content": f"Better {i}."}],
        "rejected": [asked, {"role": "assistant", "content": worse and f"{worse} {i}."}],
        "messages": [asked],
        "score_chosen": 8.0,
        "score_rejected": 4.5,
    }


def write(folder: Path, **files: list[dict]) -> Path:
    (folder / "data").mkdir(parents=True)
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


def official(folder: Path, tag: str = "") -> Path:
    rows = {name: [row(i, f"{tag}{name} {i}") for i in range(count)] for name, count in (("train", 30), ("test", 20))}
    return write(folder, train_prefs=rows["train"], test_prefs=rows["test"], train_sft=rows["train"][:1])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def prompts(rows) -> list[str]:
    return [one[0]["content"] for one in rows["prompt"]]


def load(folder: Path | None, split: str, **options):
    return load_rows("ultrafeedback", split, "preference", folder and str(folder), **options)


def test_a_pair_is_a_row_without_a_picture(tmp_path):
    rows = load(official(tmp_path / "uf"), "train")
    assert rows.features == PREFERENCE_FEATURES and len(rows) == 30
    one = next(one for one in rows if one["prompt"][0]["content"] == "train 4")
    assert one == {
        "images": [],
        "prompt": [{"role": "user", "content": "train 4"}],
        "chosen": [{"role": "assistant", "content": "Better 4."}],
        "rejected": [{"role": "assistant", "content": "worse 4."}],
        "image_id": sha256(repr(one["prompt"]).encode()).hexdigest()[:16],
        "flaw": "",
    }
    streamed = load(tmp_path / "uf", "train", streaming=True)
    assert isinstance(streamed, IterableDataset) and list(streamed) == list(rows)


def test_as_many_as_asked_for_are_drawn_by_a_hash_of_the_prompt(tmp_path):
    folder = official(tmp_path / "uf")
    every = prompts(load(folder, "train", num_train=None))

    def place(prompt: str, seed: int) -> str:
        return sha256(f"ultrafeedback {seed} {[{'role': 'user', 'content': prompt}]!r}".encode()).hexdigest()

    assert every == sorted((f"train {i}" for i in range(30)), key=lambda prompt: place(prompt, 0))
    assert prompts(load(folder, "train", num_train=7)) == every[:7]
    assert prompts(load(folder, "train", split_seed=2)) == sorted(every, key=lambda prompt: place(prompt, 2))


def test_validation_and_test_are_halves_of_the_official_test_that_share_no_prompt(tmp_path):
    rows = [row(i, f"test {i // 2}") for i in range(20)]  # every prompt twice
    folder = write(tmp_path / "uf", train=[row(0)], test=rows)
    halves = {split: prompts(load(folder, split)) for split in ("validation", "test")}
    assert {split: len(some) for split, some in halves.items()} == {"validation": 10, "test": 10}
    assert set(halves["validation"]).isdisjoint(halves["test"])
    other = {split: prompts(load(folder, split, split_seed=5)) for split in halves}
    assert all(sorted(other[split]) == sorted(halves[split]) != other[split] for split in halves), "no seed mixes them"
    assert len(load(folder, "test", num_eval=3)) == 3


def test_pairs_that_teach_nothing_are_left_out_and_counted_and_too_few_are_told(tmp_path, caplog):
    rows = [row(0), row(1, worse=""), row(2, worse="Better"), row(3)]
    folder = write(tmp_path / "uf", train_prefs=rows, test_prefs=rows)
    assert sorted(prompts(load(folder, "train"))) == ["Question 0?", "Question 3?"]
    assert f"{folder}, train: 1 pairs left out: both sides are the same (row 2)" in caplog.text
    assert "1 pairs left out: a side or the prompt is empty (row 1)" in caplog.text
    assert f"{folder}, train: 10000 pairs are asked for, and there are 2: all are taken" in caplog.text
    folder = write(tmp_path / "none", train_prefs=rows[1:3], test_prefs=rows[1:3])
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=f"none, {split}: there is no pair to take"):
            load(folder, split)


def test_trls_layout_has_the_prompt_in_both_sides(tmp_path):
    rows = [{side: one[side] for side in ("chosen", "rejected")} for one in map(row, range(6))]
    folder = write(tmp_path / "trl", train=rows, test=rows)
    assert sorted(prompts(load(folder, "train"))) == [f"Question {i}?" for i in range(6)]
    flat = tmp_path / "flat"
    (folder / "data").rename(flat)
    assert len(load(flat, "train")) == 6, "the files may lie in data_dir itself"


def test_what_is_missing_is_told_with_what_is_there(tmp_path):
    (tmp_path / "empty" / "stuff").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"expected train_prefs-\*.parquet or train-\*.parquet.*found stuff; in data/: no"
    ):
        load(tmp_path / "empty", "train")
    folder = write(tmp_path / "uf", train_prefs=[{"prompt": "a", "chosen": "b"}], test_prefs=[row(0)])
    with pytest.raises(ValueError, match="uf, train lacks the columns rejected; it has prompt, chosen"):
        load(folder, "train")
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation, test"):
        load(folder, "dev")


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as hub:
        hub.patch(monkeypatch)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        yield hub


def test_from_the_hub_the_named_revision_is_read_and_of_its_files_only_the_one(tmp_path, hub, caplog):
    old = hub.seed("HuggingFaceH4/ultrafeedback_binarized", official(tmp_path / "a"), "dataset")
    hub.seed("HuggingFaceH4/ultrafeedback_binarized", official(tmp_path / "b", "new "), "dataset")
    pinned = load(None, "train", revision=old)
    assert prompts(pinned) == prompts(load(tmp_path / "a", "train")) and "revision" not in caplog.text
    fetched = {path.name for path in Path(hub._tmp.name).rglob("*.parquet")}
    assert fetched == {"train_prefs-00000-of-00001.parquet"}
    assert set(prompts(load(None, "test"))) < {f"new test {i}" for i in range(20)}
    assert "no revision is named, so it is today's; revision=COMMIT" in caplog.text


def test_trls_copy_is_read_from_the_hub_too(tmp_path, hub):
    rows = [{side: one[side] for side in ("chosen", "rejected")} for one in map(row, range(6))]
    sha = hub.seed("trl-lib/ultrafeedback_binarized", write(tmp_path / "a", train=rows, test=rows), "dataset")
    assert len(load(None, "train", repo_id="trl-lib/ultrafeedback_binarized", revision=sha)) == 6
