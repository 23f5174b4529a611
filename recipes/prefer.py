"""
Teach a vision–language model which of two answers is the better one; score what it prefers and what it then says; leave a folder
that loads anywhere.

    accelerate launch recipes/prefer.py --config recipes/contrastive_gpt2/phase2.yaml
    accelerate launch recipes/prefer.py --config recipes/ossight/dpo.yaml

    pair {images, prompt, chosen, rejected}
      trainer: joint -> a contrastive and a preference loss at once (trainers/preference_trainer.py); of a contrastive_gpt2
      trainer: dpo   -> texts and pictures -> TRL's DPOTrainer, against the model as it was; of any model that writes

Every field of `Recipe` and of the trainer's configuration (trainers.PreferenceConfig, or trl.DPOConfig) may stand in the YAML; the
command line overrides it; an unknown key is an error. A killed run goes on where its newest sealed checkpoint stands: run the same
command again with --resume_from_checkpoint true. Pairs that cannot be used are left out, counted, and named in skipped.jsonl.

Unusual: for DPO, pairs are written out by the same functions as captions are (trainers/captioning_data.py), so that what is
preferred, what is scored and what is generated are one text; DPOTrainer itself is TRL's, unchanged. The reference is loaded here,
not by TRL, which would load it without its revision.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from peft.utils import ModulesToSaveWrapper
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, TrlParser

import modeling  # noqa: F401  teaches the Auto classes our models: the working tree wins over code saved with a checkpoint
import processing  # noqa: F401
from datasets_scripts import load_rows
from datasets_scripts.preference_rows import PREFERENCE_FEATURES
from modeling.modeling_ossight import nf4
from trainers.captioning_data import completion_text, pictures_of, prompt_text, with_pictures
from trainers.captioning_evaluation import evaluate_captions, report
from trainers.chat_turns import complete_turns
from trainers.dataset_rows import said
from trainers.frozen_towers import freeze_towers, language_only
from trainers.pictures import loss_plot
from trainers.preference_config import PreferenceConfig
from trainers.preference_evaluation import Baseline, evaluate_preferences
from trainers.preference_trainer import PreferenceTrainer
from trainers.retrieval_evaluation import evaluate_retrieval
from trainers.run_folder import read_json, read_settings, write_json, write_jsonl, write_recipe
from trainers.sealed_checkpoints import SealedCheckpoints
from trainers.vision_features import cache_vision_features


logger = logging.get_logger(__name__)


@dataclass
class Recipe:
    # The model, which is its own reference
    model: str  # folder or Hub id of any HF vision–language model
    model_revision: str | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    load_in_4bit: bool = False  # the language model, in nf4; `dtype` is what it computes in; needs lora
    freeze_vision: bool = True
    freeze_text: bool = False
    lora: dict | str | None = None  # peft.LoraConfig's fields; the model's folder then holds base and adapter

    # The pairs: rows with images, prompt, chosen and rejected
    dataset: str = "scenes"  # scenes, or a Hub id
    train_pairs: list[str] | None = (
        None  # folders or Hub ids to learn from, in place of dataset (which may be one of them)
    )
    data_dir: str | None = None
    dataset_options: dict | str | None = None  # of the builder
    rejected: str | None = (
        None  # of captions that nobody paired: shuffled (another picture's) or swapped (another object)
    )

    # What is learned from them
    trainer: str = "joint"  # joint (of contrastive_gpt2) or dpo (of any model that writes)
    cache_vision_features: bool = False  # joint: run a frozen vision tower once a picture, not once a step
    vision_features_dir: str | None = None  # None: beside the datasets' cache
    early_stopping_patience: int | None = None  # evaluations without a better metric_for_best_model

    # The evaluation at the end: which side is preferred, and what is said
    test_split: str | None = None  # None: the validation split
    test_examples: int | None = None  # so many pairs, and so many pictures
    caption_metrics: list[str] | None = None  # None: of scenes bleu, cider, scene_f1, chair; of others none, as []
    max_new_tokens: int = 64
    num_beams: int = 1
    baseline: str | None = None  # a run's folder: how often are these captions better than its
    retrieval_options: dict | str | None = None  # of the builder: of a model that embeds, find these rows' pictures too

    def __post_init__(self):
        for name in ("lora", "dataset_options", "retrieval_options"):
            setattr(self, name, read_settings(name, getattr(self, name)))
        if self.trainer not in ("joint", "dpo"):
            raise ValueError(f"trainer must be joint or dpo, not {self.trainer!r}")
        if self.load_in_4bit and not self.lora:
            raise ValueError(
                "load_in_4bit: what is in 4 bits does not learn; name a lora, and in modules_to_save what shall"
            )
        if self.trainer == "joint" and self.lora:
            raise ValueError("lora is for trainer: dpo")
        if self.caption_metrics is None:
            self.caption_metrics = ["bleu", "cider", "scene_f1", "chair"] if self.dataset == "scenes" else []


def config_of(trainer: str) -> type[TrainingArguments]:
    """The arguments of a trainer, which decide what a YAML may hold."""
    return PreferenceConfig if trainer == "joint" else DPOConfig


class SealedDPOTrainer(SealedCheckpoints, DPOTrainer):
    """TRL's, with checkpoints that are whole or not there. Raises ValueError where the loss is not finite."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: lower learning_rate (it is "
                f"{self.args.learning_rate}) or raise beta (it is {self.args.beta}); with fp16, try bf16 or neither"
            )
        return loss

    def save_log(self) -> None:
        """Write train_log.jsonl and loss.png into the run's folder."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            write_jsonl(folder / "train_log.jsonl", self.state.log_history)
            loss_plot(self.state.log_history, folder / "loss.png")


def problem_of(row: dict) -> str:
    """Why a pair cannot be used; empty for one that can."""
    chosen, rejected = (said(row[side]).strip() for side in ("chosen", "rejected"))
    if not (chosen and rejected):
        return f"the {'rejected' if chosen else 'chosen'} side is empty"
    if chosen == rejected:
        return "both sides say the same"
    if not any(turn["role"] == "user" for turn in row["prompt"]):
        return "nothing is asked"
    try:
        with_pictures(row["prompt"], len(row["images"]))
        pictures_of(row)
    except ValueError as problem:
        return str(problem)
    return ""


def training_pairs(recipe: Recipe, paired: dict[str, Any]) -> Dataset:
    """The pairs to learn from: dataset's (`paired`: its options), or those of `train_pairs` together."""
    if not recipe.train_pairs:
        return load_rows(recipe.dataset, "train", rows="preference", **paired)
    parts = [
        load_rows(name, "train", rows="preference", **(paired if name == recipe.dataset else {}))
        .select_columns(list(PREFERENCE_FEATURES))
        .cast(PREFERENCE_FEATURES)
        for name in recipe.train_pairs
    ]
    return concatenate_datasets(parts)


