"""
Grounded captions, as recipes/augment.py leaves them: whole pictures with their captions, and regions with what is said of them.

    data_dir/train.parquet   (name = split) one row an example: kind, image_id, image, width, height, caption, text, box, …
        kind "caption"  ->  the whole picture; references: all captions of that image_id
        kind "region"   ->  its box, as region_rows has it: regions="box" in the prompt, or regions="crop" cut out

Unusual: captions that belong together are gathered from the whole file first, by the one column that says so; rows are then read a
batch at a time. Pictures that are no longer there are left out, counted and logged, as are boxes outside of theirs.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import pyarrow.parquet as pq

from datasets_scripts.canonical import PROMPT, DataDirConfig, FolderBuilder, listing, report, turns
from datasets_scripts.region_rows import CUT_FEATURES, clipped, region_prompt, region_row


COLUMNS = ("kind", "image_id", "image", "width", "height", "caption", "text", "box")  # what is read; there are more
EXAMPLES = ("all", "captions", "regions")


@dataclass
class GroundedConfig(DataDirConfig):
    """
    examples: which rows: captions of whole pictures, regions, or all. regions, margin, region_prompt: as in region_rows; prompt:
    for whole pictures. Raises ValueError as region_prompt does, and for other examples.
    """

    examples: str = "all"
    regions: str = "box"
    margin: float = 0.1
    prompt: str = PROMPT
    region_prompt: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.examples not in EXAMPLES:
            raise ValueError(f"examples must be one of {', '.join(EXAMPLES)}; got {self.examples!r}")
        region_prompt(self.regions, self.region_prompt)

    def files(self) -> dict[str, str]:
        """Split -> its file. Raises FileNotFoundError where there is none."""
        there = sorted(os.listdir(self.data_dir)) if os.path.isdir(self.data_dir) else []
        if found := [name for name in there if name.endswith(".parquet")]:
            return {name.removesuffix(".parquet"): os.path.join(self.data_dir, name) for name in found}
        raise FileNotFoundError(
            f"no train.parquet in {self.data_dir}: recipes/augment.py writes it; found {listing(self.data_dir)}"
        )

    def sources(self) -> list[str]:
        return list(self.files().values())


class Grounded(FolderBuilder):
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = GroundedConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=CUT_FEATURES)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(split, gen_kwargs={"path": path}) for split, path in self.config.files().items()
        ]

    def _generate_examples(self, path: str) -> Iterator[tuple[str, dict]]:
        config, folder = self.config, os.path.dirname(path)
        prompt = region_prompt(config.regions, config.region_prompt)
        file = pq.ParquetFile(path)
        if missing := set(COLUMNS) - set(file.schema_arrow.names):
            raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}; recipes/augment.py writes them")
        captions: dict[str, dict[str, None]] = defaultdict(dict)
        for row in _rows(file, ("image_id", "caption")):
            captions[row["image_id"]][row["caption"]] = None
        wanted = {"all": ("caption", "region"), "captions": ("caption",), "regions": ("region",)}[config.examples]
        there: dict[str, bool] = {}  # images are not looked for once a row
        numbers: Counter[str] = Counter()
        missing, outside = [], []
        for place, row in enumerate(_rows(file, COLUMNS)):
            kind, image_id = row["kind"], row["image_id"]
            if kind not in ("caption", "region"):
                raise ValueError(f"{path}, row {place}: kind must be caption or region, is {kind!r}")
            if kind == "region":
                name = f"{image_id}-{numbers[image_id]}"
                numbers[image_id] += 1
            if kind not in wanted:
                continue
            picture = os.path.join(folder, row["image"])
            if picture not in there:
                there[picture] = os.path.isfile(picture)
                missing += [] if there[picture] else [picture]
            if not there[picture]:
                continue
            if kind == "caption":
                said = list(captions[image_id])
                yield str(place), {"images": [picture], **turns(config.prompt, row["text"]), "references": said,
                              "image_id": image_id, "regions": [], "cut": None}  # fmt: skip
                continue
            size, box = (row["width"], row["height"]), row["box"]
            if not box or len(box) != 4:
                raise ValueError(
                    f"{path}, row {place}: a region needs a box of four pixels x0, y0, x1, y1; it has {box!r}"
                )
            if (box := clipped(box, size)) is None:
                outside.append(name)
                continue
            yield str(place), region_row(picture, size, box, row["text"], name, config.regions, config.margin, prompt)
        report(path, "pictures that are not there left out", missing)
        report(path, "regions without area in their picture left out", outside)


def _rows(file: pq.ParquetFile, columns: tuple[str, ...]) -> Iterator[dict]:
    for batch in file.iter_batches(columns=list(columns)):
        yield from batch.to_pylist()
