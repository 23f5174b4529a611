"""benchmarks/preference_step.py at its smallest size: what it prints, what it may not call equal, what each contender does."""

import json
import re
import sys
import time

import preference_step as benchmark
import pytest
import torch


NAMES = ["ours_joint", "ours_cached", "ours_preference", "ours_dpo", "trl_dpo"]
ROWS = 3


@pytest.fixture
def world():
    """One model, its reference, and every contender's trainer and batch."""
    model, processor = benchmark.make_model("tiny"), benchmark.make_processor("tiny")
    rows, reference = benchmark.make_rows("tiny", ROWS, (6, 9)), benchmark.make_reference(model)
    trainers, batches = {}, {}
    for name in NAMES:
        held = reference if benchmark.needs_reference(name) else None
        trainers[name] = benchmark.make_trainer(name, model, held, processor, "cpu")
        batches[name] = benchmark.collate(name, rows, processor, model, "cpu")
    return trainers, batches


def test_it_finds_equal_losses_and_prints_and_writes_every_ratio(tmp_path, monkeypatch, capsys):
    command = f"preference_step --size tiny --rounds 2 --batch_size {ROWS} --caption_tokens 6 9 --output {tmp_path / 'out.json'}"
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(benchmark, "memory_of", lambda name: 100.0 * (1 + NAMES.index(name)))
    benchmark.main()
    printed = capsys.readouterr().out
    number = r"([\d.]+)"
    found = re.findall(
        rf"^ratio trl_dpo / (\w+): {number} \({number} to {number}\)  {number} pairs/s; "
        rf"(\d+) MiB above the model, {number} times less"
        r"(?:; the aim of ([\d.]+) is (reached|not reached))?$",
        printed,
        re.MULTILINE,
    )
    assert [row[0] for row in found] == NAMES
    for _, middle, least, greatest, *_ in found:
        assert 0 < float(least) <= float(middle) <= float(greatest)
    assert [row[5:7] for row in found] == [(str(100 * n), f"{5 / n:.2f}") for n in (1, 2, 3, 4, 5)]
    assert [row[7] for row in found] == ["1.2", "", "1.4", "", ""]
    # 24 tokens of prompt and picture, 9 of the longest caption; captions of 6, 8 and 9 tokens against 9, 7 and 6
    assert (
        "3 pairs: 6 rows of 33 tokens, 10 of a picture, 45 of 198 labelled; 23 tokens of captions read alone" in printed
    )
    assert re.search(r"^ours_dpo equals trl_dpo: loss 0\.\d+, gradients within \d", printed, re.MULTILINE)
    assert re.search(r"^ours_cached equals ours_joint: loss ", printed, re.MULTILINE)
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["contender"] for row in written["rows"]] == NAMES and len(written["rounds"]) == 2
    assert written["protocol"]["size"] == "tiny" and 0 < written["equal"]["ours_dpo"]["gradients_apart"] < 1e-3


def test_the_peer_is_trls_trainer_and_has_trls_loss(world):
    trainers, batches = world
    assert type(trainers["trl_dpo"]).__module__ == "trl.trainer.dpo_trainer"
    args = trainers["trl_dpo"].args
    assert (args.max_length, args.bf16, args.gradient_checkpointing, args.beta) == (None, False, False, 0.1)
    assert batches["trl_dpo"].keys() == {"input_ids", "attention_mask", "completion_mask", "pixel_values"}
    reads = {name for name in NAMES if "text_input_ids" in batches[name]}
    assert reads == {"ours_joint", "ours_cached"}, "captions alone, for embeddings"
    benchmark.check(trainers, batches)


def other_pictures(trainers, batches):
    batches["ours_dpo"]["pixel_values"] = batches["ours_dpo"]["pixel_values"].flip(0)


def other_words(trainers, batches):
    batches["ours_joint"]["input_ids"] = batches["ours_joint"]["input_ids"].roll(1, 0)


def fewer_labels(trainers, batches):
    batches["ours_preference"]["labels"][0, -9] = -100


def a_margin(trainers, batches):
    trainers["ours_dpo"].args.margin = 0.1


def another_beta(trainers, batches):
    trainers["ours_dpo"].args.beta = 0.11


def no_reference(trainers, batches):
    trainers["ours_dpo"].ref_model = trainers["ours_dpo"].model


