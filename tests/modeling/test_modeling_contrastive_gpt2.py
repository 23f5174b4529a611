"""Contrastive GPT-2: the contract, and what is its own: two readings of a caption, one space, pictures shown several times over."""

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPImageProcessor

from modeling import ContrastiveGPT2Config, ContrastiveGPT2ForConditionalGeneration
from processing import ContrastiveGPT2Processor
from processing.chat_template import FLATTEN, PLAIN
from tests.conftest import TEXT, VISION, WORDS, make_tokenizer, picture
from tests.contract import ModelContract, logits_of_generation


PREFIX = 4


def make_contrastive_gpt2(
    vision: str = "clip", text: str = "gpt2", **config
) -> ContrastiveGPT2ForConditionalGeneration:
    """Tiny, random, wilder than a new one: flat attention would hide a wrong mask."""
    vocab = {"vocab_size": len(WORDS.split()), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(0)
    vocab |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if text == "gpt2" else {}
    settings = {"prefix_length": PREFIX, "embed_dim": 16, "image_token_id": 3} | config
    model = ContrastiveGPT2ForConditionalGeneration(
        ContrastiveGPT2Config(vision_config=VISION[vision], text_config=TEXT[text] | vocab, **settings)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def make_contrastive_processor() -> ContrastiveGPT2Processor:
    images = CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    template = FLATTEN.replace("IMAGE_TOKEN", "<image>") + PLAIN.replace("eos_token", "' ' + eos_token")
    return ContrastiveGPT2Processor(images, make_tokenizer(), PREFIX, 32, chat_template=template)


@pytest.fixture
def processor():
    return make_contrastive_processor()


@pytest.fixture
def model():
    return make_contrastive_gpt2()


class TestContrastiveGPT2(ModelContract):
    lora_targets = r".*language_model.*c_attn"
    bridges = ("mapper",)


class TestMLPMapperBeforeQwen(ModelContract):
    bridges = ("mapper",)
    reload_tolerance = 1e-5  # the mapper reads one vector: a product of one row

    @pytest.fixture
    def model(self):
        return make_contrastive_gpt2("siglip", "qwen2", mapper="mlp")


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_any_tower_joins_any_language_model(mapper, vision, text, processor):
    model = make_contrastive_gpt2(vision, text, mapper=mapper)
    inputs = processor(text=["a <image> b what", "<image> is it red"], images=[picture(1), picture(2)],
                       padding=True, padding_side="left", return_tensors="pt")  # fmt: skip
    cached, _ = logits_of_generation(model, inputs)
    plain, _ = logits_of_generation(model, inputs, use_cache=False)
    assert_close(cached, plain, rtol=1e-4, atol=1e-4)
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    read = {f"text_{name}": value for name, value in processor.encode_text(["what colour", "red"]).items()}
    out = model.train()(**inputs, **read, labels=labels)
    (out.loss + model.alignment_loss(out.image_embeds, out.text_embeds)).backward()
    core = model.model
    for part in (core.mapper, core.image_projection, core.text_projection, core.vision_tower):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0
    assert core.logit_scale.grad.abs() > 0


def test_nothing_of_the_picture_is_in_a_text_embedding(model, processor):
    read = {f"text_{name}": value for name, value in processor.encode_text(["what colour", "it is red"]).items()}
    prompts = ["<image> what colour", "<image> it is red"]
    seen = processor(text=prompts, images=[picture(1), picture(2)], padding=True, return_tensors="pt")
    other = dict(seen) | {"pixel_values": -seen["pixel_values"]}
    one, another = model(**seen, **read), model(**other, **read)
    assert_close(one.text_embeds, another.text_embeds, rtol=0, atol=0)
    assert (one.image_embeds - another.image_embeds).abs().max() > 1e-3
    pixels = torch.zeros(2, 3, 16, 16, requires_grad=True)
    texts = model(pixel_values=pixels, **read).text_embeds
    assert torch.autograd.grad(texts.sum(), pixels, allow_unused=True)[0] is None


def test_a_text_embedding_is_read_at_the_end_token_whatever_pads_it(model, processor):
    texts = ["what colour is it", "red", "it is red blue green"]
    together = processor.encode_text(texts)
    assert together["input_ids"][1].tolist() == [10, 1, 0, 0, 0, 0]  # red, its end, padding
    embedded = model.get_text_features(**together).pooler_output
    for row, text in enumerate(texts):
        alone = processor.encode_text([text])
        hidden = model.model.language_model(alone["input_ids"]).last_hidden_state[0, -1]
        expected = model.model.text_projection.linear(model.model.text_projection.norm(hidden))
        assert_close(embedded[row], expected / expected.norm(), rtol=1e-4, atol=1e-5)
    left = processor.tokenizer.pad(
        {"input_ids": [ids[mask.bool()].tolist() for ids, mask in zip(*together.values(), strict=True)]},
        padding_side="left", return_tensors="pt",
    )  # fmt: skip
    assert_close(model.get_text_features(**left).pooler_output, embedded, rtol=1e-4, atol=1e-5)


def test_a_caption_that_is_too_long_keeps_its_end(processor):
    ids = processor.encode_text(["a " * 50])["input_ids"]
    assert ids.shape == (1, 32) and ids[0, -1] == processor.tokenizer.eos_token_id


def test_pictures_shown_twice_over_are_encoded_once(model, processor):
    texts = ["<image> it is red", "<image> it is blue what", "<image> green", "<image> what colour is it"]
    pictures = [picture(1), picture(2)]
    twice = processor(text=texts, images=pictures * 2, padding=True, padding_side="right", return_tensors="pt")
    once = {name: value for name, value in twice.items() if name != "pixel_values"}
    labels = twice["input_ids"].masked_fill(twice["attention_mask"] == 0, -100)
    expected = model(**twice, labels=labels)
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(len(_[-1].last_hidden_state)))
    out = model(**once, pixel_values=twice["pixel_values"][:2], image_repeats=2, labels=labels)
    assert_close(out.logits, expected.logits)
    assert calls == [2]


def test_sequence_logps_are_the_rows_summed_log_probabilities(model, processor):
    inputs = processor(
        text=["<image> it is red", "<image> it is blue what colour"], images=[picture(1), picture(2)],
        padding=True, padding_side="right", return_tensors="pt",
    )  # fmt: skip
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, : PREFIX + 1] = -100
    out = model(**inputs, labels=labels)
    by_hand = []
    for row in range(2):
        logps = out.logits[row].log_softmax(-1)
        by_hand.append(sum(logps[t - 1, i] for t, i in enumerate(labels[row].tolist()) if i != -100))
    assert_close(out.sequence_logps, torch.stack(by_hand))
    count = (labels != -100).sum()
    assert_close(out.loss, -sum(by_hand) / count)
    assert_close(model.train()(**inputs, labels=labels).sequence_logps, torch.stack(by_hand))


