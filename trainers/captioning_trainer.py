"""
CaptioningTrainer: transformers' Trainer, with captions generated and scored *during* evaluation.

Every evaluation writes captions for the evaluation rows (sharded over processes), scores them with our metrics, saves a contact
sheet, and hands the figures to Trainer as `eval_<metric>`, so `metric_for_best_model`, early stopping and every logger just work.
Loss components the model returns (`caption_loss`, `align_loss`, any `<x>_loss`) are logged beside the loss.

Unusual: it overrides `evaluation_loop`, not `evaluate`: the callbacks hang on the latter.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from trainers.captioning_config import CaptioningConfig
from trainers.captioning_data import CaptioningCollator
from trainers.captioning_evaluation import generate_captions, score, sheet
from trainers.pictures import loss_plot
from trainers.run_folder import write_jsonl


class CaptioningTrainer(Trainer):
    """train_dataset and eval_dataset hold canonical rows; `processing_class` is the processor of any HF VLM."""

    def __init__(self, model: Any, args: CaptioningConfig, processing_class: Any, **kwargs):
        kwargs.setdefault("data_collator", CaptioningCollator(processing_class))
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self._components: dict[str, list[torch.Tensor]] = defaultdict(list)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        for name, value in outputs.items():
            if name.endswith("_loss") and value is not None:
                self._components[name].append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and self._components:
            # components of one optimiser step add up over its accumulation steps, as the loss itself does
            steps = self.args.gradient_accumulation_steps if self.model_accepts_loss_kwargs else 1
            for name, values in self._components.items():
                mean = torch.stack(values).mean().reshape(1)
                logs[name] = round(self.accelerator.gather(mean).mean().item() * steps, 6)
            self._components.clear()
        super().log(logs, *args, **kwargs)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        rows: Dataset = dataloader.dataset
        args = self.args
        if args.eval_examples is not None:
            rows = rows.select(range(min(args.eval_examples, len(rows))))
        here = rows.shard(args.world_size, args.process_index, contiguous=True)
        said = generate_captions(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            here,
            args.eval_batch_size,
            progress=self.is_local_process_zero() and not args.disable_tqdm,
            do_sample=False,
            max_new_tokens=args.max_new_tokens,
            num_beams=args.num_beams,
        )
        predictions = gather_object(said)
        figures = score(args.eval_metrics, predictions, rows)
        if self.is_world_process_zero():
            sheet(rows, predictions, Path(args.output_dir) / "sheets" / f"step_{self.state.global_step:06d}.png")
        metrics = {f"{metric_key_prefix}_{name}": figure["value"] for name, figure in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(rows))

    def save_log(self) -> None:
        """Write train_log.jsonl and loss.png into the run's folder."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            write_jsonl(folder / "train_log.jsonl", self.state.log_history)
            loss_plot(self.state.log_history, folder / "loss.png")
