"""
One step of joint contrastive and preference training beside TRL's DPOTrainer: forward, backward, AdamW; the vision tower is frozen.

    python benchmarks/preference_step.py [--size base] [--batch_size 4] [--rounds 5] [--device cpu] [--output FILE]

    ours_joint       PreferenceTrainer as recipes/contrastive_gpt2/phase2_coco.yaml has it: Bradley–Terry, no reference; InfoNCE
    ours_cached      the same, on cached vision features
    ours_preference  alpha 0: the preference alone
    ours_dpo         alpha 0, loss_type dpo, margin 0: the peer's loss
    trl_dpo          trl.DPOTrainer, unchanged, and its collator; reference: a copy; max_length None, no bf16, no checkpointing

All train one Contrastive GPT-2 with random weights on the same pairs: batches come out of each trainer's own collator, and their
tokens must be the same. Before anything is timed, DPO has to have one loss and the same gradients in both trainers (against a
reference that differs from the model), and so has the joint loss with and without the cache. Steps are timed in turn, a round of
each; a ratio is the median of the rounds' ratios, with the least and the greatest behind it. With one thread on CPU seconds are
the process's own, so that other work on the machine counts little.

Unusual: what is timed is `compute_loss`, its gradients and the optimiser. Collators are left out, which flatters the peer: its own
preprocesses a picture once for each side. Memory is what a fresh process takes above model and batch: reference, gradients, the
optimiser's state and activations (VmHWM, Linux; CUDA's allocated peak).
"""

import argparse
import copy
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


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded, and TRL reports nothing

import torch
import transformers
import trl
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from measure import forget_peak, machine, resident
from modeling import ContrastiveGPT2Config, ContrastiveGPT2ForConditionalGeneration
from processing import ContrastiveGPT2Processor
from processing.chat_template import FLATTEN, PLAIN
from trainers.captioning_data import completion_text, pictures_of, prompt_text
from trainers.preference_config import PreferenceConfig
from trainers.preference_data import PairCollator
from trainers.preference_trainer import PreferenceTrainer
from trainers.reward_data import SIDES
from trainers.run_folder import write_json


def _shapes(width: int, layers: int, heads: int, image: int, patch: int, vocab: int) -> tuple[dict, dict]:
    """Of CLIP's vision tower and of GPT-2."""
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "image_size": image, "patch_size": patch}
    vision |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    return vision, {"n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": vocab}


VOCAB = 50_258  # GPT-2's and a picture's placeholder
SIZES = {
    "tiny": _shapes(32, 2, 2, 32, 8, 500),
    "small": _shapes(256, 4, 4, 224, 32, VOCAB),
    "base": _shapes(768, 12, 12, 224, 32, VOCAB),  # CLIP ViT-B/32 and GPT-2 small
}
PREFIX = 10  # tokens a picture becomes
ASKED = 12  # words of a prompt: with roles and picture 24 tokens, as many as "Describe the picture." takes of GPT-2's
BETA = 0.1
NO_CONTRAST = {"alpha_start": 0.0, "alpha_end": 0.0}
OURS = {
    "ours_joint": {"alpha_start": 0.7, "alpha_end": 0.3},
    "ours_cached": {"alpha_start": 0.7, "alpha_end": 0.3},
    "ours_preference": NO_CONTRAST,
    "ours_dpo": NO_CONTRAST | {"loss_type": "dpo", "margin": 0.0},
}
PEER = "trl_dpo"
AIMS = {"ours_joint": 1.2, "ours_preference": 1.4}
WRITERS = "model.mapper.", "model.language_model.", "lm_head."  # what a preference trains; InfoNCE trains everything
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3  # relative; of a parameter's largest


