"""
VCD against a literal implementation: each row alone, no cache, two forwards for a token, -inf for the implausible; on tiny models
of five families and the SPIN VLM.
"""

import copy
import math

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache

from modeling.attention_amplification import PAIConfig, pai
from modeling.contrastive_decoding import VCDConfig, disable_vcd, distort, enable_vcd, signal_left, vcd
from modeling.head_suppression import SpinConfig, spin
from modeling.second_pass import contrast
from tests.conftest import picture
from tests.modeling.families import ASKED, EVERY, alone, generated, longer, make, prompts
from tests.modeling.test_modeling_spin import make_spin, make_spin_processor


CONFIG = VCDConfig(alpha=1.0, beta=0.2, noise_step=999)


def say(model, **kwargs):
    """Logits (b, steps, vocab) and tokens of a generation that cannot say the image token."""
    return generated(model, **ASKED | {"suppress_tokens": [model.config.image_token_id]} | kwargs)


def published(clean, distorted, alpha, beta):
    """What vcd_sample.py does to the last row's logits."""
    cutoff = math.log(beta) + clean.max(dim=-1, keepdim=True).values
    return ((1 + alpha) * clean - alpha * distorted).masked_fill(clean < cutoff, -torch.inf)


def literal(model, one, steps, config=CONFIG, frames=1):
    """Logits (1, steps, vocab) and tokens said to one prompt."""
    across, said, logits = model.config.is_encoder_decoder, torch.zeros(1, 0, dtype=torch.long), []
    start = torch.full((1, 1), getattr(model.config, "decoder_start_token_id", None) or 0)
    noised = distort(one, config, frames)
    for _ in range(steps):
        passes = []
        for inputs in (one, noised):
            inputs = inputs | {"decoder_input_ids": torch.cat([start, said], 1)} if across else longer(inputs, said)
            passes.append(model(**inputs, use_cache=False).logits[:, -1])
        logits.append(published(*passes, config.alpha, config.beta))
        allowed = logits[-1].clone()
        allowed[:, model.config.image_token_id] = -torch.inf
        assert allowed.max() > -torch.inf, "this seed leaves nothing to say"
        said = torch.cat([said, allowed.argmax(-1, keepdim=True)], 1)
    return torch.stack(logits, 1), said


def assert_same(ours, expected, rtol=1e-5, atol=1e-5):
    plausible = expected.isfinite()
    assert 1 < plausible.sum() < plausible.numel(), "the cutoff is put to the test"
    assert_close(ours[plausible], expected[plausible], rtol=rtol, atol=atol)
    assert (ours[~plausible] < -5000).all()


def frames_of(family):
    return 2 if family == "qwen2_5_vl" else 1


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_it_is_the_published_rule(family, rows):
    model, pixels, image = make(family)
    asked = prompts(family, pixels, image, rows)
    plain, _ = say(model, **asked)
    with vcd(model, CONFIG):
        ours, tokens = say(model, **asked)
    for row in range(rows):
        expected, said = literal(model, alone(asked, row), 8, frames=frames_of(family))
        assert torch.equal(tokens[row, -8:], said[0])
        assert_same(ours[row : row + 1], expected)
    moved = (ours - plain)[ours > -5000].abs().max()
    assert moved > 1e-2, "it does something"
    after, _ = say(model, **asked)
    assert torch.equal(after, plain), "and is gone when it is over"


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("way", ["no cache", "static", "chunked", "assisted", "forward"])
@torch.no_grad()
def test_every_way_of_generating_agrees(family, way):
    model, pixels, image = make(family)
    asked = prompts(family, pixels, image, 1 if way == "assisted" else 2)
    with vcd(model, CONFIG):
        usual, tokens = say(model, **asked)
        if way == "forward":  # pixels given to the model itself
            for row in range(2):
                logits = model(**longer(alone(asked, row), tokens[row : row + 1, -8:-1])).logits[:, -8:]
                assert_close(logits, usual[row : row + 1], rtol=1e-4, atol=2e-3)
            return
        more = {
            "no cache": {"use_cache": False},
            "static": {"cache_implementation": "static", "disable_compile": True},
            "chunked": {"prefill_chunk_size": 3},
            "assisted": {"prompt_lookup_num_tokens": 2},
        }[way]
        if way == "assisted":
            out = model.generate(
                **asked, **(ASKED | {"output_logits": False, "suppress_tokens": [model.config.image_token_id]}), **more
            )
            assert torch.equal(out.sequences[0, : tokens.shape[1]], tokens[0])
            return
        logits, other = say(model, **asked, **more)
    assert torch.equal(other, tokens)
    assert_close(logits, usual, rtol=1e-4, atol=2e-3)  # float32 of the implausible, at -10,000, is as coarse as that


