"""Tiny vision–language models of five families with random weights, prompts for them, and what they say."""

import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests.conftest import make_ossight, make_processor, picture


TOKEN = 150
TEXT = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8}
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llava():
    eyes = CLIPVisionConfig(**EYES, image_size=28, patch_size=7, projection_dim=32)
    text = LlamaConfig(**TEXT, num_key_value_heads=8)
    config = {"image_token_id": TOKEN, "image_seq_length": 16, "vision_feature_layer": -1}
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=eyes, **config))
    return model, lambda images: {"pixel_values": torch.randn(images, 3, 28, 28)}, [TOKEN] * 16


def internvl():
    eyes = InternVLVisionConfig(**EYES, image_size=[28, 28], patch_size=[7, 7])
    text = Qwen2Config(**TEXT, num_key_value_heads=2)
    config = InternVLConfig(text_config=text, vision_config=eyes, image_token_id=TOKEN, downsample_ratio=0.5)
    model = InternVLForConditionalGeneration(config)
    return model, lambda images: {"pixel_values": torch.randn(images, 3, 28, 28)}, [TOKEN] * 4


def smolvlm():
    text = LlamaConfig(**TEXT, num_key_value_heads=4, pad_token_id=0)
    eyes = {**EYES, "image_size": 28, "patch_size": 7, "model_type": "smolvlm_vision"}
    config = SmolVLMConfig(text_config=text, vision_config=eyes, image_token_id=TOKEN, scale_factor=2, pad_token_id=0)
    model = SmolVLMForConditionalGeneration(config)
    return model, lambda images: {"pixel_values": torch.randn(images, 1, 3, 28, 28)}, [TOKEN] * 4


def qwen():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    eyes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 64}
    eyes |= {"patch_size": 14, "spatial_merge_size": 2, "window_size": 56, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "rope_parameters": rope}, vision_config=eyes,
        image_token_id=TOKEN, vision_start_token_id=151, vision_end_token_id=152, video_token_id=153,
    )  # fmt: skip

    def pixels(images):
        grid = torch.tensor([[1, 4, 4]] * images)
        return {"pixel_values": torch.randn(16 * images, 3 * 2 * 14 * 14), "image_grid_thw": grid}

    return Qwen2_5_VLForConditionalGeneration(config), pixels, [151] + [TOKEN] * 4 + [152]


def gemma():
    """Every other layer sees a window of 8 tokens, and an image's tokens see each other."""
    layers = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
    text = Gemma3TextConfig(**TEXT, **layers, num_key_value_heads=4, head_dim=8, pad_token_id=0)
    eyes = SiglipVisionConfig(**EYES, image_size=28, patch_size=7)
    config = {"image_token_id": TOKEN, "boi_token_index": 151, "eoi_token_index": 152, "mm_tokens_per_image": 4}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=eyes, **config))
    return model, lambda images: {"pixel_values": torch.randn(images, 3, 28, 28)}, [TOKEN] * 4


FAMILIES = {"llava": llava, "internvl": internvl, "smolvlm": smolvlm, "qwen2_5_vl": qwen}
EVERY = [*FAMILIES, "ossight"]
FAMILIES["gemma3"] = gemma  # apart: head suppression's literal rule knows no windows
ASKED = {
    "max_new_tokens": 8,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
    "suppress_tokens": [TOKEN],
}


def make(family):
    torch.manual_seed(0)
    if family == "ossight":
        model = make_ossight(text="llama")
        return model, None, None
    model, pixels, image = FAMILIES[family]()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)  # flat attention would hide a wrong gate
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval(), pixels, image


def prompts(family, pixels, image, rows):
    """Left-padded prompts, the second and third shorter than the first; every row shows one image."""
    if family == "ossight":
        text = ["a <image> b what colour", "<image> is it", "it is a b c <image> d"][:rows]
        images = [[picture(i)] for i in range(rows)]
        return dict(make_processor()(text=text, images=images, padding=True, padding_side="left", return_tensors="pt"))
    ids = [[1, 5, 6, *image, 7, 8, 9, 10], [1, *image, 11, 12], [1, 2, 3, 4, *image, 13]][:rows]
    width = max(map(len, ids))
    batch = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
        **pixels(rows),
    }
    if family == "qwen2_5_vl":
        batch["mm_token_type_ids"] = (batch["input_ids"] == TOKEN).int()
    if family == "gemma3":
        batch["token_type_ids"] = (batch["input_ids"] == TOKEN).int()
    return batch


def alone(asked, row):
    """The prompt of one row without its padding; every row shows one image."""
    kept = asked["attention_mask"][row].bool()
    one = {name: values[row : row + 1] for name, values in asked.items()}
    for name in {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"} & set(one):
        one[name] = one[name][:, kept]
    if "image_grid_thw" in asked:
        ends = asked["image_grid_thw"].prod(-1).cumsum(0).tolist()
        one["pixel_values"] = asked["pixel_values"][([0] + ends)[row] : ends[row]]
    return one


def longer(one, said):
    """A prompt and what was said to it (1, n), as one prompt."""
    new = {
        "input_ids": said,
        "attention_mask": torch.ones_like(said),
        "mm_token_type_ids": torch.zeros_like(said).int(),
    }
    return one | {name: torch.cat([one[name], new[name]], 1) for name in new.keys() & one.keys()}


def generated(model, **kwargs):
    out = model.generate(**kwargs)
    return torch.stack(out.logits, 1), out.sequences
