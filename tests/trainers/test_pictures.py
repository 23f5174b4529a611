"""Pictures of a run, looked at pixel by pixel: where things are, in which colour, and that no word is lost."""

import math
import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from trainers import pictures
from trainers.pictures import COLOURS, INK, MARGIN, contact_sheet, loss_plot


RED, BLUE = (255, 0, 0), (0, 0, 255)
NASTY = [
    "",
    " \n\t ",
    "\x00\x1b\x7f",
    "half \ud83d a pair",
    "\u202eright\u202c",
    "e\u0301",
    "👩‍👩‍👧",
    "中文" * 40,
    "नमस्ते",
    "\u2028x",
    "\uffff",
]


@pytest.fixture
def drawn(monkeypatch) -> list[tuple]:
    """(x0, y0, x1, y1, text, colour) of every text that is drawn."""
    seen = []
    original = ImageDraw.ImageDraw.text

    def text(self, at, words, fill, font):
        seen.append((*self.textbbox(at, words, font), words, fill))
        original(self, at, words, fill, font)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


def sheet(tmp_path, images, captions, **kwargs) -> Image.Image:
    contact_sheet(images, captions, tmp_path / "sheet.png", **kwargs)
    return Image.open(tmp_path / "sheet.png")


def flat(width: int, height: int, colour=RED) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def box_of(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The box around all pixels of exactly this colour."""
    mask = Image.new("1", image.size)
    mask.putdata([pixel == colour for pixel in image.getdata()])
    return mask.getbbox()


def test_the_longer_side_is_the_thumb_and_the_aspect_is_kept(tmp_path):
    wide = sheet(tmp_path, [flat(400, 100)], [[]], thumb=64)
    assert box_of(wide, RED) == (MARGIN, MARGIN + 24, MARGIN + 64, MARGIN + 40)
    tall = sheet(tmp_path, [flat(10, 20)], [[]], thumb=64)
    assert box_of(tall, RED) == (MARGIN + 16, MARGIN, MARGIN + 48, MARGIN + 64)


def test_pixels_of_a_tiny_picture_stay_sharp_and_even(tmp_path):
    tiny = flat(2, 1)
    tiny.putpixel((1, 0), BLUE)
    image = sheet(tmp_path, [tiny], [[]], thumb=64)
    assert box_of(image, RED) == (MARGIN, MARGIN + 16, MARGIN + 32, MARGIN + 48)
    assert box_of(image, BLUE) == (MARGIN + 32, MARGIN + 16, MARGIN + 64, MARGIN + 48)


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_a_large_picture_is_smoothed(tmp_path, mode):
    stripes = flat(128, 128)
    stripes.paste(BLUE, (63, 0, 128, 128))
    image = sheet(tmp_path, [stripes.convert(mode)], [[]], thumb=256)
    assert image.getpixel((MARGIN + 126, MARGIN + 20)) not in (RED, BLUE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_a_picture_of_any_mode_is_shown(tmp_path, mode):
    sheet(tmp_path, [Image.new(mode, (8, 8))], [[("predicted", "x")]])


def test_cells_are_of_one_size_on_a_grid(tmp_path):
    colours = [(i * 40, 0, 255) for i in range(5)]
    lines = [[("predicted", "word " * i * 5)] for i in range(5)]
    image = sheet(tmp_path, [flat(8, 8, colour) for colour in colours], lines, columns=2, thumb=64)
    corners = [box_of(image, colour)[:2] for colour in colours]
    height = corners[2][1] - corners[0][1]
    assert corners == [(MARGIN + i % 2 * (64 + MARGIN), MARGIN + i // 2 * height) for i in range(5)]
    assert image.size == (MARGIN + 2 * (64 + MARGIN), MARGIN + 3 * height)


def test_fewer_pictures_than_columns_leave_no_empty_columns(tmp_path):
    assert sheet(tmp_path, [flat(8, 8)], [[]], columns=4, thumb=64).width == 64 + 2 * MARGIN


def test_labels_have_their_own_colours_and_the_text_another(tmp_path, drawn):
    lines = [("predicted", "a cat"), ("reference", "a dog")]
    sheet(tmp_path, [flat(8, 8)] * 2, [lines, lines[::-1]])
    colours = {(words, colour) for *_, words, colour in drawn}
    assert colours == {("predicted", COLOURS[0]), ("reference", COLOURS[1]), ("a cat", INK), ("a dog", INK)}


def test_every_word_is_there_inside_its_cell_and_over_no_other(tmp_path, drawn):
    said = ["", "a  small\nred circle", "word " * 40, "unbroken" * 20, "jgpqy|ÅÉ" * 12]
    lines = [[("predicted", text), ("a label as wide as its line", text), ("reference", text)] for text in said]
    image = sheet(tmp_path, [flat(8, 8, BLUE)] * 5, lines, columns=3, thumb=128)
    pitch, rows = 128 + MARGIN, (image.height - MARGIN) // 2
    words = [(*box, text) for *box, text, colour in drawn if colour == INK and text]
    assert "".join(text.replace(" ", "") for *_, text in words) == "".join("".join(text.split()) * 3 for text in said)
    boxes = [tuple(box) for *box, text, _ in drawn if text]
    for x0, y0, x1, y1 in boxes:
        # a pixel of grace: a j reaches to the left of where it stands
        cell_x, cell_y = MARGIN + (x0 + 1 - MARGIN) // pitch * pitch, MARGIN + (y0 - MARGIN) // rows * rows
        assert cell_x - 1 <= x0 and x1 <= cell_x + 128 + 1
        assert cell_y + 128 <= y0 and y1 <= cell_y + rows
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        assert not any(x0 < u1 and u0 < x1 and y0 < v1 and v0 < y1 for u0, v0, u1, v1 in boxes[:i])


def test_any_string_can_be_drawn(tmp_path):
    sheet(tmp_path, [flat(8, 8)] * len(NASTY), [[("predicted", text), (text, "x")] for text in NASTY])


def test_what_has_no_shape_is_shown_to_be_there(tmp_path, drawn):
    sheet(tmp_path, [flat(8, 8)], [[("predicted", "a\x00b half \ud83d pair")]])
    assert [words for *_, words, _ in drawn] == ["predicted", "a\ufffdb half \ufffd pair"]


def test_letters_beyond_ascii_are_not_boxes():
    font = pictures._font(14)
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in "éñßжΩ—“’…→א")


def test_lists_of_other_lengths_are_refused(tmp_path):
    for images, captions in (([], []), ([flat(8, 8)], [])):
        with pytest.raises(ValueError, match=f"got {len(images)} images, 0 lists"):
            contact_sheet(images, captions, tmp_path / "sheet.png")


def test_a_write_that_dies_leaves_the_old_picture(tmp_path, monkeypatch):
    def dies(self, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    contact_sheet([flat(8, 8)], [[]], tmp_path / "sheets" / "sheet.png")
    old = (tmp_path / "sheets" / "sheet.png").read_bytes()
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["sheet.png"]
    monkeypatch.setattr(Image.Image, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        contact_sheet([flat(8, 8)], [[]], tmp_path / "sheets" / "sheet.png")
    assert (tmp_path / "sheets" / "sheet.png").read_bytes() == old


LOG = [
    {
        "loss": 2.0,
        "caption_loss": 1.5,
        "align_loss": 0.5,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "epoch": 0.5,
        "step": 10,
    },
    {
        "eval_cider": 0.5,
        "eval_loss": 1.8,
        "eval_runtime": 3.0,
        "eval_samples_per_second": 9.0,
        "epoch": 0.5,
        "step": 10,
    },
    {"loss": math.nan, "caption_loss": 1.0, "align_loss": 0.4, "learning_rate": 5e-4, "epoch": 1.0, "step": 20},
    {"train_loss": 1.7, "train_runtime": 9.0, "epoch": 1.0, "step": 20},
]


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    seen = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), original(self, *a, **k)))
    return seen


def test_losses_metrics_and_learning_rate_have_their_own_panels(tmp_path, figures):
    loss_plot(LOG, tmp_path / "loss.png")
    panels = {a.get_ylabel(): {line.get_label() for line in a.lines} for a in figures[0].axes}
    assert panels == {
        "loss": {"loss (1 not finite)", "caption_loss", "align_loss", "eval_loss"},
        "evaluation": {"cider"},
        "learning rate": {"learning_rate"},
    }
    (curve,) = [line for line in figures[0].axes[0].lines if line.get_label() == "caption_loss"]
    assert curve.get_xydata().tolist() == [[10, 1.5], [20, 1.0]]
    heights = [axis.get_position().height for axis in figures[0].axes]
    assert heights[2] < heights[0] / 2
    assert Image.open(tmp_path / "loss.png").width == 1200
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_a_log_without_evaluations_or_without_anything_is_still_a_picture(tmp_path, figures):
    loss_plot([{"loss": 2.0, "step": 10}], tmp_path / "loss.png")
    assert [axis.get_ylabel() for axis in figures[0].axes] == ["loss"]
    loss_plot([], tmp_path / "loss.png")
    assert figures[1].texts[0].get_text() == "no losses were logged"


def test_the_state_of_pyplot_is_not_touched(tmp_path):
    code = "import sys\nfrom trainers.pictures import loss_plot\nassert 'matplotlib' not in sys.modules\n"
    code += f"loss_plot({LOG[:2]}, sys.argv[1])\nassert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "loss.png")], check=True)
