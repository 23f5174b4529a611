"""
From canonical rows to batches: conversations with pictures become prompts, labels and pixels. For any HF vision–language model.

    row {images, prompt, completion} -> "…<image>…user…assistant…"
        -> input_ids, attention_mask, pixel_values, labels (-100 on the prompt)

Unusual: prompt and completion are tokenised apart and joined as ids, so the boundary between what is read and what is learned is
exact whatever the tokenizer would have merged; nothing is ever truncated, because a cut can fall inside a picture.
"""

from typing import Any

import torch
from datasets import Dataset
from transformers.utils import logging


logger = logging.get_logger(__name__)


def with_pictures(messages: list[dict], num_images: int) -> list[dict]:
    """
    Put a picture part before the text of the first user message for each image, unless the messages already place them.
    Raises ValueError if they place another number than there are.
    """
    placed = sum(
        part["type"] == "image" for m in messages if not isinstance(m["content"], str) for part in m["content"]
    )
    if placed == num_images:
        missing = 0
    elif placed == 0:
        missing = num_images
    else:
        raise ValueError(f"the prompt places {placed} pictures and the row has {num_images}")
    out = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        if message["role"] == "user" and missing:
            parts = [{"type": "image"}] * missing + parts
            missing = 0
        out.append({"role": message["role"], "content": parts})
    return out


def prompt_text(processor: Any, row: dict) -> str:
    """The prompt of a row up to where the assistant speaks, with one placeholder a picture."""
    messages = with_pictures(row["prompt"], len(row["images"]))
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def completion_text(processor: Any, row: dict) -> str:
    """What the assistant says, to its end-of-turn token. Raises ValueError if the template does not extend the prompt."""
    prompt = prompt_text(processor, row)
    messages = with_pictures(row["prompt"], len(row["images"])) + with_pictures(row["completion"], 0)
    whole = processor.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(f"the chat template rewrites the prompt once it is answered:\n{prompt!r}\n{whole!r}")
    # templates close a turn with a newline that the model need not say: its turn ends where generation stops
    return whole[len(prompt) :].rstrip("\n")


class CaptioningCollator:
    """Rows -> a training batch, padded on the right; labels are the completion's tokens."""

    def __init__(self, processor: Any):
        self.processor = processor
        self._end = None  # (prompt, text after the completion): templates are slow, and most rows share a prompt

    def _texts(self, row: dict) -> tuple[str, str]:
        key = (str(row["prompt"]), len(row["images"]))
        content = row["completion"][0]["content"]
        if len(row["completion"]) > 1 or not isinstance(content, str):
            return prompt_text(self.processor, row), completion_text(self.processor, row)
        if self._end is None or self._end[0] != key:
            said = completion_text(self.processor, row | {"completion": [{"role": "assistant", "content": "\0"}]})
            before, _, after = said.partition("\0")
            self._end = key, prompt_text(self.processor, row), before, after
        _, prompt, before, after = self._end
        return prompt, before + content.strip() + after

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [self._texts(row) for row in rows]
        images = [row["images"] for row in rows] if any(row["images"] for row in rows) else None
        prompts = self.processor(images=images, text=[prompt for prompt, _ in texts], add_special_tokens=False)
        tokenizer = self.processor.tokenizer
        said = tokenizer([completion for _, completion in texts], add_special_tokens=False)["input_ids"]
        read = [list(map(int, ids)) for ids in prompts.pop("input_ids")]
        prompts.pop("attention_mask", None)
        width = max(len(p) + len(c) for p, c in zip(read, said, strict=True))
        pad = tokenizer.pad_token_id
        batch = {key: torch.as_tensor(_stacked(value)) for key, value in prompts.items()}
        batch["input_ids"] = torch.tensor(
            [p + c + [pad] * (width - len(p) - len(c)) for p, c in zip(read, said, strict=True)]
        )
        lengths = torch.tensor([len(p) + len(c) for p, c in zip(read, said, strict=True)])[:, None]
        starts = torch.tensor([len(p) for p in read])[:, None]
        at = torch.arange(width)[None]
        batch["attention_mask"] = (at < lengths).long()
        batch["labels"] = batch["input_ids"].masked_fill((at < starts) | (at >= lengths), -100)
        return batch


def _stacked(values: Any) -> Any:
    return (
        torch.stack(list(values))
        if isinstance(values, (list, tuple)) and isinstance(values[0], torch.Tensor)
        else values
    )


def drop_overlong(rows: Dataset, processor: Any, max_length: int) -> Dataset:
    """Rows whose prompt, pictures and completion fit `max_length` tokens; says how many did not. Nothing is ever cut."""

    def fits(row: dict) -> bool:
        images = [row["images"]] if row["images"] else None
        prompt = processor(images=images, text=[prompt_text(processor, row)], add_special_tokens=False)["input_ids"][0]
        said = processor.tokenizer(completion_text(processor, row), add_special_tokens=False)["input_ids"]
        return len(prompt) + len(said) <= max_length

    kept = rows.filter(fits, desc=f"leaving out rows over {max_length} tokens")
    if len(kept) < len(rows):
        logger.warning(f"{len(rows) - len(kept)} of {len(rows)} rows are over {max_length} tokens and are left out")
    return kept
