"""POPE against values worked out by hand, its official rule for answers, and its official questions."""

import json
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest


POPE = Path(__file__).parents[2] / "metrics" / "pope"
FIGURES = tuple(f"pope_{name}" for name in ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparseable"))
# found, found, missed, invented, rightly no, rightly no, and invented because it is empty
PREDICTIONS = ["Yes.", "yes, two", "No.", "Yes, one.", "no", "There is not.", ""]
REFERENCES = ["yes", "yes", "yes", "no", "no", "no", "no"]
# how the official program reads an answer, and whether that is what it says (or it says neither)
ANSWERS = {
    "yes": (True, True),
    "Yes, there is a dog.": (True, True),
    "No, there is no dog.": (False, True),
    "There is not a dog": (False, True),
    "I see none, so no": (False, True),
    "It is,no doubt": (True, False),  # commas go before spaces divide: "isno" is not no
    "no, yes": (False, True),
    "Yes, there is no doubt": (False, True),  # one no is enough
    "Yes. No.": (True, True),  # only what comes before the first period
    "Hmm. No.": (True, False),
    "Hmm. Yes.": (True, False),
    "Mr. No": (True, False),
    "no\n": (True, False),  # divided at spaces alone
    "No!": (True, False),
    "NO": (True, False),
    "YES!": (True, True),
    "There isn't one": (True, False),
    "nothing": (True, False),
    "cannot": (True, False),
    "eyes": (True, False),
    ". no": (True, False),
    "": (True, False),
}


@pytest.fixture(scope="module")
def pope() -> evaluate.Metric:
    return evaluate.load(str(POPE), keep_in_memory=True)


def figures(result: dict) -> dict[str, float]:
    return {name: value for name, value in result.items() if not name.endswith("_ci95")}


def varied(count: int = 90) -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    right = [str(word) for word in rng.choice(["yes", "no"], count)]
    said = [word if rng.random() < 0.7 else str(rng.choice(["Yes", "No", "a dog"])) for word in right]
    return {"predictions": said, "references": right}


def test_figures_are_what_counting_by_hand_gives(pope):
    result = pope.compute(predictions=PREDICTIONS, references=REFERENCES)
    # said yes: 0, 1, 3, 6; found 0, 1 of 0, 1, 2; right 0, 1, 4, 5; the last says nothing
    expected = {"accuracy": 4 / 7, "precision": 2 / 4, "recall": 2 / 3, "yes_ratio": 4 / 7, "unparseable": 1 / 7}
    f1 = 2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3)
    assert figures(result) == pytest.approx({f"pope_{name}": value for name, value in (expected | {"f1": f1}).items()})
    assert tuple(figures(result)) == FIGURES


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_read_as_the_official_program_reads_it(pope, answer):
    assert sys.modules[type(pope).__module__].parse(answer) == ANSWERS[answer]
    yes, clear = ANSWERS[answer]
    result = pope.compute(predictions=[answer], references=["yes"], n_bootstrap=1)
    assert result["pope_accuracy"] == yes and result["pope_unparseable"] == (not clear)


def test_what_says_neither_stays_in_every_denominator(pope):
    result = pope.compute(predictions=["no", "a dog runs", "a cat"], references=["no", "no", "yes"])
    expected = {"accuracy": 2 / 3, "precision": 1 / 2, "recall": 1, "f1": 2 / 3, "yes_ratio": 2 / 3}
    assert figures(result) == pytest.approx(
        {f"pope_{name}": value for name, value in expected.items()} | {"pope_unparseable": 2 / 3}
    )


def test_the_yes_ratio_is_of_the_answers_not_of_the_truth(pope):
    assert pope.compute(predictions=["no"] * 4, references=["yes", "yes", "yes", "no"])["pope_yes_ratio"] == 0
    assert pope.compute(predictions=["yes"] * 4, references=["no"] * 4)["pope_yes_ratio"] == 1


def test_a_ratio_of_nothing_to_nothing_is_zero(pope):
    never = pope.compute(predictions=["no", "no"], references=["no", "yes"])
    assert (never["pope_precision"], never["pope_recall"], never["pope_f1"]) == (0, 0, 0)
    nothing_there = pope.compute(predictions=["no", "no"], references=["no", "no"])
    assert (nothing_there["pope_recall"], nothing_there["pope_f1"], nothing_there["pope_accuracy"]) == (0, 0, 1)


def test_capitals_of_the_reference_do_not_matter(pope):
    assert pope.compute(predictions=["yes", "no"], references=["Yes", "NO"])["pope_accuracy"] == 1


def test_intervals_hold_their_figure_and_repeat(pope):
    result = pope.compute(**varied())
    assert result == pope.compute(**varied())
    for name in FIGURES:
        low, high = result[f"{name}_ci95"]
        assert 0 < low < result[name] < high < 1


