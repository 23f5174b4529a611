"""Preference accuracy, by hand."""

from pathlib import Path

import evaluate
import numpy as np
import pytest


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(Path(__file__).parents[2] / "metrics" / "preference_accuracy"), keep_in_memory=True)


CHOSEN, REJECTED = [1.0, -2.0, 0.5, 3.0], [0.0, -1.0, 0.5, 1.0]  # right, wrong, a tie, right; margins 1, -1, 0, 2


def test_a_tie_is_half_right_and_the_margin_is_a_mean(metric):
    result = metric.compute(chosen_scores=CHOSEN, rejected_scores=REJECTED)
    assert result["preference_accuracy"] == (1 + 0 + 0.5 + 1) / 4 and result["preference_margin"] == 0.5
    assert result["preference_accuracy_n"] == result["preference_margin_n"] == 4
    for name in ("preference_accuracy", "preference_margin"):
        low, high = result[f"{name}_ci95"]
        assert low < result[name] < high


def test_what_scores_everything_alike_is_at_chance(metric):
    result = metric.compute(chosen_scores=[2.0] * 9, rejected_scores=[2.0] * 9)
    assert result["preference_accuracy"] == 0.5 and result["preference_accuracy_ci95"] == [0.5, 0.5]


def test_every_kind_is_scored_apart_and_what_has_none_counts_for_all(metric):
    result = metric.compute(
        chosen_scores=[*CHOSEN, 0.0, 0.0],
        rejected_scores=[*REJECTED, 1.0, 1.0],
        kinds=["object", "object", "grammar", "object", "", None],
    )
    figures = {name: value for name, value in result.items() if not name.endswith("ci95") and "margin" not in name}
    assert figures == {
        "preference_accuracy": 2.5 / 6,
        "preference_accuracy_n": 6,
        "preference_accuracy_grammar": 0.5,
        "preference_accuracy_grammar_n": 1,
        "preference_accuracy_object": 2 / 3,
        "preference_accuracy_object_n": 3,
    }
    assert result["preference_accuracy_grammar_ci95"] == [0.5, 0.5]


def test_pairs_about_one_picture_are_drawn_together(metric):
    """Ten pictures of four pairs that are all right or all wrong: forty pairs that know no more than ten."""
    chosen, groups = np.repeat([1.0, -1.0] * 5, 4), np.repeat(list("abcdefghij"), 4).tolist()
    told = {"chosen_scores": chosen, "rejected_scores": np.zeros(40), "kinds": ["x"] * 40}
    for name in ("preference_accuracy", "preference_accuracy_x", "preference_margin"):
        together = metric.compute(**told, groups=groups)[f"{name}_ci95"]
        alone = metric.compute(**told)[f"{name}_ci95"]
        assert together[1] - together[0] > 1.6 * (alone[1] - alone[0])
    shuffled = np.random.default_rng(0).permutation(40)
    other = metric.compute(
        chosen_scores=chosen[shuffled], rejected_scores=np.zeros(40), groups=[groups[i] for i in shuffled]
    )
    assert other["preference_accuracy_ci95"] == metric.compute(**told, groups=groups)["preference_accuracy_ci95"]


def test_pictures_of_few_and_of_many_pairs_weigh_by_their_pairs(metric):
    result = metric.compute(chosen_scores=[1, 1, 1, -1], rejected_scores=[0] * 4, groups=[7, 7, 7, 3], n_bootstrap=200)
    # of two pictures both are drawn, or one of them twice
    assert result["preference_accuracy"] == 0.75 and result["preference_accuracy_ci95"] == [0, 1]


def test_added_in_batches_it_is_the_same(metric):
    whole = metric.compute(chosen_scores=CHOSEN, rejected_scores=REJECTED)
    for start in (0, 2):
        some = slice(start, start + 2)
        metric.add_batch(chosen_scores=CHOSEN[some], rejected_scores=REJECTED[some])
    assert metric.compute() == whole


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"chosen_scores": [], "rejected_scores": []}, "no pairs to score"),
        ({"chosen_scores": [1.0], "rejected_scores": [1.0, 2.0]}, "1 chosen_scores, but rejected_scores of 2 pairs"),
        ({"chosen_scores": [1.0], "rejected_scores": [1.0], "kinds": ["a", "b"]}, "but kinds of 2 pairs"),
        ({"chosen_scores": [1.0], "rejected_scores": [1.0], "groups": []}, "but groups of 0 pairs"),
        ({"chosen_scores": [1.0, np.nan], "rejected_scores": [1.0, 0.0]}, "pair 1: of chosen_scores nan is no finite"),
        ({"chosen_scores": [1.0], "rejected_scores": [-np.inf]}, "pair 0: of rejected_scores -inf is no finite"),
        ({"chosen_scores": [1.0]}, "only one of them was given"),
    ],
)
def test_what_cannot_be_scored_is_named(metric, told, problem):
    with pytest.raises(ValueError, match=problem):
        metric.compute(**told)