def make_processor(size: str) -> ContrastiveGPT2Processor:
    """A word a token: "w7" is token 7; roles, end and placeholder are the last four."""
    vision, text = SIZES[size]
    words = [f"w{i}" for i in range(text["vocab_size"] - 4)] + ["USER:", "ASSISTANT:", "</s>", "<image>"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "</s>", "eos_token": "</s>", "additional_special_tokens": ["<image>"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    side = vision["image_size"]
    images = CLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False)
    template = FLATTEN.replace("IMAGE_TOKEN", "<image>") + PLAIN
    return ContrastiveGPT2Processor(images, tokenizer, PREFIX, chat_template=template)


def make_model(size: str) -> ContrastiveGPT2ForConditionalGeneration:
    vision, text = SIZES[size]
    end = text["vocab_size"] - 2
    torch.manual_seed(0)
    model = ContrastiveGPT2ForConditionalGeneration(
        ContrastiveGPT2Config(
            vision_config={"model_type": "clip_vision_model", **vision},
            text_config={"model_type": "gpt2", "bos_token_id": None, "eos_token_id": end, **text},
            image_token_id=end + 1,
            prefix_length=PREFIX,
        )
    )
    model.freeze_towers("vision")
    return model.train()


def make_reference(model: nn.Module) -> nn.Module:
    """A copy as far from the model as some training would bring it: against an equal one, DPO's loss is log 2 whatever it reads."""
    reference, draw = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_((0.01 * torch.randn(weight.shape, generator=draw)).to(weight.device))
    return reference


def make_rows(size: str, count: int, lengths: tuple[int, int]) -> list[dict]:
    """Pairs of random words about random pictures. lengths: tokens of the shortest and the longest caption, its end included."""
    vision, text = SIZES[size]
    draw = torch.Generator().manual_seed(0)

    def turns(role: str, words: int) -> list[dict]:
        drawn = torch.randint(text["vocab_size"] - 4, (words,), generator=draw).tolist()
        return [{"role": role, "content": " ".join(f"w{i}" for i in drawn)}]

    rows = []
    for chosen in torch.linspace(lengths[0], lengths[1], count).round().int().tolist():
        pixels = torch.randint(256, (vision["image_size"], vision["image_size"], 3), generator=draw).byte()
        row = {"images": [Image.fromarray(pixels.numpy())], "prompt": turns("user", ASKED), "image_id": str(len(rows))}
        rows.append(
            row | {"chosen": turns("assistant", chosen - 1), "rejected": turns("assistant", sum(lengths) - chosen - 1)}
        )
    return rows


def collate(name: str, rows: list[dict], processor: ContrastiveGPT2Processor, model: nn.Module, device: str) -> dict:
    """A batch of each trainer's own collator, on the device."""
    if name == PEER:
        written = []
        for row in rows:
            told = {"images": pictures_of(row), "prompt": prompt_text(processor, row)}
            sides = {side: completion_text(processor, row | {"completion": row[side]}) for side in SIDES}
            written.append(told | sides)
        batch = dict(DataCollatorForVisionPreference(processor)(written))
    else:
        batch = PairCollator(processor, strict=True, contrasts=OURS[name]["alpha_start"] > 0)(rows)
    batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    if name == "ours_cached":
        batch["vision_features"] = model.model.encode_patches(batch.pop("pixel_values")).unsqueeze(1)
    return batch


def make_trainer(name: str, model: nn.Module, reference: nn.Module | None, processor, device: str):
    with tempfile.TemporaryDirectory() as folder:
        common = {"output_dir": folder, "beta": BETA, "max_length": None, "use_cpu": device == "cpu", "report_to": []}
        if name != PEER:
            return PreferenceTrainer(model, reference, PreferenceConfig(**common, **OURS[name]), processor)
        args = DPOConfig(**common, bf16=False, gradient_checkpointing=False)
        asked = Dataset.from_dict({"images": [[0]], **{name: [""] for name in ("prompt", *SIDES)}})  # what kind it is
        return DPOTrainer(model, reference, args, train_dataset=asked, processing_class=processor)


def needs_reference(name: str) -> bool:
    return name == PEER or OURS[name].get("loss_type") == "dpo"


def loss_and_gradients(trainer, batch: dict) -> tuple[float, dict[str, Tensor]]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return loss.item(), found


def assert_equal(one: tuple, other: tuple, trained: set[str]) -> tuple[float, float]:
    """
    The loss of two trainers, each with its batch, and how far the gradients are apart. Raises AssertionError where they differ, and
    where they are not those of `trained`.
    """
    (loss, mine), (expected, theirs) = loss_and_gradients(*one), loss_and_gradients(*other)
    assert abs(loss - expected) <= LOSS_TOLERANCE * abs(expected), f"the losses differ: {loss:.6f}, {expected:.6f}"
    assert mine.keys() == theirs.keys() == trained, f"a gradient is missing or too many: {mine.keys() ^ trained}"
    worst = 0.0
    for name, gradient in theirs.items():
        scale = gradient.abs().max().item()
        assert scale > 0, f"{name} has no gradient: nothing is compared"
        apart = (mine[name] - gradient).abs().max().item() / scale
        assert apart <= GRADIENT_TOLERANCE, f"the gradients of {name} differ by {apart:.2g} of the largest"
        worst = max(worst, apart)
    return expected, worst


def check(trainers: dict, batches: dict) -> dict[str, tuple[float, float]]:
    """That all are given the same pairs, and that losses said to be one are one: the loss, and how far gradients are apart."""
    theirs, words = batches[PEER], batches["ours_dpo"]
    learned = words["input_ids"].masked_fill(theirs["completion_mask"] == 0, -100)
    for name in OURS:
        for key, expected in (("input_ids", theirs["input_ids"]), ("labels", learned)):
            assert batches[name][key].equal(expected), f"{name} is given other {key} than {PEER}"
    assert words["pixel_values"].repeat(2, 1, 1, 1).equal(theirs["pixel_values"]), "the pictures differ"
    trained = {name for name, p in trainers[PEER].model.named_parameters() if p.requires_grad}
    writers = {name for name in trained if name.startswith(WRITERS)}
    pair = {name: (trainers[name], batches[name]) for name in trainers}
    found = {"ours_dpo": assert_equal(pair["ours_dpo"], pair[PEER], writers)}
    assert abs(found["ours_dpo"][0] - math.log(2)) > 1e-3, "the reference is the model: nothing is compared"
    return found | {"ours_cached": assert_equal(pair["ours_cached"], pair["ours_joint"], trained)}


def clock_of(device: str) -> Callable[[], float]:
    """Seconds: one thread's own, which other work on the machine does not lengthen; otherwise the wall's."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def make_step(trainer, batch: dict, optimizer: torch.optim.Optimizer, device: str) -> Callable[[], float]:
    """A function that makes one step and returns its seconds."""
    wait, clock = torch.cuda.synchronize if device == "cuda" else lambda: None, clock_of(device)

    def step() -> float:
        wait()
        start = clock()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        assert loss.isfinite()
        return clock() - start

    return step


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Trainer's default, both trainers'. What gets no gradient in a step is not touched."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)


def memory(name: str, args: argparse.Namespace) -> float:
    """MiB that two steps take at most above model and batch, in this process, which must be fresh."""
    model, processor = make_model(args.size).to(args.device), make_processor(args.size)
    rows = make_rows(args.size, args.batch_size, args.caption_tokens)
    batch = collate(name, rows, processor, model, args.device)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        forget_peak()  # building a model may have taken more
        before = resident("VmRSS")
    reference = make_reference(model) if needs_reference(name) else None
    trainer = make_trainer(name, model, reference, processor, args.device)
    step = make_step(trainer, batch, make_optimizer(model), args.device)
    for _ in range(2):  # the second has the optimiser's state from its start
        step()
    peak = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else resident("VmHWM")
    return peak - before


def memory_of(name: str) -> float | None:
    if platform.system() != "Linux":
        return None
    command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", name]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def compare(rounds: list[dict[str, float]], used: dict[str, float | None], pairs: int) -> list[dict]:
    """Of each contender, pairs/s (of the median round) and the peer's seconds and memory as multiples of its own."""
    rows = []
    for name in (*OURS, PEER):
        ratios = [one[PEER] / one[name] for one in rounds]
        row = {"contender": name, "pairs_s": pairs / median(one[name] for one in rounds), "ratio": median(ratios)}
        row |= {"ratio_least": min(ratios), "ratio_greatest": max(ratios), "mib": used[name], "aim": AIMS.get(name)}
        rows.append(row | {"mib_ratio": used[PEER] / used[name] if used[name] else None})
    return rows


def told(row: dict) -> str:
    mib = f"{row['mib']:.0f} MiB above the model, {row['mib_ratio']:.2f} times less" if row["mib"] else "memory unknown"
    text = f"ratio {PEER} / {row['contender']}: {row['ratio']:.2f} ({row['ratio_least']:.2f} to {row['ratio_greatest']:.2f})"
    text += f"  {row['pairs_s']:.3f} pairs/s; {mib}"
    if row["aim"] is None:
        return text
    return f"{text}; the aim of {row['aim']} is {'reached' if row['ratio'] >= row['aim'] else 'not reached'}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="base", help="base: CLIP ViT-B/32 and GPT-2 small")
    parser.add_argument("--batch_size", type=int, default=4, help="pairs")
    parser.add_argument("--caption_tokens", type=int, nargs=2, default=[16, 24], help="of the shortest and the longest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="where the figures and their protocol go, as JSON")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)  # the script calls itself
    return parser.parse_args()


def main() -> None:
    args, load = arguments(), os.getloadavg()[0]
    if args.memory_of:
        print(json.dumps(memory(args.memory_of, args)))
        return
    names = [*OURS, PEER]
    used = {name: memory_of(name) for name in names}  # before this process grows

    # 1. The same pairs, the same losses, the same gradients.
    model, processor = make_model(args.size).to(args.device), make_processor(args.size)
    rows, reference = make_rows(args.size, args.batch_size, args.caption_tokens), make_reference(model)
    trainers, batches = {}, {}
    for name in names:  # the peer last: it changes the model's `forward`, and hands on what it is not asked
        held = reference if needs_reference(name) else None
        trainers[name] = make_trainer(name, model, held, processor, args.device)
        batches[name] = collate(name, rows, processor, model, args.device)
    equal = check(trainers, batches)

    # 2. Steps in turn, after one that does not count.
    optimizer = make_optimizer(model)
    steps = {name: make_step(trainers[name], batches[name], optimizer, args.device) for name in names}
    for step in steps.values():
        step()
    rounds = [{name: step() for name, step in steps.items()} for _ in range(args.rounds)]

    # 3. The report.
    count = {
        part: sum(p.numel() for p in model.parameters() if p.requires_grad is part) / 1e6 for part in (True, False)
    }
    ids, labels = batches["ours_joint"]["input_ids"], batches["ours_joint"]["labels"]
    alone = int(batches["ours_joint"]["text_attention_mask"].sum())
    print(f"{args.size} on {machine(args.device)}, float32; torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, trl {trl.__version__}; load {load:.1f} before")
    print(f"{count[True]:.2f} M parameters train, {count[False]:.2f} M of the vision tower do not")
    print(f"{args.batch_size} pairs: {len(ids)} rows of {ids.shape[1]} tokens, {PREFIX} of a picture, ", end="")
    print(f"{int((labels != -100).sum())} of {ids.numel()} labelled; {alone} tokens of captions read alone")
    for name, other in (("ours_dpo", PEER), ("ours_cached", "ours_joint")):
        loss, apart = equal[name]
        print(f"{name} equals {other}: loss {loss:.6f}, gradients within {apart:.1e} of the largest")
    clock = "the process's own" if clock_of(args.device) is time.process_time else "the wall's"
    print(f"medians of {args.rounds} rounds in {clock} seconds; load {os.getloadavg()[0]:.1f} after", flush=True)
    found = compare(rounds, used, args.batch_size)
    for row in found:
        print(told(row))
    if args.output is not None:
        protocol = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        protocol |= {"machine": machine(args.device), "torch": torch.__version__, "trl": trl.__version__}
        equal = {name: {"loss": loss, "gradients_apart": apart} for name, (loss, apart) in equal.items()}
        write_json(args.output, {"rows": found, "equal": equal, "rounds": rounds, "protocol": protocol})


if __name__ == "__main__":
    main()
