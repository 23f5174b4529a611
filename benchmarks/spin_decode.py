"""
Decoding with head suppression beside plain greedy decoding: tokens/s, all else equal.

    OMP_NUM_THREADS=1 python benchmarks/spin_decode.py [--geometry grouped] [--layers 1] [--rounds 5]
    python benchmarks/spin_decode.py --device cuda --dtype bfloat16 --layers 32 --vocab_size 32000        # a whole 7B

    plain          LLaVA, random weights, SDPA: a language model of a 7B's layers, but fewer, and a tiny vision tower
    spin_logits    the same in `spin(model, SpinConfig(score="logits"))`, the published score
    spin_mass      the same with score="mass"
    published      the rule as its authors patch it in: attention in full, scores summed anew from it for every token
    two_passes     plain, the model run twice for each token: the least that contrastive decoding (VCD) can cost in this way
    plain_again    plain: as far as its ratio is from 1 may the others' be wrong
    vcd            with --vcd: `with vcd(model)` of modeling/contrastive_decoding.py

First, in float32 and with at most two layers: suppression by 1 must give plain's logits, bit for bit, and both scores the tokens of
the literal rule and its logits within 1e-3, or it fails. Then all decode one prompt, a token of each in turn: what else the machine
does slows all of them. A round's ratio is the median of its tokens' ratios, the first token apart, which reads the prompt; given is
the median of the rounds, with the least and the greatest. Last, each part of suppression timed where it runs.

Source of `published`: attentionSPIN.py of https://github.com/YUECHE77/SPIN at a6ddf4a, here with grouped queries too.
"""

import argparse
import copy
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from statistics import median
from unittest import mock

import torch
import transformers
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
)
from transformers import LlavaForConditionalGeneration as Llava
from transformers.masking_utils import eager_mask

from measure import machine
from modeling import head_suppression
from modeling.head_suppression import SpinConfig, spin


GEOMETRIES = {  # of a layer: width, heads, key-value heads, width of the MLP
    "tiny": (64, 8, 4, 96),
    "7b": (4096, 32, 32, 11008),  # Llama-2-7B: LLaVA-1.5
    "grouped": (3584, 28, 4, 18944),  # Qwen2.5-7B
}
BEFORE, PICTURE, AFTER = 35, 576, 20  # tokens of a LLaVA-1.5 prompt
IMAGE = 3  # our image token's id
SPIN = SpinConfig(keep_ratio=0.95, suppression=0.08)  # the authors' for LLaVA-1.5-7B
TOLERANCE = 1e-3  # of logits about 1.3 in size
PARTS = "sdpa_attention_forward", "logit_scores", "mass_scores", "gates", "turn_down"


def make_model(geometry: str, layers: int, vocab_size: int, dtype: torch.dtype, device: str) -> Llava:
    width, heads, key_value_heads, middle = GEOMETRIES[geometry]
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=middle,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        initializer_range=1.28 / width**0.5,  # 0.02 at 4096; less would leave attention flat
    )
    eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes = CLIPVisionConfig(**eyes, image_size=336, patch_size=14)
    config = LlavaConfig(text_config=text, vision_config=eyes, image_token_id=IMAGE, vision_feature_layer=-1)
    torch.manual_seed(0)
    with torch.device(device):
        model = Llava._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def make_prompt(model: Llava) -> dict[str, Tensor]:
    ids = torch.randint(IMAGE + 1, model.config.text_config.vocab_size, (1, BEFORE + PICTURE + AFTER))
    ids[:, BEFORE : BEFORE + PICTURE] = IMAGE
    pixels = torch.randn(1, 3, 336, 336).to(model.device, model.dtype)
    return {"input_ids": ids.to(model.device), "pixel_values": pixels}


@contextmanager
def published(model: Llava, config: SpinConfig = SPIN) -> Iterator[None]:
    """The authors' attention in every layer of the language model; score "mass" is not theirs, and here for comparison."""

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            logits = logits + attention_mask
        weights = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
        looked = weights if config.score == "mass" else logits
        score = looked[:, :, -1, BEFORE : BEFORE + PICTURE].sum(-1)
        routed = (score / score.std(dim=1, keepdim=True)).softmax(1)
        kept = routed.topk(int(config.keep_ratio * routed.shape[1]), dim=1).indices
        gate = torch.ones_like(logits[..., 0])
        gate[:, :, -1] = torch.full_like(routed, config.suppression).scatter(1, kept, 1.0)
        return torch.einsum("bhn,bhnd->bnhd", gate, weights @ value).contiguous(), None

    AttentionInterface.register("published_spin", attend)
    AttentionMaskInterface.register("published_spin", eager_mask)
    model.set_attn_implementation({"text_config": "published_spin"})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})


CONTENDERS: dict[str, tuple[Callable, int]] = {  # a context in which the model is run, and how often for each token
    "plain": (nullcontext, 1),
    "spin_logits": (lambda model: spin(model, SPIN), 1),
    "spin_mass": (lambda model: spin(model, replace(SPIN, score="mass")), 1),
    "published": (published, 1),
    "two_passes": (nullcontext, 2),
    "plain_again": (nullcontext, 1),
}


@torch.no_grad()
def decode(model: Llava, prompt: dict[str, Tensor], passes: int = 1) -> Iterator[tuple[int, float]]:
    """What greedy `generate` does, without end: each token and its seconds; `passes` runs of the model, each with a cache."""
    caches = [DynamicCache(config=model.config) for _ in range(passes)]
    inputs = prompt | {"attention_mask": torch.ones_like(prompt["input_ids"])}
    while True:
        start = time.perf_counter()
        for cache in caches:
            logits = model(**inputs, past_key_values=cache, logits_to_keep=1).logits[0, -1]
        logits[IMAGE] = -torch.inf
        token = logits.argmax()
        said = token.item()  # waits for the device
        yield said, time.perf_counter() - start
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        inputs = {"input_ids": token[None, None], "attention_mask": mask}


