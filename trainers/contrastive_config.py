"""Arguments of ContrastiveTrainer: transformers' TrainingArguments, and what a batch of negatives needs."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from trainers.captioning_config import without_missing_gpu
from trainers.run_folder import read_settings


PAIRS = {"image_text": ("image", "text"), "audio_text": ("audio", "text"), "image_audio": ("image", "audio")}


@dataclass
class ContrastiveConfig(TrainingArguments):
    chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Embed so many rows at a time (GradCache): a batch of any size in a chunk's memory, one more forward."
        },
    )
    matryoshka_weights: list[float] | None = field(
        default=None, metadata={"help": "What each of matryoshka_dimensions counts in the loss; None: all the same."}
    )
    pair_weights: dict | str | None = field(
        default=None,
        metadata={"help": "What each pair of modalities counts: {image_text: 1, audio_text: 1, image_audio: 0}."},
    )
    caption_weight: float = field(
        default=0.0,
        metadata={"help": "Of a model that captions: what its caption loss counts beside the contrastive loss."},
    )
    eval_examples: int | None = field(
        default=None, metadata={"help": "Rows that are searched and searched for at each evaluation; None: all."}
    )
    eval_batch_size: int = field(default=250, metadata={"help": "Rows embedded at a time in evaluation."})
    seed: int = field(default=42, metadata={"help": "Of weights, order and dropout."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Leave out an epoch's last, smaller batch: it has fewer negatives."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep pictures, texts and sounds."})

    def __post_init__(self):
        weights = read_settings("pair_weights", self.pair_weights)
        if unknown := set(weights) - set(PAIRS):
            raise ValueError(f"pair_weights: {', '.join(sorted(unknown))} is none of {', '.join(PAIRS)}")
        self.pair_weights = dict.fromkeys(PAIRS, 1.0) | {name: float(weight) for name, weight in weights.items()}
        if not any(self.pair_weights.values()):
            raise ValueError("pair_weights: every weight is 0, so there is nothing to learn from")
        if self.caption_weight < 0:
            raise ValueError(f"caption_weight must be at least 0; got {self.caption_weight}")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1; got {self.chunk_size}")
        without_missing_gpu(self)
        super().__post_init__()
