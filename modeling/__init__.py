"""Importing this package teaches the Auto classes our models, so the working tree wins over code saved with a checkpoint."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from .configuration_ossight import OSSightConfig
from .modeling_ossight import OSSightForConditionalGeneration, OSSightModel


AutoConfig.register("ossight", OSSightConfig)
AutoModel.register(OSSightConfig, OSSightForConditionalGeneration)  # generic evaluators ask AutoModel for the generator
AutoModelForImageTextToText.register(OSSightConfig, OSSightForConditionalGeneration)

__all__ = ["OSSightConfig", "OSSightForConditionalGeneration", "OSSightModel"]
