"""
SPIN VLM: picture and question become one memory; a small decoder looks into it for every word it says.

    pixels (n, 3, H, W) -> vision tower -> patches (n, p, d_v) -> norm, linear -> image tokens (n, p, d)
    question with p placeholders a picture (b, m) -> word embeddings (b, m, d), the placeholders overwritten by image tokens
    + position and type embeddings (word or picture), norm -> [self-attention, MLP] x memory layers -> memory (b, m, d)
                                                                                                     encoded once
    answer so far (b, t) -> [causal self-attention, cross-attention over the memory, MLP] x layers -> logits (b, t, vocab)

Unusual:
- The memory keeps to the order in which pictures and words stand in the question, so several pictures, or none, need no case
  of their own, and `image_mask` (b, m) tells which of it is picture: what head suppression scores.
- Without memory layers (the default) words and patches first meet in the decoder: enough to describe. To compare what a picture
  shows with what a question asks before the first word is said, `num_memory_layers` let them meet in the memory.
- The decoder's keys of the memory are computed once: a step costs one token, however long that is; only attention itself grows.
- When training with labels, logits exist at labelled positions only, shape (labelled, vocab).

The tower is timm's ViT by default (its weights travel with the model), or any that transformers loads.
Travels to the Hub with: configuration_spin.py, towers.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bart.modeling_bart import eager_attention_forward

from .configuration_spin import SpinVLMConfig
from .towers import load_vision_tower


WORD, PICTURE = 0, 1  # types of memory


@dataclass
class SpinVLMMemory(ModelOutput):
    last_hidden_state: Tensor | None = None  # (b, m, d)
    image_mask: Tensor | None = None  # (b, m) bool, True where a picture is


@dataclass
class SpinVLMOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None  # (b, t, vocab); when training with labels (labelled, vocab)
    past_key_values: Cache | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    image_mask: Tensor | None = None


class SpinVLMAttention(nn.Module):
    """Multi-head attention over a memory, over what came before, or over a whole. Scores and weights are never kept."""

    def __init__(
        self, config: SpinVLMConfig, layer_idx: int, is_cross_attention: bool = False, is_causal: bool = False
    ):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_cross_attention = is_cross_attention
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)  # a bias on keys cancels in softmax
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        past_key_values: EncoderDecoderCache | None = None,
        memory: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        query = self._heads(self.q_proj(hidden_states))
        cache = past_key_values
        if cache is not None:
            cache = cache.cross_attention_cache if self.is_cross_attention else cache.self_attention_cache
        if self.is_cross_attention and cache is not None and past_key_values.is_updated.get(self.layer_idx):
            key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        else:
            source = memory if self.is_cross_attention else hidden_states
            key, value = self._heads(self.k_proj(source)), self._heads(self.v_proj(source))
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
                if self.is_cross_attention:
                    past_key_values.is_updated[self.layer_idx] = True
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1))


class SpinVLMMLP(nn.Module):
    def __init__(self, config: SpinVLMConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(states)))


class SpinVLMMemoryLayer(GradientCheckpointingLayer):
    """Words and patches look at one another, whichever comes first."""

    def __init__(self, config: SpinVLMConfig, layer_idx: int):
        super().__init__()
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.self_attn_norm = nn.LayerNorm(width, epsilon)
        self.self_attn = SpinVLMAttention(config, layer_idx)
        self.mlp_norm = nn.LayerNorm(width, epsilon)
        self.mlp = SpinVLMMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        states = states + self.dropout(self.self_attn(self.self_attn_norm(states), attention_mask))
        return states + self.dropout(self.mlp(self.mlp_norm(states)))


class SpinVLMDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: SpinVLMConfig, layer_idx: int):
        super().__init__()
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.self_attn_norm = nn.LayerNorm(width, epsilon)
        self.self_attn = SpinVLMAttention(config, layer_idx, is_causal=True)
        self.cross_attn_norm = nn.LayerNorm(width, epsilon)
        self.cross_attn = SpinVLMAttention(config, layer_idx, is_cross_attention=True)
        self.mlp_norm = nn.LayerNorm(width, epsilon)
        self.mlp = SpinVLMMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        states: Tensor,
        attention_mask: Tensor | None,
        memory: Tensor,
        memory_mask: Tensor | None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> Tensor:
        states = states + self.dropout(
            self.self_attn(self.self_attn_norm(states), attention_mask, past_key_values, **kwargs)
        )
        states = states + self.dropout(
            self.cross_attn(self.cross_attn_norm(states), memory_mask, past_key_values, memory, **kwargs)
        )
        return states + self.dropout(self.mlp(self.mlp_norm(states)))


class SpinVLMPreTrainedModel(PreTrainedModel):
    config_class = SpinVLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SpinVLMMemoryLayer", "SpinVLMDecoderLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]


def _positions(mask: Tensor | None, past: int, count: int, device: torch.device) -> Tensor:
    """Where each of the last `count` tokens stands among those that are not padding: (b or 1, count)."""
    if mask is None:
        return torch.arange(past, past + count, device=device)[None]
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -count:]


class SpinVLMEncoder(SpinVLMPreTrainedModel):
    """Pictures and question -> memory."""

    main_input_name = "input_ids"

    def __init__(self, config: SpinVLMConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        # timm tells its width on the model, transformers on the config
        seen = getattr(getattr(self.vision_tower, "timm_model", config.vision_config), "num_features", None)
        seen = seen or config.vision_config.hidden_size
        self.image_norm = nn.LayerNorm(seen, config.layer_norm_eps)
        self.image_projection = nn.Linear(seen, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embed_types = nn.Embedding(2, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(SpinVLMMemoryLayer(config, i) for i in range(config.num_memory_layers))
        if self.layers:
            self.memory_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(1, tokens): the class token has no place in rows and columns."""
        return 1, self.config.image_seq_length

    def encode_patches(self, pixel_values: Tensor) -> Tensor:
        """
        What the vision tower makes of pictures: (n, p, d_v), class token included. Raises ValueError for a tower that does not
        give a sequence.
        """
        frozen = not any(p.requires_grad for p in self.vision_tower.parameters()) and not pixel_values.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            patches = self.vision_tower(pixel_values.to(self.vision_tower.dtype)).last_hidden_state
        if patches.ndim != 3:
            name = getattr(self.config.vision_config, "architecture", self.config.vision_config.model_type)
            raise ValueError(
                f"the vision tower {name!r} gives maps {tuple(patches.shape)}, not tokens; choose a vision transformer"
            )
        return patches

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        **kwargs,
    ) -> SpinVLMMemory:
        """
        input_ids (b, m), of which `image_seq_length` a picture are `image_token_id`; pixel_values (n, 3, H, W), the pictures in
        the order of their placeholders; vision_features (n, 1, p, d_v), what `encode_patches` gave for them before, instead.

        Raises ValueError when placeholders and image tokens differ in number, and for a question longer than the positions.
        """
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        positions = _positions(attention_mask, 0, length, input_ids.device)
        if length > limit and int(positions.max()) >= limit:
            raise ValueError(
                f"pictures and question are {int(positions.max()) + 1} tokens; max_position_embeddings is {limit}"
            )
        states = self.embed_tokens(input_ids)
        image_mask = input_ids == self.config.image_token_id
        patches = vision_features.flatten(1, 2) if vision_features is not None else None
        if patches is None and pixel_values is not None:
            patches = self.encode_patches(pixel_values)
        if patches is not None:
            tokens = self.image_projection(self.image_norm(patches.to(self.image_norm.weight.dtype))).flatten(0, 1)
            if (found := int(image_mask.sum())) != len(tokens):
                raise ValueError(
                    f"Image features and image tokens do not match: the question holds {found} image tokens, the images yield "
                    f"{len(tokens)}. Let the processor write the placeholders, and do not truncate through an image."
                )
            states = states.masked_scatter(image_mask.unsqueeze(-1), tokens.to(states.dtype))
        types = torch.where(image_mask, PICTURE, WORD)
        memory = self.norm(states + self.embed_positions(positions) + self.embed_types(types))
        if self.layers:
            all_of_it = create_bidirectional_mask(self.config, memory, attention_mask)
            for layer in self.layers:
                memory = layer(memory, all_of_it)
            memory = self.memory_norm(memory)
        return SpinVLMMemory(last_hidden_state=memory, image_mask=image_mask)


