"""
OSSight: a frozen vision tower shines into a frozen language model, through an adapter and a gated cross-attention.

    pixels (n, 3, H, W) -> vision tower -> patches (n, p, d_v) -> pixel shuffle -> blocks (n, p / s**2, d_v * s**2)
    blocks -> adapter -> image tokens (n, k * p / s**2, d_t)
    every image placeholder of the prompt is overwritten, in order, by one image token
    every text embedding gets + gate * cross_attention(to the image tokens of earlier images)        (fusion)
    embeddings (b, t, d_t) -> language model -> hidden states -> the language model's own head -> logits

Unusual:
- The fusion is part of the embedding, so each *generated* token is fused too. Behind a KV cache the image tokens are no longer
  in sight; `generate` carries them along as `visual_states` (b, v, d_t) and `visual_mask` (b, v).
- When training with labels, logits exist at labelled positions only, shape (labelled, vocab): Qwen's vocabulary is 152 k.
- Adapter and fusion are float32 whatever the towers are.

- A checkpoint may name frozen towers on the Hub instead of carrying them (`config.save_towers = False`): tens of megabytes.
- 4-bit loading reaches the language model only, whoever asks for it.

Travels to the Hub with: configuration_ossight.py, bridges.py, fusion.py, towers.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, BitsAndBytesConfig, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from .bridges import MLPAdapter, pixel_shuffle
from .configuration_ossight import OSSightConfig
from .fusion import GatedCrossAttention
from .towers import (
    TowerSource,
    fetch,
    find_commit,
    fingerprint,
    hashes,
    load_text_tower,
    load_vision_tower,
    quantize_without,
    weight_files,
)


@dataclass
class OSSightModelOutput(ModelOutput):
    last_hidden_state: Tensor | None = None  # (b, t, d_t)
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None  # (all image tokens, d_t), adapted, float32
    visual_states: Tensor | None = (
        None  # (b, v, d_t) the image tokens of each row, padded; what `generate` carries along
    )
    visual_mask: Tensor | None = None  # (b, v) bool, False where padded


@dataclass
class OSSightOutput(ModelOutput):
    loss: Tensor | None = None  # caption_loss + alpha_align * align_loss
    logits: Tensor | None = None  # (b, t, vocab); when training with labels (labelled, vocab)
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
    visual_states: Tensor | None = None
    visual_mask: Tensor | None = None
    caption_loss: Tensor | None = None
    align_loss: Tensor | None = None


class OSSightPreTrainedModel(PreTrainedModel):
    config_class = OSSightConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["adapter", "fusion"]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (MLPAdapter, GatedCrossAttention)):
            module.init_weights()

    @classmethod
    def from_pretrained(cls, name, *args, quantization_config: Any = None, **kwargs):
        """
        `quantization_config` reaches the language model only; by default it is the one that a checkpoint's language model was
        trained in. Raises ValueError for one that cannot be kept to it, OSError and ValueError for towers left to the Hub that
        cannot be fetched or are not what they were.
        """
        config = kwargs.get("config")
        if config is None:
            config = cls.config_class.from_pretrained(name, **{k: kwargs[k] for k in _HUB_ARGUMENTS if k in kwargs})
        named = config.towers or {}
        if quantization_config is None and (trained_in := named.get("language_model", {}).get("quantization")):
            quantization_config = BitsAndBytesConfig.from_dict(trained_in)
        if quantization_config is not None:
            kwargs["quantization_config"] = language_model_only(quantization_config)
        loaded = super().from_pretrained(name, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        core = getattr(model, "model", model)
        for part, source in named.items():
            core.tower_sources[part] = TowerSource(
                source["id"], source["commit"], model.tower_fingerprint(part), source["files"]
            )
        return loaded

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys=None):
        # every way of loading comes through here, whatever the device map, dtype or quantisation; LoRA's too, with expected_keys
        if expected_keys is None and model.config.towers:
            if state_dict is None:
                state_dict = {key: weight for file in checkpoint_files for key, weight in load_file(file).items()}
            state_dict = state_dict | model.fetch_towers()
            checkpoint_files = None
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys)


_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")


def language_model_only(quantization_config: Any) -> Any:
    """
    The same quantisation, kept to the language model's layers: the vision tower, the bridges and the output head stay as they
    are. Raises ValueError for a method that has no list of modules to skip.
    """
    ours = [f"{prefix}{part}" for prefix in ("model.", "") for part in ("vision_tower", "adapter", "fusion")]
    return quantize_without(quantization_config, [*ours, "lm_head"])


def nf4(compute_dtype: torch.dtype | str = torch.float16) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantisation, as in QLoRA (https://huggingface.co/papers/2305.14314)."""
    if isinstance(compute_dtype, str):
        compute_dtype = getattr(torch, compute_dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


class OSSightModel(OSSightPreTrainedModel):
    """Sees and reads, does not speak: returns hidden states, which trainers turn into log-probabilities."""

    def __init__(self, config: OSSightConfig):
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_tower = AutoModel.from_config(vision)
        seen = vision.hidden_size * config.pixel_shuffle**2
        width = config.adapter_hidden_size or text.hidden_size
        self.adapter = MLPAdapter(seen, width, text.hidden_size, config.tokens_per_block)
        self.fusion = None
        if config.fusion == "cross_attention":
            self.fusion = GatedCrossAttention(text.hidden_size, config.fusion_num_heads or text.num_attention_heads)
        self.language_model = AutoModel.from_config(text)
        self.tower_sources: dict[str, TowerSource] = {}  # where unchanged towers came from: part -> source
        self.post_init()

    def tower_fingerprint(self, part: str) -> str:
        return fingerprint(getattr(self, part))

    def fetch_towers(self, prefix: str = "") -> dict[str, Tensor]:
        """The tensors that the checkpoint of this config left to the Hub, verified, under this model's names."""
        tensors = {}
        for part, named in self.config.towers.items():
            fetch(part, named)
            load = load_vision_tower if part == "vision_tower" else load_text_tower
            with torch.device("cpu"):
                tower = load(named["id"], named["commit"], dtype="auto")
            if part == "language_model" and prefix:
                tensors["lm_head.weight"] = tower.get_output_embeddings().weight.data
            tower = tower.base_model if part == "language_model" else tower
            tensors |= {f"{prefix}{part}.{key}": weight for key, weight in tower.state_dict().items()}
        return tensors

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        vision_features: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Adapted image tokens: `pooler_output` is a list with one (tokens, d_t) float32 tensor per image.

        pixel_values: (n, 3, H, W), or (n, patches, values) with `pixel_attention_mask` (n, patches) and `spatial_shapes` (n, 2)
        from a processor that keeps aspect ratios (SigLIP 2 NaFlex). vision_features: (n, rows, columns, d_v), what
        `encode_patches` gave for these pictures before; then neither pixels nor the tower are needed.
        """
        if vision_features is not None:
            return self._adapt(vision_features.flatten(1, 2), *vision_features.shape[1:3])
        patches = self.encode_patches(pixel_values, pixel_attention_mask, spatial_shapes)
        if spatial_shapes is None:
            return self._adapt(patches, *self.patch_grid(pixel_values))
        if self.config.pixel_shuffle > 1:
            raise ValueError(
                "pixel_shuffle needs pictures of one shape; pictures that keep theirs want pixel_shuffle=1"
            )
        adapted = self.adapter(patches)
        lengths = (spatial_shapes.prod(-1) * self.config.tokens_per_block).tolist()
        tokens = [row[:length] for row, length in zip(adapted, lengths, strict=True)]
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=tokens)

    def _adapt(self, patches: Tensor, rows: int, columns: int) -> BaseModelOutputWithPooling:
        patches = pixel_shuffle(patches, rows, columns, self.config.pixel_shuffle)
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=list(self.adapter(patches)))

    def patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches in pictures (n, 3, H, W)."""
        size = self.config.vision_config.patch_size
        return pixel_values.shape[-2] // size, pixel_values.shape[-1] // size

    def encode_patches(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
    ) -> Tensor:
        """What the vision tower makes of pictures, (n, patches, d_v) in its dtype: no class token, no registers, not adapted."""
        layer = self.config.vision_feature_layer
        naflex = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        kwargs = {k: v for k, v in naflex.items() if v is not None} | {"output_hidden_states": layer != -1}
        # a frozen tower needs no graph, unless its inputs do
        frozen = not any(p.requires_grad for p in self.vision_tower.parameters()) and not pixel_values.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), **kwargs)
            patches = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
        if spatial_shapes is None:
            rows, columns = self.patch_grid(pixel_values)
            patches = patches[:, patches.shape[1] - rows * columns :]  # class and register tokens come first
        return patches

    def _see(self, slots: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Gather each row's image tokens.

        slots: (b, t) bool, the placeholders; image_tokens: (all, d) -> visual_states (b, v, d), visual_mask (b, v) bool,
        positions (b, v): where in the row each stands.
        """
        counts = slots.sum(1)
        positions = slots.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        visual_mask = torch.arange(positions.shape[1], device=slots.device) < counts[:, None]
        states = image_tokens.new_zeros(*visual_mask.shape, image_tokens.shape[-1])
        return states.masked_scatter(visual_mask.unsqueeze(-1), image_tokens), visual_mask, positions

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        visual_states: Tensor | None = None,
        visual_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> OSSightModelOutput:
        """
        Raises ValueError when placeholders and image features differ in number, naming both; when images come without
        `input_ids`; and when neither or both of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is None and (pixel_values is not None or vision_features is not None):
            encoded = self.get_image_features(pixel_values, pixel_attention_mask, spatial_shapes, vision_features)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif encoded is not None:
            raise ValueError("images need input_ids: placeholders cannot be found in inputs_embeds")

        read_before = past_key_values is not None and past_key_values.get_seq_length() > 0
        if read_before and visual_states is None:  # an earlier chunk of the prompt, or an earlier turn, had images
            visual_states, visual_mask = getattr(past_key_values, "visual", (None, None))
        image_tokens = may_look = None
        if visual_states is not None:
            may_look = visual_mask[:, None, :].expand(-1, inputs_embeds.shape[1], -1)
        if encoded is not None:
            image_tokens = torch.cat(list(encoded.pooler_output)).to(inputs_embeds.device)
            slots = input_ids == self.config.image_token_id
            if (found := int(slots.sum())) != len(image_tokens):
                raise ValueError(
                    f"Image features and image tokens do not match: the prompt holds {found} image tokens, the images yield "
                    f"{len(image_tokens)}. Let the processor write the placeholders, and do not truncate through an image."
                )
            new_states, new_mask, positions = self._see(slots, image_tokens)
            # a text token may look at images before it; an image token, being one, at none
            before = positions[:, None, :] < torch.arange(slots.shape[1], device=slots.device)[None, :, None]
            may_look_at_new = before & new_mask[:, None, :]
            if visual_states is not None:
                new_states, new_mask = (
                    torch.cat(pair, 1) for pair in ((visual_states, new_states), (visual_mask, new_mask))
                )
                may_look_at_new = torch.cat([may_look, may_look_at_new], -1)
            visual_states, visual_mask, may_look = new_states, new_mask, may_look_at_new & ~slots[:, :, None]
        if past_key_values is not None and visual_states is not None:
            past_key_values.visual = visual_states, visual_mask

        text_embeds = inputs_embeds
        if image_tokens is not None:
            inputs_embeds = inputs_embeds.masked_scatter(slots.unsqueeze(-1), image_tokens.to(inputs_embeds.dtype))
        if self.fusion is not None and may_look is not None:
            inputs_embeds = inputs_embeds + self.fusion(text_embeds, visual_states, may_look).to(inputs_embeds.dtype)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return OSSightModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_tokens,
            visual_states=visual_states,
            visual_mask=visual_mask,
        )


