"""
Train a reward model on preferences between answers about pictures; judge held-out pairs; leave a folder that loads anywhere.

    accelerate launch recipes/reward.py --config recipes/reward/quickstart.yaml

Every field of `Recipe` and of trainers.RewardConfig may stand in the YAML; the command line overrides it; an unknown key is an
error. A killed run goes on where its newest sealed checkpoint stands: run the same command again with
--resume_from_checkpoint true. Rows that cannot be used are skipped, counted and named in skipped.jsonl; --strict true stops at one.
"""

from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    PreTrainedConfig,
    set_seed,
)
from trl import TrlParser

import processing  # noqa: F401  teaches AutoProcessor our processors
from datasets_scripts import load_rows
from modeling import VisionRewardConfig, VisionRewardForSequenceClassification
from modeling.modeling_ossight import nf4
from trainers.captioning_evaluation import report
from trainers.reward_config import RewardConfig
from trainers.reward_evaluation import best_of_figures, evaluate_preferences
from trainers.reward_trainer import RewardTrainer
from trainers.run_folder import read_json, read_settings, write_json, write_recipe


@dataclass
class Recipe:
    # The model
    model: (
        str  # folder or Hub id of any HF vision–language model, which gets a head; or of a reward model, to go on with
    )
    model_revision: str | None = None  # commit
    trust_remote_code: bool = False  # for a `model` whose folder carries code of its own; pin model_revision then
    dtype: str = "float32"  # of the model; the head is float32 always
    attn_implementation: str | None = None
    load_in_4bit: bool = False  # the language model, in nf4; `dtype` is what it computes in
    freeze_vision: bool = True  # the vision tower, not what joins it to the language model
    lora: dict | str | None = (
        None  # peft.LoraConfig's fields; the head is trained whole; the folder holds base and adapter
    )

    # The data: preference rows
    dataset: str = "scenes"
    data_dir: str | None = None
    dataset_options: dict | str | None = None  # of the builder: num_train, seed, …
    columns: dict | str | None = (
        None  # of a Hub id with captions only, of which pairs are made: {image: jpg, caption: txt}
    )

    # The evaluation at the end
    test_split: str | None = None  # None: the validation split
    test_examples: int | None = None
    blind_control: bool = False  # judge once more with the pictures shuffled
    best_of: int | None = None  # of scenes: is the best of so many captions by reward better than the greedy one?
    best_of_examples: int = 300  # … of so many scenes
    captioner: str | None = None  # … whose captions; None: `model`
    temperature: float = 1.0  # … sampled at

    def __post_init__(self):
        for name in ("lora", "dataset_options", "columns"):
            setattr(self, name, read_settings(name, getattr(self, name)))
        if self.best_of is not None and self.dataset != "scenes":
            raise ValueError("best_of is scored by the truth, which is known of scenes only")


def main(recipe: Recipe, args: RewardConfig) -> None:
    # 1. Pairs to learn from and pairs to be judged by.
    set_seed(args.seed)
    options = {"data_dir": recipe.data_dir, "columns": recipe.columns or None, **recipe.dataset_options}
    with args.main_process_first(desc="preparing the data"):
        train = load_rows(recipe.dataset, "train", rows="preference", **options)
        validation = load_rows(recipe.dataset, "validation", rows="preference", **options)

    # 2. A model with a head, and the processor that speaks its language.
    common = {"revision": recipe.model_revision, "trust_remote_code": recipe.trust_remote_code}
    processor = AutoProcessor.from_pretrained(recipe.model, **common)
    told, _ = PreTrainedConfig.get_config_dict(recipe.model, revision=recipe.model_revision)
    begun = told["model_type"] == VisionRewardConfig.model_type
    load = (
        AutoModelForSequenceClassification.from_pretrained if begun else VisionRewardForSequenceClassification.from_vlm
    )
    model = load(
        recipe.model, dtype=recipe.dtype, attn_implementation=recipe.attn_implementation,
        quantization_config=nf4(recipe.dtype) if recipe.load_in_4bit else None, **common,
    )  # fmt: skip
    if recipe.freeze_vision:
        model.freeze_vision()

    # 3. Train; every evaluation judges held-out pairs.
    if recipe.lora:
        with args.main_process_first(desc="saving what the adapter stands on"):
            if args.process_index == 0:
                model.save_pretrained(args.output_dir)
        model.name_or_path = args.output_dir
        whole = {*recipe.lora.pop("modules_to_save", ()), "score"}  # a head is new, and LoRA leaves it as it is
        model = get_peft_model(model, LoraConfig(**recipe.lora, modules_to_save=sorted(whole)))
    trainer = RewardTrainer(model, args, processor, train_dataset=train, eval_dataset=validation)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_log()

    # 4. One folder: weights, code and processor, its scores, and the recipe that made it.
    trainer.save_model()
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        write_recipe(folder, "reward.py", recipe, args)
        split, whole = recipe.test_split or "validation", trainer.accelerator.unwrap_model(trainer.model)
        test = load_rows(recipe.dataset, split, rows="preference", **options)
        if recipe.test_examples:
            test = test.select(range(min(recipe.test_examples, len(test))))
        protocol = {"dataset": recipe.dataset, "split": split, "model": args.output_dir}
        figures = evaluate_preferences(
            whole, trainer.data_collator, test, folder, protocol, args.eval_batch_size, recipe.blind_control
        )
        if recipe.best_of is not None:
            asked = recipe.captioner or recipe.model
            captioner = AutoModelForImageTextToText.from_pretrained(asked, dtype=recipe.dtype).eval().to(args.device)
            scenes = load_rows(recipe.dataset, split, rows="image", **options)
            how = {"temperature": recipe.temperature, "seed": args.seed, "batch_size": args.eval_batch_size}
            figures |= best_of_figures(
                scenes.select(range(min(recipe.best_of_examples, len(scenes)))), recipe.best_of,
                captioner=captioner, processor=AutoProcessor.from_pretrained(asked),
                reward_model=whole, reward_processor=processor, do_sample=False, max_new_tokens=64, **how,
            )  # fmt: skip
            protocol = read_json(folder / "metrics.json")["protocol"] | {"best_of": {"captioner": asked, **how}}
            write_json(folder / "metrics.json", {**figures, "protocol": protocol})
        print(f"\n{report(figures)}\n\nmodel and scores: {folder}")


if __name__ == "__main__":
    main(*TrlParser((Recipe, RewardConfig)).parse_args_and_config())
