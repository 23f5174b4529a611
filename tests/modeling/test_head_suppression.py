"""
Head suppression against a literal, eager implementation of the published rule, on tiny models of five families; logits compared.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration
from transformers.masking_utils import eager_mask

from modeling.head_suppression import (
    SpinConfig,
    chosen_spin,
    disable_spin,
    enable_spin,
    gates,
    keep_spin,
    mass_scores,
    spin,
)
from tests.modeling.families import ASKED, EVERY, TOKEN, generated, make, prompts


class Reference:
    """The published rule, literally: softmax of standardised logit sums, top-k, at the last query; attention in full."""

    def __init__(self, config, token):
        self.config, self.token, self.where = config, token, None

    def attend(self, module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            logits = logits + attention_mask
        weights = logits.softmax(-1)
        length = self.where.shape[1]
        image = self.where[:, None, :].to(logits.dtype)
        score = (logits[:, :, -1, :length].masked_fill(self.where[:, None] == 0, 0) * image).sum(-1)
        if self.config.score == "mass":
            score = (weights[:, :, -1, :length] * image).sum(-1)
        routed = (score / score.std(dim=1, keepdim=True)).softmax(1)
        kept = routed.topk(int(self.config.keep_ratio * routed.shape[1]), dim=1).indices
        gate = torch.full_like(routed, self.config.suppression).scatter(1, kept, 1.0)
        gate = torch.where(self.where.any(1, keepdim=True), gate, torch.ones_like(gate))
        output = (weights @ value).transpose(1, 2).contiguous()
        if self.config.covers(module.layer_idx):
            output[:, -1] = output[:, -1] * gate[..., None]
        return output, None

    def look(self, module, args, kwargs):
        ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            self.where = ids == self.token

    def generate(self, model, **kwargs):
        AttentionInterface.register("literal", self.attend)
        AttentionMaskInterface.register("literal", eager_mask)
        hook = model.register_forward_pre_hook(self.look, with_kwargs=True)
        model.set_attn_implementation({"text_config": "literal"})
        out = model.generate(**kwargs)
        model.set_attn_implementation({"text_config": "sdpa"})
        hook.remove()
        return torch.stack(out.logits, 1), out.sequences


SETTINGS = {
    "zeroed": SpinConfig(keep_ratio=0.7),
    "published": SpinConfig(keep_ratio=0.7, suppression=0.08),
    "middle": SpinConfig(keep_ratio=0.5, suppression=0.1, start_layer=1, end_layer=2),
    "mass": SpinConfig(keep_ratio=0.5, score="mass"),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", EVERY)
def test_it_is_the_published_rule(family, setting, rows):
    model, pixels, image = make(family)
    asked = prompts(family, pixels, image, rows)
    config = SETTINGS[setting]
    token = model.config.image_token_id
    plain, _ = generated(model, **asked, **ASKED)
    with spin(model, config):
        ours, tokens = generated(model, **asked, **ASKED)
    expected, expected_tokens = Reference(config, token).generate(model, **asked, **ASKED)
    assert torch.equal(tokens, expected_tokens)
    assert_close(ours, expected, rtol=1e-6, atol=2e-6)
    assert (ours - plain).abs().max() > 1e-4, "it does something"
    after, _ = generated(model, **asked, **ASKED)
    assert torch.equal(after, plain), "and is gone when it is over"


@pytest.mark.parametrize("family", EVERY)
def test_suppression_by_one_is_bit_equal_to_sdpa(family):
    model, pixels, image = make(family)
    asked = prompts(family, pixels, image, 3)
    plain, _ = generated(model, **asked, **ASKED)
    with spin(model, SpinConfig(keep_ratio=0.5, suppression=1.0)):
        ours, _ = generated(model, **asked, **ASKED)
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("setting", ["published", "mass"])
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("way", ["no cache", "static", "chunked", "beams", "assisted"])
def test_every_way_of_generating_agrees(family, way, setting):
    model, pixels, image = make(family)
    rows = 1 if way == "assisted" else 2
    asked = prompts(family, pixels, image, rows)
    config = SETTINGS[setting]
    with spin(model, config):
        usual, tokens = generated(model, **asked, **ASKED)
        if way == "beams":
            together = model.generate(**asked, max_new_tokens=6, num_beams=3, do_sample=False)
            for row in range(rows):
                alone = {k: v[row : row + 1] for k, v in asked.items() if k != "image_grid_thw"}
                if family == "qwen2_5_vl":
                    alone["image_grid_thw"] = asked["image_grid_thw"][row : row + 1]
                    alone["pixel_values"] = asked["pixel_values"][16 * row : 16 * (row + 1)]
                out = model.generate(**alone, max_new_tokens=6, num_beams=3, do_sample=False)
                assert torch.equal(out[0, -6:], together[row, -6:])
            return
        more = {
            "no cache": {"use_cache": False},
            "static": {"cache_implementation": "static", "disable_compile": True},
            "chunked": {"prefill_chunk_size": 3},
            "assisted": {"prompt_lookup_num_tokens": 2},
        }[way]
        if way == "assisted":
            out = model.generate(**asked, **(ASKED | {"output_logits": False}), **more)
            assert torch.equal(out.sequences[0, : tokens.shape[1]], tokens[0])
            return
        logits, other = generated(model, **asked, **ASKED, **more)
    assert torch.equal(other, tokens)
    assert_close(logits, usual, rtol=1e-5, atol=2e-5)


def test_a_prompt_without_an_image_is_left_alone():
    model, _, _ = make("llava")
    ids = torch.tensor([[1, 5, 6, 7]])
    plain, _ = generated(model, input_ids=ids, **ASKED)
    with spin(model, SpinConfig(keep_ratio=0.5)):
        ours, _ = generated(model, input_ids=ids, **ASKED)
    assert torch.equal(ours, plain)


def test_gates_by_hand():
    scores = torch.tensor([[[3.0], [-1.0], [2.0], [0.5]]])
    config = SpinConfig(keep_ratio=0.74, suppression=0.1)  # int(2.96) = 2 heads of 4
    assert_close(gates(scores, config, torch.tensor([True]))[0, :, 0], torch.tensor([1.0, 0.1, 1.0, 0.1]))
    assert gates(scores, config, torch.tensor([False])).eq(1).all()
    assert SpinConfig(keep_ratio=0.1).heads(4) == 1 and SpinConfig(top_k=3).heads(4) == 3


def test_mass_is_the_share_of_attention_that_the_image_gets():
    query, key = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 5, 8)
    image = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
    allowed = torch.tensor([1, 1, 1, 1, 0], dtype=torch.bool)
    logits = (query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3).masked_fill(~allowed, -torch.inf)
    expected = (logits.softmax(-1) * image[:, None, None]).sum(-1)
    assert_close(mass_scores(query, key, image, allowed, 0.3), expected)


@pytest.mark.parametrize(
    "settings,problem",
    [
        ({"keep_ratio": 0}, "keep_ratio must be above 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"suppression": 2}, "suppression must be between 0 and 1"),
        ({"score": "max"}, 'score must be "logits" or "mass"'),
    ],
)
def test_settings_out_of_range_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        SpinConfig(**settings)


def test_a_command_line_says_it_in_words():
    said = SpinConfig.from_words(["keep_ratio=0.9", "end_layer=20", "score=mass"])
    assert said == SpinConfig(keep_ratio=0.9, end_layer=20, score="mass")
    with pytest.raises(ValueError, match="'keep=0.9' is none of keep_ratio="):
        SpinConfig.from_words(["keep=0.9"])
    model, _, _ = make("llava")
    assert chosen_spin(model, []) == SpinConfig()
    keep_spin(model, said)
    assert chosen_spin(model, []) == said and chosen_spin(model, ["top_k=2"]) == SpinConfig(top_k=2)


def test_a_model_it_has_no_meaning_for_is_refused():
    model, _, _ = make("llava")
    other = copy.deepcopy(model)
    other.config.model_type = "mllama"
    with pytest.raises(ValueError, match="'mllama' sees it by cross-attention"):
        enable_spin(other, SpinConfig())
    other = copy.deepcopy(model)
    other.config.image_token_id = None
    with pytest.raises(ValueError, match="names no image token"):
        enable_spin(other, SpinConfig())
    with pytest.raises(ValueError, match="holds no `spin`"):
        enable_spin(model)


def test_the_settings_kept_with_a_model_are_those_it_generates_with(tmp_path):
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 1)
    with spin(model, SETTINGS["published"]):
        expected, _ = generated(model, **asked, **ASKED)
    keep_spin(model, SETTINGS["published"])
    model.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    enable_spin(again)
    ours, _ = generated(again, **asked, **ASKED)
    assert torch.equal(ours, expected)
    disable_spin(again)
    disable_spin(again)
    assert not torch.equal(generated(again, **asked, **ASKED)[0], expected)


FOLDER = Path(__file__).parents[2] / "model_cards/spin_generate"
STRANGER = """
import sys
sys.modules.update(dict.fromkeys(["modeling", "processing", "trainers", "datasets_scripts"]))  # importing them now fails
import torch
from transformers import LlavaForConditionalGeneration
model = LlavaForConditionalGeneration.from_pretrained("model").eval()
asked = torch.load("asked.pt", weights_only=True)
how = {"custom_generate": sys.argv[1], "trust_remote_code": True, "spin": {"keep_ratio": 0.7, "suppression": 0.08}}
out = model.generate(**asked, **how, max_new_tokens=8, do_sample=False, suppress_tokens=[150])
torch.save(out, "said.pt")
"""


@pytest.mark.parametrize("name", ["head_suppression.py", "image_attention.py"])
def test_the_folder_for_the_hub_holds_this_very_module(name):
    copied = (FOLDER / "custom_generate" / name).read_text()
    assert copied == (FOLDER.parents[1] / "modeling" / name).read_text()


def test_custom_generate_stands_alone(tmp_path):
    """A stranger with the folder alone generates the same tokens."""
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 3)
    with spin(model, SETTINGS["published"]):
        _, expected = generated(model, **asked, **ASKED)
    model.save_pretrained(tmp_path / "model")
    torch.save(asked, tmp_path / "asked.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    run = [sys.executable, "-c", STRANGER, str(FOLDER)]
    subprocess.run(run, cwd=tmp_path, check=True, env=environment)
    assert torch.equal(torch.load(tmp_path / "said.pt", weights_only=True), expected)


def test_custom_generate_takes_what_the_model_keeps(tmp_path):
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 1)
    how = {"custom_generate": str(FOLDER), "trust_remote_code": True}
    with pytest.raises(ValueError, match="holds no `spin`"):
        model.generate(**asked, **how)
    keep_spin(model, SETTINGS["published"])
    with spin(model):
        _, expected = generated(model, **asked, **ASKED)
    out = model.generate(**asked, **how, max_new_tokens=8, do_sample=False, suppress_tokens=[TOKEN])
    assert torch.equal(out, expected)
