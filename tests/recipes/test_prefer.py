"""recipes/prefer.py as a user runs it, on tiny models: OSSight and three other families, by TRL's DPOTrainer."""

import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from trl import DPOConfig

from datasets_scripts import load_rows
from tests.conftest import WORDS, make_ossight, make_processor
from tests.loopback_hub import LoopbackHub
from tests.modeling.families import TOKEN, make
from tests.modeling.test_modeling_spin import make_spin, make_spin_processor
from trainers.preference_evaluation import score_pairs


ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "recipes/accelerate/cpu.yaml"]
SCRIPT = ROOT / "recipes/prefer.py"

sys.path.insert(0, str(ROOT / "recipes"))
import prefer  # noqa: E402  recipes are scripts, not a package


IMAGE = {"llava": "<image>", "smolvlm": "<image>", "qwen2_5_vl": "<|image_pad|>"}
SHOWN = {"qwen2_5_vl": "<|vision_start|> <|image_pad|> <|vision_end|>"}
TEMPLATE = (  # words are parted by spaces: the tokenizer knows no other border
    "{%- for m in messages -%}{{ ' ' + m['role'].upper() + ': ' }}{%- for p in m['content'] -%}"
    "{{ ' IMAGE ' if p['type'] == 'image' else p['text'] }}{%- endfor -%}"
    "{%- if m['role'] == 'assistant' -%}{{ ' </s>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ ' ASSISTANT: ' }}{%- endif -%}"
)


def make_tokenizer(image):
    """200 words, as the tiny models of the families have, their special ones where those look for them."""
    placed = {TOKEN: image, 151: "<|vision_start|>", 152: "<|vision_end|>", 153: "<|video_pad|>"}
    placed |= {154: "<fake_token_around_image>", 155: "<global-img>", 156: "<end_of_utterance>"}
    said = "there is a an large small red blue green yellow purple circle square triangle star".split()
    known = [word for word in dict.fromkeys([*WORDS.split(), *said]) if word != "<image>"]
    words = {i: f"word{i}" for i in range(200)} | dict(enumerate(known)) | placed
    core = Tokenizer(models.WordLevel({word: i for i, word in words.items()}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=list(placed.values()), **special)


def make_family_processor(family):
    if family == "ossight":
        return make_processor()
    told = {"tokenizer": make_tokenizer(IMAGE[family])}
    told["chat_template"] = TEMPLATE.replace("IMAGE", SHOWN.get(family, IMAGE[family]))
    if family == "llava":
        images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        how = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return LlavaProcessor(images, **how, **told)
    if family == "smolvlm":  # its own processor wants num2words, for videos
        size = {"longest_edge": 28}
        images = Idefics3ImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
        return Idefics3Processor(images, image_seq_len=4, **told)
    size = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(**size), video_processor=Qwen2VLVideoProcessor(), **told)


def make_folder(folder, family="ossight"):
    model, _, _ = make(family)
    model.save_pretrained(folder)
    make_family_processor(family).save_pretrained(folder)
    return folder


def told(tmp_path, model, recipe=(), **args):
    """Recipe and DPOConfig of two short steps on six pairs."""
    options = {"num_train": 2, "num_eval": 2, "cache_dir": str(tmp_path / "cache")}
    few = {"max_steps": 2, "per_device_train_batch_size": 3, "logging_steps": 1, "learning_rate": 1e-2}
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    settings = {"model": str(model), "trainer": "dpo", "dataset_options": options, "caption_metrics": []}
    settings |= dict(recipe)
    args = {"output_dir": str(tmp_path / "out"), "max_length": None} | few | quiet | args
    return prefer.Recipe(**settings), DPOConfig(**args)


def log(folder):
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def weights(folder):
    return load_file(folder / "model.safetensors")


