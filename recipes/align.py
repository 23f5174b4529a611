"""
Bring pictures, words and sounds into one space; score retrieval; leave a folder that loads anywhere. An aligner's space is
Matryoshka; a contrastive GPT-2 learns to caption beside it.

    accelerate launch recipes/align.py --config recipes/aligner/quickstart.yaml
    accelerate launch recipes/align.py --config recipes/contrastive_gpt2/phase1.yaml
    accelerate launch recipes/align.py --config recipes/aligner/my_pictures.yaml --data_dir FOLDER

Every field of `Recipe` and of trainers.ContrastiveConfig may stand in the YAML; the command line overrides it; an unknown key is an
error. A killed run goes on where its newest sealed checkpoint stands: run the same command again with
--resume_from_checkpoint true.
"""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from transformers import ASTFeatureExtractor, AutoModel, AutoProcessor, ViTImageProcessor, set_seed
from trl import TrlParser

from datasets_scripts import load_rows
from modeling import AlignerModel, ContrastiveGPT2ForConditionalGeneration
from processing import AlignerProcessor, ContrastiveGPT2Processor
from processing.caption_tokenizer import train_tokenizer
from trainers.captioning_evaluation import evaluate_captions, report
from trainers.contrastive_config import ContrastiveConfig
from trainers.contrastive_data import PARTS
from trainers.contrastive_trainer import ContrastiveTrainer
from trainers.retrieval_evaluation import evaluate_retrieval
from trainers.run_folder import read_json, read_settings, write_json, write_jsonl, write_recipe
from trainers.tower_features import cache_tower_features


@dataclass
class Recipe:
    # The model: either a whole one to go on with, or its towers
    model: str | None = None  # folder or Hub id of an aligner or a contrastive GPT-2
    model_revision: str | None = None
    architecture: str = "aligner"  # aligner, or contrastive_gpt2: a vision tower and a language model
    vision_model: str | None = None  # folder or Hub id; CLIP, SigLIP, DINOv2, timm's, …
    vision_revision: str | None = None  # commit
    text_model: str | None = (
        None  # folder or Hub id; CLIP's or SigLIP's, BERT, sentence-transformers' encoders, …; GPT-2 or another that writes
    )
    text_revision: str | None = None
    audio_model: str | None = None  # folder or Hub id; Whisper, AST, CLAP; None: no sound
    audio_revision: str | None = None
    vision_config: dict | str | None = (
        None  # in place of vision_model: a tower that knows nothing yet, {model_type: vit, …}
    )
    image_size: int = 224  # pixels a side, of a vision_config that does not say
    text_config: dict | str | None = None  # in place of text_model; its vocabulary is learned from the training rows
    audio_config: dict | str | None = None  # in place of audio_model: of an audio-spectrogram-transformer
    sampling_rate: int = 16_000  # that an audio_config's tower hears at
    vocab_size: int = 2000  # of a vocabulary that is learned
    pad_text_to_max: bool = False  # as SigLIP's text towers learned
    freeze: list[str] = field(default_factory=lambda: ["vision", "text", "audio"])  # towers that do not learn
    cache_features: bool = True  # run a frozen tower once, not once a step
    features_dir: str | None = None  # None: beside the datasets' cache
    model_config: dict | str | None = (
        None  # AlignerConfig's own fields (embed_dim, projector, …), or ContrastiveGPT2Config's
    )

    # The data: rows with image, text, audio, or some of them
    dataset: str = "scenes"
    data_dir: str | None = None
    dataset_options: dict | str | None = None  # of the builder
    test_options: dict | str | None = (
        None  # of the builder, for what is searched in validation and test, where they differ
    )
    test_split: str | None = None  # None: the validation split

    # What a contrastive GPT-2 writes of the test's pictures at the end
    caption_metrics: list[str] = field(default_factory=lambda: ["bleu", "rouge_l", "cider"])
    caption_examples: int | None = None
    max_new_tokens: int = 64
    num_beams: int = 1

    def __post_init__(self):
        for name in ("model_config", "vision_config", "text_config", "audio_config", "dataset_options", "test_options"):
            setattr(self, name, read_settings(name, getattr(self, name)))
        if unknown := set(self.freeze) - set(PARTS.values()):
            raise ValueError(f"freeze: {', '.join(sorted(unknown))} is none of {', '.join(PARTS.values())}")
        if self.architecture not in ("aligner", "contrastive_gpt2"):
            raise ValueError(f"architecture must be aligner or contrastive_gpt2, not {self.architecture!r}")


