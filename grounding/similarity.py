"""
How well texts fit pictures, by any model with get_image_features and get_text_features (CLIP, SigLIP, this project's
aligner): the cosine of the two embeddings, -1 to 1.

Unusual: equal texts are read once; pictures are looked at in batches that mix the crops of many scenes. Source: CLIP
(https://huggingface.co/papers/2103.00020), used so as a filter of captions by ALIGN and LAION (cosine over 0.26 … 0.30 there).
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel


def _embedded(outputs: Any) -> Tensor:
    """(n, d), of length 1, from what get_*_features gives: a tensor, or an output whose pooler_output it is."""
    return F.normalize((outputs if isinstance(outputs, Tensor) else outputs.pooler_output).float(), dim=-1)


@torch.inference_mode()
def similarity(
    model: PreTrainedModel,
    processor: Any,
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    batch_size: int = 64,
) -> list[float]:
    """The cosine of each picture and its text. Texts longer than the model reads are cut. Raises ValueError for unequal numbers."""
    if len(pictures) != len(texts):
        raise ValueError(f"{len(pictures)} pictures and {len(texts)} texts; each picture needs its own")
    once = list(dict.fromkeys(texts))
    length = processor.tokenizer.model_max_length
    # SigLIP has only ever seen texts that are padded to their full length
    how = {"padding": "max_length" if length < 1000 else True, "truncation": True, "return_tensors": "pt"}
    read, seen = [], []
    for start in range(0, len(once), batch_size):
        ids = processor.tokenizer(once[start : start + batch_size], **how).to(model.device)
        read.append(_embedded(model.get_text_features(**ids)))
    for start in range(0, len(pictures), batch_size):
        pixels = processor.image_processor(list(pictures[start : start + batch_size]), return_tensors="pt")
        pixels = pixels["pixel_values"].to(model.device, model.dtype)
        seen.append(_embedded(model.get_image_features(pixel_values=pixels)))
    if not once:
        return []
    place = {text: i for i, text in enumerate(once)}
    own = torch.cat(read)[torch.tensor([place[text] for text in texts], device=model.device)]
    return (torch.cat(seen) * own).sum(-1).tolist()