@pytest.mark.parametrize("family", EVERY)
def test_beams_take_their_second_cache_with_them(family):
    model, pixels, image = make(family)
    asked = prompts(family, pixels, image, 3)
    how = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "suppress_tokens": [model.config.image_token_id]}
    how |= {"return_dict_in_generate": True, "output_scores": True}
    config = VCDConfig(beta=0.0)  # no cutoff, so that beams have somewhere to go
    with vcd(model, config):
        together = model.generate(**asked, **how)
        anew = model.generate(**asked, **how, use_cache=False)
        assert (together.beam_indices.sort(1).values != together.beam_indices).any(), "beams change places"
        assert torch.equal(together.sequences, anew.sequences)
        assert_close(together.sequences_scores, anew.sequences_scores, rtol=1e-5, atol=1e-5)
        for row in range(3):
            assert torch.equal(
                model.generate(**alone(asked, row), **how).sequences[0, -6:], together.sequences[row, -6:]
            )


@pytest.mark.parametrize(
    "method", [lambda model: vcd(model, CONFIG), lambda model: pai(model, PAIConfig(start_layer=1))], ids=["vcd", "pai"]
)
def test_windows_of_attention_and_masks_by_kind_of_layer_change_nothing(method):
    """Gemma 3's."""
    model, pixels, image = make("gemma3")
    asked = prompts("gemma3", pixels, image, 2)
    never = {"suppress_tokens": [model.config.image_token_id]}
    with method(model):
        usual, tokens = say(model, **asked)
        for more in ({"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
            logits, other = say(model, **asked, **more)
            assert torch.equal(other, tokens)
            assert_close(logits, usual, rtol=1e-4, atol=2e-3)
        one = alone(asked, 0)
        out = model.generate(**one, **(ASKED | never | {"output_logits": False}), prompt_lookup_num_tokens=2)
        assert torch.equal(out.sequences[0, : tokens.shape[1]], tokens[0])


def test_sampling_draws_from_the_contrasted_distribution_and_repeats():
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 1)
    how = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "num_return_sequences": 400}
    with vcd(model, CONFIG):
        logits, _ = say(model, **asked, max_new_tokens=1)
        torch.manual_seed(1)
        said = model.generate(**asked, **how)[:, -1]
        torch.manual_seed(1)
        assert torch.equal(model.generate(**asked, **how)[:, -1], said)
    drawn = said.bincount(minlength=200) / 400
    assert_close(drawn, logits[0, 0].softmax(-1), rtol=0, atol=0.08)
    assert set(said.tolist()) <= set((logits[0, 0] > -5000).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("family", EVERY)
def test_alpha_zero_is_bit_equal_to_plain(family):
    model, pixels, image = make(family)
    asked = prompts(family, pixels, image, 3)
    plain, _ = say(model, **asked)
    with vcd(model, VCDConfig(alpha=0.0)):
        ours, _ = say(model, **asked)
    assert torch.equal(ours, plain)


def test_a_prompt_without_an_image_is_left_alone():
    """Also beside one with an image."""
    model, pixels, image = make("llava")
    ids = torch.tensor([[1, 5, 6, *image, 7], [0] * len(image) + [1, 5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), **pixels(1)}
    plain, _ = say(model, **batch)
    with vcd(model, CONFIG):
        ours, _ = say(model, **batch)
        text, _ = say(model, input_ids=ids[1:, -4:])
    assert torch.equal(ours[1], plain[1]) and not torch.equal(ours[0], plain[0])
    assert torch.equal(text, say(model, input_ids=ids[1:, -4:])[0])


def test_a_second_turn_goes_on_from_both_caches():
    model, pixels, image = make("ossight")
    one = prompts("ossight", pixels, image, 1)
    how = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with vcd(model, CONFIG):
        first = model.generate(**one, **how)
        ids = torch.cat([first.sequences, torch.tensor([[9, 10]])], 1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        cached = torch.stack(model.generate(**turn, past_key_values=copy.deepcopy(first.past_key_values), **how).logits)
        anew = torch.stack(model.generate(**turn, pixel_values=one["pixel_values"], **how).logits)
    assert_close(cached, anew, rtol=1e-4, atol=2e-3)


@torch.no_grad()
def test_a_cache_filled_without_it_is_refused():
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 1)
    cache = DynamicCache(config=model.config.text_config)
    model(**asked, past_key_values=cache)
    with vcd(model, CONFIG), pytest.raises(ValueError, match=f"cache holds {asked['input_ids'].shape[1]} tokens"):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    with vcd(model, CONFIG):
        cache = model(**asked).past_key_values
    other = VCDConfig(noise_step=999, seed=1)
    with vcd(model, other), pytest.raises(ValueError, match="had no second pass like this"):
        model(input_ids=torch.tensor([[5]]), past_key_values=copy.deepcopy(cache))
    with vcd(model, CONFIG):
        model(input_ids=torch.tensor([[5]]), past_key_values=copy.deepcopy(cache))
    model(input_ids=torch.tensor([[5]]), past_key_values=cache)  # of which the second pass knows nothing
    with vcd(model, CONFIG), pytest.raises(ValueError, match="had no second pass like this"):
        model(input_ids=torch.tensor([[6]]), past_key_values=cache)


def test_contrast_by_hand():
    first, second = torch.tensor([[2.0, 1.0, 0.0, -3.0]]), torch.tensor([[1.0, 3.0, 0.0, 9.0]])
    # e**-2 = 0.135 and e**-5 = 0.0067 of the likeliest
    assert_close(contrast(first, second, 0.5, 0.1), torch.tensor([[2.5, 0.0, 0.0, -10003.0]]))
    assert_close(contrast(first, second, 0.5, 0.0), torch.tensor([[2.5, 0.0, 0.0, -9.0]]))
    assert contrast(first.half(), second.half(), 1.0, 0.1).dtype == torch.float32


def test_where_every_plausible_token_is_forbidden_the_models_own_next_best_is_said():
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 1)
    plain, _ = say(model, **asked)
    order = plain[0, 0].argsort(descending=True)
    with vcd(model, VCDConfig(beta=1.0)):  # only the likeliest is plausible
        said = model.generate(**asked, max_new_tokens=1, do_sample=False, suppress_tokens=order[:1].tolist())
        torch.manual_seed(0)
        model.generate(**asked, max_new_tokens=1, do_sample=True, suppress_tokens=order[:1].tolist())
    assert said[0, -1] == order[1]


def test_the_noise_is_the_published_forward_process():
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5
    left = torch.cumprod(1 - betas, dim=0)
    assert signal_left(500) == pytest.approx(float(left[500]), rel=1e-4)
    pixels = torch.randn(1, 3, 64, 64)
    noised = distort({"pixel_values": pixels}, VCDConfig(noise_step=500))["pixel_values"]
    noise = (noised - left[500].sqrt() * pixels) / (1 - left[500]).sqrt()
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert abs((noise * pixels).mean()) < 0.03, "noise knows nothing of the picture"


def test_a_picture_has_its_noise_whatever_stands_beside_it():
    one, other, nothing = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    noised = distort({"pixel_values": torch.cat([one, other, nothing, one])}, CONFIG)["pixel_values"]
    assert_close(noised[:1], distort({"pixel_values": one}, CONFIG)["pixel_values"], rtol=0, atol=0)
    assert torch.equal(noised[0], noised[3])
    assert torch.equal(noised[2:3], nothing), "padding stays padding"
    noise = noised[:2] - signal_left(999) ** 0.5 * torch.cat([one, other])
    assert abs(torch.corrcoef(noise.flatten(1))[0, 1]) < 0.3
    again = distort({"pixel_values": one}, VCDConfig(noise_step=999, seed=1))["pixel_values"]
    assert not torch.equal(again, noised[:1])


def test_patches_in_a_row_are_pictures_too():
    """Qwen's, of which a still picture's frames are noised alike, and NaFlex's, padded."""
    grid, still = torch.tensor([[1, 2, 4], [1, 4, 4]]), torch.randn(24, 3, 1, 14 * 14).expand(-1, -1, 2, -1)
    both = distort({"pixel_values": still.reshape(24, -1), "image_grid_thw": grid}, CONFIG, 2)["pixel_values"]
    frames = both.unflatten(1, (3, 2, -1))
    assert torch.equal(frames[:, :, 0], frames[:, :, 1]) and not torch.equal(frames, still)
    second = {"pixel_values": still[8:].reshape(16, -1), "image_grid_thw": grid[1:]}
    assert torch.equal(distort(second, CONFIG, 2)["pixel_values"], both[8:])
    pixels = torch.randn(1, 6, 12)
    wide = torch.cat([pixels, torch.zeros(1, 3, 12)], 1)
    noised = distort({"pixel_values": wide, "spatial_shapes": torch.tensor([[2, 3]])}, CONFIG)["pixel_values"]
    alike = distort({"pixel_values": pixels, "spatial_shapes": torch.tensor([[2, 3]])}, CONFIG)["pixel_values"]
    assert torch.equal(noised[:, :6], alike) and torch.equal(noised[:, 6:], wide[:, 6:])


def test_pictures_that_are_not_pixels_are_refused():
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 1)
    encoded = model.model.get_image_features(asked["pixel_values"], return_dict=True)
    with vcd(model, CONFIG), pytest.raises(ValueError, match="encoded before VCD was on"):
        model(input_ids=asked["input_ids"], mm_encoder_outputs={"image": encoded})
    with vcd(model, CONFIG):
        assert say(model, **asked)[0].shape == (1, 8, 200), "and the model is as it was"
    with vcd(model, CONFIG), pytest.raises(ValueError, match="inputs_embeds are none"):
        model(inputs_embeds=torch.zeros(1, 3, 64))
    for name in ("vision_features", "pixel_values_videos"):
        with pytest.raises(ValueError, match=f"{name} are none"):
            distort({name: torch.zeros(2)}, CONFIG)
    with pytest.raises(ValueError, match=r"pixel_values \(2, 3\) ends cannot be known"):
        distort({"pixel_values": torch.ones(2, 3)}, CONFIG)


