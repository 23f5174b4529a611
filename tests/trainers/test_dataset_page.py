"""The page: whole HTML, nothing from elsewhere, and whatever the data say is shown and never obeyed."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.trainers.test_dataset_report import png, read, shown, sound
from tests.trainers.test_dataset_statistics import encoded, scene
from trainers.dataset_page import THUMB, in_bytes, in_digits, page, rows_shown, thumbnail
from trainers.dataset_report import describe


EVIL = "<script>alert('x')</script> \"><img src=http://evil.example/x onerror=alert(1)> {{ 7 * 7 }} {% raw %} $x^2$ & \x00\x1b"
VOID = {"meta", "img", "br", "path", "use", "rect", "stop"}


class Reader(HTMLParser):
    """Every tag with its attributes, and what is read as text; fails where a tag is closed that is not the last opened."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):  # only SVG closes a tag by itself
        assert "svg" in self.open
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text += data


def made(train: list[dict], test: list[dict], dataset: str = "pictures") -> tuple[dict, str]:
    splits = [read("train", train), read("test", test)]
    figures = {"dataset": {"dataset": dataset, "data_dir": None, "rows": "image", "seed": 0}, **describe(splits)}
    rows = {"train": train, "test": test}
    needed = {name: {number: rows[name][number] for number in numbers} for name, numbers in rows_shown(figures).items()}
    return figures, page(figures, needed)


@pytest.fixture(scope="module")
def told() -> tuple[dict, str]:
    box = [{"box": [10, 10, 60, 60], "phrase": EVIL}]
    train = [shown(scene(i, (320 + i, 240)), f"caption {i}", name=f"t{i}") for i in range(6)]
    train += [
        shown(scene(6), EVIL, EVIL, "\u202eback", name=EVIL, prompt=EVIL, regions=box),
        shown(scene(6), EVIL, name=EVIL),
    ]
    train += [shown({"bytes": b"no picture", "path": EVIL}, EVIL, name=EVIL), shown(None, "of nothing")]
    again = {"bytes": png(scene(3, (323, 240)))["bytes"] + b" ", "path": "again.png"}
    train += [shown(again, "again")]
    test = [
        shown(scene(0), EVIL, prompt=EVIL, name=EVIL),
        shown(encoded(scene(1, (321, 240)), 50), "m"),
        shown(scene(6), "x", name=EVIL),
    ]
    return made(train, test, EVIL)


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(told):
    _, text = told
    read = Reader(text)
    assert text.startswith("<!doctype html>")
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href", "action", "data"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/", "#")), (tag, attributes[name][:80])
        assert "url(http" not in attributes.get("style", "")
    anchors = {attributes["href"][1:] for tag, attributes in read.tags if tag == "a"}
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert anchors <= set(ids) and "sample" in anchors
    policy = [attributes for tag, attributes in read.tags if tag == "meta" and "http-equiv" in attributes]
    assert policy[0]["content"].startswith("default-src 'none'; img-src data:")
    # the one place where an address stands is where the data have it, as text
    assert not re.search(r"https?://(?!evil\.example)", text)


def test_what_the_data_say_is_shown_as_it_stands(told):
    _, text = told
    seen = Reader(text).text
    assert "<script>alert('x')</script> \"><img src=http://evil.example/x onerror=alert(1)>" in seen
    assert "{{ 7 * 7 }} {% raw %} $x^2$ &" in seen and "49" not in re.findall(r"onerror=alert\(1\)> (\S+)", seen)
    assert "\x00" not in text and "\x1b" not in text and "\ufffd\ufffd" in seen
    assert "What is in <script>" in seen  # the name of the dataset too
    assert "is none of JPEG" in seen  # why a picture cannot be read


