"""Every dataset as canonical rows. `load_rows` is the one door the recipes use."""

import os
from pathlib import Path

from datasets import (
    Dataset,
    DatasetBuilder,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    get_dataset_split_names,
    interleave_datasets,
    load_dataset,
)

from datasets_scripts.canonical import CAPTION_FEATURES, PROMPT, turns
from datasets_scripts.caption_pairs import caption_pairs
from datasets_scripts.preference_rows import own_pairs
from datasets_scripts.region_rows import CUT_FEATURES, cut_out, region_rows


# what is read from `data_dir` by a builder of ours
IN_FOLDER = ("pictures", "coco", "flickr8k", "spoken_captions", "pixmo", "conceptual_captions", "classes", "grounded")
# preference rows alone; without data_dir they come from the Hub
PAIRS = ("ultrafeedback", "rlaif_v")
# options of caption_pairs, not of a builder
OF_PAIRS = ("rejected", "seed")
# options of region_rows, not of a builder
OF_REGIONS = {"regions": "how", "margin": "margin", "region_prompt": "prompt"}
REGIONS = ("region", "both")


class NoSuchSplit(ValueError):
    """Says which splits there are, in words and as `there`."""

    def __init__(self, name: str, split: str, there: list[str]):
        super().__init__(f"{name} has no split {split!r}; it has {', '.join(there)}")
        self.there = there


def split_names(
    dataset: str, rows: str = "caption", data_dir: str | None = None, columns: dict[str, str] | None = None, **options
) -> list[str]:
    """The splits that load_rows, asked the same way, can read. Of a folder no row is read; of a Hub id no file but its metadata."""
    if dataset not in ("scenes", *IN_FOLDER, *PAIRS):
        ours = {"preference": OF_PAIRS, "region": OF_REGIONS, "both": OF_REGIONS}.get(rows, ())
        options = {name: value for name, value in options.items() if name not in ours}
        return get_dataset_split_names(dataset, options.pop("name", None), data_dir=data_dir, **options)
    try:
        load_rows(dataset, "", rows, data_dir, True, columns, **options)
    except NoSuchSplit as answer:
        return answer.there
    raise AssertionError(f"{dataset} read a split without a name")


def load_rows(
    dataset: str,
    split: str,
    rows: str = "caption",
    data_dir: str | None = None,
    streaming: bool = False,
    columns: dict[str, str] | None = None,
    **options,
) -> Dataset | IterableDataset:
    """
    Rows of a split in canonical columns; `images` undecoded ({"bytes", "path"}), for open_picture to open.

    dataset: "scenes" (the miniature world), "pictures" (`data_dir` holds COCO's layout, or pictures with a metadata.jsonl), "coco"
    (COCO's layout in `data_dir`, or where the variable COCO_ROOT says; "val" is its validation), "grounded" (what
    recipes/augment.py left in `data_dir`), "flickr8k" (`data_dir` holds its pictures and captions; its training rows ask various
    questions), "spoken_captions" (Flickr8k, each caption spoken too; alignment rows), "pixmo" and "conceptual_captions" (`data_dir`
    holds links and texts, and the pictures that recipes/download_pictures.py brings), "classes" (`data_dir` holds a folder of
    pictures or sounds a class), "ultrafeedback" and "rlaif_v" (preference rows, from the Hub or `data_dir`), or a Hub id or folder
    that `datasets.load_dataset` reads.
    rows: "caption" for one row a caption, "image" for one a picture, "alignment" for one a caption in the columns image, text and
    audio, "preference" for pairs in the columns images, prompt, chosen, rejected, image_id and flaw: a data set's own, or its
    captions against `rejected`="shuffled" or "swapped" ones by `seed` (caption_pairs.py), "region" for one a region, its phrase to
    be said of the `regions`="box" or "crop" (region_rows.py, whose `margin` and `region_prompt` may stand beside), "both" for
    captions and regions: whole, one after the other; streamed, in turns. columns: for a Hub id or folder without the canonical
    columns, which of its columns are `image` and `caption` ({"image": "jpg", "caption": "txt"}).
    streaming: read as it is asked for. Further options go to the builder. Raises ValueError where columns or splits are missing.
    """
    if dataset == "coco":
        data_dir, split = coco_root(data_dir), {"val": "validation"}.get(split, split)
    if columns and dataset in ("scenes", *IN_FOLDER, *PAIRS):
        raise ValueError(f"columns are for a Hub id; {dataset!r} has the canonical ones")
    if rows in REGIONS and dataset != "grounded":
        return _with_regions(dataset, split, rows, data_dir, streaming, columns, **options)
    if dataset == "scenes":
        from datasets_scripts.scenes import Scenes

        options.setdefault("config_name", {"alignment": "alignment", "preference": "preferences"}.get(rows, "captions"))
        return _built(Scenes(**options), split, streaming)
    if rows == "preference":
        return _preferences(dataset, split, data_dir, streaming, columns, **options)
    if dataset in PAIRS:
        raise ValueError(f"{dataset} has rows='preference', not {rows!r}")
    if rows == "alignment" and dataset not in ("classes", "spoken_captions"):
        told = load_rows(dataset, split, "caption", data_dir, streaming, columns, **options)
        return _aligned(told)
    if dataset in IN_FOLDER:
        if data_dir is None:
            raise ValueError(f"dataset: {dataset} needs data_dir, the folder that holds its pictures")
        if dataset == "classes":
            from datasets_scripts.class_folders import ClassFolders

            return _built(ClassFolders(data_dir=data_dir, **options), split, streaming)
        if dataset == "spoken_captions":
            from datasets_scripts.spoken_captions import SpokenCaptions

            if rows != "alignment":
                raise ValueError(f"spoken_captions has rows='alignment', not {rows!r}; without the voices: flickr8k")
            return _built(SpokenCaptions(data_dir=data_dir, **options), split, streaming)
        if dataset == "grounded":
            return _grounded(split, rows, data_dir, streaming, **options)
        if dataset == "pixmo":
            from datasets_scripts.pixmo import Pixmo as Pictures
        elif dataset == "conceptual_captions":
            from datasets_scripts.conceptual_captions import ConceptualCaptions as Pictures
        elif dataset == "flickr8k":
            from datasets_scripts.flickr8k import Flickr8k as Pictures
        elif dataset == "coco" or (Path(data_dir) / "annotations").is_dir():
            from datasets_scripts.coco import Coco as Pictures
        else:
            from datasets_scripts.picture_folder import PictureFolder as Pictures
        return _built(Pictures(data_dir=data_dir, rows=rows, **options), split, streaming)
    loaded = load_dataset(dataset, split=split, data_dir=data_dir, streaming=streaming, **options)
    return _captions(loaded, dataset, split, columns)


