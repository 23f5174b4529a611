"""
Visual contrastive decoding (VCD): what the model would say of a picture drowned in noise is subtracted from what it says.

    picture, noise of step T of a diffusion -> sqrt(a_T) * picture + sqrt(1 - a_T) * noise, a distorted picture
    (1 + alpha) * logits(picture) - alpha * logits(distorted picture), for tokens at least `beta` times as probable as the likeliest

For any Hugging Face vision–language model: `with vcd(model, VCDConfig(alpha=1.0)): model.generate(...)`. A second pass for every
token, with its own KV cache (second_pass.py).

Unusual:
- A picture's noise is seeded by `seed` and by what the picture shows: the same in every batch, beam and pass, another for every
  picture. One that is all zeros is padding, and stays so.
- `generate` encodes pictures before the first forward, by a method and in no module that a hook could listen to. That one method,
  `get_image_features`, is stood in for on the instance while VCD is on: it encodes both pictures, and returns their features side
  by side, (tokens, 2 d), which the forward parts again. So what `generate` does with features, beams and chunks included, is done
  with both.

Source: Leng et al., CVPR 2024, https://arxiv.org/abs/2311.16922. Schedule, and defaults of alpha, beta and noise_step: the argparse
of vcd_utils/ and experiments/eval/ of https://github.com/DAMO-NLP-SG/VCD at d6568ff. (Its llava1.5_pope.bash has beta 0.2; SPIN's
repository runs it with noise_step 999.) There too, noise is on the preprocessed pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from .image_attention import Settings
from .second_pass import SecondPass, start_second_pass, stop_second_pass


STEPS = 1000
FEATURES = ("pooler_output", "deepstack_features")  # what a model reads of pictures that `generate` encoded


@dataclass
class VCDConfig(Settings):
    """
    Raises ValueError for settings outside their range.

    alpha: how much is subtracted; 0 changes nothing. beta: tokens less probable than so much of the likeliest's probability are
    out. noise_step: of the diffusion, 0 (hardly any noise) to 999. seed: of the noise.
    """

    alpha: float = 1.0
    beta: float = 0.1
    noise_step: int = 500
    seed: int = 0

    def __post_init__(self):
        if self.alpha < 0:
            raise ValueError(f"alpha must be at least 0; got {self.alpha}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be between 0 and 1; got {self.beta}")
        if not 0 <= self.noise_step < STEPS:
            raise ValueError(f"noise_step must be between 0 and {STEPS - 1}; got {self.noise_step}")


def signal_left(noise_step: int) -> float:
    """How much of a picture's variance is left at a step of the forward process: the published schedule."""
    betas = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    return float((1 - betas[: noise_step + 1]).prod())


def pictures_of(pixels: Tensor, inputs: dict, frames: int) -> list[tuple[Tensor, tuple[int, ...]]]:
    """
    Views of single pictures, each with the shape that its noise is drawn in: a dimension of 1 where the picture repeats itself.

    pixels: (…, channels, H, W); (patches of all pictures, 3 * frames * P * P) with `image_grid_thw` (Qwen), a still picture being
    `frames` equal ones; or (pictures, patches, values) with `spatial_shapes` (SigLIP 2 NaFlex), padded. Raises ValueError for any
    other.
    """
    if pixels.ndim > 3:
        views = list(pixels.flatten(0, -4))
    elif pixels.ndim == 3 and inputs.get("spatial_shapes") is not None:
        lengths = inputs["spatial_shapes"].prod(-1).tolist()
        views = [picture[:length] for picture, length in zip(pixels, lengths, strict=True)]
    elif pixels.ndim == 2 and inputs.get("image_grid_thw") is not None:
        views = [
            part.unflatten(1, (3, frames, -1)) for part in pixels.split(inputs["image_grid_thw"].prod(-1).tolist())
        ]
        return [(view, (*view.shape[:2], 1, view.shape[-1])) for view in views]
    else:
        raise ValueError(f"where one picture of pixel_values {tuple(pixels.shape)} ends cannot be known")
    return [(view, tuple(view.shape)) for view in views]


def distort(inputs: dict, config: VCDConfig, frames: int = 1) -> dict:
    """
    Model inputs with their `pixel_values` noised. frames: how many equal ones a still picture is stored as. Raises ValueError for
    pictures that are not pixels any more, and for videos.
    """
    for name in ("vision_features", "mm_encoder_outputs", "pixel_values_videos"):
        given = inputs.get(name)
        if isinstance(given, Tensor) or given:
            raise ValueError(f"VCD distorts the pixels of pictures; {name} are none")
    if (pixels := inputs.get("pixel_values")) is None:
        return inputs
    left, noised = signal_left(config.noise_step), pixels.clone(memory_format=torch.contiguous_format)
    for picture, shape in pictures_of(noised, inputs, frames):
        if picture.any():
            shown = f"{config.seed} ".encode() + picture.float().cpu().numpy().tobytes()
            generator = torch.Generator().manual_seed(int.from_bytes(sha256(shown).digest()[:8], "little"))
            noise = torch.randn(shape, generator=generator).to(picture)
            picture.mul_(left**0.5).add_(noise, alpha=(1 - left) ** 0.5)
    return inputs | {"pixel_values": noised}