def usable(splits: dict[str, Dataset], args: TrainingArguments) -> dict[str, Dataset]:
    """
    The pairs that can be used; the others are counted, and named in skipped.jsonl. Each process looks at its share. Raises
    ValueError for a split of which none can be used.
    """
    kept, skipped, path = {}, [], Path(args.output_dir) / "skipped.jsonl"
    for split, rows in splits.items():
        looked = rows.shard(args.world_size, args.process_index, contiguous=True).map(
            lambda row: {"problem": problem_of(row)}, remove_columns=rows.column_names,
            num_proc=args.dataloader_num_workers or None, load_from_cache_file=False, desc=f"looking at {split}",
        )  # fmt: skip
        problems = dict(enumerate(gather_object(list(looked["problem"]) if len(looked) else [])))
        kept[split] = rows.select([i for i, problem in problems.items() if not problem])
        lost = {i: problem for i, problem in problems.items() if problem}
        names = rows.select_columns(["image_id", "flaw"])
        skipped += [{"split": split, **names[i], "problem": problem} for i, problem in lost.items()]
    if skipped and args.process_index == 0:
        write_jsonl(path, skipped)
        logger.warning(f"{len(skipped)} pairs are left out, named in {path}; the first: {skipped[0]}")
    if empty := [split for split, rows in kept.items() if not len(rows)]:
        raise ValueError(f"not one pair of {empty[0]} can be used; see {path}")
    return kept


