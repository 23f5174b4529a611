"""
Any picture, from anybody, as a vision-language model should see it: upright, three colours, eight bits, or an error.

    path | {"bytes", "path"} | bytes | PIL picture  ->  header  ->  pixels  ->  8-bit RGB  ->  turned upright

Unusual: nothing is guessed and nothing half done. A cut file is refused, where other loaders leave its rest grey; 16-bit,
integer and float greys are scaled, where Pillow's `convert` clips them to white; sizes are checked before any pixel is
decoded; and only the plug-ins named here can run, never one that calls another program (EPS: ghostscript).

    transparency   on white, as transformers' own `convert_to_rgb` has it, which CLIP's and SigLIP's image processors use;
                   dropping alpha instead would show the colours, often black, that hide beneath it
    16-bit         the high byte, v >> 8 (12-bit TIFF: v >> 4), so that grey and colour files of one picture agree
    mode I, F      8 bits if all is in 0 … 255, else 16 if all is in 0 … 65535, else stretched from least to greatest; F in
                   0 … 1 is taken times 255. NaN counts as the least number, an infinity as the least or greatest.
    animations     the first frame; of files with several pages or pictures, the first
    EXIF           turns the picture; a broken block is passed over. Metadata are dropped: nothing turns it again.
    ICC profiles   ignored, as in the models' training: numbers are taken as sRGB; CMYK is converted as Pillow does
"""

import os
import stat
import warnings
from collections.abc import Mapping
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile


__all__ = ["MAX_PIXELS", "UnreadablePicture", "open_picture", "upright_size"]

# 4 GiB / 24, where Pillow too refuses. At the limit a picture of 8 bits takes 1.5 GB while it is read (Pillow has four bytes
# a pixel, and there are two of them), 2.2 GB if it has to be turned.
MAX_PIXELS = 178_956_970