def test_warnings_and_leaks_are_on_the_page_with_their_pictures_side_by_side(told):
    figures, text = told
    read = Reader(text)
    for warning in figures["warnings"]:
        assert warning in read.text
    assert len(figures["warnings"]) == 4
    assert read.text.index("To know before training") < read.text.index("Captions said more than once")
    # three leaks (two the same, one nearly), two pictures each; a copy within train; the sample; and the strip on top
    leak = figures["leakage"][0]
    assert (leak["same"], leak["alike"]) == (2, 1)
    pairs, copies, sheets, strip = 3, 1, 9 + 3, 9
    assert sum(tag == "img" for tag, _ in read.tags) == 2 * pairs + 2 * copies + sheets + strip
    assert text.count('<div class="gone">cannot be read</div>') == 1
    # a leak's two pictures stand in one box, train's first
    box = text[text.index('<div class="pairs">') :]
    first = box[: box.index("</div>")]
    assert first.count("<img") == 2 and first.index("train, row 0") < first.index("test, row 0")


def test_a_plot_has_the_colour_of_the_text_and_names_that_the_page_does_not_have_twice(told):
    _, text = told
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert (
        len(plots) == 4
    )  # words, sizes, megapixels, aspect; one picture has a region, of which there is nothing to draw
    assert all("currentColor" in plot and "#123456" not in plot and "<metadata" not in plot for plot in plots)
    ids = re.findall(r'id="(figure_1|axes_1|patch_1)"', text)
    assert not ids


def test_nothing_to_warn_of_is_said_where_there_is_nothing():
    rows = [shown(scene(i), f"caption {i}") for i in range(4)]
    figures, text = made(rows[:2], rows[2:])
    assert figures["warnings"] == [] and "Nothing to warn of." in text and "To know before" not in text
    pytest.importorskip("soundfile")
    with_sounds = [{"audio": sound(np.ones(8) * 0.1 * i), "text": f"sound {i}"} for i in (1, 2)]
    figures, text = made(with_sounds[:1], with_sounds[1:])
    assert Reader(text).text.count("sound 1") and "image/png" in text


def test_the_page_stays_small_however_much_there_is_to_show():
    """Noise is what JPEG makes most of."""
    noise = [png(Image.merge("RGB", [Image.effect_noise((240, 240), 90)] * 3)) for _ in range(8)]
    rows = [shown(noise[i % 8], *[f"word{i} " * 100] * 9) for i in range(60)]
    figures, text = made(rows, rows)
    assert figures["duplicates"]["within"]["train"]["copies"] == 0  # the same bytes: shown by many rows, counted once
    assert len(text) < 4_000_000
    assert len(figures["splits"]["train"]["sheet"]) == 24
    assert "… (" in text and " characters)" in text and "4 more captions" in text


def test_a_thumbnail_keeps_its_shape_and_shows_its_regions():
    box = [{"box": [160.0, 60.0, 310.0, 230.0], "phrase": "dog"}]
    plain = Image.new("RGB", (320, 240), "white")
    one = thumbnail(plain, box, {"dog": "#ff0000"})
    assert (one["width"], one["height"], one["small"]) == (THUMB, THUMB * 3 // 4, False)
    drawn = Image.open(BytesIO(base64.b64decode(one["url"].split(",")[1]))).convert("RGB")
    red, green, _ = drawn.getpixel((160 * THUMB // 320, 100))
    assert red > 180 and green < 120
    assert min(drawn.getpixel((20, 20))) > 240
    small = thumbnail(Image.new("RGB", (20, 10)))
    assert (small["width"], small["height"], small["small"]) == (20, 10, True)
    assert thumbnail(Image.new("RGB", (20, 10)), box, {"dog": "#ff0000"})["width"] > 200
    assert thumbnail({"bytes": b"", "path": None}) is None


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (1234567, "1,234,567"),
        (0.12345, "0.123"),
        (4.0, "4"),
        (1234.5, "1,234"),
        (None, "–"),
        (0, "0"),
        (0.000912, "0.000912"),
    ],
)
def test_numbers_are_written_to_be_read(number, written):
    assert in_digits(number) == written


def test_bytes_are_written_in_their_unit():
    assert [in_bytes(number) for number in (12, 1500, 2.5e6, 3.1e9, 7e13)] == [
        "12 bytes",
        "1.5 kB",
        "2.5 MB",
        "3.1 GB",
        "70.0 TB",
    ]
