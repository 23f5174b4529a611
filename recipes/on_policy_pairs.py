"""
Make preference pairs of a model's own captions: the best of what it says of a picture against something worse.

    python recipes/on_policy_pairs.py --model DIR --dataset scenes --split train --num_examples 4000 --samples 8 \\
        --judge scene_f1 --output PAIRS
    python recipes/on_policy_pairs.py --model DIR --dataset pictures --data_dir FOLDER --judge REWARD_MODEL --output PAIRS

    picture -> the greedy caption and --samples sampled ones -> a judge's score of each -> chosen, rejected

PAIRS then holds parquet files in the canonical preference columns, with both scores and every caption beside them; train on them:
recipes/prefer.py with `train_pairs: [PAIRS]`. The judge is the truth, where it is known (scene_f1, of scenes), or a reward model
(folder or Hub id). Chosen is a best caption and rejected a worse one, the two whose words are most alike: a pair shall differ in
what is right, not in how it is worded. Pictures of which all captions are equally good make no pair. Written a shard at a time: a
run that was killed goes on with the shards that are missing, and makes the pairs that it would have made.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import modeling  # noqa: F401  teaches the Auto classes our models: the working tree wins over code saved with a checkpoint
import processing  # noqa: F401
from datasets_scripts import load_rows
from modeling.towers import fingerprint
from trainers.captioning_evaluation import dataset_fingerprint
from trainers.on_policy_pairs import PAIR_FEATURES, Judge, own_captions, pairs_of
from trainers.run_folder import read_json, read_settings, write_json, write_whole


SHARD = 100  # pictures


@dataclass
class Recipe:
    # The model, and who judges what it says
    model: str  # folder or Hub id of any HF vision–language model
    output: str  # folder
    judge: str = "scene_f1"  # scene_f1 (the truth, of scenes), or the folder or Hub id of a reward model
    model_revision: str | None = None
    judge_revision: str | None = None
    trust_remote_code: bool = False  # for models that are not ours; pin their revisions then
    dtype: str = "float32"

    # The pictures
    dataset: str = "scenes"  # as load_rows takes it
    split: str = "train"
    data_dir: str | None = None
    dataset_options: str | None = None  # of the builder, as JSON
    num_examples: int | None = None  # the first so many pictures; None: all

    # What is said of them
    samples: int = 8  # captions that are sampled, beside the greedy one
    temperature: float = 1.0
    least_alike: float = 0.0  # leave out pairs with a smaller share of words in common, 0 to 1
    max_new_tokens: int = 64
    batch_size: int = 128  # captions at a time
    seed: int = 0

    def __post_init__(self):
        self.dataset_options = read_settings("dataset_options", self.dataset_options)
        for name, least in (("samples", 1), ("batch_size", 1), ("num_examples", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0; got {self.temperature}: at 0 every sample is the greedy caption"
            )


def missing_shards(recipe: Recipe, pictures: Dataset, weights: str) -> dict[Path, range]:
    """
    Which files are still to be written, and the numbers of each one's pictures. weights: a hash of the model's. Raises ValueError
    where the folder holds pairs that were made otherwise.
    """
    folder, count = Path(recipe.output), len(pictures)
    made_of = {name: value for name, value in asdict(recipe).items() if name not in ("model", "output")}
    made_of |= {"weights": weights, "pictures": dataset_fingerprint(pictures, ("image_id", "prompt")), "count": count}
    path = folder / "made_of.json"
    if path.exists() and (there := read_json(path)) != made_of:
        other = ", ".join(sorted(name for name in made_of if there.get(name) != made_of[name]))
        raise ValueError(f"{folder} holds pairs that were made otherwise: {path} differs in {other}; write elsewhere")
    write_json(path, made_of)
    for half in folder.glob("*.tmp"):  # what a killed run was writing; datasets would take it for a part of the split
        half.unlink()
    total = -(-count // SHARD)
    paths = [folder / f"{recipe.split}-{number:05d}-of-{total:05d}.parquet" for number in range(total)]
    ranges = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    return {path: here for path, here in zip(paths, ranges, strict=True) if not path.exists()}


def main(recipe: Recipe) -> None:
    # 1. Pictures, and who judges what is said of them.
    pictures = load_rows(recipe.dataset, recipe.split, rows="image", data_dir=recipe.data_dir, **recipe.dataset_options)
    pictures = pictures.take(min(recipe.num_examples or len(pictures), len(pictures)))
    judge = Judge(recipe.judge, pictures, recipe.judge_revision, recipe.trust_remote_code)

    # 2. The model, and what an earlier run has left to do.
    common = {"revision": recipe.model_revision, "trust_remote_code": recipe.trust_remote_code}
    model = AutoModelForImageTextToText.from_pretrained(recipe.model, dtype=recipe.dtype, **common).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoProcessor.from_pretrained(recipe.model, **common)
    waiting = missing_shards(recipe, pictures, fingerprint(model))

    # 3. Its captions of each picture, judged; the best against a worse one.
    settings = ("samples", "seed", "batch_size", "temperature", "max_new_tokens")
    said = {name: getattr(recipe, name) for name in settings}
    for path, here in tqdm(waiting.items(), desc="captioning and judging", unit="shard"):
        some = pictures.select(here)
        captions = own_captions(model, processor, some, **said)
        scores = judge.scores(some, captions, recipe.batch_size)
        pairs = Dataset.from_list(pairs_of(some, captions, scores, recipe.least_alike), PAIR_FEATURES)
        write_whole(path, pairs.to_parquet)

    # 4. What came of it, as it will be read.
    pairs = load_rows(recipe.output, recipe.split, rows="preference")
    print(f"{len(pairs)} pairs of {len(pictures)} pictures: {recipe.output}")


if __name__ == "__main__":
    main(*HfArgumentParser(Recipe).parse_args_into_dataclasses())
