"""Contrastive GPT-2 configuration: a vision tower, a language model behind a visual prefix, and one space for both."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


MAPPERS = ("mlp", "transformer")


class ContrastiveGPT2Config(PreTrainedConfig):
    """
    The defaults are CLIP ViT-B/32's vision tower and GPT-2; any tower with patches and any causal language model serves.

    mapper: how features become the prefix. "mlp": the pooled vector alone, through a two-layer perceptron; "transformer":
    learned latents that look at the pooled vector and every patch. Raises ValueError for another, and for heads that do not divide
    the language model's width.
    """

    model_type = "contrastive_gpt2"
    attribute_map = {"projection_dim": "embed_dim"}
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, model_type="gpt2"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 50257  # behind GPT-2's own vocabulary
    mapper: str = "transformer"
    prefix_length: int = 10  # tokens a picture becomes
    mapper_hidden_size: int | None = None  # of the MLP's middle; None: half of what it gives, as ClipCap's
    mapper_layers: int = 2  # of the transformer
    mapper_num_heads: int | None = None  # None: the language model's
    embed_dim: int = 512
    num_queries: int = 4  # how many ways a picture's features are averaged for its embedding
    logit_scale_init: float = 14.285714  # 1 / 0.07
    tie_word_embeddings: bool | None = None  # None: as the language model has it

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.mapper not in MAPPERS:
            raise ValueError(f"mapper must be one of {', '.join(MAPPERS)}; got {self.mapper!r}")
        if getattr(self.vision_config, "patch_size", None) is None:
            raise ValueError(
                f"a {self.vision_config.model_type!r} yields no patch tokens: its config has no patch_size"
            )
        heads, width = self.mapper_num_heads or self.text_config.num_attention_heads, self.text_config.hidden_size
        if self.mapper == "transformer" and width % heads:
            raise ValueError(f"mapper_num_heads={heads} does not divide the language model's width of {width}")
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)


ContrastiveGPT2Config.register_for_auto_class()

__all__ = ["ContrastiveGPT2Config"]
