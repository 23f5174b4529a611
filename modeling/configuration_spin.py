"""SPIN VLM configuration: a vision tower and a decoder that reads picture and question as one memory."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class SpinVLMConfig(PreTrainedConfig):
    """
    The defaults are a small decoder over timm's vit_tiny_patch16_224.

    Raises ValueError where the heads do not divide the width.
    """

    model_type = "spin_vlm"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            AutoConfig,
            model_type="timm_wrapper",
            init_kwargs={"architecture": "vit_tiny_patch16_224", "do_pooling": False},
        ),
    }

    vision_config: dict | PreTrainedConfig | None = None
    image_seq_length: int = 197  # tokens the vision tower gives for a picture, its class token included
    vocab_size: int = 8000
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_hidden_layers: int = 4  # of the decoder
    num_memory_layers: int = 0  # in which words and patches look at one another; 0: they first meet in the decoder
    num_attention_heads: int = 8
    max_position_embeddings: int = 512  # of a memory (pictures and question together), and of an answer
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    dropout: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 1
    image_token_id: int = 4
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}"
            )


SpinVLMConfig.register_for_auto_class()

__all__ = ["SpinVLMConfig"]
