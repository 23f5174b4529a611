"""OSSight: the contract, every tower with every language model, and what is its own: fusion, alignment, placeholders."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, pipeline

from modeling import OSSightConfig, OSSightForConditionalGeneration
from modeling.bridges import pixel_shuffle
from modeling.fusion import GatedCrossAttention
from modeling.modeling_ossight import alignment_loss
from tests.conftest import TEXT, VISION, make_ossight, picture
from tests.contract import ModelContract, logits_of_generation


class TestOSSight(ModelContract):
    pass


class TestOSSightWithoutFusion(ModelContract):
    @pytest.fixture
    def model(self):
        return make_ossight(fusion="none")


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("vision", VISION)
def test_any_tower_joins_any_language_model(vision, text, processor):
    model = make_ossight(vision, text)
    token = processor.image_token
    inputs = processor(
        text=[f"a {token} b {token} what", "what colour is it"], images=[[picture(1), picture(2)], []],
        padding=True, padding_side="left", return_tensors="pt",
    )  # fmt: skip
    cached, _ = logits_of_generation(model, inputs)
    plain, _ = logits_of_generation(model, inputs, use_cache=False)
    assert_close(cached, plain, rtol=1e-4, atol=1e-4)
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    model.train()(**inputs, labels=labels).loss.backward()
    assert model.model.adapter.linear_1.weight.grad.abs().sum() > 0
    assert model.model.fusion.gate.grad.abs().sum() > 0


def test_an_earlier_hidden_layer_can_be_what_is_seen(processor):
    inputs = processor(text=["a <image> b"], images=[picture()], return_tensors="pt")
    last, first = make_ossight(), make_ossight(vision_feature_layer=-2)
    assert not torch.allclose(last(**inputs).logits, first(**inputs).logits)


def test_naflex_pictures_of_different_shapes_bring_their_own_number_of_tokens():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {
        "model_type": "siglip2_vision_model",
        "patch_size": 4,
        "num_patches": 16,
        "vision_use_head": False,
        **small,
    }
    config = OSSightConfig(vision_config=vision, text_config={**TEXT["qwen2"], "vocab_size": 20}, image_token_id=3)
    model = OSSightForConditionalGeneration(config).eval()
    shapes = torch.tensor([[2, 3], [4, 4]])
    mask = torch.arange(16)[None] < shapes.prod(-1, keepdim=True)
    seen = {"pixel_values": torch.randn(2, 16, 48), "pixel_attention_mask": mask.long(), "spatial_shapes": shapes}
    ids = torch.tensor([[5] + [3] * 6 + [6] + [3] * 16 + [7]])
    assert model(ids, **seen).logits.shape == (1, 25, 20)
    with pytest.raises(ValueError, match="the prompt holds 21 image tokens, the images yield 22"):
        model(ids[:, 2:], **seen)


def test_pixel_shuffle_lays_neighbouring_patches_side_by_side():
    patches = torch.arange(16.0).view(1, 16, 1)  # 4 x 4, numbered in reading order
    blocks = pixel_shuffle(patches, 4, 4, 2)
    assert blocks.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    assert torch.equal(pixel_shuffle(patches, 4, 4, 1), patches)
    with pytest.raises(ValueError, match="pixel_shuffle=3 does not divide the 4 x 4 patches"):
        pixel_shuffle(patches, 4, 4, 3)


def test_blocks_become_the_tokens_the_processor_counts(processor):
    model = make_ossight(pixel_shuffle=2, tokens_per_block=3)
    processor.pixel_shuffle, processor.tokens_per_block = 2, 3
    inputs = processor(text=["a <image> b <image>"], images=[picture(1), picture(2)], return_tensors="pt")
    assert (inputs["input_ids"] == 3).sum() == 2 * 4 * 3
    assert torch.isfinite(model(**inputs).logits).all()
    assert processor._get_num_multimodal_tokens([(50, 70)])["num_image_tokens"] == [12]
    cached, _ = logits_of_generation(model, inputs)
    plain, _ = logits_of_generation(model, inputs, use_cache=False)
    assert_close(cached, plain, rtol=1e-4, atol=1e-4)


def test_before_training_it_speaks_as_its_language_model_does(processor, tmp_path):
    """The gate starts closed: without an image the logits are the language model's own, whatever came before."""
    model = make_ossight()
    torch.nn.init.zeros_(model.model.fusion.gate)
    ids = torch.tensor([[4, 6, 7, 8, 9]])
    alone = model.lm_head(model.model.language_model(ids).last_hidden_state)
    assert_close(model(ids).logits, alone, rtol=0, atol=0)


def test_a_trained_gate_changes_nothing_where_there_is_no_image():
    model = make_ossight()
    ids = torch.tensor([[4, 6, 7, 8, 9]])
    alone = model.lm_head(model.model.language_model(ids).last_hidden_state)
    assert_close(model(ids).logits, alone, rtol=0, atol=0)


def test_text_sees_earlier_images_only(processor):
    """Changing the second picture leaves every position before it as it was."""
    model = make_ossight()
    text = ["a b <image> c d <image> e f"]
    one = processor(text=text, images=[picture(1), picture(2)], return_tensors="pt")
    two = processor(text=text, images=[picture(1), picture(9)], return_tensors="pt")
    second = (one["input_ids"][0] == 3).nonzero()[16].item()
    before, after = model(**one).logits, model(**two).logits
    assert_close(before[:, :second], after[:, :second], rtol=0, atol=1e-6)
    assert (before[:, -1] - after[:, -1]).abs().max() > 1e-3


