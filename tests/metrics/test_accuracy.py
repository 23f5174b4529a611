"""Accuracy of short answers, by hand."""

from pathlib import Path

import evaluate
import pytest


@pytest.fixture(scope="module")
def accuracy():
    return evaluate.load(str(Path(__file__).parents[2] / "metrics" / "accuracy"), keep_in_memory=True)


def test_right_and_wrong_by_hand(accuracy):
    said = ["Red.", " two", "dark red", "", "no"]
    right = [["red"], ["2", "two"], ["red"], ["no"], ["yes"]]
    result = accuracy.compute(predictions=said, references=right)
    assert result["accuracy"] == 2 / 5
    assert result["accuracy_ci95"][0] < 2 / 5 < result["accuracy_ci95"][1]


def test_every_kind_is_scored_apart(accuracy):
    said, right = ["red", "blue", "two"], [["red"], ["red"], ["two"]]
    result = accuracy.compute(predictions=said, references=right, kinds=["colour", "colour", "count"])
    figures = {name: value for name, value in result.items() if not name.endswith("ci95")}
    assert figures == {"accuracy": 2 / 3, "accuracy_colour": 1 / 2, "accuracy_count": 1.0}


def test_kinds_of_other_questions_are_refused(accuracy):
    with pytest.raises(ValueError, match="1 predictions, but kinds of 2 questions"):
        accuracy.compute(predictions=["a"], references=[["a"]], kinds=["a", "b"])
