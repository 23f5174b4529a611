"""
PreferenceTrainer: pictures and captions in one space, and of two captions the better one likelier: both at once.

    pair -> both sides behind the picture -> log-probabilities -> Bradley–Terry loss  \\
         -> the chosen side alone, picture -> embeddings       -> InfoNCE              -> alpha(t) * InfoNCE + (1 - alpha(t)) * rest
    alpha(t): linear over optimiser steps, so that what the space needs is learned before what the words need takes over

Shaped like TRL's DPOTrainer: the same columns (images, prompt, chosen, rejected), constructor and names in the log (rewards/chosen,
rewards/accuracies, logps/chosen, …).

Unusual:
- One forward: a picture is encoded once for both sides, and by default nothing is held against a reference (`loss_type`).
- Pairs about one picture are no negatives of one another, nor are pairs that choose the same words.
- Losses are sums over pairs divided by how many usable ones the processes have on average: skipped rows and the number of processes
  change nothing. A loss that is no number stops the run, with the names of its rows.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin, Trainer
from transformers.trainer_utils import EvalLoopOutput

from trainers.contrastive_trainer import mean_count, shared_contrastive_loss
from trainers.pictures import loss_plot
from trainers.preference_config import PreferenceConfig
from trainers.preference_data import PairCollator, words_of
from trainers.preference_evaluation import score_pairs
from trainers.preference_losses import alpha_at, bradley_terry_loss
from trainers.reward_evaluation import must_be_finite
from trainers.run_folder import write_jsonl
from trainers.sealed_checkpoints import SealedCheckpoints


class PreferenceTrainer(SealedCheckpoints, Trainer):
    """
    model: one that writes and embeds, such as ContrastiveGPT2ForConditionalGeneration. train_dataset and eval_dataset hold
    preference rows. ref_model: what `loss_type: dpo` holds it against; default, the model as it is now. features: cached vision
    features that train_dataset's `images` index. Raises ValueError for a model that does not embed, unless both alphas are 0.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: PreferenceConfig | None = None,
        processing_class: ProcessorMixin | None = None,
        features: Any = None,
        **kwargs,
    ):
        args = PreferenceConfig() if args is None else args
        if args.contrasts and not hasattr(model, "alignment_loss"):
            raise ValueError(
                f"{type(model).__name__} has no embeddings to contrast: set alpha_start and alpha_end to 0, or trainer: dpo"
            )
        if args.disable_dropout:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        self.ref_model = None
        if args.loss_type == "dpo":
            self.ref_model = (copy.deepcopy(model) if ref_model is None else ref_model).eval().requires_grad_(False)
        kwargs.setdefault(
            "data_collator", PairCollator(processing_class, args.max_length, args.strict, args.contrasts, features)
        )
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self.model_accepts_loss_kwargs = False  # a batch's loss is a mean already
        if self.ref_model is not None:
            self.ref_model = self.accelerator.prepare_model(self.ref_model, evaluation_mode=True)
        self._logged: dict[str, list[Tensor]] = {}
        self._skipped: list[dict] = []

    @property
    def alpha(self) -> float:
        """What the contrastive loss counts at this optimiser step."""
        return alpha_at(self.state.global_step, self.state.max_steps, self.args.alpha_start, self.args.alpha_end)

    def rewards(self, logps: Tensor, words: Tensor, reference: Tensor | None) -> Tensor:
        """Of summed log-probabilities (b,), of so many words (b,), and against a reference's (b,)."""
        return self.args.beta * (logps / words.clamp(min=1) if reference is None else logps - reference)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args, alpha = self.args, self.alpha
        self._skipped += inputs.pop("skipped", [])
        used, names = inputs.pop("used"), inputs.pop("row")
        keys = {name: inputs.pop(f"{name}_key") for name in ("image", "text") if f"{name}_key" in inputs}
        out = model(**inputs)
        words, reference = words_of(inputs["labels"]), None
        if self.ref_model is not None:
            alone = {name: value for name, value in inputs.items() if not name.startswith("text_")}
            with torch.no_grad():
                reference = self.ref_model(**alone).sequence_logps
        rewards = self.rewards(out.sequence_logps, words, reference)
        chosen, rejected = rewards.chunk(2)
        losses = bradley_terry_loss(chosen, rejected, args.margin)
        must_be_finite(losses, used, names, "loss")
        preference = losses.masked_fill(~used, 0.0).sum() / mean_count(used.sum())
        loss, parts = (1 - alpha) * preference, {"preference_loss": reduce(preference.detach(), "mean")}
        if args.contrasts:
            there, process = dict.fromkeys(("image", "text"), used), (args.process_index, args.world_size)
            core = self.accelerator.unwrap_model(model)
            contrastive, _ = shared_contrastive_loss(core, out, there, keys, process, {"image_text": 1.0})
            loss, parts["contrastive_loss"] = loss + alpha * contrastive, contrastive.detach()
        if args.caption_weight:
            chosen_words = words.chunk(2)[0]
            caption = -out.sequence_logps.chunk(2)[0].sum() / mean_count(chosen_words.sum())
            loss, parts["caption_loss"] = loss + args.caption_weight * caption, reduce(caption.detach(), "mean")
        logps = out.sequence_logps.detach().chunk(2)
        pairs = {
            "rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(), "logps/chosen": logps[0], "logps/rejected": logps[1],
        }  # fmt: skip
        count = mean_count(used.sum())
        parts |= {
            name: reduce(value.detach().masked_fill(~used, 0).sum() / count, "mean") for name, value in pairs.items()
        }
        for name, value in (parts | {"alpha": torch.tensor(alpha)}).items():
            self._logged.setdefault(name, []).append(value.detach().cpu())
        return (loss, out) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= {name: round(torch.stack(values).mean().item(), 6) for name, values in self._logged.items()}
            self._logged.clear()
            skipped = reduce(torch.tensor(len(self._skipped), device=self.args.device), "sum")
            if int(skipped):
                logs["skipped"] = int(skipped)
        super().log(logs, *args, **kwargs)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        rows: Dataset = dataloader.dataset
        args = self.args
        if args.eval_examples is not None:
            rows = rows.select(range(min(args.eval_examples, len(rows))))
        here = rows.shard(args.world_size, args.process_index, contiguous=True)
        progress = self.is_local_process_zero() and not args.disable_tqdm
        scores = self._scored(self.accelerator.unwrap_model(self.model), here, progress)
        told = list(zip(here["flaw"], *(some.tolist() for some in scores), strict=True))
        pairs = [pair for pair in gather_object(told) if pair[1] == pair[1]]  # not NaN: a pair that cannot be used
        flaws, chosen, rejected = zip(*pairs, strict=True)
        chosen, rejected = torch.tensor(chosen), torch.tensor(rejected)
        right = (chosen > rejected).float()
        figures = {
            "loss": bradley_terry_loss(chosen, rejected, args.margin).mean().item(),
            "rewards/margins": (chosen - rejected).mean().item(),
            "preference_accuracy": right.mean().item(),
        }
        for flaw in sorted(set(flaws) - {""}):
            which = torch.tensor([one == flaw for one in flaws])
            figures[f"preference_accuracy_{flaw}"] = right[which].mean().item()
        metrics = {f"{metric_key_prefix}_{name}": round(value, 6) for name, value in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(pairs))

    def _scored(self, model: PreTrainedModel, rows: Dataset, progress: bool) -> tuple[Tensor, Tensor]:
        """Rewards (rows,) of both sides, NaN where a pair cannot be used."""
        how = self.processing_class, rows, self.args.eval_batch_size, progress
        scores = score_pairs(model, *how)
        if self.ref_model is None:
            return self.args.beta * scores["chosen_mean"], self.args.beta * scores["rejected_mean"]
        before = score_pairs(self.accelerator.unwrap_model(self.ref_model), *how)
        return tuple(self.args.beta * (scores[side] - before[side]) for side in ("chosen", "rejected"))

    def save_log(self) -> None:
        """Write train_log.jsonl, loss.png and, of pairs that could not be used, skipped.jsonl into the run's folder."""
        skipped = {(row.get("image_id"), row.get("flaw")): row for row in gather_object(self._skipped)}
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            write_jsonl(folder / "train_log.jsonl", self.state.log_history)
            loss_plot(self.state.log_history, folder / "loss.png")
            if skipped:
                write_jsonl(folder / "skipped.jsonl", skipped.values())
