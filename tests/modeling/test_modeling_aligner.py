"""The aligner: any towers, one space, its losses by hand, and a folder that loads anywhere."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    ASTFeatureExtractor,
    BitsAndBytesConfig,
    SiglipImageProcessor,
    WhisperFeatureExtractor,
)

from modeling import AlignerConfig, AlignerModel
from modeling.contrastive_losses import info_nce, sigmoid_loss
from processing import AlignerProcessor
from processing.processing_aligner import hear
from tests.conftest import SMALL, VISION, WORDS, make_tokenizer, picture
from tests.contract import picture_list


VOCAB = {"vocab_size": len(WORDS.split()), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
TEXT = {
    "clip": {"model_type": "clip_text_model", "max_position_embeddings": 16, **SMALL, **VOCAB},
    "siglip": {"model_type": "siglip_text_model", "max_position_embeddings": 16, **SMALL, **VOCAB},
    "bert": {"model_type": "bert", "max_position_embeddings": 32, **SMALL, **VOCAB},
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "max_source_positions": 50,
}
WHISPER |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 16}
AUDIO = {
    "whisper": {"model_type": "whisper", **WHISPER, "vocab_size": 8, "pad_token_id": 0, "decoder_start_token_id": 1},
    "ast": {
        "model_type": "audio-spectrogram-transformer", "max_length": 64, "num_mel_bins": 16, "patch_size": 8,
        "frequency_stride": 8, "time_stride": 8, **SMALL,
    },
    "clap": {
        "model_type": "clap_audio_model", "spec_size": 32, "num_mel_bins": 16, "patch_size": 2, "patch_stride": [2, 2],
        "depths": [1, 1],
        "num_attention_heads": [2, 2], "hidden_size": 32, "patch_embeds_hidden_size": 16, "window_size": 4,
        "num_hidden_layers": 2, "fusion_num_hidden_layers": 1, "enable_fusion": False,
    },
}  # fmt: skip


def make_aligner(vision="clip", text="clip", audio=None, **config) -> AlignerModel:
    torch.manual_seed(0)
    towers = {"vision_config": VISION[vision], "text_config": TEXT[text]}
    towers |= {"audio_config": AUDIO[audio]} if audio else {}
    size = {"projector_dim": 16, "num_attention_heads": 2, "num_queries": 2, "embed_dim": 32, "num_latents": 4}
    size |= {"matryoshka_dimensions": [8, 16, 32]} if config.get("is_matryoshka", True) else {}
    model = AlignerModel(AlignerConfig(**towers, **size | config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "tower" in name:
                parameter.mul_(4)  # flat attention would hide a wrong mask
    return model.eval()


def make_aligner_processor(sounds=True, pad_to_max=False) -> AlignerProcessor:
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 16
    images = SiglipImageProcessor(size={"height": 16, "width": 16})
    heard = ASTFeatureExtractor(num_mel_bins=16, max_length=64) if sounds else None
    return AlignerProcessor(images, tokenizer, heard, pad_to_max)


@pytest.fixture
def inputs():
    return make_aligner_processor()(
        images=[picture(1), picture(2), picture(3)],
        text=["red </s>", "what colour is it </s>", "blue green </s>"],
        audio=[np.sin(np.arange(4000) * f) for f in (0.1, 0.2, 0.5)],
        return_tensors="pt",
    )


TOWERS = [("siglip", "bert", "ast"), ("clip", "clip", None), ("dinov2", "siglip", None), ("vit", "bert", "ast")]


@pytest.mark.parametrize("projector", ["mlp", "perceiver"])
@pytest.mark.parametrize("features", ["pooled", "mean", "tokens"])
@pytest.mark.parametrize("towers", TOWERS)
def test_any_towers_give_embeddings_at_unit_length_and_a_batch_equals_its_rows(towers, features, projector, inputs):
    kind = dict.fromkeys(("vision_features", "text_features", "audio_features"), features)
    model = make_aligner(*towers, projector=projector, **kind)
    with torch.no_grad():
        together = model(**inputs if towers[2] else {k: v for k, v in inputs.items() if k != "audio_values"})
        for name, value in together.items():
            assert value.shape == (3, 32)
            assert_close(value.norm(dim=1), torch.ones(3))
            assert (value[0] - value[1]).abs().max() > 1e-3, name
        for row, text in enumerate(["red </s>", "what colour is it </s>", "blue green </s>"]):
            alone = make_aligner_processor()(text=[text], images=[picture(row + 1)], return_tensors="pt")
            alone = model(**alone)
            assert_close(alone.image_embeds[0], together.image_embeds[row], rtol=1e-4, atol=1e-5)
            if towers[1] != "siglip":  # which reads its padding: see pad_to_max
                assert_close(alone.text_embeds[0], together.text_embeds[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("audio", ["whisper", "clap"])
def test_other_audio_towers(audio):
    model = make_aligner(audio=audio, audio_features="tokens")
    values = torch.randn(2, 16, 100) if audio == "whisper" else torch.randn(2, 1, 64, 16)
    out = model.get_audio_features(values)
    assert out.pooler_output.shape == (2, 32) and out.last_hidden_state.ndim == 3
    assert not any("decoder" in name for name, _ in model.named_parameters())


def test_info_nce_by_hand():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 0.0, 1.0]])
    e = torch.exp(logits)
    rows = -(e.diagonal() / e.sum(1)).log().mean()
    columns = -(e.diagonal() / e.sum(0)).log().mean()
    assert_close(info_nce(logits), (rows + columns) / 2)
    equal = torch.zeros(3, 3, dtype=torch.bool)
    equal[0, 2] = equal[2, 0] = True  # rows 0 and 2 say the same: they are no negatives of each other
    kept = e.clone()
    kept[0, 2] = kept[2, 0] = 0
    expected = (-(e.diagonal() / kept.sum(1)).log().mean() - (e.diagonal() / kept.sum(0)).log().mean()) / 2
    assert_close(info_nce(logits, equal | torch.eye(3, dtype=torch.bool)), expected)


def test_sigmoid_loss_by_hand():
    logits = torch.tensor([[2.0, -1.0], [0.5, 1.0]])
    s = lambda x: -np.log(1 / (1 + np.exp(-x)))  # noqa: E731
    assert sigmoid_loss(logits).item() == pytest.approx((s(2) + s(1) + s(-0.5) + s(1)) / 2, abs=1e-6)
    equal = torch.tensor([[True, True], [False, True]])
    assert sigmoid_loss(logits, equal).item() == pytest.approx((s(2) + s(-0.5) + s(1)) / 2, abs=1e-6)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_the_loss_is_the_weighted_mean_over_widths(loss):
    model = make_aligner(loss=loss)
    a, b = torch.randn(5, 32), torch.randn(5, 32)
    parts = []
    for dim in (8, 16, 32):
        cosines = torch.nn.functional.cosine_similarity(a[:, None, :dim], b[None, :, :dim], dim=-1)
        scaled = cosines * 14.285714 - (10 if loss == "sigmoid" else 0)
        parts.append({"infonce": info_nce, "sigmoid": sigmoid_loss}[loss](scaled))
    assert_close(model.alignment_loss(a, b), sum(parts) / 3, rtol=1e-5, atol=1e-5)
    weighted = (parts[0] + 2 * parts[1] + 5 * parts[2]) / 8
    assert_close(model.alignment_loss(a, b, None, [1, 2, 5]), weighted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)  # e^9: clamped at 100
    assert_close(model.logits(torch.ones(1)), torch.tensor([100.0 - (10 if loss == "sigmoid" else 0)]))


def test_without_matryoshka_there_is_one_width():
    assert make_aligner(is_matryoshka=False).config.matryoshka_dimensions == [32]
    default = AlignerConfig(embed_dim=4096)
    assert default.is_matryoshka and default.matryoshka_dimensions == [64, 128, 256, 512, 1024, 2048, 4096]


def test_truncated_features_are_the_first_numbers_at_unit_length(inputs):
    model = make_aligner()
    whole = model.get_image_features(inputs["pixel_values"]).pooler_output
    short = model.get_image_features(inputs["pixel_values"], truncate_dim=8).pooler_output
    assert_close(short, torch.nn.functional.normalize(whole[:, :8], dim=1))
    with pytest.raises(ValueError, match="truncate_dim=33: embeddings have 1 to 32"):
        model(**inputs, truncate_dim=33) if model.config.audio_config else model.get_text_features(
            inputs["input_ids"], truncate_dim=33
        )


def test_features_computed_before_stand_for_what_they_are_of(inputs):
    kind = dict.fromkeys(("vision_features", "text_features", "audio_features"), "tokens")
    model = make_aligner("clip", "bert", "ast", projector="perceiver", **kind)
    with torch.no_grad():
        expected = model(**inputs)
        seen, _ = model.encode("vision", inputs["pixel_values"])
        read, mask = model.encode("text", inputs["input_ids"], inputs["attention_mask"])
        heard, _ = model.encode("audio", inputs["audio_values"])
        out = model(vision_features=seen, text_features=read, attention_mask=mask, audio_features=heard)
    for name in expected:
        assert_close(out[name], expected[name], rtol=0, atol=0)


def test_padding_of_cached_text_features_is_not_read():
    model = make_aligner(projector="perceiver", text_features="tokens")
    tokens = torch.randn(1, 5, 32)
    mask = torch.tensor([[True, True, True, False, False]])
    assert_close(model.project("text", tokens, mask), model.project("text", tokens[:, :3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("projector", ["mlp", "perceiver"])
def test_chunks_give_the_gradients_of_the_whole(inputs, projector):
    """With dropout: each chunk draws again what it drew."""
    model = make_aligner("clip", "bert", "ast", projector=projector, dropout=0.3).train()
    gradients = []
    for size in (None, 3, 2, 1):
        model.zero_grad()
        torch.manual_seed(1)
        if size == 3 or size is None:
            out = model(**inputs, chunk_size=size)
            (out.image_embeds[0] @ out.text_embeds[0] + out.audio_embeds[2] @ out.text_embeds[1]).backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        else:
            model.eval()
            out = model(**inputs, chunk_size=size)
            (out.image_embeds[0] @ out.text_embeds[0] + out.audio_embeds[2] @ out.text_embeds[1]).backward()
            chunked = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            model.zero_grad()
            out = model(**inputs)
            (out.image_embeds[0] @ out.text_embeds[0] + out.audio_embeds[2] @ out.text_embeds[1]).backward()
            for name, grad in chunked.items():
                assert_close(dict(model.named_parameters())[name].grad, grad, rtol=1e-4, atol=1e-6)
            model.train()
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, grad in gradients[0].items():
        assert_close(gradients[1][name], grad, rtol=1e-4, atol=1e-6)


def test_latents_start_apart_each_learns_and_they_stay_apart():
    model = make_aligner(projector="perceiver", vision_features="tokens", num_latents=8).train()
    latents = model.vision_projector.projector.latents

    def alike() -> float:
        cosines = torch.nn.functional.cosine_similarity(latents[:, None], latents[None], dim=-1)
        return float(cosines.masked_fill(torch.eye(8, dtype=torch.bool), 0).abs().max())

    assert alike() < 0.9
    tokens, words = torch.randn(16, 17, 32), torch.randn(16, 32)
    optimizer = torch.optim.AdamW(model.vision_projector.parameters(), lr=3e-3)
    first = None
    for step in range(60):
        loss = model.alignment_loss(model.project("vision", tokens), words)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first = loss.item()
            size = latents.grad.norm(dim=1)
            assert (size > 0.05 * size.max()).all()
        optimizer.step()
    assert loss.item() < first / 2
    assert alike() < 0.9


def test_towers_freeze_by_name():
    model = make_aligner(audio="ast")
    model.freeze_towers("vision", "audio")
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"vision_tower", "audio_tower"}
    model.freeze_towers()
    assert all(p.requires_grad for p in model.parameters())
    model.freeze_towers("vision")
    model.train()(pixel_values=torch.randn(2, 3, 16, 16)).image_embeds.sum().backward()
    assert all(p.grad is None for p in model.vision_tower.parameters())


def test_gradient_checkpointing_gives_equal_gradients(inputs):
    def gradients(checkpointing):
        net = copy.deepcopy(make_aligner("vit", "bert", "ast")).train()
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            net.gradient_checkpointing_enable({"use_reentrant": False})
        out = net(**inputs)
        (out.image_embeds[0] @ out.text_embeds[0] + out.audio_embeds[0] @ out.text_embeds[1]).backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and any("tower" in name for name in plain)
    for name, grad in plain.items():
        assert_close(checkpointed[name], grad, rtol=1e-4, atol=1e-6)


def test_half_precision_embeds_alike_and_projectors_stay_in_full(inputs, tmp_path):
    model = make_aligner("clip", "bert", "ast", projector="perceiver", vision_features="tokens")
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        half = AlignerModel.from_pretrained(tmp_path, dtype=dtype).eval()
        assert half.vision_tower.dtype == dtype
        assert {p.dtype for p in half.vision_projector.parameters()} == {torch.float32}
        with torch.no_grad():
            cosine = (half(**inputs).image_embeds.float() * model(**inputs).image_embeds).sum(1)
        assert (cosine > 0.99).all()


def test_it_is_built_and_loaded_on_the_meta_device(tmp_path):
    model = make_aligner("clip", "bert", "whisper", projector="perceiver")
    with torch.device("meta"):
        hollow = AlignerModel(model.config)
    assert {p.device.type for p in hollow.parameters()} == {"meta"}
    model.save_pretrained(tmp_path)
    _, info = AlignerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_four_bit_leaves_projectors_alone(inputs, tmp_path):
    model = make_aligner("clip", "bert", "ast")
    model.save_pretrained(tmp_path)
    packed = AlignerModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    reached = {name for name, weight in packed.named_parameters() if weight.dtype == torch.uint8}
    assert reached and all(name.startswith("text_tower.") for name in reached)
    assert packed(**inputs).image_embeds.isfinite().all()


def test_lora_trains_saves_reloads_and_merges(inputs, tmp_path):
    base = make_aligner("clip", "bert", "ast")
    before = copy.deepcopy(base)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["text_projector"])
    tuned = peft.get_peft_model(base, config)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    tuned.train()(**inputs).text_embeds[0, :3].sum().backward()
    optimizer.step()
    tuned.eval().save_pretrained(tmp_path)
    expected = tuned(**inputs).text_embeds
    assert not torch.allclose(expected, before(**inputs).text_embeds)
    again = peft.PeftModel.from_pretrained(before, tmp_path).eval()
    assert_close(again(**inputs).text_embeds, expected)
    assert_close(again.merge_and_unload()(**inputs).text_embeds, expected, rtol=1e-3, atol=1e-4)


def test_embeddings_resize_and_reload(inputs, tmp_path):
    model = make_aligner("clip", "bert", "ast")
    before = model(**inputs).text_embeds
    model.resize_token_embeddings(len(WORDS.split()) + 5)
    assert_close(model(**inputs).text_embeds, before)
    model.save_pretrained(tmp_path)
    again = AlignerModel.from_pretrained(tmp_path).eval()
    assert_close(again(**inputs).text_embeds, before)
    assert again.get_input_embeddings().num_embeddings == len(WORDS.split()) + 5


STRANGER = """
import sys
sys.modules.update(dict.fromkeys(["modeling", "processing", "trainers", "datasets_scripts"]))  # importing them now fails
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor
expected = torch.load("expected.pt", weights_only=True)
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
inputs = processor(text=expected["text"], images=list(expected["images"]), audio=[expected["audio"].numpy()], return_tensors="pt")
model = AutoModel.from_pretrained(".", trust_remote_code=True, dtype="auto").eval()
out = model(**inputs)
for name in ("image_embeds", "text_embeds", "audio_embeds"):
    torch.testing.assert_close(getattr(out, name), expected[name], rtol=0, atol=1e-6)