@pytest.mark.parametrize(
    "settings,problem",
    [
        ({"alpha": -1}, "alpha must be at least 0; got -1"),
        ({"beta": 1.5}, "beta must be between 0 and 1; got 1.5"),
        ({"noise_step": 1000}, "noise_step must be between 0 and 999; got 1000"),
    ],
)
def test_settings_out_of_range_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        VCDConfig(**settings)


def test_a_command_line_says_it_in_words():
    assert VCDConfig.from_words(["alpha=0.5", "noise_step=999"]) == VCDConfig(alpha=0.5, noise_step=999)
    assert VCDConfig(**VCDConfig(seed=3).to_dict()) == VCDConfig(seed=3)
    with pytest.raises(ValueError, match="'gamma=1' is none of alpha=…, beta=…, noise_step=…, seed=…"):
        VCDConfig.from_words(["gamma=1"])
    with pytest.raises(ValueError, match="'noise_step=many': noise_step wants a value of type int"):
        VCDConfig.from_words(["noise_step=many"])


def test_on_again_is_on_once_and_off_is_off():
    model, pixels, image = make("llava")
    asked = prompts("llava", pixels, image, 1)
    with vcd(model, CONFIG):
        expected, _ = say(model, **asked)
    enable_vcd(model)
    enable_vcd(model, CONFIG.to_dict())
    assert torch.equal(say(model, **asked)[0], expected)
    disable_vcd(model)
    disable_vcd(model)
    assert "get_image_features" not in vars(model.model) and not model._forward_hooks and not model._forward_pre_hooks
    with vcd(model, CONFIG), pytest.raises(ValueError, match="DistortedPass is on already"):
        with pai(model, PAIConfig()):
            pass
    assert not model._forward_hooks and model.config.text_config._attn_implementation == "sdpa"


