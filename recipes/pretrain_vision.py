"""
Pretrain a small image–text dual encoder (SigLIP or CLIP) on the miniature world, from nothing.

    accelerate launch recipes/pretrain_vision.py --config recipes/miniature/siglip.yaml
    accelerate launch recipes/pretrain_vision.py --config recipes/miniature/clip.yaml
    accelerate launch recipes/pretrain_vision.py --config recipes/miniature/clip_crops.yaml

Two losses: the model's own between pictures and captions (SigLIP's sigmoid, https://huggingface.co/papers/2303.15343, or CLIP's
InfoNCE, https://huggingface.co/papers/2103.00020), and the same idea a level down, between regions and their phrases (after
RegionCLIP, https://huggingface.co/papers/2112.09106): patches under a box, averaged, must match their phrase among all phrases of
the batch. Without the second, patches of so small a tower say too little about *which* object is where. A third, with
`crop_weight`, does with pictures of single objects what the second does with patches: each, cut out with some of what is around
it, must match its phrase. A model that has only seen whole scenes takes such a picture for something else.

Every field of `Recipe` and of transformers.TrainingArguments may stand in the YAML; the command line overrides it.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    Trainer,
    TrainingArguments,
)
from trl import TrlParser

from datasets_scripts.scene_description import COLOURS, SHAPES, SIZES
from datasets_scripts.scene_language import OTHER_SIZE_WORDS, with_article
from datasets_scripts.scenes import Scenes
from grounding.boxes import crop
from trainers.run_folder import write_json
from trainers.sealed_checkpoints import SealedCheckpoints


@dataclass
class Recipe:
    tokenizer: str | None = None  # folder or Hub id of the text tower's tokenizer
    model: str | None = None  # folder of a dual encoder to go on with, instead of beginning one
    model_type: str = "siglip"  # or clip
    vision_config: dict = field(default_factory=dict)
    text_config: dict = field(default_factory=dict)
    region_weight: float = 1.0  # of the region loss beside the picture loss
    crop_weight: float = 0.0  # of the loss of single objects, cut out
    num_scenes: int = 1_000_000  # drawn as they are needed
    num_eval: int = 1_000  # distinct scenes of `test`, for retrieval


def patch_weights(boxes: Tensor, side: int, image_size: int) -> Tensor:
    """The share of each box that lies on each patch: boxes (n, 4) pixels x0 y0 x1 y1 -> (n, side * side), rows sum to 1."""
    size = image_size / side
    start = torch.arange(side, device=boxes.device) * size

    def overlap(low: Tensor, high: Tensor) -> Tensor:
        return (torch.minimum(high[:, None], start + size) - torch.maximum(low[:, None], start)).clamp(min=0)

    across, down = overlap(boxes[:, 0], boxes[:, 2]), overlap(boxes[:, 1], boxes[:, 3])
    weights = (down[:, :, None] * across[:, None, :]).flatten(1)
    return weights / weights.sum(1, keepdim=True)


class RegionText(nn.Module):
    """A dual encoder, and a projection of regions that is thrown away after pretraining."""

    def __init__(self, model: SiglipModel | CLIPModel, region_weight: float, crop_weight: float = 0.0):
        super().__init__()
        self.dual_encoder = model
        vision = model.config.vision_config
        self.region_proj = nn.Linear(vision.hidden_size, model.config.text_config.hidden_size)
        self.side, self.image_size = vision.image_size // vision.patch_size, vision.image_size
        self.region_weight, self.crop_weight = region_weight, crop_weight

    def forward(
        self,
        input_ids,
        pixel_values,
        boxes,
        box_rows,
        phrase_ids,
        box_phrases,
        crops=None,
        crop_ids=None,
        crop_phrases=None,
    ) -> dict[str, Tensor]:
        """
        boxes (n, 4) stand in pictures box_rows (n,) and are described by phrase_ids[box_phrases]; crops (m, 3, height, width) by
        crop_ids[crop_phrases].
        """
        outputs = self.dual_encoder(input_ids=input_ids, pixel_values=pixel_values, return_loss=True)
        patches = outputs.vision_model_output.last_hidden_state[:, -(self.side**2) :][
            box_rows
        ]  # less CLIP's class token
        regions = (patch_weights(boxes, self.side, self.image_size).unsqueeze(1) @ patches).squeeze(1)
        phrases = self.dual_encoder.get_text_features(input_ids=phrase_ids).pooler_output
        similarity = F.normalize(self.region_proj(regions), dim=-1) @ F.normalize(phrases, dim=-1).T
        region_loss = F.cross_entropy(similarity * 20, box_phrases)
        losses = {"loss": outputs.loss + self.region_weight * region_loss, "region_loss": region_loss}
        if crops is not None:
            seen = F.normalize(self.dual_encoder.get_image_features(pixel_values=crops).pooler_output, dim=-1)
            read = F.normalize(self.dual_encoder.get_text_features(input_ids=crop_ids).pooler_output, dim=-1)
            losses["crop_loss"] = F.cross_entropy(self.dual_encoder.logit_scale.exp() * seen @ read.T, crop_phrases)
            losses["loss"] = losses["loss"] + self.crop_weight * losses["crop_loss"]
        return losses


def cut_out(row: dict) -> tuple[Image.Image, str]:
    """One object of a scene with some of what is around it, and its phrase: always the same ones of the same scene."""
    rng, picture = Random(row["image_id"]), row["images"][0]
    region = rng.choice(row["regions"])
    size, colour, shape = region["phrase"].split()
    told = rng.choice([[size], [OTHER_SIZE_WORDS[size]], []])
    return crop(picture, region["box"], rng.uniform(0, 0.6)), with_article(" ".join([*told, colour, shape]))


def collate(rows: list[dict], processor: SiglipProcessor | CLIPProcessor, crops: bool = False) -> dict[str, Tensor]:
    phrases = sorted({region["phrase"] for row in rows for region in row["regions"]})
    where = [(i, region) for i, row in enumerate(rows) for region in row["regions"]]
    length = processor.tokenizer.model_max_length
    texts = [row["completion"][0]["content"] for row in rows]
    batch = processor(
        images=[row["images"][0] for row in rows],
        text=texts,
        padding="max_length",
        max_length=length,
        return_tensors="pt",
    )
    cut = {}
    if crops:
        pictures, said = zip(*map(cut_out, rows), strict=True)
        told = sorted(set(said))
        cut["crops"] = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        read = processor.tokenizer(told, padding="max_length", max_length=length, return_tensors="pt")
        cut |= {"crop_ids": read["input_ids"], "crop_phrases": torch.tensor([told.index(phrase) for phrase in said])}
    return {
        **cut,
        "input_ids": batch["input_ids"],
        "pixel_values": batch["pixel_values"],
        "boxes": torch.tensor([region["box"] for _, region in where]),
        "box_rows": torch.tensor([i for i, _ in where]),
        "phrase_ids": processor.tokenizer(phrases, padding="max_length", max_length=8, return_tensors="pt")[
            "input_ids"
        ],
        "box_phrases": torch.tensor([phrases.index(region["phrase"]) for _, region in where]),
    }


@torch.no_grad()
def crop_accuracy(model: SiglipModel | CLIPModel, processor: SiglipProcessor | CLIPProcessor, rows) -> float:
    """How often a scene's first object, cut out with a tenth around it, is likest to its own phrase among all 96 of the world."""
    told = [f"{size} {colour} {shape}" for size in SIZES for colour in COLOURS for shape in SHAPES]
    crops = [crop(row["images"][0], row["regions"][0]["box"], 0.1) for row in rows]
    pixels = processor(images=crops, return_tensors="pt")["pixel_values"]
    length = processor.tokenizer.model_max_length
    ids = processor.tokenizer(
        list(map(with_article, told)), padding="max_length", max_length=length, return_tensors="pt"
    )
    seen = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    read = F.normalize(model.get_text_features(input_ids=ids["input_ids"]).pooler_output, dim=-1)
    right = torch.tensor([told.index(row["regions"][0]["phrase"]) for row in rows])
    return ((seen @ read.T).argmax(1) == right).float().mean().item()


