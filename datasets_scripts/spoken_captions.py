"""
Flickr8k with its captions spoken: a picture, a caption, and a voice that reads it.

    data_dir/                                 Flickr8k's pictures, captions and splits (flickr8k.py)
    audio_dir/wavs/1000268201_693b08cb0e_0.wav …
    audio_dir/wav2capt.txt                    1000268201_693b08cb0e_0.wav 1000268201_693b08cb0e.jpg #0
    audio_dir/wav2spk.txt                     1000268201_693b08cb0e_0.wav 1        (if there: the column `speaker`)

    SpokenCaptions(data_dir="flickr8k").download_and_prepare()      audio_dir: flickr8k/flickr_audio, as its archive unpacks

Columns: image, text, audio (undecoded), image_id, speaker. What is incomplete (no wav, or one without a sample; no picture; no
caption) is left out and counted in the log; a line that cannot be read, or says what another denies, is a ValueError that names it.
Source: Harwath and Glass 2015, "Deep Multimodal Semantic Embeddings for Speech and Images", ASRU.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import datasets

from datasets_scripts.canonical import SOUND, listing, report
from datasets_scripts.flickr8k import Flickr8k, Flickr8kConfig, _lines


WAV_HEADER = 44  # bytes: a file of no more holds no sample


@dataclass
class SpokenCaptionsConfig(Flickr8kConfig):
    """audio_dir: the folder with wavs/ and wav2capt.txt; None: flickr_audio in data_dir."""

    audio_dir: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self.audio_dir = os.path.abspath(
            os.path.expanduser(self.audio_dir or os.path.join(self.data_dir, "flickr_audio"))
        )

    def spoken(self) -> tuple[str, str, str | None]:
        """wavs/, wav2capt.txt, and wav2spk.txt if it is there. Raises FileNotFoundError for the others."""
        wavs, captions, speakers = (
            os.path.join(self.audio_dir, name) for name in ("wavs", "wav2capt.txt", "wav2spk.txt")
        )
        if not os.path.isdir(wavs) or not os.path.isfile(captions):
            raise FileNotFoundError(
                f"no spoken captions in {self.audio_dir}: expected wavs/ and wav2capt.txt; found {listing(self.audio_dir)}. "
                "Where else they are, say with audio_dir"
            )
        return wavs, captions, speakers if os.path.isfile(speakers) else None

    def sources(self) -> list[str]:
        return super().sources() + [path for path in self.spoken() if path]


class SpokenCaptions(Flickr8k):
    BUILDER_CONFIG_CLASS = SpokenCaptionsConfig

    def _info(self) -> datasets.DatasetInfo:
        columns = {"image": datasets.Image(decode=False), "text": datasets.Value("string"), "audio": SOUND}
        columns |= {name: datasets.Value("string") for name in ("image_id", "speaker")}
        return datasets.DatasetInfo(
            description=__doc__, features=datasets.Features(columns), license="CC BY-SA (recordings)"
        )

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        pictures, wavs = self.config.layout()[0], self.config.spoken()[0]
        count = 0
        for name, said in self._rows[split].items():
            for number, wav in self._heard.get(name, ()):
                count += 1
                row = {
                    "image": {"path": os.path.join(pictures, name), "bytes": None},
                    "text": said[number],
                    "audio": {"path": os.path.join(wavs, wav), "bytes": None},
                }
                yield wav, {**row, "image_id": name, "speaker": self._speakers.get(wav)}
        if not count:
            raise ValueError(f"{self.config.audio_dir}: no caption of {split} is spoken there")

    @cached_property  # for all splits at once: what is left out is said once
    def _heard(self) -> dict[str, list[tuple[int, str]]]:
        """Picture -> (number of the caption, wav), of what can be heard, and has a picture and a caption."""
        wavs, path, _ = self.config.spoken()
        with os.scandir(wavs) as entries:
            there = {entry.name for entry in entries if entry.is_file() and entry.stat().st_size > WAV_HEADER}
        known = {name: said for rows in self._rows.values() for name, said in rows.items()}
        heard: dict[str, list[tuple[int, str]]] = {}
        missing, mute, first = [], [], {}
        for where, line in _lines(path):
            match = re.fullmatch(r"(\S+\.wav)\s+(\S+)\s+#(\d+)", line)
            if not match:
                raise ValueError(f"{where}: expected NAME.wav PICTURE.jpg #NUMBER; is {line:.100}")
            wav, name, number = match[1], match[2], int(match[3])
            if wav in first:
                raise ValueError(f"{where}: {wav} is in {first[wav]} too; keep one")
            first[wav] = where
            if wav not in there:
                missing.append(wav)
            elif number not in known.get(name, ()):
                mute.append(wav)
            else:
                heard.setdefault(name, []).append((number, wav))
        report(path, f"spoken captions left out that are not in {wavs}, or hold no sample", missing)
        report(path, "spoken captions left out whose picture or caption is in no split", mute)
        report(
            path,
            "wavs left out that it does not name",
            sorted(wav for wav in there - first.keys() if wav.endswith(".wav")),
        )
        silent = [
            f"{name}#{n}" for name, said in known.items() for n in said.keys() - {k for k, _ in heard.get(name, ())}
        ]
        report(path, "captions left out that nobody speaks", silent)
        return heard

    @cached_property
    def _speakers(self) -> dict[str, str]:
        path = self.config.spoken()[2]
        speakers = {}
        for where, line in _lines(path) if path else ():
            if len(words := line.split()) != 2:
                raise ValueError(f"{where}: expected NAME.wav SPEAKER; is {line:.100}")
            if speakers.setdefault(words[0], words[1]) != words[1]:
                raise ValueError(f"{where}: {words[0]} is speaker {speakers[words[0]]} in an earlier line; keep one")
        return speakers
