"""
Training an aligner beside open_clip's loop, its Matryoshka loss beside sentence-transformers', its chunks beside the whole batch.

    python benchmarks/align_step.py [--parts loop matryoshka gradcache] [--towers clip] [--device cpu]

    loop         ContrastiveTrainer on cached features against open_clip_train's train_one_epoch, unchanged, on the same frozen
                 towers, which it runs in each step; the same pictures, texts, projectors, optimiser, batch and loss (one width)
    matryoshka   modeling/matryoshka.py and InfoNCE at every width against MatryoshkaLoss(MultipleNegativesRankingLoss) both ways,
                 on given embeddings: forward and backward, nothing of a model
    gradcache    a step of the miniature towers, all of them learning, in chunks against the whole batch

Equal losses (and gradients, for the last two) are asserted before anything is timed. Contenders take turns; a ratio is a median of
rounds, with the least and the greatest behind it. Memory is taken in a fresh process each (VmHWM, Linux).

--towers clip: CLIP ViT-B/32's two towers, random weights; miniature: model_cards/miniature_siglip. open_clip's loop is given the
towers and projectors as its model, and pictures drawn and preprocessed beforehand, which flatters it: decoding is left out.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPVisionConfig, TrainerCallback

from measure import forget_peak, machine, resident
from modeling import AlignerModel
from modeling.contrastive_losses import info_nce
from modeling.matryoshka import nested_cosines
from trainers.contrastive_config import ContrastiveConfig
from trainers.contrastive_trainer import ContrastiveTrainer


MINIATURE = str(Path(__file__).parents[1] / "model_cards" / "miniature_siglip")
WORDS = 16  # tokens of a text
SIZES = (512, 1024), (1024, 4096)  # pairs of a batch, width of embeddings
TOLERANCE = 1e-5


def make_aligner(towers: str, **config) -> AlignerModel:
    torch.manual_seed(0)
    if towers == "miniature":
        sources = {"vision_model": MINIATURE, "text_model": MINIATURE}
        return AlignerModel.from_towers(**sources, **config).train()
    vision, text = CLIPVisionConfig(), CLIPTextConfig()  # their defaults are ViT-B/32's
    return AlignerModel.from_towers(vision_config=vision.to_dict(), text_config=text.to_dict(), **config).train()


def make_batch(model: AlignerModel, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """pixel_values (rows, 3, H, W) and input_ids (rows, WORDS), all different."""
    draw = torch.Generator().manual_seed(seed)
    side, words = model.config.vision_config.image_size, model.config.text_config.vocab_size
    ids = torch.randint(3, words - 3, (rows, WORDS), generator=draw)
    ids[:, -1] = words - 1  # CLIP's end, where its text tower pools
    return {"pixel_values": torch.rand(rows, 3, side, side, generator=draw), "input_ids": ids}


def keyed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ContrastiveCollator gives it: every row has both, and none is like another."""
    rows = len(next(iter(batch.values())))
    there = {f"{name}_there": torch.ones(rows, dtype=torch.bool) for name in ("image", "text")}
    return batch | there | {f"{name}_key": torch.arange(rows) for name in ("image", "text")}


def trainer_of(
    model: AlignerModel, folder: str, rows: int, device: str, features: dict, chunk_size: int | None = None, **kwargs
) -> ContrastiveTrainer:
    args = ContrastiveConfig(
        output_dir=folder, per_device_train_batch_size=rows, use_cpu=device == "cpu", report_to=[], save_strategy="no",
        learning_rate=1e-4, num_train_epochs=1,
        lr_scheduler_type="constant", max_grad_norm=0.0, disable_tqdm=True, logging_steps=10**6, chunk_size=chunk_size,
    )  # fmt: skip
    return ContrastiveTrainer(model, args, None, features, **kwargs)


