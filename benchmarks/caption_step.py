"""
One training step of OSSight beside the plain way and beside nanoVLM: forward, backward, AdamW on what is trained, towers frozen.

    python benchmarks/caption_step.py [--size small] [--peer NANOVLM_CHECKOUT] [--device cpu] [--batch_size 8] [--rounds 9]

    ours         what recipes/caption.py does with cache_vision_features: logits at labelled positions, vision features cached
    ours_tower   the same without the cache: the vision tower runs in each step
    plain        the same weights, written out below: the vision tower runs in each step, logits at every position
    nanovlm      https://github.com/huggingface/nanoVLM, imported from --peer: towers of the same shapes, its projector trained

All have random weights, the same pictures, the same number of tokens, one dtype, no torch.compile. The first three must give one
loss and the same gradients (within 1e-4 of each parameter's largest; in float32, before anything is timed), or it fails. Steps are
timed in turn, a round of each; a ratio is the median of the rounds' ratios, with the least and the greatest behind it. Memory is
taken in a fresh process for each contender: CUDA's allocated peak, or on CPU the greatest resident size while stepping (VmHWM,
which starts anew after the model is built; Linux only).

nanoVLM is changed in nothing and downloads nothing: it is given a tokenizer of two words in a temporary folder, which it asks only
for the id of its image token, and no attention mask, which its attention cannot take beside `is_causal` on CPU and which padding on
the right of causal attention does not need. It imports einops: pip install --target DIR einops, and DIR in PYTHONPATH.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import tokenizers
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from measure import forget_peak, machine, resident
from modeling import OSSightConfig, OSSightForConditionalGeneration
from modeling.bridges import pixel_shuffle


def _shape(width: int, layers: int, heads: int, middle: int, **more) -> dict:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return sizes | {"intermediate_size": middle, **more}


SIGLIP_BASE = _shape(768, 12, 12, 3072, image_size=224, patch_size=16)
VOCAB = 151_936  # Qwen2.5's
SIZES = {  # name: (vision tower, language model, rows of a batch)
    "tiny": (
        _shape(32, 2, 2, 64, image_size=32, patch_size=8),
        _shape(32, 2, 2, 64, num_key_value_heads=1, vocab_size=500),
        3,
    ),
    "small": (
        _shape(384, 6, 6, 1536, image_size=224, patch_size=16),
        _shape(512, 8, 8, 2816, num_key_value_heads=2, vocab_size=VOCAB),
        8,
    ),
    "0.5b": (SIGLIP_BASE, _shape(896, 24, 14, 4864, num_key_value_heads=2, vocab_size=VOCAB), 8),  # Qwen2.5-0.5B
    "full": (SIGLIP_BASE, _shape(1536, 28, 12, 8960, num_key_value_heads=2, vocab_size=VOCAB), 8),  # Qwen2.5-1.5B
}
SHUFFLE = 2  # 2 x 2 patches are one image token
BEFORE, AFTER = 25, 9  # tokens of Qwen's chat template and "Describe the picture." round the picture
CAPTION = 16, 24  # tokens of the shortest and the longest caption of a batch, its end included
IMAGE = 3  # our image token's id
TOLERANCE = 1e-4
OURS = "ours", "ours_tower", "plain"


def make_ossight(size: str) -> OSSightForConditionalGeneration:
    """OSSight with frozen random towers; its gate stands open, as after some training: a closed one would stop its gradients."""
    vision, text, _ = SIZES[size]
    config = OSSightConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        text_config={"model_type": "qwen2", "tie_word_embeddings": True, **text},
        image_token_id=IMAGE,
        pixel_shuffle=SHUFFLE,
    )
    model = OSSightForConditionalGeneration(config).train()
    model.freeze_towers()
    nn.init.constant_(model.model.fusion.gate, 0.5)
    return model


def make_batch(size: str, rows: int) -> dict[str, Tensor]:
    """
    What CaptioningCollator gives for one picture a row: input_ids, attention_mask, labels (b, t) and pixel_values (b, 3, H, W).
    Captions are of different lengths, padded on the right.
    """
    vision, text, _ = SIZES[size]
    picture = (vision["image_size"] // vision["patch_size"] // SHUFFLE) ** 2
    start = BEFORE + picture + AFTER
    lengths = start + torch.linspace(*CAPTION, rows).round().long()[:, None]
    at = torch.arange(int(lengths.max()))[None]
    ids = torch.randint(IMAGE + 1, text["vocab_size"], (rows, at.shape[1]))
    ids[:, BEFORE : BEFORE + picture] = IMAGE
    ids = ids.masked_fill(at >= lengths, 0)
    return {
        "input_ids": ids,
        "attention_mask": (at < lengths).long(),
        "labels": ids.masked_fill((at < start) | (at >= lengths), -100),
        "pixel_values": torch.randn(rows, 3, vision["image_size"], vision["image_size"]),
    }


def add_features(model: OSSightForConditionalGeneration, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with what trainers/vision_features.py would have cached: (b, rows, columns, d_v) in the tower's dtype."""
    with torch.no_grad():
        patches = model.model.encode_patches(batch["pixel_values"])
    side = math.isqrt(patches.shape[1])
    return batch | {"vision_features": patches.unflatten(1, (side, side))}


