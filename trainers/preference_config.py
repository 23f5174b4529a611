"""Arguments of PreferenceTrainer: transformers' TrainingArguments and, by TRL's names, what a preference needs."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from trainers.captioning_config import without_missing_gpu


LOSSES = ("bradley_terry", "dpo")


@dataclass
class PreferenceConfig(TrainingArguments):
    loss_type: str = field(
        default="bradley_terry",
        metadata={
            "help": "bradley_terry: of log-probabilities a token, without reference; dpo: against the model as it was."
        },
    )
    beta: float = field(default=0.1, metadata={"help": "What a nat of log-probability is worth as a reward."})
    margin: float = field(default=0.1, metadata={"help": "By how much reward the chosen side has to be ahead."})
    alpha_start: float = field(
        default=0.7, metadata={"help": "Weight of the contrastive loss at the first step; the preference has the rest."}
    )
    alpha_end: float = field(default=0.3, metadata={"help": "Weight of the contrastive loss at the last step; linear."})
    caption_weight: float = field(
        default=0.0, metadata={"help": "Of the caption loss on the chosen side, added to both."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "No dropout: chosen and rejected are compared as the same model sees them."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Pairs of which a side has more tokens, the pictures' included, are skipped and counted."},
    )
    strict: bool = field(
        default=False, metadata={"help": "Stop at a pair that cannot be used, instead of skipping and counting it."}
    )
    eval_examples: int | None = field(
        default=None, metadata={"help": "Score at most this many pairs at each evaluation; None: all."}
    )
    eval_batch_size: int = field(default=50, metadata={"help": "Pairs scored at a time, on each process."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Leave out an epoch's last, smaller batch: it has fewer negatives."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep images, chosen, rejected and the rest."})

    def __post_init__(self):
        if self.loss_type not in LOSSES:
            raise ValueError(f"loss_type must be one of {', '.join(LOSSES)}; got {self.loss_type!r}")
        for name in ("alpha_start", "alpha_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1; got {getattr(self, name)}")
        for name in ("beta", "caption_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        without_missing_gpu(self)
        super().__post_init__()

    @property
    def contrasts(self) -> bool:
        """Whether the contrastive loss counts at any step."""
        return max(self.alpha_start, self.alpha_end) > 0
