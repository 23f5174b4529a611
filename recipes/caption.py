"""
Train a vision–language model to caption pictures, or to answer questions about them; score it; leave a folder that loads anywhere.

    accelerate launch recipes/caption.py --config recipes/ossight/quickstart.yaml
    accelerate launch recipes/caption.py --config recipes/ossight/my_pictures.yaml --data_dir FOLDER
    accelerate launch recipes/caption.py --config recipes/miniature/llava.yaml

Every field of `Recipe` and of trainers.CaptioningConfig may stand in the YAML; the command line overrides it; an unknown key is an
error. A killed run goes on where its newest sealed checkpoint stands: run the same command again with
--resume_from_checkpoint true. Rows that cannot be used are skipped, counted and named in skipped.jsonl; --strict true stops at one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    set_seed,
)
from trl import TrlParser

from datasets_scripts import OF_REGIONS, load_rows
from modeling import OSSightForConditionalGeneration, SpinVLMForConditionalGeneration
from modeling.modeling_ossight import nf4
from modeling.modeling_spin import timm_id
from processing import OSSightProcessor, SpinVLMProcessor
from processing.caption_tokenizer import IMAGE, import_vocabulary, prepare_tokenizer, train_tokenizer
from trainers.captioning_config import CaptioningConfig
from trainers.captioning_evaluation import evaluate_captions, report
from trainers.captioning_trainer import CaptioningTrainer
from trainers.chat_turns import complete_turns
from trainers.frozen_towers import freeze_towers, language_only, learn_in_float32
from trainers.llava_towers import join_llava, set_image_size
from trainers.run_folder import read_settings, write_recipe
from trainers.streaming import first_rows
from trainers.vision_features import cache_vision_features


OWN = (OSSightForConditionalGeneration, SpinVLMForConditionalGeneration)  # which take features in place of pictures


@dataclass
class Recipe:
    # The model: either a whole one to go on with, or one to begin
    model: str | None = None  # folder or Hub id of any HF vision–language model
    model_revision: str | None = None
    architecture: str = "ossight"  # ossight or llava (two towers joined), or spin (a decoder that knows nothing yet)
    vision_model: str | None = (
        None  # folder or Hub id; SigLIP, CLIP, DINOv2, ViT, …; for spin also timm's name of a ViT
    )
    vision_revision: str | None = None  # commit
    text_model: str | None = None  # folder or Hub id; Qwen2.5, Llama, SmolLM2, GPT-2, …
    text_revision: str | None = None
    tokenizer: str | None = None  # spin: a word -> id JSON, a folder or a Hub id; None: learned from the training rows
    vocab_size: int = 8000  # spin: of a tokenizer that is learned
    trust_remote_code: bool = False  # for a `model` whose folder carries code of its own; pin model_revision then
    dtype: str = "float32"  # of the towers; adapter and fusion are float32 always
    attn_implementation: str | None = None
    load_in_4bit: bool = False  # the language model, in nf4; `dtype` is what it computes in
    freeze_vision: bool = True
    freeze_text: bool = True  # a decoder that knows nothing yet, spin's, has to learn
    lora: dict | str | None = None  # peft.LoraConfig's fields; the model's folder then holds base and adapter
    save_towers: bool = True  # false: checkpoints name unchanged towers by Hub id and commit instead of carrying them
    model_config: dict | str | None = (
        None  # OSSightConfig's own fields (fusion, alpha_align, …), LlavaConfig's or SpinVLMConfig's
    )
    image_size: int | None = None  # pixels a side that pictures are brought to; None: as the processor has it

    # The data: canonical rows
    dataset: str = "pictures"  # scenes, pictures (a folder of one's own), coco, grounded, flickr8k, or a Hub id
    data_dir: str | None = None
    dataset_options: dict | str | None = None  # of the builder: num_train, seed, prompt, …; of regions: regions, margin
    rows: str = "caption"  # what is learned: caption, region (what each of the rows' boxes shows), or both
    eval_dataset: str | None = None  # what is judged by; None: `dataset`, with its data_dir and dataset_options
    eval_data_dir: str | None = None
    eval_dataset_options: dict | str | None = None
    columns: dict | str | None = None  # of a Hub id without canonical columns: {image: jpg, caption: txt}
    streaming: bool = False  # read as it is trained on, instead of whole first; needs max_steps
    stream_buffer: int = 1000  # rows that a stream is shuffled among
    cache_vision_features: bool = False  # run a frozen vision tower once a picture, not once a step
    vision_features_dir: str | None = None  # None: beside the datasets' cache

    # The evaluation at the end
    test_split: str | None = None  # None: the validation split
    test_examples: int | None = None
    blind_control: bool = False  # score once more with the pictures shuffled
    early_stopping_patience: int | None = None  # evaluations without a better metric_for_best_model

    def __post_init__(self):
        for name in ("model_config", "lora", "dataset_options", "eval_dataset_options", "columns"):
            setattr(self, name, read_settings(name, getattr(self, name)))
        if self.rows not in ("caption", "region", "both"):
            raise ValueError(f"rows must be caption, region or both, not {self.rows!r}")
        vain = [name for name in OF_REGIONS if name in self.dataset_options]
        if vain and self.rows == "caption" and self.dataset != "grounded":
            raise ValueError(f"dataset_options: {', '.join(vain)} are of rows: region or both; they are caption")
        if not self.eval_dataset and (self.eval_data_dir or self.eval_dataset_options):
            raise ValueError("eval_data_dir and eval_dataset_options are of an eval_dataset, and none is named")

    def train_rows(self) -> dict:
        """What load_rows is told of the rows to learn from."""
        common = {"dataset": self.dataset, "data_dir": self.data_dir, "columns": self.columns or None}
        return common | self.dataset_options | {"rows": self.rows}

    def judged_rows(self) -> dict:
        """What load_rows is told of the rows to be judged by: captions of whole pictures, one row a picture."""
        if self.eval_dataset:
            told = {"dataset": self.eval_dataset, "data_dir": self.eval_data_dir, **self.eval_dataset_options}
        else:
            told = {name: value for name, value in self.train_rows().items() if name not in OF_REGIONS}
        return told | {"rows": "image"}


def towers_named(recipe: Recipe) -> dict[str, str | None]:
    """The two towers to be joined. Raises ValueError unless both are named."""
    if not (recipe.vision_model and recipe.text_model):
        raise ValueError("name either `model`, or both `vision_model` and `text_model`")
    towers = {"vision_model": recipe.vision_model, "text_model": recipe.text_model}
    return towers | {"vision_revision": recipe.vision_revision, "text_revision": recipe.text_revision}


def join_towers(recipe: Recipe) -> tuple[OSSightForConditionalGeneration, OSSightProcessor]:
    """A new OSSight of two pretrained towers, with the processor that goes with it."""
    towers = towers_named(recipe)
    model = OSSightForConditionalGeneration.from_towers(
        **towers, dtype=recipe.dtype, attn_implementation=recipe.attn_implementation,
        quantization_config=nf4(recipe.dtype) if recipe.load_in_4bit else None, **recipe.model_config,
    )  # fmt: skip
    blocks = {"pixel_shuffle": model.config.pixel_shuffle, "tokens_per_block": model.config.tokens_per_block}
    processor = OSSightProcessor.from_towers(patch_size=model.config.vision_config.patch_size, **blocks, **towers)
    model.set_image_token(processor.image_token_id)
    if len(processor.tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(processor.tokenizer))
    return model, processor


def begin_spin(recipe: Recipe, train: Dataset) -> tuple[SpinVLMForConditionalGeneration, SpinVLMProcessor]:
    """A new SPIN VLM before a pretrained vision tower, with a tokenizer that is imported, or learned from the rows."""
    if not recipe.vision_model:
        raise ValueError("architecture: spin needs a vision_model: timm's name of a ViT, a folder or a Hub id")
    if recipe.tokenizer is None:
        some = train.select_columns(["prompt", "completion"]).take(20_000)
        texts = (turn["content"] for row in some for turn in row["prompt"] + row["completion"])
        tokenizer = train_tokenizer(texts, recipe.vocab_size)
    elif recipe.tokenizer.endswith(".json"):
        tokenizer = import_vocabulary(recipe.tokenizer)
    else:
        tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(recipe.tokenizer))
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    special |= {
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    model = SpinVLMForConditionalGeneration.from_vision(
        recipe.vision_model, recipe.vision_revision, vocab_size=len(tokenizer), **special, **recipe.model_config
    )
    source = timm_id(recipe.vision_model), tokenizer, model.config.image_seq_length, recipe.vision_revision
    return model, SpinVLMProcessor.from_vision(*source)


def load_model(recipe: Recipe, train: Dataset) -> tuple[PreTrainedModel, Any]:
    """The model that the recipe names or begins, its towers frozen as it says, and the processor that speaks its language."""
    if recipe.model:
        common = {"revision": recipe.model_revision, "trust_remote_code": recipe.trust_remote_code}
        processor = AutoProcessor.from_pretrained(recipe.model, **common)
        complete_turns(processor)
        model = AutoModelForImageTextToText.from_pretrained(
            recipe.model, dtype=recipe.dtype, attn_implementation=recipe.attn_implementation,
            quantization_config=language_only(nf4(recipe.dtype), recipe.model, **common) if recipe.load_in_4bit else None,
            **common,
        )  # fmt: skip
    elif recipe.architecture == "spin":
        model, processor = begin_spin(recipe, train)
    elif recipe.architecture == "ossight":
        model, processor = join_towers(recipe)
    elif recipe.architecture == "llava":
        model, processor = join_llava(
            **towers_named(recipe), dtype=recipe.dtype, attn_implementation=recipe.attn_implementation,
            quantization_config=nf4(recipe.dtype) if recipe.load_in_4bit else None, **recipe.model_config,
        )  # fmt: skip
    else:
        raise ValueError(f"architecture must be ossight, llava or spin, not {recipe.architecture!r}")
    if recipe.image_size is not None:
        set_image_size(processor, model, recipe.image_size)
    if isinstance(model, OSSightForConditionalGeneration):
        model.freeze_towers(recipe.freeze_vision, recipe.freeze_text)
        model.config.save_towers = recipe.save_towers
    elif isinstance(model, SpinVLMForConditionalGeneration):
        model.freeze_vision(recipe.freeze_vision)
    elif not recipe.lora and (
        recipe.freeze_vision or recipe.freeze_text
    ):  # beside a LoRA all is frozen that it does not name
        freeze_towers(model, recipe.freeze_vision, recipe.freeze_text)
    return model, processor


def main(recipe: Recipe, args: CaptioningConfig) -> None:
    # 1. Rows to learn from and rows to be judged by.
    set_seed(args.seed)
    with args.main_process_first(desc="preparing the data"):
        train = load_rows(split="train", streaming=recipe.streaming, **recipe.train_rows())
        validation = load_rows(split="validation", streaming=recipe.streaming, **recipe.judged_rows())
    if recipe.streaming:
        train = train.shuffle(seed=args.seed, buffer_size=recipe.stream_buffer)
        validation = first_rows(validation, args.eval_examples or 500)

    # 2. A model, and the processor that speaks its language.
    model, processor = load_model(recipe, train)
    features = None
    if recipe.cache_vision_features and not isinstance(model, OWN):
        raise ValueError(f"cache_vision_features: a {type(model).__name__} takes pictures alone; set it to false")
    if recipe.cache_vision_features and recipe.freeze_vision and not recipe.streaming:
        features, train = cache_vision_features(
            model.to(args.device), processor, train, recipe.vision_features_dir, num_workers=args.dataloader_num_workers,
            process=(args.process_index, args.world_size), wait=PartialState().wait_for_everyone,
        )  # fmt: skip

    # 3. Train; every evaluation captions pictures and scores them.
    if recipe.lora:
        with args.main_process_first(desc="saving what the adapter stands on"):
            if args.process_index == 0:
                model.save_pretrained(args.output_dir)
        model.name_or_path = args.output_dir
        model = get_peft_model(model, LoraConfig(**recipe.lora))
        learn_in_float32(model)
    trainer = CaptioningTrainer(model, args, processor, features, train_dataset=train, eval_dataset=validation)
    if recipe.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_log()

    # 4. One folder: weights, code and processor, its scores, and the recipe that made it.
    trainer.save_model()
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        write_recipe(folder, "caption.py", recipe, args)
        test = validation
        if recipe.test_split:
            test = load_rows(split=recipe.test_split, **recipe.judged_rows())
        if recipe.test_examples:
            test = test.select(range(min(recipe.test_examples, len(test))))
        protocol = {"dataset": recipe.eval_dataset or recipe.dataset, "split": recipe.test_split or "validation"}
        protocol["model"] = args.output_dir
        figures = evaluate_captions(
            trainer.accelerator.unwrap_model(trainer.model), processor, test, args.eval_metrics, folder, protocol,
            batch_size=args.eval_batch_size, blind_control=recipe.blind_control, strict=args.strict,
            max_new_tokens=args.max_new_tokens, num_beams=args.num_beams,
        )  # fmt: skip
        print(f"\n{report(figures)}\n\nmodel, scores and pictures: {folder}")


if __name__ == "__main__":
    main(*TrlParser((Recipe, CaptioningConfig)).parse_args_and_config())