def an_equal_reference(trainers, batches):
    for name in ("ours_dpo", "trl_dpo"):
        trainers[name].ref_model.load_state_dict(trainers[name].model.state_dict())


def gradients_too_large(trainers, batches):
    right = trainers["ours_dpo"].compute_loss

    def louder(model, batch):
        loss = right(model, batch)
        return 1.01 * loss - 0.01 * loss.detach()

    trainers["ours_dpo"].compute_loss = louder


def one_gradient_too_many(trainers, batches):
    right = trainers["ours_dpo"].compute_loss
    trainers["ours_dpo"].compute_loss = lambda model, batch: right(model, batch) + 0 * model.logit_scale


def other_features(trainers, batches):
    batches["ours_cached"]["vision_features"] = batches["ours_cached"]["vision_features"].flip(0)


WRONG = {
    other_pictures: "the pictures differ",
    other_words: "ours_joint is given other input_ids",
    fewer_labels: "ours_preference is given other labels",
    a_margin: "the losses differ",
    another_beta: "the losses differ",
    no_reference: "the losses differ",
    an_equal_reference: "the reference is the model",
    gradients_too_large: "the gradients of .* differ",
    one_gradient_too_many: "a gradient is missing or too many: {'model.logit_scale'}",
    other_features: "the losses differ",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_what_is_not_the_same_is_not_timed(world, wrong):
    wrong(*world)
    with pytest.raises(AssertionError, match=WRONG[wrong]):
        benchmark.check(*world)


def test_every_contender_shows_the_tower_as_many_pictures_as_it_says(world):
    trainers, batches = world
    seen = []
    for model in (trainers["trl_dpo"].model, trainers["trl_dpo"].ref_model):
        model.model.vision_tower.register_forward_hook(lambda module, inputs, _: seen.append(len(inputs[0])))
    pictures = {}
    for name in NAMES:
        seen.clear()
        trainers[name].compute_loss(trainers[name].model, dict(batches[name]))
        pictures[name] = list(seen)
    sides = 2 * ROWS
    assert pictures == {
        "ours_joint": [ROWS], "ours_cached": [], "ours_preference": [ROWS], "ours_dpo": [ROWS, ROWS],
        "trl_dpo": [sides, sides],
    }  # fmt: skip


def test_a_step_trains_what_its_loss_reaches_and_never_the_tower(world):
    trainers, batches = world
    model = trainers["trl_dpo"].model
    optimizer = benchmark.make_optimizer(model)
    for name in NAMES:
        before = {key: value.clone() for key, value in model.named_parameters()}
        assert benchmark.make_step(trainers[name], batches[name], optimizer, "cpu")() > 0
        changed = {key for key, value in model.named_parameters() if not value.equal(before[key])}
        writers = name not in ("ours_joint", "ours_cached")
        expected = {
            key for key, value in model.named_parameters()
            if value.requires_grad and (not writers or key.startswith(benchmark.WRITERS))
        }  # fmt: skip
        assert changed == expected
        assert not any("vision_tower" in key for key in changed) and all(p.grad is None for p in model.parameters())


def test_a_ratio_is_of_each_round_and_the_aim_is_held_against_their_median():
    rounds = [dict.fromkeys(NAMES, 1.0) | {"ours_joint": each, "trl_dpo": 2.4} for each in (1.0, 2.0, 4.0)]
    used = dict.fromkeys(NAMES, 50.0) | {"trl_dpo": 75.0}
    rows = {row["contender"]: row for row in benchmark.compare(rounds, used, 8)}
    joint = rows["ours_joint"]
    assert [joint[key] for key in ("ratio", "ratio_least", "ratio_greatest")] == [1.2, 0.6, 2.4]
    assert (joint["pairs_s"], joint["mib_ratio"], rows["trl_dpo"]["mib_ratio"]) == (4.0, 1.5, 1.0)
    assert benchmark.told(joint).endswith("50 MiB above the model, 1.50 times less; the aim of 1.2 is reached")
    slower = benchmark.compare([one | {"trl_dpo": 2.39} for one in rounds], used, 8)[0]
    assert benchmark.told(slower).endswith("the aim of 1.2 is not reached")
    assert "memory unknown" in benchmark.told(benchmark.compare(rounds, dict.fromkeys(NAMES), 8)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_thread_is_timed_by_its_own_seconds(monkeypatch):
    for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert benchmark.clock_of("cpu") is clock and benchmark.clock_of("cuda") is time.perf_counter
