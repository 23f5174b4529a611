"""Importing this package teaches AutoProcessor our processors, so the working tree wins over code saved with a checkpoint."""

from transformers import AutoProcessor

from modeling.configuration_ossight import OSSightConfig  # here only: the files that travel never import modeling/

from .processing_ossight import OSSightProcessor


AutoProcessor.register(OSSightConfig, OSSightProcessor)

__all__ = ["OSSightProcessor"]
