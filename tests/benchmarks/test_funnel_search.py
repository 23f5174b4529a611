"""benchmarks/funnel_search.py as a user runs it, but small; that what it draws is the model's, and what it counts is recall."""

import argparse
import importlib.util
import json
import re
import resource
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.modeling.test_modeling_aligner import make_aligner, make_aligner_processor


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "funnel_search.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("funnel_search", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["funnel_search"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def embeddings(count: int = 500, dim: int = 24) -> np.ndarray:
    """At unit length, round a mean that is not 0, the first numbers larger, numbers that depend on one another."""
    rng = np.random.default_rng(1)
    mixed = rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + 2
    mixed /= np.sqrt(1 + np.arange(dim))
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def asked(**change) -> argparse.Namespace:
    usual = {"batch_sizes": [1, 8], "contenders": ["funnel"], "short_dim": 4, "shortlist": [10], "rounds": 1}
    return argparse.Namespace(**usual | change)


def test_it_prints_every_ratio_and_writes_them(benchmark, tmp_path, monkeypatch, capsys):
    make_aligner(embed_dim=64, matryoshka_dimensions=[16, 64]).save_pretrained(tmp_path / "model")
    make_aligner_processor(sounds=False).save_pretrained(tmp_path / "model")
    command = f"funnel_search --model {tmp_path / 'model'} --scenes 90 --num_vectors 600 --dim 32 --short_dim 16 "
    command += "--shortlist 2 60 --num_queries 40 --cosine 0.9 --rounds 2 --output found.json"
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("faiss.omp_get_max_threads", lambda: 977)  # PyTorch's are others
    monkeypatch.chdir(tmp_path)
    benchmark.main()
    out = capsys.readouterr().out
    number = r"([\d.]+)"
    rows = re.findall(
        rf"^ratio (\w+) / flat, shortlist (\d+), (\d+) a call: {number} \({number} to {number}\) queries/s, "
        rf"{number} against {number}; "
        rf"recall@10 {number} ± {number}; {number} GB against 0.000$",
        out,
        re.MULTILINE,
    )
    order = [
        (name, shortlist, batch)
        for name in ("funnel", "int8", "binary")
        for batch in "1 64".split()
        for shortlist in ("20", "600")
    ]
    assert [(row[0], row[1], row[2]) for row in rows] == order
    for row in rows:
        middle, least, greatest, recall = map(float, (row[3], row[4], row[5], row[8]))
        assert 0 <= least <= middle <= greatest and 0 < recall <= 1
        if row[:2] == ("funnel", "600"):
            assert recall == 1
    assert re.search(r"^600 vectors of 32 numbers on .+, 977 threads; faiss ", out, re.MULTILINE)
    held = re.search(rf"this process held {number} GB at most", out)[1]
    assert float(held) == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, abs=0.1)
    assert "40 queries, perturbed to a mean cosine of 0.900" in out
    said = {
        row[0]: (float(row[1]), float(row[2]))
        for row in re.findall(rf"the first +(\d+) numbers: {number} of .* drawn {number}", out)
    }
    assert (
        list(said) == ["16", "32"] and said["32"] == (1, 1) and said["16"][0] == pytest.approx(said["16"][1], abs=0.05)
    )
    written = json.loads((tmp_path / "found.json").read_text())
    assert all(row["queries_s"] > 0 < row["flat_queries_s"] for row in written["rows"])
    assert (
        len(written["rows"]) == 12
        and written["protocol"]["num_vectors"] == 600
        and written["protocol"]["cosine"] == 0.9
        and written["protocol"]["machine"].endswith(", 977 threads")
    )


def test_what_is_drawn_has_the_mean_and_the_covariance_given(benchmark, rng):
    given = embeddings()
    gaussian = benchmark.Gaussian.of(given)
    covariance = np.cov(given.astype(float), rowvar=False)
    assert np.allclose(gaussian.factor.T @ gaussian.factor, covariance, atol=1e-6)
    drawn = gaussian.draw(200_000, rng)
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((drawn.mean(0) - given.mean(0)) / deviation).max() < 0.01
    assert np.abs((np.cov(drawn, rowvar=False) - covariance) / np.outer(deviation, deviation)).max() < 0.02
    assert np.abs(covariance - np.diag(deviation**2)).max() > 0.1 * deviation.max() ** 2, "nothing depends on anything"


def test_the_first_numbers_carry_what_they_carry_in_the_model(benchmark, rng):
    given = embeddings(2000, 256)  # of few numbers the lengths would differ much, and unit length change the spectrum
    drawn = benchmark.unit(benchmark.Gaussian.of(given).draw(20_000, rng))
    dims = [1, 4, 32, 256]
    assert benchmark.shares(drawn, dims) == pytest.approx(benchmark.shares(given, dims), rel=0.15)
    assert benchmark.shares(np.array([[3.0, 4.0], [0.0, 5.0]]), [1, 2]) == [9 / 50, 1]


