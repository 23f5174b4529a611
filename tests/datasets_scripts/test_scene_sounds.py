"""What scenes sound like: pitch by colour, timbre by shape, loudness and length by size."""

from io import BytesIO
from itertools import combinations, product

import numpy as np
import pytest
import soundfile

from datasets_scripts import load_rows
from datasets_scripts.scene_description import COLOURS, SHAPES, SIZES, describe
from datasets_scripts.scene_sounds import LENGTHS, RATE, SECONDS, note, pitch, sound, wav


def spectrum(wave: np.ndarray) -> np.ndarray:
    whole = np.abs(np.fft.rfft(wave, RATE))  # a bin a hertz
    return whole / np.linalg.norm(whole)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_is_a_pitch(colour):
    loudest = int(spectrum(note("circle", colour, "large")).argmax())
    assert abs(loudest - pitch(colour)) <= 2


def test_every_kind_of_object_sounds_like_itself():
    kinds = list(product(SHAPES, COLOURS))
    spectra = np.stack([spectrum(note(shape, colour, "large")) for shape, colour in kinds])
    likeness = spectra @ spectra.T
    for (i, one), (j, other) in combinations(enumerate(kinds), 2):
        assert likeness[i, j] < 0.97, (one, other)


def test_large_is_louder_and_longer():
    small, large = (note("star", "red", size) for size in SIZES)
    assert np.abs(large).max() > 1.5 * np.abs(small).max()
    assert len(large) == int(LENGTHS["large"] * RATE) > len(small)


def test_a_scene_is_its_notes_in_reading_order_and_a_hiss():
    scene = next(s for i in range(99) if len((s := describe(0, "test", i)).objects) == 3)
    wave = sound(scene)
    assert wave.shape == (int(SECONDS * RATE),) and np.abs(wave).max() <= 1
    start = 0
    for thing in scene.objects:
        one = note(thing.shape, thing.colour, thing.size)
        np.testing.assert_allclose(wave[start : start + len(one)], one, atol=0.08)
        start += len(one)
    assert 0 < np.abs(wave[start:]).max() < 0.08
    assert np.array_equal(wave, sound(scene))


def test_sounds_of_a_row_are_wav_files(tmp_path):
    rows = load_rows("scenes", "test", rows="alignment", sounds=True, num_train=2, num_eval=3, cache_dir=str(tmp_path))
    wave, rate = soundfile.read(BytesIO(rows[1]["audio"]["bytes"]))
    assert rate == RATE
    np.testing.assert_allclose(wave, sound(describe(0, "test", 1)), atol=1e-4)
    assert wav(np.zeros(4))[:4] == b"RIFF"
