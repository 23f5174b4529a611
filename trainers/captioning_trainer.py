"""
CaptioningTrainer: transformers' Trainer, with captions generated and scored *during* evaluation.

Every evaluation writes captions for the evaluation rows (sharded over processes), scores them with our metrics, saves a contact
sheet, and hands the figures to Trainer as `eval_<metric>`, so `metric_for_best_model`, early stopping and every logger just work.
Loss components the model returns (`caption_loss`, `align_loss`, any `<x>_loss`) are logged beside the loss. Rows that cannot be
used are logged as `skipped`, how many so far, and named in skipped.jsonl. Checkpoints are sealed.

Unusual: it overrides `evaluation_loop`, not `evaluate`: the callbacks hang on the latter. A streamed `train_dataset` goes round
without end, each process on its own share, and a resumed run starts at the row after the last it used.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from trainers.captioning_config import CaptioningConfig
from trainers.captioning_data import CaptioningCollator
from trainers.captioning_evaluation import generate_captions, only_seen, score, sheet
from trainers.length_groups import LengthGroups
from trainers.pictures import loss_plot
from trainers.run_folder import read_jsonl, write_jsonl
from trainers.sealed_checkpoints import SealedCheckpoints
from trainers.streaming import EndlessStream


logger = logging.get_logger(__name__)


class CaptioningTrainer(SealedCheckpoints, Trainer):
    """
    train_dataset and eval_dataset hold canonical rows; `processing_class` is the processor of any HF VLM. `features` are cached
    vision features that train_dataset's `images` index. Raises ValueError for a stream with dataloader workers: it is shared out by
    process.
    """

    def __init__(self, model: Any, args: CaptioningConfig, processing_class: Any, features: Any = None, **kwargs):
        apart = getattr(model.config, "is_encoder_decoder", False)
        collator = CaptioningCollator(processing_class, args.max_length, args.strict, features, apart)
        kwargs.setdefault("data_collator", collator)
        self._streams = isinstance(kwargs.get("train_dataset"), IterableDataset)
        if self._streams and args.dataloader_num_workers:
            raise ValueError("a stream is read by each process itself: set dataloader_num_workers to 0")
        if self._streams:
            args.ignore_data_skip = True  # the stream itself passes over what was used
        quantized = getattr(model, "is_quantized", False)
        if quantized and any(p.requires_grad for p in model.parameters()):
            model.is_quantized = False  # Trainer takes LoRA for the only thing that can be trained beside 4-bit weights
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        if quantized:
            model.is_quantized = True
        self._components: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._skipped: list[dict] = []

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """
        With `train_sampling_strategy: group_by_length`, rows of like length together, by the characters they are said in; of an
        encoder–decoder, the completion's.
        """
        if self.args.train_sampling_strategy != "group_by_length" or self._streams:
            return super()._get_train_sampler(train_dataset)
        args, rows = self.args, self.train_dataset if train_dataset is None else train_dataset
        turns = rows.select_columns(["prompt", "completion"])
        apart = getattr(self.model.config, "is_encoder_decoder", False)
        said = (row["completion"] if apart else row["prompt"] + row["completion"] for row in turns)
        lengths = [sum(len(str(turn["content"])) for turn in row) for row in said]
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthGroups(lengths, batch, args.seed if args.data_seed is None else args.data_seed)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        if self.optimizer is not None or self.args.vision_learning_rate is None:
            return super().create_optimizer(*args, **kwargs)
        optimizer = super().create_optimizer(*args, **kwargs)
        tower = {id(weight) for name, weight in self.model.named_parameters() if "vision_tower." in name}
        for group in list(optimizer.param_groups):
            slower = [weight for weight in group["params"] if id(weight) in tower]
            if slower:
                group["params"] = [weight for weight in group["params"] if id(weight) not in tower]
                optimizer.add_param_group(group | {"params": slower, "lr": self.args.vision_learning_rate})
        return optimizer

    def _get_eval_sampler(self, eval_dataset: Dataset) -> None:
        """Evaluation takes its rows in order, by itself."""
        return None

    def get_train_dataloader(self) -> DataLoader:
        if not self._streams:
            return super().get_train_dataloader()
        args = self.args
        rows_a_step = args.gradient_accumulation_steps * args.train_batch_size
        start = lambda: self.state.global_step * rows_a_step  # noqa: E731  a checkpoint is read after this
        stream = EndlessStream(self.train_dataset, args.process_index, args.world_size, start)
        return DataLoader(stream, args.train_batch_size, collate_fn=self.data_collator)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """
        A checkpoint holds tied weights once, and a light one lacks the towers, which are in place already; anything else that is
        missing is an error.
        """
        towers = tuple(f"model.{part}." for part in ("vision_tower", "language_model"))
        tied = getattr(self.model, "all_tied_weights_keys", {})
        lost = [k for k in load_result.missing_keys if not k.startswith((*towers, "lm_head.")) and k not in tied]
        if lost or load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint is of another model: {lost[:3]} missing, {load_result.unexpected_keys[:3]} unknown"
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._skipped += inputs.pop("skipped", [])
        if num_items_in_batch is not None:  # of a batch in which every row was skipped
            num_items_in_batch = max(num_items_in_batch, 1)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        for name, value in outputs.items():
            if name.endswith("_loss") and value is not None:
                self._components[name].append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= self._report_skipped()
        if "loss" in logs and self._components:
            # components of one optimiser step add up over its accumulation steps, as the loss itself does
            steps = self.args.gradient_accumulation_steps if self.model_accepts_loss_kwargs else 1
            for name, values in self._components.items():
                mean = torch.stack(values).mean().reshape(1)
                logs[name] = round(self.accelerator.gather(mean).mean().item() * steps, 6)
            self._components.clear()
        super().log(logs, *args, **kwargs)

    def _report_skipped(self) -> dict[str, int]:
        """Name new rows that could not be used in the log and in skipped.jsonl, across processes; how many there are so far."""
        new, self._skipped = gather_object(self._skipped), []
        path = Path(self.args.output_dir) / "skipped.jsonl"
        before = {row["image_id"]: row for row in read_jsonl(path)} if path.exists() else {}
        fresh = {row["image_id"]: row for row in new if row["image_id"] not in before}
        if fresh and self.is_world_process_zero():
            for row in fresh.values():
                logger.warning(f"row {row['image_id']} is skipped: {row['problem']}")
            write_jsonl(path, [*before.values(), *fresh.values()])
        total = len(before | fresh)
        return {"skipped": total} if total else {}

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
            strict=args.strict,
        )
        predictions, rows = only_seen(gather_object(said), rows)
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