def alignment_loss(visual_states: Tensor, visual_mask: Tensor, words: Tensor, labelled: Tensor) -> Tensor:
    """
    1 - cosine of the mean image token and the mean caption embedding, for each row: (b,) float32, 0 where either is missing.

    visual_states (b, v, d) with visual_mask (b, v); words (b, t, d), of which the `labelled` (b, t) are the caption. The caption
    is detached: the picture is drawn to the words, never the words to the picture.
    """

    def mean(states: Tensor, mask: Tensor) -> Tensor:
        mask = mask.unsqueeze(-1).float()
        return (states.float() * mask).sum(1) / mask.sum(1).clamp(min=1)

    with torch.autocast(words.device.type, enabled=False):
        cosine = nn.functional.cosine_similarity(
            mean(visual_states, visual_mask), mean(words.detach(), labelled), dim=-1
        )
        return (1 - cosine) * (visual_mask.any(1) & labelled.any(1))


class OSSightForConditionalGeneration(OSSightPreTrainedModel, GenerationMixin):
    def __init__(self, config: OSSightConfig):
        super().__init__(config)
        self.model = OSSightModel(config)
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
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        **config,
    ) -> "OSSightForConditionalGeneration":
        """
        Join two pretrained towers, each a Hub id or a folder; adapter and fusion are new. `quantization_config` (`nf4()`) is for
        the language model. Further keywords go to `OSSightConfig`.

        Raises OSError for a tower that cannot be had; ValueError for one with weights missing, for an encoder–decoder or headless
        language model, and where the joined model does not give the language model's own logits (a head or an embedding that it
        treats in a way of its own).
        """
        common = {"dtype": dtype, "attn_implementation": attn_implementation}
        commits = {}
        for part, tower, revision in (
            ("vision_tower", vision_model, vision_revision),
            ("language_model", text_model, text_revision),
        ):
            try:
                commits[part] = find_commit(tower, revision)
            except OSError as error:
                raise OSError(f"the {part.replace('_', ' ')} {tower!r} cannot be had: {error}") from error
        tower = load_vision_tower(vision_model, commits["vision_tower"] or vision_revision, **common)
        writer = load_text_tower(text_model, commits["language_model"] or text_revision, **common)
        joined = OSSightConfig(vision_config=tower.config, text_config=writer.config.get_text_config(), **config)
        joined._attn_implementation = writer.config._attn_implementation
        model = cls(joined)
        model.model.vision_tower = tower
        model.model.language_model = writer.base_model
        model.lm_head = writer.get_output_embeddings()
        model.tie_weights()
        with torch.no_grad():
            probe = torch.arange(8, device=writer.device)[None] % joined.text_config.vocab_size
            apart = (model.eval()(probe).logits - writer.eval()(probe).logits).abs().max().item()
        if apart > 1e-3:
            raise ValueError(
                f"{text_model} computes its logits in a way OSSight cannot keep: they differ by {apart:.3g}"
            )
        if quantization_config is not None:  # by the way that reloading takes, so that both arrive at the same weights
            model = cls.from_pretrained(
                None,
                config=model.config,
                state_dict=model.state_dict(),
                quantization_config=quantization_config,
                **common,
            )
        for part, name in (("vision_tower", vision_model), ("language_model", text_model)):
            if commits[part] is not None:
                model.model.tower_sources[part] = TowerSource(name, commits[part], model.tower_fingerprint(part))
        return model

    def tower_fingerprint(self, part: str) -> str:
        head = [self.lm_head] if part == "language_model" and not self.config.tie_word_embeddings else []
        return fingerprint(getattr(self.model, part), *head)

    def fetch_towers(self) -> dict[str, Tensor]:
        return self.model.fetch_towers("model.")

    def left_to_the_hub(self) -> dict[str, dict]:
        """
        What a checkpoint of this model need not carry: part -> {id, commit, files, quantization}. Only towers whose weights are,
        bit for bit, those that came from the Hub.
        """
        named = {}
        quantization = getattr(self.config, "quantization_config", None)
        for part, source in self.model.tower_sources.items():
            if source.fingerprint != self.tower_fingerprint(part):
                continue
            if source.files is None:
                source.files = hashes(weight_files(source.id, source.commit))
            named[part] = {"id": source.id, "commit": source.commit, "files": source.files}
            if part == "language_model" and quantization is not None:
                named[part]["quantization"] = quantization if isinstance(quantization, dict) else quantization.to_dict()
        return named

    def freeze_towers(self, vision: bool = True, text: bool = True) -> None:
        """Leave adapter and fusion trainable, and each tower that is not frozen here."""
        self.model.vision_tower.requires_grad_(not vision)
        self.model.language_model.requires_grad_(not text)
        self.lm_head.requires_grad_(not text)

    def save_pretrained(self, *args, **kwargs) -> None:
        """
        With `config.save_towers = False`, towers that are unchanged since they came from the Hub are named, not carried. Raises
        ValueError for a model with adapters injected by hand, whose weights would go by names that nothing reads.
        """
        # one class, two doors: generic evaluators ask AutoModel for the generator
        name = "modeling_ossight.OSSightForConditionalGeneration"
        self.config.auto_map = {"AutoModel": name, "AutoModelForImageTextToText": name}
        if not getattr(self, "_hf_peft_config_loaded", False) and any(
            "lora_" in key or ".base_layer." in key for key in self.state_dict()
        ):
            raise ValueError("this model holds adapters: save the PeftModel, or merge_and_unload() first")
        named = {} if self.config.save_towers else self.left_to_the_hub()
        prefixes = tuple(f"model.{part}." for part in named)
        ignored = [key for key in self.state_dict() if prefixes and key.startswith(prefixes)]
        if "language_model" in named:
            ignored.append("lm_head.weight")
        quantization = getattr(self.config, "quantization_config", None)
        before = self._keys_to_ignore_on_save, self.config.towers
        self._keys_to_ignore_on_save, self.config.towers = {*(before[0] or ()), *ignored}, named or None
        if "language_model" in named and quantization is not None:
            del self.config.quantization_config  # nothing that is carried is quantised
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self._keys_to_ignore_on_save, self.config.towers = before
            if quantization is not None:
                self.config.quantization_config = quantization

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(  # `generate` reads this signature: an argument not named here is one it refuses
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        visual_states: Tensor | None = None,
        visual_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> OSSightOutput:
        """
        labels: (b, t), -100 where nothing is to be learned. The losses are sums over labelled tokens divided by
        `num_items_in_batch` (default: how many there are here), so that accumulating gradients changes nothing; a row's alignment
        counts by its labelled tokens.
        """
        outputs = self.model(
            input_ids,
            pixel_values,
            pixel_attention_mask,
            spatial_shapes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            visual_states=visual_states,
            visual_mask=visual_mask,
            vision_features=vision_features,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = caption_loss = align_loss = None
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, keep])
        else:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            labelled = targets != -100
            count = labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            if self.training:
                logits = at_labels = self.lm_head(hidden[labelled])
            else:
                logits = self.lm_head(hidden)
                at_labels = logits[labelled]
            loss = caption_loss = (
                nn.functional.cross_entropy(at_labels.float(), targets[labelled], reduction="sum") / count
            )
            if self.config.alpha_align and outputs.visual_states is not None and input_ids is not None:
                caption = labels != -100
                words = self.get_input_embeddings()(input_ids)
                rows = alignment_loss(outputs.visual_states, outputs.visual_mask, words, caption)
                align_loss = (rows * labelled.sum(1)).sum() / count
                loss = caption_loss + self.config.alpha_align * align_loss
        return OSSightOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            visual_states=outputs.visual_states,
            visual_mask=outputs.visual_mask,
            caption_loss=caption_loss,
            align_loss=align_loss,
        )

    def prepare_inputs_for_generation(self, input_ids: Tensor, is_first_iteration: bool = False, **kwargs) -> dict:
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not kwargs.get("use_cache", True) and inputs.get("mm_encoder_outputs"):
            # the whole sequence is read anew, images included: where they stand decides who may look
            inputs["visual_states"] = inputs["visual_mask"] = None
        return inputs

    def _update_model_kwargs_for_generation(self, outputs: ModelOutput, model_kwargs: dict, **kwargs) -> dict:
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        return model_kwargs | {"visual_states": outputs.visual_states, "visual_mask": outputs.visual_mask}


OSSightForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["OSSightForConditionalGeneration", "OSSightModel", "OSSightPreTrainedModel", "alignment_loss", "nf4"]