@torch.no_grad()
def test_beside_head_suppression_the_distorted_picture_is_seen_plainly():
    model, pixels, image = make("llava")
    one = prompts("llava", pixels, image, 1)
    heads = SpinConfig(keep_ratio=0.5)
    distorted = model(**distort(one, CONFIG)).logits[:, -1]
    with spin(model, heads):
        suppressed = model(**one, logits_to_keep=1).logits[:, -1]
        with vcd(model, CONFIG):
            ours = model(**one, logits_to_keep=1).logits[:, -1]
    assert_same(ours, published(suppressed, distorted, CONFIG.alpha, CONFIG.beta))


class TestSpinVLM:
    """Its pixels are seen by an encoder, once."""

    def asked(self, rows=3):
        text = ["a <image> b <image> what colour", "<image> is it", "what colour is it"][:rows]
        images = [[picture(1), picture(2)], [picture(3)], []][:rows]
        how = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        process = make_spin_processor()
        batch = dict(process(text=text, images=images, **how))
        return batch, [dict(process(text=[t], images=[i], **how)) for t, i in zip(text, images, strict=True)]

    @pytest.mark.parametrize("layers", [0, 2])
    @pytest.mark.parametrize("cache", [True, False])
    @torch.no_grad()
    def test_it_is_the_published_rule(self, cache, layers):
        model = make_spin(num_memory_layers=layers)
        batch, rows = self.asked()
        plain, _ = say(model, **batch)
        with vcd(model, CONFIG):
            ours, tokens = say(model, **batch, use_cache=cache)
        for row in range(2):
            expected, said = literal(model, rows[row], 8)
            assert torch.equal(tokens[row, 1:], said[0])
            assert_same(ours[row : row + 1], expected)
        assert_close(ours[2], plain[2], rtol=1e-6, atol=1e-6)
        assert torch.equal(say(model, **batch)[0], plain)

    @torch.no_grad()
    def test_a_forward_of_its_own_agrees(self):
        model = make_spin()
        batch, _ = self.asked()
        with vcd(model, CONFIG):
            usual, tokens = say(model, **batch)
            logits = model(**batch, decoder_input_ids=tokens[:, :-1]).logits
        assert_close(logits, usual, rtol=1e-4, atol=2e-3)

    def test_the_distorted_picture_is_encoded_once(self):
        model, seen = make_spin(), []
        batch, _ = self.asked()
        model.model.encoder.vision_tower.register_forward_hook(lambda *_: seen.append(1))
        with vcd(model, CONFIG):
            model.generate(**batch, max_new_tokens=5)
            assert len(seen) == 2
            model(**batch)
            assert len(seen) == 4

    def test_beams_take_their_second_cache_and_memory_with_them(self):
        model = make_spin()
        batch, rows = self.asked(2)
        how = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
        with vcd(model, VCDConfig(beta=0.0)):
            together = model.generate(**batch, **how)
            assert torch.equal(model.generate(**batch, **how, use_cache=False), together)
            for row, one in enumerate(rows):
                assert torch.equal(model.generate(**one, **how)[0], together[row])

    def test_a_memory_that_was_encoded_before_is_refused(self):
        model = make_spin()
        batch, _ = self.asked(1)
        memory = model.model.encoder(**batch)
        with vcd(model, CONFIG), pytest.raises(ValueError, match="memory was encoded before"):
            model(encoder_outputs=memory)
