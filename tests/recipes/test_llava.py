"""LLaVA by recipes/caption.py: joined of two towers; behind its real id, a LoRA on grounded captions; and three other families."""

import json
import os
import runpy
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, CLIPModel, LlavaProcessor

from tests.conftest import picture
from tests.datasets_scripts.test_grounded import example, write
from tests.loopback_hub import LoopbackHub
from tests.recipes.test_prefer import make_family_processor, make_folder
from trainers.captioning_config import CaptioningConfig
from trainers.captioning_data import CaptioningCollator, prompt_text
from trainers.chat_turns import complete_turns
from trainers.frozen_towers import freeze_towers, language_only, not_language
from trainers.llava_towers import join_llava, set_image_size


ROOT = Path(__file__).parents[2]
CLIP, SIGLIP, QWEN = (str(ROOT / "model_cards" / f"miniature_{name}") for name in ("clip", "siglip", "qwen2"))
LAYERS = r"\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
FAMILIES = {  # the language model in the names of modules, and what joins it to the vision tower
    "llava": ("language_model", "multi_modal_projector"),
    "smolvlm": ("text_model", "connector"),
    "qwen2_5_vl": ("language_model", "merger"),
    "ossight": ("language_model", "adapter"),
}
VICUNA = (  # LLaVA-1.5's way to write a conversation, which names neither the start of a text nor the end of an answer
    "{%- for m in messages -%}{{ m['role'].upper() + ': ' }}{%- for p in m['content'] -%}"
    "{{ '<image> ' if p['type'] == 'image' else p['text'] + ' ' }}{%- endfor -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)

sys.path.insert(0, str(ROOT / "recipes"))
import caption  # noqa: E402  recipes are scripts, not a package


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def told(tmp_path, recipe, **args):
    """Recipe and CaptioningConfig of two short steps on scenes."""
    few = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "max_new_tokens": 3,
    }
    quiet = {
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "eval_metrics": ["bleu"],
    }
    scenes = {"dataset": "scenes", "dataset_options": {"num_train": 4, "num_eval": 2}}
    args = {"output_dir": str(tmp_path / "out")} | few | quiet | args
    return caption.Recipe(**scenes | recipe), CaptioningConfig(**args)


def moved(before, folder):
    after = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


def inputs_of(processor, side=60):
    row = {"images": [None], "prompt": [{"role": "user", "content": "Describe the picture."}]}
    shown = [[picture(1, side)], [picture(2, side)]]
    return processor(
        text=[prompt_text(processor, row)] * 2, images=shown, return_tensors="pt", add_special_tokens=False
    )


# ----------------------------------------------------------------------------------------------------------------- joined


@pytest.mark.parametrize("eyes,tokens,layer", [(CLIP, 36, -2), (SIGLIP, 36, -1)], ids=["clip", "siglip"])
def test_two_towers_joined_keep_their_weights_and_count_their_tokens(eyes, tokens, layer, tmp_path):
    model, processor = join_llava(eyes, QWEN, vision_feature_layer=layer)
    inputs = inputs_of(processor)
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [tokens] * 2
    assert processor._get_num_multimodal_tokens(image_sizes=[(99, 20)]).num_image_tokens == [tokens]
    assert model.config.image_seq_length == tokens and model.config.vision_feature_layer == layer
    logits = model(**inputs).logits
    assert not torch.allclose(logits[0], logits[1]), "it sees"

    writer = AutoModelForCausalLM.from_pretrained(QWEN, dtype="float32")
    ids = torch.arange(20)[None]
    assert_close(model(ids).logits, writer(ids).logits)
    if eyes == CLIP:
        clip = CLIPModel.from_pretrained(CLIP, dtype="float32").vision_model
        seen = clip(inputs["pixel_values"], output_hidden_states=True).hidden_states[layer][:, 1:]
        assert_close(
            torch.stack(model.get_image_features(inputs["pixel_values"]).pooler_output),
            model.model.multi_modal_projector(seen),
        )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(reader, LlavaProcessor)
    assert_close(again(**inputs_of(reader)).logits, logits, rtol=0, atol=0)