def our_loss(model: OSSightForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    return model(**{key: value for key, value in batch.items() if key != "pixel_values"}).loss


def our_loss_with_tower(model: OSSightForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    return model(**{key: value for key, value in batch.items() if key != "vision_features"}).loss


def plain_loss(model: OSSightForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """The same model with one picture a row, all at the same place: vision tower in the step, logits at every position."""
    core = model.model
    ids, labels = batch["input_ids"], batch["labels"]
    patches = core.vision_tower(batch["pixel_values"].to(core.vision_tower.dtype)).last_hidden_state
    side = math.isqrt(patches.shape[1])
    image = core.adapter(pixel_shuffle(patches, side, side, SHUFFLE))
    words = core.get_input_embeddings()(ids)
    end = BEFORE + image.shape[1]
    may_look = torch.arange(ids.shape[1], device=ids.device)[None, :, None] >= end
    fused = core.fusion(words, image, may_look.expand(len(ids), -1, image.shape[1]))
    joined = torch.cat([words[:, :BEFORE], image.to(words.dtype), words[:, end:]], dim=1) + fused.to(words.dtype)
    attention = {"attention_mask": batch["attention_mask"], "use_cache": False}
    logits = model.lm_head(core.language_model(inputs_embeds=joined, **attention).last_hidden_state)
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    caption_loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    caption = (labels != -100).unsqueeze(-1)
    mean_word = (words.float() * caption).sum(1) / caption.sum(1)
    away = 1 - nn.functional.cosine_similarity(image.mean(1), mean_word)
    weights = (targets != -100).sum(1)
    return caption_loss + model.config.alpha_align * (away * weights).sum() / weights.sum()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal(model: nn.Module, batch: dict[str, Tensor], ours: Callable, plain: Callable) -> tuple[float, float]:
    """The loss and how far the gradients are apart. Raises AssertionError where loss or gradients differ by more than TOLERANCE."""
    our_value, plain_value = ours(model, batch), plain(model, batch)
    apart = abs(our_value.item() - plain_value.item())
    assert apart <= TOLERANCE, f"the losses differ: ours {our_value.item():.6f}, the plain way {plain_value.item():.6f}"
    mine, theirs = gradients(model, our_value), gradients(model, plain_value)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert mine.keys() == theirs.keys() == trained, f"not every trained parameter has a gradient: {sorted(trained)}"
    worst = 0.0
    for name, gradient in theirs.items():
        scale = gradient.abs().max().item()
        # a bias of the keys moves no softmax: its gradient is rounding, and is held to be as small in both
        if name.endswith("k_proj.bias"):
            scale = theirs[name.replace("bias", "weight")].abs().max().item()
        assert scale > 0, f"{name} has no gradient: nothing is compared"
        difference = (mine[name] - gradient).abs().max().item() / scale
        assert difference <= TOLERANCE, f"the gradients of {name} differ by {difference:.2g} of the largest"
        worst = max(worst, difference)
    return plain_value.item(), worst


def make_nanovlm(peer: Path, size: str) -> nn.Module:
    """nanoVLM with towers of our shapes, frozen. Exits where the checkout cannot be imported, saying what it lacks."""
    vision, text, _ = SIZES[size]
    sys.path.insert(0, str(peer))
    try:
        from models.config import VLMConfig
        from models.vision_language_model import VisionLanguageModel
    except ImportError as error:
        raise SystemExit(f"nanoVLM cannot be imported from {peer}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
        config = VLMConfig(
            vit_hidden_dim=vision["hidden_size"],
            vit_inter_dim=vision["intermediate_size"],
            vit_patch_size=vision["patch_size"],
            vit_img_size=vision["image_size"],
            vit_n_heads=vision["num_attention_heads"],
            vit_n_blocks=vision["num_hidden_layers"],
            lm_hidden_dim=text["hidden_size"],
            lm_inter_dim=text["intermediate_size"],
            lm_base_vocab_size=text["vocab_size"],
            lm_vocab_size=text["vocab_size"],
            lm_n_heads=text["num_attention_heads"],
            lm_n_kv_heads=text["num_key_value_heads"],
            lm_n_blocks=text["num_hidden_layers"],
            lm_tie_weights=True,
            lm_tokenizer=folder,
            vlm_extra_tokens={"image_token": "<|image|>"},
            mp_pixel_shuffle_factor=SHUFFLE,
            mp_image_token_length=(vision["image_size"] // vision["patch_size"] // SHUFFLE) ** 2,
        )
        model = VisionLanguageModel(config, load_backbone=False).train()
    for tower in (model.vision_encoder, model.decoder):  # as its train.py does for a learning rate of 0
        tower.requires_grad_(False)
    return model


def nanovlm_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Its own loss, with targets shifted by us, as its dataset does."""
    ids = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, model.tokenizer.image_token_id)
    targets = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    pixels = batch["pixel_values"].to(model.MP.proj.weight.dtype)
    return model(ids, pixels, targets=targets)[1]


def commit_of(folder: Path) -> str:
    if not (folder / ".git").exists():
        return "of unknown commit"
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "of unknown commit"


def contender(name: str, args: argparse.Namespace, models: dict[str, nn.Module]) -> Callable[[], float]:
    """A function that makes one step of `name` and returns its seconds. `models` keeps what contenders share."""
    torch.manual_seed(0)
    kind = "ossight" if name in OURS else "nanovlm"
    if kind not in models:
        model = make_ossight(args.size) if kind == "ossight" else make_nanovlm(args.peer, args.size)
        models[kind] = model.to(args.device, getattr(torch, args.dtype))
    model = models[kind]
    batch = {key: value.to(args.device) for key, value in make_batch(args.size, args.batch_size).items()}
    if kind == "ossight":
        batch = add_features(model, batch)
    loss_of = {"ours": our_loss, "ours_tower": our_loss_with_tower, "plain": plain_loss, "nanovlm": nanovlm_loss}[name]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    half = args.dtype != "float32"
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None

    def step() -> float:
        wait()
        start = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16) if half else contextlib.nullcontext():
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        assert loss.isfinite()
        return time.perf_counter() - start

    return step


def memory(name: str, args: argparse.Namespace) -> dict[str, float]:
    """MiB before the steps and at most while three are made, of this process, which must be fresh."""
    step = contender(name, args, {})
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        forget_peak()  # building a model may have taken more
        before = resident("VmRSS")
    for _ in range(3):
        step()
    peak = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else resident("VmHWM")
    return {"before": before, "peak": peak}


def memory_of(name: str) -> dict[str, float] | None:
    if platform.system() != "Linux":
        return None
    command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", name]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def count(*modules: nn.Module) -> float:
    """Million parameters, those that modules share once."""
    return sum({p: p.numel() for module in modules for p in module.parameters()}.values()) / 1e6


def compare_towers(ossight: nn.Module, nanovlm: nn.Module | None) -> None:
    ours = {"vision": count(ossight.model.vision_tower), "text": count(ossight.model.language_model, ossight.lm_head)}
    print(f"towers: vision {ours['vision']:.2f} M, text {ours['text']:.2f} M parameters, frozen; trained: ", end="")
    print(f"ours {count(ossight.model.adapter, ossight.model.fusion):.2f} M", end="")
    if nanovlm is not None:
        theirs = {"vision": count(nanovlm.vision_encoder), "text": count(nanovlm.decoder)}
        for tower, mine in ours.items():  # ours has biases on queries, keys and values, as Qwen2 does
            assert abs(theirs[tower] / mine - 1) < 0.01, f"{tower}: ours {mine:.1f} M, nanoVLM {theirs[tower]:.1f} M"
        print(f", nanoVLM {count(nanovlm.MP):.2f} M", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of nanoVLM; without it, ours and the plain way only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 under autocast")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="full: SigLIP-base and Qwen2.5-1.5B")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)  # the script calls itself
    args = parser.parse_args()
    args.batch_size = args.batch_size or SIZES[args.size][2]
    if args.memory_of:
        print(json.dumps(memory(args.memory_of, args)))
        return

    names = [*OURS, "nanovlm"] if args.peer else list(OURS)
    load = os.getloadavg()[0]
    used = {name: memory_of(name) for name in names}  # before this process grows

    # 1. The same loss and the same gradients.
    torch.manual_seed(0)
    models = {"ossight": make_ossight(args.size).to(args.device)}
    batch = {key: value.to(args.device) for key, value in make_batch(args.size, args.batch_size).items()}
    batch = add_features(models["ossight"], batch)
    for ours in (our_loss, our_loss_with_tower):
        loss, apart = assert_equal(models["ossight"], batch, ours, plain_loss)
    models["ossight"].to(getattr(torch, args.dtype))

    # 2. Steps in turn.
    steps = {name: contender(name, args, models) for name in names}
    for step in steps.values():
        step()
    rounds = [{name: step() for name, step in steps.items()} for _ in range(args.rounds)]

    # 3. The report.
    print(f"{args.size} on {machine(args.device)}, {args.dtype}; ", end="")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; ", end="")
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    compare_towers(models["ossight"], models.get("nanovlm"))
    length, pictures = batch["input_ids"].shape[1], int((batch["input_ids"][0] == IMAGE).sum())
    print(f"batch: {args.batch_size} rows of {length} tokens, {pictures} of a picture; ", end="")
    print(f"{int((batch['labels'] != -100).sum())} of {args.batch_size * length} positions are labelled")
    print(f"ours equals the plain way: loss {loss:.4f}, gradients within {apart:.1e} of the largest")
    if args.peer:
        print(f"nanoVLM {commit_of(args.peer)}")
    print(f"medians of {args.rounds} rounds:")
    print(f"  {'':12}{'seconds a step':>15}{'samples/s':>11}{'MiB before':>12}{'MiB at peak':>13}")
    for name in names:
        seconds = median(r[name] for r in rounds)
        mib = [f"{used[name][key]:.0f}" if used[name] else "-" for key in ("before", "peak")]
        print(f"  {name:12}{seconds:15.3f}{args.batch_size / seconds:11.2f}{mib[0]:>12}{mib[1]:>13}")

    def ratio(slow: str, fast: str, meaning: str) -> None:
        ratios = [r[slow] / r[fast] for r in rounds]
        print(f"ratio {slow} / {fast}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {meaning}")

    ratio("plain", "ours", "cache and labelled logits")
    ratio("plain", "ours_tower", "labelled logits alone")
    ratio("ours_tower", "ours", "cache alone")
    if args.peer:
        ratio("nanovlm", "ours", "nanoVLM runs its tower in each step")
        ratio("nanovlm", "ours_tower", "both run it")
        ratio("nanovlm", "plain", "how plain the plain way is")


if __name__ == "__main__":
    main()
