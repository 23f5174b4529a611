"""
Contrastive GPT-2: a language model that captions behind a visual prefix, and finds pictures by what it reads alone.

    pixels (n, 3, H, W) -> vision tower -> features (n, 1 + p, d_v): what the tower pools to, then its patches
    features        -> mapper            -> prefix (n, k, d_t), which overwrites a picture's k placeholders in the prompt
    prompt, caption -> language model    -> hidden states -> the language model's own head -> logits
    caption alone   -> language model    -> hidden state at its end token -> projection -> text embedding  (embed_dim)
    features        -> weighted means                                     -> projection -> image embedding (embed_dim)

Unusual:
- One language model reads a caption twice: behind the picture, to learn to write it, and alone, to be found by it. Nothing of the
  picture is in a text embedding.
- `image_repeats`: prompts may show one picture several times (a chosen and a rejected caption); it is encoded once.
- With labels, `sequence_logps` (b,) are the rows' summed log-probabilities, float32: what preference losses are made of. In
  training logits exist at labelled positions only, shape (labelled, vocab).
- `model.get_image_features` gives prefix tokens, as `generate` asks of every VLM; that of the whole model gives embeddings, as
  CLIP's does.

After ClipCap (https://arxiv.org/abs/2111.09734) and CLIP (https://arxiv.org/abs/2103.00020).
Travels to the Hub with: configuration_contrastive_gpt2.py, bridges.py, contrastive_losses.py, towers.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from .bridges import AttentionPooling, Float32Module, MLPAdapter, PerceiverResampler, ProjectionHead
from .configuration_contrastive_gpt2 import ContrastiveGPT2Config
from .contrastive_losses import MAX_LOGIT_SCALE, info_nce
from .towers import load_text_tower, load_vision_tower, quantize_without


@dataclass
class ContrastiveGPT2ModelOutput(ModelOutput):
    last_hidden_state: Tensor | None = None  # (b, t, d_t)
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None  # (all placeholders, d_t), the prefix, float32


@dataclass
class ContrastiveGPT2Output(ModelOutput):
    loss: Tensor | None = None  # of the caption, a mean over labelled tokens
    logits: Tensor | None = None  # (b, t, vocab); when training with labels (labelled, vocab)
    sequence_logps: Tensor | None = None  # (b,) with labels
    image_embeds: Tensor | None = None  # (n, embed_dim) at unit length, where text_input_ids are given too
    text_embeds: Tensor | None = None  # (n, embed_dim) at unit length
    logit_scale: Tensor | None = None  # beside embeddings: its logarithm, so that DDP sees it used
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


OURS = ("mapper", "image_pooling", "image_projection", "text_projection")


class ContrastiveGPT2PreTrainedModel(PreTrainedModel):
    config_class = ContrastiveGPT2Config
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = list(OURS)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Float32Module):
            module.init_weights()
        elif isinstance(module, ContrastiveGPT2Model):
            init.constant_(module.logit_scale, float(torch.tensor(self.config.logit_scale_init).log()))

    @classmethod
    def from_pretrained(cls, name, *args, quantization_config: Any = None, **kwargs):
        """`quantization_config` reaches the language model only."""
        if quantization_config is not None:
            parts = [f"{prefix}{part}" for prefix in ("model.", "") for part in ("vision_tower", *OURS)]
            kwargs["quantization_config"] = quantize_without(quantization_config, [*parts, "lm_head"])
        return super().from_pretrained(name, *args, **kwargs)


class ContrastiveGPT2Model(ContrastiveGPT2PreTrainedModel):
    """Sees and reads, does not speak: returns hidden states, which trainers turn into log-probabilities."""

    def __init__(self, config: ContrastiveGPT2Config):
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_tower = AutoModel.from_config(vision)
        if config.mapper == "mlp":
            middle = config.mapper_hidden_size or config.prefix_length * text.hidden_size // 2
            self.mapper = MLPAdapter(vision.hidden_size, middle, text.hidden_size, config.prefix_length)
        else:
            heads = config.mapper_num_heads or text.num_attention_heads
            sizes = text.hidden_size, config.prefix_length, config.mapper_layers, heads
            self.mapper = PerceiverResampler(vision.hidden_size, *sizes)
        self.language_model = AutoModel.from_config(text)
        self.image_pooling = AttentionPooling(vision.hidden_size, config.num_queries)
        self.image_projection = ProjectionHead(vision.hidden_size * config.num_queries, config.embed_dim)
        self.text_projection = ProjectionHead(text.hidden_size, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))  # its logarithm
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(1, features) that pictures (n, 3, H, W) have: rows and columns of a sequence, for whoever caches them."""
        size = self.config.vision_config.patch_size
        return 1, 1 + (pixel_values.shape[-2] // size) * (pixel_values.shape[-1] // size)

    def encode_patches(self, pixel_values: Tensor) -> Tensor:
        """
        Features (n, 1 + p, d_v) in the tower's dtype: what it pools to (its patches' mean, where it does not pool), then its
        patches, without class token and registers.
        """
        frozen = not any(p.requires_grad for p in self.vision_tower.parameters()) and not pixel_values.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype))
            patches = outputs.last_hidden_state[:, -(self.patch_grid(pixel_values)[1] - 1) :]
            pooled = getattr(outputs, "pooler_output", None)
            pooled = patches.mean(1) if pooled is None else pooled
            return torch.cat([pooled.unsqueeze(1), patches], 1)

    def prefix(self, features: Tensor) -> Tensor:
        """Features (n, 1 + p, d_v) -> (n, prefix_length, d_t), float32."""
        return self.mapper(features[:, :1]) if self.config.mapper == "mlp" else self.mapper(features)[0]

    def get_image_features(
        self, pixel_values: Tensor | None = None, vision_features: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        `pooler_output` is a list with one prefix (prefix_length, d_t) a picture; `last_hidden_state`, the features.

        vision_features: what `encode_patches` gave before, (n, 1, 1 + p, d_v) or (n, 1 + p, d_v); then no pixels are needed.
        """
        features = self.features_of(pixel_values, vision_features)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=list(self.prefix(features)))

    def features_of(self, pixel_values: Tensor | None, vision_features: Tensor | None) -> Tensor:
        if vision_features is None:
            return self.encode_patches(pixel_values)
        return vision_features.flatten(1, 2) if vision_features.ndim == 4 else vision_features

    def embed_images(self, features: Tensor) -> Tensor:
        """Features (n, 1 + p, d_v) -> (n, embed_dim) at unit length."""
        return nn.functional.normalize(self.image_projection(self.image_pooling(features)), dim=-1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Texts (n, l), which end in the end token, padded on either side -> (n, embed_dim) at unit length."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        hidden = self.language_model(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        ends = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return nn.functional.normalize(self.text_projection(ends), dim=-1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        vision_features: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_repeats: int = 1,
        **kwargs,
    ) -> ContrastiveGPT2ModelOutput:
        """
        image_repeats: the rows of input_ids show the same pictures so many times over, first all of them once, then again.

        Raises ValueError when placeholders and prefix tokens differ in number, naming both; when pictures come without
        `input_ids`; and when neither or both of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        seen = (mm_encoder_outputs or {}).get("image")
        if seen is None and (pixel_values is not None or vision_features is not None):
            seen = self.get_image_features(pixel_values, vision_features)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif seen is not None:
            raise ValueError("images need input_ids: placeholders cannot be found in inputs_embeds")
        prefix = None
        if seen is not None:
            prefix = torch.cat([*seen.pooler_output] * image_repeats).to(inputs_embeds.device)
            slots = input_ids == self.config.image_token_id
            if (found := int(slots.sum())) != len(prefix):
                raise ValueError(
                    f"Image features and image tokens do not match: the prompt holds {found} image tokens, the images yield "
                    f"{len(prefix)}. Let the processor write the placeholders, and do not truncate through an image."
                )
            inputs_embeds = inputs_embeds.masked_scatter(slots.unsqueeze(-1), prefix.to(inputs_embeds.dtype))
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return ContrastiveGPT2ModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=prefix,
        )