config = AutoConfig.from_pretrained(".", trust_remote_code=True)
assert config.is_matryoshka and config.matryoshka_dimensions == [8, 16, 32]
"""


def test_the_saved_folder_stands_alone(tmp_path):
    model, processor = make_aligner("clip", "bert", "ast", projector="perceiver"), make_aligner_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    text, images, sound = ["what colour is it"], [picture(3)], np.sin(np.arange(4000) / 7).astype(np.float32)
    out = model(**processor(text=text, images=images, audio=[sound], return_tensors="pt"))
    told = {"text": text, "images": picture_list(images), "audio": torch.from_numpy(sound)}
    torch.save(told | {k: v.detach() for k, v in out.items()}, tmp_path / "expected.pt")
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"].endswith("AlignerModel")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", STRANGER], cwd=tmp_path, check=True, env=environment)


SENTENCES = """
import numpy as np, torch
from PIL import Image
from sentence_transformers import SentenceTransformer
expected = torch.load("expected.pt", weights_only=True)
images = [Image.fromarray(image.permute(1, 2, 0).numpy().astype("uint8")) for image in expected["images"]]
given = {"text": expected["text"], "image": images, "audio": [{"array": expected["audio"].numpy(), "sampling_rate": 16000}]}
for dim in (None, 16):
    model = SentenceTransformer(".", trust_remote_code=True, truncate_dim=dim, device="cpu")
    assert model.get_embedding_dimension() == (dim or 32), model.get_embedding_dimension()
    for name, value in given.items():
        wanted = torch.nn.functional.normalize(expected[f"{name}_embeds"][:, :dim], dim=-1)
        found = torch.from_numpy(model.encode(value, normalize_embeddings=True))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