# an MPO (two photographs, from 3D cameras and phones) is read as the JPEG that it begins with
_PLUGINS = (
    JpegImageFile,
    PngImageFile,
    WebPImageFile,
    GifImageFile,
    BmpImageFile,
    TiffImageFile,
    PpmImageFile,
    AvifImageFile,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_LAID = {_TURNS[number] for number in (5, 6, 7, 8)}  # whose sides change places


class UnreadablePicture(ValueError):
    """Says which picture cannot be read, and why."""


def open_picture(source: str | os.PathLike | bytes | Mapping | Image.Image) -> Image.Image:
    """
    The picture, upright, in mode RGB, loaded, sharing nothing with its source, which is closed unless it is a PIL picture.

    source: a path, the bytes of a file, what `datasets.Image(decode=False)` gives (bytes count before path), or a PIL
    picture (its present frame). Reads JPEG, MPO, PNG, WebP, GIF, BMP, TIFF, PNM and, where Pillow has it, AVIF. Raises
    UnreadablePicture, naming the file, for what is missing, empty, cut, damaged, another format or over MAX_PIXELS;
    TypeError for other sources; RuntimeError where a program has told Pillow to pass over cut files. Safe in threads.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # known to the whole process, so not ours to set back
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES lets cut pictures pass for whole ones; set it to False")
    content, name = source, None
    if isinstance(source, Mapping):
        content, name = source.get("bytes"), source.get("path")
        content = name if content is None else content
    if isinstance(content, (bytes, bytearray)):
        name = name or f"picture of {len(content)} bytes"
    elif isinstance(content, Image.Image):
        name = getattr(content, "filename", None) or f"picture of {content.width} x {content.height} pixels"
    elif isinstance(content, (str, os.PathLike)):
        name = content
    elif content is None:
        raise UnreadablePicture("no picture: neither bytes nor a path")
    else:
        raise TypeError(f"a picture is a path, bytes, a dictionary with either, or a PIL picture; got {source!r:.100}")
    try:
        if isinstance(content, Image.Image):
            return _upright_rgb(content)
        with _opened(content) as file:
            return _upright_rgb(_header(file))
    except Exception as error:
        # hostile bytes make plug-ins raise nearly anything: KeyError, struct.error, zlib.error, AssertionError, …
        raise UnreadablePicture(f"{name}: {_reason(error)}") from error


def upright_size(source: str | os.PathLike | bytes | Mapping | Image.Image) -> tuple[int, int]:
    """(width, height) of a picture as open_picture turns it, by its header alone. Raises UnreadablePicture, naming the file."""
    if isinstance(source, Image.Image):
        return open_picture(source).size
    content, name = (source.get("bytes"), source.get("path")) if isinstance(source, Mapping) else (source, source)
    content = name if content is None else content
    try:
        with _opened(content) as file:
            picture = _header(file)
            turned = _turn(picture) in _LAID and not isinstance(picture, TiffImageFile)  # whose header says it turned
            return picture.size[::-1] if turned else picture.size
    except Exception as error:  # as above
        raise UnreadablePicture(f"{name or 'picture'}: {_reason(error)}") from error


def _opened(content: str | os.PathLike | bytes | bytearray) -> BinaryIO:
    if isinstance(content, (bytes, bytearray)):
        size = len(content)
    elif "://" in os.fspath(content):
        raise ValueError("is not on this machine; download it first")
    else:
        status = os.stat(content)
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would be to wait for ever
            raise ValueError("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a file")
        size = status.st_size
    if not size:
        raise ValueError("is empty")
    return BytesIO(content) if isinstance(content, (bytes, bytearray)) else open(content, "rb")


def _header(file: BinaryIO) -> ImageFile.ImageFile:
    """
    The picture as its header has it, nothing decoded. Not by `Image.open`: over half of MAX_PIXELS it warns, and warnings
    can only be held back for all threads at once. Without a file name Pillow maps nothing into memory either.
    """
    start = file.read(16)
    for plugin in _PLUGINS:
        accepted = Image.OPEN[plugin.format][1](start)
        if isinstance(accepted, str):  # what Pillow was built without
            raise ValueError(accepted)
        if accepted:
            file.seek(0)
            try:
                picture = plugin(file, "")
            except Exception as error:  # as above
                raise ValueError(f"cannot be read as {plugin.format}: {_reason(error)}") from error
            if plugin is PngImageFile:
                _scale_transparent_value(picture)
            return picture
    raise ValueError(f"is none of {', '.join(plugin.format for plugin in _PLUGINS)}; it begins with {start!r}")


def _scale_transparent_value(png: PngImageFile) -> None:
    """Pillow gives pixels in 8 bits, and the value that means transparent in those of the file."""
    value, stored = png.info.get("transparency"), png.tile[0].args if png.tile else None
    if isinstance(value, int) and stored in ("L;2", "L;4"):
        png.info["transparency"] = value * {"L;2": 85, "L;4": 17}[stored]
    elif isinstance(value, tuple) and stored == "RGB;16B":
        png.info["transparency"] = tuple(v >> 8 for v in value)


def _upright_rgb(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"has {width} x {height} = {width * height:,} pixels; more than {MAX_PIXELS:,} are not read")
    if not width * height:
        raise ValueError(f"has {width} x {height} pixels")
    if width * height > MAX_PIXELS // 2:
        with (
            warnings.catch_warnings()
        ):  # TIFF's plug-in warns only now; so large a picture is rare enough to hold it back
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture.load()
    picture.load()
    rgb = _rgb(picture)
    turn = _turn(picture)
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is picture:
        rgb = picture.copy()
    rgb.info = {}
    return rgb


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        # a TIFF has turned itself by now, and says so
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # as above
        return None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return _from_16_bits(picture).convert("RGB")
    if picture.mode in ("I", "F"):
        # PNM says what is white, and Pillow brings it to 65535
        known = picture.format == "PPM" and picture.mode == "I"
        numbers = np.asarray(picture)
        return Image.fromarray((numbers >> 8).astype(np.uint8) if known else _fitted(numbers)).convert("RGB")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode != "RGBA":
        picture = picture.convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture)
    return white


def _from_16_bits(picture: Image.Image) -> Image.Image:
    numbers, tags = np.asarray(picture), getattr(picture, "tag_v2", {})
    grey = (numbers >> (4 if tags.get(258) == (12,) else 8)).astype(np.uint8)  # 258: BitsPerSample
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white, which Pillow sees to up to 8 bits
        grey = 255 - grey
    if "transparency" in picture.info:
        grey[numbers == picture.info["transparency"]] = 255
    return Image.fromarray(grey)


def _fitted(numbers: np.ndarray) -> np.ndarray:
    """8-bit greys of numbers whose white nobody has said: the rule for modes I and F at the top of this file."""
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    start, times, over, half = 0.0, 1.0, 1.0, 0.5
    if numbers.dtype.kind == "f" and 0 <= low and high <= 1:
        times = 255.0
    elif 0 <= low and high <= 65535:
        over, half = (1.0, 0.5) if high <= 255 else (256.0, 0.0)
    else:
        start, times, over = low, 255.0, (high - low) or 1.0
    numbers = np.nan_to_num(numbers.astype(np.float64), nan=low, posinf=high, neginf=low)
    return ((numbers - start) * times / over + half).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # the file is named already
    if isinstance(error, (OSError, SyntaxError, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
