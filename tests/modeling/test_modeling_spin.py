"""The SPIN VLM: the contract, and what is its own: a memory that is read once, timm's towers, tokenizers, the template."""

import json

import pytest
import timm
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import BitsAndBytesConfig, PreTrainedTokenizerFast, ViTImageProcessor

from modeling import SpinVLMConfig, SpinVLMForConditionalGeneration
from modeling.head_suppression import SpinConfig, spin
from modeling.modeling_spin import timm_id
from processing import SpinVLMProcessor
from processing.caption_tokenizer import import_vocabulary, prepare_tokenizer, train_tokenizer
from tests.conftest import VISION, WORDS, make_tokenizer, picture
from tests.contract import ModelContract, logits_of_generation


TIMM = {
    "model_type": "timm_wrapper",
    "architecture": "vit_tiny_patch16_224",
    "do_pooling": False,
    "model_args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
}
TOKENS = 17  # 4 x 4 patches and a class token


def make_spin(vision: dict = TIMM, **config) -> SpinVLMForConditionalGeneration:
    """A tiny SPIN VLM with random weights, wilder than new ones: flat attention would hide a wrong mask."""
    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "dropout": 0.0,
    }
    tokens = {
        "vocab_size": len(WORDS.split()),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    settings = {"vision_config": vision, "image_token_id": 3, "max_position_embeddings": 128, **size, **tokens}
    settings |= {"image_seq_length": TOKENS if vision is TIMM else 16} | config
    model = SpinVLMForConditionalGeneration(SpinVLMConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.generation_config.eos_token_id = None
    return model.eval()


def make_spin_processor(tokens: int = TOKENS) -> SpinVLMProcessor:
    return SpinVLMProcessor(ViTImageProcessor(size={"height": 16, "width": 16}), make_tokenizer(), tokens)


@pytest.fixture
def model() -> SpinVLMForConditionalGeneration:
    return make_spin()


@pytest.fixture
def processor() -> SpinVLMProcessor:
    return make_spin_processor()


class TestSpinVLM(ModelContract):
    lora_targets = r".*decoder.*(q_proj|v_proj)"
    bridges = ("image_projection",)
    reload_tolerance = 1e-6
    # a question is not continued: it is a memory, and its answer starts anew
    test_a_prompt_read_in_chunks_is_the_prompt = None
    test_a_second_turn_goes_on_from_the_first_ones_cache = None

    def labels(self, inputs):
        answers = torch.tensor([[5, 6, 7, 8, 1], [9, 10, 1, -100, -100], [11, 1, -100, -100, -100]])
        return answers[: len(inputs["input_ids"])]

    def test_generation_returns_the_prompt_and_what_follows(self, model, inputs):
        tokens = model.generate(**inputs, max_new_tokens=2)
        assert tokens.shape == (3, 3) and (tokens[:, 0] == model.config.decoder_start_token_id).all()

    def test_the_beam_score_equals_the_teacher_forced_score(self, model, inputs):
        out = model.generate(
            **inputs, max_new_tokens=5, num_beams=3, do_sample=False, length_penalty=0.0, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        logits = model(**inputs, decoder_input_ids=out.sequences[:, :-1]).logits
        logits[..., model.config.image_token_id] = -torch.inf
        words = out.sequences[:, 1:, None]
        scores = model(**inputs, decoder_input_ids=out.sequences[:, :-1]).logits.log_softmax(-1).gather(-1, words)
        assert_close(out.sequences_scores, scores.squeeze(-1).sum(-1), rtol=1e-4, atol=1e-4)

    def test_the_loss_is_the_same_with_logits_at_labels_only(self, model, inputs):
        labels = self.labels(inputs)
        labels[1] = -100
        full = model.eval()(**inputs, labels=labels)
        sparse = model.train()(**inputs, labels=labels)
        assert sparse.logits.shape[0] == (labels != -100).sum()
        assert_close(full.loss, sparse.loss)

    def test_four_bit_loading_reaches_the_language_model_only(self, model, inputs, tmp_path):
        """Here: it answers alike cached and not; the vision tower keeps its weights when it is asked to."""
        model.save_pretrained(tmp_path)
        config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["vision_tower", "lm_head"])
        packed = type(model).from_pretrained(tmp_path, quantization_config=config).eval()
        reached = {name for name, weight in packed.named_parameters() if weight.dtype == torch.uint8}
        assert any("decoder.layers" in name for name in reached)
        cached, _ = logits_of_generation(packed, inputs, use_cache=True)
        uncached, _ = logits_of_generation(packed, inputs, use_cache=False)
        assert_close(cached, uncached, rtol=1e-3, atol=1e-3)


class TestSpinVLMBeforeAnotherTower(TestSpinVLM):
    """SigLIP's patches instead of timm's."""

    @pytest.fixture
    def model(self):
        return make_spin(VISION["siglip"])

    @pytest.fixture
    def processor(self):
        return make_spin_processor(16)


class TestSpinVLMWithMemoryLayers(TestSpinVLM):
    """Words and patches have met before the decoder sees them."""

    @pytest.fixture
    def model(self):
        return make_spin(num_memory_layers=2)


def test_words_and_patches_meet_in_the_memory(processor):
    """The memory of a question's first word changes with the picture and with what is asked later; without layers it does not."""
    for layers in (0, 1):
        model = make_spin(num_memory_layers=layers)
        memories = []
        for text, image in (("what <image> is it", 1), ("what <image> is it", 2), ("what <image> is a", 1)):
            inputs = processor(text=[text], images=[picture(image)], return_tensors="pt")
            memories.append(model.model.encoder(inputs["input_ids"], pixel_values=inputs["pixel_values"])[0][0, 0])
        for other in memories[1:]:
            assert ((other - memories[0]).abs().max() > 1e-3) == (layers > 0)


def test_the_loss_by_hand(model, processor):
    inputs = processor(text=["<image> is it"], images=[picture(1)], return_tensors="pt")
    labels = torch.tensor([[5, 6, 1, -100]])
    told = torch.tensor([[2, 5, 6, 1]])
    logprobs = model(**inputs, decoder_input_ids=told).logits.log_softmax(-1)[0]
    expected = -(logprobs[0, 5] + logprobs[1, 6] + logprobs[2, 1])
    assert_close(model(**inputs, labels=labels).loss, expected / 3)
    assert_close(model(**inputs, labels=labels, num_items_in_batch=7).loss, expected / 7)


def test_memory_and_its_keys_are_computed_once_and_a_step_is_one_token(model, processor):
    """What a step computes besides attention is the same for a memory of one picture and of three."""
    counts, seen = {}, []

    def count(name):
        return lambda module, args, out: counts.update({name: counts.get(name, 0) + args[0].shape[1]})

    layer = model.model.decoder.layers[1]
    layer.cross_attn.k_proj.register_forward_hook(count("memory keys"))
    layer.mlp.fc1.register_forward_hook(count("tokens"))
    model.model.encoder.register_forward_hook(lambda *_: seen.append(1))
    for images in (1, 3):
        counts.clear(), seen.clear()
        text = ["<image> " * images + "is it"]
        inputs = processor(text=text, images=[[picture(i) for i in range(images)]], return_tensors="pt")
        model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert counts == {"memory keys": inputs["input_ids"].shape[1], "tokens": 6}
        assert len(seen) == 1


def test_a_picture_stands_in_the_memory_where_its_placeholder_stands(model, processor):
    """Two pictures exchanged are another memory; so are their words' places."""
    both = [picture(1), picture(2)]
    ask = {"text": ["a <image> b <image> c"], "return_tensors": "pt"}
    one, other = (processor(images=[some], **ask) for some in (both, both[::-1]))
    assert (model(**one).logits - model(**other).logits).abs().max() > 1e-3
    mask = model.model.encoder(one["input_ids"], pixel_values=one["pixel_values"]).image_mask[0]
    assert mask.tolist() == [False] + [True] * TOKENS + [False] + [True] * TOKENS + [False]


def test_cached_vision_features_stand_for_pixels(model, processor):
    inputs = processor(text=["<image> is it"], images=[picture(1)], return_tensors="pt")
    features = model.model.encoder.encode_patches(inputs["pixel_values"]).unflatten(1, (1, -1))
    expected = model(**inputs).logits
    del inputs["pixel_values"]
    assert_close(model(**inputs, vision_features=features).logits, expected, rtol=0, atol=0)


def test_left_padding_of_an_answer_so_far_changes_nothing(model, processor):
    inputs = processor(text=["<image> is it"], images=[picture(1)], return_tensors="pt")
    alone = model(**inputs, decoder_input_ids=torch.tensor([[2, 5, 6]])).logits[:, -1]
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    padded = model(**inputs, decoder_input_ids=torch.tensor([[0, 0, 2, 5, 6]]), decoder_attention_mask=mask)
    assert_close(padded.logits[:, -1], alone, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused(model, processor):
    inputs = processor(text=["<image> is it"], images=[picture(1)], return_tensors="pt")
    with pytest.raises(ValueError, match="holds 16 image tokens, the images yield 17"):
        model(inputs["input_ids"][:, 1:], pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="question are 129 tokens; max_position_embeddings is 128"):
        model(torch.full((1, 129), 5))
    with pytest.raises(ValueError, match="an answer of 129 tokens; max_position_embeddings is 128"):
        model(inputs["input_ids"], pixel_values=inputs["pixel_values"], decoder_input_ids=torch.full((1, 129), 5))
    with pytest.raises(ValueError, match="num_attention_heads=5 does not divide hidden_size=32"):
        make_spin(num_attention_heads=5)
    with pytest.raises(ValueError, match="takes no videos"):
        processor(text=["a"], videos=[1])
    resnet = {"model_type": "timm_wrapper", "architecture": "resnet10t", "do_pooling": False}
    with pytest.raises(ValueError, match="'resnet10t' gives maps .* choose a vision transformer"):
        make_spin(resnet, image_seq_length=1)(torch.tensor([[3]]), pixel_values=torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_small_patch16_224", "eva02_tiny_patch14_224"])
def test_any_vit_of_timm_goes_in(name):
    assert timm.is_model(name)
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 1, "num_heads": 3}
    tower = {"model_type": "timm_wrapper", "architecture": name, "do_pooling": False, "model_args": sizes}
    probe = make_spin(tower, image_seq_length=1)
    tokens = probe.model.encoder.encode_patches(torch.zeros(1, 3, 28, 28)).shape[1]
    ids = torch.tensor([[5, *[3] * tokens, 6]])
    assert (
        make_spin(tower, image_seq_length=tokens)(ids, pixel_values=torch.zeros(1, 3, 28, 28)).logits.isfinite().all()
    )


def test_a_name_of_timms_is_the_hub_id_of_its_weights():
    assert timm_id("vit_tiny_patch16_224") == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert timm_id("google/siglip-base-patch16-224") == "google/siglip-base-patch16-224"
    assert timm_id("some_folder") == "some_folder"


def test_the_template_is_as_published(processor):
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}]
    asked = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert asked == "USER: <image>\nWhat is it?\nASSISTANT:"
    told = processor.apply_chat_template(question + answer, tokenize=False)
    assert told == "USER: <image>\nWhat is it?\nASSISTANT: a dog</s>"


class Literal:
    """Cross-attention in full, heads ranked by the image's part of the memory, literally."""

    def __init__(self, config, where):
        self.config, self.where = config, where

    def __call__(self, module, query, key, value, attention_mask, scaling, **kwargs):
        logits = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            logits = logits + attention_mask
        weights = logits.softmax(-1)
        output = (weights @ value).transpose(1, 2).contiguous()
        if module.is_cross_attention:
            scored = logits if self.config.score == "logits" else weights
            score = scored.masked_fill(~self.where[:, None, None], 0).sum(-1)  # (b, H, t)
            kept = score.topk(int(self.config.keep_ratio * score.shape[1]), dim=1).indices
            gate = torch.full_like(score, self.config.suppression).scatter(1, kept, 1.0)
            gate = torch.where(self.where.any(1)[:, None, None], gate, torch.ones_like(gate))
            output = output * gate.transpose(1, 2)[..., None]
        return output, None


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("score", ["logits", "mass"])
def test_head_suppression_scores_the_image_part_of_the_memory(model, processor, score, cache):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    text = ["a <image> b <image> what colour", "what colour is it", "<image> is it red blue ?"]
    images = [[picture(1), picture(2)], [], [picture(3)]]
    inputs = processor(text=text, images=images, padding=True, padding_side="left", return_tensors="pt")
    config = SpinConfig(keep_ratio=0.5, suppression=0.1, score=score)
    plain, _ = logits_of_generation(model, inputs)
    with spin(model, config):
        ours, _ = logits_of_generation(model, inputs, use_cache=cache)
    with spin(model, SpinConfig(keep_ratio=0.5, suppression=1.0)):
        assert torch.equal(logits_of_generation(model, inputs)[0], plain)
    AttentionInterface.register("literal_across", Literal(config, inputs["input_ids"] == 3))
    AttentionMaskInterface.register("literal_across", eager_mask)
    model.set_attn_implementation({"": "literal_across"})
    expected, _ = logits_of_generation(model, inputs)
    assert_close(ours, expected, rtol=1e-6, atol=2e-6)
    assert (ours - plain)[[0, 2]].abs().max() > 1e-4
    assert_close(ours[1], plain[1], rtol=1e-6, atol=2e-6)


def test_head_suppression_agrees_under_beams(model, processor):
    inputs = processor(text=["<image> is it red", "a <image> b"], images=[[picture(1)], [picture(2)]], padding=True,
                       padding_side="left", return_tensors="pt")  # fmt: skip
    with spin(model, SpinConfig(keep_ratio=0.5)):
        together = model.generate(**inputs, num_beams=3, max_new_tokens=5)
        for row, (text, image) in enumerate([("<image> is it red", picture(1)), ("a <image> b", picture(2))]):
            alone = processor(text=[text], images=[image], return_tensors="pt")
            assert torch.equal(model.generate(**alone, num_beams=3, max_new_tokens=5)[0], together[row])


class TestTokenizers:
    def test_what_it_learns_writes_any_text(self):
        tokenizer = train_tokenizer(["two red dogs on a couch"] * 9, 320)
        for text in ("two red dogs on a couch", " Größe 7 \n ñandú 🦆"):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert len(tokenizer(" couch")["input_ids"]) == 1
        assert len(tokenizer("<image>")["input_ids"]) == 1
        with pytest.raises(ValueError, match="vocab_size must be at least 261, got 100"):
            train_tokenizer([], 100)

    def test_a_vocabulary_of_words_is_imported_with_its_ids(self, tmp_path):
        words = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "a": 7, "dog": 9, ".": 4, "runs": 5}
        path = tmp_path / "finetuned_vocab.json"
        path.write_text(json.dumps(words))
        tokenizer = import_vocabulary(path)
        assert tokenizer("A dog runs.<end>")["input_ids"] == [7, 9, 5, 4, 2]
        assert tokenizer("A wolf runs.")["input_ids"] == [7, 3, 5, 4]
        assert tokenizer.decode([1, 7, 9, 5, 4, 2], skip_special_tokens=True) == "a dog runs."
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer.convert_tokens_to_ids("<image>") not in words.values()

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("[1", "is not JSON"),
            ('["a"]', "is not a vocabulary"),
            ('{"a": "b"}', "is not a vocabulary"),
            ('{"a": 1, "b": 1, "<unk>": 2}', "one id to several words"),
            ('{"a": 1}', "no word for what it does not know"),
        ],
    )
    def test_what_is_no_vocabulary_is_named(self, tmp_path, content, problem):
        path = tmp_path / "vocab.json"
        path.write_text(content)
        with pytest.raises(ValueError, match=f"vocab.json.*{problem}"):
            import_vocabulary(path)

    def test_any_other_gets_what_it_lacks(self):
        core = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        ready = prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>"))
        special = ready.pad_token_id, ready.bos_token_id, ready.convert_tokens_to_ids("<image>")
        assert ready.eos_token_id == 1 and len({1, *special}) == 4


def test_a_picture_of_timms_preprocessing_is_shown_whole(tmp_path):
    from processing.processing_spin import _from_timm

    images = _from_timm({"input_size": (3, 8, 8), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.25,) * 3})
    pixels = images(Image.new("RGB", (20, 10), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 8, 8)
    assert_close(pixels[0, :, 0, 0], torch.tensor([2.0, -2.0, -2.0]))
