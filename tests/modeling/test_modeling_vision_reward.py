"""Vision rewards: what number an answer gets, of every family of models; what is saved, quantised, adapted and refused."""

import copy
import json
import os
import subprocess
import sys

import peft
import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    BitsAndBytesConfig,
)

from modeling import SpinVLMConfig, VisionRewardConfig, VisionRewardForSequenceClassification
from modeling.modeling_vision_reward import PER_TOKEN, unpad_left
from tests.conftest import make_ossight, make_processor, picture
from tests.contract import picture_list
from tests.modeling.families import FAMILIES, make, prompts


PER_ROW = {*PER_TOKEN, "attention_mask"}
LORA = {"r": 2, "target_modules": r".*language_model.*(q_proj|v_proj)", "modules_to_save": ["score"]}


def rewarding(vlm, folder):
    vlm.save_pretrained(folder / "vlm")
    torch.manual_seed(1)
    return VisionRewardForSequenceClassification.from_vlm(str(folder / "vlm"))


@pytest.fixture
def reward(tmp_path):
    return rewarding(make_ossight(), tmp_path)


@pytest.fixture
def asked():
    return prompts("ossight", None, None, 3)


def padded_right(asked):
    """Left-padded rows moved to the left edge by hand."""
    out = {name: value.clone() for name, value in asked.items()}
    for row, mask in enumerate(asked["attention_mask"].bool()):
        for name in PER_ROW & asked.keys():
            out[name][row] = torch.cat([asked[name][row][mask], asked[name][row][~mask]])
    return out


@pytest.mark.parametrize("family", [*FAMILIES, "ossight"])
def test_a_reward_is_the_head_of_the_last_attended_token_however_rows_are_padded(family, tmp_path):
    vlm, pixels, image = make(family)
    model = rewarding(vlm, tmp_path)
    asked = prompts(family, pixels, image, 3)
    with torch.no_grad():
        hidden = vlm.base_model(**asked).last_hidden_state[:, -1]  # padded on the left, all rows end at the end
        by_hand = hidden @ model.score.weight.T
        assert by_hand.shape == (3, 1) and by_hand.std() > 1e-3
        assert_close(model(**asked).logits, by_hand, rtol=1e-4, atol=1e-5)
        assert_close(model(**padded_right(asked)).logits, by_hand, rtol=1e-4, atol=1e-5)


def test_left_padding_costs_a_model_with_learned_positions_nothing(tmp_path):
    model = rewarding(make_ossight(text="gpt2"), tmp_path)
    texts, images = ["a <image> b what colour", "<image> is it"], [[picture(0)], [picture(1)]]
    processor = make_processor()
    together = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    for row in range(2):
        one = processor(text=texts[row : row + 1], images=images[row : row + 1], return_tensors="pt")
        assert_close(model(**together).logits[row], model(**one).logits[0], rtol=1e-4, atol=1e-5)


def test_rows_move_to_the_left_edge_with_what_is_said_of_each_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    ids = torch.tensor([[9, 8, 5, 6], [1, 2, 3, 9]])
    pixels = torch.arange(8.0).view(2, 4)  # of the same shape, and not of tokens
    moved, given = unpad_left(mask, input_ids=ids, token_type_ids=mask * 2, pixel_attention_mask=pixels)
    assert moved.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert given["input_ids"].tolist() == [[5, 6, 9, 8], [1, 2, 3, 9]]
    assert given["token_type_ids"].tolist() == [[2, 2, 0, 0], [2, 2, 2, 0]]
    assert given["pixel_attention_mask"] is pixels


