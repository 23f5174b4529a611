"""
Where the image is: what methods that change a model's attention to it share (head suppression, attention amplification).

    forward begins   -> a hook notes which keys are the image's, and how many of the last rows are to be answered from
    each attention   -> the method's own function, in SDPA's place; `reading_of` hands it that note
    after the method -> `stop_reading`: SDPA, as before

Unusual: only tokens that are about to be answered from are a method's: the prompt's last, and each generated one. So a chunk of a
prompt that is read in chunks is left alone, and so are the tokens of the prompt themselves.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from hashlib import sha256
from types import NoneType
from typing import Any, Self, get_args, get_type_hints

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


class Settings:
    """What a dataclass of settings has besides its fields."""

    to_dict = asdict

    @classmethod
    def from_words(cls, words: list[str]) -> Self:
        """["keep_ratio=0.9", "score=mass"], as a command line has it. Raises ValueError, naming the word that is wrong."""
        hints = get_type_hints(cls)
        kinds = {field.name: _kind(hints[field.name]) for field in fields(cls)}
        values = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in kinds:
                raise ValueError(f"{word!r} is none of {', '.join(f'{kind}=…' for kind in kinds)}")
            try:
                values[name] = kinds[name](value)
            except ValueError as problem:
                raise ValueError(f"{word!r}: {name} wants a value of type {kinds[name].__name__}") from problem
        return cls(**values)


def _kind(hint: Any) -> type:
    return next((kind for kind in get_args(hint) if kind is not NoneType), hint)


class LayerSettings(Settings):
    """Settings with a half-open range of layers, `start_layer` to `end_layer` (None: all that follow)."""

    start_layer: int
    end_layer: int | None

    def covers(self, layer: int) -> bool:
        return layer >= self.start_layer and (self.end_layer is None or layer < self.end_layer)


class Reading:
    """Where a model's image stands in the sequence it is reading, and which rows of this forward are to be answered from."""

    def __init__(self, config: LayerSettings, token: int, across: bool):
        self.config = config
        self.token = token
        self.across = across  # the image is in an encoder's memory
        self.where: Tensor | None = None  # (b, keys so far) bool
        self.has_image: Tensor | None = None  # (b,)
        self.rows = 0  # how many of the last rows are a method's
        self.kept: dict[int, Tensor] = {}  # layer -> what a method keeps of the image's keys until the next image
        self.prompt: Tensor | None = None  # input_ids, of a generation without a cache

    def read_memory(self, where: Tensor, past: int) -> None:
        """where (b, m) bool: the image's part of a memory. Every row of an answer is a method's."""
        if past == 0 or where is not self.where:
            self.where, self.has_image = where, where.any(1)
            self.kept.clear()

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
            self.kept.clear()
            self.has_image = self.where.any(1)
        length = input_ids.shape[1]
        self.rows = 0 if unread else min(last, length)
        if not use_cache and past == 0:
            # the whole sequence again for every token: what was a method's before is so again
            before, self.prompt = self.prompt, input_ids
            if before is not None and before.shape[1] < length and torch.equal(before, input_ids[:, : before.shape[1]]):
                self.prompt = before
            self.rows = length - self.prompt.shape[1] + 1
        if not bool(self.has_image.any()):
            self.rows = 0

    def look(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """A forward pre-hook."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if self.across:
            memory = kwargs.get("encoder_outputs")
            self.read_memory(memory.image_mask if memory is not None else ids == self.token, past)
            return
        last = kwargs.get("logits_to_keep")
        last = last if isinstance(last, int) and last > 0 else 1
        unread = 0
        if isinstance(mask, Tensor) and mask.ndim == 2:
            # generate hands each chunk of a prompt a slice of the whole prompt's mask, whose stride tells how long that is
            unread = mask.stride(0) - mask.shape[1]
        self.read(ids, past, kwargs.get("use_cache") is not False, last, unread)


_readings: dict[int, Reading] = {}  # id of a language model's config, which its attention modules hold
_enabled: "weakref.WeakKeyDictionary[nn.Module, tuple]" = weakref.WeakKeyDictionary()


def reading_of(module: nn.Module, query: Tensor, kwargs: dict) -> tuple[Reading | None, int]:
    """
    What an attention module's model is reading, and how many of the last rows of query (b, H, q, d) are a method's; (None, 0)
    where none is: no image, a layer outside the range, one with a sliding window, the self-attention beside a cross-attention.
    """
    reading = _readings.get(id(module.config))
    sliding = kwargs.get("sliding_window") is not None or getattr(module, "is_sliding", False)
    if reading is None or reading.where is None or sliding or not reading.config.covers(module.layer_idx):
        return None, 0
    rows = query.shape[2] if reading.across else reading.rows
    if not rows or reading.across != getattr(module, "is_cross_attention", False):
        return None, 0
    return reading, rows


def allowed_keys(attention_mask: Tensor | None, key: Tensor, rows: int, causal: bool) -> Tensor:
    """Which keys the last rows may look at, bool, broadcasting to (b, H, rows, l)."""
    keys = key.shape[2]
    if attention_mask is None:  # all, or, where the keys end where the queries do, those before
        at = torch.arange(keys, device=key.device)
        ends = keys - rows + torch.arange(rows, device=key.device)[:, None] if causal else keys
        return at <= ends
    mask = attention_mask[:, :, -rows:, :keys]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def register(attention: Callable) -> str:
    """
    Make an attention function of transformers' interface known to transformers. Returns its name: one for each copy of a file
    that is loaded (ours, the Hub's), since each looks only at what it has read itself.
    """
    name = f"{attention.__name__}_{sha256(attention.__module__.encode()).hexdigest()[:8]}"
    AttentionInterface.register(name, attention)
    # without a mask of this name, transformers would pass none, and padding would be attended to
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def image_token_of(model: nn.Module) -> int:
    """The id that stands for an image token in the language model's sequence. Raises ValueError where there is none."""
    config = model.config
    across = getattr(config, "is_encoder_decoder", False) and not getattr(model, "memory_has_image_mask", False)
    if config.model_type == "mllama" or across:
        raise ValueError(
            f"the image must stand among the keys of a sequence; a {config.model_type!r} sees it by cross-attention"
        )
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    raise ValueError(f"a {config.model_type!r} config names no image token: where its image stands cannot be known")


def start_reading(model: nn.Module, config: LayerSettings, attention: str) -> None:
    """
    Attend by the function registered as `attention` until `stop_reading`, which is called first where it is on. A model that
    attended eagerly attends by SDPA meanwhile. Raises ValueError for a model whose image cannot be found or that attends otherwise.
    """
    token = image_token_of(model)
    stop_reading(model, attention)
    across = bool(getattr(model.config, "is_encoder_decoder", False))
    text = model.config if across else model.config.get_text_config()
    before = text._attn_implementation
    if before not in ("sdpa", "eager"):
        raise ValueError(f"{attention.rpartition('_')[0]} runs in the place of SDPA; this model attends by {before!r}")
    reading = _readings[id(text)] = Reading(config, token, across)
    model.set_attn_implementation({_where(model, text): attention})
    hook = model.register_forward_pre_hook(reading.look, with_kwargs=True)
    _enabled[model] = (hook, text, before, attention)


def stop_reading(model: nn.Module, attention: str) -> None:
    """Attend as before; nothing if `attention` is not on."""
    if model not in _enabled or _enabled[model][-1] != attention:
        return
    hook, text, before, _ = _enabled.pop(model)
    hook.remove()
    _readings.pop(id(text), None)
    model.set_attn_implementation({_where(model, text): before})


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """For the body of a `with` statement, attention is SDPA's, whatever method is on."""
    text = _enabled[model][1] if model in _enabled else None
    reading = _readings.pop(id(text), None)
    try:
        yield
    finally:
        if reading is not None:
            _readings[id(text)] = reading


def _where(model: nn.Module, text: Any) -> str:
    """What transformers calls the part that `text` configures."""
    return "" if text is model.config else "text_config"


__all__ = [
    "Reading",
    "allowed_keys",
    "image_token_of",
    "reading_of",
    "register",
    "set_aside",
    "start_reading",
    "stop_reading",
]