def test_the_miniature_recipe_learns_captions_and_boxes_with_the_vision_tower_frozen(tmp_path):
    settings = yaml.safe_load((ROOT / "recipes/miniature/llava.yaml").read_text())
    names = set(caption.Recipe.__dataclass_fields__)
    settings = {name: value for name, value in settings.items() if name in names}
    settings |= {"vision_model": CLIP, "text_model": QWEN, "test_examples": 1, "blind_control": False}
    settings |= {"dataset_options": {"num_train": 3, "num_eval": 1, "regions": "box"}, "rows": "both"}
    recipe, args = told(tmp_path, settings, max_steps=12, per_device_train_batch_size=10, learning_rate=2e-3)
    torch.manual_seed(0)
    before = join_llava(CLIP, QWEN, **recipe.model_config)[0].state_dict()
    caption.main(recipe, args)
    lines = [json.loads(line) for line in (tmp_path / "out/train_log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    learned = {name.split(".")[1] if name.startswith("model.") else name for name in moved(before, tmp_path / "out")}
    assert learned == {"multi_modal_projector", "language_model", "lm_head.weight"}
    told_again = (tmp_path / "out/recipe.yaml").read_text()
    assert "architecture: llava" in told_again and "rows: both" in told_again


def test_an_image_size_that_the_tower_was_not_made_for_is_refused_by_both_numbers():
    model, processor = join_llava(CLIP, QWEN)
    with pytest.raises(ValueError, match="image_size: 96, but the vision tower was made for pictures of 60 pixels"):
        set_image_size(processor, model, 96)
    processor.image_processor.size = {"shortest_edge": 30}
    set_image_size(processor, model, 60)
    assert processor.image_processor.size == {"shortest_edge": 60}
    assert processor.image_processor.crop_size == {"height": 60, "width": 60}
    qwen = make_family_processor("qwen2_5_vl")
    set_image_size(qwen, model, 40)
    assert qwen.image_processor.size["longest_edge"] == 1600
    with pytest.raises(ValueError, match="20 x 20 pixels are fewer than the least, 784"):
        set_image_size(qwen, model, 20)
    with pytest.raises(ValueError, match="cuts pictures into tiles"):
        set_image_size(make_family_processor("smolvlm"), model, 60)


def test_what_cannot_be_done_as_asked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="architecture must be ossight, llava or spin, not 'flamingo'"):
        caption.main(*told(tmp_path, {"architecture": "flamingo"}))
    with pytest.raises(ValueError, match="name either `model`, or both"):
        caption.main(*told(tmp_path, {"architecture": "llava", "vision_model": CLIP}))
    with pytest.raises(ValueError, match="rows must be caption, region or both, not 'boxes'"):
        told(tmp_path, {"rows": "boxes"})
    with pytest.raises(
        ValueError, match="dataset_options: regions, margin are of rows: region or both; they are caption"
    ):
        told(tmp_path, {"dataset_options": {"regions": "box", "margin": 0.2}})
    with pytest.raises(ValueError, match="are of an eval_dataset, and none is named"):
        told(tmp_path, {"eval_data_dir": "x"})
    joined = {"architecture": "llava", "vision_model": CLIP, "text_model": QWEN, "cache_vision_features": True}
    with pytest.raises(ValueError, match="a LlavaForConditionalGeneration takes pictures alone"):
        caption.main(*told(tmp_path, joined))


# ------------------------------------------------------------------------------------------------------- what is trained on


def make_vicuna_processor():
    processor = make_family_processor("llava")
    processor.chat_template = VICUNA
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<unk>"})
    start = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = start
    tokenizer.bos_token = "<unk>"
    return processor


def test_an_answer_and_its_end_are_trained_on_and_nothing_else():
    processor = make_vicuna_processor()
    row = {"image_id": "a", "images": [picture(1)], "prompt": [{"role": "user", "content": "what is it ?"}],
           "completion": [{"role": "assistant", "content": "a red circle"}]}  # fmt: skip
    lacking = CaptioningCollator(processor)([row])
    assert processor.tokenizer.eos_token_id not in lacking["labels"], "its template alone never ends an answer"

    complete_turns(processor)
    said = processor.tokenizer.decode
    assert prompt_text(processor, row).startswith("<unk>USER: ")
    batch = CaptioningCollator(processor)([row, row | {"completion": [{"role": "assistant", "content": "blue"}]}])
    for ids, labels, answer in zip(batch["input_ids"], batch["labels"], ("a red circle", "blue"), strict=True):
        learned = labels != -100
        assert said(labels[learned]).split() == [*answer.split(), "</s>"]
        read = ids[~learned & (batch["attention_mask"][0] >= 0)]
        assert said(read).split().count("<image>") == 16 and "ASSISTANT:" in said(read).split()
    before = processor.chat_template
    complete_turns(processor)
    assert processor.chat_template == before, "what is complete stays as it is"


def test_templates_that_end_their_turns_stay_as_they_are():
    for family in FAMILIES:
        processor = make_family_processor(family)
        before = processor.chat_template
        complete_turns(processor)
        assert processor.chat_template == before


# --------------------------------------------------------------------------------------------------------- frozen, 4 bits


@pytest.mark.parametrize("vision,text", [(True, True), (False, True), (True, False)])
def test_towers_are_frozen_as_the_recipe_says(vision, text, tmp_path):
    folder = make_folder(tmp_path / "model", "llava")
    before = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    recipe = {"model": str(folder), "freeze_vision": vision, "freeze_text": text}
    caption.main(*told(tmp_path, recipe))
    learned = {name.split(".")[1] for name in moved(before, tmp_path / "out")}
    rest = {"vision_tower"} - {vision and "vision_tower"} | (set() if text else {"language_model", "weight"})
    assert learned == {"multi_modal_projector"} | rest


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_the_language_model_stays_out_of_4_bits(family, tmp_path):
    folder = make_folder(tmp_path / "model", family)
    quantized = language_only(caption.nf4("float32"), str(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=quantized, dtype="float32")
    text, joint = FAMILIES[family]
    four = {name for name, weight in model.named_parameters() if weight.dtype == torch.uint8}
    assert four and all(f".{text}." in name for name in four)
    assert {name.rsplit(".", 2)[-2] for name in four} >= {"q_proj", "down_proj"}
    assert "lm_head" in " ".join(not_language(model)) and any(joint in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="its towers are not where transformers looks"):
        freeze_towers(AutoModelForCausalLM.from_pretrained(QWEN))


@pytest.mark.parametrize("load_in_4bit", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_any_family_takes_two_steps_with_checkpointed_gradients(family, load_in_4bit, tmp_path):
    text, joint = FAMILIES[family]
    folder = make_folder(tmp_path / "model", family)
    lora = {"r": 2, "target_modules": rf".*{text}.*{LAYERS}", "modules_to_save": [joint]}
    recipe = {"model": str(folder), "lora": lora, "load_in_4bit": load_in_4bit, "rows": "both",
              "dtype": "bfloat16" if family == "llava" else "float32"}  # fmt: skip
    caption.main(*told(tmp_path, recipe, gradient_checkpointing=True))
    adapter = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    assert all(weight.any() for name, weight in adapter.items() if "lora_B" in name), (
        "the gradient comes to every layer"
    )
    assert {"lora" if "lora_" in name else joint for name in adapter if "lora_" in name or joint in name} == {
        "lora",
        joint,
    }
    assert not [name for name in adapter if "vision" in name or "visual.blocks" in name]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert again._hf_peft_config_loaded


# ------------------------------------------------------------------------------------------- the full-size recipe, scaled down


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LoopbackHub(alias_pins=True) as hub:
        hub.seed("llava-hf/llava-1.5-7b-hf", make_folder(tmp_path_factory.mktemp("hub"), "llava"))
        yield hub


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a user would stand: recipes/, a small COCO, and what recipes/augment.py made of it."""
    place = tmp_path_factory.mktemp("grounded")
    (place / "recipes").symlink_to(ROOT / "recipes")
    (place / "data/annotations").mkdir(parents=True)
    (place / "data/val2017").mkdir()
    images, annotations = [], []
    for i in range(6):
        Image.new("RGB", (40, 20), (40 * i, 90, 200)).save(place / f"data/val2017/{i:012}.jpg")
        images.append({"id": i, "file_name": f"{i:012}.jpg"})
        annotations += [{"id": 5 * i + j, "image_id": i, "caption": f"there is a red circle {j}"} for j in range(5)]
    (place / "data/annotations/captions_val2017.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )
    rows = [example("caption", "a", "there is a red circle"), example("region", "a", "red circle", [5, 1, 15, 6]),
            example("caption", "b", "there is a star"), example("region", "b", "star", [0, 0, 9, 9])]  # fmt: skip
    write(place / "outputs/grounded/coco", rows)
    return place


@pytest.fixture(scope="module")
def tuned(hub, place):
    """llava_lora.yaml to its end, as it stands but for the tiny tower's size, how often it logs, and how many it is judged by."""
    few = "--image_size 28 --test_examples 3 --max_new_tokens 3 --gradient_accumulation_steps 2 --logging_steps 1 --warmup_steps 0"
    few += " --dataloader_num_workers 0 --num_train_epochs 2 --learning_rate 0.01"
    command = f"accelerate launch recipes/caption.py --config recipes/grounded/llava_lora.yaml {few}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    more = {"HF_DATASETS_CACHE": str(place / "datasets"), "COCO_ROOT": str(place / "data"), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **hub.env(), "PATH": path, **more}
    done = subprocess.run(command.split(), cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return place / "outputs/grounded/llava_lora"


def recipe_main(monkeypatch, name, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(ROOT / "recipes" / name), run_name="__main__")


def test_the_grounded_recipe_trains_a_lora_and_the_projector_and_is_judged_by_coco(tuned):
    figures = json.loads((tuned / "metrics.json").read_text())
    assert {"bleu_4", "cider"} <= figures.keys()
    assert figures["protocol"]["dataset"] == "coco" and figures["protocol"]["num_examples"] == 3
    log = [json.loads(line) for line in (tuned / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4], "four rows, two at a time, twice"
    adapter = load_file(tuned / "adapter_model.safetensors")
    kinds = {"lora" if "lora_" in name else name.split(".")[3] for name in adapter}
    assert kinds == {"lora", "multi_modal_projector"}
    assert all(".language_model." in name for name in adapter if "lora_" in name)
    base, learned = load_file(tuned / "model.safetensors"), "multi_modal_projector.linear_1.weight"
    before = next(weight for name, weight in base.items() if name.endswith(learned))
    after = next(weight for name, weight in adapter.items() if name.endswith(learned))
    assert not torch.equal(before.float(), after.float())


def test_the_adapter_reloads_and_merges_with_the_logits_it_had(tuned, tmp_path, monkeypatch):
    processor = AutoProcessor.from_pretrained(tuned)
    inputs = inputs_of(processor, 28)
    whole = AutoModelForImageTextToText.from_pretrained(tuned, dtype="float32").eval()
    recipe_main(monkeypatch, "merge.py", "--model", tuned, "--output", tmp_path / "merged", "--dtype", "float32")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="float32").eval()
    assert_close(merged(**inputs).logits, whole(**inputs).logits, rtol=1e-4, atol=1e-4)
    adapter = load_file(tuned / "adapter_model.safetensors")
    name = next(name for name in adapter if name.endswith("multi_modal_projector.linear_2.weight"))
    assert_close(merged.model.multi_modal_projector.linear_2.weight.data, adapter[name])
    whole.disable_adapters()
    assert not torch.allclose(whole(**inputs).logits, merged(**inputs).logits, atol=1e-2)


def test_an_adapter_is_scored_over_its_model_by_the_command_as_it_stands(hub, place, tuned, monkeypatch):
    hub.patch(monkeypatch)
    monkeypatch.chdir(place)
    monkeypatch.setenv("COCO_ROOT", str(place / "data"))
    command = "--model llava-hf/llava-1.5-7b-hf --adapter outputs/grounded/llava_lora --dataset coco --split val"
    command = f"{command} --num-examples 5000 --metrics bleu cider"
    short = "--max_new_tokens 3 --dtype bfloat16 --batch_size 2".split()
    recipe_main(monkeypatch, "evaluate.py", *command.split(), *short)
    out = place / "outputs/evaluations/llava-1.5-7b-hf+llava_lora-coco-val"
    protocol = json.loads((out / "metrics.json").read_text())["protocol"]
    digest = sha256((tuned / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
    assert protocol["adapter"]["id"] == "outputs/grounded/llava_lora"
    assert protocol["adapter"]["revision"] == f"sha256:{digest}" and protocol["num_examples"] == 6
    said = [json.loads(line)["prediction"] for line in (out / "predictions.jsonl").read_text().splitlines()]
    own = "--model outputs/grounded/llava_lora --dataset coco --split val --metrics bleu --output own".split()
    recipe_main(monkeypatch, "evaluate.py", *own, *short)
    own = [json.loads(line)["prediction"] for line in (place / "own/predictions.jsonl").read_text().splitlines()]
    assert said == own, "the folder with base and adapter, and the adapter over the base from the Hub"
    bare = command.replace("--adapter outputs/grounded/llava_lora ", "").split()
    recipe_main(monkeypatch, "evaluate.py", *bare, *short)
    bare = place / "outputs/evaluations/llava-1.5-7b-hf-coco-val/predictions.jsonl"
    assert [json.loads(line)["prediction"] for line in bare.read_text().splitlines()] != said, (
        "without, it says otherwise"
    )


def test_an_adapter_that_does_not_fit_is_refused(place, tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("COCO_ROOT", str(place / "data"))
    other = make_folder(tmp_path / "other", "smolvlm")
    judge = [
        "--dataset",
        "coco",
        "--split",
        "val",
        "--metrics",
        "bleu",
        "--output",
        tmp_path / "out",
        "--max_new_tokens",
        "2",
    ]
    with pytest.raises(ValueError, match="llava_lora does not fit .*other"):
        recipe_main(monkeypatch, "evaluate.py", "--model", other, "--adapter", tuned, *judge)
    with pytest.raises(ValueError, match="holds an adapter of its own"):
        recipe_main(monkeypatch, "evaluate.py", "--model", tuned, "--adapter", tuned, *judge)
    with pytest.raises(ValueError, match="holds no adapter_model.safetensors"):
        recipe_main(monkeypatch, "evaluate.py", "--model", other, "--adapter", other, *judge)
    assert not (tmp_path / "out").exists()
