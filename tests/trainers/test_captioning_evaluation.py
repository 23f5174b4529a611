"""Captions scored: the right truth for each metric, the right picture for each row, the same files every time."""

import json
from hashlib import sha256

import pytest
from datasets import Dataset, Features, Image, List

from datasets_scripts import load_rows
from datasets_scripts.canonical import CAPTION_FEATURES, turns
from datasets_scripts.pope_questions import STRATEGIES, questions_about
from tests.conftest import picture
from tests.metrics.test_llm_judge import Server
from trainers import captioning_evaluation
from trainers.captioning_config import CaptioningConfig
from trainers.captioning_evaluation import (
    answer_questions,
    dataset_fingerprint,
    evaluate_captions,
    generate_captions,
    report,
    score,
    score_answers,
)
from trainers.scoring import judged


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
    with pytest.raises(ValueError, match="no metric 'meteor'; there are .*bleu"):
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


def with_objects(*objects, **changes):
    """A row a list of names of objects."""

    def of(row, i):
        return row | {"regions": [{"box": [0, 0, 4, 4], "phrase": name} for name in objects[i]], **changes}

    return rows(len(objects)).map(of, with_indices=True)


def readable(figures):
    return {name: figure["value"] for name, figure in figures.items()}


class TestChair:
    def test_what_is_there_is_what_regions_and_references_name(self):
        data = with_objects(["dog"], ["wine glass", "dog"], references=["a cat", "two cats"])
        figures = score(["chair"], ["a dog, a cat", "a dog, a bus"], data)
        # of dog, cat | dog, bus the bus is invented; there are dog, cat | wine glass, dog, cat
        expected = {"chair_i": 1 / 4, "chair_s": 1 / 2, "chair_recall": 3 / 5, "chair_precision": 3 / 4}
        expected |= {"chair_f1": 2 / 3, "chair_length": 5}
        assert readable(figures) == pytest.approx(expected, abs=1e-6)
        assert figures["chair_i"]["n"] == 2 and figures["chair_i"]["ci95"] == [0, 0.5]

    @pytest.mark.parametrize("without", ["column", "regions"])
    def test_without_regions_it_is_what_references_name(self, without):
        data = with_objects([], [], references=["a cat"])
        data = data.remove_columns("regions") if without == "column" else data
        assert score(["chair"], ["a dog", "a cat"], data)["chair_i"]["value"] == 0.5

    def test_of_some_pictures_only_the_references_may_be_known(self):
        data = with_objects(["dog"], [], references=["a cat"])
        assert score(["chair"], ["a dog", "a dog"], data)["chair_i"]["value"] == 0.5

    def test_of_scenes_it_is_the_regions_alone(self):
        data = with_objects(["small red star"], ["large blue boat"], scene="{}", references=["a tree"])
        figures = score(["chair"], ["a red star and a tree.", "a dog on a boat"], data)
        # a dog is no object of this world; what size and colour a star has is not asked here
        assert figures["chair_i"]["value"] == pytest.approx(1 / 3, abs=1e-6)
        assert figures["chair_recall"]["value"] == 1
        with pytest.raises(ValueError, match="chair compares with a scene's regions, and some rows have none"):
            score(["chair"], ["a", "b"], with_objects(["small red star"], [], scene="{}"))

    def test_a_list_of_synonyms_takes_the_place_of_ours(self, tmp_path):
        (tmp_path / "list.txt").write_text("dog, wolf\ncat, tiger\n")
        data = with_objects(["dog"], ["cat"], references=["a"])
        said = ["a wolf", "a wolf"]
        assert score(["chair"], said, data, tmp_path / "list.txt")["chair_i"]["value"] == 0.5
        assert score(["chair"], said, data)["chair_recall"]["value"] == 0  # ours knows no wolf