class SpinVLMDecoder(SpinVLMPreTrainedModel):
    """An answer so far, and a memory -> hidden states."""

    def __init__(self, config: SpinVLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(SpinVLMDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        memory: Tensor,
        memory_mask: Tensor | None,
        past_key_values: EncoderDecoderCache | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Raises ValueError for an answer longer than the positions."""
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        limit = self.config.max_position_embeddings
        if past + input_ids.shape[1] > limit:
            raise ValueError(f"an answer of {past + input_ids.shape[1]} tokens; max_position_embeddings is {limit}")
        flat = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        positions = _positions(flat, int(past), input_ids.shape[1], input_ids.device)
        states = self.dropout(self.embed_tokens(input_ids) + self.embed_positions(positions))
        own = past_key_values.self_attention_cache if past_key_values is not None else None
        causal = create_causal_mask(self.config, states, attention_mask, own, positions)
        across = create_bidirectional_mask(self.config, states, memory_mask, encoder_hidden_states=memory)
        seen = [states]
        for layer in self.layers:
            states = layer(states, causal, memory, across, past_key_values=past_key_values, **kwargs)
            seen.append(states)
        states = self.norm(states)
        return states, (*seen[:-1], states) if output_hidden_states else None


class SpinVLMModel(SpinVLMPreTrainedModel):
    _tied_weights_keys = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}

    def __init__(self, config: SpinVLMConfig):
        super().__init__(config)
        self.encoder = SpinVLMEncoder(config)
        self.decoder = SpinVLMDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.embed_tokens = self.encoder.embed_tokens = value


class SpinVLMForConditionalGeneration(SpinVLMPreTrainedModel, GenerationMixin):
    memory_has_image_mask = True  # so head suppression knows where to look
    _tied_weights_keys = {
        "model.encoder.embed_tokens.weight": "model.decoder.embed_tokens.weight",
        "lm_head.weight": "model.decoder.embed_tokens.weight",
    }

    def __init__(self, config: SpinVLMConfig):
        super().__init__(config)
        self.model = SpinVLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.generation_config.suppress_tokens = [config.image_token_id]
        self.post_init()

    @classmethod
    def from_vision(cls, vision_model: str, vision_revision: str | None = None, **config):
        """
        A new decoder before a pretrained vision tower: a timm model's name (vit_tiny_patch16_224), a Hub id or a folder. Further
        keywords go to `SpinVLMConfig`.

        Raises OSError for a tower that cannot be had, ValueError for one that is not a vision transformer.
        """
        tower = load_vision_tower(timm_id(vision_model), vision_revision, dtype=torch.float32)
        if hasattr(tower.config, "do_pooling"):
            tower.config.do_pooling = False
        model = cls(SpinVLMConfig(vision_config=tower.config, **config))
        encoder = model.model.encoder
        encoder.vision_tower = tower
        size = getattr(tower.config, "image_size", None) or _input_size(tower)
        with torch.no_grad():
            model.config.image_seq_length = encoder.encode_patches(torch.zeros(1, 3, size, size)).shape[1]
        return model

    def freeze_vision(self, freeze: bool = True) -> None:
        self.model.encoder.vision_tower.requires_grad_(not freeze)

    def get_encoder(self, *args, **kwargs) -> nn.Module:
        return self.model.encoder

    def get_decoder(self, *args, **kwargs) -> nn.Module:
        return self.model.decoder

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def save_pretrained(self, *args, **kwargs) -> None:
        # one class, two doors: generic evaluators ask AutoModel for the generator
        name = "modeling_spin.SpinVLMForConditionalGeneration"
        self.config.auto_map = {"AutoModel": name, "AutoModelForImageTextToText": name}
        super().save_pretrained(*args, **kwargs)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (b, t), moved to the right by one behind the start token, padding for -100."""
        moved = nn.functional.pad(labels[:, :-1], (1, 0), value=self.config.decoder_start_token_id)
        return moved.masked_fill(moved == -100, self.config.pad_token_id)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: SpinVLMMemory | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> SpinVLMOutput:
        """
        input_ids and attention_mask (b, m): the question; labels (b, t): the answer with its end token, -100 where nothing is to
        be learned; decoder_input_ids (b, t), default: made of the labels or, without them, the start token, so that the logits are
        the first word's. The loss is a sum over labelled tokens divided by `num_items_in_batch` (default: how many there are
        here), so that accumulating gradients changes nothing. Raises ValueError as the encoder and decoder do.
        """
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(input_ids, attention_mask, pixel_values, vision_features)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        elif decoder_input_ids is None:
            start = self.config.decoder_start_token_id
            decoder_input_ids = torch.full((len(encoder_outputs[0]), 1), start, device=encoder_outputs[0].device)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        kwargs.pop("return_dict", None)
        hidden, seen = self.model.decoder(
            decoder_input_ids, decoder_attention_mask, encoder_outputs[0], attention_mask, past_key_values, **kwargs
        )
        loss = None
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, keep])
        else:
            labelled = labels != -100
            count = labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            logits = self.lm_head(hidden[labelled]) if self.training else self.lm_head(hidden)
            at_labels = logits if self.training else logits[labelled]
            loss = nn.functional.cross_entropy(at_labels.float(), labels[labelled], reduction="sum") / count
        return SpinVLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            decoder_hidden_states=seen,
            encoder_last_hidden_state=encoder_outputs[0],
            image_mask=getattr(encoder_outputs, "image_mask", None),
        )


def timm_id(name: str) -> str:
    """timm's "vit_tiny_patch16_224" -> the Hub id of its default weights; anything else as it is."""
    if "/" in name:
        return name
    import timm

    if not timm.is_model(name):
        return name
    return timm.get_pretrained_cfg(name).hf_hub_id


def _input_size(tower: PreTrainedModel) -> int:
    return tower.timm_model.patch_embed.img_size[0]


SpinVLMForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["SpinVLMForConditionalGeneration", "SpinVLMModel", "SpinVLMPreTrainedModel"]
