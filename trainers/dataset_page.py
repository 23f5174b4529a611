"""
The figures of dataset_report.py and the rows that they point to, as one HTML file that needs nothing else.

    figures -> rows_shown -> {split: row numbers}, which are read again -> page(figures, rows) -> HTML

Unusual: what comes from the data is escaped where it enters (jinja2's autoescape), the page has no script, and its own policy lets
none run and nothing load. Plots are SVG in the colour of the page's text: dark on light and light on dark.
"""

import base64
import re
import unicodedata
from collections.abc import Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageDraw

from datasets_scripts.open_picture import UnreadablePicture, open_picture
from trainers.dataset_rows import captions_of, media_of, prompt_of
from trainers.dataset_template import TEMPLATE


THUMB = 224  # pixels of a thumbnail's longer side
COLOURS = ("#2f81f7", "#2da44e", "#e16f24", "#a371f7", "#db61a2", "#768390")  # to be read on white as on black
INK = "#123456"  # stands in a plot for the colour of the page's text
PAIRS, GROUPS, MEMBERS = 48, 8, 6  # shown of all leaks, of duplicates, of a group of them
LISTED = 40  # unreadable files
LONGEST = 400  # characters of a text
CAPTIONS = 5  # of a row
MEDIA = 4  # of a row
REGIONS = 24  # of a picture


def rows_shown(figures: dict) -> dict[str, set[int]]:
    """Split -> numbers of the rows that the page shows."""
    needed = {name: set(split["sheet"]) for name, split in figures["splits"].items()}
    pairs = [pair for leak in _pairs(figures) for pair in leak]
    groups = [group[:MEMBERS] for found in _groups(figures).values() for group in found[:GROUPS]]
    for place in [place for places in pairs + groups for place in places]:
        needed[place["split"]].add(place["row"])
    return needed


