"""Retrieval figures against values by hand."""

from pathlib import Path

import evaluate
import numpy as np
import pytest


METRIC = str(Path(__file__).parents[2] / "metrics" / "retrieval")


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(METRIC, keep_in_memory=True)


def test_figures_by_hand(metric):
    similarity = np.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.6], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    result = metric.compute(predictions=similarity, references=[[0], [1], [2, 1], [2]])
    # ranks 1, 3, 2, 1: the third query's better right item stands behind one wrong one
    assert result["r1"] == 0.5 and result["r5"] == 1.0 and result["median_rank"] == 1.5
    assert result["r1_ci95"][0] < 0.5 < result["r1_ci95"][1]


def test_an_encoder_that_maps_everything_to_one_point_finds_nothing(metric):
    result = metric.compute(predictions=np.ones((20, 20)), references=[[i] for i in range(20)])
    assert result["r1"] == result["r10"] == 0 and result["median_rank"] == 20


def test_ranks_agree_with_a_slow_count(metric):
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(60, 40)).astype(np.float32)
    right = [sorted(rng.choice(40, size=rng.integers(1, 4), replace=False).tolist()) for _ in range(60)]
    ranks = []
    for row, some in zip(similarity, right, strict=True):
        wrong = [value for i, value in enumerate(row) if i not in some]
        ranks.append(1 + sum(value >= max(row[i] for i in some) for value in wrong))
    result = metric.compute(predictions=similarity, references=right, n_bootstrap=10)
    for cut in (1, 5, 10):
        assert result[f"r{cut}"] == pytest.approx(np.mean(np.array(ranks) <= cut))
    assert result["median_rank"] == np.median(ranks)


def test_captions_of_a_picture_are_drawn_together(metric):
    """Ten pictures of five captions that are all found or all not: fifty queries that know no more than ten."""
    right = [[i] for i in range(10) for _ in range(5)]
    similarity = np.zeros((50, 10))
    for query, (item,) in enumerate(right):
        similarity[query, item] = 1 if item < 5 else -1
    together = metric.compute(predictions=similarity, references=right, groups=[i // 5 for i in range(50)])["r1_ci95"]
    alone = metric.compute(predictions=similarity, references=right)["r1_ci95"]
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])


def test_added_in_batches_it_is_the_same(metric):
    similarity = np.random.default_rng(0).normal(size=(6, 5)).round(3)
    right = [[i % 5] for i in range(6)]
    whole = metric.compute(predictions=similarity, references=right)
    for start in (0, 3):
        metric.add_batch(predictions=similarity[start : start + 3].tolist(), references=right[start : start + 3])
    assert metric.compute() == whole


@pytest.mark.parametrize(
    ("predictions", "references", "problem"),
    [
        (np.zeros((0, 3)), [], "must be \\(queries, items\\)"),
        (np.zeros((2, 3)), [[0]], "2 queries, but references of 1"),
        (np.zeros((2, 3)), [[0], []], "query 1 has no right item"),
        (np.zeros((2, 3)), [[0], [3]], "query 1: right items \\[3\\], of 3"),
        (np.array([[0.0], [np.nan]]), [[0], [0]], "query 1 has similarities that are no numbers"),
    ],
)
def test_what_cannot_be_scored_is_named(metric, predictions, references, problem):
    with pytest.raises(ValueError, match=problem):
        metric.compute(predictions=predictions, references=references)
