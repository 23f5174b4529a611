"""
Find what captions name in their pictures: captions in, captions and grounded regions out, for models to be trained on.

    accelerate launch recipes/augment.py --config recipes/grounded/quickstart.yaml
    accelerate launch recipes/augment.py --config recipes/grounded/coco.yaml --data-dir $COCO_ROOT --split train --output DIR

    captions -> noun phrases -> GroundingDINO's boxes -> crops -> CLIP's opinion -> DIR/train.parquet, train.jsonl

DIR also holds rejected.jsonl, statistics.json, gallery.html (kept and rejected regions, with scores and reasons) and
augmentation.json: what decides every record, the commits of the models among it. Run the same command again to go on after a kill;
told anything else, it refuses. Several processes, also on several machines that share DIR, take a share of the shards each.

Every field of `Recipe` may stand in the YAML; the command line overrides it; an unknown key is an error.

Unusual: what is rejected is kept apart, with the reason, so that recipes/score_regions.py can draw what other thresholds would do.
"""

import json
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from trl import TrlParser

import modeling  # noqa: F401  teaches the Auto classes our models: the working tree wins over code saved with a checkpoint
import processing  # noqa: F401
from datasets_scripts import load_rows
from grounding.gallery import gallery
from grounding.noun_phrases import chunker
from grounding.pipeline import Judge, Stages, Thresholds, augment, captioner_of
from grounding.shards import agree, merge, read_shards, write_shards
from trainers.captioning_evaluation import generate_captions
from trainers.exact_revision import exact_revision
from trainers.run_folder import read_settings, write_text, write_whole


@dataclass
class Recipe(Thresholds):
    # The pictures and their captions
    dataset: str = "coco"  # coco (data_dir, or $COCO_ROOT), scenes, pictures, flickr8k, or a Hub id
    data_dir: str | None = None
    split: str = "train"
    dataset_options: dict | str | None = None  # of the builder
    columns: dict | str | None = None  # of a Hub id without canonical columns: {image: jpg, caption: txt}
    max_images: int | None = None  # the first so many
    output: str = "outputs/grounded/augmented"

    # The models: folders or Hub ids, with the commit to use
    detector: str = (
        "IDEA-Research/grounding-dino-tiny"  # GroundingDINO, OWLv2, …: any zero-shot detector of transformers
    )
    detector_revision: str | None = None
    similarity_model: str = "openai/clip-vit-base-patch32"
    similarity_revision: str | None = None
    captioner: str | None = None  # who describes a region; None: its phrase does
    captioner_revision: str | None = None
    captioner_prompt: str = "Describe the picture."
    trust_remote_code: bool = False  # for models whose folders carry code of their own; pin their revisions then
    chunker: str | None = None  # spacy or rules; None: spacy where its English model is installed
    template: str = "a photo of a {}."  # what the similarity model reads of a region's words
    dtype: str = "float32"

    # How much at once
    detector_batch_size: int = 8
    similarity_batch_size: int = 64
    captioner_batch_size: int = 16
    shard_size: int = 64  # pictures; what a kill can cost a process
    gallery_size: int = 48  # regions shown of each kind

    def __post_init__(self):
        super().__post_init__()
        for name in ("dataset_options", "columns"):
            setattr(self, name, read_settings(name, getattr(self, name)))
        for name in ("detector_batch_size", "similarity_batch_size", "captioner_batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images must be at least 1, is {self.max_images}")
        if "{}" not in self.template:
            raise ValueError(f"template: {self.template!r} has no {{}} for the words to stand in")


def load_judge(kind: type, name: str, revision: str | None, recipe: Recipe, device: torch.device) -> Judge:
    """A model that only looks, its processor, and its id@commit."""
    exact = exact_revision(name, revision)
    common = {"trust_remote_code": recipe.trust_remote_code}
    if not Path(name).is_dir():
        common["revision"] = exact
    model = kind.from_pretrained(name, dtype=recipe.dtype, **common).eval().to(device)
    return Judge(model, AutoProcessor.from_pretrained(name, **common), f"{name}@{exact}")


