"""
Aligner: pictures, words and sounds in one space, whose first numbers are a space themselves.

    pixel_values (n, 3, H, W)   -> vision tower -> tokens (n, t, d_v) -> projector -> pooling -> linear -> (n, embed_dim)
    input_ids (n, l)            -> text tower   -> tokens (n, l, d_t) -> …                              -> (n, embed_dim)
    audio_values, as its tower takes them -> audio tower -> tokens    -> …                              -> (n, embed_dim)

    two of them, paired -> cosines of their first k numbers, for each k of `matryoshka_dimensions` -> loss (matryoshka.py)

Unusual:
- Any towers of Hugging Face's: what differs (a pooled vector or none, sequences or maps, a decoder that is not wanted) is dealt
  with in `tower_tokens`. A tower that is frozen can be left out of training altogether: hand its features, computed before, as
  `vision_features`, `text_features`, `audio_features`.
- `forward` gives embeddings and no loss: what is a negative is known of the whole batch only, over all processes and chunks.
  `alignment_loss` is the loss; trainers/contrastive_trainer.py gathers what it needs.

Travels to the Hub with: configuration_aligner.py, bridges.py, contrastive_losses.py, matryoshka.py, towers.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from .bridges import AttentionPooling, PerceiverResampler, TokenMLP
from .configuration_aligner import AlignerConfig
from .contrastive_losses import MAX_LOGIT_SCALE, info_nce, sigmoid_loss
from .matryoshka import nested_cosines, truncate
from .towers import encoder_class, load_encoder, quantize_without


@dataclass
class AlignerOutput(ModelOutput):
    """Embeddings are at unit length."""

    image_embeds: Tensor | None = None  # (pictures, embed_dim)
    text_embeds: Tensor | None = None
    audio_embeds: Tensor | None = None
    logit_scale: Tensor | None = None  # in training: what the loss uses beside embeddings, so that DDP sees it used
    logit_bias: Tensor | None = None


LOSSES = {"infonce": info_nce, "sigmoid": sigmoid_loss}


class AlignerProjector(nn.Module):
    """A tower's tokens (n, t, width), which of them are there (n, t) bool -> embeddings (n, embed_dim), not yet at unit length."""

    def __init__(self, config: AlignerConfig, width: int):
        super().__init__()
        dim, heads = config.projector_dim, config.num_attention_heads
        if config.projector == "perceiver":
            sizes = dim, config.num_latents, config.perceiver_layers, heads
            self.projector = PerceiverResampler(width, *sizes, config.dropout)
        else:
            self.projector = TokenMLP(width, dim, config.dropout)
        self.pooling = AttentionPooling(dim, config.num_queries)
        self.head = nn.Linear(dim * config.num_queries, config.embed_dim, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.pooling(*self.projector(tokens, mask)))


