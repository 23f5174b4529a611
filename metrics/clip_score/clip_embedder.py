"""
Pictures and texts as a CLIP-like model embeds them: whatever has get_image_features and get_text_features.

    picture -> the model's own processor -> get_image_features -> (n, d) at unit length
    text    -> cut at the tower's length, counted -> get_text_features -> (n, d) at unit length

Unusual: SigLIP's text towers learned to read padding, so theirs are padded to the full length and not masked; others are masked. A
processor with `encode_text`, as this project's, knows best how a text is to be read without a picture.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor, BatchFeature


def opened(picture: Image.Image | bytes | str | Path) -> Image.Image:
    """RGB. Raises OSError for what is missing or no picture."""
    if not isinstance(picture, Image.Image):
        with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture) as file:
            return file.convert("RGB")
    return picture.convert("RGB")


class ClipEmbedder:
    """
    name: a folder or Hub id; revision: of a Hub id. In float32, on the GPU if there is one.

    Raises ValueError for a model that does not embed both pictures and texts.
    """

    def __init__(self, name: str, revision: str | None = None, trust_remote_code: bool = False):
        told = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(name, dtype=torch.float32, **told).eval().to(self.device)
        lacking = [do for do in ("get_image_features", "get_text_features") if not hasattr(self.model, do)]
        if lacking:
            raise ValueError(f"{name} is a {type(self.model).__name__} without {lacking[0]}; name a CLIP-like model")
        self.processor = AutoProcessor.from_pretrained(name, **told)
        self.reads_padding = "siglip" in self.model.config.model_type
        tower = getattr(self.model.config, "text_config", None)
        limits = (self.processor.tokenizer.model_max_length, getattr(tower, "max_position_embeddings", None))
        self.length = min(limit for limit in limits if limit is not None)  # tokens
        if hasattr(self.processor, "max_text_length"):  # Contrastive GPT-2's, which adds the one that ends a text
            self.length = self.processor.max_text_length - 1

    def pictures(self, pictures: Sequence, batch_size: int) -> Tensor:
        """(n, d), at unit length; pictures are taken and opened a batch at a time."""

        def embed(some: range) -> Any:
            inputs = self.processor.image_processor([opened(pictures[i]) for i in some], return_tensors="pt")
            return self.model.get_image_features(**inputs.to(self.device))

        return self._embedded(embed, len(pictures), batch_size, "pictures")

    def texts(self, texts: list[str], batch_size: int) -> tuple[Tensor, int]:
        """(n, d), at unit length, and of how many texts the end was cut off."""

        def embed(some: range) -> Any:
            inputs = self._read([texts[i] for i in some])
            return self.model.get_text_features(**inputs.to(self.device))

        whole = self.processor.tokenizer(texts, verbose=False)["input_ids"]
        cut = sum(len(ids) > self.length for ids in whole)
        return self._embedded(embed, len(texts), batch_size, "texts"), cut

    def _read(self, texts: list[str]) -> BatchFeature:
        if hasattr(self.processor, "encode_text"):
            return self.processor.encode_text(texts)
        padding = "max_length" if self.reads_padding else True
        told = {"padding": padding, "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        inputs = self.processor(text=texts, **told)
        if self.reads_padding:
            inputs.pop("attention_mask", None)
        return inputs

    @torch.no_grad()
    def _embedded(self, embed: Callable[[range], Any], count: int, batch_size: int, what: str) -> Tensor:
        parts = []
        for start in tqdm(range(0, count, batch_size), desc=f"clip_score: {what}", leave=False):
            out = embed(range(start, min(start + batch_size, count)))
            out = out if isinstance(out, Tensor) else out.pooler_output
            parts.append(torch.nn.functional.normalize(out.float(), dim=-1).cpu())
        return torch.cat(parts)
