"""
Pictures of a run: what the model says under each picture, and how the losses fell.

Unusual: text is drawn with the DejaVu Sans that matplotlib carries: it is on every machine and writes é and ж, which
Pillow's own font does not. No caption is ever cut: the longest one decides how tall every cell is.
"""

import math
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainers.run_folder import write_whole


MARGIN = 20  # between cells and around them
INK, PAPER, SHADE = "#24292f", "#ffffff", "#f3f4f6"
COLOURS = ("#0969da", "#1a7f37", "#bc4c00", "#8250df", "#bf3989", "#57606a")  # a label each, in order of appearance


def contact_sheet(
    images: list[Image.Image],
    captions: list[list[tuple[str, str]]],
    path: str | Path,
    columns: int = 4,
    thumb: int = 224,
) -> None:
    """
    Write a PNG of all images in a grid, each at most `thumb` pixels a side, over its lines of (label, text). A label is
    a word or two. Raises ValueError if there is no image, or not a list of lines for each.
    """
    if not images or len(images) != len(captions):
        raise ValueError(
            f"one list of lines an image, and at least one: got {len(images)} images, {len(captions)} lists"
        )
    font = _font(max(10, round(thumb / 16)))
    leading = round(1.4 * font.size)
    texts = [_wrapped(lines, font, thumb) for lines in captions]
    labels = list(dict.fromkeys(label for lines in captions for label, _ in lines))
    columns = min(columns, len(images))
    width, height = thumb + MARGIN, thumb + MARGIN // 3 + leading * max(map(len, texts)) + MARGIN
    canvas = Image.new("RGB", (MARGIN + columns * width, MARGIN + math.ceil(len(images) / columns) * height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = MARGIN + i % columns * width, MARGIN + i // columns * height
        small = _fitted(image, thumb)
        draw.rectangle((x, y, x + thumb - 1, y + thumb - 1), SHADE)  # a frame, so that wide and tall pictures line up
        canvas.paste(small, (x + (thumb - small.width) // 2, y + (thumb - small.height) // 2))
        for n, (label, indent, words) in enumerate(text):
            at = x, y + thumb + MARGIN // 3 + n * leading
            if indent:
                draw.text(at, _clean(label), COLOURS[labels.index(label) % len(COLOURS)], font)
            draw.text((x + indent, at[1]), words, INK, font)
    write_whole(path, lambda temporary: canvas.save(temporary, "PNG"))


def loss_plot(log: list[dict], path: str | Path) -> None:
    """
    Write a PNG of a Trainer's `log_history`: every loss; of preferences, how many pairs are right and alpha; every other `eval_…`
    figure; the learning rate below. A value that is not finite cannot be drawn and is counted in the legend.
    """
    from matplotlib.figure import Figure  # a Figure of its own, not pyplot: no state that a notebook shares

    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in log:
        for name, value in entry.items():
            if "step" in entry and isinstance(value, (int, float)) and not name.startswith("train_"):
                curves.setdefault(name, []).append((entry["step"], value))
    speeds = ("_runtime", "_per_second", "_time")
    metrics = [n for n in curves if n.startswith("eval_") and not n.endswith(("loss", *speeds))]
    panels = {
        "loss": [n for n in curves if n.endswith("loss")],
        "preference": [n for n in curves if n in ("rewards/accuracies", "alpha")],
        "evaluation": metrics,
        "learning rate": [n for n in curves if n == "learning_rate"],
    }
    panels = {title: names for title, names in panels.items() if names}
    ratios = [1 if title == "learning rate" else 3 for title in panels] or [1]
    figure = Figure(figsize=(8, 1 + sum(ratios)), layout="constrained")
    if not panels:
        figure.text(0.5, 0.5, "no losses were logged", ha="center", va="center")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0] if panels else []
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            steps, values = zip(*curves[name], strict=True)
            lost = sum(not math.isfinite(value) for value in values)
            label = name.removeprefix("eval_") if names is metrics else name
            style = "--" if names is not metrics and name.startswith("eval_") else "-"
            marker = "o" if len(values) < 30 else ""
            shown = [value if math.isfinite(value) else math.nan for value in values]
            label += f" ({lost} not finite)" if lost else ""
            axis.plot(steps, shown, style, marker=marker, markersize=3, linewidth=1.5, label=label)
        axis.set_ylabel(title)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if title != "learning rate":
            axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves, never on them
    if panels:
        axes[-1].set_xlabel("step")
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # not needed to import this module

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _fitted(image: Image.Image, thumb: int) -> Image.Image:
    """The picture, aspect kept, its longer side `thumb` pixels."""
    image = image.convert("RGB")
    scale = thumb / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    if max(image.size) >= 128:
        return image.resize(size, Image.Resampling.LANCZOS)
    # by a whole number first: pixels of uneven size would look like a fault of the drawing
    whole = math.ceil(scale)
    return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST).resize(
        size, Image.Resampling.BOX
    )


def _clean(text: str) -> str:
    """One line of what can be drawn: models also write control characters and halves of surrogate pairs."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs", "Cn") else c
        for c in " ".join(text.split())
    )


def _wrapped(lines: list[tuple[str, str]], font: ImageFont.FreeTypeFont, width: int) -> list[tuple[str, int, str]]:
    """
    Lines of (label, indent, words) that fit into `width` pixels; a label stands on its first line, where there is an
    indent. Words wider than a line are broken, wherever they must be.
    """
    out = []
    for label, text in lines:
        indent = math.ceil(font.getlength(_clean(label) + "  "))
        line = ""
        for word in _clean(text).split(" "):
            longer = f"{line} {word}" if line else word
            if indent + font.getlength(longer) <= width:
                line = longer
                continue
            if line or (indent and font.getlength(word) <= width):
                out.append((label, indent, line))
                indent, line = 0, ""
            for c in word:
                if (line or indent) and indent + font.getlength(line + c) > width:
                    out.append((label, indent, line))
                    indent, line = 0, ""
                line += c
        out.append((label, indent, line))
    return out