@torch.no_grad()
def recall_at_1(
    model: SiglipModel | CLIPModel, processor: SiglipProcessor | CLIPProcessor, rows
) -> tuple[float, float]:
    """Text-to-image and image-to-text R@1 among `rows`, whose captions name every object with its place."""
    images = [row["images"][0] for row in rows]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    length = processor.tokenizer.model_max_length
    texts = [row["references"][4] for row in rows]
    ids = processor(text=texts, padding="max_length", max_length=length, return_tensors="pt")["input_ids"]
    seen = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    read = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    right = torch.arange(len(images))
    similarity = read @ seen.T
    return (similarity.argmax(1) == right).float().mean().item(), (similarity.argmax(0) == right).float().mean().item()


def begin(recipe: Recipe) -> tuple[SiglipModel | CLIPModel, SiglipProcessor | CLIPProcessor]:
    """
    A new dual encoder, or the one to go on with, and its processor. Raises ValueError for a model_type that is neither siglip nor
    clip.
    """
    if recipe.model:
        return AutoModel.from_pretrained(recipe.model, dtype="float32"), AutoProcessor.from_pretrained(recipe.model)
    if recipe.model_type not in ("siglip", "clip"):
        raise ValueError(f"model_type must be siglip or clip, not {recipe.model_type!r}")
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(recipe.tokenizer)
    tokenizer.chat_template, tokenizer.model_max_length = None, recipe.text_config["max_position_embeddings"]
    size = {"height": recipe.vision_config["image_size"], "width": recipe.vision_config["image_size"]}
    text = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id, **recipe.text_config}
    if recipe.model_type == "clip":
        end = tokenizer.eos_token  # where CLIP's text tower is read
        ends = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)])
        tokenizer.backend_tokenizer.post_processor = ends
        width = text["hidden_size"]
        config = CLIPConfig(text_config=text, vision_config=recipe.vision_config, projection_dim=width)
        return CLIPModel(config), CLIPProcessor(CLIPImageProcessor(size=size, do_center_crop=False), tokenizer)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=recipe.vision_config))
    with torch.no_grad():  # as the paper starts them: nearly every pair is a negative, and the bias says so
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    return model, SiglipProcessor(SiglipImageProcessor(size=size), tokenizer)


