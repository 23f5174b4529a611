"""Win rates and the sign test, by hand and by counting every outcome."""

from itertools import product
from pathlib import Path

import evaluate
import numpy as np
import pytest


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(Path(__file__).parents[2] / "metrics" / "win_rate"), keep_in_memory=True)


OURS, THEIRS = [3.0, 1.0, 2.0, 5.0, 0.0, 4.0], [1.0, 1.0, 1.5, 6.0, -1.0, 3.0]  # win, tie, win, loss, win, win


def test_figures_are_what_counting_by_hand_gives(metric):
    result = metric.compute(scores=OURS, baseline_scores=THEIRS, judge="counting")
    assert (result["wins"], result["ties"], result["losses"]) == (4, 1, 1)
    assert result["win_rate"] == 4.5 / 6
    assert result["mean_difference"] == pytest.approx((2 + 0 + 0.5 - 1 + 1 + 1) / 6)
    # of five tosses one or none, or four or five: (1 + 5) * 2 of 32
    assert result["sign_test_p"] == 12 / 32
    for name in ("win_rate", "mean_difference"):
        low, high = result[f"{name}_ci95"]
        assert low < result[name] < high


def test_the_other_way_round_wins_are_losses(metric):
    result, turned = (metric.compute(scores=a, baseline_scores=b) for a, b in ((OURS, THEIRS), (THEIRS, OURS)))
    assert turned["win_rate"] == 1 - result["win_rate"] and turned["wins"] == result["losses"]
    assert turned["mean_difference"] == -result["mean_difference"]
    assert turned["sign_test_p"] == result["sign_test_p"]
    assert turned["win_rate_ci95"] == pytest.approx([1 - end for end in result["win_rate_ci95"][::-1]])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (0, 6), (7, 2), (3, 8), (1, 9)])
def test_the_sign_test_is_a_count_of_all_outcomes_at_least_as_uneven(metric, wins, losses):
    outcomes = [sum(tosses) for tosses in product((0, 1), repeat=wins + losses)]
    uneven = abs(2 * wins - wins - losses)
    as_uneven = sum(abs(2 * heads - wins - losses) >= uneven for heads in outcomes)
    scores = [1.0] * wins + [-1.0] * losses + [0.0] * 3
    result = metric.compute(scores=scores, baseline_scores=[0.0] * len(scores), n_bootstrap=10)
    assert result["sign_test_p"] == as_uneven / len(outcomes)


def test_thousands_of_inputs_are_tested_exactly_and_quickly(metric):
    result = metric.compute(scores=[1.0] * 2600 + [0.0] * 2400, baseline_scores=[0.5] * 5000, n_bootstrap=10)
    assert result["sign_test_p"] == pytest.approx(0.004883649737517494)  # scipy.stats.binomtest(2600, 5000).pvalue
    assert metric.compute(scores=[1.0] * 2000, baseline_scores=[0.0] * 2000, n_bootstrap=10)["sign_test_p"] == 0


def test_both_systems_scores_of_an_input_are_drawn_together(metric):
    """Scores that vary much from input to input, and systems that differ by one in each: the difference is certain."""
    scores = np.random.default_rng(0).normal(size=50) * 100
    result = metric.compute(scores=scores.round() + 1, baseline_scores=scores.round())
    assert result["mean_difference_ci95"] == pytest.approx([1, 1]) and result["win_rate_ci95"] == [1, 1]


def test_the_judge_is_stated(metric):
    told = metric.compute(scores=[1.0], baseline_scores=[0.0], judge="a reward model")["win_rate_protocol"]
    assert told["judge"] == "a reward model" and "sign test" in told["test"]
    assert metric.compute(scores=[1.0], baseline_scores=[0.0])["win_rate_protocol"]["judge"] == "not stated"


def test_added_in_batches_it_is_the_same(metric):
    whole = metric.compute(scores=OURS, baseline_scores=THEIRS)
    for start in (0, 3):
        metric.add_batch(scores=OURS[start : start + 3], baseline_scores=THEIRS[start : start + 3])
    assert metric.compute() == whole


@pytest.mark.parametrize(
    ("scores", "baseline_scores", "problem"),
    [
        ([], [], "no inputs"),
        ([1.0, 2.0], [1.0], "2 scores, but baseline_scores of 1 inputs: they are not paired"),
        ([], [1.0], "0 scores, but baseline_scores of 1"),
        ([1.0, np.nan], [1.0, 1.0], "input 1: of scores nan is no finite number"),
        ([1.0], [np.inf], "input 0: of baseline_scores inf is no finite number"),
        ([1.0], None, "the scores of only one of them"),
    ],
)
def test_what_cannot_be_compared_is_named(metric, scores, baseline_scores, problem):
    with pytest.raises(ValueError, match=problem):
        metric.compute(scores=scores, baseline_scores=baseline_scores)