def written_out(rows: Dataset, processor: Any) -> Dataset:
    """Pairs as DPOTrainer takes them: pictures are opened, and templates applied, one batch at a time."""

    def read(batch: dict[str, list]) -> dict[str, list]:
        pairs = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        told = {
            "images": [pictures_of(pair) for pair in pairs],
            "prompt": [prompt_text(processor, pair) for pair in pairs],
        }
        for side in ("chosen", "rejected"):
            told[side] = [completion_text(processor, {**pair, "completion": pair[side]}) for pair in pairs]
        return told

    return rows.select_columns(["images", "prompt", "chosen", "rejected"]).with_transform(read)


def load_model(recipe: Recipe, args: TrainingArguments) -> PreTrainedModel:
    """The model as it was: what learns, and what it is held against. Raises ValueError for one that DPO cannot train."""
    common = {"revision": recipe.model_revision, "trust_remote_code": trusted(args)}
    model = AutoModelForImageTextToText.from_pretrained(
        recipe.model, dtype=recipe.dtype, attn_implementation=recipe.attn_implementation,
        quantization_config=language_only(nf4(recipe.dtype), recipe.model, **common) if recipe.load_in_4bit else None,
        **common,
    )  # fmt: skip
    if model.config.is_encoder_decoder:
        raise ValueError(f"{recipe.model} reads and writes apart; DPO needs one text, prompt and answer")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(f"{recipe.model} holds an adapter; first: python recipes/merge.py --model {recipe.model}")
    return model


def dpo_trainer(recipe: Recipe, args: DPOConfig, model: PreTrainedModel, processor: Any, pairs: dict[str, Dataset]):
    """DPOTrainer over `model`, held against the same model loaded once more, or over a LoRA on it, held against its base."""
    if args.max_length is not None:
        raise ValueError(f"max_length: {args.max_length} would cut pairs, through pictures too; set max_length: null")
    pairs = {split: written_out(rows, processor) for split, rows in usable(pairs, args).items()}
    if recipe.lora:
        if args.process_index == 0:  # what the adapter stands on
            model.save_pretrained(args.output_dir)
        model.name_or_path = args.output_dir
    else:
        freeze_towers(model, recipe.freeze_vision, recipe.freeze_text)
    reference, lora = (None, LoraConfig(**recipe.lora)) if recipe.lora else (load_model(recipe, args), None)
    told = {"train_dataset": pairs["train"], "eval_dataset": pairs.get("validation")}
    trainer = SealedDPOTrainer(model, reference, args, processing_class=processor, peft_config=lora, **told)
    if recipe.load_in_4bit:
        # DPOTrainer rounds what learns beside 4 bits to bfloat16; OSSight's bridges and fp16's scaler want float32, as it was
        for weight in trainer.model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
        for part in trainer.model.modules():
            if isinstance(part, ModulesToSaveWrapper):
                part.modules_to_save["default"].load_state_dict(part.original_module.state_dict())
    return trainer


def trusted(args: TrainingArguments) -> bool:
    """Whether a model's own code may run: TRL's configurations say so, and no model that is trained jointly has any."""
    return getattr(args, "trust_remote_code", False)


def joint_trainer(
    recipe: Recipe, args: PreferenceConfig, model: PreTrainedModel, processor: Any, pairs: dict[str, Dataset]
):
    """PreferenceTrainer over `model`, which reads pictures, or what its frozen tower made of them before."""
    freeze_towers(model, recipe.freeze_vision, recipe.freeze_text)
    train, features = pairs["train"], None
    if recipe.cache_vision_features and recipe.freeze_vision:
        features, train = cache_vision_features(
            model.to(args.device), processor, train, recipe.vision_features_dir, num_workers=args.dataloader_num_workers,
            process=(args.process_index, args.world_size), wait=PartialState().wait_for_everyone,
        )  # fmt: skip
    told = {"train_dataset": train, "eval_dataset": pairs.get("validation")}
    return PreferenceTrainer(model, None, args, processor, features, **told)


