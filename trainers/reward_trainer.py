"""
RewardTrainer: transformers' Trainer for Bradley–Terry rewards of answers about pictures.

    row {images, prompt, chosen, rejected} -> both answers, the pictures once -> rewards
    loss = -log sigmoid(chosen - rejected - margin) + center_rewards_coefficient * (chosen + rejected)**2, a mean over pairs

Columns, arguments and log names are those of TRL's RewardTrainer, which takes text only: accuracy, margin, mean_reward,
min_reward, max_reward. An evaluation judges every pair, and logs accuracy also for each `flaw` that rows name. Rows that cannot be
used are logged as `skipped`, how many so far, and named in skipped.jsonl. Checkpoints are sealed.

Unusual: a loss is a sum over pairs divided by how many usable ones the whole step has, over all processes and accumulated
batches: neither skipped rows nor the number of processes change what a pair counts.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from trainers.pictures import loss_plot
from trainers.preference_losses import bradley_terry_loss
from trainers.reward_config import RewardConfig
from trainers.reward_data import SIDES, PreferenceCollator, row_name
from trainers.reward_evaluation import judge_pairs, must_be_finite, preference_figures
from trainers.run_folder import read_jsonl, write_jsonl
from trainers.sealed_checkpoints import SealedCheckpoints


logger = logging.get_logger(__name__)


def preference_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, center_rewards_coefficient: float | None = None
) -> Tensor:
    """
    What each pair (b,) of rewards costs, (b,) float32: Bradley–Terry, and center_rewards_coefficient * (chosen + rejected)**2,
    which holds rewards near 0 (https://arxiv.org/abs/2312.09244). margin: by how much the chosen one has to be ahead.
    """
    loss = bradley_terry_loss(chosen, rejected, margin)
    if center_rewards_coefficient is None:
        return loss
    return loss + center_rewards_coefficient * (chosen.float() + rejected.float()) ** 2


class RewardTrainer(SealedCheckpoints, Trainer):
    """
    train_dataset and eval_dataset hold preference rows; `model` is a VisionRewardForSequenceClassification, or a PeftModel of one;
    `processing_class` is the processor of the model inside. Raises ValueError where one process would use several GPUs.
    """

    def __init__(self, model: Any, args: RewardConfig, processing_class: Any, **kwargs):
        if args.n_gpu > 1:
            raise ValueError("one process a GPU: start by accelerate launch --num_processes N")
        kwargs.setdefault("data_collator", PreferenceCollator(processing_class, args.max_length, args.strict))
        if args.disable_dropout:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the pairs of the whole step
        self._rewards: list[Tensor] = []
        self._skipped: list[dict] = []

    def _get_eval_sampler(self, eval_dataset: Dataset) -> None:
        """Evaluation takes its rows in order, by itself."""
        return None

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if lost := load_result.missing_keys + load_result.unexpected_keys:
            raise ValueError(f"the checkpoint is of another model: {', '.join(lost[:3])} on one side only")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._skipped += inputs.pop("skipped", [])
        used, names, margin = inputs.pop("labels") != -100, inputs.pop("row"), inputs.pop("margin")
        outputs = model(**inputs)
        chosen, rejected = outputs.logits[:, 0].chunk(2)
        losses = preference_loss(chosen, rejected, margin, self.args.center_rewards_coefficient)
        must_be_finite(losses, used, names, "loss")
        pairs = used.sum() if num_items_in_batch is None else num_items_in_batch
        # what is skipped stays in the graph, so that a batch of nothing else has a backward pass too
        loss = losses.masked_fill(~used, 0.0).sum() / max(int(pairs), 1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        self._rewards.append(torch.stack([chosen, rejected])[:, used].detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= self._report_rewards() | self._report_skipped()
        super().log(logs, *args, **kwargs)

    def _report_rewards(self) -> dict[str, float]:
        """TRL's figures of the pairs trained on since the last report, over all processes."""
        here, self._rewards = self._rewards, []
        pairs = gather_object(torch.cat(here, 1).T.tolist() if here else [])
        if not pairs:
            return {}
        rewards = torch.tensor(pairs)
        chosen, rejected = rewards.T
        figures = {"accuracy": (chosen > rejected).float().mean(), "margin": (chosen - rejected).mean()}
        figures |= {"mean_reward": rewards.mean(), "min_reward": rewards.min(), "max_reward": rewards.max()}
        return {name: round(value.item(), 6) for name, value in figures.items()}

    def _report_skipped(self) -> dict[str, int]:
        """Name new rows that could not be used in the log and in skipped.jsonl, across processes; how many there are so far."""
        new, self._skipped = gather_object(self._skipped), []
        path = Path(self.args.output_dir) / "skipped.jsonl"
        before = {row_name(row): row for row in read_jsonl(path)} if path.exists() else {}
        fresh = {row_name(row): row for row in new if row_name(row) not in before}
        if fresh and self.is_world_process_zero():
            for name, row in fresh.items():
                logger.warning(f"row {name} is skipped: {row['problem']}")
            write_jsonl(path, [*before.values(), *fresh.values()])
        total = len(before | fresh)
        return {"skipped": total} if total else {}

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        rows, args = dataloader.dataset, self.args
        if args.eval_examples is not None:
            rows = rows.select(range(min(args.eval_examples, len(rows))))
        here = rows.shard(args.world_size, args.process_index, contiguous=True)
        progress = self.is_local_process_zero() and not args.disable_tqdm
        model = self.accelerator.unwrap_model(self.model)
        judged, _ = judge_pairs(model, self.data_collator, here, args.eval_batch_size, progress)
        judged = [pair for pair in gather_object(judged) if pair is not None]
        figures = {name.removeprefix("preference_"): f["value"] for name, f in preference_figures(judged).items()}
        rewards = torch.tensor([[pair[side] for side in SIDES] for pair in judged])
        figures |= {"loss": preference_loss(*rewards.T).mean().item(), "mean_reward": rewards.mean().item()}
        figures |= {"min_reward": rewards.min().item(), "max_reward": rewards.max().item()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(judged))

    def save_log(self) -> None:
        """Write train_log.jsonl and loss.png into the run's folder."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            write_jsonl(folder / "train_log.jsonl", self.state.log_history)
            loss_plot(self.state.log_history, folder / "loss.png")
