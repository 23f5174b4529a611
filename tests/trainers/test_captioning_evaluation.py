"""Captions scored: the right truth for each metric, the right picture for each row, the same files every time."""

import json

import pytest
from datasets import Dataset

from datasets_scripts.canonical import CAPTION_FEATURES
from tests.conftest import picture
from trainers.captioning_evaluation import dataset_fingerprint, evaluate_captions, generate_captions, report, score


def rows(count=5):
    return Dataset.from_list(
        [
            {
                "images": [picture(i)],
                "prompt": [{"role": "user", "content": "Describe the picture."}],
                "completion": [{"role": "assistant", "content": "red"}],
                "references": ["red a b", "blue c d"],
                "image_id": str(i),
                "regions": [{"box": [0, 0, 4, 4], "phrase": "small red star"}],
            }
            for i in range(count)
        ],
        features=CAPTION_FEATURES,
    )


GREEDY = {"max_new_tokens": 4, "do_sample": False}


def test_the_batch_size_changes_no_caption(model, processor):
    one, all_ = (generate_captions(model, processor, rows(), size, progress=False, **GREEDY) for size in (1, 5))
    assert one == all_


def test_the_blind_see_the_next_rows_picture(model, processor):
    data = rows()
    shifted = data.select([1, 2, 3, 4, 0])
    blind = generate_captions(model, processor, data, 2, blind=True, progress=False, **GREEDY)
    assert blind == generate_captions(model, processor, shifted, 2, progress=False, **GREEDY)
    assert blind != generate_captions(model, processor, data, 2, progress=False, **GREEDY)


def test_scene_f1_is_judged_by_regions_and_the_rest_by_references():
    said = ["a small red star"] * 2 + ["red a b"] * 3
    figures = score(["scene_f1", "bleu"], said, rows())
    assert figures["scene_recall"]["value"] == 0.4  # two of five stars
    assert figures["scene_f1"]["n"] == 5
    assert figures["bleu_1"]["value"] > 0.3
    assert figures["scene_recall"]["ci95"][0] < 0.4 < figures["scene_recall"]["ci95"][1]


def test_an_unknown_metric_and_rows_without_truth_are_refused_by_name():
    with pytest.raises(ValueError, match="no metric 'meteor'; there are bleu"):
        score(["meteor"], ["a"], rows(1))
    with pytest.raises(ValueError, match="some rows have none"):
        score(["scene_f1"], ["a"], rows(1).map(lambda row: {"regions": []}))


def test_scored_twice_it_writes_the_same_files(model, processor, tmp_path):
    def run(name):
        common = {"metrics": ["scene_f1", "bleu", "rouge_l", "cider"], "protocol": {"dataset": "d", "split": "s"}}
        evaluate_captions(
            model, processor, rows(), output_dir=tmp_path / name, blind_control=True, max_new_tokens=4, **common
        )
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    first = run("a")
    assert first == run("b")
    assert first.keys() == {"metrics.json", "predictions.jsonl", "contact_sheet.png"}
    figures = json.loads(first["metrics.json"])
    assert {"scene_f1", "blind_scene_f1", "bleu_4", "rouge_l", "cider", "protocol"} <= figures.keys()
    assert figures["protocol"]["num_examples"] == 5 and figures["protocol"]["split"] == "s"
    assert len(first["predictions.jsonl"].splitlines()) == 5


def test_the_fingerprint_changes_with_prompt_reference_and_order():
    data = rows()
    prints = {dataset_fingerprint(data), dataset_fingerprint(data.select([1, 0, 2, 3, 4]))}
    prints.add(dataset_fingerprint(data.map(lambda row: {"references": ["x"]})))
    prints.add(dataset_fingerprint(data.map(lambda row: {"prompt": [{"role": "user", "content": "?"}]})))
    assert len(prints) == 4 and dataset_fingerprint(rows()) in prints


def test_the_report_is_a_markdown_table():
    table = report({"cider": {"value": 0.5, "ci95": [0.25, 0.75], "n": 3}})
    assert table.splitlines()[-1] == "| cider | 0.5000 | 0.2500 – 0.7500 | 3 |"
