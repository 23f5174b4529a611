"""
OnnxAligner: what recipes/export.py leaves behind, run by ONNX Runtime. PyTorch is not needed.

    pictures, texts, sounds -> processor -> vision.onnx, text.onnx, audio.onnx -> {"image": (n, dim), "text": …, "audio": …}

Travels in the exported folder, beside graphs and processor. Needs onnxruntime, transformers and, for pictures, pillow.

Unusual: pictures and texts are prepared by a processor without ears, because some of transformers' feature extractors (that of an
audio-spectrogram-transformer) cannot even be made without PyTorch. Whisper's can. ONNX Runtime is told to report nothing.
"""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any


# before the import, which else keeps an identifier of this machine and reports the process to Microsoft (its Privacy.md)
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from transformers import AutoProcessor


onnxruntime.disable_telemetry_events()  # where it was imported earlier, or is a build that does not read the variable

FORMAT = 1


class OnnxAligner:
    """
    folder: as recipes/export.py leaves it. threads: of one graph; None: as many as there are cores. A graph is read when it is
    first asked, so a device that only searches never holds the vision tower.

    Raises FileNotFoundError where there is no export, ValueError for one of another format.
    """

    def __init__(self, folder: str | Path, threads: int | None = None, providers: tuple = ("CPUExecutionProvider",)):
        self.folder, self.threads, self.providers = Path(folder), threads, list(providers)
        if not (self.folder / "edge.json").is_file():
            raise FileNotFoundError(f"{self.folder} holds no exported aligner: there is no edge.json in it")
        told = json.loads((self.folder / "edge.json").read_text("utf-8"))
        if told["format"] != FORMAT:
            raise ValueError(
                f"{self.folder}: an export of format {told['format']}; this reads {FORMAT}. Export it anew"
            )
        self.dim, self.graphs = told["dim"], told["graphs"]
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    @cached_property
    def processor(self) -> Any:
        """Of pictures and texts. Its code lies beside this file."""
        return AutoProcessor.from_pretrained(self.folder, trust_remote_code=True, feature_extractor=None)

    @cached_property
    def hearing_processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.folder, trust_remote_code=True)

    def session(self, kind: str) -> onnxruntime.InferenceSession:
        """The graph of "image", "text" or "audio". Raises ValueError for one that was not exported."""
        if kind not in self.graphs:
            raise ValueError(f"{self.folder} has no graph for {kind}; it has {', '.join(self.graphs)}")
        if kind not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads or 0
            path = str(self.folder / self.graphs[kind])
            self._sessions[kind] = onnxruntime.InferenceSession(path, options, providers=self.providers)
        return self._sessions[kind]

    def run(self, kind: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """What the processor makes of "image", "text" or "audio" -> (n, dim) float32, at unit length."""
        session = self.session(kind)
        return session.run(None, {taken.name: np.asarray(inputs[taken.name]) for taken in session.get_inputs()})[0]

    def __call__(
        self, images: Any = None, text: Any = None, audio: Any = None, sampling_rate: int | None = None
    ) -> dict[str, np.ndarray]:
        """
        images: a PIL picture or a list; text: a string or a list; audio: a waveform (samples,) or a list, at `sampling_rate`
        (default: the tower's). Returns {"image", "text", "audio"} of what is given, (n, dim) each: dot products are cosines.
        """
        out = {}
        if images is not None:
            out["image"] = self.run("image", self.processor(images=images, return_tensors="np"))
        if text is not None:
            out["text"] = self.run("text", self.processor(text=text, return_tensors="np"))
        if audio is not None:
            heard = self.hearing_processor(audio=audio, sampling_rate=sampling_rate, return_tensors="np")
            out["audio"] = self.run("audio", heard)
        return out


__all__ = ["OnnxAligner"]
