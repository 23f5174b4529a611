"""
RLAIF-V: questions about pictures, each with a better and a worse answer by how many of their claims hold. From the Hub, or from its
parquet files.

    pairs("train")                                       openbmb/RLAIF-V-Dataset, by `datasets`: 14 files of about a gigabyte each
    pairs("train", files="RLAIF-V-Dataset_00[01].parquet", revision=COMMIT)                                            two of them
    pairs("train", data_dir="rlaif-v")                   what there is of rlaif-v/RLAIF-V-Dataset_000.parquet …

    image {bytes, path}, question, chosen, rejected (ds_name, origin_dataset, origin_split, idx and image_path are not read)
        ->  preference_rows.PREFERENCE_FEATURES

Unusual: there is one official split, train, so we draw ours: on which side a pair is follows from a hash of its picture's bytes,
which is its `image_id` too. A picture that many questions are about is never learned from and judged by, and stays on its side
however many of the files there are. The data may not be used commercially (CC-BY-NC-4.0). Source: Yu et al. 2024, "RLAIF-V:
Open-Source AI Feedback Leads to Super GPT-4V Trustworthiness", https://arxiv.org/abs/2405.17220
"""

from hashlib import sha256
from pathlib import Path

from datasets import Dataset, Image

from datasets_scripts.canonical import listing, place
from datasets_scripts.preference_rows import SPLITS, canonical_pairs, drawn, from_files, from_hub, lacking, usable


HUB = "openbmb/RLAIF-V-Dataset"
COLUMNS = ("image", "question", "chosen", "rejected")
SIDES = {"train": (0.2, 1.0), "validation": (0.1, 0.2), "test": (0.0, 0.1)}  # where the hash of a picture falls


def pairs(
    split: str,
    data_dir: str | None = None,
    repo_id: str = HUB,
    revision: str | None = None,
    files: str = "*.parquet",
    num_train: int | None = 10_000,
    num_eval: int | None = 1_000,
    split_seed: int = 0,
) -> Dataset:
    """
    Preference rows of a split. num_train, num_eval: rows of train, and of validation and test each; None: all; fewer where there
    are not as many. files: which of them, on the Hub (repo_id, at the commit `revision`) or in data_dir. split_seed: another draws
    other sides. Raises ValueError for other splits and for missing columns, and FileNotFoundError where data_dir has no such files.
    """
    if split not in SPLITS:
        raise ValueError(f"rlaif_v has no split {split!r}; it has {', '.join(SPLITS)}")
    rows = from_files(_files(data_dir, files)) if data_dir else from_hub(repo_id, files, revision)
    where = f"{data_dir or repo_id}, {split}"
    lacking(rows, COLUMNS, where)
    rows = rows.select_columns(list(COLUMNS)).rename_column("question", "prompt")
    rows = rows.cast_column("image", Image(decode=False))
    # kept by `datasets` between calls: it reads every picture there is
    names = rows.map(_digests, batched=True, batch_size=64, input_columns="image", remove_columns=rows.column_names)[
        "name"
    ][:]
    low, high = SIDES[split]
    seed = f"rlaif_v {split_seed}"
    keys = {
        number: names[number] for number, _ in usable(rows, where) if low <= place(f"{seed} {names[number]}") < high
    }
    chosen = drawn(keys, num_train if split == "train" else num_eval, where, seed)
    taken = [names[number] for number in chosen]
    return canonical_pairs(rows.select(chosen), lambda row, number: taken[number])


def _files(data_dir: str, files: str) -> list[str]:
    folder = Path(data_dir).expanduser()
    if found := sorted(map(str, folder.glob(files))):
        return found
    raise FileNotFoundError(
        f"no RLAIF-V in {folder}: expected {files}, as RLAIF-V-Dataset_000.parquet of {HUB}; found {listing(str(folder))}. Without "
        "data_dir they come from the Hub"
    )


def _digests(images: list[dict]) -> dict[str, list[str]]:
    return {"name": [sha256(image["bytes"] or image["path"].encode()).hexdigest()[:16] for image in images]}
