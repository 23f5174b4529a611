"""
UltraFeedback, binarised: text prompts, each with a better and a worse answer by GPT-4's scores. From the Hub, or from its files.

    pairs("train")                                                       HuggingFaceH4/ultrafeedback_binarized, by `datasets`
    pairs("train", repo_id="trl-lib/ultrafeedback_binarized", revision=COMMIT)
    pairs("train", data_dir="uf")       uf/data/train_prefs-00000-of-00001.parquet, …/test_prefs-…; or train-…, test-…

    prompt, chosen, rejected (score_chosen, score_rejected and others are not read)  ->  preference_rows.PREFERENCE_FEATURES

There is no picture in it, and `images` is empty: such pairs teach which answer people like to read, and cannot reward grounding. A
model that learns from them alone may well write better about things that are not in the picture; put pairs beside them whose
rejected side contradicts the picture (caption_pairs.py, rlaif_v.py, scenes). `image_id` is a hash of the prompt.

Unusual: which pairs are taken, and on which side a prompt is (validation and test are halves of the official test), follows from a
hash of the prompt: whoever loads them has the same. Sources: Cui et al. 2023, "UltraFeedback: Boosting Language Models with Scaled
AI Feedback", https://arxiv.org/abs/2310.01377; binarised for Tunstall et al. 2023, https://arxiv.org/abs/2310.16944
"""

from hashlib import sha256
from pathlib import Path
from statistics import median

from datasets import Dataset

from datasets_scripts.canonical import listing, place
from datasets_scripts.preference_rows import SPLITS, canonical_pairs, drawn, from_files, from_hub, lacking, usable


HUB = "HuggingFaceH4/ultrafeedback_binarized"
# how the files of train and test begin
LAYOUTS = {
    HUB: {"train": "train_prefs", "test": "test_prefs"},
    "trl-lib/ultrafeedback_binarized": {"train": "train", "test": "test"},
}


def pairs(
    split: str,
    data_dir: str | None = None,
    repo_id: str = HUB,
    revision: str | None = None,
    num_train: int | None = 10_000,
    num_eval: int | None = 1_000,
    split_seed: int = 0,
) -> Dataset:
    """
    Preference rows of a split. num_train, num_eval: rows of train, and of validation and test each; None: all; fewer where there
    are not as many. split_seed: another draws other rows, not other sides. repo_id: one of LAYOUTS, or a copy laid out as the first
    is; revision: its commit; both only without data_dir. Raises ValueError for other splits and for missing columns, and
    FileNotFoundError where data_dir has not the files.
    """
    if split not in SPLITS:
        raise ValueError(f"ultrafeedback has no split {split!r}; it has {', '.join(SPLITS)}")
    official = "train" if split == "train" else "test"
    if data_dir:
        rows = from_files(_files(data_dir, official))
    else:
        # the one file: the repository holds five more, for supervised learning
        start = LAYOUTS.get(repo_id, LAYOUTS[HUB])[official]
        rows = from_hub(repo_id, f"data/{start}-*.parquet", revision)
    where = f"{data_dir or repo_id}, {split}"
    lacking(rows, ("chosen", "rejected"), where)
    keys = {number: repr(read["prompt"]) for number, read in usable(rows, where)}
    if split != "train" and keys:
        middle = median(place(key) for key in set(keys.values()))
        keys = {number: key for number, key in keys.items() if (place(key) < middle) == (split == "test")}
    chosen = drawn(keys, num_train if split == "train" else num_eval, where, f"ultrafeedback {split_seed}")
    names = [sha256(keys[number].encode()).hexdigest()[:16] for number in chosen]
    return canonical_pairs(rows.select(chosen), lambda row, number: names[number])


def _files(data_dir: str, official: str) -> list[str]:
    folder = Path(data_dir).expanduser()
    starts = [layout[official] for layout in LAYOUTS.values()]
    for start in starts:
        if files := sorted(map(str, [*folder.glob(f"data/{start}-*.parquet"), *folder.glob(f"{start}-*.parquet")])):
            return files
    raise FileNotFoundError(
        f"no UltraFeedback in {folder}: expected {' or '.join(f'{start}-*.parquet' for start in starts)}, there or in data/, as in "
        f"{' and '.join(LAYOUTS)}; found {listing(str(folder))}; in data/: {listing(str(folder / 'data'))}. Without data_dir they "
        "come from the Hub"
    )
