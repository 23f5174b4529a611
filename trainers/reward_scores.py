"""
Rewards: what a reward model makes of captions, and the best of several captions by it.

    reward_scores(model, rows, captions, batch_size)             -> a number a row
    best_of(captioner, …, reward_model, …, rows, 8, …)           -> a row's captions, the greedy one first, with their rewards

Unusual: what is sampled for a row depends on the row, not on those around it: a run that goes on says what it would have said.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoProcessor

import modeling  # noqa: F401  teaches the Auto classes our models: the working tree wins over code saved with a checkpoint
import processing  # noqa: F401
from datasets_scripts.canonical import place
from trainers.captioning_evaluation import generate_captions
from trainers.reward_data import AnswerCollator


def load_reward_model(folder: str | Path, **kwargs) -> tuple[Any, Any]:
    """A reward model (folder or Hub id), on the GPU if there is one, and its processor. Keywords: revision, trust_remote_code."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **kwargs).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, AutoProcessor.from_pretrained(folder, **kwargs)


@torch.no_grad()
def reward_scores(
    model: Any,
    rows: Dataset | list[dict],
    captions: list[str],
    batch_size: int = 50,
    processor: Any = None,
    progress: bool = True,
) -> list[float]:
    """
    The reward of each row's caption. model: a reward model, with its processor (default: from where it was loaded), or the folder
    or Hub id of one. rows: canonical, with images and prompt.

    Raises ValueError for another number of captions than rows, and, naming the file, for a picture that cannot be read.
    """
    if len(captions) != len(rows):
        raise ValueError(f"{len(rows)} rows, but {len(captions)} captions")
    if isinstance(model, (str, Path)):
        model, processor = load_reward_model(model)
    elif processor is None:
        processor = AutoProcessor.from_pretrained(model.name_or_path)
    collator, rewards, training = AnswerCollator(processor), [], model.training
    model.eval()
    for start in tqdm(range(0, len(rows), batch_size), desc="scoring", disable=not progress, leave=False):
        some = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        said = [[{"role": "assistant", "content": caption}] for caption in captions[start : start + batch_size]]
        batch = collator.inputs(some, [collator._see(row) for row in some], [said])
        rewards += model(**to(batch, model.device)).logits[:, 0].tolist()
    model.train(training)
    return rewards


def to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on that device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def best_of(
    captioner: Any,
    processor: Any,
    reward_model: Any,
    reward_processor: Any,
    rows: Dataset | list[dict],
    count: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 50,
    progress: bool = True,
    **generation,
) -> list[tuple[list[str], list[float]] | None]:
    """
    For each row (with an `image_id`) its captions, first what the captioner says by `generation`, then `count` sampled ones, and
    their rewards; None where its pictures cannot be read. Samples depend on image_id, `seed` and batch_size.

    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"the best of {count} captions: there must be one at least")
    said = generate_captions(captioner, processor, rows, batch_size, progress=progress, **generation)
    sampling = generation | {"do_sample": True, "temperature": temperature, "num_beams": 1}
    found: list[tuple[list[str], list[float]] | None] = []
    for i in tqdm(range(len(rows)), desc=f"best of {count}", disable=not progress, leave=False):
        if said[i] is None:
            found.append(None)
            continue
        row = rows[i]
        torch.manual_seed((seed + int(place(str(row["image_id"])) * 2**62)) % 2**63)
        samples = generate_captions(captioner, processor, [row] * count, batch_size, progress=False, **sampling)
        captions = [said[i], *samples]
        rewards = reward_scores(reward_model, [row] * len(captions), captions, batch_size, reward_processor, False)
        found.append((captions, rewards))
    return found
