"""
Vision features: what a frozen vision tower makes of each picture, computed once and kept as Arrow.

    rows {images} -> the pictures they show, each once -> tower, in shards -> FOLDER/<key>/shard-00007-of-00036.arrow
    rows' `images` become indices into them; CaptioningCollator(features=...) hands the model `vision_features`

Unusual: the key is of everything that decides a feature: the tower's weights and settings, the layer, the preprocessing, and the
pictures (size and time of a file, or a hash of bytes). So a cache is never stale, only absent. Every process computes its share
of the shards, each is renamed into place when it is whole, and a run that was stopped goes on with those that are missing.
Pictures that cannot be read are kept as what is wrong with them; the collator skips and counts their rows.
"""

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value, concatenate_datasets, config
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from datasets_scripts.open_picture import UnreadablePicture, open_picture
from modeling.towers import fingerprint
from trainers.captioning_data import BLANK
from trainers.run_folder import write_json, write_whole


SHARD = 256  # pictures
COLUMNS = Features({"patches": Value("large_binary"), "problem": Value("string")})


class VisionFeatures:
    """Features of pictures by index: (rows, columns, d_v) in the tower's dtype. Raises UnreadablePicture where there are none."""

    def __init__(self, shards: list[Path], grid: tuple[int, int], dtype: torch.dtype, blank: Tensor):
        self.grid = grid
        self.dtype = dtype
        self.blank = blank
        self._table = concatenate_datasets([Dataset.from_file(str(path)) for path in shards])

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Tensor:
        row = self._table[index]
        if row["problem"] is not None:
            raise UnreadablePicture(row["problem"])
        values = torch.frombuffer(bytearray(row["patches"]), dtype=self.dtype)
        return values.view(*self.grid, -1)


def index_pictures(rows: Dataset) -> tuple[list[dict], list[str], list[list[int]]]:
    """The pictures that rows show, each once, undecoded; what identifies each; and for each row the indices of its own."""
    pictures, names, indices, known = [], [], [], {}
    for images in rows.select_columns("images")["images"]:
        here = []
        for picture in images:
            name = _identity(picture)
            if name not in known:
                known[name] = len(pictures)
                pictures.append(picture)
                names.append(name)
            here.append(known[name])
        indices.append(here)
    return pictures, names, indices


def _identity(picture: dict) -> str:
    if picture.get("bytes") is not None:
        return sha256(picture["bytes"]).hexdigest()
    try:
        state = os.stat(picture["path"])
    except OSError:
        return f"{picture['path']} missing"
    return f"{picture['path']} {state.st_size} {state.st_mtime_ns}"


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
        "dtype": str(tower.dtype),
        "preprocessing": processor.image_processor.to_dict(),
        "pictures": sha256(json.dumps(names).encode()).hexdigest(),
    }
    key = sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = Path(folder or Path(config.HF_DATASETS_CACHE) / "vision_features") / key
    folder.mkdir(parents=True, exist_ok=True)
    total = -(-len(pictures) // SHARD)
    shards = [folder / f"shard-{number:05d}-of-{total:05d}.arrow" for number in range(total)]
    missing = [number for number in range(total) if not shards[number].exists()]
    needed, free = blank.nbytes * SHARD * len(missing), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"features of {len(pictures):,} pictures need {needed / 2**30:.1f} GiB more in {folder}, where {free / 2**30:.1f} are "
            "free; make room, name another vision_features_dir, or set cache_vision_features: false"
        )

    index, count = process
    wait()  # until every process has seen what is missing
    if index == 0:
        source = getattr(core, "tower_sources", {}).get("vision_tower")
        named = {"id": source.id, "commit": source.commit} if source else None
        write_json(folder / "made_of.json", made_of | {"tower_source": named, "count": len(pictures)})
    mine = missing[index::count]
    for number in tqdm(mine, desc="caching vision features", unit="shard", disable=index > 0 or not mine):
        here = _Pictures(pictures[number * SHARD : (number + 1) * SHARD], processor.image_processor)
        loader = DataLoader(here, batch_size, num_workers=num_workers, collate_fn=_collate)
        write_whole(shards[number], lambda path, loader=loader: _write_shard(path, core, loader, device))
    wait()
    features = VisionFeatures(shards, grid, tower.dtype, blank)
    return features, rows.remove_columns("images").add_column("images", indices)


def _write_shard(path: Path, core: Any, loader: DataLoader, device: torch.device) -> None:
    with ArrowWriter(path=str(path), features=COLUMNS) as writer:
        for pixels, problems in loader:
            patches = core.encode_patches(pixels.to(device)).cpu().contiguous()
            values: np.ndarray = patches.view(torch.uint8).numpy()
            for value, problem in zip(values, problems, strict=True):
                writer.write({"patches": value.tobytes() if problem is None else b"", "problem": problem})
        writer.finalize()
