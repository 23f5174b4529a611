"""
PAI against a literal, eager implementation: each row alone, no cache, attention in full, the image's tokens cut out of the second
prompt; on tiny models of five families and the SPIN VLM.
"""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from modeling.attention_amplification import PAIConfig, amplified, disable_pai, enable_pai, pai
from modeling.contrastive_decoding import VCDConfig, vcd
from modeling.head_suppression import SpinConfig, spin
from tests.conftest import picture
from tests.modeling.families import ASKED, EVERY, alone, generated, longer, make, prompts
from tests.modeling.test_modeling_spin import make_spin, make_spin_processor


SETTINGS = {
    "amplified": PAIConfig(alpha=0.8, gamma=1.0, start_layer=0),
    "guided": PAIConfig(alpha=0.0, gamma=1.5),
    "both": PAIConfig(alpha=0.5, gamma=1.3, beta=0.2, start_layer=1, end_layer=2),
}


def say(model, **kwargs):
    """Logits (b, steps, vocab) and tokens of a generation that cannot say the image token."""
    return generated(model, **ASKED | {"suppress_tokens": [model.config.image_token_id]} | kwargs)


class Literal:
    """attention.py and CFG.py of the published code, with grouped queries."""

    def __init__(self, model, config):
        self.model, self.config, self.across = model, config, model.config.is_encoder_decoder
        self.where, self.begin = None, 0  # the image's keys; the first row that is answered from

    def attend(self, module, query, key, value, attention_mask, scaling, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        weights = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            weights = weights + attention_mask
            weights = weights.clamp(min=torch.finfo(weights.dtype).min)
        here = self.where is not None and self.across == getattr(module, "is_cross_attention", False)
        if here and self.config.covers(module.layer_idx):
            rows, columns = slice(self.begin, None), self.where[0].nonzero()[:, 0]
            seen = weights[:, :, rows][..., columns]
            weights[:, :, rows, columns] = seen.abs() * self.config.alpha + seen
        weights = weights.softmax(-1, dtype=torch.float32)
        return (weights @ value).transpose(1, 2).contiguous(), None

    def contrasted(self, scores, blind):
        scores, blind = scores.log_softmax(-1), blind.log_softmax(-1)
        if self.config.gamma == 1:
            return scores
        cutoff = math.log(self.config.beta) + scores.max(dim=-1, keepdim=True).values
        out = self.config.gamma * (scores - blind) + blind
        return out.masked_fill(scores < cutoff, -torch.inf)

    def say(self, one, steps):
        """Log-probabilities but for a constant, (1, steps, vocab), and tokens said to one prompt."""
        model, token = self.model, self.model.config.image_token_id
        AttentionInterface.register("literal_pai", self.attend)
        AttentionMaskInterface.register("literal_pai", eager_mask)
        part = "" if self.across else "text_config"
        model.set_attn_implementation({part: "literal_pai"})
        image = one["input_ids"] == token
        text = {"input_ids": one["input_ids"][~image][None], "attention_mask": one["attention_mask"][~image][None]}
        start = torch.full((1, 1), getattr(model.config, "decoder_start_token_id", None) or 0)
        said, logits = torch.zeros(1, 0, dtype=torch.long), []
        for _ in range(steps):
            passes = []
            for inputs, where in ((one, image), (text, None)):
                self.where, self.begin = where, 0 if self.across else image.shape[1] - 1
                answer = {"decoder_input_ids": torch.cat([start, said], 1)}
                inputs = inputs | answer if self.across else longer(inputs, said)
                passes.append(model(**inputs, use_cache=False).logits[:, -1])
            logits.append(self.contrasted(*passes))
            allowed = logits[-1].clone()
            allowed[:, token] = -torch.inf
            assert allowed.max() > -torch.inf, "this seed leaves nothing to say"
            said = torch.cat([said, allowed.argmax(-1, keepdim=True)], 1)
        model.set_attn_implementation({part: "sdpa"})
        return torch.stack(logits, 1), said


def assert_same(ours, expected):
    plausible = expected.isfinite()
    assert (ours[~plausible] < -5000).all()
    ours, expected = (x.masked_fill(~plausible, -torch.inf).log_softmax(-1)[plausible] for x in (ours, expected))
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_it_is_the_published_rule(family, setting, rows):
    model, pixels, image = make(family)
    asked, config = prompts(family, pixels, image, rows), SETTINGS[setting]
    plain, _ = say(model, **asked)
    with pai(model, config):
        ours, tokens = say(model, **asked)
    for row in range(rows):
        expected, said = Literal(model, config).say(alone(asked, row), 8)
        assert torch.equal(tokens[row, -8:], said[0])
        assert_same(ours[row : row + 1], expected)
    assert (ours - plain)[ours > -5000].abs().max() > 1e-4, "it does something"
    after, _ = say(model, **asked)
    assert torch.equal(after, plain), "and is gone when it is over"


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("way", ["no cache", "static", "chunked", "assisted", "beams", "forward"])
@torch.no_grad()
def test_every_way_of_generating_agrees(family, way):
    model, pixels, image = make(family)
    asked = prompts(family, pixels, image, 1 if way == "assisted" else 2)
    never = {"suppress_tokens": [model.config.image_token_id]}
    with pai(model, PAIConfig(alpha=0.5, gamma=1.3, beta=0.0, start_layer=1)):
        usual, tokens = say(model, **asked)
        if way == "forward":
            for row in range(2):
                logits = model(**alone(asked, row), logits_to_keep=1).logits
                assert_close(logits, usual[row : row + 1, :1], rtol=1e-4, atol=1e-5)
            return
        if way == "beams":
            how = never | {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
            together = model.generate(**asked, **how)
            assert torch.equal(model.generate(**asked, **how, use_cache=False), together)
            for row in range(2):
                assert torch.equal(model.generate(**alone(asked, row), **how)[0, -6:], together[row, -6:])
            return
        if way == "assisted":
            out = model.generate(**asked, **(ASKED | never | {"output_logits": False}), prompt_lookup_num_tokens=2)
            assert torch.equal(out.sequences[0, : tokens.shape[1]], tokens[0])
            return
        more = {
            "no cache": {"use_cache": False},
            "static": {"cache_implementation": "static", "disable_compile": True},
            "chunked": {"prefill_chunk_size": 3},
        }[way]
        logits, other = say(model, **asked, **more)
    assert torch.equal(other, tokens)
    assert_close(logits, usual, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", EVERY)
def test_alpha_zero_and_gamma_one_are_bit_equal_to_plain(family):
    model, pixels, image = make(family)
    asked = prompts(family, pixels, image, 3)
    plain, _ = say(model, **asked)
    with pai(model, PAIConfig(alpha=0.0, gamma=1.0)):
        ours, _ = say(model, **asked)
    assert torch.equal(ours, plain)


def test_a_prompt_without_an_image_is_left_alone():
    """Also, but for rounding, beside one with an image."""
    model, pixels, image = make("llava")
    ids = torch.tensor([[1, 5, 6, *image, 7], [0] * len(image) + [1, 5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), **pixels(1)}
    plain, _ = say(model, **batch)
    text, _ = say(model, input_ids=ids[1:, -4:])
    with pai(model, PAIConfig(alpha=0.5, start_layer=0)):
        ours, _ = say(model, **batch)
        assert torch.equal(say(model, input_ids=ids[1:, -4:])[0], text)
    assert_close(ours[1], plain[1], rtol=1e-6, atol=2e-6)
    assert (ours[0] - plain[0]).abs().max() > 1e-3


def test_amplified_attention_by_hand():
    """One head, keys that give logits 2, -1 and 0.5, of which the first two are the image's."""
    key = torch.tensor([2.0, -1.0, 0.5, 9.0]).view(1, 1, 4, 1)
    value = torch.eye(4).view(1, 1, 4, 4)
    image, allowed = torch.tensor([[True, True, False, False]]), torch.tensor([True, True, True, False])
    out = amplified(torch.ones(1, 1, 1, 1), key, value, image, allowed, 1.0, 0.5)
    assert_close(out.flatten(), torch.tensor([3.0, -0.5, 0.5, -torch.inf]).softmax(0))


def test_no_more_rows_than_are_answered_from_are_computed_by_hand(monkeypatch):
    from modeling import attention_amplification

    seen, right = [], attention_amplification.amplified
    monkeypatch.setattr(
        attention_amplification, "amplified", lambda query, *rest: seen.append(query.shape[2]) or right(query, *rest)
    )
    model, pixels, image = make("llava")
    with pai(model, PAIConfig(start_layer=1)):
        say(model, **prompts("llava", pixels, image, 2), max_new_tokens=3)
    assert seen == [1, 1] * 3, "two layers, three tokens, and none in the pass without an image"


@pytest.mark.parametrize(
    "settings,problem",
    [
        ({"alpha": -0.1}, "alpha must be at least 0; got -0.1"),
        ({"gamma": 0.9}, "gamma must be at least 1; got 0.9"),
        ({"beta": 2}, "beta must be between 0 and 1; got 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        PAIConfig(**settings)


def test_layers_that_the_model_has_not_are_refused():
    model, _, _ = make("llava")
    with pytest.raises(ValueError, match="start_layer=3 and end_layer=None hold none of the model's 3 layers"):
        enable_pai(model, PAIConfig(start_layer=3))
    with pai(model, PAIConfig(start_layer=3, alpha=0.0)):
        pass


def test_a_command_line_says_it_in_words():
    assert PAIConfig.from_words(["alpha=0.5", "end_layer=20"]) == PAIConfig(alpha=0.5, end_layer=20)
    with pytest.raises(ValueError, match="'amplify=1' is none of alpha=…, gamma=…, beta=…, start_layer=…, end_layer=…"):
        PAIConfig.from_words(["amplify=1"])


def test_on_again_is_on_once_and_off_is_off():
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 1)
    with pai(model):
        expected, _ = say(model, **asked)
    enable_pai(model, PAIConfig(alpha=0.9))
    enable_pai(model, PAIConfig().to_dict())
    assert torch.equal(say(model, **asked)[0], expected)
    disable_pai(model)
    disable_pai(model)
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_it_is_not_put_on_top_of_another_method():
    model, _, _ = make("llava")
    with spin(model, SpinConfig()), pytest.raises(ValueError, match="attends by 'spin_attention_"):
        enable_pai(model)
    with vcd(model, VCDConfig()), pytest.raises(ValueError, match="DistortedPass is on already"):
        enable_pai(model)
    assert not model._forward_hooks and model.config.text_config._attn_implementation == "sdpa"
    with pai(model), pytest.raises(ValueError, match="attends by 'pai_attention_"):
        with spin(model, SpinConfig()):
            pass


def test_guidance_needs_to_know_where_the_image_is():
    model, pixels, image = make("llava")
    with pai(model), pytest.raises(ValueError, match="needs input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 64))


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_in_the_spin_vlm_it_is_cross_attention_to_the_image_part_of_the_memory(setting, cache, layers):
    model, process, config = make_spin(num_memory_layers=layers), make_spin_processor(), SETTINGS[setting]
    text = ["a <image> b <image> what colour", "<image> is it", "what colour is it"]
    images = [[picture(1), picture(2)], [picture(3)], []]
    how = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    batch = dict(process(text=text, images=images, **how))
    plain, _ = say(model, **batch)
    with pai(model, config):
        ours, tokens = say(model, **batch, use_cache=cache)
        beams = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
        together = model.generate(**batch, **beams)
        logits = model(**batch, decoder_input_ids=tokens[:, :-1]).logits
        assert_close(logits, ours, rtol=1e-4, atol=2e-3)
        for row in range(3):
            one = dict(process(text=text[row : row + 1], images=images[row : row + 1], **how))
            assert torch.equal(model.generate(**one, **beams)[0], together[row])
    for row in range(2):
        one = dict(process(text=text[row : row + 1], images=images[row : row + 1], **how))
        expected, said = Literal(model, config).say(one, 8)
        assert torch.equal(tokens[row, 1:], said[0])
        assert_same(ours[row : row + 1], expected)
        assert (ours - plain)[row][ours[row] > -5000].abs().max() > 1e-3
    assert_close(ours[2], plain[2], rtol=1e-6, atol=2e-6)
