"""
A model's own captions, judged, as preference pairs.

    rows -> own_captions -> (greedy, sample, …) a row -> Judge.scores -> a number each -> pairs_of -> chosen, rejected

Unusual:
- What is sampled depends on the rows of a call, the seed and the batch size alone: work done in shards can be stopped between them.
- Pictures of which the greedy caption is right are sampled too: pairs of mistaken ones alone hold, of what a picture leaves open,
  only the cases in which the likelier answer was wrong.
"""

from difflib import SequenceMatcher
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value

from datasets_scripts.canonical import place
from datasets_scripts.preference_rows import PREFERENCE_FEATURES
from trainers.captioning_evaluation import generate_captions
from trainers.reward_scores import load_reward_model, reward_scores
from trainers.scoring import scene_f1s


PAIR_FEATURES = Features(
    {
        **PREFERENCE_FEATURES,
        "chosen_score": Value("float64"),
        "rejected_score": Value("float64"),
        "captions": List(Value("string")),  # all, the greedy one first
        "scores": List(Value("float64")),  # of each
    }
)
FLAW = "on_policy"
TRUTH = "scene_f1"


class Judge:
    """
    Who says how good a caption is: `scene_f1` (the truth of a scene) or a reward model (folder or Hub id). Raises ValueError for
    scene_f1 where it is not known.
    """

    def __init__(self, name: str, rows: Dataset, revision: str | None = None, trust_remote_code: bool = False):
        self.reward_model = None
        if name != TRUTH:
            self.reward_model = load_reward_model(name, revision=revision, trust_remote_code=trust_remote_code)
        else:
            scene_f1s([""], rows.take(1))

    def scores(self, rows: Dataset, captions: list[list[str]], batch_size: int = 50) -> list[list[float]]:
        """Of each row's captions, of which there may be none."""
        asked = [i for i, some in enumerate(captions) for _ in some]
        flat = [caption for some in captions for caption in some]
        if self.reward_model is None:
            scores = iter(scene_f1s(flat, rows.select(asked)))
        else:
            model, processor = self.reward_model
            scores = iter(reward_scores(model, rows.select(asked), flat, batch_size, processor, progress=False))
        return [list(islice(scores, len(some))) for some in captions]


def own_captions(
    model: Any,
    processor: Any,
    rows: Dataset,
    samples: int,
    seed: int = 0,
    batch_size: int = 50,
    temperature: float = 1.0,
    **generation,
) -> list[list[str]]:
    """Of each row its greedy caption, then so many sampled ones; none where its pictures cannot be read."""
    # a Trainer saves its models with use_cache: false
    common = {"batch_size": batch_size, "progress": False, "num_beams": 1, "use_cache": True} | generation
    greedy = generate_captions(model, processor, rows, do_sample=False, **common)
    seen = [i for i, caption in enumerate(greedy) if caption is not None]
    torch.manual_seed((seed + int(place(str(rows[0]["image_id"])) * 2**62)) % 2**63)
    repeated = rows.select([i for i in seen for _ in range(samples)])
    sampled = iter(generate_captions(model, processor, repeated, do_sample=True, temperature=temperature, **common))
    return [[] if caption is None else [caption, *islice(sampled, samples)] for caption in greedy]


def pairs_of(
    rows: Dataset, captions: list[list[str]], scores: list[list[float]], least_alike: float = 0.0
) -> list[dict]:
    """
    Of each row's captions a best one and a worse one, the two whose words are most alike, so that a pair differs in what is better
    and not in how it is worded: rows of PAIR_FEATURES. No pair is made of a row whose captions are all equally good or of which
    none are so much alike, nor of captions without words.
    """
    pairs = []
    for row, said, worth in zip(rows, captions, scores, strict=True):
        worded = [i for i, caption in enumerate(said) if caption]
        high = max((worth[i] for i in worded), default=0.0)
        both = product((i for i in worded if worth[i] == high), (i for i in worded if worth[i] < high))
        measured = [(alike(said[good], said[bad]), good, bad) for good, bad in both]
        same, chosen, rejected = max(measured, key=lambda pair: pair[0], default=(-1.0, 0, 0))
        if same < least_alike:
            continue
        sides = {"chosen": chosen, "rejected": rejected}
        pairs.append(
            {
                "images": list(map(as_bytes, row["images"])),
                "prompt": row["prompt"],
                "image_id": row["image_id"],
                "flaw": FLAW,
            }
            | {side: [{"role": "assistant", "content": said[i]}] for side, i in sides.items()}
            | {f"{side}_score": worth[i] for side, i in sides.items()}
            | {"captions": said, "scores": worth}
        )
    return pairs


def as_bytes(image: dict) -> dict:
    """An undecoded picture that needs no file: pairs are carried to other machines."""
    content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    return {"bytes": content, "path": None}


def alike(one: str, other: str) -> float:
    """How many of two captions' words are the same ones in the same order: 1 for equal ones, 0 for none."""
    return SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()
