"""
Aligner processor: pictures, texts and sounds, each as its tower takes them.

    pictures -> pixel_values    texts -> input_ids, attention_mask    sounds (waveforms) -> audio_values

Unusual: sounds are optional, so their feature extractor is kept inside the processor's own file. Waveforms of another rate are
brought to the tower's, several channels become one, and what no tower can hear (nothing at all, NaN) is refused by name.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name


AUDIO_NAMES = ("input_features", "input_values")  # what feature extractors call what they make
SORTS = ("text", "images", "audio", "videos", "common")  # of keywords, as transformers names them
SHORTEST = 400  # samples: a window of the usual 25 ms at 16 kHz; what is shorter gets silence after it


class _Attributes:
    """
    `get_attributes` of the class: what every aligner's processor is made of, which is what loading asks; of a processor with a
    feature extractor, that too, which is how sentence-transformers learns that it hears.
    """

    def __get__(self, processor: "AlignerProcessor | None", owner: type) -> Callable[[], list[str]]:
        hears = getattr(processor, "feature_extractor", None) is not None
        return lambda: ["image_processor", "tokenizer", *(["feature_extractor"] if hears else [])]


class AlignerProcessor(ProcessorMixin):
    """
    image_processor and tokenizer are any of transformers', feature_extractor too, or None for no sounds.

    pad_to_max: texts are padded to the tokenizer's `model_max_length` and the padding is read, as SigLIP's text towers learned.
    """

    def __init__(self, image_processor=None, tokenizer=None, feature_extractor=None, pad_to_max=False, **kwargs):
        if isinstance(feature_extractor, dict):
            told = dict(feature_extractor)
            feature_extractor = feature_extractor_class_from_name(told["feature_extractor_type"]).from_dict(told)
        self.feature_extractor = feature_extractor
        self.pad_to_max = pad_to_max
        heard = [] if feature_extractor is None else [feature_extractor]
        super().__init__(image_processor, tokenizer, *heard, **kwargs)

    get_attributes = _Attributes()

    @classmethod
    def from_towers(
        cls,
        vision_model: str | None = None,
        text_model: str | None = None,
        audio_model: str | None = None,
        vision_revision: str | None = None,
        text_revision: str | None = None,
        audio_revision: str | None = None,
        pad_to_max: bool = False,
        **parts,
    ) -> "AlignerProcessor":
        """
        With the preprocessing of these towers: Hub ids or folders. parts: image_processor, tokenizer or feature_extractor
        themselves, in place of what is named.
        """
        if vision_model is not None:
            parts["image_processor"] = AutoImageProcessor.from_pretrained(vision_model, revision=vision_revision)
        if text_model is not None:
            parts["tokenizer"] = AutoTokenizer.from_pretrained(text_model, revision=text_revision)
        if audio_model is not None:
            parts["feature_extractor"] = AutoFeatureExtractor.from_pretrained(audio_model, revision=audio_revision)
        return cls(**parts, pad_to_max=pad_to_max)

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the audio tower hears. Raises ValueError for an aligner without sound."""
        if self.feature_extractor is None:
            raise ValueError("this aligner has no audio tower: it cannot take sounds")
        return self.feature_extractor.sampling_rate

    def __call__(
        self, images: Any = None, text: Any = None, audio: Any = None, sampling_rate: int | None = None, **kwargs
    ) -> BatchFeature:
        """
        images: one or a list; text: a string or a list; audio: a waveform (samples,) or (samples, channels) or a list of them, at
        `sampling_rate` (default: the tower's). Further keywords are the tokenizer's and `return_tensors`; also as transformers
        sorts them, `text_kwargs`, `audio_kwargs` (sampling_rate), `common_kwargs`, …. Raises ValueError as `hear` does.
        """
        out = {}
        sorted_kwargs = {name: kwargs.pop(f"{name}_kwargs", None) or {} for name in SORTS}
        sampling_rate = sampling_rate or sorted_kwargs["audio"].get("sampling_rate")
        kwargs = {**sorted_kwargs["common"], **kwargs}
        if images is not None:
            out |= self.image_processor(images, return_tensors=kwargs.get("return_tensors"))
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            told = {"padding": True, "truncation": True, **sorted_kwargs["text"], **kwargs}
            if self.pad_to_max:
                told["padding"] = "max_length"
            read = self.tokenizer(text, **told)
            out["input_ids"] = read["input_ids"]
            if not self.pad_to_max:
                out["attention_mask"] = read["attention_mask"]
        if audio is not None:
            single = isinstance(audio, np.ndarray) or np.isscalar(audio[0])
            waves = [hear(wave, sampling_rate, self.sampling_rate) for wave in ([audio] if single else audio)]
            kept = {"return_tensors": kwargs.get("return_tensors")}
            heard = self.feature_extractor(waves, sampling_rate=self.sampling_rate, **kept)
            out["audio_values"] = next(heard[name] for name in AUDIO_NAMES if name in heard)
        return BatchFeature(out)

    def encode_text(self, texts: list[str]) -> BatchFeature:
        """Texts as the text tower takes them: input_ids and, unless all are as long as it reads, attention_mask."""
        return self(text=texts, return_tensors="pt")


def hear(wave: Any, rate: int | None, wanted: int) -> np.ndarray:
    """
    A waveform (samples,), or (samples, channels), at `rate` a second -> (samples,) float32 at `wanted`, its channels' mean.

    Samples that are integers are brought to -1 … 1. Raises ValueError for no samples, and for numbers that are not finite.
    """
    wave = np.asarray(wave)
    if wave.size == 0:
        raise ValueError("a sound of no samples: the file is empty or was cut off")
    if np.issubdtype(wave.dtype, np.integer):
        wave = wave / float(np.iinfo(wave.dtype).max)
    wave = wave.astype(np.float32)
    if not np.isfinite(wave).all():
        raise ValueError(f"a sound with {int((~np.isfinite(wave)).sum())} samples that are no numbers")
    if wave.ndim == 2:
        wave = wave.mean(1)
    if rate is not None and rate != wanted:
        wave = resample(wave, rate, wanted)
    return np.pad(wave, (0, max(0, SHORTEST - len(wave))))


def resample(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A waveform (samples,) at another rate, by torchaudio's or scipy's rule of a windowed sinc: torch's interpolation aliases."""
    from scipy.signal import resample_poly

    common = np.gcd(int(rate), int(wanted))
    return resample_poly(wave, wanted // common, rate // common).astype(np.float32)


AlignerProcessor.register_for_auto_class()

__all__ = ["AlignerProcessor", "hear"]