def coco_root(data_dir: str | None) -> str:
    """Where COCO lies: data_dir, or what the environment variable COCO_ROOT says. Raises ValueError if neither does."""
    if not (data_dir or os.environ.get("COCO_ROOT")):
        raise ValueError(
            "dataset: coco is not found: set COCO_ROOT to the folder that holds val2017/ and annotations/, or give it as data_dir; "
            "python recipes/download_coco.py --root FOLDER --split val2017 brings one"
        )
    return data_dir or os.environ["COCO_ROOT"]


def _with_regions(
    dataset: str,
    split: str,
    rows: str,
    data_dir: str | None,
    streaming: bool,
    columns: dict[str, str] | None,
    **options,
) -> Dataset | IterableDataset:
    how = {name: options.pop(ours) for ours, name in OF_REGIONS.items() if ours in options}
    source = dataset, split
    pictures = load_rows(*source, "image", data_dir, streaming, columns, **options)
    parts = region_rows(pictures, **how, where=f"{data_dir or dataset}, {split}")
    if rows == "region":
        return parts
    captions = load_rows(*source, "caption", data_dir, streaming, columns, **options)
    return _mixed(captions, parts)


def _mixed(captions: Dataset | IterableDataset, parts: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Both kinds of rows, in the canonical columns; all of either."""
    captions = captions.select_columns(list(CAPTION_FEATURES)).cast_column("images", CUT_FEATURES["images"])
    if isinstance(parts, IterableDataset):
        return interleave_datasets([captions, parts], stopping_strategy="all_exhausted_without_replacement")
    if "cut" not in parts.column_names:
        return concatenate_datasets([captions, parts])
    # what cuts is a way of reading, which joined rows have lost
    uncut = captions.map(lambda _: {"cut": None}, features=parts.features)
    return cut_out(concatenate_datasets([uncut, parts.with_format(None)]))


def _grounded(split: str, rows: str, data_dir: str, streaming: bool, **options) -> Dataset | IterableDataset:
    from datasets_scripts.grounded import Grounded

    if rows in REGIONS:
        options.setdefault("examples", {"region": "regions", "both": "all"}[rows])
    if rows == "image":
        raise ValueError(
            "grounded is for learning: several rows show one picture, and no captions were held out; judge by another dataset"
        )
    return cut_out(_built(Grounded(data_dir=data_dir, **options), split, streaming))


def _preferences(
    dataset: str, split: str, data_dir: str | None, streaming: bool, columns: dict[str, str] | None, **options
) -> Dataset | IterableDataset:
    if dataset in ("classes", "spoken_captions") or (dataset == "pixmo" and options.get("config_name") == "questions"):
        raise ValueError(
            f"{dataset} has no preference rows, nor captions to make pairs of; take scenes, {', '.join(PAIRS)}, or pictures with "
            "captions: flickr8k, conceptual_captions, pixmo's, a folder of your own"
        )
    if dataset in PAIRS:
        if dataset == "ultrafeedback":
            from datasets_scripts.ultrafeedback import SPLITS, pairs
        else:
            from datasets_scripts.rlaif_v import SPLITS, pairs
        if split not in SPLITS:
            raise NoSuchSplit(dataset, split, list(SPLITS))
        loaded = pairs(split, data_dir=data_dir, **options)
        return loaded.to_iterable_dataset() if streaming else loaded
    how = {name: options.pop(name) for name in OF_PAIRS if name in options}
    where = f"{data_dir or dataset}, {split}"
    if dataset in IN_FOLDER:
        return caption_pairs(load_rows(dataset, split, "caption", data_dir, streaming, **options), where=where, **how)
    loaded = load_dataset(dataset, split=split, data_dir=data_dir, streaming=streaming, **options)
    there = set(_column_names(loaded))
    if {"chosen", "rejected"} <= there:
        if how or columns:
            raise ValueError(
                f"{dataset} has pairs of its own, in chosen and rejected: leave out {', '.join(how) or 'columns'}"
            )
        return own_pairs(loaded, where, split)
    if not columns and not {"images", "prompt", "completion"} <= there:
        raise ValueError(
            f"{dataset} ({split}) has no preference rows: neither chosen and rejected, nor captions to make pairs of; it has "
            f"{sorted(there)}. If there is a picture and its caption, say which: columns: {{image: NAME, caption: NAME}}"
        )
    return caption_pairs(_captions(loaded, dataset, split, columns), where=where, **how)


def _column_names(loaded: Dataset | IterableDataset) -> list[str]:
    return loaded.column_names or list(next(iter(loaded), {}))


def _captions(
    loaded: Dataset | IterableDataset, dataset: str, split: str, columns: dict[str, str] | None
) -> Dataset | IterableDataset:
    """Rows of a Hub id or folder as captioning rows."""
    there = _column_names(loaded)
    wanted = set(columns.values()) if columns else {"images", "prompt", "completion"}
    if missing := wanted - set(there):
        raise ValueError(
            f"{dataset} ({split}) lacks the columns {sorted(missing)}; it has {sorted(there)}. Say which are the picture and its "
            "caption: columns: {image: NAME, caption: NAME}"
        )
    if columns is None:
        return loaded.cast_column("images", List(Image(decode=False)))
    return _canonical(loaded, split, **columns)


def _built(builder: DatasetBuilder, split: str, streaming: bool) -> Dataset | IterableDataset:
    if streaming:
        generators = {generator.name: generator for generator in builder._split_generators(None)}
        there = list(map(str, generators))
    else:
        builder.download_and_prepare()
        there = list(builder.info.splits)
    if split not in there:
        raise NoSuchSplit(builder.name, split, there)
    if streaming:
        loaded = builder.as_streaming_dataset(split)
        return loaded.decode(False) if "images" in builder.info.features else loaded
    builder.info.features = _undecoded(builder.info.features)
    return builder.as_dataset(split)


def _undecoded(features: Features) -> Features:
    raw = {"images": List(Image(decode=False)), "image": Image(decode=False)}
    return Features({**features, **{name: kind for name, kind in raw.items() if name in features}})


def _canonical(loaded: Dataset | IterableDataset, split: str, image: str, caption: str) -> Dataset | IterableDataset:
    """A picture column and a caption column (a string or a list of them) as canonical rows, one a picture."""
    loaded = loaded.select_columns([image, caption]).cast_column(image, Image(decode=False))

    def canonical(row: dict, index: int) -> dict:
        said = row[caption]
        said = [one.strip() for one in ([said] if isinstance(said, str) else said or [""])]
        return {
            "images": [row[image]],
            **turns(PROMPT, said[0]),
            "references": said,
            "image_id": f"{split}-{index}",
            "regions": [],
        }

    return loaded.map(
        canonical, with_indices=True, remove_columns=[image, caption], features=_undecoded(CAPTION_FEATURES)
    )


def _aligned(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Captioning rows as image and text: the first picture and what is said of it."""

    def pair(row: dict) -> dict:
        return {"image": row["images"][0], "text": row["completion"][0]["content"]}

    features = Features({"image": Image(decode=False), "text": Value("string")})
    return rows.map(pair, remove_columns=rows.column_names, features=features)
