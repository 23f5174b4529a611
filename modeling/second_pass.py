"""
Two passes for a token: the model reads the prompt, and the same prompt with something taken from it; their logits are contrasted.

    forward -> logits (b, n, vocab)                                          of the inputs as they are
    forward -> logits (b, n, vocab)                                          of the inputs less something, by their own KV cache
    (1 + weight) * first - weight * second, for tokens that the first holds plausible

What contrastive decoding (VCD) and PAI's classifier-free guidance share.

Unusual:
- The second pass runs in a hook on the first, whose output gets the contrasted logits. So whatever generates sees no others: greedy
  search, sampling, beams, assisted decoding.
- The second cache's layers stand behind the first cache's own, and are so reordered and cropped with them.
- The tokens of both are as many: one that the second pass must not see is masked, and the others' positions close up.
- Implausible tokens are put 10,000 below what they were instead of at minus infinity: the same probability, zero, but where a later
  processor forbids every plausible token (a banned n-gram, a minimal length), the model's own next best remains.
"""

import weakref
from dataclasses import dataclass
from inspect import signature
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache

from .image_attention import set_aside


IMPLAUSIBLE = 1e4


def contrast(first: Tensor, second: Tensor, weight: float, beta: float) -> Tensor:
    """
    Logits (…, vocab) of both passes -> float32 (1 + weight) * first - weight * second for tokens whose probability in the first is
    at least beta times its greatest; the others' own logits less 10,000.
    """
    first, second = first.float(), second.float()
    plausible = first >= first.amax(-1, keepdim=True) + (log(beta) if beta else -torch.inf)
    return torch.where(plausible, (1 + weight) * first - weight * second, first - IMPLAUSIBLE)


@dataclass
class Companion:
    """What goes with the first pass's cache, as its `second_pass`."""

    sees: str
    cache: Cache
    image: Tensor | None  # (b, keys so far) bool