class SealedTrainer(SealedCheckpoints, Trainer):
    """transformers', with checkpoints that are whole or not there."""


def main(recipe: Recipe, args: TrainingArguments) -> None:
    # 1. Scenes with captions and boxes, drawn as they are needed.
    train = Scenes(config_name="captions", num_train=recipe.num_scenes).as_streaming_dataset("train")
    held_out = Scenes(config_name="captions", num_eval=recipe.num_eval, distinct=True).as_streaming_dataset("test")

    # 2. A model that knows nothing yet, and its processor.
    torch.manual_seed(args.seed)
    model, processor = begin(recipe)

    # 3. Pull each picture to its caption, each region to its phrase.
    trainer = SealedTrainer(
        RegionText(model, recipe.region_weight, recipe.crop_weight),
        args,
        train_dataset=train,
        data_collator=lambda rows: collate(rows, processor, recipe.crop_weight > 0),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 4. Half precision is what is kept, so half precision is what is measured.
    model.load_state_dict({name: weight.half().float() for name, weight in model.state_dict().items()})
    held_out = list(held_out)
    text_to_image, image_to_text = recall_at_1(model.eval(), processor, held_out)
    if trainer.is_world_process_zero():
        model.half().save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        figures = {"text_to_image_r1": text_to_image, "image_to_text_r1": image_to_text}
        if recipe.crop_weight:
            figures["crop_accuracy"] = crop_accuracy(model.float(), processor, held_out)
        figures = {name: {"value": round(value, 4), "n": recipe.num_eval} for name, value in figures.items()}
        write_json(
            Path(args.output_dir) / "metrics.json",
            {**figures, "protocol": {"dataset": "scenes", "split": "test, distinct"}},
        )
        if recipe.crop_weight:
            print(
                f"first objects of {recipe.num_eval} test scenes, cut out, named right: {figures['crop_accuracy']['value']:.3f}"
            )
        print(
            f"R@1 of {recipe.num_eval} distinct test scenes: text to image {text_to_image:.3f}, image to text {image_to_text:.3f}"
        )


if __name__ == "__main__":
    main(*TrlParser((Recipe, TrainingArguments)).parse_args_and_config())