def load_stages(recipe: Recipe, device: torch.device) -> Stages:
    chunker_name, chunk = chunker(recipe.chunker)
    detector = load_judge(
        AutoModelForZeroShotObjectDetection, recipe.detector, recipe.detector_revision, recipe, device
    )
    believer = load_judge(AutoModel, recipe.similarity_model, recipe.similarity_revision, recipe, device)
    if not hasattr(believer.model, "get_text_features"):
        raise ValueError(
            f"similarity_model: {recipe.similarity_model} is a {type(believer.model).__name__}, which does not read texts; take a "
            "CLIP or SigLIP"
        )
    say, name = None, None
    if recipe.captioner:
        judge = load_judge(AutoModelForImageTextToText, recipe.captioner, recipe.captioner_revision, recipe, device)
        say, name = (
            captioner_of(
                generate_captions,
                judge,
                recipe.captioner_prompt,
                batch_size=recipe.captioner_batch_size,
                max_new_tokens=32,
            ),
            judge.name,
        )
    return Stages(
        chunk, chunker_name, detector, believer, say, name, recipe.template,
        recipe.detector_batch_size, recipe.similarity_batch_size,
    )  # fmt: skip


def picture_path(row: dict, folder: Path) -> str:
    """What a record names a row's picture by: its path, or, of one that has none, where in `folder` its bytes are put."""
    source = row["images"][0] if row["images"] else {"path": None, "bytes": None}
    if source.get("bytes") is None:
        return source["path"] or ""
    content = source["bytes"]
    kind = "jpg" if content.startswith(b"\xff\xd8") else "png"  # for people: open_picture looks inside
    name = f"pictures/{sha256(content).hexdigest()[:24]}.{kind}"
    if not (folder / name).exists():
        write_whole(folder / name, lambda path: path.write_bytes(content))
    return name


def identity(rows: Dataset) -> str:
    """A hash of which pictures and captions are read; row by row, so that memory does not grow."""
    digest = sha256()
    for row in rows.select_columns(["image_id", "references"]):
        digest.update(json.dumps([row["image_id"], row["references"]], ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def decides(recipe: Recipe, stages: Stages, rows: Dataset) -> dict:
    """Everything that a record depends on."""
    names = [field.name for field in fields(Thresholds)] + ["dataset", "split", "dataset_options"]
    names += ["template", "dtype", "shard_size"]
    names += ["detector_batch_size", "similarity_batch_size"]
    names += ["captioner_prompt", "captioner_batch_size"] if recipe.captioner else []
    told = {name: getattr(recipe, name) for name in names}
    models = {"detector": stages.detector.name, "similarity_model": stages.believer.name}
    told |= models | {"captioner": stages.captioner_name, "chunker": stages.chunker}
    return told | {"pictures": len(rows), "data_fingerprint": identity(rows)}


def main(recipe: Recipe) -> None:
    # 1. Pictures with captions, one row a picture.
    state, folder = PartialState(), Path(recipe.output)
    options = {"data_dir": recipe.data_dir, "columns": recipe.columns or None, **recipe.dataset_options}
    with state.main_process_first():
        rows = load_rows(recipe.dataset, recipe.split, rows="image", **options)
    if recipe.max_images is not None:
        rows = rows.select(range(min(recipe.max_images, len(rows))))

    # 2. The models, and whether DIR holds a run of the same.
    stages = load_stages(recipe, state.device)
    told = decides(recipe, stages, rows)
    with state.main_process_first():
        agree(folder, told)
    if state.is_main_process:
        print(f"{len(rows):,} pictures; noun phrases by {stages.chunker}; boxes by {stages.detector.name}; "
              f"similarity by {stages.believer.name}", flush=True)  # fmt: skip

    # 3. Shards: each of this process's, if it is not there.
    def compute(here: range) -> list[dict]:
        some = [rows[i] for i in here]
        return augment(some, [picture_path(row, folder) for row in some], stages, recipe)

    share = (state.process_index, state.num_processes)
    count = write_shards(folder, len(rows), recipe.shard_size, compute, share, state.wait_for_everyone)

    # 4. One folder: examples, what was rejected, figures, and a page to look at.
    if state.is_main_process:
        figures = merge(folder, recipe.split, count)
        shown = {name: told[name] for name in ("detector", "similarity_model", "captioner", "chunker", "box_threshold",
                                               "text_threshold", "clip_threshold", "clip_percentile")}  # fmt: skip
        page = gallery(folder, folder.name, shown, figures, read_shards(folder, count), recipe.gallery_size)
        write_text(folder / "gallery.html", page)
        rejected = ", ".join(f"{number:,} {reason}" for reason, number in figures["rejected"].items())
        print(f"{figures['kept']:,} of {figures['detections']:,} regions kept ({rejected or 'none rejected'}) beside "
              f"{figures['captions']:,} captions: {folder}")  # fmt: skip
        if not figures["kept"]:
            print("no region is kept: look at gallery.html, and lower box_threshold or clip_threshold")


if __name__ == "__main__":
    main(*TrlParser(Recipe).parse_args_and_config())