def test_the_interval_is_that_of_a_proportion(pope):
    result = pope.compute(predictions=["yes"] * 300 + ["no"] * 100, references=["yes"] * 400, n_bootstrap=4000)
    error = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert result["pope_recall_ci95"] == pytest.approx([0.75 - error, 0.75 + error], abs=0.004)


def test_the_seed_and_number_of_resamples_change_the_interval_only(pope):
    usual = pope.compute(**varied())
    assert pope.compute(**varied(), n_bootstrap=1000, seed=0) == usual
    for option in ({"seed": 1}, {"n_bootstrap": 50}):
        other = pope.compute(**varied(), **option)
        differ = {key for key in usual if usual[key] != other[key]}
        assert differ and all(key.endswith("_ci95") for key in differ)


def test_questions_about_one_picture_are_drawn_together(pope):
    ask = {"predictions": ["yes"] * 60, "references": ["yes", "no"] * 30}
    alone = pope.compute(**ask)
    together = pope.compute(**ask, images=[f"picture {i // 2}" for i in range(60)])
    assert figures(together) == figures(alone)
    # every picture has one right answer of two, so whatever is drawn, half is right
    assert together["pope_accuracy_ci95"] == [0.5, 0.5] != alone["pope_accuracy_ci95"]


def test_pictures_may_come_in_any_order_and_differ_in_questions(pope):
    ask = varied() | {"images": [str(i % 7) for i in range(90)]}
    order = np.random.default_rng(1).permutation(90)
    assert pope.compute(**ask) == pope.compute(**{name: [some[i] for i in order] for name, some in ask.items()})
    few = pope.compute(predictions=["yes"] * 3, references=["yes", "yes", "no"], images=["a", "a", "b"])
    assert few["pope_accuracy"] == pytest.approx(2 / 3)
    assert few["pope_accuracy_ci95"] == [0, 1]  # b alone, a alone


def test_batches_give_what_one_call_gives(pope):
    ask = {"predictions": PREDICTIONS, "references": REFERENCES}
    module = evaluate.load(str(POPE), keep_in_memory=True)
    for images in (None, list("aabbccc")):
        module.add_batch(predictions=PREDICTIONS[:3], references=REFERENCES[:3])
        module.add_batch(predictions=PREDICTIONS[3:-1], references=REFERENCES[3:-1])
        module.add(prediction=PREDICTIONS[-1], reference=REFERENCES[-1])
        assert module.compute(images=images) == pope.compute(**ask, images=images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": [], "references": []}, "no predictions"),
        ({"references": REFERENCES[:2]}, "7 predictions.* references of 2 questions"),
        ({"images": ["a"]}, "7 predictions.* images of 1 questions"),
        ({"references": None}, "only one of them"),
        ({"predictions": None}, "only one of them"),
        ({"predictions": ["yes", None, *PREDICTIONS[2:]]}, "record 1: the prediction is None"),
        ({"references": [*REFERENCES[:6], "maybe"]}, "record 6: the reference is 'maybe', neither"),
        ({"references": [*REFERENCES[:6], ["yes"]]}, r"record 6: the reference is \['yes'\], neither"),
        ({"references": [True, *REFERENCES[1:]]}, "record 0: the reference is True"),
        ({"n_bootstrap": 0}, "n_bootstrap is 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(pope, change, message):
    with pytest.raises(ValueError, match=message):
        pope.compute(**{"predictions": PREDICTIONS, "references": REFERENCES} | change)


@pytest.mark.real_data
@pytest.mark.parametrize("strategy", ["random", "popular", "adversarial"])
def test_of_the_official_questions_the_labels_are_the_best_answers(pope, real_data, strategy):
    lines = (real_data / "pope" / f"coco_pope_{strategy}.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    labels, images = [row["label"] for row in rows], [row["image"] for row in rows]
    assert len(labels) == 3000
    best = pope.compute(predictions=labels, references=labels, images=images, n_bootstrap=50)
    assert figures(best) == dict.fromkeys(FIGURES, 1) | {"pope_yes_ratio": 0.5, "pope_unparseable": 0}
    assert best["pope_yes_ratio_ci95"] == [0.5, 0.5]  # three of six for every picture
    wordy = [{"yes": "Yes, there is.", "no": "No, there is no such thing."}[label] for label in labels]
    assert figures(pope.compute(predictions=wordy, references=labels, n_bootstrap=1)) == figures(best)
    worst = pope.compute(predictions=labels[1:] + labels[:1], references=labels, n_bootstrap=1)
    assert worst["pope_accuracy"] == 0  # they alternate