def run(*command, cwd, check=True):
    environment = {**os.environ, "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment)
    if check and done.returncode:
        raise AssertionError(done.stderr[-4000:])
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """dpo.yaml with a tiny model and few steps, run to its end, in a folder with tiny.yaml, model and out."""
    folder = tmp_path_factory.mktemp("prefer")
    make_ossight().save_pretrained(folder / "model")
    make_processor().save_pretrained(folder / "model")
    settings = yaml.safe_load((ROOT / "recipes/ossight/dpo.yaml").read_text())
    settings |= {
        "model": "model", "dataset_options": {"num_train": 8, "num_eval": 2}, "test_examples": 2, "max_steps": 12,
        "per_device_train_batch_size": 4, "save_steps": 3, "logging_steps": 1, "warmup_steps": 0, "learning_rate": 1e-3,
        "eval_strategy": "steps", "eval_steps": 6, "output_dir": "out", "per_device_eval_batch_size": 1,
        "dataloader_drop_last": True,  # two processes fill a last batch up with pairs that one process does not repeat
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    run(*LAUNCH, SCRIPT, "--config", "tiny.yaml", cwd=folder)
    return folder


def test_the_whole_way_leaves_a_folder_with_both_kinds_of_figures(whole):
    out = whole / "out"
    made = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_ossight.py", "bridges.py", "processing_ossight.py"} <= made
    assert {"train_log.jsonl", "loss.png", "recipe.yaml", "predictions.jsonl", "contact_sheet.png"} <= made
    assert "skipped.jsonl" not in made
    figures = json.loads((out / "metrics.json").read_text())
    protocol = figures.pop("protocol")
    assert {
        "preference_accuracy",
        "preference_accuracy_wrong_attribute",
        "scene_f1",
        "chair_i",
        "bleu_4",
        "cider",
    } <= set(figures)
    assert (protocol["dataset"], protocol["split"]) == ("scenes", "test")
    assert "score" not in protocol and "generation" not in protocol["preferences"]
    assert protocol["num_examples"] == protocol["preferences"]["num_examples"] == 2
    said = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [set(line) for line in said] == [{"image_id", "prediction", "references"}] * 2
    assert (out / "preferences/predictions.jsonl").exists()
    entries = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "eval_rewards/accuracies" in entry] == [6, 12]

    model = AutoModelForImageTextToText.from_pretrained(out)
    assert_close(model.state_dict()["model.adapter.linear_1.weight"], weights(out)["model.adapter.linear_1.weight"])
    again = yaml.safe_load((out / "recipe.yaml").read_text())
    assert {"model": "model", "trainer": "dpo", "test_split": "test", "max_steps": 12}.items() <= again.items()


def test_a_run_killed_after_a_checkpoint_ends_with_the_weights_it_would_have_had(whole):
    command = [*LAUNCH, SCRIPT, "--config", "tiny.yaml", "--output_dir", "cut"]
    environment = {**os.environ, "HF_HOME": str(whole / "hf"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*map(str, command)], cwd=whole, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.time() + 300
    while not (whole / "cut/checkpoint-3/trainer_state.json").exists() and time.time() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (whole / "cut/model.safetensors").exists(), "it was to be killed before its end"
    run(*command, "--resume_from_checkpoint", "true", cwd=whole)
    cut, there = log(whole / "cut"), log(whole / "out")
    for entry in [*cut, *there]:
        del entry["num_tokens"]  # TRL counts it from the start of the process
    assert cut == there
    there, cut = weights(whole / "out"), weights(whole / "cut")
    assert all(torch.equal(there[name], cut[name]) for name in there)


def test_two_processes_lose_what_one_loses(whole):
    # accelerate starts several processes by torchrun too, but on GPUs only
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    half = ["--per_device_train_batch_size", "2", "--output_dir", "two", "--eval_strategy", "no"]
    run(*two, SCRIPT, "--config", "tiny.yaml", *half, cwd=whole)
    one, other = log(whole / "out"), log(whole / "two")
    assert [entry["epoch"] for entry in one] == [entry["epoch"] for entry in other], "they shared the pairs"
    for name in ("loss", "rewards/margins", "logps/chosen"):
        assert_close([entry[name] for entry in one], [entry[name] for entry in other], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["ossight", "llava", "smolvlm", "qwen2_5_vl"])
def test_a_model_of_any_family_learns_from_its_own_log_probabilities(family, tmp_path):
    model = make_folder(tmp_path / "model", family)
    recipe, args = told(
        tmp_path, model, {"dataset_options": {"num_train": 1, "num_eval": 1}}, gradient_checkpointing=True
    )
    recipe.dataset_options["cache_dir"] = str(tmp_path / "cache")
    rows = load_rows("scenes", "train", rows="preference", **recipe.dataset_options)
    args.per_device_train_batch_size = len(rows)
    before = AutoModelForImageTextToText.from_pretrained(model)
    scores = score_pairs(before, make_family_processor(family), rows)
    prefer.main(recipe, args)
    first, second = log(tmp_path / "out")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)  # no better yet than its reference: -log sigmoid(0)
    assert first["logps/chosen"] == pytest.approx(scores["chosen"].mean().item(), rel=1e-4)
    assert first["logps/rejected"] == pytest.approx(scores["rejected"].mean().item(), rel=1e-4)
    assert second["loss"] < first["loss"] and second["rewards/margins"] > 0
    after, before = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict(), before.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved and not [name for name in moved if "vision" in name or "visual." in name]
    assert "lm_head.weight" in moved


@pytest.mark.parametrize("vision,text", [(True, True), (False, True), (True, False)])
def test_towers_learn_that_are_not_frozen(vision, text, tmp_path):
    model = make_folder(tmp_path / "model")
    prefer.main(*told(tmp_path, model, {"freeze_vision": vision, "freeze_text": text}))
    before, after = weights(model), weights(tmp_path / "out")
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"adapter", "fusion"} | ({"vision_tower"} - {vision and "vision_tower"}) | (
        set() if text else {"language_model", "weight"}
    )


