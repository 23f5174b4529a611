"""
Bring pictures, words and sounds into one Matryoshka space; score retrieval; leave a folder that loads anywhere.

    accelerate launch recipes/align.py --config recipes/aligner/quickstart.yaml
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
from modeling import AlignerModel
from processing import AlignerProcessor
from processing.caption_tokenizer import train_tokenizer
from trainers.captioning_evaluation import report
from trainers.contrastive_config import ContrastiveConfig
from trainers.contrastive_data import PARTS
from trainers.contrastive_trainer import ContrastiveTrainer
from trainers.retrieval_evaluation import evaluate_retrieval
from trainers.run_folder import read_settings, write_jsonl, write_recipe
from trainers.tower_features import cache_tower_features


@dataclass
class Recipe:
    # The model: either a whole one to go on with, or its towers
    model: str | None = None  # folder or Hub id of an aligner
    model_revision: str | None = None
    vision_model: str | None = None  # folder or Hub id; CLIP, SigLIP, DINOv2, timm's, …
    vision_revision: str | None = None  # commit
    text_model: str | None = None  # folder or Hub id; CLIP's or SigLIP's, BERT, sentence-transformers' encoders, …
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
    model_config: dict | str | None = None  # AlignerConfig's own fields: embed_dim, projector, loss, …

    # The data: rows with image, text, audio, or some of them
    dataset: str = "scenes"
    data_dir: str | None = None
    dataset_options: dict | str | None = None  # of the builder
    test_options: dict | str | None = None  # of the builder, for validation and test, where they differ
    test_split: str | None = None  # None: the validation split

    def __post_init__(self):
        for name in ("model_config", "vision_config", "text_config", "audio_config", "dataset_options", "test_options"):
            setattr(self, name, read_settings(name, getattr(self, name)))
        if unknown := set(self.freeze) - set(PARTS.values()):
            raise ValueError(f"freeze: {', '.join(sorted(unknown))} is none of {', '.join(PARTS.values())}")


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
    else:
        model, processor = join_towers(recipe, train)
    model.freeze_towers(*recipe.freeze)
    features = {}
    frozen = [
        m for m, part in PARTS.items() if part in recipe.freeze and part in model.towers() and m in train.column_names
    ]
    if recipe.cache_features and frozen:
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
        test = validation
        if recipe.test_split:
            test = load_rows(recipe.dataset, recipe.test_split, **options | recipe.test_options)
        protocol = {"dataset": recipe.dataset, "split": recipe.test_split or "validation", "model": args.output_dir}
        whole = trainer.accelerator.unwrap_model(trainer.model)
        figures = evaluate_retrieval(whole, processor, test, folder, protocol, args.eval_batch_size)
        print(f"\n{report(figures)}\n\nmodel and scores: {folder}")


if __name__ == "__main__":
    main(*TrlParser((Recipe, ContrastiveConfig)).parse_args_and_config())
