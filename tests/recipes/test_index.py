"""recipes/index.py: a folder made searchable by words and by a picture, added to, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.conftest import picture
from tests.modeling.test_modeling_aligner import make_aligner, make_aligner_processor


ROOT = Path(__file__).parents[2]


def index(*words, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "recipes/index.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def place(tmp_path):
    make_aligner().save_pretrained(tmp_path / "model")
    make_aligner_processor(sounds=False).save_pretrained(tmp_path / "model")
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    for i in range(6):
        picture(i).save(tmp_path / "photos" / ("deeper" if i % 2 else "") / f"{i}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "notes.txt").write_text("no picture either")
    return tmp_path


BUILD = ["build", "--model", "model", "--images", "photos", "--output", "found", "--dim", "16", "--quantize", "int8"]


def test_a_folder_is_searched_by_picture_and_words_and_added_to(place):
    out = index(*BUILD, cwd=place)
    assert out.returncode == 0, out.stderr
    assert "6 items (6 new, 1 left out)" in out.stdout and "broken.png" in out.stderr
    out = index("search", "--index", "found", "photos/deeper/3.png", "--count", "3", cwd=place)
    assert out.returncode == 0, out.stderr
    first = out.stdout.splitlines()[0].split()
    assert first[0] == "1" and float(first[1]) > 0.99 and first[2].endswith("deeper/3.png")
    assert Image.open(place / "found" / "found.png").width > 224

    picture(9).save(place / "photos" / "nine.png")
    assert "7 items (1 new" in index(*BUILD, cwd=place).stdout
    out = index("search", "--index", "found", "red blue </s>", "--count", "20", "--sheet", "sheet.png", cwd=place)
    assert len([line for line in out.stdout.splitlines() if ".png" in line and line.strip()[0].isdigit()]) == 7
    assert (place / "sheet.png").exists()


def test_pictures_and_sounds_lie_in_one_index_and_a_sound_finds_itself(place):
    make_aligner(audio="ast").save_pretrained(place / "model")
    make_aligner_processor().save_pretrained(place / "model")
    for name, rate, length in (("low", 8000, 0.05), ("high", 44100, 0.8)):  # of other rates than the tower's
        wave = np.sin(np.arange(9000) * length).astype(np.float32)
        soundfile.write(place / "photos" / f"{name}.wav", np.stack([wave, wave], 1), rate)
    (place / "photos" / "cut.wav").write_bytes((place / "photos" / "low.wav").read_bytes()[:30])
    out = index(*BUILD, cwd=place)
    assert out.returncode == 0, out.stderr
    assert "8 items (8 new, 2 left out)" in out.stdout and "cut.wav" in out.stderr
    out = index("search", "--index", "found", "photos/high.wav", "--count", "2", cwd=place)
    assert out.returncode == 0, out.stderr
    first = out.stdout.splitlines()[0].split()
    assert float(first[1]) > 0.99 and first[2].endswith("high.wav")


def test_what_is_refused_says_why(place):
    assert index(*BUILD, cwd=place).returncode == 0
    other = make_aligner(projector_dim=8)
    other.save_pretrained(place / "other")
    make_aligner_processor(sounds=False).save_pretrained(place / "other")
    out = index("search", "--index", "found", "--model", "other", "red", cwd=place)
    assert "embeddings of another model" in out.stderr and out.returncode
    assert "keeps 16 numbers, int8; you ask for 8" in index(*BUILD[:-4], "--dim", "8", cwd=place).stderr
    empty = [word.replace("photos", "nowhere") for word in BUILD]
    assert "nowhere: no such folder" in index(*empty, cwd=place).stderr
    assert "say what to do: build or search" in index(cwd=place).stderr
