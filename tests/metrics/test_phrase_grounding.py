"""Phrase grounding, by hand."""

import pytest

from trainers.scoring import load_metric


TRUE = [
    {"boxes": [[0, 0, 10, 10], [20, 0, 40, 20]], "phrases": ["large red star", "small blue boat"]},
    {"boxes": [[5, 5, 15, 15]], "phrases": ["small green cross"]},
]
SAID = [
    {  # right; right words in the wrong place; wrong words in the right place; the second star is not counted twice in recall
        "boxes": [[0, 0, 10, 10], [60, 60, 70, 70], [20, 0, 40, 20], [0, 0, 10, 9]],
        "phrases": ["big red stars", "blue boat", "small red boat", "star"],
    },
    {"boxes": [[5, 5, 15, 10.1]], "phrases": ["two green crosses"]},  # IoU 0.51
]


@pytest.fixture(scope="module")
def metric():
    return load_metric("phrase_grounding")


def test_precision_and_recall_by_hand(metric):
    figures = metric.compute(predictions=SAID, references=TRUE)
    assert figures["grounding_precision"] == pytest.approx(3 / 5) and figures["grounding_precision_n"] == 5
    assert figures["grounding_recall"] == pytest.approx(2 / 3) and figures["grounding_recall_n"] == 3
    low, high = figures["grounding_precision_ci95"]
    assert (low, high) == (0.5, 1.0)  # two pictures: either alone, or both


def test_a_filter_is_compared_in_the_same_resamples(metric):
    kept = [[True, False, False, True], [True]]
    figures = metric.compute(predictions=SAID, references=TRUE, kept=kept)
    assert figures["kept_precision"] == 1 and figures["kept_precision_n"] == 3
    assert figures["kept_recall"] == pytest.approx(2 / 3)
    assert figures["precision_gain"] == pytest.approx(1 - 3 / 5)
    assert figures["precision_gain_ci95"] == [0, 0.5]  # of the second picture alone, of the first alone
    nothing = metric.compute(predictions=SAID, references=TRUE, kept=[[False] * 4, [False]])
    assert nothing["kept_precision"] == nothing["kept_recall"] == 0


def test_a_stricter_overlap_leaves_out_what_is_only_near(metric):
    strict = metric.compute(predictions=SAID, references=TRUE, iou_threshold=0.95)
    assert strict["grounding_precision"] == pytest.approx(1 / 5)
    assert metric.compute(predictions=SAID, references=TRUE, iou_threshold=0.52)[
        "grounding_precision"
    ] == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    "phrase,truth,right",
    [
        ("star", "large red star", True),
        ("two big red stars", "large red star", True),
        ("a little boat", "small blue boat", True),
        ("crosses", "small green cross", True),
        ("boxes", "box", True),
        ("red star", "large blue star", False),
        ("small star", "large star", False),
        ("large red star", "red star", False),
        ("the", "large red star", False),
        ("", "large red star", False),
    ],
)
def test_a_phrase_fits_what_has_all_its_words(phrase, truth, right, metric):
    there, said = {"boxes": [[0, 0, 4, 4]], "phrases": [truth]}, {"boxes": [[0, 0, 4, 4]], "phrases": [phrase]}
    assert metric.compute(predictions=[said], references=[there])["grounding_precision"] == right


def test_boxes_without_an_area_overlap_nothing(metric):
    flat = {"boxes": [[3, 3, 3, 3], [8, 8, 2, 2]], "phrases": ["star", "star"]}
    assert metric.compute(predictions=[flat], references=[flat])["grounding_precision"] == 0


def test_pictures_without_predictions_or_truth_are_counted(metric):
    none = {"boxes": [], "phrases": []}
    figures = metric.compute(predictions=[*SAID, none, SAID[0]], references=[*TRUE, TRUE[1], none])
    assert figures["grounding_precision"] == pytest.approx(3 / 9)
    assert figures["grounding_recall"] == pytest.approx(2 / 4)


def test_what_does_not_belong_together_is_refused(metric):
    with pytest.raises(ValueError, match=r"predictions\[0\] has 1 boxes and 2 phrases"):
        metric.compute(predictions=[{"boxes": [[0, 0, 1, 1]], "phrases": ["a", "b"]}], references=TRUE[1:])
    with pytest.raises(ValueError, match="kept must say of every prediction"):
        metric.compute(predictions=SAID, references=TRUE, kept=[[True], [True]])
