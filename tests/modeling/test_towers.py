"""Checkpoints that name their towers: what is left out comes back bit for bit, or is refused by name. On a loopback Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from modeling import AlignerModel, OSSightForConditionalGeneration
from modeling.modeling_ossight import nf4
from modeling.towers import fingerprint, load_vision_tower
from processing import AlignerProcessor, OSSightProcessor
from tests.conftest import WORDS, make_ossight, make_processor, picture
from tests.contract import STRANGER
from tests.loopback_hub import LoopbackHub


TOWERS = str(Path(__file__).parents[2] / "model_cards" / "miniature_siglip")
EYES, MOUTH = "org/eyes", "org/mouth"


def save_towers(folder, text="qwen2", tied=False):
    source = make_ossight(text=text)
    source.model.vision_tower.save_pretrained(folder / "eyes")
    config = source.config.text_config
    config.tie_word_embeddings = tied
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "mouth")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    save_towers(tmp_path)
    with LoopbackHub() as hub:
        hub.patch(monkeypatch)
        hub.seed(EYES, tmp_path / "eyes")
        hub.seed(MOUTH, tmp_path / "mouth")
        yield hub


def join(vision=EYES, text=MOUTH, **kwargs):
    model = OSSightForConditionalGeneration.from_towers(
        str(vision), str(text), image_token_id=3, save_towers=False, **kwargs
    )
    torch.nn.init.ones_(model.model.fusion.gate)
    return model.eval()


@pytest.fixture
def inputs():
    return make_processor()(text=["a <image> is it red"], images=[picture(3)], return_tensors="pt")


def carried(folder):
    return {key.split(".")[1] if key != "lm_head.weight" else key for key in load_file(folder / "model.safetensors")}


def reloads(model, folder, inputs, **kwargs):
    """Saved, loaded by the Auto class, asked the same: the loaded model."""
    model.save_pretrained(folder)
    again = AutoModelForImageTextToText.from_pretrained(folder, **kwargs).eval()
    assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    return again


@pytest.mark.parametrize("text,tied", [("qwen2", False), ("qwen2", True), ("gpt2", True)])
def test_what_is_left_out_comes_back(hub, tmp_path, inputs, text, tied):
    save_towers(tmp_path / "other", text, tied)
    commit = hub.seed("org/other", tmp_path / "other/mouth")
    model = join(text="org/other")
    again = reloads(model, tmp_path / "light", inputs)
    assert carried(tmp_path / "light") == {"adapter", "fusion"}
    named = json.loads((tmp_path / "light/config.json").read_text())["towers"]["language_model"]
    assert (named["id"], named["commit"]) == ("org/other", commit)
    reloads(again, tmp_path / "again", inputs)
    assert carried(tmp_path / "again") == {"adapter", "fusion"}, "what was loaded light is saved light"
    assert model.config.towers is None, "saving leaves the model as it was"


def test_a_self_contained_folder_is_the_default(hub, tmp_path, inputs):
    model = join()
    model.config.save_towers = True
    reloads(model, tmp_path / "whole", inputs)
    assert carried(tmp_path / "whole") >= {"adapter", "fusion", "vision_tower", "language_model"}
    assert json.loads((tmp_path / "whole/config.json").read_text())["towers"] is None


def test_a_tower_from_a_folder_is_carried_because_nobody_else_has_it(hub, tmp_path, inputs):
    reloads(join(vision=tmp_path / "eyes"), tmp_path / "light", inputs)
    assert carried(tmp_path / "light") == {"adapter", "fusion", "vision_tower"}


def test_one_changed_weight_is_enough_for_a_tower_to_be_carried(hub, tmp_path, inputs):
    model = join()
    with torch.no_grad():
        model.model.vision_tower.state_dict()["encoder.layers.0.mlp.fc1.bias"][3] += 1e-3
    reloads(model, tmp_path / "light", inputs)
    assert carried(tmp_path / "light") == {"adapter", "fusion", "vision_tower"}


def test_a_merged_lora_is_never_lost(hub, tmp_path, inputs):
    model = join()
    before = model(**inputs).logits
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="holds adapters"):
        tuned.get_base_model().save_pretrained(tmp_path / "unmerged")
    merged = tuned.merge_and_unload()
    reloads(merged, tmp_path / "light", inputs)
    assert not torch.allclose(merged(**inputs).logits, before)
    assert "language_model" in carried(tmp_path / "light")


def test_resized_embeddings_are_never_lost(hub, tmp_path, inputs):
    model = join()
    model.resize_token_embeddings(len(WORDS.split()) + 5)
    again = reloads(model, tmp_path / "light", inputs)
    assert again(**inputs).logits.shape[-1] == len(WORDS.split()) + 5
    assert "language_model" in carried(tmp_path / "light")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_four_bits_reach_the_language_model_only_and_come_back(hub, tmp_path, inputs, dtype):
    model = join(quantization_config=nf4(dtype), dtype=dtype)
    kinds = {}
    for name, weight in model.named_parameters():
        kinds.setdefault(name.split(".")[1], set()).add(weight.dtype)
    assert kinds["vision_tower"] == {dtype}
    assert kinds["adapter"] == kinds["fusion"] == {torch.float32}
    assert model.lm_head.weight.dtype == dtype
    assert kinds["language_model"] == {torch.uint8, dtype}  # dtype: embeddings, norms, biases
    packed = {n.rsplit(".", 2)[1] for n, w in model.model.language_model.named_parameters() if w.dtype == torch.uint8}
    assert packed == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}

    again = reloads(model, tmp_path / "light", inputs)
    assert carried(tmp_path / "light") == {"adapter", "fusion"}
    assert fingerprint(again.model.language_model) == fingerprint(model.model.language_model)
    reloads(again, tmp_path / "again", inputs)
    assert carried(tmp_path / "again") == {"adapter", "fusion"}
    again.config.save_towers = True
    reloads(again, tmp_path / "whole", inputs)
    assert "language_model" in carried(tmp_path / "whole")


def test_a_lora_merged_into_four_bits_is_never_lost(hub, tmp_path, inputs):
    model = join(quantization_config=nf4("float32"))
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    reloads(tuned.merge_and_unload(), tmp_path / "light", inputs)
    assert "language_model" in carried(tmp_path / "light")


def test_a_full_precision_checkpoint_may_be_loaded_in_four_bits_and_saved_so(hub, tmp_path, inputs):
    join().save_pretrained(tmp_path / "light")
    plain = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "light", quantization_config=plain).eval()
    packed = {name.split(".")[1] for name, weight in model.named_parameters() if weight.dtype == torch.uint8}
    assert packed == {"language_model"}
    reloads(model, tmp_path / "packed", inputs)
    assert carried(tmp_path / "packed") == {"adapter", "fusion"}


def test_a_method_that_cannot_be_kept_to_the_language_model_is_refused(hub, tmp_path):
    join().save_pretrained(tmp_path / "light")
    with pytest.raises(ValueError, match="cannot be kept to the language model"):
        OSSightForConditionalGeneration.from_pretrained(tmp_path / "light", quantization_config=object())


def test_a_lora_beside_a_light_base_loads_as_one_folder(hub, tmp_path, inputs):
    """What `recipes/caption.py` leaves with `lora`: base and adapter in one folder, by every way in."""
    folder = tmp_path / "run"
    model = join()
    model.save_pretrained(folder)
    bridge = [name for name, _ in model.named_modules() if name in ("model.adapter", "model.fusion")]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=bridge, init_lora_weights=False)
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "modules_to_save" in name:
                weight.add_(0.1)
    expected = tuned.eval()(**inputs).logits
    tuned.save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").stat().st_size < 200_000
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert_close(again(**inputs).logits, expected, rtol=0, atol=0)
    by_peft = peft.PeftModel.from_pretrained(join(), folder).eval()
    assert_close(by_peft(**inputs).logits, expected, rtol=0, atol=0)
    merged = by_peft.merge_and_unload()
    assert_close(merged(**inputs).logits, expected, rtol=1e-3, atol=1e-4)
    reloads(merged, tmp_path / "merged", inputs)


def test_a_tower_that_is_not_what_it_was_is_refused_by_name(hub, tmp_path):
    join().save_pretrained(tmp_path / "light")
    config = json.loads((tmp_path / "light/config.json").read_text())
    weights = load_file(tmp_path / "mouth/model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "mouth/model.safetensors", metadata={"format": "pt"})
    config["towers"]["language_model"]["commit"] = hub.seed(MOUTH, tmp_path / "mouth")
    (tmp_path / "light/config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"language_model org/mouth at commit \w+ is not what .* model.safetensors differ"
    ):
        OSSightForConditionalGeneration.from_pretrained(tmp_path / "light")


def test_a_commit_that_is_gone_is_an_error_that_names_it(hub, tmp_path):
    join().save_pretrained(tmp_path / "light")
    config = json.loads((tmp_path / "light/config.json").read_text())
    config["towers"]["vision_tower"]["commit"] = "0" * 40
    (tmp_path / "light/config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match=f"leaves its vision_tower to the Hub, and org/eyes at commit {'0' * 40}"):
        OSSightForConditionalGeneration.from_pretrained(tmp_path / "light")


def test_a_tower_id_that_does_not_exist_or_is_gated_is_an_error_that_names_it(hub):
    with pytest.raises(OSError, match="the language model 'org/mute' cannot be had"):
        join(text="org/mute")
    hub.repo(MOUTH).gated = True
    with pytest.raises(OSError, match="the language model 'org/mouth' cannot be had: .*gated"):
        join()


def test_a_stranger_gets_a_light_folder_with_the_hub_alone(hub, tmp_path, inputs):
    model, processor = join(), make_processor()
    model.save_pretrained(tmp_path / "light")
    processor.save_pretrained(tmp_path / "light")
    pixels = torch.tensor(list(picture(3).getdata()), dtype=torch.uint8).view(16, 16, 3).permute(2, 0, 1)[None]
    asked = {"text": ["a <image> is it red"], "images": pixels, "logits": model(**inputs).logits}
    torch.save(asked, tmp_path / "light/expected.pt")
    environment = {**os.environ, **hub.env(), "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", STRANGER], cwd=tmp_path / "light", check=True, env=environment)


@pytest.fixture
def aligned(tmp_path):
    """An aligner whose vision tower has learned, as a folder with its processor, and that tower."""
    model = AlignerModel.from_towers(
        TOWERS, TOWERS, vision_features="tokens", embed_dim=8, matryoshka_dimensions=[4, 8]
    )
    with torch.no_grad():
        for parameter in model.vision_tower.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "aligned")
    AlignerProcessor.from_towers(TOWERS, TOWERS).save_pretrained(tmp_path / "aligned")
    return tmp_path / "aligned", model


def test_an_aligners_tower_sees_as_it_was_aligned_and_not_as_it_came(aligned):
    folder, model = aligned
    pixels = torch.rand(2, 3, 64, 64)
    tower = load_vision_tower(str(folder), None).eval()
    with torch.no_grad():
        seen = tower(pixels).last_hidden_state
        assert_close(seen, model.eval().encode("vision", pixels)[0], rtol=0, atol=0)
        before = load_vision_tower(TOWERS, None).eval()(pixels).last_hidden_state
    assert (seen - before).abs().max() > 0.01


def test_an_aligner_from_the_hub_may_be_named_as_a_tower_and_comes_back(hub, aligned, tmp_path, inputs):
    hub.seed("org/aligned", aligned[0])
    model = join("org/aligned")
    model.save_pretrained(tmp_path / "light")
    assert "model.vision_tower.embeddings.patch_embedding.weight" not in load_file(tmp_path / "light/model.safetensors")
    back = OSSightForConditionalGeneration.from_pretrained(tmp_path / "light")
    assert fingerprint(back.model.vision_tower) == fingerprint(model.model.vision_tower)


def test_pictures_are_prepared_for_an_aligners_tower_as_the_aligner_was_given_them(aligned, tmp_path):
    make_processor().tokenizer.save_pretrained(tmp_path / "words")
    processor = OSSightProcessor.from_towers(str(aligned[0]), str(tmp_path / "words"), patch_size=16)
    assert processor.image_processor.to_dict() == AlignerProcessor.from_pretrained(aligned[0]).image_processor.to_dict()


def test_a_fingerprint_sees_every_bit_and_where_it_is():
    linear = torch.nn.Linear(5, 3)
    before = fingerprint(linear)
    assert fingerprint(linear) == before
    with torch.no_grad():
        linear.weight[0, 0] = torch.nextafter(linear.weight[0, 0], torch.tensor(9.0))
    one = fingerprint(linear)
    with torch.no_grad():
        linear.weight.copy_(linear.weight.flip(0))
    assert len({before, one, fingerprint(linear), fingerprint(linear.half()), fingerprint(linear, linear)}) == 5


@pytest.mark.slow
def test_a_light_checkpoint_at_full_size_is_under_100_megabytes_and_gives_equal_logits(tmp_path, monkeypatch):
    """SigLIP-base/16 and Qwen2.5-1.5B with random weights, the language model in 4 bits: 12 GB of memory, 4 GB of disk, minutes."""
    eyes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    eyes = SiglipVisionConfig(**eyes, image_size=224, patch_size=16)
    mouth = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    mouth = Qwen2Config(**mouth, num_key_value_heads=2, vocab_size=151_936, tie_word_embeddings=True)
    with LoopbackHub() as hub:
        hub.patch(monkeypatch)
        for name, config, auto in (("eyes", eyes, AutoModel), ("mouth", mouth, AutoModelForCausalLM)):
            auto.from_config(config, dtype=torch.float16).save_pretrained(tmp_path / name)
            hub.seed(f"org/{name}", tmp_path / name)
        model = OSSightForConditionalGeneration.from_towers(
            EYES, MOUTH, dtype="float16", quantization_config=nf4("float16"), pixel_shuffle=2, save_towers=False
        ).eval()
        torch.nn.init.ones_(model.model.fusion.gate)
        ids = torch.tensor([[5] + [model.config.image_token_id] * 49 + [6, 7, 8]])
        asked = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 224, 224)}
        model.save_pretrained(tmp_path / "light")
        size = sum(path.stat().st_size for path in (tmp_path / "light").iterdir())
        assert size < 100e6
        expected = model(**asked).logits
        del model
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "light").eval()
        assert_close(again(**asked).logits, expected, rtol=0, atol=0)
        assert expected.isfinite().all()
        print(f"light checkpoint: {size / 1e6:.1f} MB")
