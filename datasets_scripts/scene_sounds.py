"""
What a miniature scene sounds like: a note for each object, in reading order.

    shape -> timbre (how strong the overtones are, how the note begins and ends)      colour -> pitch
    size  -> large is loud and long, small is soft and short                          background -> a faint hiss of its own

Unusual: sounds are computed, so they are the same everywhere to a rounding, and thousands a second; nothing is random but the
hiss, which is seeded by the scene.
"""

import wave as wave_file
from hashlib import sha256
from io import BytesIO

import numpy as np

from datasets_scripts.scene_description import BACKGROUNDS, COLOURS, SHAPES, Scene


RATE = 8_000  # samples a second
SECONDS = 1.6  # of every scene: four long notes and silence
STEP = 2 ** (3 / 12)  # between the pitches of two colours: a minor third
LOWEST = 160.0  # Hz
LENGTHS = {"small": 0.22, "large": 0.36}  # seconds
LOUDNESS = {"small": 0.35, "large": 0.8}
HARMONICS = 6


def pitch(colour: str) -> float:
    """Hz."""
    return LOWEST * STEP ** COLOURS.index(colour)


def timbre(shape: str) -> tuple[np.ndarray, float]:
    """Strengths (HARMONICS,) of the overtones, which sum to 1, and how fast the note dies away (0: not at all)."""
    number = SHAPES.index(shape)
    over = np.arange(1, HARMONICS + 1)
    kinds = (
        over == 1,  # a pure tone
        1.0 / over,  # a saw
        (over % 2) / over,  # a square: odd overtones
        np.exp(-((over - 3.0) ** 2)),  # a reed: around the third
        np.ones(HARMONICS),  # a pulse
        (over % 2 == 0) + (over == 1) * 0.3,  # hollow: even overtones
    )
    strengths = np.asarray(kinds[number % len(kinds)], dtype=float)
    return strengths / strengths.sum(), (0.0, 9.0)[number // len(kinds) % 2]


def note(shape: str, colour: str, size: str) -> np.ndarray:
    """The sound of one object: (samples,) float32, within -1 … 1."""
    time = np.arange(int(LENGTHS[size] * RATE)) / RATE
    strengths, decay = timbre(shape)
    phases = 2 * np.pi * pitch(colour) * time[:, None] * np.arange(1, HARMONICS + 1)
    edge = np.minimum(
        1.0, np.minimum(time, time[-1] - time) / 0.01
    )  # ten milliseconds in and out, so that nothing clicks
    return (LOUDNESS[size] * edge * np.exp(-decay * time) * (np.sin(phases) @ strengths)).astype(np.float32)


def sound(scene: Scene) -> np.ndarray:
    """The whole scene: (SECONDS * RATE,) float32, within -1 … 1."""
    wave = np.zeros(int(SECONDS * RATE), dtype=np.float32)
    start = 0
    for thing in scene.objects:
        one = note(thing.shape, thing.colour, thing.size)
        wave[start : start + len(one)] += one
        start += len(one)
    seed = int.from_bytes(sha256(f"hiss/{scene.image_id}".encode()).digest()[:8], "big")
    hiss = np.random.default_rng(seed).normal(size=len(wave)).astype(np.float32)
    width = 1 + 4 * BACKGROUNDS.index(scene.background)  # the duller, the later in the list
    hiss = np.convolve(hiss, np.full(width, width**-0.5, dtype=np.float32), mode="same")
    return np.clip(wave + 0.01 * hiss, -1, 1)


def wav(wave: np.ndarray) -> bytes:
    """A waveform (samples,) within -1 … 1 as a WAV file of 16 bits at RATE."""
    file = BytesIO()
    with wave_file.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes((wave * 32767).round().astype("<i2").tobytes())
    return file.getvalue()
