"""
Rows with pictures, texts and sounds, or some of them -> a contrastive batch.

    row {image, text, audio} -> pixel_values, input_ids, audio_values of those that have them
                             -> `image_there` … (rows,) bool, and `image_key` … (rows,) int, equal where rows hold the same

Unusual: what a row has and cannot be read counts as what it has not, and is counted in `skipped`. Of a modality whose features were
computed before (tower_features.py), a row holds an index.
"""

from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets_scripts.canonical import PROMPT, turns
from datasets_scripts.open_picture import UnreadablePicture, open_picture
from processing.processing_aligner import hear
from trainers.captioning_data import CaptioningCollator


COLUMNS = {"image": "images", "text": "text", "audio": "audio"}  # modality -> the processor's argument
PARTS = {"image": "vision", "text": "text", "audio": "audio"}  # modality -> the model's tower


class UnreadableSound(ValueError):
    """Says which sound cannot be read, and why."""


def open_sound(source: Mapping) -> tuple[np.ndarray, int]:
    """
    A waveform (samples,) or (samples, channels) float32 and its rate, of what `datasets.Audio(decode=False)` gives or of {"array",
    "sampling_rate"}. Raises UnreadableSound, naming the file, for one that is missing, empty, cut off or no sound.
    """
    if source.get("array") is not None:
        return np.asarray(source["array"]), source["sampling_rate"]
    import soundfile

    name = source.get("path") or "a sound"
    try:
        content = source["path"] if source.get("bytes") is None else BytesIO(source["bytes"])
        with soundfile.SoundFile(content) as file:
            wave, rate, told = file.read(dtype="float32"), file.samplerate, file.frames
    except (OSError, RuntimeError, TypeError) as error:
        raise UnreadableSound(f"{name}: {error}") from error
    if not len(wave):
        raise UnreadableSound(f"{name}: holds no samples")
    if len(wave) < told:
        raise UnreadableSound(f"{name}: is cut off after {len(wave)} of {told} samples")
    return wave, rate


def key_of(modality: str, value: Any) -> int:
    """Equal for the same picture, text or sound: 63 bits of a hash of its bytes, path or words, or the index of its features."""
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        array = value.get("array")
        told = value.get("bytes") or (
            np.asarray(array).tobytes() if array is not None else str(value.get("path")).encode()
        )
    else:
        told = value.strip().encode() if isinstance(value, str) else value.tobytes()
    return int.from_bytes(sha256(modality.encode() + b"\0" + told).digest()[:8], "big") >> 1


class ContrastiveCollator:
    """
    strict: raise ValueError where a picture, text or sound would be skipped. features: modality -> features (tower_features.py)
    that rows index.
    """

    def __init__(self, processor: Any, features: Mapping[str, Any] | None = None, strict: bool = False):
        self.processor = processor
        self.features = features or {}
        self.strict = strict

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        batch, skipped = {}, 0
        for modality in COLUMNS:
            if modality not in rows[0]:
                continue
            values, places = [], []
            for place, row in enumerate(rows):
                if row[modality] is None:
                    continue
                try:
                    values.append(self.open(modality, row[modality]))
                    places.append(place)
                except (UnreadablePicture, UnreadableSound):
                    if self.strict:
                        raise
                    skipped += 1
            there = torch.zeros(len(rows), dtype=torch.bool)
            there[places] = True
            batch[f"{modality}_there"] = there
            keys = [key_of(modality, rows[place][modality]) for place in places]
            batch[f"{modality}_key"] = torch.full((len(rows),), -1).index_copy(
                0, there.nonzero()[:, 0], torch.tensor(keys)
            )
            if values:
                batch |= self.encode(modality, values)
        if skipped:
            batch["skipped"] = skipped
        return batch

    def open(self, modality: str, value: Any) -> Any:
        """A picture, a text or (waveform, rate). Raises UnreadablePicture and UnreadableSound."""
        if modality in self.features:
            return self.features[modality][value]
        if modality == "image":
            return open_picture(value)
        if modality == "audio":
            return open_sound(value)
        return value

    def encode(self, modality: str, values: list) -> dict[str, Tensor]:
        """What `open` gave, as the model takes it."""
        if modality in self.features:
            part = PARTS[modality]
            most = max(len(value) for value in values)
            stacked = torch.stack([torch.nn.functional.pad(value, (0, 0, 0, most - len(value))) for value in values])
            batch = {f"{part}_features": stacked}
            if part == "text":
                lengths = torch.tensor([len(value) for value in values])[:, None]
                batch["attention_mask"] = torch.arange(most) < lengths
            return batch
        if modality == "audio":
            waves = [hear(*value, self.processor.sampling_rate) for value in values]
            return dict(self.processor(audio=waves, return_tensors="pt"))
        if modality == "text":
            return dict(self.processor.encode_text(values))
        return dict(self.processor(images=values, return_tensors="pt"))


class CaptionedCollator:
    """
    Rows {image, text} -> pictures, their captions to be written and the same to be read alone (`text_input_ids`), and as
    ContrastiveCollator, `image_there` …, `image_key` …. For a model that captions and embeds.

    captions: leave those to be written out. features: cached vision features (vision_features.py), which `image` indexes.
    """

    def __init__(self, processor: Any, captions: bool = True, prompt: str = PROMPT, features: Any = None):
        self.processor = processor
        self.captions = captions
        self.prompt = prompt
        self.write = CaptioningCollator(processor, features=features)

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        told = [
            {"images": [row["image"]], "image_id": place, **turns(self.prompt, row["text"] or "")}
            for place, row in enumerate(rows)
        ]
        batch = self.write(told)
        unread = {skipped["image_id"] for skipped in batch.pop("skipped", [])}
        if not self.captions:
            batch = {name: batch[name] for name in ("pixel_values", "vision_features") if name in batch}
        texts = ["" if place in unread else row["text"].strip() for place, row in enumerate(rows)]
        batch |= {f"text_{name}": value for name, value in self.processor.encode_text(texts).items()}
        there = torch.tensor([place not in unread for place in range(len(rows))])
        for name in ("image", "text"):
            keys = [-1 if place in unread else key_of(name, row[name]) for place, row in enumerate(rows)]
            batch |= {f"{name}_there": there, f"{name}_key": torch.tensor(keys)}
        if unread:
            batch["skipped"] = len(unread)
        return batch