def test_what_learns_and_what_it_is_held_against_are_of_one_revision(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "model")
    with LoopbackHub() as hub:
        hub.patch(monkeypatch)
        pinned = hub.seed("org/vlm", folder)
        newer = make_ossight()
        torch.nn.init.normal_(newer.lm_head.weight)
        newer.save_pretrained(folder)
        hub.seed("org/vlm", folder)
        prefer.main(*told(tmp_path, "org/vlm", {"model_revision": pinned}))
    assert log(tmp_path / "out")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


LORA = {"r": 2, "target_modules": r".*language_model.*\.(q|v)_proj", "modules_to_save": ["adapter", "fusion"]}


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_a_lora_learns_beside_its_base_which_stays_as_it_was(load_in_4bit, tmp_path):
    model = make_folder(tmp_path / "model")
    recipe, args = told(tmp_path, model, {"lora": LORA, "load_in_4bit": load_in_4bit})
    prefer.main(recipe, args)
    entries = log(tmp_path / "out")
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and math.isfinite(entries[1]["loss"])
    adapter = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    assert any(weight.any() for name, weight in adapter.items() if "lora_B" in name)
    before = weights(model)["model.adapter.linear_1.weight"]
    learned = next(weight for name, weight in adapter.items() if name.endswith("adapter.linear_1.weight"))
    assert not torch.equal(learned, before)
    if not load_in_4bit:
        base = weights(tmp_path / "out")
        assert all(torch.equal(weight, base[name]) for name, weight in weights(model).items())
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert again._hf_peft_config_loaded
    assert {p.dtype for n, p in again.named_parameters() if "vision_tower" in n} == {torch.float32}


