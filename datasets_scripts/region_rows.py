"""
Region rows: of pictures whose parts are named, one row a part, to be described as whole pictures are.

    images, regions: [{box, phrase}, …], image_id
        -> region_rows(rows, "box")    the whole picture;  "Describe the region [0.25, 0.10, 0.75, 0.60]."  -> phrase
        -> region_rows(rows, "crop")   the part cut out;   "Describe the picture."                          -> phrase

Boxes in prompts are hundredths of the picture's sides, x0, y0, x1, y1 from the top left, with two decimals, as LLaVA-1.5's region
data has them (https://huggingface.co/papers/2310.03744). An image processor that crops to a square cuts off what they speak of.

Unusual: of a picture only the header is read until its row is asked for, which then cuts the part out: no crop is stored. Boxes are
clipped to the picture, upright; what has no area then is left out, counted and logged, as is a picture that cannot be read.
"""

import math
from io import BytesIO
from typing import Any

from datasets import Dataset, Features, Image, IterableDataset, List, Value

from datasets_scripts.canonical import CAPTION_FEATURES, PROMPT, report, turns
from datasets_scripts.open_picture import UnreadablePicture, open_picture, upright_size


HOW = ("box", "crop")
BOX = "{box}"  # where a prompt says which part is meant
PROMPTS = {"box": f"Describe the region {BOX}.", "crop": PROMPT}
# canonical columns, and pixels of the picture that are to be cut out of it, where any are
CUT_FEATURES = Features(
    {**CAPTION_FEATURES, "images": List(Image(decode=False)), "cut": List(Value("int32"), length=4)}
)


def region_prompt(how: str, prompt: str | None = None) -> str:
    """What is asked of a part; raises ValueError for another `how`, and for a box that the prompt has no place for, or a crop's."""
    if how not in HOW:
        raise ValueError(f"regions must be one of {', '.join(HOW)}; got {how!r}")
    prompt = PROMPTS[how] if prompt is None else prompt
    if (BOX in prompt) != (how == "box"):
        wanted = f"must say where the box goes, as {PROMPTS['box']!r}" if how == "box" else f"knows no {BOX}"
        raise ValueError(f"the prompt {prompt!r} of regions: {how} {wanted}")
    return prompt


def clipped(box: list[float], size: tuple[int, int]) -> list[float] | None:
    """A box (pixels) as far as it lies within a picture of (width, height); None where no area is left."""
    if not all(map(math.isfinite, box)):
        return None
    x0, y0 = max(0.0, box[0]), max(0.0, box[1])
    x1, y1 = min(float(size[0]), box[2]), min(float(size[1]), box[3])
    return [x0, y0, x1, y1] if x1 > x0 and y1 > y0 else None


def region_row(
    picture: Any,
    size: tuple[int, int],
    box: list[float],
    text: str,
    image_id: str,
    how: str,
    margin: float,
    prompt: str,
) -> dict:
    """
    The row of one part, with `cut`, the pixels x0, y0, x1, y1 that `cut_out` is to leave (None: all). box: clipped, in pixels of a
    picture of `size` (width, height); text: what is to be said of it; prompt: as region_prompt gives it.
    """
    cut = None
    if how == "crop":
        wide, high = margin * (box[2] - box[0]), margin * (box[3] - box[1])
        grown = clipped([box[0] - wide, box[1] - high, box[2] + wide, box[3] + high], size)
        cut = [*map(math.floor, grown[:2]), *map(math.ceil, grown[2:])]
        box = [box[0] - cut[0], box[1] - cut[1], box[2] - cut[0], box[3] - cut[1]]
    else:
        places = ", ".join(f"{place / side:.2f}" for place, side in zip(box, size * 2, strict=True))
        prompt = prompt.replace(BOX, f"[{places}]")
    return {
        "images": [picture],
        **turns(prompt, text),
        "references": [text],
        "image_id": image_id,
        "regions": [{"box": box, "phrase": text}],
        "cut": cut,
    }


def region_rows(
    rows: Dataset | IterableDataset,
    how: str = "box",
    margin: float = 0.1,
    prompt: str | None = None,
    where: str = "regions",
) -> Dataset | IterableDataset:
    """
    A row for each region of rows with one picture each, one row a picture, in their order; its image_id is the picture's, a hyphen
    and which of its regions it is, from 0. margin: how much is cut out around a box, as a share of its sides. where: what the log
    calls the rows. Raises ValueError as region_prompt does; for a negative margin; for rows that have not one picture each; and
    where no region is left of rows that are not streamed.
    """
    prompt = region_prompt(how, prompt)
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, a share of a box's sides; got {margin}")
    streamed = isinstance(rows, IterableDataset)
    empty: list[str] = []
    unreadable: list[str] = []

    def expand(batch: dict[str, list]) -> dict[str, list]:
        made = []
        for images, regions, image_id in zip(batch["images"], batch["regions"], batch["image_id"], strict=True):
            if not regions:
                continue
            if len(images) != 1:
                raise ValueError(f"{where}: row {image_id} has {len(images)} pictures; regions are of one")
            try:
                size = upright_size(images[0])
            except UnreadablePicture as problem:
                unreadable.append(str(problem))
                continue
            for number, region in enumerate(regions):
                name, box = f"{image_id}-{number}", clipped(region["box"], size)
                if box is None:
                    empty.append(name)
                else:
                    made.append(region_row(images[0], size, box, region["phrase"].strip(), name, how, margin, prompt))
        if streamed:
            say()
        return {name: [row[name] for row in made] for name in CUT_FEATURES}

    def say() -> None:
        report(where, "regions without area in their picture left out", empty)
        report(where, "pictures left out with their regions", unreadable)
        empty.clear(), unreadable.clear()

    # a stream's first row is not to wait for a thousand pictures
    made = rows.select_columns(["images", "regions", "image_id"]).map(
        expand, batched=True, batch_size=16 if streamed else 1000, remove_columns=["images", "regions", "image_id"],
        features=CUT_FEATURES,
    )  # fmt: skip
    if not streamed:
        say()
        if not len(made):
            raise ValueError(f"{where}: none of {len(rows)} rows has a region in its picture; the column is `regions`")
    return cut_out(made)


def cut_out(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Rows with CUT_FEATURES as canonical rows, whose pictures are cut as each row is asked for; PNG bytes, then."""
    if isinstance(rows, IterableDataset):
        canonical = Features({name: kind for name, kind in CUT_FEATURES.items() if name != "cut"})
        return rows.map(_cut_row, remove_columns=["cut"], features=canonical)
    if all(cut is None for batch in rows.select_columns("cut").iter(10_000) for cut in batch["cut"]):
        return rows.remove_columns("cut")

    def read(batch: dict[str, list]) -> dict[str, list]:
        if "images" not in batch:
            return batch
        if "cut" not in batch:
            raise ValueError(
                "these rows are cut out of their pictures as they are read: take all columns, or regions: box"
            )
        batch["images"] = [_cut(images, cut) for images, cut in zip(batch["images"], batch.pop("cut"), strict=True)]
        return batch

    return rows.with_transform(read)


def _cut_row(row: dict) -> dict:
    return {"images": _cut(row["images"], row["cut"])}


def _cut(images: list, cut: list[int] | None) -> list:
    if cut is None:
        return images
    try:
        part = open_picture(images[0]).crop(tuple(cut))
    except UnreadablePicture:
        return images  # whoever opens it says so, and skips or counts the row
    file = BytesIO()
    part.save(file, "PNG", compress_level=1)
    return [{"bytes": file.getvalue(), "path": None}]  # the path is another picture's, the whole one's
