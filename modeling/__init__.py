"""Importing this package teaches the Auto classes our models, so the working tree wins over code saved with a checkpoint."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForSequenceClassification

from .configuration_aligner import AlignerConfig
from .configuration_contrastive_gpt2 import ContrastiveGPT2Config
from .configuration_ossight import OSSightConfig
from .configuration_spin import SpinVLMConfig
from .configuration_vision_reward import VisionRewardConfig
from .modeling_aligner import AlignerModel
from .modeling_contrastive_gpt2 import ContrastiveGPT2ForConditionalGeneration, ContrastiveGPT2Model
from .modeling_ossight import OSSightForConditionalGeneration, OSSightModel
from .modeling_spin import SpinVLMForConditionalGeneration, SpinVLMModel
from .modeling_vision_reward import VisionRewardForSequenceClassification


for config, generator in (
    (ContrastiveGPT2Config, ContrastiveGPT2ForConditionalGeneration),
    (OSSightConfig, OSSightForConditionalGeneration),
    (SpinVLMConfig, SpinVLMForConditionalGeneration),
):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, generator)  # generic evaluators ask AutoModel for the generator
    AutoModelForImageTextToText.register(config, generator)

AutoConfig.register(AlignerConfig.model_type, AlignerConfig)
AutoModel.register(AlignerConfig, AlignerModel)

AutoConfig.register(VisionRewardConfig.model_type, VisionRewardConfig)
AutoModelForSequenceClassification.register(VisionRewardConfig, VisionRewardForSequenceClassification)

__all__ = [
    "AlignerConfig",
    "AlignerModel",
    "ContrastiveGPT2Config",
    "ContrastiveGPT2ForConditionalGeneration",
    "ContrastiveGPT2Model",
    "OSSightConfig",
    "OSSightForConditionalGeneration",
    "OSSightModel",
    "SpinVLMConfig",
    "SpinVLMForConditionalGeneration",
    "SpinVLMModel",
    "VisionRewardConfig",
    "VisionRewardForSequenceClassification",
]