def judge(
    model: Any,
    processor: Any,
    recipe: Recipe,
    args: Any,
    pairs: Dataset,
    pictures: Dataset | None = None,
    gallery: Dataset | None = None,
) -> dict:
    """
    Which sides a model prefers; where pictures are given, what it says of them; where a gallery is, what it finds in it.
    metrics.json holds all, predictions.jsonl the captions, preferences/ the pairs. Returns the figures.
    """
    folder, size = Path(args.output_dir), args.eval_batch_size
    protocol = {"dataset": recipe.dataset, "split": recipe.test_split or "validation", "model": args.output_dir}
    figures = evaluate_preferences(model, processor, pairs, folder / "preferences", protocol, size)
    preferred = read_json(folder / "preferences" / "metrics.json")["protocol"]
    if pictures is not None:
        figures |= evaluate_captions(
            model, processor, pictures, recipe.caption_metrics, folder, protocol, size,
            baseline=Baseline(recipe.baseline) if recipe.baseline else None,
            max_new_tokens=recipe.max_new_tokens, num_beams=recipe.num_beams,
        )  # fmt: skip
        protocol = read_json(folder / "metrics.json")["protocol"]
    if gallery is not None:
        figures |= evaluate_retrieval(model, processor, gallery, folder / "retrieval", {"split": protocol["split"]})
        protocol |= {"retrieval": read_json(folder / "retrieval" / "metrics.json")["protocol"]}
    write_json(folder / "metrics.json", {**figures, "protocol": {**protocol, "preferences": preferred}})
    return figures


def main(recipe: Recipe, args: TrainingArguments) -> None:
    # 1. Pairs to learn from; pairs and pictures to be judged by.
    folder, test = Path(args.output_dir), recipe.test_split or "validation"
    if folder.resolve() == Path(recipe.model).resolve():
        raise ValueError(f"output_dir: {folder} holds the model that the new one is held against; write it elsewhere")
    options = {"data_dir": recipe.data_dir, **recipe.dataset_options}
    paired = options | ({"rejected": recipe.rejected} if recipe.rejected else {})
    with args.main_process_first(desc="preparing the data"):
        pairs = {"train": training_pairs(recipe, paired)}
        if args.eval_strategy != "no":
            pairs["validation"] = load_rows(recipe.dataset, "validation", rows="preference", **paired)
        judged = [load_rows(recipe.dataset, test, rows="preference", **paired)]
        judged += [load_rows(recipe.dataset, test, rows="image", **options)] if recipe.caption_metrics else [None]
        judged = [rows and rows.take(min(recipe.test_examples or len(rows), len(rows))) for rows in judged]
        if recipe.retrieval_options:
            judged += [load_rows(recipe.dataset, test, rows="alignment", **options | recipe.retrieval_options)]

    # 2. A model, and the processor that speaks its language.
    model = load_model(recipe, args)
    source = {"revision": recipe.model_revision, "trust_remote_code": trusted(args)}
    processor = AutoProcessor.from_pretrained(recipe.model, **source)
    complete_turns(processor)

    # 3. Train.
    begin = joint_trainer if recipe.trainer == "joint" else dpo_trainer
    trainer = begin(recipe, args, model, processor, pairs)
    if recipe.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_log()

    # 4. One folder: weights, code and processor, its scores, and the recipe that made it.
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_recipe(folder, "prefer.py", recipe, args)
        figures = judge(trainer.accelerator.unwrap_model(trainer.model), processor, recipe, args, *judged)
        print(f"\n{report(figures)}\n\nmodel, scores and pictures: {folder}")


if __name__ == "__main__":
    # which trainer it is decides what else may be said, so that is read first
    first, *_ = TrlParser(Recipe, add_help=False).parse_args_and_config(return_remaining_strings=True)
    main(*TrlParser((Recipe, config_of(first.trainer))).parse_args_and_config())
