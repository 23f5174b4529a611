"""Shards: what is there stays, what is merged is all of it."""

import errno
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grounding import shards
from grounding.shards import agree, merge, read_shards, shard_path, statistics, write_shards


def record(number, kind="region", reason="", **more):
    common = {"kind": kind, "image_id": f"p{number}", "image": f"{number}.png", "width": 9, "height": 9, "phrases": 2}
    if kind == "unreadable":
        return {"kind": kind, "image_id": f"p{number}", "image": f"{number}.png", "reason": reason}
    common |= {"caption_id": 0, "caption": "a dog", "text": "a dog", "reason": reason}
    if kind == "region":
        common |= {"phrase": "dog", "box": [0.0, 1.0, 2.0, 3.0], "detector_score": 0.5, "clip_score": 0.25}
        common |= {"detector": "d@1", "similarity_model": "s@2", "captioner": None}
    return common | more


def compute(here):
    return [
        made for i in here for made in (record(i, "caption"), record(i), record(i, reason="too small", clip_score=None))
    ]


def test_shards_that_are_there_are_not_made_again(tmp_path):
    made = []

    def counting(here):
        made.append(here)
        return compute(here)

    assert write_shards(tmp_path, 10, 4, counting) == 3
    assert made == [range(0, 4), range(4, 8), range(8, 10)]
    shard_path(tmp_path, 1, 3).unlink()
    made.clear()
    assert write_shards(tmp_path, 10, 4, counting) == 3 and made == [range(4, 8)]
    assert [one["image_id"] for one in read_shards(tmp_path, 3)] == [f"p{i}" for i in range(10) for _ in range(3)]


def test_processes_share_the_missing_ones_and_write_what_one_writes(tmp_path):
    write_shards(tmp_path / "one", 10, 2, compute)
    for process in range(2):
        write_shards(tmp_path / "two", 10, 2, compute, (process, 2))
        assert len(list((tmp_path / "two/shards").iterdir())) == (3, 5)[process]
    for number in range(5):
        paths = [shard_path(tmp_path / name, number, 5) for name in ("one", "two")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_failure_between_two_shards_leaves_whole_ones_only(tmp_path):
    def failing(here):
        if here.start == 4:
            raise KeyboardInterrupt
        return compute(here)

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, 10, 4, failing)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["shard-00000-of-00003.jsonl"]


def test_a_full_disk_is_named_and_nothing_is_half_written(tmp_path, monkeypatch):
    write_text = Path.write_text

    def full(path, text, **how):
        if "00001" in path.name:
            write_text(path, text[:20], **how)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="the disk is full at shard 1 of 3: make room and run the same command again"):
            write_shards(tmp_path, 10, 4, compute)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["shard-00000-of-00003.jsonl"]
    write_shards(tmp_path, 10, 4, compute)
    assert len(list(read_shards(tmp_path, 3))) == 30


def test_both_files_hold_what_was_kept_and_the_third_what_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH", 4)  # several groups of rows
    count = write_shards(tmp_path, 5, 2, compute)
    figures = merge(tmp_path, "train", count)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "train.parquet")
    assert table.to_pylist() == lines and table.schema.equals(shards.SCHEMA)
    assert [(line["image_id"], line["kind"]) for line in lines] == [
        (f"p{i}", kind) for i in range(5) for kind in ("caption", "region")
    ]
    assert lines[0]["phrase"] is None and lines[1]["box"] == [0, 1, 2, 3] and "reason" not in lines[0]
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [one["reason"] for one in rejected] == ["too small"] * 5
    assert json.loads((tmp_path / "statistics.json").read_text()) == figures
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_of_nothing_is_two_empty_files(tmp_path):
    figures = merge(tmp_path, "train", write_shards(tmp_path, 2, 2, lambda here: []))
    assert figures["kept"] == figures["pictures"]["read"] == 0
    assert pq.read_table(tmp_path / "train.parquet").num_rows == 0 and not (tmp_path / "train.jsonl").read_text()


def test_figures_by_hand():
    records = [
        record(0, "caption"), record(0, "caption"), record(0, clip_score=1.0), record(0, reason="too small", clip_score=None),
        record(1, "unreadable", "gone"),
        record(2, "caption", phrases=0),
        record(3, "caption"), record(3, reason="picture and words do not agree", clip_score=-1.0, detector_score=0.99),
    ]  # fmt: skip
    figures = statistics(records)
    assert figures["pictures"] == {"read": 3, "unreadable": 1, "without_phrases": 1, "without_detections": 1}
    assert (figures["captions"], figures["phrases"], figures["detections"], figures["kept"]) == (4, 4, 3, 1)
    assert figures["rejected"] == {"too small": 1, "picture and words do not agree": 1}
    assert figures["phrases_kept"] == {"dog": 1}
    histograms = figures["histograms"]
    assert histograms["clip_score"]["kept"][-1] == 1 and histograms["clip_score"]["rejected"][0] == 1
    assert sum(histograms["clip_score"]["rejected"]) == 1 and histograms["detector_score"]["rejected"][30] == 1  # 0.5
    assert histograms["detector_score"]["rejected"][39] == 1


def test_a_run_that_was_told_otherwise_is_not_gone_on_with(tmp_path):
    agree(tmp_path, {"box_threshold": 0.3, "detector": "d@1"})
    agree(tmp_path, {"box_threshold": 0.3, "detector": "d@1"})
    with pytest.raises(
        ValueError, match=r"box_threshold was 0.3, is 0.35; captioner was None, is 'c'.*name another output"
    ):
        agree(tmp_path, {"box_threshold": 0.35, "detector": "d@1", "captioner": "c"})
