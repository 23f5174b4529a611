"""
Preference rows -> a batch of PreferenceTrainer.

    row {images, prompt, chosen, rejected} -> input_ids, labels (2 b, t): all chosen sides, then all rejected ones; pictures once
    the chosen sides alone             -> text_input_ids; image_key, text_key: equal where rows hold the same
"""

from typing import Any

import torch
from torch import Tensor

from trainers.captioning_data import _words
from trainers.contrastive_data import key_of
from trainers.reward_data import SIDES, PreferenceCollator


class PairCollator(PreferenceCollator):
    """
    As PreferenceCollator, and what a model learns from that writes the sides itself. contrasts: also what the contrastive loss
    needs. features: cached vision features; then `images` holds their indices.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        strict: bool = False,
        contrasts: bool = True,
        features: Any = None,
    ):
        super().__init__(processor, max_length, strict, features)
        self.contrasts = contrasts

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        batch = super().__call__(rows)
        used = batch.pop("labels") != -100
        batch["labels"] = batch.pop("side_labels").masked_fill(~used.repeat(len(SIDES))[:, None], -100)
        del batch["margin"]
        batch |= {"used": used, "image_repeats": batch.pop("answers")}
        if self.contrasts:
            if bare := [name for row, name in zip(rows, batch["row"], strict=True) if not row["images"]]:
                raise ValueError(
                    f"the contrastive loss needs pictures, and {', '.join(bare[:3])} has none; set alpha_start and alpha_end to 0, "
                    "or trainer: dpo"
                )
            said = ["\n".join(map(_words, row["chosen"])).strip() for row in rows]
            batch |= {f"text_{name}": value for name, value in self.processor.encode_text(said).items()}
            pictures = [key_of("image", row["images"][0]) if keep else -1 for row, keep in zip(rows, used, strict=True)]
            batch |= {
                "image_key": torch.tensor(pictures),
                "text_key": torch.tensor([key_of("text", one) for one in said]),
            }
        return batch

    def inputs(self, rows: list[dict], seen: list[list], answers: list[list[list[dict]]]) -> dict[str, Any]:
        batch, starts = self.written(rows, seen, answers)
        places = torch.arange(batch["input_ids"].shape[1])
        learned = batch["attention_mask"].bool() & (places >= torch.tensor(starts)[:, None])
        return batch | {"side_labels": batch["input_ids"].masked_fill(~learned, -100)}


def words_of(labels: Tensor) -> Tensor:
    """How many tokens (b, t) a model is asked for in each row: (b,)."""
    return (labels[:, 1:] != -100).sum(1)
