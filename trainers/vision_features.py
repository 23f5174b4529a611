"""
Vision features: what a frozen vision tower makes of each picture, computed once and kept as Arrow.

    rows {images} -> the pictures they show, each once -> tower, in shards -> FOLDER/<key>/shard-00007-of-00036.arrow
    rows' `images` become indices into them; CaptioningCollator(features=...) hands the model `vision_features`

Unusual: the key is of the tower's weights and settings, the layer, the preprocessing, and the pictures (size and time of a file, or
a hash of bytes); see feature_shards.py. Pictures that cannot be read are kept as what is wrong with them; the collator skips and
counts their rows.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from datasets_scripts.open_picture import UnreadablePicture, open_picture
from modeling.towers import fingerprint
from trainers.captioning_data import BLANK
from trainers.feature_shards import CachedFeatures, each_once, feature_shards


class VisionFeatures(CachedFeatures):
    """Features of pictures by index: (rows, columns, d_v) in the tower's dtype. Raises UnreadablePicture where there are none."""

    def __init__(self, table: Dataset, grid: tuple[int, int], dtype: torch.dtype, blank: Tensor):
        super().__init__(table, (*grid, -1), dtype, UnreadablePicture)
        self.grid, self.blank = grid, blank


def index_pictures(rows: Dataset) -> tuple[list[dict], list[str], list[list[int]]]:
    """The pictures that rows show, each once, undecoded; what identifies each; and for each row the indices of its own."""
    images = list(rows.select_columns("images")["images"])
    pictures, names, flat = each_once(picture for some in images for picture in some)
    places = iter(flat)
    return pictures, names, [list(islice(places, len(some))) for some in images]


class _Pictures(torch.utils.data.Dataset):
    def __init__(self, pictures: list[dict], image_processor: Any):
        self.pictures = pictures
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, str | None]:
        try:
            picture, problem = open_picture(self.pictures[index]), None
        except UnreadablePicture as unreadable:
            picture, problem = BLANK, str(unreadable)
        return self.image_processor(picture, return_tensors="pt")["pixel_values"][0], problem


def _collate(items: list) -> tuple[Tensor, list[str | None]]:
    return torch.stack([pixels for pixels, _ in items]), [problem for _, problem in items]


@torch.no_grad()
def cache_vision_features(
    model: Any,
    processor: Any,
    rows: Dataset,
    folder: str | Path | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    process: tuple[int, int] = (0, 1),
    wait: Any = lambda: None,
) -> tuple[VisionFeatures, Dataset]:
    """
    The features of every picture in `rows` (undecoded, as load_rows gives them), and rows whose `images` are indices into them.

    folder: default, beside the datasets' cache. process: (index, count) of this process among those that share the work; `wait`
    returns when all have come there. Raises ValueError for pictures that keep their shapes, OSError where the disk is too small.
    """
    core = getattr(model.model, "encoder", model.model)
    tower, device = core.vision_tower, model.device
    pixels = processor.image_processor(BLANK, return_tensors="pt")
    if "spatial_shapes" in pixels:
        raise ValueError("pictures that keep their shapes cannot be cached; set cache_vision_features: false")
    tower.to(device).eval()
    grid = core.patch_grid(pixels["pixel_values"])
    blank = core.encode_patches(pixels["pixel_values"].to(device)).cpu()[0].view(*grid, -1)

    pictures, names, indices = index_pictures(rows)
    made_of = {
        "weights": fingerprint(tower),
        "tower": model.config.vision_config.to_dict(),
        "layer": getattr(model.config, "vision_feature_layer", -1),
        "grid": grid,
        "dtype": str(tower.dtype),
        "preprocessing": processor.image_processor.to_dict(),
        "pictures": sha256(json.dumps(names).encode()).hexdigest(),
    }
    source = getattr(core, "tower_sources", {}).get("vision_tower")
    named = {"id": source.id, "commit": source.commit} if source else None

    def compute(here: range) -> Iterator[tuple[Tensor, str | None]]:
        some = _Pictures(pictures[here.start : here.stop], processor.image_processor)
        for pixels, problems in DataLoader(some, batch_size, num_workers=num_workers, collate_fn=_collate):
            yield from zip(core.encode_patches(pixels.to(device)).cpu(), problems, strict=True)

    table = feature_shards(
        folder, "vision_features", made_of, len(pictures), blank.nbytes, compute, process, wait, {"tower_source": named}
    )
    features = VisionFeatures(table, grid, tower.dtype, blank)
    return features, rows.remove_columns("images").add_column("images", indices)
