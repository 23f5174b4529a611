"""Aligner configuration: encoders of pictures, words and sounds, a projector after each, and one space for all of them."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


FEATURES = ("pooled", "mean", "tokens")
PROJECTORS = ("mlp", "perceiver")
LOSSES = ("infonce", "sigmoid")


class AlignerConfig(PreTrainedConfig):
    """
    The defaults are CLIP ViT-B/32's two towers, without sound.

    vision_features, text_features, audio_features: what of a tower is projected: its own pooled vector (or the mean, where
    it has none), the mean of its tokens (as sentence-transformers' encoders pool), or all its tokens.
    `is_matryoshka` and `matryoshka_dimensions` are read by vLLM. Raises ValueError for settings that contradict one another.
    """

    model_type = "aligner"
    attribute_map = {"projection_dim": "embed_dim", "hidden_size": "embed_dim"}  # what other libraries ask for
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, model_type="clip_text_model"),
        "audio_config": SubConfigSpec(AutoConfig, model_type="whisper", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None  # None: no sound
    vision_features: str = "pooled"
    text_features: str = "pooled"
    audio_features: str = "pooled"
    projector: str = "mlp"
    projector_dim: int = 1024
    num_latents: int = 8  # of the perceiver: into how many tokens it reads a tower's
    perceiver_layers: int = 2
    num_attention_heads: int = 8  # of perceiver and pooling
    num_queries: int = 4  # of the pooling: how many ways a projector's tokens are averaged
    dropout: float = 0.0
    embed_dim: int = 4096
    matryoshka_dimensions: list[int] | None = None  # default: 64, 128, 256, … up to embed_dim
    is_matryoshka: bool = True
    loss: str = "infonce"
    logit_scale_init: float = 14.285714  # 1 / 0.07, as CLIP
    logit_bias_init: float = -10.0  # of the sigmoid loss, as SigLIP
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name, value, known in (
            ("vision_features", self.vision_features, FEATURES),
            ("text_features", self.text_features, FEATURES),
            ("audio_features", self.audio_features, FEATURES),
            ("projector", self.projector, PROJECTORS),
            ("loss", self.loss, LOSSES),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if self.projector_dim % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide projector_dim={self.projector_dim}"
            )
        if not self.is_matryoshka:
            self.matryoshka_dimensions = [self.embed_dim]
        if self.matryoshka_dimensions is None:
            self.matryoshka_dimensions = [d for d in (64 * 2**i for i in range(20)) if d < self.embed_dim]
            self.matryoshka_dimensions.append(self.embed_dim)
        dims = self.matryoshka_dimensions
        if dims != sorted(set(dims)) or not dims or dims[0] < 1 or dims[-1] != self.embed_dim:
            raise ValueError(f"matryoshka_dimensions must ascend to embed_dim={self.embed_dim}, are {dims}")


AlignerConfig.register_for_auto_class()

__all__ = ["AlignerConfig"]