def side_by_side(one: Any, other: Any) -> Any:
    """Features (…, d) and (…, d) -> (…, 2 d); of lists of them, each."""
    if isinstance(one, Tensor):
        return torch.cat([one, other], -1)
    return [side_by_side(*pair) for pair in zip(one, other, strict=True)]


def half(both: Any, which: int, width: int) -> Any:
    """What `side_by_side` was given first (0) or second (1). Raises ValueError for features that are not 2 * width wide."""
    if not isinstance(both, Tensor):
        return [half(part, which, width) for part in both]
    if both.shape[-1] != 2 * width:
        raise ValueError("pictures were encoded before VCD was on; give their pixels")
    return both.chunk(2, -1)[which].contiguous()


class DistortedPass(SecondPass):
    def __init__(self, model: nn.Module, config: VCDConfig):
        names = ("image_token_id", "image_token_index")
        token = next((t for name in names if (t := getattr(model.config, name, None)) is not None), None)
        super().__init__(model, config.alpha, config.beta, token, f"noise {config.noise_step}, seed {config.seed}")
        self.config = config
        self.width = model.config.get_text_config(decoder=True).hidden_size
        self.frames = getattr(getattr(model.config, "vision_config", None), "temporal_patch_size", 1)
        self.encoded: dict | None = None  # the distorted pictures of this forward, where `generate` encoded them
        self.stood_in = model.base_model if hasattr(model.base_model, "get_image_features") else None
        if self.stood_in is not None:
            self.stood_in.get_image_features = self.encode_both(self.stood_in.get_image_features)

    def encode_both(self, encode: Callable) -> Callable:
        """`get_image_features`; of pictures and distorted pictures side by side, but where the model's own forward asks."""
        reads = signature(encode).parameters

        @wraps(encode)
        def both(*args, **kwargs) -> Any:
            output = encode(*args, **kwargs)
            if self.inside:
                return output
            distorted = encode(**distort(dict(zip(reads, args, strict=False)) | kwargs, self.config, self.frames))
            for name in FEATURES:
                if output.get(name) is not None:
                    output[name] = side_by_side(output[name], distorted[name])
            return output

        return both

    def before(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        super().before(model, args, kwargs)
        self.encoded = None
        encoded = kwargs.get("mm_encoder_outputs") or {}
        if encoded.get("video") is not None:
            raise ValueError("VCD distorts pictures; videos are none")
        if (both := encoded.get("image")) is None:
            return None
        names = [name for name in FEATURES if both.get(name) is not None]
        true, distorted = (type(both)(**{name: half(both[name], i, self.width) for name in names}) for i in (0, 1))
        self.encoded = encoded | {"image": distorted}
        return args, kwargs | {"mm_encoder_outputs": encoded | {"image": true}}

    def without(self, kwargs: dict, image: Tensor | None, reads: Any) -> dict:
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("VCD distorts the pixels of pictures: give them, and input_ids; inputs_embeds are none")
        if self.encoded is not None:
            return kwargs | {"mm_encoder_outputs": self.encoded}
        return distort(kwargs, self.config, self.frames)

    def stop(self) -> None:
        super().stop()
        if self.stood_in is not None:
            del self.stood_in.get_image_features  # the class's own is there again


def enable_vcd(model: nn.Module, config: VCDConfig | dict | None = None) -> None:
    """
    Contrast the logits of every forward and generation of a vision–language model until `disable_vcd(model)`.

    Raises ValueError where PAI is on. While VCD is on, ValueError is raised for pictures that are not given as pixels, and for a
    cache that was filled before. With head suppression on, the distorted picture's pass attends plainly.
    """
    config = VCDConfig(**config) if isinstance(config, dict) else config or VCDConfig()
    disable_vcd(model)
    if config.alpha:
        start_second_pass(model, DistortedPass, config)


def disable_vcd(model: nn.Module) -> None:
    """Logits as before; nothing if VCD is not on."""
    stop_second_pass(model, DistortedPass)


@contextmanager
def vcd(model: nn.Module, config: VCDConfig | dict | None = None) -> Iterator[Any]:
    """`enable_vcd` for the body of a `with` statement."""
    enable_vcd(model, config)
    try:
        yield model
    finally:
        disable_vcd(model)


__all__ = ["VCDConfig", "disable_vcd", "distort", "enable_vcd", "vcd"]
