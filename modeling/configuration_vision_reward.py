"""
Vision reward configuration: any image-text-to-text model by its own config, and a head that gives numbers.

Unusual: `vlm_config` may be of a model whose code is not transformers' own (OSSight). A saved folder then carries that code, and
the nested config says by its `auto_map` where; whoever loads the folder with trust_remote_code gets both from it.
"""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.dynamic_module_utils import get_class_from_dynamic_module


_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class VisionRewardConfig(PreTrainedConfig):
    """
    vlm_config: of the model whose last hidden state is scored. num_labels: how many numbers the head gives, 1 unless it is said.
    Raises ValueError for an encoder–decoder, which has no last token that has read both question and answer.
    """

    model_type = "vision_reward"
    sub_configs_defaults = {"vlm_config": SubConfigSpec(AutoConfig, model_type="llava")}

    vlm_config: dict | PreTrainedConfig | None = None
    initializer_range: float = 0.02  # standard deviation of a new head's weights

    def __post_init__(self, **kwargs):
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1)
        super().__post_init__(**kwargs)
        if self.vlm_config.is_encoder_decoder:
            raise ValueError(f"a {self.vlm_config.model_type!r} reads question and answer apart: it cannot be a reward")

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        return self.vlm_config.get_text_config(*args, **kwargs)

    @classmethod
    def get_config_dict(cls, name: Any, **kwargs) -> tuple[dict, dict]:
        """As transformers', but code that the folder carries for its `vlm_config` is used if this class came from there too."""
        where = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
        told, kwargs = super().get_config_dict(name, **kwargs)
        vlm = told.get("vlm_config") or {}
        known = isinstance(vlm, PreTrainedConfig) or vlm.get("model_type") in CONFIG_MAPPING
        # whoever trusts this class, loaded from the folder, trusts the folder; from anywhere else nobody has said so
        trusted = cls.__module__.startswith("transformers_modules.")
        if trusted and not known and "auto_map" in vlm:
            config_class, model_class = (
                get_class_from_dynamic_module(vlm["auto_map"][auto].split("--")[-1], name, **where)
                for auto in ("AutoConfig", "AutoModelForImageTextToText")
            )
            AutoModelForImageTextToText.register(config_class, model_class, exist_ok=True)
            told["vlm_config"] = config_class(**vlm)
        return told, kwargs


VisionRewardConfig.register_for_auto_class()

__all__ = ["VisionRewardConfig"]
