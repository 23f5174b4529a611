"""
Attention amplification (PAI): each new token looks harder at the image, and less is heard of what it would say without one.

    logits of the new token's attention over the image's keys: a + alpha * |a|, before the softmax            (in some layers)
    gamma * logits(prompt) - (gamma - 1) * logits(prompt without its image), for tokens at least `beta` times as probable as the
    likeliest

For any Hugging Face vision–language model whose image stands in its language model's sequence, and the SPIN VLM, whose image is
in a memory that cross-attention looks at: `with pai(model, PAIConfig(alpha=0.2)): model.generate(...)`.

Unusual:
- Attention is never materialised: only the rows that are answered from are computed by hand, logits (b, H, 1, l) in a step; SDPA
  does the others.
- gamma other than 1 needs a second pass for every token (second_pass.py). Its prompt has the image's tokens masked and the others'
  positions closed up, which is the prompt without them; words that frame the image stay. It attends plainly, as published.

Source: Liu et al., ECCV 2024, https://arxiv.org/abs/2407.21771; rule and defaults: attention.py, CFG.py and the README's commands
of https://github.com/LALBJ/PAI at 9bbd8bd (alpha 0.2, gamma 1.1, layers 2 to 32 of 32, cutoff 0.1; its argparse has gamma 2). There
the last row of every forward is amplified; here, without a cache, every row that once was the last: as with a cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .image_attention import (
    LayerSettings,
    allowed_keys,
    image_token_of,
    reading_of,
    register,
    start_reading,
    stop_reading,
)
from .second_pass import SecondPass, start_second_pass, stop_second_pass


@dataclass
class PAIConfig(LayerSettings):
    """
    Raises ValueError for settings outside their range.

    alpha: how much attention to the image is amplified; 0 changes nothing. gamma: how much the prompt with its image counts against
    the one without; 1 changes nothing and costs nothing. beta: tokens less probable than so much of the likeliest's probability are
    out, where gamma is not 1. start_layer, end_layer: half-open range of amplified layers.
    """

    alpha: float = 0.2
    gamma: float = 1.1
    beta: float = 0.1
    start_layer: int = 2
    end_layer: int | None = None

    def __post_init__(self):
        if self.alpha < 0:
            raise ValueError(f"alpha must be at least 0; got {self.alpha}")
        if self.gamma < 1:
            raise ValueError(f"gamma must be at least 1; got {self.gamma}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be between 0 and 1; got {self.beta}")


def amplified(
    query: Tensor, key: Tensor, value: Tensor, image: Tensor, allowed: Tensor, scaling: float, alpha: float
) -> Tensor:
    """
    Attention with the image's logits raised. query (b, H, n, d), key and value (b, Hk, l, d), image bool (b, l), allowed bool
    broadcasting to (b, H, n, l) -> (b, n, H, d). Softmax in float32.
    """
    grouped = query.unflatten(1, (key.shape[1], -1))  # (b, Hk, G, n, d)
    logits = torch.einsum("bkgnd,bkld->bkgnl", grouped, key).flatten(1, 2).float() * scaling
    logits = logits + alpha * logits.abs() * image[:, None, None]
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1).to(value.dtype)
    return torch.einsum("bkgnl,bkld->bnkgd", weights.unflatten(1, (key.shape[1], -1)), value).flatten(2, 3)


def pai_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling=None, **kwargs
) -> tuple[Tensor, None]:
    """SDPA, but for the rows that are answered from. The signature is transformers' attention interface."""
    reading, rows = reading_of(module, query, kwargs)
    if rows < query.shape[2]:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        if not rows:
            return output, None
    keys = key.shape[2]
    image = nn.functional.pad(reading.where[:, :keys], (0, max(0, keys - reading.where.shape[1])))
    allowed = allowed_keys(attention_mask, key, rows, causal=not reading.across)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    changed = amplified(query[:, :, -rows:], key, value, image, allowed, scaling, reading.config.alpha)
    return changed if rows == query.shape[2] else torch.cat([output[:, :-rows], changed], 1), None


ATTENTION = register(pai_attention)
TEXT_INPUTS = (
    "input_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
    "logits_to_keep",
)  # of a forward: the rest is about pictures


class BlindPass(SecondPass):
    """The prompt without its image."""

    def without(self, kwargs: dict, image: Tensor | None, reads: Any) -> dict:
        if image is None:
            raise ValueError("the prompt without its image needs input_ids: embeddings do not say where the image is")
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        mask = (torch.ones_like(image, dtype=torch.long) if mask is None else mask).masked_fill(image, 0)
        text = {name: kwargs[name] for name in TEXT_INPUTS if name in kwargs} | {"attention_mask": mask}
        text["input_ids"] = ids.masked_fill(image[:, -ids.shape[1] :], 0)  # any word: it is masked
        if "position_ids" in reads:
            text["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return text

    def with_memory(self, kwargs: dict, memory: Any) -> dict:
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(memory.image_mask, dtype=torch.long) if mask is None else mask
        return super().with_memory(kwargs, memory) | {"attention_mask": mask.masked_fill(memory.image_mask, 0)}


def enable_pai(model: nn.Module, config: PAIConfig | dict | None = None) -> None:
    """
    Amplify and guide in every forward and generation of a vision–language model until `disable_pai(model)`.

    A model that attended eagerly attends by SDPA meanwhile. Raises ValueError for a model whose image cannot be found, for a range
    of layers that holds none of the model's, and where head suppression or VCD is on.
    """
    config = PAIConfig(**config) if isinstance(config, dict) else config or PAIConfig()
    layers, token = model.config.get_text_config(decoder=True).num_hidden_layers, image_token_of(model)
    if config.alpha and not any(map(config.covers, range(layers))):
        raise ValueError(
            f"start_layer={config.start_layer} and end_layer={config.end_layer} hold none of the model's {layers} layers"
        )
    disable_pai(model)
    if config.alpha:
        start_reading(model, config, ATTENTION)
    if config.gamma != 1:
        try:
            start_second_pass(model, BlindPass, config.gamma - 1, config.beta, token, "no image")
        except ValueError:
            disable_pai(model)
            raise


def disable_pai(model: nn.Module) -> None:
    """Attention and logits as before; nothing if PAI is not on."""
    stop_reading(model, ATTENTION)
    stop_second_pass(model, BlindPass)


@contextmanager
def pai(model: nn.Module, config: PAIConfig | dict | None = None) -> Iterator[Any]:
    """`enable_pai` for the body of a `with` statement."""
    enable_pai(model, config)
    try:
        yield model
    finally:
        disable_pai(model)


__all__ = ["PAIConfig", "disable_pai", "enable_pai", "pai"]
