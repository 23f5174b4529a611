"""
Head suppression (SPIN): at each layer and for each new token, the attention heads that look least at the image are turned down.

    query of the new token (b, H, d), keys of the image (b, Hk, image, d)
        -> score of each head: how much this query gives these keys (b, H)
        -> the top-K heads keep their output, the others' is multiplied by `suppression`

For any Hugging Face vision–language model whose image stands in its language model's sequence, grouped queries and sliding windows
included: `with spin(model, SpinConfig(keep_ratio=0.9)): model.generate(...)`. No retraining, no class replaced. In an
encoder–decoder that tells where in its memory the image is (`memory_has_image_mask`, the SPIN VLM), the heads of cross-attention.

Unusual:
- Attention is never materialised. The published score, the sum of a head's logits over the image's keys, is linear in the keys:
  scaling * q · sum(k). The sum is kept for each layer when the prompt is read, so a step costs O(H d), and SDPA runs untouched.
- Only tokens that are about to be answered from are gated: the prompt's last, and each generated one; so a chunk of a prompt that
  is read in chunks is left alone, and so are the tokens of the prompt themselves.

Source: Sarkar et al. 2025, "SPIN", https://arxiv.org/abs/2505.16411, as its code has it (sum of pre-softmax logits); "mass" is what
its words say (share of attention), which a bias on the keys, as Qwen2's, does not change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .image_attention import LayerSettings, reading_of, register, start_reading, stop_reading
from .image_attention import allowed_keys as _allowed


@dataclass
class SpinConfig(LayerSettings):
    """
    Raises ValueError for settings outside their range.

    keep_ratio: share of heads that keep their output, rounded down (at least one); top_k: their number, instead. suppression: what
    the other heads' output is multiplied by; 0 removes it, 1 changes nothing. start_layer, end_layer: half-open range of layers.
    score: "logits" or "mass".
    """

    keep_ratio: float = 0.95
    top_k: int | None = None
    suppression: float = 0.0
    start_layer: int = 0
    end_layer: int | None = None
    score: str = "logits"

    def __post_init__(self):
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be above 0 and at most 1; got {self.keep_ratio}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1; got {self.top_k}")
        if not 0 <= self.suppression <= 1:
            raise ValueError(f"suppression must be between 0 and 1; got {self.suppression}")
        if self.score not in ("logits", "mass"):
            raise ValueError(f'score must be "logits" or "mass"; got {self.score!r}')

    def heads(self, count: int) -> int:
        """How many of so many heads keep their output."""
        return min(count, self.top_k or max(1, int(self.keep_ratio * count)))


def logit_scores(query: Tensor, key_sum: Tensor, scaling: float) -> Tensor:
    """Sum of each head's logits over the image's keys. query (b, H, n, d), key_sum (b, Hk, d) float32 -> (b, H, n) float32."""
    grouped = query.float().unflatten(1, (key_sum.shape[1], -1))  # (b, Hk, G, n, d)
    return torch.einsum("bkgnd,bkd->bkgn", grouped, key_sum).flatten(1, 2) * scaling


def mass_scores(query: Tensor, key: Tensor, image: Tensor, allowed: Tensor, scaling: float) -> Tensor:
    """
    Share of each head's attention that the image gets. query (b, H, n, d), key (b, Hk, l, d), image bool (b, l), allowed bool
    broadcasting to (b, H, n, l) -> (b, H, n) float32.
    """
    grouped = query.float().unflatten(1, (key.shape[1], -1))
    logits = torch.einsum("bkgnd,bkld->bkgnl", grouped, key.float()).flatten(1, 2) * scaling
    logits = logits.masked_fill(~allowed, -torch.inf)
    everything = logits.logsumexp(-1)
    seen = logits.masked_fill(~image[:, None, None], -torch.inf).logsumexp(-1)
    return (seen - everything).exp()


def gates(scores: Tensor, config: SpinConfig, has_image: Tensor) -> Tensor:
    """Scores (b, H, n) -> what each head's output is multiplied by, (b, H, n) float32: 1 throughout for a row without an image."""
    kept = scores.topk(config.heads(scores.shape[1]), dim=1).indices
    gate = torch.full_like(scores, config.suppression).scatter_(1, kept, 1.0)
    return torch.where(has_image[:, None, None], gate, torch.ones_like(gate))


def turn_down(output: Tensor, gate: Tensor) -> Tensor:
    """Multiply the last n rows of an attention output (b, q, H, d) by gate (b, H, n)."""
    rows = gate.shape[-1]
    changed = output[:, -rows:] * gate.transpose(1, 2).unsqueeze(-1).to(output.dtype)
    return changed if rows == output.shape[1] else torch.cat([output[:, :-rows], changed], 1)


def spin_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling=None, **kwargs
) -> tuple[Tensor, None]:
    """SDPA, then the gate. The signature is transformers' attention interface."""
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    image, rows = reading_of(module, query, kwargs)
    if not rows or image.config.suppression == 1:
        return output, None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    length = min(image.where.shape[1], key.shape[2])
    asked, where = query[:, :, -rows:], image.where[:, :length]
    if image.config.score == "logits":
        if module.layer_idx not in image.kept:
            keys = key[:, :, :length].float()
            image.kept[module.layer_idx] = torch.einsum("bl,bkld->bkd", where.float(), keys)
        scores = logit_scores(asked, image.kept[module.layer_idx], scaling)
    else:
        whole = nn.functional.pad(where, (0, key.shape[2] - length))
        scores = mass_scores(asked, key, whole, _allowed(attention_mask, key, rows, causal=not image.across), scaling)
    return turn_down(output, gates(scores, image.config, image.has_image)), None


ATTENTION = register(spin_attention)


def chosen_spin(model: nn.Module, words: list[str]) -> SpinConfig:
    """What a command line asks for: its words; without any, what is kept with the model, or the defaults."""
    kept = getattr(model.generation_config, "spin", None)
    return SpinConfig(**kept) if kept and not words else SpinConfig.from_words(words)


def keep_spin(model: nn.Module, config: SpinConfig) -> None:
    """Make `config` what `enable_spin(model)` takes when it is told nothing; it is saved with the model's generation config."""
    model.generation_config.spin = config.to_dict()
    # one derived from the model's config is read back without extras
    model.generation_config._from_model_config = False


def enable_spin(model: nn.Module, config: SpinConfig | dict | None = None) -> None:
    """
    Suppress heads in every forward and generation of a vision–language model until `disable_spin(model)`.

    config: default, what the model's generation config holds as `spin`. A model that attended eagerly attends by SDPA meanwhile.
    Raises ValueError for a model that it has no meaning for, and where there is no configuration.
    """
    if config is None:
        config = getattr(model.generation_config, "spin", None)
        if config is None:
            raise ValueError("say how: enable_spin(model, SpinConfig(...)); the generation config holds no `spin`")
    start_reading(model, SpinConfig(**config) if isinstance(config, dict) else config, ATTENTION)


def disable_spin(model: nn.Module) -> None:
    """Attend as before; nothing if head suppression is not on."""
    stop_reading(model, ATTENTION)


@contextmanager
def spin(model: nn.Module, config: SpinConfig | dict | None = None) -> Iterator[Any]:
    """`enable_spin` for the body of a `with` statement."""
    enable_spin(model, config)
    try:
        yield model
    finally:
        disable_spin(model)


__all__ = ["SpinConfig", "chosen_spin", "disable_spin", "enable_spin", "keep_spin", "spin"]
