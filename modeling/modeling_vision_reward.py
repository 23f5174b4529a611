"""
Vision reward model: any vision–language model with a linear head that says how good an answer about a picture is.

    what the model's processor gives for pictures, question and answer -> its base model -> hidden states (b, t, d)
    -> of each row the last token that is attended to (b, d) -> linear, float32 -> logits (b, num_labels = 1): the reward

Unusual:
- Rows padded on the left are moved to the left edge first, so that an answer's reward is the same however it is padded, also in a
  model with learned positions.
- Answers that share their pictures (`answers=2`: all chosen ones, then all rejected ones) see them encoded once.
- A saved folder carries the code of the vision–language model inside, if that is not transformers' own.
- 4-bit loading reaches the language model only.

Travels to the Hub with: configuration_vision_reward.py, towers.py, and the files of the model inside.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .configuration_vision_reward import VisionRewardConfig
from .towers import quantize_without


PER_TOKEN = ("input_ids", "token_type_ids", "mm_token_type_ids", "position_ids")  # (b, t), beside attention_mask


def unpad_left(attention_mask: Tensor, **per_token: Any) -> tuple[Tensor, dict[str, Any]]:
    """Attention mask and what goes with it (b, t), each row's attended tokens first and in their order; the rest is as it was."""
    order = attention_mask.bool().int().argsort(dim=1, descending=True, stable=True)
    moved = {
        name: value.gather(1, order) if name in PER_TOKEN and value.ndim == 2 else value
        for name, value in per_token.items()
    }
    return attention_mask.gather(1, order), moved


