"""Every dataset as canonical rows. `load_rows` is the one door the recipes use."""

from pathlib import Path

from datasets import Dataset, load_dataset


def load_rows(dataset: str, split: str, rows: str = "caption", data_dir: str | None = None, **options) -> Dataset:
    """
    Rows of a split in canonical columns.

    dataset: "scenes" (the miniature world), "pictures" (`data_dir` holds COCO's layout, or pictures with a metadata.jsonl), or a
    Hub id or folder that `datasets.load_dataset` reads and that has the canonical columns already. rows: "caption" for one row a
    caption, "image" for one a picture. Further options go to the builder. Raises ValueError where columns are missing.
    """
    if dataset == "scenes":
        from datasets_scripts.scenes import Scenes

        options.setdefault("config_name", "captions")
        return _prepared(Scenes(**options), split)
    if dataset == "pictures":
        if data_dir is None:
            raise ValueError("dataset: pictures needs data_dir, the folder that holds them")
        if (Path(data_dir) / "annotations").is_dir():
            from datasets_scripts.coco import Coco as Pictures
        else:
            from datasets_scripts.picture_folder import PictureFolder as Pictures
        return _prepared(Pictures(data_dir=data_dir, rows=rows, **options), split)
    loaded = load_dataset(dataset, split=split, data_dir=data_dir, **options)
    if missing := {"images", "prompt", "completion"} - set(loaded.column_names):
        raise ValueError(f"{dataset} ({split}) lacks the columns {sorted(missing)}; it has {loaded.column_names}")
    return loaded


def _prepared(builder, split: str) -> Dataset:
    builder.download_and_prepare()
    if split not in builder.info.splits:
        raise ValueError(f"{builder.name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    return builder.as_dataset(split)
