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

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


@dataclass
class SpinConfig:
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

    def covers(self, layer: int) -> bool:
        return layer >= self.start_layer and (self.end_layer is None or layer < self.end_layer)

    to_dict = asdict

    @classmethod
    def from_words(cls, words: list[str]) -> "SpinConfig":
        """["keep_ratio=0.9", "score=mass"], as a command line has it. Raises ValueError, naming the word that is wrong."""
        kinds = {
            "keep_ratio": float,
            "top_k": int,
            "suppression": float,
            "start_layer": int,
            "end_layer": int,
            "score": str,
        }
        values = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in kinds:
                raise ValueError(f"{word!r} is none of {', '.join(f'{kind}=…' for kind in kinds)}")
            values[name] = kinds[name](value)
        return cls(**values)


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


class _Image:
    """Where a model's image stands in the sequence it is reading, and which rows of this forward are to be gated."""

    def __init__(self, config: SpinConfig, token: int, across: bool):
        self.config = config
        self.token = token
        self.across = across  # the image is in an encoder's memory
        self.where: Tensor | None = None  # (b, keys so far) bool
        self.has_image: Tensor | None = None  # (b,)
        self.rows = 0  # how many of the last rows are gated
        self.key_sums: dict[int, Tensor] = {}  # layer -> (b, Hk, d) float32
        self.prompt: Tensor | None = None  # input_ids, of a generation without a cache

    def read_memory(self, where: Tensor, past: int) -> None:
        """where (b, m) bool: the image's part of a memory. Every row of an answer is gated."""
        if past == 0 or where is not self.where:
            self.where, self.has_image = where, where.any(1)
            self.key_sums.clear()

    def read(self, input_ids: Tensor | None, past: int, use_cache: bool, last: int, unread: int) -> None:
        """
        input_ids (b, q) after `past` tokens, of which the `last` are to be answered from, with `unread` more of the prompt to come.
        """
        if input_ids is None:  # embeddings alone do not say where the image is
            self.where = None
            return
        new = input_ids == self.token
        anew = past == 0 or self.where is None or len(self.where) != len(new)
        if anew:
            self.where = new
        elif new.any() or self.where.shape[1] > past:
            self.where = torch.cat([self.where[:, :past], new], 1)
        if input_ids.shape[1] > 1 or anew:
            self.key_sums.clear()
            self.has_image = self.where.any(1)
        length = input_ids.shape[1]
        self.rows = 0 if unread else min(last, length)
        if (
            not use_cache and past == 0
        ):  # the whole sequence again for every token: what was gated before is gated again
            before, self.prompt = self.prompt, input_ids
            if before is not None and before.shape[1] < length and torch.equal(before, input_ids[:, : before.shape[1]]):
                self.prompt = before
            self.rows = length - self.prompt.shape[1] + 1
        if not bool(self.has_image.any()):
            self.rows = 0


_reading: dict[int, _Image] = {}  # id of a language model's config, which its attention modules hold


def spin_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling=None, **kwargs
) -> tuple[Tensor, None]:
    """SDPA, then the gate. The signature is transformers' attention interface."""
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    image = _reading.get(id(module.config))
    sliding = kwargs.get("sliding_window") is not None or getattr(module, "is_sliding", False)
    if image is None or image.where is None or sliding or not image.config.covers(module.layer_idx):
        return output, None
    rows = query.shape[2] if image.across else image.rows
    if not rows or image.config.suppression == 1 or image.across != getattr(module, "is_cross_attention", False):
        return output, None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    length = min(image.where.shape[1], key.shape[2])
    asked, where = query[:, :, -rows:], image.where[:, :length]
    if image.config.score == "logits":
        if module.layer_idx not in image.key_sums:
            keys = key[:, :, :length].float()
            image.key_sums[module.layer_idx] = torch.einsum("bl,bkld->bkd", where.float(), keys)
        scores = logit_scores(asked, image.key_sums[module.layer_idx], scaling)
    else:
        whole = nn.functional.pad(where, (0, key.shape[2] - length))
        scores = mass_scores(asked, key, whole, _allowed(attention_mask, key, rows, causal=not image.across), scaling)
    return turn_down(output, gates(scores, image.config, image.has_image)), None


