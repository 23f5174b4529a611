"""
The contract every generative model here passes. A test class per model inherits it and gives two fixtures:

    model      tiny, random, in eval mode, every gate open
    processor  its processor; `image_token` in the text stands for a picture

Logits are compared, never tokens: greedy tokens stay equal through many a bug.
"""

import copy
import json
import os
import subprocess
import sys

import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import BitsAndBytesConfig

from tests.conftest import picture


STRANGER = """
import sys
sys.modules.update(dict.fromkeys(["modeling", "processing", "trainers", "datasets_scripts"]))  # importing them now fails
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
expected, tolerance = torch.load("expected.pt", weights_only=True), float((sys.argv[1:] or [0])[0])
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
inputs = processor(text=expected["text"], images=list(expected["images"]), return_tensors="pt")
for auto in (AutoModelForImageTextToText, AutoModel):
    model = auto.from_pretrained(".", trust_remote_code=True, dtype="auto").eval()
    assert model.can_generate()
    torch.testing.assert_close(model(**inputs).logits, expected["logits"], rtol=0, atol=tolerance)
"""


def logits_of_generation(model, inputs, **kwargs):
    out = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True, **kwargs
    )
    return torch.stack(out.logits, 1), out


class ModelContract:
    lora_targets = r".*language_model.*(q_proj|v_proj)"
    bridges = ("adapter", "fusion")  # what LoRA trains whole
    reload_tolerance = 0.0  # above 0 only where one row of a matrix product depends on where weights lie in memory

    @pytest.fixture
    def inputs(self, processor):
        """Two images, none, one: in one left-padded batch."""
        token = processor.image_token
        text = [f"a {token} b {token} what colour", "what colour is it", f"{token} is it red blue ?"]
        images = [[picture(1), picture(2)], [], [picture(3)]]
        return processor(text=text, images=images, padding=True, padding_side="left", return_tensors="pt")

    @pytest.fixture
    def single(self, processor):
        return processor(text=[f"a {processor.image_token} is it red"], images=[picture(3)], return_tensors="pt")

    def labels(self, inputs):
        labels = inputs["input_ids"].clone()
        labels[:, :-3] = -100
        return labels

    def test_the_picture_changes_the_answer(self, model, single):
        seen = model(**single).logits
        single["pixel_values"] = -single["pixel_values"]
        assert (seen[:, -1] - model(**single).logits[:, -1]).abs().max() > 1e-3

    def test_cached_decoding_equals_recomputation(self, model, inputs):
        cached, _ = logits_of_generation(model, inputs, use_cache=True)
        plain, _ = logits_of_generation(model, inputs, use_cache=False)
        assert_close(cached, plain, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("size", [1, 5, 9, 16])
    def test_a_prompt_read_in_chunks_is_the_prompt(self, model, inputs, size):
        """Chunks that end before, within and after a picture."""
        whole, _ = logits_of_generation(model, inputs)
        chunked, _ = logits_of_generation(model, inputs, prefill_chunk_size=size)
        assert_close(chunked, whole, rtol=1e-4, atol=1e-4)

    def test_a_second_turn_goes_on_from_the_first_ones_cache(self, model, processor):
        token = processor.image_token
        first = processor(text=[f"a {token} is it"], images=[picture(3)], return_tensors="pt")
        out = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        more = processor(text=[f"b {token} what colour"], images=[picture(4)], return_tensors="pt")
        ids = torch.cat([out.sequences, more["input_ids"]], 1)
        pixels = torch.cat([first["pixel_values"], more["pixel_values"]])
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        whole, _ = logits_of_generation(model, asked | {"pixel_values": pixels})
        new = model(
            ids[:, out.past_key_values.get_seq_length() :],
            pixel_values=more["pixel_values"],
            attention_mask=asked["attention_mask"],
            past_key_values=out.past_key_values,
        ).logits[:, -1]
        assert_close(new, whole[:, 0], rtol=1e-4, atol=1e-4)

    def test_a_batch_equals_its_rows_one_at_a_time(self, model, processor, inputs):
        together, _ = logits_of_generation(model, inputs)
        token = processor.image_token
        rows = [
            ([f"a {token} b {token} what colour"], [picture(1), picture(2)]),
            (["what colour is it"], None),
            ([f"{token} is it red blue ?"], [picture(3)]),
        ]
        for row, (text, images) in enumerate(rows):
            alone, _ = logits_of_generation(model, processor(text=text, images=images, return_tensors="pt"))
            assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)

    def test_the_beam_score_equals_the_teacher_forced_score(self, model, inputs):
        out = model.generate(
            **inputs, max_new_tokens=5, num_beams=3, do_sample=False, length_penalty=0.0, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        length = inputs["input_ids"].shape[1]
        answer = out.sequences[:, length:]
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], 1)
        forced = dict(inputs) | {"input_ids": out.sequences, "attention_mask": mask}
        forced["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        logprobs = model(**forced).logits[:, length - 1 : -1].log_softmax(-1)
        scores = logprobs.gather(-1, answer.unsqueeze(-1)).squeeze(-1).sum(-1)
        assert_close(out.sequences_scores, scores, rtol=1e-4, atol=1e-4)

    def test_sampling_runs_and_is_seeded(self, model, inputs):
        def sample():
            torch.manual_seed(7)
            return model.generate(**inputs, max_new_tokens=5, do_sample=True, top_k=5)

        assert torch.equal(sample(), sample())

    def test_generation_returns_the_prompt_and_what_follows(self, model, inputs):
        tokens = model.generate(**inputs, max_new_tokens=2)
        assert torch.equal(tokens[:, :-2], inputs["input_ids"])

    def test_gradient_checkpointing_gives_equal_gradients(self, model, inputs):
        def gradients(checkpointing):
            net = copy.deepcopy(model).train()
            if checkpointing:
                net.gradient_checkpointing_enable({"use_reentrant": False})
            net(**inputs, labels=self.labels(inputs), use_cache=False).loss.backward()
            return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

        plain, checkpointed = gradients(False), gradients(True)
        assert plain.keys() == checkpointed.keys()
        for name in plain:
            assert_close(plain[name], checkpointed[name], rtol=1e-4, atol=1e-6)

    def test_the_loss_is_the_same_with_logits_at_labels_only(self, model, inputs):
        labels = self.labels(inputs)
        labels[1] = -100
        full = model.eval()(**inputs, labels=labels)
        sparse = model.train()(**inputs, labels=labels)
        assert sparse.logits.shape[0] == (labels[:, 1:] != -100).sum()
        assert_close(full.loss, sparse.loss)

    def test_accumulated_gradients_equal_those_of_the_whole_batch(self, model, inputs, processor):
        token = processor.image_token
        texts, images = [f"{token} is it red", f"{token} what colour is it red blue"], [picture(1), picture(2)]
        whole = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
        labels = whole["input_ids"].masked_fill(whole["input_ids"] == 0, -100)
        labels[labels == processor.image_token_id] = -100
        count = (labels[:, 1:] != -100).sum()
        loss = model(**whole, labels=labels).loss
        parts = 0
        for row in range(2):
            part = {k: v[row : row + 1] for k, v in whole.items()}
            parts = parts + model(**part, labels=labels[row : row + 1], num_items_in_batch=count).loss
        assert_close(loss, parts)

    def test_it_loads_in_half_precision_and_answers_alike(self, model, inputs, tmp_path):
        model.save_pretrained(tmp_path)
        for dtype in (torch.bfloat16, torch.float16):
            half = type(model).from_pretrained(tmp_path, dtype=dtype).eval()
            assert half.dtype == dtype
            assert_close(half(**inputs).logits.float(), model(**inputs).logits, rtol=0.2, atol=0.2)

    def test_it_is_built_and_loaded_on_the_meta_device(self, model, tmp_path):
        with torch.device("meta"):
            hollow = type(model)(model.config)
        assert {p.device.type for p in hollow.parameters()} == {"meta"}
        assert not [n for n, _ in hollow.named_buffers() if n not in dict(model.named_buffers())]
        model.save_pretrained(tmp_path)
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]

    def test_four_bit_loading_reaches_the_language_model_only(self, model, inputs, tmp_path):
        model.save_pretrained(tmp_path)
        plain = BitsAndBytesConfig(load_in_4bit=True)  # as someone who knows nothing of us would ask for it
        packed = type(model).from_pretrained(tmp_path, quantization_config=plain).eval()
        reached = {name for name, weight in packed.named_parameters() if weight.dtype == torch.uint8}
        assert reached and all(".language_model." in name for name in reached)
        floating = {n: w.dtype for n, w in packed.named_parameters() if n not in reached}
        assert floating == {n: w.dtype for n, w in model.named_parameters() if n not in reached}
        cached, _ = logits_of_generation(packed, inputs, use_cache=True)
        uncached, _ = logits_of_generation(packed, inputs, use_cache=False)
        assert_close(cached, uncached, rtol=1e-3, atol=1e-3)
        packed.save_pretrained(tmp_path / "packed")
        again = type(model).from_pretrained(tmp_path / "packed").eval()
        assert_close(again(**inputs).logits, packed(**inputs).logits, rtol=0, atol=0)

    def test_embeddings_resize_and_reload(self, model, inputs, tmp_path):
        before = model(**inputs).logits
        size = before.shape[-1]
        model.resize_token_embeddings(size + 5)
        assert_close(model(**inputs).logits[..., :size], before)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert_close(again(**inputs).logits, model(**inputs).logits)
        assert again(**inputs).logits.shape[-1] == size + 5

    def test_lora_trains_saves_reloads_and_merges(self, model, inputs, tmp_path):
        base = copy.deepcopy(model)
        bridge = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in self.bridges]
        config = peft.LoraConfig(r=2, target_modules=self.lora_targets, modules_to_save=bridge)
        tuned = peft.get_peft_model(model, config)
        optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
        tuned.train()(**inputs, labels=self.labels(inputs)).loss.backward()
        optimizer.step()
        tuned.eval().save_pretrained(tmp_path)
        expected = tuned(**inputs).logits
        assert not torch.allclose(expected, base(**inputs).logits)
        again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        assert_close(again(**inputs).logits, expected)
        assert_close(again.merge_and_unload()(**inputs).logits, expected, rtol=1e-3, atol=1e-4)

    def test_the_attention_implementation_reaches_every_tower(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        for choice in ("eager", "sdpa"):
            loaded = type(model).from_pretrained(tmp_path, attn_implementation=choice)
            towers = [m for m in loaded.modules() if hasattr(m, "config") and hasattr(m.config, "_attn_implementation")]
            assert {m.config._attn_implementation for m in towers} == {choice}

    def test_the_saved_folder_stands_alone(self, model, processor, tmp_path):
        """A stranger holding only the folder, in a fresh interpreter that cannot import this repository, gets the same logits."""
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        text, images = [f"a {processor.image_token} is it red"], [picture(3)]
        inputs = processor(text=text, images=images, return_tensors="pt")
        torch.save(
            {"text": text, "images": picture_list(images), "logits": model(**inputs).logits}, tmp_path / "expected.pt"
        )
        auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
        assert {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"} <= auto_map.keys()
        environment = {**os.environ, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        command = [sys.executable, "-c", STRANGER, str(self.reload_tolerance)]
        subprocess.run(command, cwd=tmp_path, check=True, env=environment)


def picture_list(images):
    """PIL pictures as tensors (3, H, W) that torch loads without pickle."""
    from torchvision.transforms.functional import pil_to_tensor

    return [pil_to_tensor(image) for image in images]
