"""Pictures as hostile and as odd as they come: what is seen of them, pixel by pixel, or the error that names them."""

import io
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms, ImageFile, ImageOps
from transformers.image_transforms import convert_to_rgb

from datasets_scripts import open_picture as module
from datasets_scripts.open_picture import UnreadablePicture, open_picture


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG by hand. colour: 0 grey, 2 RGB, 3 palette. rows: each begins with its filter, 0."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(rows) if rows else b"")
        + chunk(b"IEND", b"")
    )


def tiff(width: int, bits: int, data: bytes, order: str = "<", photometric: int = 1, sample: int = 1) -> bytes:
    """A grey TIFF of one row by hand. photometric: 0 means that 0 is white; sample: 1 unsigned, 2 signed, 3 float."""
    tags = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 200,
        277: 1,
        278: 1,
        279: len(data),
        339: sample,
    }
    entries = b"".join(struct.pack(f"{order}HHIH2x", tag, 3, 1, value) for tag, value in tags.items())
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return (start + entries + bytes(4)).ljust(200, b"\0") + data


def seen(source) -> tuple[tuple[int, int], bytes]:
    image = open_picture(source)
    assert image.mode == "RGB"
    return image.size, image.tobytes()


def pixels(source) -> list:
    image = open_picture(source)
    assert image.mode == "RGB"
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


def greys(source) -> list[int]:
    found = pixels(source)
    assert all(red == green == blue for red, green, blue in found)
    return [red for red, _, _ in found]


def difference(some, other) -> int:
    return np.abs(np.subtract(some, other, dtype=int)).max()


def row(mode: str, *values) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def photo(width: int = 8, height: int = 6) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))


# ---- what goes in, and what comes out


def test_a_path_bytes_a_row_of_datasets_and_a_pil_picture_give_the_same(tmp_path):
    data = encoded(photo(), "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with Image.open(path) as image:
        plain = image.size, image.convert("RGB").tobytes()
    sources = [
        path,
        str(path),
        data,
        bytearray(data),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
    ]
    for source in [*sources, {"bytes": data, "path": "gone.jpg"}, Image.open(path)]:
        assert seen(source) == plain


def test_the_result_is_a_bare_loaded_picture_of_its_own():
    given = photo()
    result = open_picture(given)
    result.putpixel((0, 0), RED)
    assert type(result) is Image.Image and given.getpixel((0, 0)) == (0, 0, 255)
    told = Image.open(io.BytesIO(encoded(given, "PNG", exif=orientation(6), icc_profile=b"profile")))
    result = open_picture(told)
    assert type(result) is Image.Image and result.info == {} and not dict(result.getexif())
    assert told.info["icc_profile"] == b"profile" and told.size == (8, 6)  # the caller's is as it was, and still open
    told.getpixel((0, 0))


@pytest.mark.parametrize("cut", [0, 40])
def test_files_are_closed_read_or_not(tmp_path, monkeypatch, cut):
    opened = []

    def remember(*args):
        opened.append(open(*args))
        return opened[-1]

    monkeypatch.setattr(module, "open", remember, raising=False)
    data = encoded(photo(), "TIFF")
    (tmp_path / "a.tif").write_bytes(data[: len(data) - cut])
    try:
        open_picture(tmp_path / "a.tif")
    except UnreadablePicture:
        assert cut
    assert [file.closed for file in opened] == [True]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "MPO"])
def test_common_formats_are_read_whatever_their_name_says(tmp_path, kind):
    image = Image.new("RGB", (16, 8), RED)
    (tmp_path / "a.xyz").write_bytes(encoded(image, kind))
    result = open_picture(tmp_path / "a.xyz")
    assert result.size == (16, 8) and difference(result, image) <= 4


# ---- what is no picture


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PDF", "TGA", "PCX", "SGI", "DDS", "ICNS", "JPEG2000"])
def test_other_formats_are_refused_and_no_program_is_started(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("ghostscript was called"))
    (tmp_path / "a.jpg").write_bytes(encoded(Image.new("RGB", (32, 32)), kind))
    with pytest.raises(UnreadablePicture, match=r"a.jpg: is none of JPEG, PNG, .*, AVIF; it begins with b"):
        open_picture(tmp_path / "a.jpg")


