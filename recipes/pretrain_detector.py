"""
Pretrain a small GroundingDINO on the miniature world, from nothing: phrases in, the boxes of what fits them out.

    accelerate launch recipes/pretrain_detector.py --config recipes/miniature/grounding_dino.yaml

    scene -> phrases, of which some fit objects and some fit nothing: "big red stars . tree . small blue boat . meadow ."
          -> boxes (queries, 4) and logits (queries, tokens): each object's query must say its box, and every word of each phrase
             that fits it

Unusual: the loss is put together here. The one that transformers 5 computes from `labels` knows one phrase an object, while "star"
and "big red star" may both fit; it counts the phrases of a batch's third text onwards from the wrong place; and its two-stage
proposals get no gradient. The matcher and the box loss are transformers' own. Sources: GroundingDINO
(https://huggingface.co/papers/2303.05499), DETR's matching (https://huggingface.co/papers/2005.12872).

Every field of `Recipe` and of transformers.TrainingArguments may stand in the YAML; the command line overrides it.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Trainer,
    TrainingArguments,
)
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.loss.loss_for_object_detection import generalized_box_iou
from transformers.loss.loss_grounding_dino import GroundingDinoHungarianMatcher, sigmoid_focal_loss
from trl import TrlParser

from datasets_scripts.scene_description import COLOURS, SHAPES, SIZES
from datasets_scripts.scene_language import NUMBERS, ON, OTHER_SIZE_WORDS, plural
from datasets_scripts.scenes import Scenes
from grounding.boxes import suppressed
from grounding.detection import detect, write_prompts
from grounding.noun_phrases import chunker, noun_phrases
from trainers.captioning_evaluation import report
from trainers.run_folder import write_json
from trainers.scoring import as_figures, load_metric
from trainers.sealed_checkpoints import SealedCheckpoints


BERTS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
GROUNDS = sorted({ON[background].split()[-1] for background in ON} - {"sky"}) + ["night sky", "picture"]


@dataclass
class Recipe:
    detector_config: dict = field(default_factory=dict)  # GroundingDinoConfig's own fields
    backbone_config: dict = field(default_factory=dict)  # of the Swin that sees
    text_config: dict = field(default_factory=dict)  # of the BERT that reads
    image_size: int = 96  # pixels a side that pictures are brought to
    num_scenes: int = 1_000_000  # drawn as they are needed
    partial: float = 0.3  # how many of the phrases leave out size or colour
    absent: int = 2  # phrases that fit nothing, at most
    num_eval: int = 500  # scenes of `test`, whose captions' phrases are looked for at the end


def words() -> list[str]:
    """Every word that may stand in a phrase of the miniature world."""
    nouns = [*SHAPES, *map(plural, SHAPES)]
    others = " ".join(GROUNDS).split()
    return [*SIZES, *OTHER_SIZE_WORDS.values(), *COLOURS, *nouns, *others, *NUMBERS]


def tokenizer_of(vocabulary: list[str]) -> BertTokenizer:
    """A word-level BERT tokenizer in which BERT's own marks have BERT's ids: GroundingDINO parts phrases by them."""
    free = (i for i in range(1, 1030) if i not in BERTS)
    ids = {word: next(free) for word in dict.fromkeys(vocabulary)} | {word: i for i, word in BERTS.items()}
    by_id = {i: word for word, i in ids.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(by_id.get(i, f"[unused{i}]") for i in range(1030)) + "\n", encoding="utf-8")
        return BertTokenizer(str(path), do_lower_case=True)


def begin(recipe: Recipe) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    """A detector that knows nothing yet, and its processor."""
    tokenizer = tokenizer_of(words())
    text = {"vocab_size": len(tokenizer), "model_type": "bert", **recipe.text_config}
    backbone = {"model_type": "swin", "image_size": recipe.image_size, **recipe.backbone_config}
    config = GroundingDinoConfig(text_config=text, backbone_config=backbone, **recipe.detector_config)
    size = {"height": recipe.image_size, "width": recipe.image_size}
    return GroundingDinoForObjectDetection(config), GroundingDinoProcessor(
        GroundingDinoImageProcessor(size=size), tokenizer
    )


def phrases_of(things: list[dict], rng: Random, partial: float, absent: int) -> dict[str, list[int]]:
    """Phrases in any order, each with the numbers of the objects that it fits: none, one or several."""
    asked: dict[str, list[int]] = {}

    def ask(size: str, colour: str, shape: str) -> None:
        keep_size, keep_colour = (rng.random() >= partial / 2 for _ in range(2))
        fit = [
            i for i, thing in enumerate(things)
            if thing["shape"] == shape and (thing["size"] == size or not keep_size)
            and (thing["colour"] == colour or not keep_colour)
        ]  # fmt: skip
        told = OTHER_SIZE_WORDS[size] if rng.random() < 0.5 else size
        noun = plural(shape) if rng.random() < 0.3 else shape
        asked[" ".join([told] * keep_size + [colour] * keep_colour + [noun])] = fit

    for thing in things:
        for _ in range(1 + (rng.random() < 0.5)):
            if rng.random() < 0.9:
                ask(thing["size"], thing["colour"], thing["shape"])
    for _ in range(rng.randrange(absent + 1)):
        if rng.random() < 0.5:  # nearly right: one word of an object that is there is another
            near = {name: rng.choice(things)[name] for name in ("size", "colour", "shape")}
            changed, options = rng.choice([("size", SIZES), ("colour", COLOURS), ("shape", SHAPES)])
            near[changed] = rng.choice(options)
            ask(**near)
        else:
            ask(rng.choice(SIZES), rng.choice(COLOURS), rng.choice(SHAPES))
    for ground in rng.sample(GROUNDS, rng.randrange(3)):
        asked[ground] = []
    if not asked:
        ask(**{name: things[0][name] for name in ("size", "colour", "shape")})
    order = list(asked)
    rng.shuffle(order)
    return {phrase: asked[phrase] for phrase in order}


class Collator:
    """Scenes -> pixels, texts, boxes (centre x, centre y, width, height; 0 to 1) and the words that fit each box."""

    def __init__(self, recipe: Recipe, processor: GroundingDinoProcessor, limit: int):
        self.recipe, self.processor, self.limit = recipe, processor, limit

    def __call__(self, rows: list[dict]) -> dict:
        side = rows[0]["images"][0].width
        texts, labels = [], []
        for row in rows:
            things = json.loads(row["scene"])["objects"]
            fits = phrases_of(things, Random(row["image_id"]), self.recipe.partial, self.recipe.absent)
            prompt, *rest = write_prompts(list(fits), self.processor.tokenizer, self.limit)
            boxes = torch.tensor([region["box"] for region in row["regions"]]) / side
            words = torch.zeros(len(things), self.limit)
            for phrase, (first, end) in zip(prompt.phrases, prompt.spans, strict=True):
                words[fits[phrase], first:end] = 1
            asked = words.any(-1)  # what no phrase names is nothing to find
            texts.append(prompt.input_ids)
            labels.append({"boxes": corners_to_center_format(boxes)[asked], "words": words[asked]})
        pixels = self.processor.image_processor([row["images"][0] for row in rows], return_tensors="pt")
        text = self.processor.tokenizer.pad({"input_ids": texts}, return_tensors="pt")
        return {**pixels, "input_ids": text["input_ids"], "attention_mask": text["attention_mask"], "labels": labels}


def grounding_loss(logits: Tensor, boxes: Tensor, mask: Tensor, labels: list[dict], matcher: nn.Module) -> Tensor:
    """
    2 x focal + 5 x L1 + 2 x GIoU of queries matched to objects, summed over the batch, a matched object.

    logits (b, queries, tokens), boxes (b, queries, 4) as centre and size, mask (b, tokens) True where there is a word; labels: for
    each picture boxes (n, 4) and words (n, tokens).
    """
    targets = [{"boxes": label["boxes"], "class_labels": torch.arange(len(label["boxes"]))} for label in labels]
    pairs = matcher(
        {"logits": logits, "pred_boxes": boxes, "label_maps": [label["words"] for label in labels]}, targets
    )
    rows = torch.cat([torch.full_like(query, row) for row, (query, _) in enumerate(pairs)])
    queries = torch.cat([query for query, _ in pairs])
    wanted = torch.zeros_like(logits)
    wanted[rows, queries] = torch.cat([label["words"][thing] for label, (_, thing) in zip(labels, pairs, strict=True)])
    count = max(len(rows), 1)
    real = mask.unsqueeze(1).expand_as(logits)
    loss = 2 * sigmoid_focal_loss(logits[real], wanted[real], count)
    truth = torch.cat([label["boxes"][thing] for label, (_, thing) in zip(labels, pairs, strict=True)])
    said = boxes[rows, queries]
    overlap = generalized_box_iou(center_to_corners_format(said), center_to_corners_format(truth)).diagonal()
    return loss + 5 * F.l1_loss(said, truth, reduction="sum") / count + 2 * (1 - overlap).sum() / count


class Grounding(nn.Module):
    """A detector and its loss: of every decoder layer, and of the encoder's proposals."""

    def __init__(self, detector: GroundingDinoForObjectDetection):
        super().__init__()
        self.detector = detector
        config = detector.config
        self.matcher = GroundingDinoHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)

    def forward(self, labels: list[dict], **inputs: Tensor) -> dict[str, Tensor]:
        layers: list[tuple[Tensor, Tensor]] = []

        def remember(*_, outputs_class: Tensor, outputs_coord: Tensor, **__) -> tuple:
            layers.extend(zip(outputs_class, outputs_coord, strict=True))
            return outputs_class.new_zeros(()), {}, None

        self.detector.loss_function = remember  # the only place that is told what each decoder layer says
        outputs = self.detector(**inputs, labels=labels)
        layers.append((outputs.enc_outputs_class, outputs.enc_outputs_coord_logits.sigmoid()))
        mask = F.pad(
            inputs["attention_mask"], (0, self.detector.config.max_text_len - inputs["attention_mask"].shape[1])
        )
        losses = [grounding_loss(*layer, mask.bool(), labels, self.matcher) for layer in layers]
        return {"loss": sum(losses), "last_layer": losses[-2].detach()}


