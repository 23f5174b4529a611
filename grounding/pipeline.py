"""
From pictures with captions to examples with boxes, a shard at a time.

    rows {images, references, image_id}
      -> read_pictures      upright RGB, or why not
      -> noun phrases       of all captions of a picture, each once        (noun_phrases.py)
      -> detect             boxes of all phrases of a picture at once      (detection.py)
      -> fit_boxes          clipped; too small, too large, doubled: named  (boxes.py)
      -> caption_regions    the phrase, or what a captioner says of the crop
      -> believe            cosine of crop and words over a threshold      (similarity.py)
      -> records            one a caption, one a region, kept or not, with where it comes from

Unusual: what is rejected stays, with its scores and the reason, so that thresholds can be looked at afterwards. A record depends on
its shard alone: batches never cross from one into another, so any number of processes, stopped at any moment, write the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers import PreTrainedModel

from datasets_scripts.canonical import turns
from datasets_scripts.open_picture import UnreadablePicture, open_picture
from grounding.boxes import Box, clipped, crop, suppressed, unfit
from grounding.detection import Detection, detect
from grounding.noun_phrases import Phrase, noun_phrases
from grounding.similarity import similarity


@dataclass
class Thresholds:
    """What a region must have to be kept. Areas are shares of the picture's."""

    box_threshold: float = 0.30  # the detector's score of a box
    text_threshold: float = 0.25  # … and, on average, of its phrase's words
    clip_threshold: float = 0.26  # cosine of the crop and what is said of it
    clip_percentile: float | None = (
        None  # instead: of each caption's regions, those over this percentile of cosines, 0 to 100
    )
    nms_threshold: float = 0.5  # a box that overlaps a better one by more (IoU) is the same thing
    smallest_area: float = 0.002
    largest_area: float = 0.9
    margin: float = 0.1  # around a crop, of the box's longer side

    def __post_init__(self):
        for name in ("box_threshold", "text_threshold", "nms_threshold", "smallest_area", "largest_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, is {getattr(self, name)}")
        if not -1 <= self.clip_threshold <= 1:
            raise ValueError(f"clip_threshold is a cosine, -1 to 1; is {self.clip_threshold}")
        if self.clip_percentile is not None and not 0 <= self.clip_percentile <= 100:
            raise ValueError(f"clip_percentile must be between 0 and 100, is {self.clip_percentile}")
        if self.smallest_area >= self.largest_area or self.margin < 0:
            raise ValueError(
                f"no box has more than {self.smallest_area} and less than {self.largest_area} of a picture"
                if self.margin >= 0
                else f"margin must not be negative, is {self.margin}"
            )


class Judge(NamedTuple):
    """A model with its processor, and what exactly it is: id@commit."""

    model: PreTrainedModel
    processor: Any
    name: str


@dataclass
class Stages:
    """The models of a run. captioner: (pictures) -> texts, with its name; None: what is said of a region is its phrase."""

    chunk: Callable[[str], list[str]]
    chunker: str
    detector: Judge
    believer: Judge
    captioner: Callable[[Sequence[Image.Image]], list[str]] | None = None
    captioner_name: str | None = None
    template: str = "{}"  # what the believer reads of a region's words
    detector_batch_size: int = 8
    believer_batch_size: int = 64


@dataclass
class Region:
    """A box in picture `picture` of a shard, and what came of it; `reason` is empty for one that is kept."""

    picture: int
    phrase: Phrase
    box: Box
    score: float
    reason: str = ""
    text: str = ""
    cosine: float | None = None


def read_pictures(rows: Sequence[Mapping]) -> tuple[list[Image.Image | None], list[str]]:
    """Each row's first picture, or None with what is wrong with it."""
    pictures: list[Image.Image | None] = []
    problems = []
    for row in rows:
        try:
            pictures.append(open_picture(row["images"][0] if row["images"] else None))
            problems.append("")
        except (UnreadablePicture, TypeError) as problem:
            pictures.append(None)
            problems.append(str(problem))
    return pictures, problems


def fit_boxes(
    number: int, found: Sequence[Detection], phrases: Sequence[Phrase], size: tuple[int, int], how: Thresholds
) -> list[Region]:
    """One picture's detections, clipped; those that are no region of it, or doubled, with the reason. size: width, height."""
    named = {phrase.text: phrase for phrase in phrases}
    regions = []
    for one in found:
        box = clipped(one.box, *size)
        reason = unfit(box, *size, how.smallest_area, how.largest_area)
        regions.append(Region(number, named[one.phrase], box, one.score, reason))
    fit = [region for region in regions if not region.reason]
    for i in suppressed([region.box for region in fit], [region.score for region in fit], how.nms_threshold):
        fit[i].reason = "doubles a better box"
    return regions


