"""The index against plain numpy; kept, added to, killed while it saves, of another model."""

import json
import os

import numpy as np
import pytest

from processing.vector_index import VectorIndex


def vectors(count: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    """With a spectrum that falls off, as Matryoshka embeddings have."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) / np.sqrt(1 + np.arange(dim))).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"picture {i}.jpg" for i in range(count)]


def nearest(queries: np.ndarray, items: np.ndarray, dim: int, count: int) -> np.ndarray:
    q, i = (x[:, :dim] / np.linalg.norm(x[:, :dim], axis=1, keepdims=True) for x in (queries, items))
    return np.argsort(-(q @ i.T), axis=1, kind="stable")[:, :count]


@pytest.mark.parametrize("dim", [8, 32])
def test_without_a_shortlist_it_is_the_cosine_of_the_first_numbers(dim):
    items, queries = vectors(200), vectors(9, seed=1)
    index = VectorIndex("m", dim)
    index.add(items, names(200))
    expected = nearest(queries, items, dim, 5)
    found = index.search(queries, 5)
    assert [[name for name, _ in row] for row in found] == [[f"picture {i}.jpg" for i in row] for row in expected]
    q, i = queries[0, :dim], items[expected[0, 0], :dim]
    assert found[0][0][1] == pytest.approx(q @ i / np.linalg.norm(q) / np.linalg.norm(i), abs=1e-5)


def test_a_shortlist_of_everything_changes_nothing_and_a_short_one_finds_nearly_all():
    items, queries = vectors(2000), vectors(50, seed=1)
    funnel = VectorIndex("m", 32, short_dim=8)
    funnel.add(items, names(2000))
    expected = nearest(queries, items, 32, 10)
    assert np.array_equal(funnel.search_ids(queries, 10, shortlist=200)[1], expected)
    found = funnel.search_ids(queries, 10, shortlist=20)[1]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)])
    assert 0.9 < recall <= 1
    narrow = funnel.search_ids(queries, 10, shortlist=1)[1]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(narrow, expected, strict=True)]) < recall


@pytest.mark.parametrize(("quantize", "least", "bytes_"), [("int8", 0.9, 40), ("binary", 0.9, 33)])
def test_quantised_vectors_find_nearly_the_same_in_less_memory(quantize, least, bytes_):
    items, queries = vectors(1000), vectors(50, seed=1)
    index = VectorIndex("m", 32, quantize, short_dim=8)
    index.add(items, names(1000))
    found, expected = index.search_ids(queries, 10, shortlist=50)[1], nearest(queries, items, 32, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)])
    assert recall > least
    assert index.bytes_a_vector() == bytes_


def test_what_is_added_later_may_lie_elsewhere_than_what_came_first():
    """As sounds lie elsewhere than pictures: a range learned from the first alone would clip the others."""
    near = np.eye(32, dtype=np.float32)[0] + 0.05 * vectors(100)
    elsewhere = np.eye(32, dtype=np.float32)[1] + 0.05 * vectors(100, seed=1)
    index = VectorIndex("m", 32, "int8")
    index.add(near, names(100))
    index.add(elsewhere, [f"later {i}" for i in range(100)])
    for found in index.search(elsewhere, 1):
        assert found[0][0].startswith("later") and found[0][1] > 0.99


@pytest.mark.parametrize("quantize", ["none", "int8", "binary"])
@pytest.mark.parametrize("short_dim", [None, 8])
def test_it_is_kept_and_added_to(tmp_path, quantize, short_dim):
    items, queries = vectors(300), vectors(5, seed=1)
    index = VectorIndex("m", 32, quantize, short_dim)
    index.add(items[:200], names(300)[:200])
    index.save(tmp_path)
    with pytest.raises(ValueError, match="mapped=False"):
        VectorIndex.load(tmp_path).add(items[:1], ["a"])
    again = VectorIndex.load(tmp_path, "m", mapped=False)
    assert again.search(queries, 7) == index.search(queries, 7)
    for one in (index, again):
        one.add(items[200:], names(300)[200:])
    again.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3, "the files of the state before are gone"
    third = VectorIndex.load(tmp_path)
    assert len(third) == 300 and third.search(queries, 7) == index.search(queries, 7) == again.search(queries, 7)


def test_a_save_that_is_cut_off_leaves_the_state_before(tmp_path, monkeypatch):
    items = vectors(20)
    index = VectorIndex("m", 32)
    index.add(items[:10], names(10))
    index.save(tmp_path)
    index.add(items[10:], names(20)[10:])
    real, moved = os.replace, []

    def cut(source, target):
        if len(moved) == fails_at:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    for at in (0, 1, 2):
        moved.clear()
        fails_at = at
        monkeypatch.setattr(os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            index.save(tmp_path)
        monkeypatch.setattr(os, "replace", real)
        assert len(VectorIndex.load(tmp_path)) == 10
    index.save(tmp_path)
    assert len(VectorIndex.load(tmp_path)) == 20


def test_what_is_not_the_index_asked_for_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no index"):
        VectorIndex.load(tmp_path)
    index = VectorIndex("one model", 32)
    with pytest.raises(ValueError, match="holds nothing yet"):
        index.search(vectors(1))
    index.add(vectors(3), names(3))
    index.save(tmp_path)
    with pytest.raises(ValueError, match="of another model .one model…, asked with another"):
        VectorIndex.load(tmp_path, "another")
    told = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(told | {"count": 4}))
    with pytest.raises(ValueError, match="4 items, 3 vectors, 3 names"):
        VectorIndex.load(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps(told | {"format": 0}))
    with pytest.raises(ValueError, match="an index of format 0"):
        VectorIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("embeddings", "problem"),
    [
        (np.zeros((2, 31)), "at least 32"),
        (np.zeros(32), "at least 32"),
        (np.full((2, 32), np.nan), "embedding 0 holds what is no number"),
        (np.zeros((3, 32)), "3 embeddings and 2 names"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(embeddings, problem):
    with pytest.raises(ValueError, match=problem):
        VectorIndex("m", 32).add(embeddings, ["a", "b"])


@pytest.mark.parametrize("settings", [{"quantize": "int4"}, {"short_dim": 64}, {"short_dim": 0}])
def test_settings_that_contradict_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        VectorIndex("m", 32, **settings)
