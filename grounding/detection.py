"""
Where phrases are in pictures, by any zero-shot detector of transformers.

    pictures, phrases of each -> detect -> for each picture [Detection(box, phrase, score)]

    GroundingDINO and MM-GroundingDINO read all phrases as one text and score its tokens:
        "[CLS] big red star . tree . [SEP]" -> probabilities (queries, tokens) -> (queries, phrases)
    OWL-ViT, OWLv2 and OmDet-Turbo score whole phrases.

Unusual:
- The text is put together from the tokens of each phrase, so it is known which tokens are which phrase's. The processor's own
  post-processing gives back whatever tokens lie over a threshold, as "star tree", which nobody asked for.
- A text too long for the model is asked in several parts, cut between phrases.
- Only pictures that the processor makes equally large share a batch: padding a picture would move its boxes a little.

A box is kept where its best token (or phrase) is at least `box_threshold`, and then has the phrase whose tokens are likeliest on
average, if that average is at least `text_threshold`. Source: GroundingDINO, https://huggingface.co/papers/2303.05499.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_transforms import center_to_corners_format
from transformers.utils import logging


logger = logging.get_logger(__name__)

BY_TOKENS = ("grounding-dino", "mm-grounding-dino")
MARKS = str.maketrans(".?", "  ")  # what parts phrases for BERT's GroundingDINO


class Detection(NamedTuple):
    """`box`: (x0, y0, x1, y1) in the picture's pixels, within it or not; `score`: 0 to 1."""

    box: tuple[float, float, float, float]
    phrase: str
    score: float


class Prompt(NamedTuple):
    """Some phrases as one text: its tokens, and for each phrase (first, last + 1) of its own."""

    input_ids: list[int]
    phrases: list[str]
    spans: list[tuple[int, int]]


def write_prompts(phrases: Sequence[str], tokenizer: Any, limit: int) -> list[Prompt]:
    """
    "[CLS] first phrase . second phrase . [SEP]", as many as it takes to keep each within `limit` tokens. A phrase that alone is
    longer, or has no token, cannot be asked for: it is left out, and the log says so.
    """
    stop = tokenizer.convert_tokens_to_ids(".")
    tokens = [tokenizer(phrase.lower().translate(MARKS), add_special_tokens=False)["input_ids"] for phrase in phrases]
    parts: list[Prompt] = []
    for phrase, ids in zip(phrases, tokens, strict=True):
        if not ids or len(ids) + 3 > limit:
            logger.warning(
                f"the phrase {phrase!r:.80} has {len(ids)} tokens, this detector reads 1 to {limit - 3}: left out"
            )
            continue
        if not parts or len(parts[-1].input_ids) + len(ids) + 2 > limit:
            parts.append(Prompt([tokenizer.cls_token_id], [], []))
        text = parts[-1]
        text.spans.append((len(text.input_ids), len(text.input_ids) + len(ids)))
        text.phrases.append(phrase)
        text.input_ids.extend([*ids, stop])
    for text in parts:
        text.input_ids.append(tokenizer.sep_token_id)
    return parts


def span_weights(spans: Sequence[tuple[int, int]], length: int) -> Tensor:
    """(phrases, length): one over its number of tokens where a phrase's tokens are, zero elsewhere."""
    places = torch.arange(length)
    first, end = (torch.tensor([span[i] for span in spans]).unsqueeze(1) for i in (0, 1))
    return ((places >= first) & (places < end)).float() / (end - first)


def _text_batch(texts: Sequence[Prompt], padding: int) -> dict[str, Tensor]:
    length = max(len(text.input_ids) for text in texts)
    rows = [text.input_ids + [padding] * (length - len(text.input_ids)) for text in texts]
    real = [[1] * len(text.input_ids) + [0] * (length - len(text.input_ids)) for text in texts]
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": torch.tensor(real), "token_type_ids": torch.zeros_like(ids)}


def _batches(shapes: Sequence[tuple[int, ...]], size: int) -> Iterator[list[int]]:
    """Numbers of pictures of one shape, at most `size` at a time."""
    alike = defaultdict(list)
    for number, shape in enumerate(shapes):
        alike[shape].append(number)
    for numbers in alike.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


