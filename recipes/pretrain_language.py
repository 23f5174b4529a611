"""
Pretrain a small causal language model on the miniature world's language, text only: tokenizer and weights from nothing.

    accelerate launch recipes/pretrain_language.py --config recipes/miniature/qwen2.yaml

It learns to write captions and answers from rough notes, as an instruction-tuned model reads; it never sees a picture.
Every field of `Recipe` and of trl.SFTConfig may stand in the YAML; the command line overrides it.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, TrlParser

from datasets_scripts.scenes import Scenes
from trainers.run_folder import write_json
from trainers.sealed_checkpoints import SealedCheckpoints


CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


@dataclass
class Recipe:
    model_type: str = "qwen2"  # any causal language model of transformers'
    model_config: dict = field(default_factory=dict)  # its config's fields: sizes
    vocab_size: int = 512  # at most; merges end when no pair repeats
    num_scenes: int = 100_000  # rows to learn from
    num_eval: int = 1_000  # rows of `validation`, whose scenes break the training bias


def train_tokenizer(texts: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text can be written with it) with ChatML's turns and an image placeholder."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    core.train_from_iterator(
        (turn[0]["content"] for row in texts for turn in (row["prompt"], row["completion"])),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        chat_template=CHATML,
    )


class SealedSFTTrainer(SealedCheckpoints, SFTTrainer):
    """TRL's, with checkpoints that are whole or not there."""


def main(recipe: Recipe, args: SFTConfig) -> None:
    # 1. What there is to read.
    rows = Scenes(config_name="reading", num_train=recipe.num_scenes, num_eval=recipe.num_eval)
    rows.download_and_prepare()
    train, held_out = rows.as_dataset("train"), rows.as_dataset("validation")

    # 2. A tokenizer learned from it, and a model that knows nothing yet.
    tokenizer = train_tokenizer(train.select(range(min(5000, len(train)))), recipe.vocab_size)
    config = AutoConfig.for_model(
        recipe.model_type,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **recipe.model_config,
    )
    tokenizer.save_pretrained(args.output_dir)
    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    # 3. Learn to answer: the loss is on completions only.
    trainer = SealedSFTTrainer(model, args=args, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 4. Half precision is what is kept, so half precision is what is measured.
    rounded = {name: weight.half().float() for name, weight in model.state_dict().items()}
    model.load_state_dict(rounded)
    loss = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        model.half().save_pretrained(args.output_dir)
        figures = {"perplexity": {"value": round(math.exp(loss), 4), "n": len(held_out)}}
        write_json(
            Path(args.output_dir) / "metrics.json",
            {**figures, "protocol": {"dataset": "scenes/reading", "split": "validation"}},
        )
        print(f"perplexity of {len(held_out)} held-out captions and answers: {math.exp(loss):.3f}")


if __name__ == "__main__":
    main(*TrlParser((Recipe, SFTConfig)).parse_args_and_config())
