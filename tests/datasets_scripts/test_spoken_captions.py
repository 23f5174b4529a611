"""Flickr8k and its recordings in miniature: real wav files, both official layouts side by side, whole and broken."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from datasets_scripts import load_rows
from datasets_scripts.spoken_captions import SpokenCaptions
from trainers.contrastive_data import ContrastiveCollator, key_of


NAMES = [f"{1000268201 + i}_693b08cb0e.jpg" for i in range(8)]
OFFICIAL = {"train": NAMES[:4], "dev": NAMES[4:6], "test": NAMES[6:]}
RATE = 16_000


def wave(picture: int, caption: int) -> np.ndarray:
    return np.sin(np.arange(400 + 10 * picture + caption) / (3 + picture)) / 2


def flickr(root: Path) -> Path:
    """As the authors' archives lie unpacked: three captions a picture."""
    (root / "Flicker8k_Dataset").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.new("RGB", (8, 6), (20 * i, 0, 0)).save(root / "Flicker8k_Dataset" / name)
    lines = [f"{name}#{k}\tDog {i} , told {k} .\n" for i, name in enumerate(NAMES) for k in range(3)]
    (root / "Flickr8k.token.txt").write_text("".join(lines))
    for short, names in OFFICIAL.items():
        (root / f"Flickr_8k.{short}Images.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def wav_of(i: int, k: int) -> str:
    return f"{NAMES[i].removesuffix('.jpg')}_{k}.wav"


def spoken(root: Path) -> Path:
    """The recordings of the first two captions of each picture, in an order of their own."""
    (root / "wavs").mkdir(parents=True)
    pairs = [(i, k) for k in (1, 0) for i in range(8)]
    for i, k in pairs:
        soundfile.write(root / "wavs" / wav_of(i, k), wave(i, k), RATE)
    (root / "wav2capt.txt").write_text("".join(f"{wav_of(i, k)} {NAMES[i]} #{k}\n" for i, k in pairs))
    (root / "wav2spk.txt").write_text("".join(f"{wav_of(i, k)} {10 * i + k}\n" for i, k in pairs))
    return root


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    root = flickr(tmp_path / "flickr8k")
    spoken(root / "flickr_audio")
    return root


def rows_of(folder: Path, split: str = "train", **options):
    return load_rows("spoken_captions", split, "alignment", data_dir=str(folder), **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_is_a_picture_a_caption_and_the_voice_that_reads_it(folder, streaming):
    rows = list(rows_of(folder, streaming=streaming))
    assert len(rows) == 8
    row = next(row for row in rows if row["text"] == "Dog 2, told 1.")
    sound = str(folder / "flickr_audio" / "wavs" / wav_of(2, 1))
    assert row == {
        "image": {"bytes": None, "path": str(folder / "Flicker8k_Dataset" / NAMES[2])},
        "text": "Dog 2, told 1.",
        "audio": {"bytes": None, "path": sound},
        "image_id": NAMES[2],
        "speaker": "21",
    }
    heard, rate = soundfile.read(sound)
    assert rate == RATE and np.allclose(heard, wave(2, 1), atol=1e-4)


def test_the_splits_are_flickr8ks(folder):
    for split, short in (("train", "train"), ("validation", "dev"), ("test", "test")):
        rows, plain = rows_of(folder, split), load_rows("flickr8k", split, "image", data_dir=str(folder))
        assert sorted(set(rows["image_id"])) == sorted(OFFICIAL[short]) == sorted(plain["image_id"])


class Processor:
    sampling_rate = RATE

    def __call__(self, images=None, text=None, audio=None, return_tensors=None):
        if images is not None:
            return {"pixel_values": torch.tensor([[image.getpixel((0, 0))[0]] for image in images])}
        if text is not None:
            return {"input_ids": torch.tensor([[len(words)] for words in text])}
        return {"audio_values": torch.tensor([[len(wave)] for wave in audio])}

    def encode_text(self, texts):
        return self(text=texts)


def test_the_collator_opens_rows(folder):
    rows = rows_of(folder)
    batch = ContrastiveCollator(Processor(), strict=True)([rows[i] for i in range(len(rows))])
    assert batch["audio_there"].all() and batch["image_there"].all() and "skipped" not in batch
    places = [(NAMES.index(row["image_id"]), int(row["text"][-2])) for row in rows]
    assert batch["audio_values"][:, 0].tolist() == [400 + 10 * i + k for i, k in places]
    assert [round(v / 20) for v in batch["pixel_values"][:, 0].tolist()] == [i for i, _ in places]
    same = [key_of("image", row["image"]) for row in rows if row["image_id"] == NAMES[0]]
    assert len(same) == 2 and len(set(same)) == 1, "two voices, one picture"


def test_what_is_not_there_is_left_out_and_counted(folder, caplog):
    audio = folder / "flickr_audio"
    (audio / "wavs" / wav_of(0, 0)).unlink()
    soundfile.write(audio / "wavs" / wav_of(1, 0), np.zeros(0), RATE)
    soundfile.write(audio / "wavs" / "unnamed.wav", wave(0, 0), RATE)
    with (audio / "wav2capt.txt").open("a") as file:
        file.write(f"{wav_of(2, 0)[:-4]}b.wav {NAMES[2]} #7\nghost_0.wav ghost.jpg #0\n")
    for name in (f"{wav_of(2, 0)[:-4]}b.wav", "ghost_0.wav"):
        soundfile.write(audio / "wavs" / name, wave(0, 0), RATE)
    texts = rows_of(folder)["text"][:]
    assert "Dog 0, told 0." not in texts and "Dog 1, told 0." not in texts and len(texts) == 6
    said = caplog.text
    gone = f"2 spoken captions left out that are not in {audio / 'wavs'}, or hold no sample"
    assert f"{gone} ({wav_of(0, 0)}, {wav_of(1, 0)})" in said
    assert "2 spoken captions left out whose picture or caption is in no split" in said
    assert "1 wavs left out that it does not name (unnamed.wav)" in said
    assert f"10 captions left out that nobody speaks ({NAMES[0]}#0, {NAMES[0]}#2, {NAMES[1]}#0, …)" in said


def test_a_folder_of_recordings_may_lie_elsewhere_and_know_no_speakers(folder, tmp_path):
    (folder / "flickr_audio").rename(tmp_path / "recordings")
    (tmp_path / "recordings" / "wav2spk.txt").unlink()
    rows = rows_of(folder, audio_dir=str(tmp_path / "recordings"))
    assert len(rows) == 8 and set(rows["speaker"]) == {None}
    with pytest.raises(FileNotFoundError, match="flickr_audio: expected wavs/ and wav2capt.txt; found no such folder"):
        rows_of(folder)


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        (
            "wav2capt.txt",
            "a.wav b.jpg 0",
            r"wav2capt.txt, line 17: expected NAME.wav PICTURE.jpg #NUMBER; is a.wav b.jpg 0",
        ),
        ("wav2capt.txt", "a.wav #0", "wav2capt.txt, line 17: expected NAME.wav PICTURE.jpg #NUMBER"),
        (
            "wav2capt.txt",
            f"{wav_of(0, 0)} {NAMES[0]} #1",
            "line 17: .*_0.wav is in .*wav2capt.txt, line 9 too; keep one",
        ),
        ("wav2spk.txt", "a.wav", "wav2spk.txt, line 17: expected NAME.wav SPEAKER; is a.wav"),
        ("wav2spk.txt", f"{wav_of(0, 0)} 99", "wav2spk.txt, line 17: .*_0.wav is speaker 0 in an earlier line"),
    ],
)
def test_a_line_that_cannot_be_is_an_error_that_names_it(folder, file, line, problem):
    with (folder / "flickr_audio" / file).open("a") as out:
        out.write(line + "\n")
    with pytest.raises(ValueError, match=problem):
        rows_of(folder)


def test_a_split_without_a_voice_is_an_error(folder):
    for i in (6, 7):
        for k in (0, 1):
            (folder / "flickr_audio" / "wavs" / wav_of(i, k)).unlink()
    with pytest.raises(ValueError, match="flickr_audio: no caption of test is spoken there"):
        rows_of(folder)


def test_rows_change_when_recordings_do(folder):
    assert len(rows_of(folder)) == 8
    (folder / "flickr_audio" / "wavs" / wav_of(0, 0)).unlink()
    assert len(rows_of(folder)) == 7


def test_other_rows_are_sent_to_flickr8k(folder):
    with pytest.raises(ValueError, match="spoken_captions has rows='alignment', not 'caption'.*flickr8k"):
        load_rows("spoken_captions", "train", data_dir=str(folder))
    with pytest.raises(ValueError, match="needs data_dir"):
        load_rows("spoken_captions", "train", "alignment")
    builder = SpokenCaptions(data_dir=os.path.relpath(folder), cache_dir=str(folder.parent / "cache"))
    assert builder.config.audio_dir == str(folder / "flickr_audio")