def pairs(cache, **changes):
    """Two good pairs, and one changed in some way for each of `changes`: {image_id: what is changed}."""
    good = load_rows("scenes", "train", rows="preference", num_train=1, num_eval=1, cache_dir=str(cache))[0]
    for side in ("chosen", "rejected"):
        changes = {
            name: row | {side: [{"role": "assistant", "content": row[side]}]} if side in row else row
            for name, row in changes.items()
        }
    rows = [{**good, **row, "image_id": name} for name, row in ({"good": {}, "as good": {}} | changes).items()]
    return Dataset.from_list(
        rows,
        features=load_rows(
            "scenes", "train", rows="preference", num_train=1, num_eval=1, cache_dir=str(cache)
        ).features,
    )


def test_pairs_that_cannot_be_used_are_left_out_counted_and_named(tmp_path, monkeypatch):
    rows = pairs(
        tmp_path,
        same={"chosen": "a circle", "rejected": " a circle \n"},
        mute={"chosen": "  "},
        silent={"rejected": ""},
        gone={"images": [{"bytes": None, "path": "/no/such.png"}]},
        cut={"images": [{"bytes": b"no picture", "path": None}]},
        unasked={"prompt": [{"role": "assistant", "content": "a"}]},
    )
    monkeypatch.setattr(prefer, "load_rows", lambda dataset, split, **_: rows if split == "train" else rows.take(2))
    recipe, args = told(tmp_path, make_folder(tmp_path / "model"), num_train_epochs=1, max_steps=-1)
    args.per_device_train_batch_size = 1
    prefer.main(recipe, args)
    assert len(log(tmp_path / "out")) == 2, "two of eight pairs can be used, one a step"
    skipped = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert [row["split"] for row in skipped] == ["train"] * 6
    problems = {row["image_id"]: row["problem"] for row in skipped}
    assert problems.pop("cut").startswith("picture of 10 bytes: is none of")
    assert problems == {
        "same": "both sides say the same", "mute": "the chosen side is empty", "silent": "the rejected side is empty",
        "gone": "/no/such.png: No such file or directory", "unasked": "nothing is asked",
    }  # fmt: skip


@pytest.mark.parametrize("mixed", [False, True])
def test_pairs_of_a_folder_teach_while_the_dataset_judges(mixed, tmp_path, monkeypatch):
    own = pairs(tmp_path, own={"rejected": "a star"}).remove_columns("scene").add_column("chosen_score", [0.5] * 3)
    (tmp_path / "pairs").mkdir()
    own.to_parquet(tmp_path / "pairs/train-00000-of-00001.parquet")
    names, used = [str(tmp_path / "pairs"), *(["scenes"] if mixed else [])], {}
    usable = prefer.usable
    monkeypatch.setattr(prefer, "usable", lambda splits, args: used.update(splits) or usable(splits, args))
    recipe, args = told(tmp_path, make_folder(tmp_path / "model"), {"train_pairs": names}, eval_strategy="steps")
    prefer.main(recipe, args)
    scenes = load_rows("scenes", "train", rows="preference", **recipe.dataset_options)
    theirs = list(scenes["image_id"]) if mixed else []
    assert list(used["train"]["image_id"]) == ["good", "as good", "own", *theirs]
    assert used["train"][2]["rejected"] == [{"role": "assistant", "content": "a star"}]
    assert used["train"][2]["images"] == own[2]["images"] and own[2]["images"][0]["bytes"]
    assert set(used["validation"]["image_id"]) == {f"scenes-0-validation-000000{i}" for i in range(2)}
    protocol = json.loads((tmp_path / "out/metrics.json").read_text())["protocol"]
    assert (protocol["dataset"], protocol["split"]) == ("scenes", "validation")
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["train_pairs"] == names


def test_a_prompt_that_places_more_pictures_than_there_are_is_a_problem(tmp_path):
    row = pairs(tmp_path)[0]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert prefer.problem_of(row) == ""
    asked = row | {"prompt": [{"role": "user", "content": content}]}
    assert prefer.problem_of(asked) == "the prompt places 2 pictures and the row has 1"


