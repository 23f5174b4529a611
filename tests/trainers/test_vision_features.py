"""Cached vision features: what the tower gives, once a picture, whoever asks and however often it was interrupted."""

from threading import Barrier, Thread

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from datasets_scripts.canonical import CAPTION_FEATURES, turns
from datasets_scripts.open_picture import UnreadablePicture
from tests.conftest import make_ossight, make_processor, picture
from trainers import feature_shards
from trainers.captioning_data import CaptioningCollator
from trainers.vision_features import cache_vision_features


@pytest.fixture
def rows(tmp_path):
    """Six pictures, ten rows: some share a picture, one shows two, one shows a broken one, one shows none."""
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"no picture")
    shown = [[0], [0], [1], [2, 3], [5], [], [4], [3], [1], [0]]

    def one(number, images):
        paths = [{"path": str(tmp_path / f"{i}.png"), "bytes": None} for i in images]
        told = turns("what colour is it", "red" if number % 2 else "blue green")
        return {"images": paths, **told, "references": ["red"], "image_id": str(number), "regions": []}

    from datasets_scripts import _undecoded

    return Dataset.from_list([one(*row) for row in enumerate(shown)], features=_undecoded(CAPTION_FEATURES))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_shards, "SHARD", 2)


def counted(model):
    calls = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    return calls


@pytest.mark.parametrize("shape", [{}, {"pixel_shuffle": 2, "tokens_per_block": 3}, {"vision_feature_layer": -2}])
@pytest.mark.parametrize("vision", ["siglip", "clip"])
def test_training_on_cached_features_is_training_on_pictures(rows, tmp_path, shape, vision):
    model, processor = make_ossight(vision, **shape), make_processor()
    blocks = {name: value for name, value in shape.items() if name != "vision_feature_layer"}
    for name, value in blocks.items():
        setattr(processor, name, value)
    features, indexed = cache_vision_features(model, processor, rows, tmp_path / "cache")
    seen = CaptioningCollator(processor)(list(rows))
    cached = CaptioningCollator(processor, features=features)(list(indexed))
    assert seen.pop("skipped") == cached.pop("skipped")
    assert torch.equal(seen["input_ids"], cached["input_ids"]) and torch.equal(seen["labels"], cached["labels"])
    calls = counted(model)
    out = model(**cached)
    assert not calls, "the tower is not asked again"
    expected = model(**seen)
    assert_close(out.loss, expected.loss)
    assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_each_picture_is_seen_once_and_never_again(rows, tmp_path):
    model, processor = make_ossight(), make_processor()
    calls = counted(model)
    cache_vision_features(model, processor, rows, tmp_path / "cache")
    assert sum(calls) == 6 + 1  # the seventh is the blank one that skipped rows show
    cache_vision_features(model, processor, rows.select(range(len(rows))), tmp_path / "cache")
    assert sum(calls) == 6 + 2


def test_what_was_interrupted_goes_on_with_the_shards_that_are_missing(rows, tmp_path):
    model, processor = make_ossight(), make_processor()
    whole, _ = cache_vision_features(model, processor, rows, tmp_path / "whole")
    cache_vision_features(model, processor, rows, tmp_path / "cut")
    (folder,) = (tmp_path / "cut").iterdir()
    assert len(list(folder.glob("*.arrow"))) == 3
    (folder / "shard-00001-of-00003.arrow").rename(folder / "shard-00001-of-00003.arrow.123.tmp")
    calls = counted(model)
    again, _ = cache_vision_features(model, processor, rows, tmp_path / "cut")
    assert sum(calls) == 2 + 1
    for i in (0, 1, 2, 3, 5):
        assert torch.equal(again[i], whole[i])


def test_two_processes_share_the_work(rows, tmp_path):
    barrier, seen, models = Barrier(2, timeout=60), {}, [make_ossight(), make_ossight()]

    def process(index):
        model = models[index]
        calls = counted(model)
        features, _ = cache_vision_features(
            model, make_processor(), rows, tmp_path / "cache", process=(index, 2), wait=barrier.wait
        )
        seen[index] = len(features), sum(calls)

    threads = [Thread(target=process, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {0: (6, 4 + 1), 1: (6, 2 + 1)}


def test_the_key_is_of_everything_that_decides_a_feature(rows, tmp_path):
    processor, folder = make_processor(), tmp_path / "cache"

    def keys(model=None, processor=processor, rows=rows):
        cache_vision_features(model or make_ossight(), processor, rows, folder)
        return len(list(folder.iterdir()))

    assert keys() == 1
    assert keys() == 1
    changed = make_ossight()
    with torch.no_grad():
        next(changed.model.vision_tower.parameters()).flatten()[0] += 1e-3
    assert keys(changed) == 2
    assert keys(make_ossight(vision_feature_layer=-2)) == 3
    other = make_processor()
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert keys(processor=other) == 4
    assert keys(rows=rows.select([0, 1, 2])) == 5
    picture(9).save(rows[0]["images"][0]["path"])
    assert keys() == 6


def test_a_picture_that_cannot_be_read_says_so_when_it_is_asked_for(rows, tmp_path):
    features, indexed = cache_vision_features(make_ossight(), make_processor(), rows, tmp_path / "cache")
    (index,) = indexed[4]["images"]
    with pytest.raises(UnreadablePicture, match="5.png"):
        features[index]


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_shards.shutil, "disk_usage", lambda path: type("", (), {"free": 100})())
    with pytest.raises(OSError, match="features of 6 items need .* cache_vision_features: false"):
        cache_vision_features(make_ossight(), make_processor(), rows, tmp_path / "cache")