class TestPope:
    QUESTIONS = [
        {"image_id": str(i), "question": f"{strategy} {i}?", "answer": answer, "strategy": strategy}
        for strategy in STRATEGIES
        for i in range(2)
        for answer in ("yes", "no")
    ]

    @pytest.fixture
    def scenes(self):
        """Rows as the miniature world has them, whose objects are words of the tiny tokenizer."""
        kinds = ["small a", "large b"], ["small b", "small c"], ["large c", "small d", "small c"], ["small e"]
        return with_objects(*kinds, scene="{}")

    def test_each_strategy_has_figures_of_its_own(self):
        # random: all right; popular: always yes; adversarial: always no, of which one says nothing
        said = ["yes", "no", "Yes.", "No."] + ["yes"] * 4 + ["no", "no", "no", "well"]
        figures = score_answers(self.QUESTIONS, said)
        names = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparseable")
        assert list(figures) == [f"pope_{strategy}_{name}" for strategy in STRATEGIES for name in names]
        values = list(readable(figures).values())
        assert values[:6] == [1, 1, 1, 1, 0.5, 0]
        assert values[6:12] == pytest.approx([0.5, 0.5, 1, 2 / 3, 1, 0], abs=1e-6)
        assert values[12:] == [0.25, 0, 0, 0, 0.25, 0.25]
        assert {figure["n"] for figure in figures.values()} == {4}
        # always yes is half right of either picture, whichever pictures are drawn
        assert figures["pope_popular_accuracy"]["ci95"] == [0.5, 0.5]

    def test_what_could_not_be_asked_is_left_out_and_nothing_at_all_is_an_error(self):
        said = ["yes", "no", None, None] * 3
        figures = score_answers(self.QUESTIONS, said)
        assert figures["pope_random_accuracy"] == {"value": 1.0, "ci95": [1.0, 1.0], "n": 2}
        with pytest.raises(ValueError, match="no question of the strategy popular was answered"):
            score_answers(self.QUESTIONS, said[:4] + [None] * 4 + said[:4])

    def test_an_answer_is_what_the_model_says_to_the_question_about_that_picture(self, model, processor, scenes):
        questions = questions_about(scenes)[0][::-1]
        said = answer_questions(model, processor, scenes, questions, 3, progress=False, **GREEDY)
        for question, answer in zip(questions, said, strict=True):
            row = scenes[int(question["image_id"])] | turns(question["question"], "")
            assert generate_captions(model, processor, [row], progress=False, **GREEDY) == [answer]
        assert len(set(said)) > 3  # pictures make a difference

    def test_what_strategies_ask_alike_is_asked_once(self, model, processor, scenes, monkeypatch):
        asked = []

        def generate(model, processor, batch, *_, **__):
            asked.extend(f"{row['image_id']}: {row['prompt'][0]['content']}" for row in batch)
            return asked[-len(batch) :]

        monkeypatch.setattr(captioning_evaluation, "generate_captions", generate)
        questions, _ = questions_about(scenes)
        said = answer_questions(model, processor, scenes, questions, 3, progress=False)
        assert said == [f"{question['image_id']}: {question['question']}" for question in questions]
        assert len(asked) == len(set(said)) < len(said)

    def test_pope_alone_asks_and_does_not_caption(self, model, processor, scenes, tmp_path):
        common = {"metrics": ["pope"], "protocol": {"dataset": "d", "split": "s"}, "max_new_tokens": 4}
        figures = evaluate_captions(model, processor, scenes, output_dir=tmp_path, **common)
        assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "pope.jsonl"}
        lines = [json.loads(line) for line in (tmp_path / "pope.jsonl").read_text().splitlines()]
        assert all(list(line) == ["image_id", "question", "answer", "strategy", "prediction"] for line in lines)
        questions, how = questions_about(scenes)
        assert [{name: line[name] for name in line if name != "prediction"} for line in lines] == questions
        assert figures == score_answers(questions, [line["prediction"] for line in lines])
        written = json.loads((tmp_path / "metrics.json").read_text())
        protocol = written.pop("protocol")
        assert written == figures and protocol["pope"] == how and protocol["num_examples"] == 4
        assert "prompt" not in protocol and protocol["metric_versions"].keys() == {"pope"}

    def test_beside_captions_neither_changes_the_other(self, model, processor, scenes, tmp_path):
        common = {"protocol": {"dataset": "d", "split": "s"}, "max_new_tokens": 4}
        for metrics in (["rouge_l"], ["pope"], ["pope", "rouge_l"]):
            evaluate_captions(model, processor, scenes, metrics, tmp_path / "-".join(metrics), **common)
        both = {path.name: path.read_bytes() for path in (tmp_path / "pope-rouge_l").iterdir()}
        assert both.keys() == {"metrics.json", "pope.jsonl", "predictions.jsonl", "contact_sheet.png"}
        for name in ("rouge_l", "pope"):
            alone = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            figures = json.loads(alone.pop("metrics.json"))
            assert figures.pop("protocol")["dataset"] == "d"
            assert alone.items() <= both.items() and figures.items() <= json.loads(both["metrics.json"]).items()

    @pytest.mark.parametrize("metrics", [["pope"], ["rouge_l", "pope"]])
    def test_pictures_that_cannot_be_read_are_left_out_and_named(self, model, processor, scenes, tmp_path, metrics):
        (tmp_path / "broken.png").write_bytes(b"no picture")
        undecoded = Features({**scenes.features, "images": List(Image(decode=False))})
        listed = list(scenes.cast(undecoded))
        listed[1]["images"] = [{"path": str(tmp_path / "broken.png"), "bytes": None}]
        data = Dataset.from_list(listed, features=undecoded)
        common = {"metrics": metrics, "protocol": {}, "output_dir": tmp_path / "out", "max_new_tokens": 4}
        figures = evaluate_captions(model, processor, data, **common)
        assert figures["pope_random_f1"]["n"] == 6  # two questions about each of three pictures
        protocol = json.loads((tmp_path / "out/metrics.json").read_text())["protocol"]
        assert protocol["unreadable"] == ["1"] and protocol["num_examples"] == 3
        assert protocol["fingerprint"] == dataset_fingerprint(data.select([0, 2, 3]))
        lines = [json.loads(line) for line in (tmp_path / "out/pope.jsonl").read_text().splitlines()]
        assert {line["image_id"] for line in lines if line["prediction"] is None} == {"1"} and len(lines) == 24
        with pytest.raises(ValueError, match="row 1: .*broken.png"):
            evaluate_captions(model, processor, data, strict=True, **common)

    def test_while_training_it_is_refused_by_name_of_what_to_run(self, tmp_path):
        with pytest.raises(ValueError, match="recipes/evaluate.py"):
            score(["pope"], ["yes"], rows(1))
        with pytest.raises(ValueError, match="recipes/evaluate.py"):
            CaptioningConfig(output_dir=str(tmp_path), eval_metrics=["cider", "pope"])


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        (["bleu", "meteor"], {}, "no metric 'meteor'"),
        (["pope"], {"blind_control": True}, "pope alone captions none"),
        (["cider", "pope"], {"synonyms": "list.txt"}, "synonyms are for the metric chair; asked for are cider, pope"),
        (["chair"], {}, "record 0: the vocabulary has no object 'small red star'"),
        (["bleu", "pope"], {}, "none of 5 pictures can be asked about"),
    ],
)
def test_what_is_asked_in_vain_is_refused_before_anything_is_captioned(tmp_path, metrics, options, message):
    with pytest.raises(ValueError, match=message):  # there is no model to caption with
        evaluate_captions(None, None, rows(), metrics, tmp_path / "out", {}, **options)
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        evaluate_captions(None, None, rows(), ["chair"], tmp_path / "out", {}, synonyms=tmp_path / "nowhere.txt")
    assert not (tmp_path / "out").exists()


