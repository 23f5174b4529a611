"""
Tower features: what an aligner's frozen towers make of pictures, texts and sounds, computed once and kept as Arrow.

    rows {image, text, audio} -> each different picture, text and sound once -> tower, in shards (feature_shards.py)
    rows' columns become indices into them; ContrastiveCollator(features=...) hands the model `vision_features` and so on

Unusual: a feature is as long as what it is of: a text's padding is not kept. What cannot be read is kept as what is wrong with it.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from datasets_scripts.open_picture import UnreadablePicture
from modeling.towers import fingerprint
from trainers.contrastive_data import PARTS, ContrastiveCollator, UnreadableSound
from trainers.feature_shards import CachedFeatures, each_once, feature_shards


@torch.no_grad()
def cache_tower_features(
    model: Any,
    processor: Any,
    rows: Dataset,
    modalities: list[str],
    folder: str | Path | None = None,
    batch_size: int = 64,
    process: tuple[int, int] = (0, 1),
    wait: Any = lambda: None,
) -> tuple[dict[str, CachedFeatures], Dataset]:
    """
    The features (tokens, d) of what `rows` hold of these modalities ("image", "text", "audio"), and rows whose columns are indices
    into them. A feature of what could not be read raises UnreadablePicture or UnreadableSound when it is asked for.

    folder: default, beside the datasets' cache. process: (index, count) of this process among those that share the work; `wait`
    returns when all have come there. Raises ValueError for a modality whose tower learns, OSError where the disk is too small.
    """
    read, features = ContrastiveCollator(processor), {}
    for modality in modalities:
        part = PARTS[modality]
        tower = model.towers()[part]
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise ValueError(
                f"the {part} tower learns, so what it makes of {modality} changes; freeze it, or do not cache it"
            )
        tower.eval()
        once, names, indices = each_once(rows[modality])
        if not once:
            continue

        def encoded(values: list, modality: str = modality, part: str = part) -> tuple[list[Tensor], Tensor]:
            inputs = {name: value.to(model.device) for name, value in read.encode(modality, values).items()}
            mask = inputs.pop("attention_mask", None)
            tokens, there = model.encode(part, next(iter(inputs.values())), mask)
            there = torch.ones(tokens.shape[:2], dtype=torch.bool) if there is None else there.cpu()
            return [some[which] for some, which in zip(tokens.cpu(), there, strict=True)]

        def compute(
            here: range, once: list = once, modality: str = modality, encoded: Any = encoded
        ) -> Iterator[tuple[Tensor | None, str | None]]:
            for start in range(here.start, here.stop, batch_size):
                opened: list[tuple[Any, str | None]] = []
                for value in once[start : min(start + batch_size, here.stop)]:
                    try:
                        opened.append((read.open(modality, value), None))
                    except (UnreadablePicture, UnreadableSound) as unreadable:
                        opened.append((None, str(unreadable)))
                readable = [value for value, problem in opened if problem is None]
                seen = iter(encoded(readable) if readable else [])
                for _, problem in opened:
                    yield (next(seen), None) if problem is None else (None, problem)

        one_by_one = (pair for i in range(len(once)) for pair in compute(range(i, i + 1)))
        sample = next(feature for feature, problem in one_by_one if problem is None)
        how = {"image": processor.image_processor, "text": processor.tokenizer, "audio": processor.feature_extractor}[
            modality
        ]
        made_of = {
            "weights": fingerprint(tower),
            "tower": tower.config.to_dict(),
            "features": getattr(model.config, f"{part}_features"),
            "dtype": str(tower.dtype),
            "preprocessing": how.to_dict()
            if hasattr(how, "to_dict")
            else [how.backend_tokenizer.to_str(), processor.pad_to_max],
            "items": sha256(json.dumps(names).encode()).hexdigest(),
        }
        table = feature_shards(
            folder, f"{part}_features", made_of, len(once), sample.nbytes, compute, process, wait,
        )  # fmt: skip
        problem = UnreadableSound if modality == "audio" else UnreadablePicture
        features[modality] = CachedFeatures(table, (-1, sample.shape[-1]), sample.dtype, problem)
        rows = rows.remove_columns(modality).add_column(modality, indices)
    return features, rows