def believe(regions: Sequence[Region], captions: Sequence[tuple[int, int]], how: Thresholds) -> None:
    """Rejects regions whose cosine is too low. captions: of each region (picture, caption), within which a percentile is taken."""
    groups: dict[tuple[int, int], list[Region]] = {}
    for region, caption in zip(regions, captions, strict=True):
        groups.setdefault(caption, []).append(region)
    for some in groups.values():
        least = how.clip_threshold
        if how.clip_percentile is not None:
            least = float(np.percentile([region.cosine for region in some], how.clip_percentile))
        for region in some:
            if region.cosine < least:
                region.reason = "picture and words do not agree"


def augment(rows: Sequence[Mapping], paths: Sequence[str], stages: Stages, how: Thresholds) -> list[dict]:
    """
    The records of some rows, in their order: for each row those of its captions, then those of its regions, best first; a picture
    that cannot be read has one, which says why. paths: what records name the pictures by.
    """
    pictures, problems = read_pictures(rows)
    seen = [number for number, picture in enumerate(pictures) if picture is not None]
    phrases = [noun_phrases(rows[number]["references"], stages.chunk) for number in seen]

    asked = [[phrase.text for phrase in some] for some in phrases]
    shown = [pictures[number] for number in seen]
    found = detect(
        stages.detector.model, stages.detector.processor, shown, asked,
        how.box_threshold, how.text_threshold, stages.detector_batch_size,
    )  # fmt: skip
    each = zip(seen, found, phrases, shown, strict=True)
    by_picture = [fit_boxes(number, some, said, picture.size, how) for number, some, said, picture in each]

    fit = [region for some in by_picture for region in some if not region.reason]
    crops = [crop(pictures[region.picture], region.box, how.margin) for region in fit]
    texts = stages.captioner(crops) if stages.captioner else [region.phrase.text for region in fit]
    words = [stages.template.format(text) for text in texts]
    cosines = similarity(stages.believer.model, stages.believer.processor, crops, words, stages.believer_batch_size)
    for region, text, cosine in zip(fit, texts, cosines, strict=True):
        region.text, region.cosine = text, cosine
        region.reason = "" if text else "the captioner said nothing"
    said = [region for region in fit if not region.reason]
    believe(said, [(region.picture, region.phrase.caption) for region in said], how)

    regions = dict(zip(seen, by_picture, strict=True))
    counted = dict(zip(seen, map(len, phrases), strict=True))
    records = []
    for number, (row, path, problem) in enumerate(zip(rows, paths, problems, strict=True)):
        common = {"image_id": row["image_id"], "image": path}
        if problem:
            records.append({"kind": "unreadable", **common, "reason": problem})
            continue
        width, height = pictures[number].size
        common |= {"width": width, "height": height, "phrases": counted[number]}
        for i, caption in enumerate(row["references"]):
            told = {"caption_id": i, "caption": caption, "text": caption}
            records.append({"kind": "caption", **common, **told, "reason": ""})
        for region in regions[number]:
            records.append({"kind": "region", **common, **_record(region, row, stages)})
    return records


def _record(region: Region, row: Mapping, stages: Stages) -> dict:
    return {
        "caption_id": region.phrase.caption,
        "caption": row["references"][region.phrase.caption],
        "text": region.text,
        "phrase": region.phrase.text,
        # what is further behind the point changes with the batch and the machine
        "box": [round(side, 1) for side in region.box],
        "detector_score": round(region.score, 3),
        "clip_score": None if region.cosine is None else round(region.cosine, 3),
        "detector": stages.detector.name,
        "similarity_model": stages.believer.name,
        "captioner": stages.captioner_name,
        "reason": region.reason,
    }


def captioner_of(generate: Callable[..., list[str]], judge: Judge, prompt: str, **how: Any) -> Callable:
    """(crops) -> what a vision–language model says of each. generate: trainers.captioning_evaluation.generate_captions."""

    def say(crops: Sequence[Image.Image]) -> list[str]:
        asked = turns(prompt, "")["prompt"]
        rows = [{"prompt": asked, "images": [picture], "image_id": str(i)} for i, picture in enumerate(crops)]
        return generate(judge.model, judge.processor, rows, progress=False, do_sample=False, **how)

    return say