def test_pairs_of_which_none_can_be_used_are_an_error(tmp_path, monkeypatch):
    rows = pairs(tmp_path, mute={"chosen": ""}).select([2])
    monkeypatch.setattr(prefer, "load_rows", lambda *_, **__: rows)
    with pytest.raises(ValueError, match="not one pair of train can be used"):
        prefer.main(*told(tmp_path, make_folder(tmp_path / "model")))
    assert json.loads((tmp_path / "out/skipped.jsonl").read_text())["image_id"] == "mute"


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(tmp_path):
    recipe, args = told(tmp_path, make_folder(tmp_path / "model"), learning_rate=1e30, max_grad_norm=0.0, max_steps=5)
    with pytest.raises(ValueError, match=r"the loss is nan at step 2: lower learning_rate \(it is 1e\+30\)"):
        prefer.main(recipe, args)
    assert not (tmp_path / "out/model.safetensors").exists()


def test_special_tokens_in_the_data_are_text(tmp_path):
    processor = make_processor()
    rows = pairs(
        tmp_path, odd={"chosen": "a <image> b </s> c", "prompt": [{"role": "user", "content": "<image> <image> ?"}]}
    )
    row = prefer.written_out(rows, processor)[2]
    assert row["prompt"].count("<image>") == len(row["images"]) == 1
    assert "<image>" not in row["chosen"] and row["chosen"].count("</s>") == 1
    assert row["images"][0].mode == "RGB"


def test_what_cannot_be_done_as_asked_is_refused(tmp_path):
    folder = make_folder(tmp_path / "model")
    with pytest.raises(ValueError, match="max_length: 64 would cut"):
        prefer.main(*told(tmp_path, folder, max_length=64))
    with pytest.raises(ValueError, match="output_dir: .*model holds the model"):
        prefer.main(*told(tmp_path, folder, output_dir=str(folder)))
    with pytest.raises(ValueError, match="load_in_4bit: .* name a lora"):
        told(tmp_path, folder, {"load_in_4bit": True})
    with pytest.raises(ValueError, match="trainer must be joint or dpo, not 'ppo'"):
        told(tmp_path, folder, {"trainer": "ppo"})
    make_spin().save_pretrained(tmp_path / "spin")
    make_spin_processor().save_pretrained(tmp_path / "spin")
    with pytest.raises(ValueError, match="spin reads and writes apart"):
        prefer.main(*told(tmp_path, tmp_path / "spin"))
    prefer.main(*told(tmp_path, folder, {"lora": LORA}, max_steps=1))
    shutil.move(tmp_path / "out", tmp_path / "adapted")
    with pytest.raises(ValueError, match="adapted holds an adapter; first: python recipes/merge.py"):
        prefer.main(*told(tmp_path, tmp_path / "adapted"))


@pytest.mark.parametrize("key,named", [("bet: 0.1", "bet"), ("alpha_start: 0.5", "alpha_start")])
def test_a_key_that_neither_recipe_nor_trainer_knows_is_an_error(key, named, tmp_path, monkeypatch):
    (tmp_path / "odd.yaml").write_text(f"model: m\ntrainer: dpo\noutput_dir: out\nuse_cpu: true\nbf16: false\n{key}\n")
    monkeypatch.setattr(sys, "argv", ["prefer.py", "--config", str(tmp_path / "odd.yaml")])
    with pytest.raises(ValueError, match=f"--{named}"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_command_line_chooses_the_trainer_before_the_yaml(tmp_path, monkeypatch):
    (tmp_path / "joint.yaml").write_text(
        "model: m\ntrainer: joint\nbeta: 0.5\noutput_dir: m\nuse_cpu: true\nbf16: false\n"
    )
    monkeypatch.setattr(sys, "argv", ["prefer.py", "--config", str(tmp_path / "joint.yaml"), "--trainer", "dpo"])
    with pytest.raises(ValueError, match="output_dir: m holds the model"):  # parsed, and main is reached
        runpy.run_path(str(SCRIPT), run_name="__main__")