class AlignerPreTrainedModel(PreTrainedModel):
    config_class = AlignerConfig
    base_model_prefix = ""
    input_modalities = ("image", "text", "audio")
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = ["vision_projector", "text_projector", "audio_projector"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, name, *args, quantization_config: Any = None, **kwargs):
        """`quantization_config` reaches the text tower only."""
        if quantization_config is not None:
            parts = [f"{part}_{what}" for part in ("vision", "text", "audio") for what in ("tower", "projector")]
            quantization_config = quantize_without(
                quantization_config, [part for part in parts if part != "text_tower"]
            )
            kwargs["quantization_config"] = quantization_config
        return super().from_pretrained(name, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(
            module, AlignerModel
        ):  # transformers passes over modules of ours that hold no parameter themselves
            for projector in (part for part in module.children() if isinstance(part, AlignerProjector)):
                projector.projector.init_weights()
                projector.pooling.init_weights()
                init.xavier_uniform_(projector.head.weight)
            init.constant_(module.logit_scale, float(torch.tensor(self.config.logit_scale_init).log()))
            init.constant_(module.logit_bias, self.config.logit_bias_init)


def encoder_of(config: PreTrainedConfig) -> PreTrainedModel:
    """A new tower of that config; of an encoder–decoder (Whisper) the encoder."""
    model = encoder_class(config)(config)
    return model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model


def width_of(tower: PreTrainedModel) -> int:
    """How wide a tower's tokens are. Raises ValueError for one that does not say."""
    if (timm := getattr(tower, "timm_model", None)) is not None:
        return timm.num_features
    for name in ("hidden_size", "d_model", "embed_dim"):
        if getattr(tower.config, name, None) is not None:
            return getattr(tower.config, name)
    raise ValueError(f"a {tower.config.model_type!r} config does not say how wide its tokens are")


def tower_tokens(outputs: ModelOutput, mask: Tensor | None, features: str) -> tuple[Tensor, Tensor | None]:
    """
    What a tower gave -> tokens (n, t, d) and which of them are there (n, t) bool. features "pooled": one token, the tower's own
    pooled vector or, where it has none, the mean of its tokens; "mean": the mean.
    """
    tokens = outputs.last_hidden_state
    if tokens.ndim == 4:  # a map (n, d, rows, columns)
        tokens, mask = tokens.flatten(2).transpose(1, 2), None
    if mask is not None and mask.shape[1] != tokens.shape[1]:
        mask = None  # of samples or frames that the tower has drawn together
    if features == "tokens":
        return tokens, None if mask is None else mask.bool()
    if features == "pooled" and (pooled := getattr(outputs, "pooler_output", None)) is not None:
        return pooled.unsqueeze(1), None
    weights = torch.ones_like(tokens[..., 0]) if mask is None else mask.to(tokens.dtype)
    return (weights.unsqueeze(-1) * tokens).sum(1, keepdim=True) / weights.sum(1)[:, None, None].clamp(min=1), None


class AlignerModel(AlignerPreTrainedModel):
    def __init__(self, config: AlignerConfig):
        super().__init__(config)
        self.vision_tower = encoder_of(config.vision_config)
        self.text_tower = encoder_of(config.text_config)
        self.vision_projector = AlignerProjector(config, width_of(self.vision_tower))
        self.text_projector = AlignerProjector(config, width_of(self.text_tower))
        if config.audio_config is not None:
            self.audio_tower = encoder_of(config.audio_config)
            self.audio_projector = AlignerProjector(config, width_of(self.audio_tower))
        self.logit_scale = nn.Parameter(torch.empty(()))  # its logarithm
        self.logit_bias = nn.Parameter(torch.empty(()))
        self.post_init()

    @classmethod
    def from_towers(
        cls,
        vision_model: str | None = None,
        text_model: str | None = None,
        audio_model: str | None = None,
        vision_revision: str | None = None,
        text_revision: str | None = None,
        audio_revision: str | None = None,
        **config,
    ):
        """
        Pretrained towers with new projectors: Hub ids or folders of any vision, text and audio models, or of models that have such
        a part. Further keywords go to `AlignerConfig`: `vision_config`, … for towers that know nothing yet.

        Raises OSError for a tower that cannot be had, ValueError for one without the part.
        """
        named = {"vision": (vision_model, vision_revision), "text": (text_model, text_revision)}
        named["audio"] = audio_model, audio_revision
        towers = {}
        for part, source in named.items():
            if source[0]:
                pools = config.get(f"{part}_features", "pooled") == "pooled"
                towers[part] = load_encoder(part, *source, pools=pools, dtype=torch.float32)
        model = cls(AlignerConfig(**{f"{part}_config": tower.config for part, tower in towers.items()}, **config))
        for part, tower in towers.items():
            setattr(model, f"{part}_tower", tower)
        return model

    def towers(self) -> dict[str, nn.Module]:
        names = ("vision", "text", "audio")
        return {name: getattr(self, f"{name}_tower") for name in names if hasattr(self, f"{name}_tower")}

    def freeze_towers(self, *parts: str) -> None:
        """Of "vision", "text" and "audio", freeze these, and let the others learn."""
        for name, tower in self.towers().items():
            tower.requires_grad_(name not in parts)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_tower.set_input_embeddings(value)

    def encode(self, part: str, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """
        The features of a tower ("vision", "text", "audio"), before its projector: (n, t, d), and which of them are there (n, t)
        bool or None for all. Raises ValueError for a tower that the model has not.
        """
        if part not in self.towers():
            raise ValueError(f"this aligner has no {part} tower; it has {', '.join(self.towers())}")
        tower = self.towers()[part]
        learns = any(parameter.requires_grad for parameter in tower.parameters())
        given = {} if mask is None or part != "text" else {"attention_mask": mask}
        values = values.to(tower.dtype) if values.is_floating_point() else values
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            return tower_tokens(tower(values, **given), mask, getattr(self.config, f"{part}_features"))

    def project(self, part: str, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of a tower -> embeddings (n, embed_dim), not yet at unit length."""
        return getattr(self, f"{part}_projector")(tokens, mask)

    def _features(
        self, part: str, values: Tensor | None, mask: Tensor | None, features: Tensor | None, truncate_dim: int | None
    ) -> BaseModelOutputWithPooling:
        tokens, there = (features, mask) if features is not None else self.encode(part, values, mask)
        there = None if there is None else there.bool()
        pooled = truncate(self.project(part, tokens, there), truncate_dim)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        truncate_dim: int | None = None,
        vision_features: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        `pooler_output` (n, truncate_dim or embed_dim), at unit length; `last_hidden_state`, what the tower saw.

        vision_features: what `encode` gave before, instead of pixels. Raises ValueError for a truncate_dim that there is not.
        """
        return self._features("vision", pixel_values, None, vision_features, truncate_dim)

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        truncate_dim: int | None = None,
        text_features: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """As `get_image_features`. With text_features, attention_mask says which of them are there."""
        return self._features("text", input_ids, attention_mask, text_features, truncate_dim)

    def get_audio_features(
        self,
        audio_values: Tensor | None = None,
        truncate_dim: int | None = None,
        audio_features: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """As `get_image_features`. audio_values: what the audio tower takes (a spectrogram)."""
        return self._features("audio", audio_values, None, audio_features, truncate_dim)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        audio_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        text_features: Tensor | None = None,
        audio_features: Tensor | None = None,
        truncate_dim: int | None = None,
        chunk_size: int | None = None,
        **kwargs,
    ) -> AlignerOutput:
        """
        Embeddings (n, truncate_dim or embed_dim) of what is given.

        chunk_size: embed so many at a time and keep no activations: each chunk is embedded again in the backward pass (GradCache).
        """
        given = {
            "image": ("vision", pixel_values, None, vision_features),
            "text": ("text", input_ids, attention_mask, text_features),
            "audio": ("audio", audio_values, None, audio_features),
        }
        out = {"logit_scale": self.logit_scale * 1, "logit_bias": self.logit_bias * 1} if self.training else {}
        for name, (part, *tensors) in given.items():
            count = next((len(tensor) for tensor in tensors if tensor is not None), 0)
            if count:
                out[f"{name}_embeds"] = self._embed(part, tensors, truncate_dim, count, chunk_size)
        return AlignerOutput(**out)

    def _embed(
        self, part: str, tensors: list[Tensor | None], truncate_dim: int | None, count: int, chunk_size: int | None
    ) -> Tensor:
        def embed(*some: Tensor | None) -> Tensor:
            return self._features(part, *some, truncate_dim).pooler_output

        if chunk_size is None or not torch.is_grad_enabled():
            return embed(*tensors)
        chunks = []
        for start in range(0, count, chunk_size):
            some = [None if tensor is None else tensor[start : start + chunk_size] for tensor in tensors]
            chunks.append(checkpoint(embed, *some, use_reentrant=False))
        return torch.cat(chunks)

    def logits(self, cosines: Tensor) -> Tensor:
        """Cosines as the loss takes them."""
        scaled = cosines * self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return scaled + self.logit_bias if self.config.loss == "sigmoid" else scaled

    def alignment_loss(self, a: Tensor, b: Tensor, equal: Tensor | None = None, weights: list[float] | None = None):
        """
        The loss of paired embeddings a and b (n, embed_dim) at each of the config's `matryoshka_dimensions`, a mean by `weights`
        (default: equal). equal (n, n) bool: pairs that are no negatives.
        """
        dims = self.config.matryoshka_dimensions
        weights = [1.0] * len(dims) if weights is None else weights
        loss = LOSSES[self.config.loss]
        parts = [loss(self.logits(cosines), equal) for cosines in nested_cosines(a, b, dims)]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)


AlignerModel.register_for_auto_class("AutoModel")

__all__ = ["AlignerModel", "AlignerPreTrainedModel"]