def test_the_list_of_synonyms_is_used_and_in_the_protocol(model, processor, tmp_path):
    (tmp_path / "list.txt").write_text("red, blue\n")
    options = {"max_new_tokens": 4, "synonyms": tmp_path / "list.txt"}
    # our own list knows no object red, and refuses it
    evaluate_captions(model, processor, with_objects(["red"]), ["chair"], tmp_path / "out", {}, **options)
    versions = json.loads((tmp_path / "out/metrics.json").read_text())["protocol"]["metric_versions"]
    assert versions["synonyms"] == sha256(b"red, blue\n").hexdigest()[:12] and len(versions["chair"]) == 12


def test_answers_are_scored_by_kind_of_question():
    rows = load_rows("scenes", "test", config_name="questions", num_train=1, num_eval=20)
    told = [
        right[0] if kind == "colour" else "unknown"
        for right, kind in zip(rows["references"], rows["kind"], strict=True)
    ]
    figures = score(["accuracy"], told, rows)
    assert figures["accuracy_colour"]["value"] == 1 and figures["accuracy_count"]["value"] == 0
    assert figures["accuracy"]["value"] == pytest.approx(list(rows["kind"]).count("colour") / len(rows), abs=1e-6)


def test_a_judge_is_asked_only_where_one_is_named(model, processor, tmp_path, monkeypatch):
    common = {"metrics": ["llm_judge"], "output_dir": tmp_path, "protocol": {}, "max_new_tokens": 4}
    with pytest.raises(ValueError, match="there is no default: say whom"):
        evaluate_captions(model, processor, rows(2), judge_url="http://localhost:1/v1", **common)

    asked = []

    def judge(predictions, data, base_url, model):
        asked.append((len(predictions), list(data["image_id"]), base_url, model))
        return {"llm_judge": {"value": 0.5, "ci95": [0.4, 0.6], "n": 2}}

    monkeypatch.setattr(captioning_evaluation, "judged", judge)
    whom = {"judge_url": "http://localhost:1/v1", "judge_model": "some"}
    figures = evaluate_captions(model, processor, rows(2), **whom, **common)
    assert asked == [(2, ["0", "1"], "http://localhost:1/v1", "some")]
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["llm_judge"]["value"] == figures["llm_judge"]["value"] == 0.5
    assert told["protocol"]["judge"] == {"base_url": "http://localhost:1/v1", "model": "some"}


def test_the_judge_is_told_what_was_asked_and_its_figures_have_intervals():
    server = Server()
    server.reply = lambda body: '{"score": 4, "reason": "a detail"}'
    figures = judged(["red"] * 5, rows(), server.url, "some")
    server.http.shutdown()
    assert json.loads(server.asked[0]["messages"][1]["content"])["question"] == "Describe the picture."
    assert figures["llm_judge"] == {"value": 0.75, "ci95": [0.75, 0.75], "n": 5}
    assert set(figures) == {"llm_judge", "llm_judge_unparseable"}