def test_cached_features_stand_for_pixels(model, processor):
    inputs = processor(text=["<image> it is red"], images=[picture(1)], return_tensors="pt")
    pixels = inputs.pop("pixel_values")
    features = model.model.encode_patches(pixels)
    assert features.shape == (1, 17, 32) and model.model.patch_grid(pixels) == (1, 17)
    with_pixels = model(**inputs, pixel_values=pixels).logits
    assert_close(model(**inputs, vision_features=features[:, None]).logits, with_pixels)
    assert_close(
        model.get_image_features(vision_features=features).pooler_output, model.get_image_features(pixels).pooler_output
    )


def test_scores_are_cosines_of_every_picture_with_every_caption(model, processor):
    pixels = processor.image_processor([picture(1), picture(2)], return_tensors="pt")["pixel_values"]
    scores = model.score(pixels, **processor.encode_text(["red", "what colour", "it"]))
    assert scores.shape == (2, 3) and scores.abs().max() <= 1 + 1e-6
    one = model.get_text_features(**processor.encode_text(["what colour"])).pooler_output[0]
    assert_close(scores[1, 1], model.get_image_features(pixels).pooler_output[1] @ one)


def test_the_temperature_is_learned_and_clamped(model):
    cosines = torch.tensor([[0.5]])
    assert_close(model.logits(cosines), torch.tensor([[0.5 / 0.07]]), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        model.model.logit_scale.fill_(10.0)
    assert_close(model.logits(cosines), torch.tensor([[50.0]]))


def test_a_frozen_tower_gets_no_gradient_and_no_graph(model, processor):
    model.freeze_towers("vision")
    inputs = processor(text=["<image> it is red"], images=[picture(1)], return_tensors="pt")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is None for p in model.model.vision_tower.parameters())
    assert model.model.mapper.latents.grad.abs().sum() > 0
    model.freeze_towers()
    assert all(p.requires_grad for p in model.parameters())


def test_what_does_not_fit_is_said(model, processor):
    inputs = processor(text=["<image> it is red"], images=[picture(1)], return_tensors="pt")
    with pytest.raises(ValueError, match="the prompt holds 3 image tokens, the images yield 4"):
        model(inputs["input_ids"][:, 1:], inputs["pixel_values"])
    with pytest.raises(ValueError, match="mapper must be one of mlp, transformer; got 'linear'"):
        make_contrastive_gpt2(mapper="linear")
    with pytest.raises(ValueError, match="mapper_num_heads=3 does not divide the language model's width of 32"):
        make_contrastive_gpt2(mapper_num_heads=3)
    with pytest.raises(ValueError, match="takes no videos and no audio"):
        processor(text="a", videos=[1])