def turns(contenders: dict[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Seconds of each, in turn, `rounds` times, after one that does not count."""
    for run in contenders.values():
        run()
    return [{name: run() for name, run in contenders.items()} for _ in range(rounds)]


def ratio(taken: list[dict[str, float]], slow: str, fast: str, meaning: str) -> None:
    ratios = [one[slow] / one[fast] for one in taken]
    print(f"ratio {slow} / {fast}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {meaning}")


# open_clip's loop


class AsOpenClip(nn.Module):
    """An aligner as open_clip's loop takes a model."""

    def __init__(self, model: AlignerModel):
        super().__init__()
        self.model = model
        self.logit_scale = model.logit_scale

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        out = self.model(pixel_values=images, input_ids=texts)
        scale = self.model.logit_scale.exp()
        return {"image_features": out.image_embeds, "text_features": out.text_embeds, "logit_scale": scale}


class Stepped(TrainerCallback):
    """When each step of a Trainer ended; the first, which warms up, is where the clock starts."""

    def on_train_begin(self, *args, **kwargs):
        self.ends = []

    def on_step_end(self, *args, **kwargs):
        self.ends.append(time.perf_counter())


def loop(args: Namespace) -> None:
    try:
        from open_clip.loss import ClipLoss
        from open_clip_train import train as open_clip_train
    except ImportError as error:
        raise SystemExit(f"open_clip's loop is not there: {error}. pip install open_clip_torch==3.3.0") from error
    steps, rows = args.steps + 1, args.batch_size  # the first warms up
    sizes = {"embed_dim": 512, "projector_dim": 512, "matryoshka_dimensions": [512]}
    model = make_aligner(args.towers, **sizes).to(args.device)
    model.freeze_towers("vision", "text")
    batches = [make_batch(model, rows, seed) for seed in range(steps)]

    # what cache_tower_features keeps, and what it costs
    start = time.perf_counter()
    features = {"image": [], "text": []}
    with torch.no_grad():
        for batch in batches:
            for name, part, values in (("image", "vision", "pixel_values"), ("text", "text", "input_ids")):
                features[name] += list(model.encode(part, batch[values].to(args.device))[0].cpu())
    caching = (time.perf_counter() - start) / (steps * rows)

    # the same loss
    peer, loss = AsOpenClip(model), ClipLoss()
    theirs = loss(**peer(*(batches[0][name].to(args.device) for name in ("pixel_values", "input_ids"))))
    cached = {
        f"{part}_features": torch.stack(features[name][:rows]) for name, part in (("image", "vision"), ("text", "text"))
    }
    out = model(**{name: value.to(args.device) for name, value in cached.items()})
    apart = abs(model.alignment_loss(out.image_embeds, out.text_embeds).item() - theirs.item())
    assert apart <= TOLERANCE, f"the losses differ by {apart:.2g}"

    with tempfile.TemporaryDirectory() as folder:
        table = Dataset.from_dict({"image": range(steps * rows), "text": range(steps * rows)})
        stepped = Stepped()

        def ours() -> float:
            trainer_of(model, folder, rows, args.device, features, train_dataset=table, callbacks=[stepped]).train()
            return (stepped.ends[-1] - stepped.ends[0]) / (steps - 1)

        settings_of_theirs = Namespace(
            device=args.device, precision="fp32", distill=False, accum_freq=1, skip_scheduler=True, grad_clip_norm=None,
            horovod=False, rank=0, log_every_n_steps=10**9, batch_size=rows, world_size=1, wandb=False, local_rank=0,
        )  # fmt: skip
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        class Loader:
            num_batches, num_samples = steps, steps * rows

            def __iter__(self):
                for number, batch in enumerate(batches):
                    if number == 1:
                        self.start = time.perf_counter()
                    yield batch["pixel_values"], batch["input_ids"]

        class Data:
            dataloader = Loader()

            def set_epoch(self, epoch: int) -> None:
                """Its order is no matter here."""

        def open_clip() -> float:
            logging.disable(logging.INFO)
            data = {"train": Data()}
            open_clip_train.train_one_epoch(peer, data, loss, 0, optimizer, None, None, None, settings_of_theirs)
            return (time.perf_counter() - Data.dataloader.start) / (steps - 1)

        taken = turns({"ours": ours, "open_clip": open_clip}, args.rounds)
    print(f"loop: {args.towers} towers, batches of {rows}, {steps - 1} steps a round, equal loss {theirs.item():.4f}")
    for name in ("ours", "open_clip"):
        print(f"  {name:10}{rows / median(one[name] for one in taken):12.1f} pairs/s")
    ratio(taken, "open_clip", "ours", "features cached against towers in each step")
    print(f"  the cache costs {1 / caching:.1f} pairs/s once: after e epochs, (open_clip's e) / (ours e + that once):")
    slow, fast = (median(one[name] for one in taken) / rows for name in ("open_clip", "ours"))
    print("  " + ", ".join(f"{e} epochs {slow * e / (fast * e + caching):.1f} x" for e in (1, 10, 30)))


# sentence-transformers' MatryoshkaLoss


class Given(nn.Module):
    """A model that gives what it is given, as MatryoshkaLoss asks models."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def get_embedding_dimension(self) -> int:
        return self.width

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}


def matryoshka(args: Namespace) -> None:
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    print("matryoshka: forward and backward of the loss alone")
    for rows, width in SIZES:
        dims = [width >> shift for shift in range(6, -1, -1)]
        torch.manual_seed(0)
        a, b = (torch.randn(rows, width, device=args.device, requires_grad=True) for _ in range(2))
        both = MultipleNegativesRankingLoss(
            Given(width), scale=20.0, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        )
        theirs = MatryoshkaLoss(both.model, both, dims)

        def our_loss(a=a, b=b, dims=dims) -> Tensor:
            return sum(info_nce(cosines * 20.0) for cosines in nested_cosines(a, b, dims))

        def peer_loss(a=a, b=b, theirs=theirs) -> Tensor:
            return theirs([{"embedding": a}, {"embedding": b}], None)

        values, grads = [], []
        for loss_of in (our_loss, peer_loss):
            loss = loss_of()
            values.append(loss.item())
            grads.append(torch.autograd.grad(loss, (a, b)))
        far = abs(values[0] - values[1]) / values[1]
        for mine, peers in zip(*grads, strict=True):
            far = max(far, ((mine - peers).abs().max() / peers.abs().max()).item())
        assert far <= 1e-4, f"losses or gradients differ by {far:.2g} of the largest"

        def timed(loss_of: Callable[[], Tensor], a=a, b=b) -> Callable[[], float]:
            def run() -> float:
                start = time.perf_counter()
                torch.autograd.grad(loss_of(), (a, b))
                if args.device == "cuda":
                    torch.cuda.synchronize()
                return time.perf_counter() - start

            return run

        contenders = {"ours": timed(our_loss), "sentence_transformers": timed(peer_loss)}
        taken = turns(contenders, args.rounds)
        print(f"  batch {rows}, widths {dims[0]} to {width}; loss and gradients within {far:.1e} of the largest")
        print("  ", end="")
        ratio(taken, "sentence_transformers", "ours", f"ours {median(one['ours'] for one in taken):.3f} s")


# GradCache


def one_step(model: AlignerModel, batch: dict[str, Tensor], rows: int, chunk: int | None, device: str) -> Callable:
    """A function that makes a step's loss and gradients and returns the loss."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, folder, rows, device, {}, chunk)
    inputs = {name: value.to(device) for name, value in keyed(batch).items()}

    def step() -> float:
        model.zero_grad()
        loss = trainer.compute_loss(model, dict(inputs))
        loss.backward()
        return loss.item()

    return step


def learning(args: Namespace) -> AlignerModel:
    sizes = {"embed_dim": 256, "projector_dim": 256, "matryoshka_dimensions": [64, 256]}
    return make_aligner("miniature", vision_features="tokens", text_features="tokens", **sizes).to(args.device)


def gradcache(args: Namespace) -> None:
    model = learning(args)
    rows = args.large_batch
    batch = make_batch(model, rows)

    # 1. The same gradients.
    found = {}
    for chunk in (None, args.chunk_size):
        loss = one_step(model, batch, rows, chunk, args.device)()
        found[chunk] = loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    (loss, whole), (_, chunked) = found[None], found[args.chunk_size]
    assert whole.keys() == chunked.keys()
    apart = max(
        ((chunked[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-8)).item() for name, grad in whole.items()
    )
    far = max((chunked[name] - grad).abs().max().item() for name, grad in whole.items())
    print(f"gradcache: miniature towers, all learning, batch {rows} in chunks of {args.chunk_size}; loss {loss:.4f}")
    print(f"  gradients differ by at most {far:.1e}, and by {apart:.1e} of a parameter's largest")
    assert far <= TOLERANCE, "gradients in chunks are not the whole batch's"

    # 2. Time a sample.
    def timed(chunk: int | None) -> Callable[[], float]:
        step = one_step(model, batch, rows, chunk, args.device)

        def run() -> float:
            start = time.perf_counter()
            step()
            return time.perf_counter() - start

        return run

    taken = turns({"whole": timed(None), "chunks": timed(args.chunk_size)}, args.rounds)
    for name in ("whole", "chunks"):
        print(f"  {name:10}{1000 * median(one[name] for one in taken) / rows:8.3f} ms a pair")
    ratio(taken, "chunks", "whole", "4/3 is the least: a forward more")

    # 3. Memory, each in a process of its own.
    if sys.platform != "linux":
        return
    sizes = [rows // 4, rows // 2, rows]
    for chunk in (0, args.chunk_size):
        used = [memory_of(size, chunk) for size in sizes]
        what = "whole " if not chunk else "chunks"
        print(
            f"  {what} MiB at peak above what stood before: "
            + ", ".join(f"{s}: {u:.0f}" for s, u in zip(sizes, used, strict=True))
        )


def memory_of(rows: int, chunk: int) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", str(rows), str(chunk)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def memory(args: Namespace) -> float:
    """MiB that a step takes at most, above what stood before it, its batch included."""
    rows, chunk = args.memory_of
    model = learning(args)
    warm = 64
    one_step(model, make_batch(model, warm), warm, None, args.device)()
    step = one_step(model, make_batch(model, rows), rows, chunk or None, args.device)
    forget_peak()
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"loop": loop, "matryoshka": matryoshka, "gradcache": gradcache}
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--towers", choices=["clip", "miniature"], default="clip")
    parser.add_argument("--batch_size", type=int, default=64, help="of the loop")
    parser.add_argument("--steps", type=int, default=4, help="of the loop, a round")
    parser.add_argument("--large_batch", type=int, default=4096, help="of gradcache")
    parser.add_argument("--chunk_size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory_of", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory(args)))
        return
    print(f"{machine(args.device)}, float32; torch {torch.__version__}, transformers {transformers.__version__}")
    for part in args.parts:
        parts[part](args)


if __name__ == "__main__":
    main()
