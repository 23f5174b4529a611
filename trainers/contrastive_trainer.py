"""
ContrastiveTrainer: transformers' Trainer whose negatives are the whole batch: all processes' rows, and all chunks'.

    rows here -> embeddings of what each has (pictures, texts, sounds), chunk by chunk
              -> gathered from every process -> loss of every pair of modalities -> its gradient in each embedding
              -> backward through the rows here

Unusual:
- The loss is computed on embeddings alone, and what flows back into a process is the gradient in *its* embeddings. So gathering
  needs no differentiable collective, every process sees every negative, and two processes learn what one would.
- Memory: `chunk_size` rows are embedded under activation checkpointing, which is GradCache (https://arxiv.org/abs/2101.06983)
  without code of its own: no activations are kept, and each chunk is embedded again when its gradient is known.
- A row may lack a picture, a text or a sound; every pair of modalities learns from the rows that have both. Rows that show the same
  picture, or say the same text, are no negatives of one another.
"""

from typing import Any

import torch
from accelerate.utils import gather, reduce
from datasets import Dataset
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from trainers.contrastive_config import PAIRS, ContrastiveConfig
from trainers.contrastive_data import COLUMNS, CaptionedCollator, ContrastiveCollator
from trainers.retrieval_evaluation import embed_rows, nested_dims, retrieval_figures
from trainers.sealed_checkpoints import SealedCheckpoints