class SecondPass:
    """Hooks on a model. What the second pass does not see, a subclass's `without` says, and `sees` in a word that caches keep."""

    def __init__(self, model: nn.Module, weight: float, beta: float, image_token: int | None, sees: str):
        self.weight, self.beta, self.image_token, self.sees = weight, beta, image_token, sees
        self.reads = signature(model.forward).parameters
        self.inside = False  # the model's forward
        self.hooks = [
            model.register_forward_pre_hook(self.before, with_kwargs=True),
            model.register_forward_hook(self.after, with_kwargs=True, always_call=True),
        ]
        if model.config.is_encoder_decoder:
            self.hooks.append(model.get_encoder().register_forward_hook(self.after_encoder, with_kwargs=True))

    def without(self, kwargs: dict, image: Tensor | None, reads: Any) -> dict:
        """
        Inputs of a second pass, of the model or its encoder, which has the parameters `reads`. image (b, keys so far) bool, of
        which the inputs are the last; None where it is not known.
        """
        raise NotImplementedError

    def with_memory(self, kwargs: dict, memory: Any) -> dict:
        """Inputs of a decoder's second pass over the memory that `after_encoder` made beside the first's."""
        if "second" not in memory:
            raise ValueError("the memory was encoded before there was to be a second pass; encode it anew")
        kept = {name: value for name, value in memory.items() if name != "second"}
        return kwargs | {"encoder_outputs": type(memory)(**kept | {"last_hidden_state": memory["second"]})}

    def before(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self.inside = True

    def after_encoder(self, encoder: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if self.inside:  # a forward that encodes does so in both passes
            return
        reads = signature(encoder.forward).parameters
        kwargs = dict(zip(reads, args, strict=False)) | kwargs
        # a tensor of the memory: `generate` repeats it for beams with the rest
        output["second"] = encoder.forward(**self.without(kwargs, self.image_in(kwargs.get("input_ids")), reads))[0]

    def image_in(self, ids: Tensor | None) -> Tensor | None:
        return None if ids is None or self.image_token is None else ids == self.image_token

    def after(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        try:
            if output is not None and kwargs.get("labels") is None:  # None: the forward failed
                self.run(model, dict(zip(self.reads, args, strict=False)) | kwargs, output)
        finally:
            self.inside = False

    def run(self, model: nn.Module, kwargs: dict, output: Any) -> None:
        """
        Contrast the logits of `output`, which are `kwargs`'. Raises ValueError for a cache that was filled without a second pass.
        """
        first, across = getattr(output, "past_key_values", None), model.config.is_encoder_decoder
        new = _tokens(kwargs, across)
        past = int(first.get_seq_length()) - new if first is not None else 0
        companion = getattr(first, "second_pass", None) if past else None
        if past and (companion is None or companion.sees != self.sees or companion.cache.get_seq_length() != past):
            raise ValueError(
                f"the cache holds {past} tokens that had no second pass like this; start anew, or enable the method before them"
            )
        second = {k: v for k, v in kwargs.items() if k not in output.keys()}  # OSSight hands itself what it saw
        memory = second.get("encoder_outputs") if across else None
        if memory is not None:
            image = getattr(memory, "image_mask", None)
            second = self.with_memory(second, memory)
        else:
            image = self.image_in(kwargs.get("input_ids"))
            if companion is not None and companion.image is not None and image is not None:
                image = torch.cat([companion.image[:, :past], image], 1)
            second["attention_mask"] = _flat(second.get("attention_mask"), past + new)
            second = self.without(second, image, self.reads)
        cache = companion.cache if companion is not None else _empty_cache(model, first) if first is not None else None
        with set_aside(model):
            logits = model.forward(**second | {"past_key_values": cache, "use_cache": cache is not None}).logits
        if first is not None and companion is None:
            _stand_behind(first, cache)
        if first is not None:
            first.second_pass = Companion(self.sees, cache, image)
        contrasted = contrast(output.logits, logits, self.weight, self.beta)
        if image is not None:  # a row without an image has nothing to contrast
            contrasted = torch.where(image.any(1)[:, None, None], contrasted, output.logits.float())
        output.logits = contrasted

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _tokens(kwargs: dict, across: bool) -> int:
    """How many tokens a forward reads: a decoder without any, its start token."""
    names = ("decoder_input_ids",) if across else ("input_ids", "inputs_embeds")
    return next((kwargs[name].shape[1] for name in names if kwargs.get(name) is not None), 1)


def _flat(mask: Tensor | dict | None, keys: int) -> Tensor | None:
    """An attention mask as (b, keys): of one that a static cache wants, (b, 1, q, l), what the last query may look at."""
    mask = mask["full_attention"] if isinstance(mask, dict) else mask
    if mask is None or mask.ndim == 2:
        return mask
    last = mask[:, 0, -1, :keys]
    return (last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2).long()


def _empty_cache(model: nn.Module, first: Cache) -> Cache:
    """One that can be cropped where the first can."""
    config = model.config.get_text_config(decoder=True)
    caches = [DynamicCache(config=config) for _ in range(2 if model.config.is_encoder_decoder else 1)]
    if any(getattr(layer, "record_past", False) for layer in getattr(first, "self_attention_cache", first).layers):
        caches[0].activate_past_recording()
    return EncoderDecoderCache(*caches) if len(caches) > 1 else caches[0]


def _stand_behind(first: Cache, second: Cache) -> None:
    for part in ("self_attention_cache", "cross_attention_cache") if isinstance(first, EncoderDecoderCache) else ("",):
        one, other = (getattr(cache, part) if part else cache for cache in (first, second))
        one.layers.extend(other.layers)


_enabled: "weakref.WeakKeyDictionary[nn.Module, SecondPass]" = weakref.WeakKeyDictionary()


def start_second_pass(model: nn.Module, second: type[SecondPass], *settings) -> None:
    """Until `stop_second_pass`, which is called first where it is on. Raises ValueError where another method's is."""
    stop_second_pass(model, second)
    if model in _enabled:
        raise ValueError(f"{type(_enabled[model]).__name__} is on already; disable it first")
    _enabled[model] = second(model, *settings)


def stop_second_pass(model: nn.Module, second: type[SecondPass]) -> None:
    """Nothing if it is not on."""
    if isinstance(_enabled.get(model), second):
        _enabled.pop(model).stop()


__all__ = ["SecondPass", "contrast", "start_second_pass", "stop_second_pass"]