def grounded(model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor, rows: list[dict]) -> dict:
    """Precision and recall of what the model finds of the phrases in all captions of each scene, at its usual thresholds."""
    _, chunk = chunker("rules")
    asked = [[phrase.text for phrase in noun_phrases(row["references"], chunk)] for row in rows]
    found = detect(model, processor, [row["images"][0] for row in rows], asked, batch_size=25)
    said = []
    for some in found:
        doubled = suppressed([one.box for one in some], [one.score for one in some], 0.5)
        kept = [one for i, one in enumerate(some) if i not in doubled]
        said.append({"boxes": [list(one.box) for one in kept], "phrases": [one.phrase for one in kept]})
    true = [
        {
            name: [region[name[:-1] if name == "phrases" else "box"] for region in row["regions"]]
            for name in ("boxes", "phrases")
        }
        for row in rows
    ]
    return as_figures(load_metric("phrase_grounding").compute(predictions=said, references=true), len(rows))


class SealedTrainer(SealedCheckpoints, Trainer):
    """transformers', with checkpoints that are whole or not there."""


def main(recipe: Recipe, args: TrainingArguments) -> None:
    # 1. Scenes with boxes, drawn as they are needed.
    train = Scenes(config_name="captions", num_train=recipe.num_scenes).as_streaming_dataset("train")

    # 2. A detector that knows nothing yet, and its processor.
    torch.manual_seed(args.seed)
    model, processor = begin(recipe)

    # 3. Match queries to objects; pull their boxes and their words together.
    collator = Collator(recipe, processor, model.config.max_text_len)
    trainer = SealedTrainer(Grounding(model), args, train_dataset=train, data_collator=collator)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 4. Half precision is what is kept, so half precision is what is measured.
    if trainer.is_world_process_zero():
        model.half().save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        test = Scenes(config_name="captions", num_eval=recipe.num_eval).as_streaming_dataset("test")
        figures = grounded(model.float().eval(), processor, list(test))
        write_json(
            Path(args.output_dir) / "metrics.json", {**figures, "protocol": {"dataset": "scenes", "split": "test"}}
        )
        print(report(figures))


if __name__ == "__main__":
    main(*TrlParser((Recipe, TrainingArguments)).parse_args_and_config())