def test_fusion_looks_where_the_mask_allows_and_adds_nothing_to_the_blind():
    fusion = GatedCrossAttention(dim=4, num_heads=2)
    fusion.init_weights()
    text, visual = torch.randn(1, 3, 4), torch.randn(1, 2, 4)
    mask = torch.tensor([[[False, False], [True, False], [True, True]]])
    assert not fusion(text, visual, mask).any()  # closed
    with torch.no_grad():
        fusion.gate.fill_(0.5)
    update = fusion(text, visual, mask)
    assert not update[0, 0].any()
    # the second token sees one visual token: attention is 1, so the update is that token's value, gated
    value = fusion.o_proj(fusion.v_proj(fusion.visual_norm(visual[:, :1])))
    assert_close(update[0, 1], math.tanh(0.5) * value[0, 0])
    with pytest.raises(ValueError, match="fusion_num_heads=3 does not divide the language model's width 4"):
        GatedCrossAttention(dim=4, num_heads=3)


def test_the_alignment_loss_is_one_minus_the_cosine_of_the_means():
    visual = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[3.0, 4.0], [9.0, 9.0]]])
    visual_mask = torch.tensor([[True, True], [True, False]])
    words = torch.tensor([[[2.0, 0.0], [5.0, 5.0]], [[3.0, 4.0], [-6.0, -8.0]]])
    labelled = torch.tensor([[True, False], [False, True]])
    # row 0: (.5, .5) and (2, 0): cosine 1/sqrt(2); row 1: (3, 4) and (-6, -8): cosine -1
    assert_close(alignment_loss(visual, visual_mask, words, labelled), torch.tensor([1 - 1 / math.sqrt(2), 2.0]))
    none = torch.zeros_like(labelled)
    assert_close(alignment_loss(visual, visual_mask, words, none), torch.zeros(2))


def test_the_loss_is_the_captions_cross_entropy_plus_alpha_times_the_alignment(processor):
    model = make_ossight(alpha_align=0.25)
    inputs = processor(text=["<image> is it red blue"], images=[picture()], return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    out = model(**inputs, labels=labels)
    logprobs = out.logits[0, -3:-1].log_softmax(-1)
    by_hand = -(logprobs[0, labels[0, -2]] + logprobs[1, labels[0, -1]]) / 2
    assert_close(out.caption_loss, by_hand)
    states, words = out.image_hidden_states.mean(0), model.get_input_embeddings()(labels[0, -2:]).mean(0)
    assert_close(out.align_loss, 1 - torch.cosine_similarity(states, words, dim=0))
    assert_close(out.loss, out.caption_loss + 0.25 * out.align_loss)


def test_adapter_and_fusion_stay_float32_through_casts_and_autocast(processor):
    model = make_ossight().to(torch.bfloat16)
    assert {p.dtype for m in (model.model.adapter, model.model.fusion) for p in m.parameters()} == {torch.float32}
    assert model.model.language_model.dtype == model.model.vision_tower.dtype == torch.bfloat16
    inputs = processor(text=["a <image> b"], images=[picture()], return_tensors="pt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = model.get_image_features(inputs["pixel_values"]).pooler_output
    assert tokens[0].dtype == torch.float32
    assert model(**inputs).logits.dtype == torch.bfloat16


def test_a_frozen_model_trains_adapter_and_fusion_only(processor):
    model = make_ossight()
    model.freeze_towers()
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"adapter", "fusion"}


def test_placeholders_and_features_that_do_not_match_are_both_counted(processor):
    model = make_ossight()
    inputs = processor(text=["a <image> b"], images=[picture()], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="the prompt holds 16 image tokens, the images yield 32"):
        model(**inputs)


def test_what_it_cannot_honour_is_refused_by_name():
    with pytest.raises(ValueError, match="final_logit_softcapping=30"):
        OSSightConfig(
            vision_config=VISION["siglip"], text_config={"model_type": "gemma2", "final_logit_softcapping": 30.0}
        )
    with pytest.raises(ValueError, match="no patch_size"):
        OSSightConfig(vision_config={"model_type": "resnet"}, text_config=TEXT["qwen2"])
    with pytest.raises(ValueError, match="'gated'"):
        OSSightConfig(fusion="gated", vision_config=VISION["siglip"], text_config=TEXT["qwen2"])
    model = make_ossight()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="images need input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 32), pixel_values=torch.zeros(1, 3, 16, 16))


def test_from_towers_joins_saved_towers_and_keeps_their_weights(tmp_path):
    source = make_ossight("siglip", "qwen2")
    source.model.vision_tower.save_pretrained(tmp_path / "eyes")
    writer = AutoModelForCausalLM.from_config(source.config.text_config)
    writer.save_pretrained(tmp_path / "mouth")
    model = OSSightForConditionalGeneration.from_towers(
        str(tmp_path / "eyes"), str(tmp_path / "mouth"), image_token_id=3
    )
    ids = torch.tensor([[4, 6, 7]])
    assert_close(model(ids).logits, writer.eval()(ids).logits, rtol=0, atol=0)
    assert_close(model.model.vision_tower.state_dict(), source.model.vision_tower.state_dict())
    assert model.config.vision_config._name_or_path == str(tmp_path / "eyes")


def test_it_works_in_the_pipeline(tiny_folder):
    describe = pipeline("image-text-to-text", model=str(tiny_folder), trust_remote_code=True)
    asked = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "what colour"}]}
    ]
    answer = describe(text=asked, max_new_tokens=3, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)