class VisionRewardForSequenceClassification(PreTrainedModel):
    config_class = VisionRewardConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["score"]  # between two good answers a bfloat16's eight bits see no difference

    def __init__(self, config: VisionRewardConfig):
        super().__init__(config)
        whole = AutoModelForImageTextToText.from_config(config.vlm_config)
        self.vlm_class = type(whole)  # whose base model it is
        self.model = _base_of(whole)
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)
        self.post_init()

    @classmethod
    def from_vlm(
        cls, vlm: str, revision: str | None = None, quantization_config: Any = None, num_labels: int = 1, **kwargs
    ) -> "VisionRewardForSequenceClassification":
        """
        A pretrained image-text-to-text model (Hub id or folder) with a new head. Further keywords (dtype, attn_implementation,
        trust_remote_code, …) go to its from_pretrained.

        Raises OSError for a model that cannot be had; ValueError for an encoder–decoder, for one without a base model, and for one
        that holds adapters.
        """
        whole = AutoModelForImageTextToText.from_pretrained(vlm, revision=revision, **kwargs)
        if getattr(whole, "_hf_peft_config_loaded", False):
            raise ValueError(f"{vlm} holds adapters; merge them first (recipes/merge.py)")
        inside = whole.config
        if getattr(inside, "towers", None):
            inside.towers = None  # what was left to the Hub is carried from now on
        config = cls.config_class(vlm_config=inside, num_labels=num_labels, dtype=inside.dtype)
        with torch.device("meta"):
            model = cls(config)
        model.model = _base_of(whole)
        model.score = nn.Linear(model.score.in_features, num_labels, bias=False, device=whole.device)
        nn.init.normal_(model.score.weight, std=config.initializer_range)
        model.config._attn_implementation = inside._attn_implementation
        if quantization_config is None:
            return model.eval()
        # by the way that reloading takes, so that both arrive at the same weights
        return cls.from_pretrained(
            None,
            config=config,
            state_dict=model.state_dict(),
            quantization_config=quantization_config,
            dtype=inside.dtype,
        )

    @classmethod
    def from_pretrained(cls, name, *args, quantization_config: Any = None, **kwargs):
        """`quantization_config` reaches the language model only. Raises ValueError for one that cannot be kept to it."""
        if quantization_config is not None:
            config = kwargs.get("config")
            if config is None:
                hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
                config = cls.config_class.from_pretrained(name, **hub)
            with torch.device("meta"):
                hollow = cls(config)
            kwargs["quantization_config"] = quantize_without(quantization_config, hollow.not_language())
        return super().from_pretrained(name, *args, **kwargs)

    def not_language(self) -> list[str]:
        """The parts that no quantisation touches: head, vision tower, whatever joins it to the language model."""
        embeddings = self.model.get_input_embeddings()
        apart = [name for name, part in self.model.named_children() if embeddings not in part.modules()]
        return ["score", *(f"model.{name}" for name in apart)]

    def freeze_vision(self) -> None:
        """Freeze the vision tower, not what joins it to the language model. Raises ValueError where none is found."""
        tower = self.model.get_encoder(modality="image")
        if tower is self.model:
            raise ValueError(f"no vision tower is found in a {self.config.vlm_config.model_type!r}; do not freeze it")
        tower.requires_grad_(False)

    def save_pretrained(self, save_directory: Any, *args, **kwargs) -> None:
        """
        With the code of the model inside, if that is not transformers' own. Raises ValueError for a model with adapters injected
        by hand, whose weights would go by names that nothing reads.
        """
        injected = any("lora_" in key or ".base_layer." in key for key in self.state_dict())
        if injected and not getattr(self, "_hf_peft_config_loaded", False):
            raise ValueError("this model holds adapters: save the PeftModel, or merge_and_unload() first")
        inside = self.config.vlm_config
        if not self.vlm_class.__module__.startswith("transformers."):
            inside.auto_map = {}
            for auto, kind in (("AutoConfig", type(inside)), ("AutoModelForImageTextToText", self.vlm_class)):
                inside.auto_map[auto] = f"{kind.__module__.split('.')[-1]}.{kind.__name__}"
        kwargs.setdefault("save_original_format", False)  # names as they are here: a Trainer resumes by them
        super().save_pretrained(save_directory, *args, **kwargs)
        if not self.vlm_class.__module__.startswith("transformers.") and kwargs.get("is_main_process", True):
            custom_object_save(self.model, save_directory)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def _for_each_answer(self, answers: int, given: dict[str, Any]) -> dict[str, Any]:
        """Pictures, given once, as `answers` times as many rows see them: encoded once where the model takes what is encoded."""
        pictures = {k: v for k, v in given.items() if isinstance(v, Tensor) and k not in (*PER_TOKEN, "inputs_embeds")}
        if "pixel_values" in pictures and "mm_encoder_outputs" in inspect.signature(self.model.forward).parameters:
            wanted = inspect.signature(self.model.get_image_features).parameters
            seen = self.model.get_image_features(**{k: v for k, v in pictures.items() if k in wanted}, return_dict=True)
            seen = seen.pooler_output
            seen = torch.cat([seen] * answers) if isinstance(seen, Tensor) else list(seen) * answers
            given = given | {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=seen)}}
            given.pop("pixel_values")
            pictures.pop("pixel_values")  # beside their shapes, which positions may depend on
        return given | {name: torch.cat([value] * answers) for name, value in pictures.items()}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Any = None,
        answers: int = 1,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """
        logits (b, num_labels), float32. `kwargs` is what the model's own processor gives besides.

        attention_mask: (b, t), without it all tokens are attended to. answers: the b rows are so many answers to each of
        b / answers questions, all first ones first; pictures are given once a question. Raises ValueError for labels: a reward is
        learned from pairs, by trainers/reward_trainer.py; and where the model does not give a hidden state a token.
        """
        if labels is not None:
            raise ValueError("a reward is learned from pairs, not from labels; see trainers/reward_trainer.py")
        given = {name: value for name, value in kwargs.items() if value is not None}
        if inputs_embeds is not None:
            given["inputs_embeds"] = inputs_embeds
        else:
            given["input_ids"] = input_ids
        if attention_mask is None:
            attention_mask = torch.ones(
                (input_ids if inputs_embeds is None else inputs_embeds).shape[:2], dtype=torch.long, device=self.device
            )
        elif inputs_embeds is None:
            attention_mask, given = unpad_left(attention_mask, **given)
        if answers > 1:
            given = self._for_each_answer(answers, given)
        outputs = self.model(**given, attention_mask=attention_mask, use_cache=False)
        hidden = getattr(outputs, "last_hidden_state", None)
        if hidden is None or hidden.shape[:2] != attention_mask.shape:
            got = "none" if hidden is None else f"{hidden.shape[1]} a row"
            raise ValueError(f"a reward needs a hidden state a token: {attention_mask.shape[1]} a row; got {got}")
        last = (attention_mask.bool() * torch.arange(1, hidden.shape[1] + 1, device=hidden.device)).argmax(1)
        read = hidden[torch.arange(len(hidden), device=hidden.device), last]
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.score(read.to(next(self.score.parameters()).dtype)).float()
        return SequenceClassifierOutput(
            logits=logits,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )


_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")


def _base_of(whole: PreTrainedModel) -> PreTrainedModel:
    if whole.base_model is whole:
        raise ValueError(f"a {whole.config.model_type!r} has no base model that gives hidden states")
    return whole.base_model


VisionRewardForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["VisionRewardForSequenceClassification"]
