"""Pairs scored as a hand loop scores them, whatever the batch; two runs compared by each judge, by hand."""

import json
import sys
from types import SimpleNamespace

import evaluate
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from datasets_scripts import load_rows
from datasets_scripts.canonical import CAPTION_FEATURES
from tests.conftest import picture
from tests.metrics.test_llm_judge import Server, shown
from tests.modeling.families import FAMILIES, alone, longer, make, prompts
from tests.modeling.test_modeling_spin import make_spin, make_spin_processor
from trainers import captioning_evaluation
from trainers.captioning_data import CaptioningCollator, completion_text, prompt_text
from trainers.captioning_evaluation import evaluate_captions
from trainers.preference_evaluation import Baseline, completion_log_probabilities, evaluate_preferences, score_pairs
from trainers.run_folder import read_jsonl, write_jsonl


TURNS = CAPTION_FEATURES["prompt"]
FEATURES = Features(
    {
        "images": List(Image()),
        "prompt": TURNS,
        "chosen": TURNS,
        "rejected": TURNS,
        "image_id": Value("string"),
        "flaw": Value("string"),
    }
)
PAIRS = [
    ("Describe the picture.", "red a b", "red a b c d e"),
    ("what colour is it", "blue", "green"),
    ("it is", "a b c d e f g", "a"),
    ("a", "red blue", "blue red"),
    ("Describe the picture.", "is it green", "what colour is it green"),
]


def said(role, text):
    return [{"role": role, "content": text}]


