"""Importing this package teaches the Auto classes our models, so the working tree wins over code saved with a checkpoint."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from .configuration_aligner import AlignerConfig
from .configuration_ossight import OSSightConfig
from .configuration_spin import SpinVLMConfig
from .modeling_aligner import AlignerModel
from .modeling_ossight import OSSightForConditionalGeneration, OSSightModel
from .modeling_spin import SpinVLMForConditionalGeneration, SpinVLMModel


for config, generator in (
    (OSSightConfig, OSSightForConditionalGeneration),
    (SpinVLMConfig, SpinVLMForConditionalGeneration),
):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, generator)  # generic evaluators ask AutoModel for the generator
    AutoModelForImageTextToText.register(config, generator)

AutoConfig.register(AlignerConfig.model_type, AlignerConfig)
AutoModel.register(AlignerConfig, AlignerModel)

__all__ = [
    "AlignerConfig",
    "AlignerModel",
    "OSSightConfig",
    "OSSightForConditionalGeneration",
    "OSSightModel",
    "SpinVLMConfig",
    "SpinVLMForConditionalGeneration",
    "SpinVLMModel",
]
