"""Arguments of CaptioningTrainer: transformers' TrainingArguments and how captions are generated and scored while training."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.utils import logging


logger = logging.get_logger(__name__)


def without_missing_gpu(args: TrainingArguments) -> None:
    """Leave mixed precision out where there is no GPU, and say so: a GPU's recipe runs on a laptop, slowly."""
    if (args.fp16 or args.bf16) and (args.use_cpu or not torch.accelerator.is_available()):
        logger.warning("there is no GPU: mixed precision is left out, and training will be slow")
        args.fp16 = args.bf16 = False


@dataclass
class CaptioningConfig(TrainingArguments):
    eval_metrics: list[str] = field(
        default_factory=lambda: ["bleu", "rouge_l", "cider"],
        metadata={"help": "Folders under metrics/ to score with at each evaluation."},
    )
    eval_examples: int | None = field(
        default=None, metadata={"help": "Caption at most this many rows at each evaluation; None: all."}
    )
    eval_batch_size: int = field(default=50, metadata={"help": "Pictures captioned at a time, on each process."})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest caption, in tokens."})
    num_beams: int = field(default=1, metadata={"help": "Beams; 1 is greedy."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Rows of more tokens, the pictures' included, are skipped and counted, never cut."},
    )
    strict: bool = field(
        default=False, metadata={"help": "Stop at a row that cannot be used, instead of skipping and counting it."}
    )
    vision_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Of the vision tower, where it learns: it has more to lose than to gain. None: learning_rate."
        },
    )
    # Trainer's defaults, changed: what a captioner needs is in columns that Trainer would drop
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep images, references and the rest."})

    def __post_init__(self):
        if "pope" in self.eval_metrics:
            raise ValueError(
                "eval_metrics: pope asks instead of captioning; afterwards, recipes/evaluate.py --metrics pope"
            )
        without_missing_gpu(self)
        super().__post_init__()