def test_what_is_no_picture_is_named_with_what_is_wrong(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    os.mkfifo(tmp_path / "pipe.jpg")
    for source, said in {
        tmp_path / "empty.jpg": "empty.jpg: is empty",
        tmp_path / "gone.jpg": "gone.jpg: No such file or directory",
        tmp_path / "page.jpg": "page.jpg: is none of .* begins with b'<!DOCTYPE html>'",
        tmp_path / "pipe.jpg": "pipe.jpg: is not a file",
        tmp_path: f"{tmp_path.name}: is a folder",
        "https://example.org/a.jpg": "https://example.org/a.jpg: is not on this machine",
        "a\0b.jpg": "a\0b.jpg: embedded null byte",
        b"": "picture of 0 bytes: is empty",
        b"hello": "picture of 5 bytes: is none of",
        None: "no picture: neither bytes nor a path",
    }.items():
        with pytest.raises(UnreadablePicture, match=said) as raised:
            open_picture(source)
        assert isinstance(raised.value, ValueError)
    with pytest.raises(UnreadablePicture, match="no picture"):
        open_picture({"bytes": None, "path": None})
    with pytest.raises(UnreadablePicture, match="^b.jpg: is empty"):
        open_picture({"bytes": b"", "path": "b.jpg"})
    with pytest.raises(UnreadablePicture, match="^picture of 0 x 3 pixels: has 0 x 3 pixels"):
        open_picture(Image.new("RGB", (0, 3)))


def test_a_source_of_another_type_is_a_mistake_in_the_program():
    with pytest.raises(TypeError, match="a picture is a path, bytes, .*; got 5"):
        open_picture(5)


# ---- cut and damaged

KINDS = {
    "jpeg": ("JPEG", {}),
    "progressive_jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless_webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff_lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff_jpeg": ("TIFF", {"compression": "jpeg"}),
    "ppm": ("PPM", {}),
    "avif": ("AVIF", {}),
    "turned_jpeg": ("JPEG", {"exif": True}),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def data(request) -> bytes:
    kind, options = request.param
    return encoded(photo(), kind, **(options | ({"exif": orientation(6)} if "exif" in options else {})))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_cut_anywhere_is_refused_unless_all_pixels_are_there(data):
    whole, read = seen(data), 0
    for length in range(len(data)):
        try:
            assert seen(data[:length]) == whole, length
            read += 1
        except UnreadablePicture:
            pass
    assert read <= 20  # only what follows the pixels can be spared: a PNG's end mark and checksum, at most


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_gives_a_picture_or_the_one_error(data):
    chance = random.Random(0)
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            assert open_picture(damaged).mode == "RGB"
        except UnreadablePicture as error:
            assert str(error).startswith(f"picture of {len(data)} bytes: ")


def test_a_jpeg_whose_rest_was_never_downloaded_is_refused_and_named(tmp_path):
    data = encoded(photo(640, 480), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data[:4000].ljust(len(data), b"\0"))
    with pytest.raises(UnreadablePicture, match="a.jpg: image file is truncated"):
        open_picture(tmp_path / "a.jpg")
    with pytest.raises(UnreadablePicture, match="a.jpg: image file is truncated"):
        open_picture(Image.open(tmp_path / "a.jpg"))


def test_a_program_that_lets_cut_pictures_pass_is_told_so(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES .* set it to False"):
        open_picture(encoded(photo(), "JPEG"))


# ---- depths


def test_the_high_byte_of_16_bits_is_kept():
    values = [0, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF]
    expected = [0, 0, 1, 127, 128, 255]
    big, little = struct.pack(">6H", *values), struct.pack("<6H", *values)
    assert greys(png(6, 1, 16, 0, b"\0" + big)) == expected
    assert greys(tiff(6, 16, little)) == expected
    assert greys(tiff(6, 16, big, order=">")) == expected
    assert greys(b"P5 6 1 65535\n" + big) == expected
    assert greys(b"P5 2 1 1023\n" + struct.pack(">2H", 512, 1023)) == [128, 255]
    for mode in ("I;16", "I;16L", "I;16B"):
        assert greys(row(mode, *values)) == expected
    assert pixels(png(2, 1, 16, 2, b"\0" + big)) == [(0, 0, 1), (127, 128, 255)]


def test_a_dark_16_bit_pgm_stays_dark():
    assert greys(b"P5 2 1 65535\n" + struct.pack(">2H", 200, 255)) == [0, 0]


def test_a_tiff_of_12_bits_is_white_at_4095():
    assert greys(tiff(2, 12, bytes([0x80, 0x0F, 0xFF]))) == [128, 255]


def test_a_16_bit_tiff_whose_0_is_white_is_turned_over():
    assert greys(tiff(3, 16, struct.pack("<3H", 0, 0x8000, 0xFFFF), photometric=0)) == [255, 127, 0]


@pytest.mark.filterwarnings("error")
def test_integers_count_as_8_bits_then_as_16_then_from_least_to_greatest():
    assert greys(row("I", 0, 7, 255)) == [0, 7, 255]
    assert greys(row("I", 0, 255, 0x8000, 0xFFFF)) == [0, 0, 128, 255]
    assert greys(row("I", -100, 0, 100)) == [0, 128, 255]  # 127.5
    assert greys(row("I", 0, 65536)) == [0, 255]
    assert greys(row("I", 70000, 70000)) == [0, 0]
    assert greys(row("I", -(2**31), 2**31 - 1)) == [0, 255]
    assert greys(tiff(3, 16, struct.pack("<3h", -1000, 0, 1000), sample=2)) == [0, 128, 255]


@pytest.mark.filterwarnings("error")
def test_floats_count_as_1_then_as_8_bits_then_as_16_then_from_least_to_greatest():
    assert greys(row("F", 0, 0.5, 1)) == [0, 128, 255]  # 127.5
    assert greys(row("F", 0, 0.6, 100.4, 255)) == [0, 1, 100, 255]
    assert greys(row("F", 0, 0x8000, 0xFFFF)) == [0, 128, 255]
    assert greys(row("F", -3, 0, 3)) == [0, 128, 255]
    assert greys(row("F", -3e38, 3e38)) == [0, 255]
    assert greys(photo().convert("L").convert("F")) == greys(photo().convert("L"))
    assert greys(tiff(2, 32, struct.pack("<2f", 0.25, 1), sample=3)) == [64, 255]


@pytest.mark.filterwarnings("error")
def test_a_float_that_is_no_number_is_the_least_and_infinities_the_ends():
    inf, nan = float("inf"), float("nan")
    assert greys(row("F", nan, 0.2, inf, -inf, 0.4)) == [51, 51, 102, 51, 102]
    assert greys(row("F", nan, -1, 1, inf)) == [0, 0, 255, 255]
    assert greys(row("F", nan, nan)) == [0, 0]


def test_one_bit_and_eight_bit_greys_are_read_in_colour():
    assert greys(encoded(row("1", 0, 1), "PNG")) == [0, 255]
    assert greys(encoded(row("1", 0, 255), "TIFF", compression="group4")) == [0, 255]
    assert greys(encoded(row("L", 0, 77, 255), "BMP")) == [0, 77, 255]
    assert greys(png(3, 1, 2, 0, bytes([0, 0b00_01_11_00]))) == [0, 85, 255]


# ---- colours


def test_a_palette_gives_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert pixels(encoded(image, kind)) == [RED, BLUE], kind


@pytest.mark.parametrize("kind, delta", [("JPEG", 2), ("TIFF", 0)])
def test_the_four_inks_of_print_become_colours(kind, delta):
    """Pillow writes a JPEG's inks upside down, as Photoshop does, with the mark that says so."""
    inks = {(0, 255, 255, 0): RED, (0, 0, 0, 0): WHITE, (0, 0, 0, 255): (0, 0, 0), (255, 255, 0, 0): BLUE}
    for ink, colour in inks.items():
        data = encoded(Image.new("CMYK", (8, 8), ink), kind)
        assert (b"Adobe\0" in data) == (kind == "JPEG")
        assert difference(pixels(data), colour) <= delta


CLEAR = {
    "rgba": encoded(row("RGBA", (9, 8, 7, 0), (200, 0, 0, 128), (*BLUE, 255)), "PNG"),
    "webp": encoded(row("RGBA", (9, 8, 7, 0), (200, 0, 0, 128), (*BLUE, 255)), "WEBP", lossless=True),
    "palette": png(
        *(3, 1, 8, 3, bytes([0, 0, 1, 2])),
        *(chunk(b"PLTE", bytes([9, 8, 7, 200, 0, 0, *BLUE])), chunk(b"tRNS", bytes([0, 128]))),
    ),
}


@pytest.mark.parametrize("data", CLEAR.values(), ids=CLEAR)
def test_transparency_lies_on_white_as_transformers_has_it(data):
    # 200 * 128/255 + 255 * 127/255 = 227.4; 255 * 127/255 = 127
    assert pixels(data) == [WHITE, (227, 127, 127), BLUE]
    theirs = convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
    assert np.array_equal(theirs, open_picture(data))


def test_every_kind_of_transparency_lies_on_white():
    assert greys(encoded(row("LA", (0, 0), (0, 128), (77, 255)), "PNG")) == [255, 127, 77]
    assert pixels(row("La", (0, 0), (77, 255))) == [WHITE, (77, 77, 77)]
    assert pixels(row("RGBa", (0, 0, 0, 0), (100, 0, 0, 128))) == [WHITE, (227, 127, 127)]  # 100 of 128 is 199 of 255
    gif = row("P", 0, 1)
    gif.putpalette([0, 0, 0, *BLUE])
    assert pixels(encoded(gif, "GIF", transparency=0)) == [WHITE, BLUE]
    assert pixels(encoded(row("RGB", RED, BLUE), "PNG", transparency=RED)) == [WHITE, BLUE]
    assert greys(encoded(row("L", 0, 9), "PNG", transparency=0)) == [255, 9]


def test_a_transparent_value_is_compared_at_the_depth_of_the_file():
    grey = struct.pack(">3H", 0x8000, 0x8001, 0)
    assert greys(png(3, 1, 16, 0, b"\0" + grey, chunk(b"tRNS", b"\x80\0"))) == [255, 128, 0]
    assert greys(png(3, 1, 2, 0, bytes([0, 0b00_01_10_00]), chunk(b"tRNS", b"\0\1"))) == [0, 255, 170]
    assert greys(png(2, 1, 4, 0, bytes([0, 0x2F]), chunk(b"tRNS", b"\0\2"))) == [255, 255]
    assert greys(png(2, 1, 4, 0, bytes([0, 0x2E]), chunk(b"tRNS", b"\0\2"))) == [255, 238]
    colours = struct.pack(">6H", 0x8000, 0, 0, 0, 0, 0)
    assert pixels(png(2, 1, 16, 2, b"\0" + colours, chunk(b"tRNS", struct.pack(">3H", 0x8000, 0, 0)))) == [
        WHITE,
        (0,) * 3,
    ]


def test_colour_profiles_are_ignored():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("JPEG", "PNG"):
        for icc_profile in (profile, b"no profile"):
            assert seen(encoded(photo(), kind, icc_profile=icc_profile)) == seen(encoded(photo(), kind))


# ---- animations


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_the_first_of_several_frames_is_seen(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, WHITE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert difference(pixels(data), RED) <= 4


def test_of_a_pil_picture_the_frame_it_is_at_is_seen():
    image = Image.open(io.BytesIO(encoded(row("RGB", RED), "TIFF", save_all=True, append_images=[row("RGB", BLUE)])))
    image.seek(1)
    assert pixels(image) == [BLUE]


# ---- upright


def orientation(value) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


# orientation: size, and where the red pixel goes that is stored in the top left corner of a picture 3 wide, 2 high
CORNERS = {
    1: ((3, 2), (0, 0)),
    2: ((3, 2), (2, 0)),
    3: ((3, 2), (2, 1)),
    4: ((3, 2), (0, 1)),
    5: ((2, 3), (0, 0)),
    6: ((2, 3), (1, 0)),
    7: ((2, 3), (1, 2)),
    8: ((2, 3), (0, 2)),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("value", CORNERS)
def test_a_picture_is_turned_upright_once(value, kind):
    image = Image.new("RGB", (3, 2), BLUE)
    image.putpixel((0, 0), RED)
    data = encoded(image, kind, exif=orientation(value), **({"lossless": True} if kind == "WEBP" else {}))
    size, corner = CORNERS[value]
    for source in (data, Image.open(io.BytesIO(data)), open_picture(data)):
        result = open_picture(source)
        assert result.size == size
        assert [(x, y) for x in range(size[0]) for y in range(size[1]) if result.getpixel((x, y)) == RED] == [corner]
        assert ImageOps.exif_transpose(result) == result


def test_photographs_and_deep_greys_are_turned_as_well():
    image = Image.new("RGB", (32, 16), BLUE)
    image.paste(RED, (0, 0, 16, 8))
    for kind in ("JPEG", "MPO", "AVIF"):
        result = open_picture(encoded(image, kind, exif=orientation(6)))
        assert result.size == (16, 32), kind
        assert difference(result.getpixel((12, 4)), RED) < 60 and difference(result.getpixel((3, 28)), BLUE) < 60
    assert open_picture(encoded(row("I;16", 0, 0x8000), "PNG", exif=orientation(6))).size == (1, 2)


BROKEN_EXIF = {
    "noise": b"\xff" * 30,
    "empty": b"",
    "only_its_name": b"Exif\0\0",
    "cut": orientation(6).tobytes()[:18],
    "points_outside": b"Exif\0\0MM\0*\xff\xff\xff\xf0",
    "orientation_9": orientation(9).tobytes(),
    "orientation_0": orientation(0).tobytes(),
    "orientation_text": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says what it finds
@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_a_broken_exif_block_leaves_the_picture_as_it_is_stored(block):
    for kind in ("JPEG", "PNG", "WEBP"):
        assert seen(encoded(photo(), kind, exif=block)) == seen(encoded(photo(), kind)), kind


# ---- sizes


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_pictures_of_one_pixel_and_of_twenty_thousand_are_read_whole(size):
    for kind in ("JPEG", "PNG", "TIFF"):
        assert open_picture(encoded(Image.new("RGB", size), kind)).size == size


def gif_bomb() -> bytes:
    data = bytearray(encoded(row("L", 0), "GIF"))
    data[6:10] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


BOMBS = {
    "png": png(60_000, 60_000, 8, 2, b""),
    "gif": gif_bomb(),
    "pgm": b"P5 60000 60000 255\n",
    "tiff": tiff(60_000, 8, b"").replace(struct.pack("<HHIH", 257, 3, 1, 1), struct.pack("<HHIH", 257, 3, 1, 60_000)),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("pillows_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_a_bomb_is_refused_by_its_header_whatever_pillow_is_told(monkeypatch, bomb, pillows_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    monkeypatch.setattr(Image.core, "new", lambda *args: pytest.fail("memory was asked for"))
    monkeypatch.setattr(Image.core, "fill", lambda *args: pytest.fail("memory was asked for"))
    with pytest.raises(UnreadablePicture, match=r"60000 x 60000 = 3,600,000,000 pixels; more than 178,956,970"):
        open_picture(bomb)


def test_the_limit_is_exact_and_below_it_nothing_is_said(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 48)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24)  # Pillow warns from 25, and refuses from 49
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"):
            assert open_picture(encoded(photo(8, 6), kind)).size == (8, 6)
    for source in (encoded(photo(7, 7), "JPEG"), photo(7, 7)):
        with pytest.raises(UnreadablePicture, match="has 7 x 7 = 49 pixels; more than 48 are not read"):
            open_picture(source)


@pytest.mark.parametrize("kind, head", [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")])
def test_a_text_that_unpacks_to_megabytes_is_refused(kind, head):
    bomb = png(1, 1, 8, 0, b"\0\0", chunk(kind, head + zlib.compress(bytes(20_000_000))))
    assert len(bomb) < 25_000
    with pytest.raises(UnreadablePicture, match="cannot be read as PNG: Decompressed data too large"):
        open_picture(bomb)
