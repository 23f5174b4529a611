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
from trainers.contrastive_data import COLUMNS, ContrastiveCollator
from trainers.retrieval_evaluation import embed_rows, retrieval_figures
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


class ContrastiveTrainer(SealedCheckpoints, Trainer):
    """
    train_dataset and eval_dataset hold rows with `image`, `text` and `audio`, or some of them. `processing_class` is an
    AlignerProcessor. features: modality -> features of a frozen tower, which the rows of train_dataset index (tower_features.py).
    """

    def __init__(
        self, model: Any, args: ContrastiveConfig, processing_class: Any, features: dict | None = None, **kwargs
    ):
        kwargs.setdefault("data_collator", ContrastiveCollator(processing_class, features or {}))
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self.model_accepts_loss_kwargs = False  # a batch's loss is a mean already
        self._components: dict[str, list[Tensor]] = {}
        self._skipped = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._skipped += inputs.pop("skipped", 0)
        there = {name: inputs.pop(f"{name}_there") for name in COLUMNS if f"{name}_there" in inputs}
        keys = {name: inputs.pop(f"{name}_key") for name in there}
        out = model(**inputs, chunk_size=self.args.chunk_size)
        core, world, here = self.accelerator.unwrap_model(model), self.args.world_size, self.args.process_index

        # every process's embeddings, each on its row; what a row lacks is zeros
        mine = {}
        for name in there:
            embedded = getattr(out, f"{name}_embeds")
            rows = embedded.new_zeros(len(there[name]), core.config.embed_dim)
            mine[name] = rows if not there[name].any() else rows.index_copy(0, there[name].nonzero()[:, 0], embedded)
        whole = {name: gather(rows.detach()).requires_grad_() for name, rows in mine.items()}
        everywhere = {name: gather(some) for name, some in there.items()}
        alike = {name: gather(some) for name, some in keys.items()}
        args = self.args.pair_weights, self.args.matryoshka_weights
        loss, parts = contrastive_loss(core, whole, everywhere, alike, *args)
        for name, part in parts.items():
            self._components.setdefault(f"{name}_loss", []).append(part.detach())
        if not torch.is_grad_enabled():
            return (loss, out) if return_outputs else loss

        # its gradient in them, carried on through what was embedded here; processes' gradients are averaged afterwards
        grads = torch.autograd.grad(loss, [*whole.values(), core.logit_scale, core.logit_bias], allow_unused=True)
        carried = loss.new_zeros(())
        for rows, grad in zip(mine.values(), grads, strict=False):
            own = slice(here * len(rows), (here + 1) * len(rows))
            carried = carried + (rows * grad[own]).sum() * world if grad is not None else carried + rows.sum() * 0
        for used, grad in zip((out.logit_scale, out.logit_bias), grads[len(mine) :], strict=True):
            carried = carried + (used * grad if grad is not None else used * 0)
        loss = loss.detach() + carried - carried.detach()
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
        figures = retrieval_figures(embedded, model.config.matryoshka_dimensions)
        metrics = {f"{metric_key_prefix}_{name}": figure["value"] for name, figure in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(rows))