@pytest.mark.parametrize("family", [*FAMILIES, "ossight"])
def test_answers_that_share_pictures_see_them_encoded_once(family, tmp_path):
    vlm, pixels, image = make(family)
    model = rewarding(vlm, tmp_path)
    asked = prompts(family, pixels, image, 2)
    both = {name: torch.cat([value, value]) if name in PER_ROW else value for name, value in asked.items()}
    both["input_ids"][2:, -1] = 14  # another answer
    everything = both | {name: torch.cat([value, value]) for name, value in asked.items() if name not in PER_ROW}
    expected = model(**everything).logits
    expected.sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    tower, seen = model.model.get_encoder(modality="image"), []

    def count(_, args, kwargs):
        seen.append(len(next(value for value in (*args, *kwargs.values()) if torch.is_tensor(value))))

    tower.register_forward_pre_hook(count, with_kwargs=True)
    shared = model(**both, answers=2).logits
    shared.sum().backward()
    assert seen == [len(asked["pixel_values"])]
    assert_close(shared, expected, rtol=1e-4, atol=1e-5)
    assert (shared[2:] - shared[:2]).abs().min() > 1e-4
    for name, weight in model.named_parameters():
        if name in gradients:
            assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_a_model_that_takes_no_encoded_pictures_is_given_them_twice(reward, asked, monkeypatch):
    both = {name: torch.cat([value, value]) if name in PER_ROW else value for name, value in asked.items()}
    expected = reward(**both, answers=2).logits
    forward = type(reward.model).forward

    def old(self, input_ids=None, pixel_values=None, attention_mask=None, **kwargs):
        return forward(self, input_ids, pixel_values, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(type(reward.model), "forward", old)
    assert_close(reward(**both, answers=2).logits, expected)


STRANGER = """
import sys
sys.modules.update(dict.fromkeys(["modeling", "processing", "trainers", "datasets_scripts"]))  # importing them now fails
import torch
from transformers import AutoModelForSequenceClassification, AutoProcessor
for folder in sys.argv[1:]:
    expected = torch.load(f"{folder}/expected.pt", weights_only=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text=expected["text"], images=list(expected["images"]), return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    torch.testing.assert_close(model(**inputs).logits, expected["logits"], rtol=0, atol=1e-6)
model.save_pretrained("again")
again = AutoModelForSequenceClassification.from_pretrained("again", trust_remote_code=True, dtype="auto").eval()
torch.testing.assert_close(again(**inputs).logits, expected["logits"], rtol=0, atol=1e-6)
"""


def test_saved_folders_stand_alone_with_the_code_of_the_model_inside(reward, tmp_path):
    """OSSight with an adapter, and OSSight, which the stranger also saves anew."""
    ours, adapted = tmp_path / "ours", tmp_path / "adapted"
    processor, text, images = make_processor(), ["a <image> is it red"], [picture(3)]
    inputs = processor(text=text, images=images, return_tensors="pt")
    told = {"text": text, "images": picture_list(images)}
    for folder in (ours, adapted):
        reward.save_pretrained(folder)
        processor.save_pretrained(folder)
    torch.save(told | {"logits": reward(**inputs).logits}, ours / "expected.pt")
    reward.name_or_path = str(adapted)
    tuned = peft.get_peft_model(reward, peft.LoraConfig(**LORA, init_lora_weights=False)).eval()
    tuned.save_pretrained(adapted)
    torch.save(told | {"logits": tuned(**inputs).logits}, adapted / "expected.pt")

    code = {path.name for path in ours.glob("*.py")}
    assert {"modeling_vision_reward.py", "configuration_vision_reward.py", "modeling_ossight.py", "fusion.py"} <= code
    auto_map = json.loads((ours / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModelForSequenceClassification"} <= auto_map.keys()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", STRANGER, "adapted", "ours"]
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)


def test_code_that_nobody_trusted_is_not_run(reward, tmp_path):
    """Here the class is ours, so no one has said that the folder's code may run."""
    folder = tmp_path / "reward"
    reward.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vlm_config"] |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "trap.Trap"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trap.py").write_text("open('sprung', 'w').close()\nraise SystemExit('the trap is sprung')\n")
    with pytest.raises(ValueError, match="unheard_of"):
        AutoConfig.from_pretrained(folder)


