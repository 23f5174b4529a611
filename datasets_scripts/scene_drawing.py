"""
Draws a miniature scene: (Scene, image_size) -> RGB picture.

Unusual: nothing is rasterised per scene. Each (shape, size) is a stencil computed once, in integers, from a formula on a grid
four times finer; drawing pastes flat colour through a stencil. So pixels do not depend on the version of a drawing library,
and a picture takes tens of microseconds. For the same reason `png` writes the file format itself: a library's encoder tries five
filters a row and takes ten times as long as everything else here together.
"""

import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

from datasets_scripts.scene_description import DIAMETER, Scene


RGB = {
    "red": (214, 40, 40), "orange": (247, 140, 20), "yellow": (252, 224, 40),
    "green": (30, 140, 60), "blue": (35, 80, 200), "purple": (130, 50, 160),
}  # fmt: skip
GROUND = {
    "meadow": (168, 205, 140), "beach": (232, 214, 170), "sea": (150, 200, 220),
    "snow": (236, 240, 246), "night": (52, 54, 84),
}  # fmt: skip
OUTLINE = (20, 20, 20)
FINE = 4  # stencil samples per pixel and axis
GROUNDS = 8  # textures per background


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points (u right, v down, both -1..1) lie inside a shape that fills the square."""
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.88
    if shape == "triangle":
        return (v <= 0.9) & (2 * abs(u) <= v + 1)
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) <= 0.3) & (np.maximum(abs(u), abs(v)) <= 1)
    if shape == "heart":
        a, b = 1.25 * u, 0.15 - 1.2 * v
        return (a * a + b * b - 1) ** 3 <= a * a * b**3
    if shape == "boat":  # a hull under a sail
        hull = (v >= 0.35) & (v <= 0.9) & (abs(u) <= 1.25 - 0.75 * v)
        mast = (abs(u + 0.2) <= 0.1) & (v >= -1) & (v < 0.4)
        sail = (u >= -0.1) & (u <= 0.5 + 0.55 * v) & (v >= -1) & (v <= 0.3)
        return hull | mast | sail
    if shape == "tree":  # a broad crown on a short trunk
        return (u * u / 0.95 + (v + 0.3) ** 2 / 0.49 <= 1) | ((abs(u) <= 0.22) & (v >= 0) & (v <= 1))
    # star: five points, a radius that is piecewise linear in the edge's direction
    angle = np.arctan2(u, -v)
    fold = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(u, v)
    x, y = radius * np.cos(fold), radius * np.sin(fold)  # the point at (1, 0), the notch at 0.45 and 36 degrees
    notch = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    return y * (1 - notch[0]) <= (1 - x) * notch[1]


@cache
def _stencils(shape: str, size: str, image_size: int, phase_x: int, phase_y: int) -> tuple[Image.Image, Image.Image]:
    """Coverage (0..255) of the outlined shape and of its fill; the centre lies `phase` quarter pixels into a pixel."""
    radius = DIAMETER[size] * image_size / 2
    rim = max(0.7, image_size / 90)
    side = int(np.ceil(radius)) * 2 + 2
    axis = (np.arange(side * FINE) + 0.5) / FINE - side / 2
    u, v = (axis - phase_x / FINE)[None, :], (axis - phase_y / FINE)[:, None]

    def coverage(r: float) -> Image.Image:
        inside = np.broadcast_to(_inside(shape, u / r, v / r), (side * FINE, side * FINE))
        counts = inside.reshape(side, FINE, side, FINE).sum((1, 3))
        return Image.fromarray((counts * 255 // FINE**2).astype(np.uint8))

    return coverage(radius), coverage(radius - rim)


@cache
def _ground(background: str, image_size: int, texture: int) -> Image.Image:
    """A background with soft stripes and light from above; the eight textures differ in phase and brightness."""
    rows, columns = np.mgrid[0:image_size, 0:image_size] / image_size
    stripes = {
        "meadow": 9 * columns, "beach": 4 * (rows + columns), "sea": 7 * rows, "snow": 3 * (columns - rows), "night": 0 * rows,
    }  # fmt: skip
    wave = abs((stripes[background] + texture / GROUNDS) % 1 - 0.5) * 28 - 7
    light = (0.5 - rows) * 16 + (texture % 4 - 1.5) * 5
    pixels = np.array(GROUND[background]) + (wave + light)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw(scene: Scene, image_size: int = 60) -> Image.Image:
    """The scene as an RGB picture of `image_size` x `image_size` pixels."""
    picture = _ground(scene.background, image_size, scene.index % GROUNDS).copy()
    for thing in scene.objects:
        # in quarter pixels, the centre of the stencil's square
        qx, qy = int(thing.x * image_size * FINE), int(thing.y * image_size * FINE)
        shape, fill = _stencils(thing.shape, thing.size, image_size, qx % FINE, qy % FINE)
        corner = qx // FINE - shape.width // 2, qy // FINE - shape.height // 2
        picture.paste(OUTLINE, (*corner, corner[0] + shape.width, corner[1] + shape.height), shape)
        picture.paste(RGB[thing.colour], (*corner, corner[0] + shape.width, corner[1] + shape.height), fill)
    return picture


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(picture: Image.Image) -> bytes:
    """An RGB picture as a PNG file: no filters, fastest compression (https://www.w3.org/TR/png-3/)."""
    width, height = picture.size
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a row begins with its filter: 0, none
    rows[:, 1:] = np.frombuffer(picture.tobytes(), np.uint8).reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)
