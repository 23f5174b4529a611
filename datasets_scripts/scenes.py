"""
Scenes: the miniature world as a dataset. No downloads; every row is drawn when it is asked for, the same everywhere.

    Scenes(config_name="captions").as_streaming_dataset("train")                    rows as they are drawn
    Scenes(config_name="captions", num_train=20_000).download_and_prepare(); ...    or written to Arrow first

Tasks (the builder's configs), in canonical columns; all but "preferences" and "alignment" also carry references and regions:
    captions      prompt: "Describe the picture."; completion: one of five wordings (row i has wording i mod 5); references: all
    questions     prompt: a question; completion and only reference: its answer; the extra column `kind` says what is asked
    instructions  for learning to do both: each scene of train as in captions and as in questions, `rounds` times over, with the
                  next wording and questions about other things; the other splits are captions
    preferences   chosen and rejected, which differ in the one way that the extra column `flaw` names
    alignment     image, text; with `sounds`, audio too
    reading       text only, for language models: rough notes and a prompt or question; the caption or answer. Every tenth row
                  has no notes: there is only habit to go by

Splits: train (biased), validation and test (bias broken), validation_biased and test_biased. `distinct=True` leaves out scenes
whose truth an earlier scene of the split had already, so that every caption belongs to one picture (for retrieval).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

import datasets

from datasets_scripts.canonical import CAPTION_FEATURES, PROMPT, SOUND, turns
from datasets_scripts.scene_description import SPLITS, Scene, describe
from datasets_scripts.scene_drawing import draw, png
from datasets_scripts.scene_language import captions, notes, preferences, questions
from datasets_scripts.scene_sounds import sound, wav


TASKS = ("captions", "questions", "instructions", "preferences", "alignment", "reading")
_TURNS = CAPTION_FEATURES["prompt"]
_EXTRA = {"scene": datasets.Value("string")}  # the whole description as JSON, for whoever needs more than the columns


@dataclass
class ScenesConfig(datasets.BuilderConfig):
    num_train: int = 20_000  # scenes in train
    num_eval: int = 1_000  # scenes in each other split
    seed: int = 0
    image_size: int = 60  # pixels a side
    distinct: bool = False
    wording: int | None = None  # of alignment: which of five captions, 4 naming places; None: row i has i mod 5
    sounds: bool = False  # of alignment: what each scene sounds like
    rounds: int = 1  # of instructions: how often a scene of train is described and asked about
    version: datasets.Version = field(default_factory=lambda: datasets.Version("1.0.1"))


def fingerprint(seed: int = 0, split: str = "train", count: int = 100, image_size: int = 60) -> str:
    """A hash of pixels and words of the first `count` scenes: equal on every machine, or the world is not the same world."""
    digest = sha256()
    for index in range(count):
        scene = describe(seed, split, index)
        said = [captions(scene), questions(scene), preferences(scene), [o.box(image_size) for o in scene.objects]]
        digest.update(draw(scene, image_size).tobytes() + json.dumps(said).encode())
    return digest.hexdigest()


def scenes(seed: int, split: str, count: int, distinct: bool = False) -> Iterator[Scene]:
    """`count` scenes of a split. Raises ValueError if the world has not as many distinct ones (asked for in vain 10x over)."""
    seen, index, given = set(), 0, 0
    while given < count:
        scene = describe(seed, split, index)
        index += 1
        if distinct:
            if scene.truth in seen:
                if index > 10 * count + 1000:
                    raise ValueError(
                        f"only {given} distinct scenes among the first {index} of {split!r}; asked for {count}"
                    )
                continue
            seen.add(scene.truth)
        given += 1
        yield scene


class Scenes(datasets.GeneratorBasedBuilder):
    BUILDER_CONFIG_CLASS = ScenesConfig
    BUILDER_CONFIGS = [ScenesConfig(name=task) for task in TASKS]
    DEFAULT_CONFIG_NAME = "captions"

    def _info(self) -> datasets.DatasetInfo:
        if self.config.name == "alignment":
            columns = {"image": datasets.Image(), "text": datasets.Value("string"), **_EXTRA}
            columns |= {"audio": SOUND} if self.config.sounds else {}
        elif self.config.name == "reading":
            columns = {"prompt": _TURNS, "completion": _TURNS}
        elif self.config.name == "preferences":
            columns = {
                "images": datasets.List(datasets.Image()),
                "prompt": _TURNS,
                "chosen": _TURNS,
                "rejected": _TURNS,
            }
            columns |= {"flaw": datasets.Value("string"), "image_id": datasets.Value("string"), **_EXTRA}
        else:
            columns = {**CAPTION_FEATURES, **_EXTRA}
            columns |= {"kind": datasets.Value("string")} if self.config.name == "questions" else {}
        return datasets.DatasetInfo(description=__doc__, features=datasets.Features(columns), license="Apache-2.0")

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(
                split,
                gen_kwargs={
                    "split": split,
                    "count": self.config.num_train if split == "train" else self.config.num_eval,
                },
            )
            for split in SPLITS
        ]

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[str, dict]]:
        config = self.config
        for row, scene in enumerate(scenes(config.seed, split, count, config.distinct)):
            if config.name == "reading":
                yield scene.image_id, _reading(scene, row)
                continue
            picture = {"bytes": png(draw(scene, config.image_size)), "path": None}
            told = json.dumps({"background": scene.background, "objects": [o._asdict() for o in scene.objects]})
            common = {"images": [picture], "image_id": scene.image_id, "scene": told}
            regions = [{"box": o.box(config.image_size), "phrase": o.phrase} for o in scene.objects]
            if config.name == "instructions" and split == "train":
                for round in range(config.rounds):
                    said = captions(scene)
                    turns_ = [(PROMPT, said[(row + round) % 5], said)]
                    turns_ += [(q["question"], q["answer"], [q["answer"]]) for q in questions(scene, round)]
                    for number, (prompt, answer, references) in enumerate(turns_):
                        rest = {**turns(prompt, answer), "references": references, "regions": regions}
                        yield f"{scene.image_id}-{round}-{number}", {**common, **rest}
            elif config.name in ("captions", "instructions"):
                said = captions(scene)
                yield (
                    scene.image_id,
                    {**common, **turns(PROMPT, said[row % 5]), "references": said, "regions": regions},
                )
            elif config.name == "questions":
                for asked in questions(scene):
                    answer = asked["answer"]
                    asked_answered = {**turns(asked["question"], answer), "kind": asked["kind"]}
                    yield (
                        f"{scene.image_id}-{asked['kind']}",
                        {**common, **asked_answered, "references": [answer], "regions": regions},
                    )
            elif config.name == "preferences":
                for pair in preferences(scene):
                    asked_answered = turns(PROMPT, pair["chosen"])
                    both = {
                        "chosen": asked_answered["completion"],
                        "rejected": turns("", pair["rejected"])["completion"],
                    }
                    row_ = {**common, "prompt": asked_answered["prompt"], **both, "flaw": pair["flaw"]}
                    yield f"{scene.image_id}-{pair['flaw']}", row_
            else:
                said = captions(scene)[row % 5 if config.wording is None else config.wording]
                heard = {"audio": {"bytes": wav(sound(scene)), "path": None}} if config.sounds else {}
                yield scene.image_id, {"image": picture, "text": said, "scene": told, **heard}


def _reading(scene: Scene, row: int) -> dict[str, list[dict[str, str]]]:
    rng = Random(f"reading/{scene.image_id}")
    said, asked = captions(scene), questions(scene)
    if rng.random() < 0.15:
        one = asked[int(rng.random() * len(asked))]
        return turns(f"{notes(scene, rng, places=True)}\n{one['question']}", one["answer"])
    if rng.random() < 0.1:
        return turns(PROMPT, said[row % 5])
    wording = row % 5  # the last two say where things are
    return turns(f"{notes(scene, rng, places=wording > 2 or rng.random() < 0.5)}\n{PROMPT}", said[wording])
