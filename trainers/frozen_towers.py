"""
What learns and what does not in any HF vision–language model: towers frozen whole, 4 bits for the language model alone, float32 for
what learns beside half-precision towers.

Unusual: where the towers are is what transformers' get_encoder and get_decoder answer, so nothing here knows a family by name.
"""

from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from modeling.towers import quantize_without


def towers_of(model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    """The vision tower and the language model. Raises ValueError where either is not found."""
    eyes, mouth = model.get_encoder(modality="image"), model.get_decoder()
    if {eyes, mouth} & {model, model.base_model}:
        raise ValueError(f"{type(model).__name__}: its towers are not where transformers looks; train it with lora")
    return eyes, mouth


def freeze_towers(model: PreTrainedModel, vision: bool = True, text: bool = True) -> None:
    """Leave what joins the towers trainable, and each tower (head included) not frozen here. Raises as towers_of."""
    eyes, mouth = towers_of(model)
    for part, frozen in ((eyes, vision), (mouth, text), (model.get_output_embeddings(), text)):
        part.requires_grad_(not frozen)


def not_language(model: PreTrainedModel) -> list[str]:
    """Full names of the parts that are not the language model: vision tower, what joins them, head. Raises as towers_of."""
    _, mouth = towers_of(model)
    apart, inside = [], [("", model)]
    while inside:
        prefix, part = inside.pop()
        for name, child in part.named_children():
            if child is not mouth:
                holds = any(module is mouth for module in child.modules())
                (inside if holds else apart).append((f"{prefix}{name}.", child) if holds else f"{prefix}{name}")
    return sorted(apart)


def language_only(quantization_config: Any, model: str, **hub) -> Any:
    """
    The quantisation kept to the language model of a model (Hub id or folder) that is yet to be loaded. hub: revision,
    trust_remote_code. Raises as towers_of.
    """
    with torch.device("meta"):
        hollow = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(model, **hub), trust_remote_code=hub.get("trust_remote_code", False)
        )
    return quantize_without(quantization_config, not_language(hollow))


def learn_in_float32(model: nn.Module) -> None:
    """
    Modules that a LoRA trains whole (modules_to_save), beside towers in half precision: their weights in float32, as LoRA's own
    are. What goes in and out of them stays as it was.
    """
    for part in model.modules():
        if isinstance(part, ModulesToSaveWrapper):
            copy = part.modules_to_save["default"]
            dtype = next(copy.parameters()).dtype
            if dtype in (torch.float16, torch.bfloat16):
                copy.float()
                copy.register_forward_pre_hook(lambda _, given: tuple(_as(torch.float32, one) for one in given))
                copy.register_forward_hook(lambda _, given, made, dtype=dtype: _as(dtype, made))


def _as(dtype: torch.dtype, value: Any) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
