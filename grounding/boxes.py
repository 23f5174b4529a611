"""
Boxes (x0, y0, x1, y1) in pixels: how far they overlap, which of them are worth keeping, and what they show.

Unusual: every box that is left out has a reason, in words; nothing disappears on the way.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torchvision.ops import nms


Box = tuple[float, float, float, float]


def iou(first: Box, second: Box) -> float:
    """Intersection over union, 0 to 1. Boxes without an area overlap nothing."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / (areas - width * height)


def clipped(box: Box, width: int, height: int) -> Box:
    """The part of a box that lies in the picture; where none does, it has no area."""
    x0, y0, x1, y1 = box
    x0, x1 = (min(max(value, 0.0), float(width)) for value in (x0, x1))
    y0, y1 = (min(max(value, 0.0), float(height)) for value in (y0, y1))
    return x0, y0, x1, y1


def unfit(box: Box, width: int, height: int, smallest: float, largest: float) -> str:
    """
    Why a clipped box is no region of its picture; empty for one that is. smallest, largest: shares of the picture's area.
    """
    share = max(box[2] - box[0], 0) * max(box[3] - box[1], 0) / (width * height)
    if share <= 0:
        return "outside the picture"
    if share < smallest:
        return "too small"
    return "nearly the whole picture" if share > largest else ""


def suppressed(boxes: Sequence[Box], scores: Sequence[float], threshold: float) -> set[int]:
    """Numbers of the boxes that overlap a better one by more than `threshold` (IoU): non-maximum suppression."""
    if not boxes:
        return set()
    kept = nms(torch.tensor(boxes, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64), threshold)
    return set(range(len(boxes))) - set(kept.tolist())


def crop(picture: Image.Image, box: Box, margin: float) -> Image.Image:
    """What a box shows, with `margin` times its longer side around it, as far as the picture goes; at least one pixel."""
    more = margin * max(box[2] - box[0], box[3] - box[1])
    x0, y0, x1, y1 = clipped((box[0] - more, box[1] - more, box[2] + more, box[3] + more), *picture.size)
    left, upper = min(int(x0), picture.width - 1), min(int(y0), picture.height - 1)
    return picture.crop((left, upper, max(left + 1, round(x1)), max(upper + 1, round(y1))))