def assert_equal(model: Llava, prompt: dict[str, Tensor], tokens: int) -> float:
    """
    How far our logits are from the literal rule's. Raises AssertionError where suppression by 1 changes a bit, where suppression
    changes nothing, where our tokens or logits are not the literal rule's, and where `decode` gives other tokens than `generate`.
    """

    def said(context) -> tuple[Tensor, list[int]]:
        asked = {"do_sample": False, "max_new_tokens": tokens, "suppress_tokens": [IMAGE]}
        with context:
            out = model.generate(**prompt, **asked, return_dict_in_generate=True, output_logits=True)
            timed = [token for token, _ in islice(decode(model, prompt), tokens)]
        new = out.sequences[0, -tokens:].tolist()
        assert timed == new, "what is timed gives other tokens than generate"
        return torch.stack(out.logits, 1), new

    worst, (plain, _) = 0.0, said(nullcontext())
    for config in (SPIN, replace(SPIN, score="mass")):
        same, _ = said(spin(model, replace(config, suppression=1.0)))
        assert torch.equal(same, plain), f"{config.score}: suppression by 1 differs from plain"
        (ours, our_tokens), (literal, literal_tokens) = said(spin(model, config)), said(published(model, config))
        apart = (ours - literal).abs().max().item()
        assert our_tokens == literal_tokens, f"{config.score}: the tokens differ from the literal rule's"
        assert apart <= TOLERANCE, f"{config.score}: the logits differ from the literal rule's by {apart:.2g}"
        assert (ours - plain).abs().max() > 100 * TOLERANCE, f"{config.score}: suppression changes nothing"
        worst = max(worst, apart)
    return worst


def race(model: Llava, prompt: dict[str, Tensor], tokens: int) -> dict[str, list[float]]:
    """Seconds of each token of each contender, which share the weights and take turns in random order."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with ExitStack() as stack:
        runs = []
        for name, (context, passes) in CONTENDERS.items():
            twin = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
            stack.enter_context(context(twin))
            runs.append((name, decode(twin, prompt, passes)))
        for _ in range(tokens):
            for name, run in order.sample(runs, len(runs)):
                seconds[name].append(next(run)[1])
    return seconds


def parts(model: Llava, prompt: dict[str, Tensor], tokens: int, name: str) -> dict[str, float]:
    """Median microseconds of each part of one layer's attention for one token, the device waited for before and after."""
    spent: dict[str, list[float]] = defaultdict(list)
    wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None

    def timed(part: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            wait()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            wait()
            spent[part].append(time.perf_counter() - start)
            return result

        return call

    with CONTENDERS[name][0](model), ExitStack() as stack:
        for part in PARTS:
            stack.enter_context(mock.patch.object(head_suppression, part, timed(part, getattr(head_suppression, part))))
        list(islice(decode(model, prompt), tokens))
    return {part: 1e6 * median(seconds) for part, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=list(GEOMETRIES), default="7b", help="of a layer of the language model")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--vocab_size", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64, help="how many are generated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--vcd", action="store_true", help="contrastive decoding too")
    args = parser.parse_args()
    if args.vcd:
        from modeling.contrastive_decoding import VCDConfig, vcd

        CONTENDERS["vcd"] = (lambda model: vcd(model, VCDConfig()), 1)
    load = os.getloadavg()[0]

    # 1. The same tokens.
    model = make_model(args.geometry, min(args.layers, 2), args.vocab_size, torch.float32, args.device)
    apart = assert_equal(model, make_prompt(model), args.tokens)
    del model

    # 2. Tokens in turn.
    model = make_model(args.geometry, args.layers, args.vocab_size, getattr(torch, args.dtype), args.device)
    prompt = make_prompt(model)
    race(model, prompt, 3)
    rounds = [race(model, prompt, args.tokens) for _ in range(args.rounds)]

    # 3. The report.
    width, heads, key_value_heads, middle = GEOMETRIES[args.geometry]
    print(f"{args.geometry} on {machine(args.device)}, {args.dtype}; ", end="")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; ", end="")
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    print(f"layers: {args.layers} of width {width}, {heads} heads, {key_value_heads} of keys, MLP {middle}; ", end="")
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    print(f"prompt: {prompt['input_ids'].shape[1]} tokens, {PICTURE} of a picture; {args.tokens} new ones; {SPIN}")
    print(
        f"suppression by 1 is plain, bit for bit; both scores give the literal rule's tokens, logits within {apart:.1e}"
    )
    print(f"medians of {args.rounds} rounds:")
    print(f"  {'':12}{'ms to the first':>17}{'ms a token':>12}{'tokens/s':>10}")
    for name in CONTENDERS:
        first, each = median(r[name][0] for r in rounds), median(median(r[name][1:]) for r in rounds)
        print(f"  {name:12}{1e3 * first:17.0f}{1e3 * each:12.2f}{1 / each:10.2f}")
    for name in list(CONTENDERS)[1:]:
        pairs = [zip(r["plain"][1:], r[name][1:], strict=True) for r in rounds]
        ratios = [median(plain / seconds for plain, seconds in pair) for pair in pairs]
        print(f"ratio {name} / plain: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) tokens/s")
    for name in ("spin_logits", "spin_mass"):
        found = ", ".join(f"{part} {spent:.0f}" for part, spent in parts(model, prompt, args.tokens, name).items())
        print(f"microseconds a layer and token, {name}: {found}")


if __name__ == "__main__":
    main()
