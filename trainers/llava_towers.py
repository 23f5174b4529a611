"""
A new LLaVA of two pretrained towers, and how large the pictures are that a processor gives.

    vision_model: CLIP (its vision part), SigLIP, …  ┐
    text_model: Qwen2, Llama, …                      ┴ -> LlavaForConditionalGeneration (projector new), LlavaProcessor

Unusual: how many tokens a picture makes is not looked up by family but seen: the tower is shown one picture, and what it gives
beyond its patches (CLIP's class token) is what the processor counts and the model leaves out. Source: LLaVA-1.5
(https://huggingface.co/papers/2310.03744).
"""

from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from modeling.towers import load_text_tower, load_vision_tower, quantize_without
from processing.chat_template import take_pictures
from trainers.frozen_towers import not_language


def join_llava(
    vision_model: str,
    text_model: str,
    vision_revision: str | None = None,
    text_revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    **config,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """
    Towers are Hub ids or folders; their weights are kept. `quantization_config` is for the language model; further keywords go to
    LlavaConfig (vision_feature_layer, projector_hidden_act, …). Raises OSError and ValueError as load_vision_tower and
    load_text_tower do; ValueError for a language model whose logits LLaVA does not reproduce.
    """
    common = {"dtype": dtype, "attn_implementation": attn_implementation}
    eyes = load_vision_tower(vision_model, vision_revision, **common).eval()
    writer = load_text_tower(text_model, text_revision, **common).eval()
    tokenizer = AutoTokenizer.from_pretrained(text_model, revision=text_revision)
    image_token, template = take_pictures(tokenizer)
    side, patch = eyes.config.image_size, eyes.config.patch_size
    with torch.no_grad():
        seen = eyes(torch.zeros(1, 3, side, side, dtype=eyes.dtype)).last_hidden_state.shape[1]
    extra = seen - (side // patch) ** 2  # of CLIP: 1, the class token
    strategy = "default" if extra == 1 else "full"
    config = LlavaConfig(
        vision_config=eyes.config, text_config=writer.config.get_text_config(),
        image_token_index=tokenizer.convert_tokens_to_ids(image_token), image_seq_length=seen - (strategy == "default"),
        vision_feature_select_strategy=strategy, **config,
    )  # fmt: skip
    config.text_config.use_cache = True  # a tower that was only ever trained may have been saved without
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower, model.model.language_model = eyes, writer.base_model
    model.model.multi_modal_projector = LlavaMultiModalProjector(config).to(eyes.dtype)
    model.lm_head = writer.get_output_embeddings()
    model.tie_weights()
    model.generation_config = writer.generation_config
    with torch.no_grad():
        probe = torch.arange(8)[None] % config.text_config.vocab_size
        apart = (model.eval()(probe).logits - writer(probe).logits).abs().max().item()
    if apart > 1e-3:
        raise ValueError(f"{text_model} computes its logits in a way LLaVA cannot keep: they differ by {apart:.3g}")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if quantization_config is not None:  # by the way that reloading takes, so that both arrive at the same weights
        quantization_config = quantize_without(quantization_config, not_language(model))
        told = {"state_dict": model.state_dict(), "quantization_config": quantization_config, **common}
        model = LlavaForConditionalGeneration.from_pretrained(None, config=model.config, **told)
    images = AutoImageProcessor.from_pretrained(vision_model, revision=vision_revision)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=patch, vision_feature_select_strategy=strategy, chat_template=template,
        image_token=image_token, num_additional_image_tokens=extra,
    )  # fmt: skip
    set_image_size(processor, model, side)
    return model, processor


def set_image_size(processor: Any, model: PreTrainedModel, side: int) -> None:
    """
    Pictures of `side` x `side` pixels from now on; of a Qwen-VL, which keeps their shapes, of up to as many pixels. Raises
    ValueError where the vision tower was made for another size, and for a processor that cuts pictures into tiles.
    """
    images = processor.image_processor
    if getattr(images, "merge_size", None) is not None:  # Qwen: its "edges" are numbers of pixels
        least = images.size["shortest_edge"]
        if side * side < least:
            raise ValueError(f"image_size: {side} x {side} pixels are fewer than the least, {least}")
        images.size = {"shortest_edge": least, "longest_edge": side * side}
        return
    size = images.size
    if size.get("longest_edge") is not None:
        raise ValueError(
            f"image_size: {type(images).__name__} cuts pictures into tiles by settings of its own; leave image_size out"
        )
    made_for = getattr(model.config.vision_config, "image_size", None)
    if made_for is not None and side != (made_for[0] if isinstance(made_for, (list, tuple)) else made_for):
        raise ValueError(f"image_size: {side}, but the vision tower was made for pictures of {made_for} pixels a side")
    square = {"height": side, "width": side}
    images.size = {"shortest_edge": side} if size.get("shortest_edge") is not None else square
    images.crop_size = square  # of a processor that crops nothing too: how many tokens there are is asked of it