def join_towers(recipe: Recipe, train: Dataset) -> tuple[AlignerModel, AlignerProcessor]:
    """A new aligner of pretrained towers, or of such as know nothing yet, with the processor that goes with it."""
    if bool(recipe.vision_model) == bool(recipe.vision_config) or bool(recipe.text_model) == bool(recipe.text_config):
        raise ValueError("name `model`; or vision_model or vision_config, and text_model or text_config: one of each")
    named = [f"{part}_{what}" for part in PARTS.values() for what in ("model", "revision")]
    towers = {name: getattr(recipe, name) for name in named}
    new, parts = {}, {}
    if recipe.vision_config:
        new["vision_config"] = recipe.vision_config
        side = recipe.vision_config.get("image_size", recipe.image_size)
        parts["image_processor"] = ViTImageProcessor(size={"height": side, "width": side})
    if recipe.text_config:
        tokenizer = parts["tokenizer"] = train_tokenizer(train["text"], recipe.vocab_size)
        tokenizer.model_max_length = recipe.text_config.get("max_position_embeddings", 77)
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        new["text_config"] = special | {"vocab_size": len(tokenizer)} | recipe.text_config
    if recipe.audio_config:
        new["audio_config"] = recipe.audio_config
        if recipe.audio_config.get("model_type") != "audio-spectrogram-transformer":
            raise ValueError(
                "audio_config: only an audio-spectrogram-transformer's; of others, name a pretrained audio_model"
            )
        size = {
            name: recipe.audio_config[name] for name in ("num_mel_bins", "max_length") if name in recipe.audio_config
        }
        parts["feature_extractor"] = ASTFeatureExtractor(sampling_rate=recipe.sampling_rate, **size)
    model = AlignerModel.from_towers(**towers, **new, **recipe.model_config)
    return model, AlignerProcessor.from_towers(**towers, pad_to_max=recipe.pad_text_to_max, **parts)


def join_writer(recipe: Recipe) -> tuple[ContrastiveGPT2ForConditionalGeneration, ContrastiveGPT2Processor]:
    """A new contrastive GPT-2 of a pretrained vision tower and a language model, with its processor."""
    if not (recipe.vision_model and recipe.text_model) or recipe.audio_model:
        raise ValueError("a contrastive_gpt2 is of a vision_model and a text_model, and hears nothing")
    towers = {"vision_model": recipe.vision_model, "text_model": recipe.text_model}
    towers |= {"vision_revision": recipe.vision_revision, "text_revision": recipe.text_revision}
    model = ContrastiveGPT2ForConditionalGeneration.from_towers(**towers, **recipe.model_config)
    processor = ContrastiveGPT2Processor.from_towers(prefix_length=model.config.prefix_length, **towers)
    model.set_image_token(processor.image_token_id)
    if len(processor.tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(processor.tokenizer))
    return model, processor


def judge(trainer: ContrastiveTrainer, test: Dataset, pictures: Dataset | None, recipe: Recipe) -> dict:
    """Retrieval and, where there are pictures to write of, captions: both in metrics.json."""
    args, folder = trainer.args, Path(trainer.args.output_dir)
    model, processor = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    protocol = {"dataset": recipe.dataset, "split": recipe.test_split or "validation", "model": args.output_dir}
    figures = evaluate_retrieval(model, processor, test, folder, protocol, args.eval_batch_size)
    if pictures is not None:
        found = read_json(folder / "metrics.json")["protocol"]
        figures |= evaluate_captions(
            model, processor, pictures, recipe.caption_metrics, folder, protocol,
            max_new_tokens=recipe.max_new_tokens, num_beams=recipe.num_beams,
        )  # fmt: skip
        written = read_json(folder / "metrics.json")["protocol"]
        write_json(folder / "metrics.json", {**figures, "protocol": written | {"retrieval": found}})
    return figures


def main(recipe: Recipe, args: ContrastiveConfig) -> None:
    # 1. Rows to learn from and rows to be judged by.
    set_seed(args.seed)
    options = {"rows": "alignment", "data_dir": recipe.data_dir, **recipe.dataset_options}
    with args.main_process_first(desc="preparing the data"):
        train = load_rows(recipe.dataset, "train", **options)
        validation = load_rows(recipe.dataset, "validation", **options | recipe.test_options)

    # 2. A model, its processor, and what its frozen towers make of the rows.
    if recipe.model:
        model = AutoModel.from_pretrained(recipe.model, revision=recipe.model_revision, dtype="float32")
        processor = AutoProcessor.from_pretrained(recipe.model, revision=recipe.model_revision)
    elif recipe.architecture == "contrastive_gpt2":
        model, processor = join_writer(recipe)
    else:
        model, processor = join_towers(recipe, train)
    model.freeze_towers(*recipe.freeze)
    features = {}
    frozen = [
        m for m, part in PARTS.items() if part in recipe.freeze and part in model.towers() and m in train.column_names
    ]
    if recipe.cache_features and frozen and not model.can_generate():
        features, train = cache_tower_features(
            model.to(args.device), processor, train, frozen, recipe.features_dir,
            process=(args.process_index, args.world_size), wait=PartialState().wait_for_everyone,
        )  # fmt: skip

    # 3. Train; every evaluation looks for each text's picture, and the other way round.
    trainer = ContrastiveTrainer(model, args, processor, features, train_dataset=train, eval_dataset=validation)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 4. One folder: weights, code and processor, its scores, and the recipe that made it.
    trainer.save_model()
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        write_jsonl(folder / "train_log.jsonl", trainer.state.log_history)
        write_recipe(folder, "align.py", recipe, args)
        test, split = validation, recipe.test_split or "validation"
        if recipe.test_split:
            test = load_rows(recipe.dataset, split, **options | recipe.test_options)
        pictures = None
        if model.can_generate() and recipe.caption_metrics:
            pictures = load_rows(recipe.dataset, split, **options | {"rows": "image"})
            pictures = pictures.take(min(recipe.caption_examples or len(pictures), len(pictures)))
        print(f"\n{report(judge(trainer, test, pictures, recipe))}\n\nmodel and scores: {folder}")


if __name__ == "__main__":
    main(*TrlParser((Recipe, ContrastiveConfig)).parse_args_and_config())
