"""Importing this package teaches AutoProcessor our processors, so the working tree wins over code saved with a checkpoint."""

from transformers import AutoProcessor

# here only: the files that travel never import modeling/
from modeling.configuration_aligner import AlignerConfig
from modeling.configuration_contrastive_gpt2 import ContrastiveGPT2Config
from modeling.configuration_ossight import OSSightConfig
from modeling.configuration_spin import SpinVLMConfig

from .processing_aligner import AlignerProcessor
from .processing_contrastive_gpt2 import ContrastiveGPT2Processor
from .processing_ossight import OSSightProcessor
from .processing_spin import SpinVLMProcessor


AutoProcessor.register(AlignerConfig, AlignerProcessor)
AutoProcessor.register(ContrastiveGPT2Config, ContrastiveGPT2Processor)
AutoProcessor.register(OSSightConfig, OSSightProcessor)
AutoProcessor.register(SpinVLMConfig, SpinVLMProcessor)

__all__ = ["AlignerProcessor", "ContrastiveGPT2Processor", "OSSightProcessor", "SpinVLMProcessor"]
