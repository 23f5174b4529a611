"""OSSight configuration: a vision tower, a language model, and what joins them. Any two towers, by their own configs."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


# Settings of a language model's output stage that a plain linear head would silently drop.
_HEAD_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


class OSSightConfig(PreTrainedConfig):
    """
    Raises ValueError for a language model whose output head does more than a matrix product (Gemma-2, Cohere, Granite, ...),
    for a vision tower without patches, and for a `fusion` that is neither "cross_attention" nor "none".
    """

    model_type = "ossight"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, model_type="qwen2"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 151655  # Qwen2.5's <|image_pad|>
    vision_feature_layer: int = (
        -1
    )  # which hidden states of the vision tower are patches; -1: the last, after its final norm
    pixel_shuffle: int = 1  # this many patches a side become one block; 2 makes a quarter of the tokens
    tokens_per_block: int = 1  # image tokens a block becomes
    adapter_hidden_size: int | None = None  # width of the adapter's middle; None: the language model's
    fusion: str = "cross_attention"  # "cross_attention", or "none" for image tokens alone
    fusion_num_heads: int | None = None  # None: the language model's
    alpha_align: float = 0.1  # weight of the cosine alignment loss; 0 leaves it out
    tie_word_embeddings: bool | None = None  # None: as the language model has it
    save_towers: bool = True  # False: checkpoints name unchanged towers by Hub id and commit instead of carrying them
    towers: dict | None = (
        None  # what this checkpoint does not carry: part -> {id, commit, files: {name: sha256}, quantization}
    )

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.fusion not in ("cross_attention", "none"):
            raise ValueError(f'fusion must be "cross_attention" or "none", not {self.fusion!r}')
        if getattr(self.vision_config, "patch_size", None) is None:
            raise ValueError(
                f"a {self.vision_config.model_type!r} yields no patch tokens: its config has no patch_size"
            )
        for name in _HEAD_SETTINGS:
            if getattr(self.text_config, name, None) not in (None, 1, 1.0):
                raise ValueError(
                    f"the language model {self.text_config.model_type!r} sets {name}={getattr(self.text_config, name)}, "
                    "which OSSight's output head would drop; choose a language model without it"
                )
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)


OSSightConfig.register_for_auto_class()

__all__ = ["OSSightConfig"]