"""


def test_the_saved_folder_is_a_sentence_transformer(tmp_path):
    pytest.importorskip("sentence_transformers")
    model, processor = make_aligner("siglip", "bert", "ast"), make_aligner_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    text, images, sound = ["what colour is it"], [picture(3)], np.sin(np.arange(4000) / 7).astype(np.float32)
    out = model(**processor(text=text, images=images, audio=[sound], return_tensors="pt"))
    told = {"text": text, "images": picture_list(images), "audio": torch.from_numpy(sound)}
    torch.save(told | {k: v.detach() for k, v in out.items()}, tmp_path / "expected.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", SENTENCES], cwd=tmp_path, check=True, env=environment)


def test_keywords_reach_the_tokenizer_sorted_as_transformers_sorts_them():
    processor = make_aligner_processor()
    sorted_kwargs = {"text_kwargs": {"truncation": True, "max_length": 2}, "common_kwargs": {"return_tensors": "pt"}}
    assert processor(text=["red blue green"], **sorted_kwargs)["input_ids"].shape == (1, 2)
    wave = np.sin(np.arange(8000) / 7).astype(np.float32)
    at_8k = processor(audio=[wave], audio_kwargs={"sampling_rate": 8000}, common_kwargs={"return_tensors": "pt"})
    assert_close(
        at_8k["audio_values"], processor(audio=[wave], sampling_rate=8000, return_tensors="pt")["audio_values"]
    )


def test_pretrained_towers_keep_their_weights(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    config = {"vision_config": VISION["clip"], "text_config": TEXT["clip"], "projection_dim": 16}
    whole = CLIPModel(CLIPConfig(**config)).eval()
    whole.save_pretrained(tmp_path)
    model = AlignerModel.from_towers(
        str(tmp_path), str(tmp_path), embed_dim=32, projector_dim=16, num_attention_heads=2
    ).eval()
    pixels, ids = torch.randn(2, 3, 16, 16), torch.tensor([[5, 6, 1], [7, 1, 0]])
    assert_close(model.encode("vision", pixels)[0][:, 0], whole.vision_model(pixels).pooler_output)
    assert_close(model.encode("text", ids)[0][:, 0], whole.text_model(ids).pooler_output)
    with pytest.raises(ValueError, match="no audio tower; it has vision, text"):
        model.get_audio_features(torch.zeros(1, 3))


def test_an_encoder_saved_without_its_pooler_is_read_by_its_tokens_mean(tmp_path):
    from transformers import BertConfig, BertModel

    settings = {key: value for key, value in TEXT["bert"].items() if key != "model_type"}
    bert = BertModel(BertConfig(**settings), add_pooling_layer=False).eval()
    bert.save_pretrained(tmp_path)
    sizes = {"vision_config": VISION["vit"], "embed_dim": 32, "projector_dim": 16, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="saved without what pools its tokens.*text_features: mean"):
        AlignerModel.from_towers(text_model=str(tmp_path), **sizes)
    model = AlignerModel.from_towers(text_model=str(tmp_path), text_features="mean", **sizes).eval()
    ids, mask = torch.tensor([[5, 6, 7], [7, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        tokens = bert(ids, attention_mask=mask).last_hidden_state
        pooled, there = model.encode("text", ids, mask)
    assert there is None and pooled.shape == (2, 1, 32)
    assert_close(pooled[:, 0], torch.stack([tokens[0].mean(0), tokens[1, :2].mean(0)]))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"projector": "conv"}, "projector must be one of mlp, perceiver; got 'conv'"),
        ({"loss": "triplet"}, "loss must be one of infonce, sigmoid"),
        ({"text_features": "all"}, "text_features must be one of pooled, mean, tokens"),
        ({"matryoshka_dimensions": [8, 16]}, "must ascend to embed_dim=32"),
        ({"matryoshka_dimensions": [16, 8, 32]}, "must ascend to embed_dim=32"),
        ({"num_attention_heads": 3}, "num_attention_heads=3 does not divide projector_dim=16"),
    ],
)
def test_settings_that_contradict_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        make_aligner(**settings)


class TestSounds:
    def test_stereo_and_integers_and_other_rates_become_what_the_tower_hears(self):
        wave = (np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000) * 0.5).astype(np.float32)
        heard = hear(wave, 8000, 16000)
        assert heard.dtype == np.float32 and len(heard) == 16000
        expected = np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000) * 0.5
        assert np.abs(heard - expected)[200:-200].max() < 0.01
        stereo = np.stack([wave, np.zeros_like(wave)], 1)
        np.testing.assert_allclose(hear(stereo, 16000, 16000), wave / 2)
        np.testing.assert_allclose(hear((wave * 32767).astype(np.int16), 16000, 16000), wave, atol=1e-4)

    def test_what_is_above_the_new_rates_half_does_not_come_back_lower(self):
        high = np.sin(np.arange(32000) * 2 * np.pi * 12000 / 32000).astype(np.float32)
        assert np.abs(hear(high, 32000, 16000)[200:-200]).max() < 0.02

    def test_silence_and_very_short_sounds_are_embedded(self):
        process, model = make_aligner_processor(), make_aligner(audio="ast")
        for wave in (np.zeros(16000), np.ones(3), np.clip(np.random.default_rng(0).normal(size=8000) * 9, -1, 1)):
            out = model(**process(audio=[wave.astype(np.float32)], return_tensors="pt"))
            assert out.audio_embeds.isfinite().all()

    def test_no_samples_and_no_numbers_are_refused(self):
        with pytest.raises(ValueError, match="a sound of no samples"):
            hear(np.zeros(0), 16000, 16000)
        with pytest.raises(ValueError, match="2 samples that are no numbers"):
            hear(np.array([0, np.nan, np.inf]), 16000, 16000)

    def test_an_aligner_without_sound_says_so(self):
        with pytest.raises(ValueError, match="no audio tower: it cannot take sounds"):
            make_aligner_processor(sounds=False)(audio=[np.zeros(400)])

    def test_the_feature_extractor_is_kept_with_the_processor(self, tmp_path):
        process = make_aligner_processor()
        process.feature_extractor = WhisperFeatureExtractor(feature_size=16)
        process.save_pretrained(tmp_path)
        again = AlignerProcessor.from_pretrained(tmp_path)
        assert isinstance(again.feature_extractor, WhisperFeatureExtractor)
        assert again.feature_extractor.feature_size == 16
        make_aligner_processor(sounds=False, pad_to_max=True).save_pretrained(tmp_path / "deaf")
        deaf = AlignerProcessor.from_pretrained(tmp_path / "deaf")
        assert deaf.feature_extractor is None and deaf.pad_to_max
        assert deaf(text="red", return_tensors="pt")["input_ids"].shape == (1, 16)