def test_what_is_saved_has_the_names_that_a_trainer_resumes_by(tmp_path):
    """transformers would save LLaVA's weights by the names of its first days, which load_state_dict does not know."""
    model = rewarding(make("llava")[0], tmp_path)
    model.save_pretrained(tmp_path / "reward")
    assert not list((tmp_path / "reward").glob("modeling_ossight.py"))
    with safe_open(tmp_path / "reward/model.safetensors", "pt") as saved:
        assert set(saved.keys()) == set(model.state_dict())
    loaded, info = type(model).from_pretrained(tmp_path / "reward", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_head_is_float32_in_any_precision(reward, asked, tmp_path):
    reward.save_pretrained(tmp_path / "reward")
    for dtype in (torch.bfloat16, torch.float16):
        half = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=dtype)
        assert half.dtype == half.model.language_model.dtype == dtype and half.score.weight.dtype == torch.float32
        assert_close(half(**asked).logits, reward(**asked).logits, rtol=0.1, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = reward(**asked).logits
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_it_is_built_on_the_meta_device(reward):
    with torch.device("meta"):
        hollow = VisionRewardForSequenceClassification(reward.config)
    assert {weight.device.type for weight in hollow.parameters()} == {"meta"}


def test_a_vlm_s_weights_are_kept_and_a_head_for_one_number_is_new(reward):
    vlm = make_ossight()
    assert_close(reward.model.state_dict(), vlm.model.state_dict(), rtol=0, atol=0)
    assert reward.score.weight.shape == (1, 32) and reward.config.num_labels == 1
    assert 0.01 < reward.score.weight.std() < 0.04
    assert not any("lm_head" in name for name, _ in reward.named_parameters())


@pytest.mark.parametrize("family", ["ossight", "llava", "smolvlm"])
def test_four_bits_reach_the_language_model_only(family, tmp_path):
    vlm, pixels, image = make(family)
    plain = rewarding(vlm, tmp_path)
    plain.save_pretrained(tmp_path / "reward")
    asked, how = prompts(family, pixels, image, 2), BitsAndBytesConfig(load_in_4bit=True)
    packed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", quantization_config=how)
    begun = VisionRewardForSequenceClassification.from_vlm(str(tmp_path / "vlm"), quantization_config=how)
    for model in (packed, begun):
        reached = {name for name, weight in model.named_parameters() if weight.dtype == torch.uint8}
        assert reached and all(".language_model." in name or ".text_model." in name for name in reached)
        assert {w.dtype for n, w in model.named_parameters() if n not in reached} == {torch.float32}
    packed.save_pretrained(tmp_path / "packed")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert_close(again(**asked).logits, packed(**asked).logits)


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_lora_trains_the_head_too_saves_reloads_and_merges(reward, asked, tmp_path, task):
    base = copy.deepcopy(reward)
    tuned = peft.get_peft_model(reward, peft.LoraConfig(**LORA, task_type=task))
    optimizer = torch.optim.SGD([weight for weight in tuned.parameters() if weight.requires_grad], lr=0.1)
    tuned.train()(**asked).logits.sum().backward()
    optimizer.step()
    tuned.eval().save_pretrained(tmp_path / "adapter")
    expected = tuned(**asked).logits
    assert not torch.allclose(tuned.get_base_model().score.weight, base.score.weight)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(again(**asked).logits, expected)
    assert_close(again.merge_and_unload()(**asked).logits, expected, rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_gives_equal_gradients(reward, asked):
    def gradients(checkpointing):
        net = copy.deepcopy(reward).train()
        if checkpointing:
            net.gradient_checkpointing_enable({"use_reentrant": False})
        net(**asked).logits.sum().backward()
        return {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        assert_close(plain[name], checkpointed[name], rtol=1e-4, atol=1e-6)


def test_only_the_vision_tower_is_frozen(reward):
    reward.freeze_vision()
    frozen = {name.split(".")[1] for name, weight in reward.named_parameters() if not weight.requires_grad}
    assert frozen == {"vision_tower"}


def test_embeddings_resize_and_attention_is_chosen(reward, asked, tmp_path):
    reward.resize_token_embeddings(30)
    reward.save_pretrained(tmp_path / "reward")
    for choice in ("eager", "sdpa"):
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", attn_implementation=choice)
        assert again.get_input_embeddings().num_embeddings == 30
        assert again.model.language_model.config._attn_implementation == choice
        assert_close(again(**asked).logits, reward(**asked).logits, rtol=1e-4, atol=1e-5)


def test_what_left_its_towers_to_the_hub_carries_them_from_now_on(monkeypatch):
    light = make_ossight()
    light.config.towers = {"vision_tower": {"id": "org/eyes", "commit": "abc", "files": {}}}
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *args, **kwargs: light)
    assert VisionRewardForSequenceClassification.from_vlm("light").config.vlm_config.towers is None


def test_what_it_cannot_be_is_refused_by_name(reward, asked, tmp_path):
    with pytest.raises(ValueError, match="'spin_vlm' reads question and answer apart"):
        VisionRewardConfig(vlm_config=SpinVLMConfig())
    with pytest.raises(ValueError, match="learned from pairs, not from labels"):
        reward(**asked, labels=torch.zeros(3))
    tower = reward.model.vision_tower
    del reward.model.vision_tower
    with pytest.raises(ValueError, match="no vision tower is found in a 'ossight'"):
        reward.freeze_vision()
    reward.model.vision_tower = tower
    reward.model.forward = lambda **given: {"last_hidden_state": None}
    with pytest.raises(ValueError, match="a hidden state a token"):
        reward(**asked)


def test_adapters_are_merged_or_saved_as_such(reward, tmp_path):
    peft.get_peft_model(reward, peft.LoraConfig(**LORA))
    with pytest.raises(ValueError, match="save the PeftModel"):
        reward.save_pretrained(tmp_path / "lost")
    vlm, folder = make_ossight(), tmp_path / "adapted"
    vlm.save_pretrained(folder)
    vlm.name_or_path = str(folder)
    peft.get_peft_model(vlm, peft.LoraConfig(r=2, target_modules=LORA["target_modules"])).save_pretrained(folder)
    with pytest.raises(ValueError, match="holds adapters; merge them first"):
        VisionRewardForSequenceClassification.from_vlm(str(folder))


def test_it_is_found_by_the_auto_classes_with_its_processor(reward, tmp_path):
    reward.save_pretrained(tmp_path / "reward")
    make_processor().save_pretrained(tmp_path / "reward")
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")) is type(reward)
    assert type(AutoProcessor.from_pretrained(tmp_path / "reward")).__name__ == "OSSightProcessor"