class ContrastiveGPT2ForConditionalGeneration(ContrastiveGPT2PreTrainedModel, GenerationMixin):
    def __init__(self, config: ContrastiveGPT2Config):
        super().__init__(config)
        self.model = ContrastiveGPT2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.tie_word_embeddings:  # which weight that is, the language model decides: wte here, embed_tokens there
            embeddings = self.get_input_embeddings()
            name = next(name for name, module in self.named_modules() if module is embeddings)
            self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.set_image_token(config.image_token_id)
        self.post_init()

    def set_image_token(self, image_token_id: int) -> None:
        """Say which token holds an image's place; it is never generated."""
        self.config.image_token_id = image_token_id
        self.generation_config.suppress_tokens = [image_token_id]

    @classmethod
    def from_towers(
        cls,
        vision_model: str,
        text_model: str,
        vision_revision: str | None = None,
        text_revision: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        **config,
    ) -> "ContrastiveGPT2ForConditionalGeneration":
        """
        Join two pretrained towers, each a Hub id or a folder; mapper and projections are new. Further keywords go to
        `ContrastiveGPT2Config`. Raises OSError for a tower that cannot be had, ValueError for one with weights missing.
        """
        tower = load_vision_tower(vision_model, vision_revision, dtype=dtype)
        writer = load_text_tower(text_model, text_revision, dtype=dtype)
        model = cls(
            ContrastiveGPT2Config(vision_config=tower.config, text_config=writer.config.get_text_config(), **config)
        )
        model.model.vision_tower = tower
        model.model.language_model = writer.base_model
        model.lm_head = writer.get_output_embeddings()
        model.tie_weights()
        return model

    @property
    def logit_scale(self) -> Tensor:
        """The temperature's inverse, its logarithm."""
        return self.model.logit_scale

    def towers(self) -> dict[str, nn.Module]:
        return {"vision": self.model.vision_tower, "text": self.model.language_model}

    def freeze_towers(self, *parts: str) -> None:
        """Of "vision" and "text", freeze these, and let the others learn; mapper and projections always do."""
        for name, tower in self.towers().items():
            tower.requires_grad_(name not in parts)
        self.lm_head.requires_grad_("text" not in parts)

    def save_pretrained(self, *args, **kwargs) -> None:
        # one class, two doors: generic evaluators ask AutoModel for the generator
        name = "modeling_contrastive_gpt2.ContrastiveGPT2ForConditionalGeneration"
        self.config.auto_map = {"AutoModel": name, "AutoModelForImageTextToText": name}
        super().save_pretrained(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_image_features(
        self, pixel_values: Tensor | None = None, vision_features: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` (n, embed_dim) at unit length; `last_hidden_state` (n, 1 + p, d_v), what the tower saw."""
        features = self.model.features_of(pixel_values, vision_features)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=self.model.embed_images(features))

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` (n, embed_dim) at unit length of texts (n, l) as `processor.encode_text` gives them, read alone."""
        return BaseModelOutputWithPooling(pooler_output=self.model.embed_texts(input_ids, attention_mask))

    @torch.no_grad()
    def score(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """How well each of m captions (m, l), as `processor.encode_text` gives them, fits each of n pictures: cosines (n, m)."""
        seen = self.get_image_features(pixel_values).pooler_output
        return seen @ self.get_text_features(input_ids, attention_mask).pooler_output.T

    def forward(  # `generate` reads this signature: an argument not named here is one it refuses
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        vision_features: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        image_repeats: int = 1,
        text_input_ids: Tensor | None = None,
        text_attention_mask: Tensor | None = None,
        **kwargs,
    ) -> ContrastiveGPT2Output:
        """
        labels: (b, t), -100 where nothing is to be learned; the loss is a sum over labelled tokens divided by
        `num_items_in_batch` (default: how many there are here). text_input_ids (n, l): captions to be read alone; with them come
        embeddings of the pictures and of them. Without input_ids and inputs_embeds, embeddings are all there is.
        """
        if text_input_ids is not None and (pixel_values is not None or vision_features is not None):
            vision_features = self.model.features_of(pixel_values, vision_features)  # seen once, used twice
            pixel_values = None
        out = {}
        if text_input_ids is not None:
            if vision_features is not None:
                out["image_embeds"] = self.model.embed_images(vision_features)
            out["text_embeds"] = self.model.embed_texts(text_input_ids, text_attention_mask)
            out["logit_scale"] = self.model.logit_scale * 1
        if input_ids is None and inputs_embeds is None and text_input_ids is not None:
            return ContrastiveGPT2Output(**out)
        outputs = self.model(
            input_ids,
            pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            vision_features=vision_features,
            mm_encoder_outputs=mm_encoder_outputs,
            image_repeats=image_repeats,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, keep])
        else:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            labelled = targets != -100
            if self.training:
                logits = at_labels = self.lm_head(hidden[labelled])
            else:
                logits = self.lm_head(hidden)
                at_labels = logits[labelled]
            losses = nn.functional.cross_entropy(at_labels.float(), targets[labelled], reduction="none")
            count = labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            out["loss"] = losses.sum() / count
            rows = labelled.nonzero()[:, 0]
            out["sequence_logps"] = -losses.new_zeros(len(labels)).index_add(0, rows, losses)
        return ContrastiveGPT2Output(
            **out,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def logits(self, cosines: Tensor) -> Tensor:
        """Cosines as the contrastive loss takes them: the temperature is learned, and clamped."""
        return cosines * self.model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def alignment_loss(
        self, images: Tensor, texts: Tensor, equal: Tensor | None = None, weights: None = None
    ) -> Tensor:
        """InfoNCE of paired embeddings (n, embed_dim) at unit length. equal (n, n) bool: pairs that are no negatives."""
        return info_nce(self.logits(images @ texts.T), equal)


ContrastiveGPT2ForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["ContrastiveGPT2ForConditionalGeneration", "ContrastiveGPT2Model", "ContrastiveGPT2PreTrainedModel"]