def pair_rows():
    return Dataset.from_list(
        [
            {
                "images": [picture(i // 2)],
                "prompt": said("user", asked),
                "chosen": said("assistant", good),
                "rejected": said("assistant", bad),
                "image_id": str(i // 2),
                "flaw": "order" if i == 3 else "object",
            }
            for i, (asked, good, bad) in enumerate(PAIRS)
        ],
        features=FEATURES,
    )


def by_hand(model, processor, row, side):
    """Log-probability of every token of one side, by log_softmax over the whole of one row's logits."""
    row = row | {"completion": row[side]}
    read = dict(processor(images=[row["images"]], text=[prompt_text(processor, row)], return_tensors="pt"))
    answer = processor.tokenizer(completion_text(processor, row), return_tensors="pt")["input_ids"]
    assert answer[0, -1] == processor.tokenizer.eos_token_id
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(**read, decoder_input_ids=torch.cat([start, answer[:, :-1]], 1)).logits
            asked = 0
        else:
            asked = read["input_ids"].shape[1]
            read["input_ids"] = torch.cat([read["input_ids"], answer], 1)
            read["attention_mask"] = torch.ones_like(read["input_ids"])
            logits = model(**read).logits[:, asked - 1 : -1]
    return [logits[0, i].log_softmax(-1)[token].item() for i, token in enumerate(answer[0].tolist())]


@pytest.fixture(params=["ossight", "spin"])
def captioner(request, model, processor):
    return (model, processor) if request.param == "ossight" else (make_spin(), make_spin_processor())


def test_pairs_are_scored_as_by_a_loop_over_log_softmax_whatever_the_batch_size(captioner):
    rows = pair_rows()
    batches = [score_pairs(*captioner, rows, size, progress=False) for size in (1, 2, 5)]
    for side in ("chosen", "rejected"):
        tokens = [by_hand(*captioner, row, side) for row in rows]
        assert max(map(len, tokens)) > 2 * min(map(len, tokens))
        for scores in batches:
            assert scores[side].dtype == torch.float32
            assert scores[side].tolist() == pytest.approx([sum(some) for some in tokens], abs=1e-4)
            means = [sum(some) / len(some) for some in tokens]
            assert scores[f"{side}_mean"].tolist() == pytest.approx(means, abs=1e-4)


def test_the_picture_and_the_prompt_count(model, processor):
    rows = pair_rows()
    scores = score_pairs(model, processor, rows, progress=False)["chosen"]
    others = [picture(i + 7) for i in range(5)]
    unlike = rows.map(lambda row, i: {"images": [others[i]]}, with_indices=True)
    assert (score_pairs(model, processor, unlike, progress=False)["chosen"] - scores).abs().min() > 1e-4
    asked = rows.map(lambda row: {"prompt": said("user", "g f e d")})
    assert (score_pairs(model, processor, asked, progress=False)["chosen"] - scores).abs().min() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_other_families_are_scored_as_one_row_alone_is(family):
    """A padded batch through the function against each row without padding through the whole model."""
    model, pixels, image = make(family)
    asked, answers = prompts(family, pixels, image, 3), [[21, 22, 23, 24], [25], [26, 27]]
    width = asked["input_ids"].shape[1] + 4
    batch = {name: value for name, value in asked.items() if name in ("pixel_values", "image_grid_thw")}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in asked:
            batch[name] = torch.zeros(3, width, dtype=asked[name].dtype)
    batch["labels"], right = torch.full((3, width), -100), []
    for row, answer in enumerate(answers):
        one = longer(alone(asked, row), torch.tensor([answer]))
        if "token_type_ids" in one:  # of an answer: 0
            one["token_type_ids"] = torch.nn.functional.pad(one["token_type_ids"], (0, len(answer)))
        length = one["input_ids"].shape[1]
        for name in batch.keys() & {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}:
            batch[name][row, :length] = one[name][0]
        batch["labels"][row, length - len(answer) : length] = torch.tensor(answer)
        logits = model(**one).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
        right.append(sum(logits[i, token].item() for i, token in enumerate(answer)))
    sums, counts = completion_log_probabilities(model, batch)
    assert sums.tolist() == pytest.approx(right, abs=1e-3) and counts.tolist() == [4, 1, 2]


def test_logits_are_made_where_completions_are_and_nowhere_else(model, processor):
    wide = []
    model.lm_head.register_forward_hook(lambda module, args, out: wide.append(out.shape))
    score_pairs(model, processor, pair_rows().select([0, 4]), progress=False)
    # three words and an end of either side; or six and an end, five and an end
    assert [tuple(shape[:2]) for shape in wide] == [(2, 4), (2, 7)]


def test_a_model_that_cannot_be_asked_for_some_logits_gives_all_of_them(model, processor):
    class Whole(SimpleNamespace):
        def __call__(self, **batch):
            return self.forward(**batch)

        def forward(self, **batch):
            assert "logits_to_keep" not in batch
            return model(**batch)

        def eval(self):
            return self

        train = lambda self, mode: self  # noqa: E731

    whole = Whole(config=model.config, device=model.device, dtype=model.dtype, training=False)
    rows = pair_rows()
    scores, right = (score_pairs(one, processor, rows, progress=False) for one in (whole, model))
    assert torch.allclose(scores["chosen"], right["chosen"], atol=1e-5)

    whole.forward = lambda **batch: SimpleNamespace(logits=model(**batch).logits[:, :-1])  # one place is lost
    with pytest.raises(ValueError, match="Whole gives logits at .* places where .* were asked for"):
        score_pairs(whole, processor, rows, progress=False)


def test_the_model_is_left_as_it_was_and_learns_nothing(model, processor):
    model.train()
    assert not score_pairs(model, processor, pair_rows(), progress=False)["chosen"].requires_grad
    assert model.training


def broken(rows, tmp_path):
    """The second row's picture is none, the fourth's rejected side says nothing."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    features = Features({**FEATURES, "images": List(Image(decode=False))})
    listed = list(rows.cast(features))
    listed[1]["images"] = [{"path": str(tmp_path / "broken.png"), "bytes": None}]
    listed[3]["rejected"] = said("assistant", " ")
    return Dataset.from_list(listed, features=features)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_of_a_pair_that_cannot_be_used_neither_side_has_a_score(captioner, tmp_path, batch_size):
    rows = broken(pair_rows(), tmp_path)
    scores = score_pairs(*captioner, rows, batch_size, progress=False)
    whole = score_pairs(*captioner, pair_rows(), progress=False)
    for name, some in scores.items():
        assert some.isnan().tolist() == [False, True, False, True, False]
        assert torch.allclose(some[[0, 2, 4]], whole[name][[0, 2, 4]], atol=1e-4)
    with pytest.raises(ValueError, match="row 0: .*broken.png"):
        score_pairs(*captioner, rows, batch_size, progress=False, strict=True)


def test_a_log_probability_that_is_no_number_is_an_error_and_not_an_unreadable_picture(model, processor):
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(ValueError, match="row 0: of chosen the log-probability in torch.float32 is no number"):
        score_pairs(model, processor, pair_rows(), progress=False)


def test_figures_files_and_protocol_are_of_the_scores(model, processor, tmp_path):
    rows = pair_rows()
    figures = evaluate_preferences(model, processor, rows, tmp_path / "a", {"dataset": "d"}, 2)
    scores = score_pairs(model, processor, rows, progress=False)
    right = (scores["chosen"] > scores["rejected"]).float()
    assert 0 < right.mean() < 1
    readable = {name: (figure["value"], figure["n"]) for name, figure in figures.items()}
    assert readable["preference_accuracy"] == pytest.approx((right.mean().item(), 5), abs=1e-6)
    assert readable["preference_accuracy_object"] == pytest.approx((right[[0, 1, 2, 4]].mean().item(), 4), abs=1e-6)
    assert readable["preference_accuracy_order"] == pytest.approx((right[3].item(), 1), abs=1e-6)
    means = scores["chosen_mean"] - scores["rejected_mean"]
    assert readable["normalised_preference_margin"] == pytest.approx((means.mean().item(), 5), abs=1e-4)
    assert readable["normalised_preference_accuracy"][0] == pytest.approx((means > 0).float().mean().item(), abs=1e-6)
    assert figures["preference_margin"]["ci95"][0] < figures["preference_margin"]["value"]

    written = json.loads((tmp_path / "a/metrics.json").read_text())
    protocol = written.pop("protocol")
    assert written == figures and protocol["dataset"] == "d" and protocol["num_examples"] == 5
    assert protocol["metric_versions"].keys() == {"preference_accuracy"} and "unreadable" not in protocol
    lines = read_jsonl(tmp_path / "a/predictions.jsonl")
    assert lines[0].keys() == {
        "image_id", "flaw", "chosen", "rejected", "chosen_log_probability", "rejected_log_probability",
        "chosen_mean_log_probability", "rejected_mean_log_probability",
    }  # fmt: skip
    assert [line["rejected"] for line in lines] == [bad for _, _, bad in PAIRS]
    assert [line["rejected_log_probability"] for line in lines] == pytest.approx(scores["rejected"].tolist(), abs=1e-4)
    evaluate_preferences(model, processor, rows, tmp_path / "b", {"dataset": "d"}, 2)
    for name in ("metrics.json", "predictions.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_pairs_about_one_picture_are_drawn_together(model, processor, tmp_path):
    rows = pair_rows().map(lambda row: {"image_id": "the same"})
    figure = evaluate_preferences(model, processor, rows, tmp_path, {})["preference_margin"]
    assert figure["ci95"] == [figure["value"]] * 2


def test_pairs_that_cannot_be_used_are_left_out_and_named(model, processor, tmp_path):
    rows = broken(pair_rows(), tmp_path)
    figures = evaluate_preferences(model, processor, rows, tmp_path / "out", {})
    assert figures["preference_accuracy"]["n"] == 3 and "preference_accuracy_order" not in figures
    protocol = json.loads((tmp_path / "out/metrics.json").read_text())["protocol"]
    assert protocol["unreadable"] == ["0", "1"] and protocol["num_examples"] == 3
    assert len(read_jsonl(tmp_path / "out/predictions.jsonl")) == 3
    with pytest.raises(ValueError, match="not one of 1 pairs"):
        evaluate_preferences(model, processor, rows.select([1]), tmp_path / "none", {})
    with pytest.raises(ValueError, match="missing are \\['flaw'\\]"):
        evaluate_preferences(model, processor, rows.remove_columns("flaw"), tmp_path / "none", {})
    assert not (tmp_path / "none").exists()


class TestBaseline:
    """Four scenes, and captions that name all that is there or nothing."""

    @pytest.fixture(scope="class")
    def scenes(self):
        return load_rows("scenes", "test", num_train=1, num_eval=4)

    @pytest.fixture
    def captions(self, scenes):
        """All that is there; nothing of it."""
        right = [f"{', '.join(region['phrase'] for region in row['regions'])}." for row in scenes]
        return right, ["nothing"] * 4

    @staticmethod
    def write(folder, rows, captions):
        lines = zip(rows["image_id"], captions, rows["references"], strict=True)
        write_jsonl(
            folder / "predictions.jsonl",
            ({"image_id": name, "prediction": told, "references": right} for name, told, right in lines),
        )
        return folder

    def test_of_scenes_the_truth_judges_and_the_shuffled_are_the_same_captions_elsewhere(
        self, scenes, captions, tmp_path
    ):
        right, nothing = captions
        ours = [right[0], right[1], right[2], nothing[3]]
        theirs = [nothing[0], right[1], nothing[2], right[3]]  # win, tie, win, loss
        figures, told = Baseline(self.write(tmp_path, scenes, theirs)).compare(ours, scenes)
        rate = figures["win_rate"]
        assert {name: rate[name] for name in ("value", "n", "wins", "ties", "losses", "sign_test_p")} == {
            "value": 2.5 / 4, "n": 4, "wins": 2, "ties": 1, "losses": 1, "sign_test_p": 1.0,
        }  # fmt: skip
        assert figures["win_rate_difference"]["value"] == 0.25
        assert told["judge"].startswith("truth: scene_f1") and told["compared"] == 4
        assert told["baseline"] == str(tmp_path) and len(told["baseline_sha256"]) == 12
        # the third's caption is shown to the first, the fourth's to the second, …: two scenes on
        elsewhere = Baseline(self.write(tmp_path / "x", scenes, [ours[2], ours[3], ours[0], ours[1]]))
        again, _ = elsewhere.compare(ours, scenes)
        assert figures["win_rate_shuffled"] == again["win_rate"]
        assert figures["win_rate_shuffled"]["value"] > 0.5

    def test_rows_without_a_caption_of_both_runs_are_left_out(self, scenes, captions, tmp_path):
        right, nothing = captions
        seen = scenes.select([0, 2, 3])
        baseline = Baseline(self.write(tmp_path, seen, ["nothing"] * 3))
        assert baseline.captions(scenes) == ["nothing", None, "nothing", "nothing"]
        figures, told = baseline.compare([right[0], right[1], None, right[3]], scenes)
        assert told["compared"] == figures["win_rate"]["n"] == figures["win_rate"]["wins"] == 2
        with pytest.raises(ValueError, match="no row has a caption of this run and one of"):
            baseline.compare([None, right[1], None, None], scenes)

    @pytest.mark.parametrize("order", [[1, 0, 2, 3], [0, 1, 2, 3, 0]])
    def test_captions_of_other_rows_or_in_another_order_are_refused(self, scenes, tmp_path, order):
        other = scenes.select(order)
        with pytest.raises(ValueError, match="predictions.jsonl is of other rows: its image_id"):
            Baseline(self.write(tmp_path, other, ["a"] * len(other))).captions(scenes)

    def test_captions_of_other_questions_or_of_nothing_are_refused(self, scenes, tmp_path):
        other = scenes.map(lambda row: {"references": ["another"]})
        with pytest.raises(ValueError, match="with the same references"):
            Baseline(self.write(tmp_path, other, ["a"] * 4)).captions(scenes)
        with pytest.raises(ValueError, match="its image_id none"):
            Baseline(self.write(tmp_path, scenes.select([]), [])).captions(scenes)
        write_jsonl(tmp_path / "predictions.jsonl", [{"image_id": scenes[0]["image_id"], "flaw": "a run of pairs"}])
        with pytest.raises(ValueError, match="is of other rows"):
            Baseline(tmp_path).captions(scenes)
        with pytest.raises(FileNotFoundError, match="predictions.jsonl"):
            Baseline(tmp_path / "nowhere").captions(scenes)

    def test_elsewhere_a_judge_has_to_be_named(self, scenes, tmp_path):
        for rows in (scenes.remove_columns("scene"), scenes.add_column("kind", ["count"] * 4)):
            for half in ({}, {"judge_url": "http://localhost:1/v1"}, {"judge_model": "some"}):
                with pytest.raises(ValueError, match="name a judge"):
                    Baseline(tmp_path, **half).judge(rows)
            named = Baseline(tmp_path, judge_url="http://localhost:1/v1", judge_model="some")
            assert named.judge(rows) == "llm_judge: some at http://localhost:1/v1, each pair in both orders"
        assert Baseline(tmp_path, judge_url="http://localhost:1/v1", judge_model="some").judge(scenes)[:5] == "truth"
        assert Baseline(tmp_path, reward_model="rm").judge(scenes) == "reward model rm"

    def test_a_reward_model_scores_all_captions_at_once(self, scenes, tmp_path, monkeypatch):
        asked = []

        def reward_scores(model, rows, captions, batch_size):
            asked.append((model, list(rows["image_id"]), captions, batch_size))
            return [float(len(caption)) for caption in captions]

        monkeypatch.setitem(sys.modules, "trainers.reward_scores", SimpleNamespace(reward_scores=reward_scores))
        rows, ours, theirs = scenes.remove_columns("scene"), ["aaaa", "bb", "c", "d"], ["x", "x", "x", "xxx"]
        baseline = Baseline(self.write(tmp_path, rows, theirs), reward_model="rm")
        figures, told = baseline.compare(ours, rows, 7)
        shuffled = ["c", "d", "aaaa", "bb"]
        assert asked == [("rm", list(rows["image_id"]) * 3, [*ours, *theirs, *shuffled], 7)]
        rate = figures["win_rate"]
        assert (rate["wins"], rate["ties"], rate["losses"]) == (2, 1, 1)
        assert figures["win_rate_difference"]["value"] == (3 + 1 + 0 - 2) / 4
        assert figures["win_rate_shuffled"]["value"] == 0.5 and told["judge"] == "reward model rm"

    def test_a_language_model_is_asked_in_both_orders_and_what_cannot_be_read_is_left_out(
        self, scenes, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "kept"))  # no verdicts of earlier runs
        server = Server()
        value = {"aaaa": 4, "bb": 2, "c": 1, "d": 1, "x": 1, "xxx": 3}

        def reply(body):
            first, second = shown(body)["first"], shown(body)["second"]
            if (first, second) == ("d", "xxx"):
                return "who knows"
            if {first, second} == {"bb", "x"}:  # whichever comes first, which is neither
                return '{"winner": "first", "reason": ""}'
            order = (value[first] > value[second]) - (value[first] < value[second])
            return json.dumps({"winner": {1: "first", 0: "tie", -1: "second"}[order], "reason": ""})

        server.reply = reply
        rows = scenes.remove_columns("scene")
        folder = self.write(tmp_path, rows, ["x", "x", "x", "xxx"])
        figures, told = Baseline(folder, judge_url=server.url, judge_model="some").compare(
            ["aaaa", "bb", "c", "d"], rows
        )
        server.http.shutdown()
        rate = figures["win_rate"]
        assert (rate["n"], rate["wins"], rate["ties"], rate["losses"]) == (3, 1, 2, 0)
        assert rate["value"] == pytest.approx(2 / 3, abs=1e-6) and told["compared"] == 4
        # c for aaaa, d for bb, and back
        assert figures["win_rate_shuffled"]["value"] == 0.5 and figures["win_rate_shuffled"]["n"] == 4
        assert shown(server.asked[0])["question"] == "Describe the picture."

    def test_a_run_is_compared_where_it_is_scored(self, model, processor, scenes, captions, tmp_path, monkeypatch):
        right, nothing = captions
        monkeypatch.setattr(
            captioning_evaluation, "generate_captions", lambda *_, **__: [right[0], *nothing[1:3], None]
        )
        baseline = Baseline(self.write(tmp_path / "earlier", scenes, right))
        common = {"metrics": ["scene_f1"], "protocol": {}, "baseline": baseline}
        figures = evaluate_captions(model, processor, scenes, output_dir=tmp_path / "out", **common)
        rate = figures["win_rate"]
        assert (rate["wins"], rate["ties"], rate["losses"]) == (0, 1, 2) and figures["win_rate_shuffled"]["n"] == 3
        written = json.loads((tmp_path / "out/metrics.json").read_text())
        assert written["win_rate"] == rate and written["protocol"]["win_rate"]["judge"].startswith("truth")
        assert {"scene_f1", "win_rate"} == written["protocol"]["metric_versions"].keys()

    def test_what_cannot_be_compared_is_refused_before_anything_is_captioned(self, scenes, tmp_path):
        folder = self.write(tmp_path / "earlier", scenes, ["a"] * 4)
        common = {"protocol": {}, "baseline": Baseline(folder)}
        with pytest.raises(ValueError, match="this run is written to the same folder"):
            evaluate_captions(None, None, scenes, ["scene_f1"], tmp_path / "x" / ".." / "earlier", **common)
        with pytest.raises(ValueError, match="pope alone captions none"):
            evaluate_captions(None, None, scenes, ["pope"], tmp_path / "out", **common)
        with pytest.raises(ValueError, match="is of other rows"):
            evaluate_captions(None, None, scenes.select([3, 2]), ["scene_f1"], tmp_path / "out", **common)
        with pytest.raises(ValueError, match="name a judge"):
            evaluate_captions(None, None, scenes.remove_columns("scene"), ["rouge_l"], tmp_path / "out", **common)


def test_the_collator_of_the_trainer_makes_the_batches(model, processor):
    """What is scored is what is learned: the same tokens carry the loss of training."""
    rows = pair_rows()
    batch = CaptioningCollator(processor)([row | {"completion": row["chosen"]} for row in rows])
    sums, counts = completion_log_probabilities(model, dict(batch))
    with torch.no_grad():
        loss = model(**batch).caption_loss.item()
    assert loss == pytest.approx(-sums.sum().item() / counts.sum().item(), abs=1e-4)