def contrastive_loss(
    model: Any,
    embeddings: dict[str, Tensor],
    there: dict[str, Tensor],
    keys: dict[str, Tensor],
    pair_weights: dict[str, float],
    matryoshka_weights: list[float] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    The loss of a whole batch, a mean over the pairs of modalities by weight, and each pair's own.

    embeddings: modality -> (rows, d), anything where there is none; there: modality -> (rows,) bool; keys: modality -> (rows,) int,
    equal where two rows hold the same. A pair that fewer than two rows have is left out. Raises ValueError if all are.
    """
    losses = {}
    for pair, (one, other) in PAIRS.items():
        if not pair_weights.get(pair) or one not in embeddings or other not in embeddings:
            continue
        both = there[one] & there[other]
        if both.sum() < 2:
            continue
        same = [keys[name][both] for name in (one, other)]
        equal = (same[0][:, None] == same[0]) | (same[1][:, None] == same[1])
        losses[pair] = model.alignment_loss(embeddings[one][both], embeddings[other][both], equal, matryoshka_weights)
    if not losses:
        raise ValueError(
            "no two rows of the batch have two modalities with a weight above 0; are the columns image, text, audio there, and "
            "pair_weights as you mean them?"
        )
    total = sum(pair_weights[pair] for pair in losses)
    return sum(pair_weights[pair] * loss for pair, loss in losses.items()) / total, losses


def mean_count(count: Tensor) -> Tensor:
    """A count's mean over processes, at least 1: what to divide a process's sum by, whose gradients are averaged."""
    return reduce(count.float(), "mean").clamp(min=1)


def shared_contrastive_loss(
    model: Any,
    out: Any,
    there: dict[str, Tensor],
    keys: dict[str, Tensor],
    process: tuple[int, int],
    pair_weights: dict[str, float],
    matryoshka_weights: list[float] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    `contrastive_loss` of all processes' rows, and of each pair of modalities. Its value is the whole batch's everywhere; what flows
    back is what it owes to this process's rows, so that processes' mean gradient is one process's.

    out: what the model gave here, with <modality>_embeds, either of all rows or of those that are there, and in training with
    logit_scale and logit_bias where it has them. process: (index, count) of this process.
    """
    here, world = process
    mine = {}
    for name, some in there.items():
        embedded = getattr(out, f"{name}_embeds")
        if embedded is not None and len(embedded) == len(some):
            mine[name] = embedded
            continue
        rows = torch.zeros(len(some), model.config.embed_dim, device=some.device)  # what a row lacks is zeros
        mine[name] = rows if embedded is None else rows.to(embedded).index_copy(0, some.nonzero()[:, 0], embedded)
    whole = {name: gather(rows.detach()).requires_grad_() for name, rows in mine.items()}
    everywhere = {name: gather(some) for name, some in there.items()}
    alike = {name: gather(some) for name, some in keys.items()}
    loss, parts = contrastive_loss(model, whole, everywhere, alike, pair_weights, matryoshka_weights)
    if not torch.is_grad_enabled():
        return loss, parts

    # its gradient in the embeddings, carried on through what was embedded here; processes' gradients are averaged afterwards
    used = {name: out[name] for name in ("logit_scale", "logit_bias") if out.get(name) is not None}
    grads = torch.autograd.grad(loss, [*whole.values(), *(getattr(model, name) for name in used)], allow_unused=True)
    carried = loss.new_zeros(())
    for rows, grad in zip(mine.values(), grads, strict=False):
        own = slice(here * len(rows), (here + 1) * len(rows))
        carried = carried + (rows * grad[own]).sum() * world if grad is not None else carried + rows.sum() * 0
    for value, grad in zip(used.values(), grads[len(mine) :], strict=True):
        carried = carried + (value * grad if grad is not None else value * 0)
    return loss.detach() + carried - carried.detach(), parts


class ContrastiveTrainer(SealedCheckpoints, Trainer):
    """
    train_dataset and eval_dataset hold rows with `image`, `text` and `audio`, or some of them. `processing_class` is an
    AlignerProcessor, or that of a model that also captions, which then learns to by `caption_weight`. features: modality ->
    features of a frozen tower, which the rows of train_dataset index (tower_features.py). Raises ValueError for a chunk_size, or a
    caption_weight, that the model can do nothing with.
    """

    def __init__(
        self, model: Any, args: ContrastiveConfig, processing_class: Any, features: dict | None = None, **kwargs
    ):
        speaks = model.can_generate()
        if args.chunk_size and speaks:
            raise ValueError(f"chunk_size is not for {type(model).__name__}; set gradient_checkpointing to save memory")
        if args.caption_weight and not speaks:
            raise ValueError(f"caption_weight={args.caption_weight}: {type(model).__name__} writes no captions")
        if speaks:
            kwargs.setdefault("data_collator", CaptionedCollator(processing_class, captions=args.caption_weight > 0))
        else:
            kwargs.setdefault("data_collator", ContrastiveCollator(processing_class, features or {}))
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self.model_accepts_loss_kwargs = False  # a batch's loss is a mean already
        self._components: dict[str, list[Tensor]] = {}
        self._skipped = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args = self.args
        self._skipped += inputs.pop("skipped", 0)
        there = {name: inputs.pop(f"{name}_there") for name in COLUMNS if f"{name}_there" in inputs}
        keys = {name: inputs.pop(f"{name}_key") for name in there}
        if args.chunk_size:
            inputs["chunk_size"] = args.chunk_size
        if "labels" in inputs:
            inputs["num_items_in_batch"] = mean_count((inputs["labels"][:, 1:] != -100).sum())
        out = model(**inputs)
        process = args.process_index, args.world_size
        weights = args.pair_weights, args.matryoshka_weights
        loss, parts = shared_contrastive_loss(self.accelerator.unwrap_model(model), out, there, keys, process, *weights)
        if args.caption_weight:
            parts["caption"] = reduce(out.loss.detach(), "mean")
            loss = loss + args.caption_weight * out.loss
        for name, part in parts.items():
            self._components.setdefault(f"{name}_loss", []).append(part.detach())
        return (loss, out) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            for name, values in self._components.items():
                logs[name] = round(torch.stack(values).mean().item(), 6)
            self._components.clear()
            skipped = torch.tensor(self._skipped, device=self.args.device)
            if total := int(reduce(skipped, "sum")):
                logs["skipped"] = total
        super().log(logs, *args, **kwargs)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        rows: Dataset = dataloader.dataset
        args = self.args
        if args.eval_examples is not None:
            rows = rows.select(range(min(args.eval_examples, len(rows))))
        model = self.accelerator.unwrap_model(self.model)
        embedded = embed_rows(model, self.processing_class, rows, args.eval_batch_size, progress=not args.disable_tqdm)
        figures = retrieval_figures(embedded, nested_dims(model))
        metrics = {f"{metric_key_prefix}_{name}": figure["value"] for name, figure in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(rows))
