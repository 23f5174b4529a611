"""Arguments of RewardTrainer: transformers' TrainingArguments and, by TRL's names, what a reward needs."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from trainers.captioning_config import without_missing_gpu


@dataclass
class RewardConfig(TrainingArguments):
    center_rewards_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Of the mean square of chosen plus rejected rewards, which holds them near 0; 0.01 is usual. None: nowhere."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "No dropout: chosen and rejected are compared as the same model sees them."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Rows of which a side has more tokens, the pictures' included, are skipped and counted."},
    )
    strict: bool = field(
        default=False, metadata={"help": "Stop at a row that cannot be used, instead of skipping and counting it."}
    )
    eval_examples: int | None = field(
        default=None, metadata={"help": "Judge at most this many rows at each evaluation; None: all."}
    )
    eval_batch_size: int = field(default=50, metadata={"help": "Pairs judged at a time, on each process."})
    # Trainer's default, changed: what a pair is made of is in columns that Trainer would drop
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep images, chosen, rejected and the rest."})

    def __post_init__(self):
        without_missing_gpu(self)
        super().__post_init__()