def _allowed(attention_mask: Tensor | None, key: Tensor, rows: int, causal: bool) -> Tensor:
    """Which keys the last rows may look at, bool, broadcasting to (b, H, rows, l)."""
    keys = key.shape[2]
    if attention_mask is None:  # all, or, where the keys end where the queries do, those before
        at = torch.arange(keys, device=key.device)
        ends = keys - rows + torch.arange(rows, device=key.device)[:, None] if causal else keys
        return at <= ends
    mask = attention_mask[:, :, -rows:, :keys]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


# one name for each copy of this file that is loaded (ours, the Hub's): each looks only at what it has read itself
ATTENTION = f"spin_sdpa_{sha256(__name__.encode()).hexdigest()[:8]}"
AttentionInterface.register(ATTENTION, spin_attention)
# without a mask of this name, transformers would pass none, and padding would be attended to
AttentionMaskInterface.register(ATTENTION, sdpa_mask)

_enabled: "weakref.WeakKeyDictionary[nn.Module, tuple]" = weakref.WeakKeyDictionary()


def image_token_of(model: nn.Module) -> int:
    """The id that stands for an image token in the language model's sequence. Raises ValueError where there is none."""
    config = model.config
    across = getattr(config, "is_encoder_decoder", False) and not getattr(model, "memory_has_image_mask", False)
    if config.model_type == "mllama" or across:
        raise ValueError(
            f"head suppression scores the image among a sequence's keys; a {config.model_type!r} sees it by cross-attention"
        )
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    raise ValueError(f"a {config.model_type!r} config names no image token: where its image stands cannot be known")


def chosen_spin(model: nn.Module, words: list[str]) -> SpinConfig:
    """What a command line asks for: its words; without any, what is kept with the model, or the defaults."""
    kept = getattr(model.generation_config, "spin", None)
    return SpinConfig(**kept) if kept and not words else SpinConfig.from_words(words)


def keep_spin(model: nn.Module, config: SpinConfig) -> None:
    """Make `config` what `enable_spin(model)` takes when it is told nothing; it is saved with the model's generation config."""
    model.generation_config.spin = config.to_dict()
    model.generation_config._from_model_config = (
        False  # one derived from the model's config is read back without extras
    )


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
    config = SpinConfig(**config) if isinstance(config, dict) else config
    token = image_token_of(model)
    disable_spin(model)
    across = bool(getattr(model.config, "is_encoder_decoder", False))
    text = model.config if across else model.config.get_text_config()
    before = text._attn_implementation
    if before not in ("sdpa", "eager"):
        raise ValueError(f"head suppression runs beside SDPA; this model attends by {before!r}")
    image = _Image(config, token, across)

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if across:
            memory = kwargs.get("encoder_outputs")
            image.read_memory(memory.image_mask if memory is not None else ids == token, past)
            return
        last = kwargs.get("logits_to_keep")
        last = last if isinstance(last, int) and last > 0 else 1
        unread = 0
        if isinstance(mask, Tensor) and mask.ndim == 2:
            # generate hands each chunk of a prompt a slice of the whole prompt's mask, whose stride tells how long that is
            unread = mask.stride(0) - mask.shape[1]
        image.read(ids, past, kwargs.get("use_cache") is not False, last, unread)

    _reading[id(text)] = image
    model.set_attn_implementation({_where(model, text): ATTENTION})
    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    _enabled[model] = (hook, text, before)


def disable_spin(model: nn.Module) -> None:
    """Attend as before; nothing if head suppression is not on."""
    if model not in _enabled:
        return
    hook, text, before = _enabled.pop(model)
    hook.remove()
    _reading.pop(id(text), None)
    model.set_attn_implementation({_where(model, text): before})


def _where(model: nn.Module, text: Any) -> str:
    """What transformers calls the part that `text` configures."""
    return "" if text is model.config else "text_config"


@contextmanager
def spin(model: nn.Module, config: SpinConfig | dict | None = None) -> Iterator[Any]:
    """`enable_spin` for the body of a `with` statement."""
    enable_spin(model, config)
    try:
        yield model
    finally:
        disable_spin(model)


__all__ = ["SpinConfig", "chosen_spin", "disable_spin", "enable_spin", "keep_spin", "spin"]