def _pairs(figures: dict) -> list[list[list[dict]]]:
    """Of each leak, the pairs that are shown: the same, then those nearly the same."""
    each = max(1, min(PAIRS // 8, PAIRS // max(1, len(figures["leakage"]))))
    return [leak["pairs_same"][:each] + leak["pairs_alike"][:each] for leak in figures["leakage"]]


def _groups(figures: dict) -> dict[str, list[list[dict]]]:
    """The groups that are within a split: those between splits are leaks."""
    return {
        kind: [group for group in figures["duplicates"][kind] if len({place["split"] for place in group}) < len(group)]
        for kind in ("same", "alike")
    }


def page(figures: dict, rows: Mapping[str, Mapping[int, dict]]) -> str:
    """The report. rows: split -> number -> row, of those that rows_shown asks for."""

    def picture(place: dict) -> dict:
        sources = [source for _, source in media_of(rows[place["split"]][place["row"]])]
        return {**place, "shown": thumbnail(sources[place["place"]])}

    def card(split: str, number: int) -> dict:
        row = rows[split][number]
        regions = (row.get("regions") or [])[:REGIONS]
        phrases = list(dict.fromkeys(region["phrase"] for region in regions))
        colours = {phrase: COLOURS[place % len(COLOURS)] for place, phrase in enumerate(phrases)}
        said = captions_of(row, figures["dataset"]["rows"] != "caption")
        media = [
            waveform(source) if kind == "audio" else thumbnail(source, () if place else regions, colours)
            for place, (kind, source) in enumerate(media_of(row))
            if place < MEDIA
        ]
        return {"row": number, "media": media, "told": said, "asked": prompt_of(row), "colours": colours}

    told = figures["dataset"]
    pairs = [[[picture(place) for place in pair] for pair in one] for one in _pairs(figures)]
    groups = {
        kind: {
            "number": len(found),
            "shown": [([picture(place) for place in one[:MEMBERS]], len(one[MEMBERS:])) for one in found[:GROUPS]],
        }
        for kind, found in _groups(figures).items()
    }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=harmless, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": in_bytes, "number": in_digits, "clipped": clipped}
    environment.globals |= {"CAPTIONS": CAPTIONS, "LISTED": LISTED}
    return environment.from_string(TEMPLATE).render(
        figures=figures,
        name=Path(told["data_dir"]).resolve().name if told["data_dir"] else told["dataset"],
        splits=figures["splits"],
        plots=plots(figures),
        leaks=[*zip(figures["leakage"], pairs, strict=True)],
        groups=groups,
        sheets={name: [card(name, number) for number in split["sheet"]] for name, split in figures["splits"].items()},
    )


def harmless(value: Any) -> Any:
    """Text without control characters, of which HTML allows none, but for line ends."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in value)


def clipped(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} … ({len(text):,} characters)"


def in_bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def in_digits(number: float | None) -> str:
    """Whole numbers as they are, others to three digits; nothing as a dash."""
    if number is None:
        return "–"
    whole = isinstance(number, int) or float(number).is_integer() or abs(number) >= 1000
    return f"{number:,.0f}" if whole else f"{number:.3g}"


def _data_url(image: Image.Image, kind: str, **options) -> str:
    file = BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def thumbnail(
    source: Mapping, regions: list[dict] | tuple = (), colours: Mapping[str, str] | None = None
) -> dict | None:
    """{"url", "width", "height", "small"} of a picture, its regions drawn in; None for one that cannot be read."""
    try:
        image = open_picture(source)
    except UnreadablePicture:
        return None
    whole = image.size
    image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    small = max(image.size) < THUMB // 2
    if regions and small:  # or lines would cover what they show
        scale = THUMB // max(image.size)
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for region in regions:
        x0, y0, x1, y1 = (side * image.size[i % 2] / whole[i % 2] for i, side in enumerate(map(float, region["box"])))
        if x0 < x1 and y0 < y1:
            draw.rectangle((x0, y0, x1, y1), outline=colours[region["phrase"]], width=2)
    url = _data_url(image, "JPEG", quality=90 if small else 75, subsampling=0 if small else 2, optimize=True)
    return {"url": url, "width": image.width, "height": image.height, "small": small}


def waveform(source: Mapping) -> dict | None:
    """A sound as a picture of how loud it is over time; None for one that cannot be read."""
    from trainers.contrastive_data import UnreadableSound, open_sound  # brings torch

    try:
        wave, _ = open_sound(source)
    except UnreadableSound:
        return None
    loud = np.abs(wave if wave.ndim == 1 else wave.mean(axis=1))
    width, height = THUMB, THUMB // 3
    edges = np.linspace(0, len(loud), width + 1).astype(int)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for x, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        half = min(1.0, float(loud[start : max(end, start + 1)].max(initial=0))) * (height / 2 - 1)
        draw.line((x, height / 2 - half, x, height / 2 + half), fill=COLOURS[0])
    return {"url": _data_url(image, "PNG", optimize=True), "width": width, "height": height, "small": False}


def plots(figures: dict) -> dict[str, Markup]:
    """Name -> SVG of each histogram that has something to tell, and of pictures' sizes."""
    labels = {
        "words": "words of a caption",
        "megapixels": "megapixels of a picture",
        "aspect": "width over height",
        "regions": "regions of a picture",
        "region_percent": "% of the picture that a region takes",
        "seconds": "seconds of a sound",
    }
    drawn = {
        name: svg(lambda axis, one=one: _steps(axis, one), labels[name], "share in %", name)
        for name, one in figures["histograms"].items()
        if one and len(one["edges"]) > 2
    }
    sizes = {name: split["pictures"]["sizes"] for name, split in figures["splits"].items() if split["pictures"]}
    if len({tuple(size[:2]) for one in sizes.values() for size in one}) > 1:
        drawn["sizes"] = svg(lambda axis: _bubbles(axis, sizes), "width in pixels", "height in pixels", "sizes")
    return drawn


def _steps(axis: Any, one: dict) -> None:
    for place, (name, counts) in enumerate(one["counts"].items()):
        colour, beyond = COLOURS[place % len(COLOURS)], one["beyond"][name]
        shares = np.array(counts) * 100 / max(1, sum(counts) + beyond)
        label = f"{name} (and {beyond:,} beyond)" if beyond else name
        axis.stairs(shares, one["edges"], color=colour, linewidth=1.5, label=label)
        axis.stairs(shares, one["edges"], color=colour, fill=True, alpha=0.5 / len(one["counts"]))
    axis.set_ylim(bottom=0)


def _bubbles(axis: Any, sizes: dict[str, list]) -> None:
    most = max(number for one in sizes.values() for _, _, number in one)
    for place, (name, one) in enumerate(sizes.items()):
        if one:
            widths, heights, numbers = np.array(one).T
            areas = 6 + 160 * numbers / most
            colour = COLOURS[place % len(COLOURS)]
            axis.scatter(widths, heights, areas, color=colour, alpha=0.5, linewidth=0, label=name)
    sides = np.array([side for one in sizes.values() for size in one for side in size[:2]])
    if sides.max() > 20 * sides.min():
        axis.set(xscale="log", yscale="log")


def svg(draw: Any, x: str, y: str, name: str) -> Markup:
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # a Figure of its own, not pyplot: no state that a notebook shares

    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": 9}
    with rc_context({**dict.fromkeys(inks, INK), **settings}):
        figure = Figure(figsize=(5, 2.8), layout="constrained")
        axis = figure.subplots()
        draw(axis)
        axis.set(xlabel=x, ylabel=y)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2, color=INK)
        if len(axis.get_legend_handles_labels()[1]) > 1:
            axis.legend(frameon=False, loc="best", fontsize=8)
        file = StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn).replace("xlink:href", "href")
    drawn = re.sub(r' id="[a-z]+[0-9.]*_[0-9]+"', "", drawn)  # figure_1, axes_1, …: the same in every plot
    return Markup(re.sub(r"<svg ", f'<svg role="img" aria-label="{x}" ', drawn, count=1))