@torch.inference_mode()
def detect(
    model: PreTrainedModel,
    processor: Any,
    pictures: Sequence[Image.Image],
    phrases: Sequence[Sequence[str]],
    box_threshold: float = 0.30,
    text_threshold: float = 0.25,
    batch_size: int = 8,
) -> list[list[Detection]]:
    """
    What is found of `phrases[i]` in `pictures[i]` (RGB), best first. A picture without phrases is not looked at.
    """
    found: list[list[Detection]] = [[] for _ in pictures]
    by_tokens = model.config.model_type in BY_TOKENS
    asked: list[tuple[int, Prompt]] = []
    for number, some in enumerate(phrases):
        if some and by_tokens:
            asked += [(number, text) for text in write_prompts(some, processor.tokenizer, model.config.max_text_len)]
        elif some:
            asked.append((number, Prompt([], list(some), [])))
    shown = {number: processor.image_processor(pictures[number], return_tensors="pt") for number, _ in asked}
    shapes = [tuple(shown[number]["pixel_values"].shape) for number, _ in asked]
    for some in _batches(shapes, batch_size):
        numbers, texts = [asked[i][0] for i in some], [asked[i][1] for i in some]
        seen = {name: torch.cat([shown[number][name] for number in numbers]) for name in shown[numbers[0]]}
        seen["pixel_values"] = seen["pixel_values"].to(model.dtype)
        sizes = [(pictures[number].height, pictures[number].width) for number in numbers]
        how = (box_threshold, text_threshold) if by_tokens else (box_threshold,)
        one = _by_tokens if by_tokens else _by_phrases
        for number, some_found in zip(numbers, one(model, processor, seen, texts, sizes, *how), strict=True):
            found[number] += some_found
    return [sorted(some, key=lambda one: -one.score) for some in found]


def _by_tokens(
    model: PreTrainedModel, processor: Any, seen: dict, texts: list[Prompt], sizes: list, box: float, text: float
) -> Iterator[list[Detection]]:
    batch = {**seen, **_text_batch(texts, processor.tokenizer.pad_token_id)}
    outputs = model(**{name: value.to(model.device) for name, value in batch.items()})
    likely = outputs.logits.float().sigmoid().cpu()  # (pictures, queries, tokens)
    corners = center_to_corners_format(outputs.pred_boxes.float()).cpu()
    for probabilities, boxes, prompt, (height, width) in zip(likely, corners, texts, sizes, strict=True):
        weights = span_weights(prompt.spans, probabilities.shape[-1])
        fit, which = (probabilities @ weights.T).max(-1)
        score = torch.where(weights.any(0), probabilities, 0).amax(-1)
        kept = (score >= box) & (fit >= text)
        scaled = boxes[kept] * torch.tensor([width, height, width, height])
        told = zip(scaled.tolist(), which[kept].tolist(), score[kept].tolist(), strict=True)
        yield [Detection(tuple(corner), prompt.phrases[i], value) for corner, i, value in told]


def _by_phrases(
    model: PreTrainedModel, processor: Any, seen: dict, texts: list[Prompt], sizes: list, box: float
) -> Iterator[list[Detection]]:
    phrases = [prompt.phrases for prompt in texts]
    words = processor(text=phrases, return_tensors="pt")
    outputs = model(**{name: value.to(model.device) for name, value in {**seen, **words}.items()})
    read = processor.post_process_grounded_object_detection
    told = {"text_labels": phrases} if "nms_threshold" in signature(read).parameters else {}
    for result, asked in zip(read(outputs, threshold=box, target_sizes=sizes, **told), phrases, strict=True):
        labels = result["text_labels"] if told else result["labels"].tolist()
        # where pictures have different numbers of phrases, the fewer are filled up with empty ones, which have no name
        named = [label if told else dict(enumerate(asked)).get(label) for label in labels]
        rows = zip(result["boxes"].tolist(), named, result["scores"].tolist(), strict=True)
        yield [Detection(tuple(corner), phrase, score) for corner, phrase, score in rows if phrase in asked]