def test_an_index_is_the_drawn_vectors_at_unit_length_the_same_for_one_seed(benchmark):
    gaussian = benchmark.Gaussian.of(embeddings())
    one, again, other = (benchmark.build_flat(gaussian, 100, np.random.default_rng(seed)) for seed in (0, 0, 1))
    vectors = one.reconstruct_n(0, 100)
    assert one.ntotal == 100 and np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.array_equal(vectors, again.reconstruct_n(0, 100)) and not np.allclose(
        vectors, other.reconstruct_n(0, 100)
    )
    assert len(np.unique(vectors.round(5), axis=0)) == 100


@pytest.mark.parametrize("cosine", [0.3, 0.9])
def test_perturbed_queries_have_the_cosine_asked_for(benchmark, rng, cosine):
    gaussian = benchmark.Gaussian.of(embeddings())
    vectors = benchmark.unit(gaussian.draw(300, rng))
    queries = benchmark.turned(vectors, gaussian, cosine, rng)
    assert (queries * vectors).sum(1).mean() == pytest.approx(cosine, abs=1e-4)
    assert np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("cosine", [-0.9, 0.0, 1.0])
def test_a_cosine_that_noise_does_not_lead_to_is_refused(benchmark, rng, cosine):
    gaussian = benchmark.Gaussian.of(embeddings())
    with pytest.raises(ValueError, match=f"--cosine {cosine}"):
        benchmark.turned(benchmark.unit(gaussian.draw(50, rng)), gaussian, cosine, rng)


def test_recall_is_the_share_of_what_is_expected_in_any_order(benchmark):
    found = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, -1]])
    expected = np.array([[4, 3, 2, 1], [5, 0, 6, 1], [1, 2, 3, 4]])
    mean, half = benchmark.recall(found, expected)
    assert mean == 0.5  # 1, 1/2 and 0
    assert half == pytest.approx(1.96 * (1 / 6) ** 0.5 / 3**0.5)


def test_a_shortlist_of_everything_finds_what_flat_finds_and_a_short_one_less(benchmark, rng):
    gaussian = benchmark.Gaussian.of(embeddings())
    flat = benchmark.build_flat(gaussian, 500, rng)
    queries = benchmark.unit(gaussian.draw(40, rng))
    rows = benchmark.compare(asked(shortlist=[1, 5, 50]), flat, queries)
    recalls = {row["shortlist"]: row["recall"] for row in rows}
    assert recalls[500] == 1 > recalls[50] > recalls[10] > 0.1
    assert {row["bytes"] for row in rows} == {500 * 4 * (24 + 4)} and {row["flat_bytes"] for row in rows} == {
        500 * 4 * 24
    }


def test_every_contender_holds_the_vectors_of_flat_in_their_order(benchmark, rng):
    flat = benchmark.build_flat(benchmark.Gaussian.of(embeddings()), 300, rng)
    vectors = flat.reconstruct_n(0, 300)
    for name, quantize, short_dim in (("funnel", "none", 4), ("int8", "int8", 4), ("binary", "binary", None)):
        index = benchmark.build(name, flat, 4)
        assert (len(index), index.dim, index.quantize, index.short_dim) == (300, 24, quantize, short_dim)
        assert np.array_equal(index.search_ids(vectors, 1, 300)[1][:, 0], np.arange(300))


def test_all_are_asked_the_same_in_turn_and_the_first_round_is_not_counted(benchmark):
    queries, calls = np.arange(20.0)[:, None], []
    searches = {name: lambda some, name=name: calls.append((name, some[:, 0].tolist())) or some for name in "ab"}
    speeds = benchmark.race(searches, queries, 10, 2)
    assert {name: len(each) for name, each in speeds.items()} == {"a": 2, "b": 2}
    assert [name for name, _ in calls] == list("aabbaabbaabb")  # 16 queries a round in calls of 10
    for number in range(3):
        ours, other = (
            [q for name, some in calls[4 * number : 4 * number + 4] if name == one for q in some] for one in "ab"
        )
        assert ours == other == [(16 * number + i) % 20 for i in range(16)]


def test_a_ratio_is_of_queries_a_second(benchmark, rng, monkeypatch):
    flat = benchmark.build_flat(benchmark.Gaussian.of(embeddings()), 100, rng)
    speeds = {"flat": [10.0, 20.0, 40.0], 10: [30.0, 60.0, 48.0]}
    monkeypatch.setattr(benchmark, "race", lambda *_: speeds)
    row = benchmark.compare(asked(batch_sizes=[4]), flat, flat.reconstruct_n(0, 8))[0]
    assert (row["ratio"], row["ratio_least"], row["ratio_greatest"]) == (3, 1.2, 3)  # of each round, not of the medians
    assert (row["queries_s"], row["flat_queries_s"]) == (48, 20)


def test_what_is_no_model_for_it_is_refused(benchmark, tmp_path):
    make_aligner().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--dim 4096: embeddings of .* have 1 to"):
        benchmark.embed_scenes(str(tmp_path), 10, 4096)
    with pytest.raises(ValueError, match="needs two embeddings, there are 1"):
        benchmark.Gaussian.of(np.ones((1, 4)))
    assert isinstance(
        benchmark.build_flat(benchmark.Gaussian.of(embeddings()), 20, np.random.default_rng(0)), faiss.IndexFlatIP
    )
