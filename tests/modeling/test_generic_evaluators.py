"""What lmms-eval asks of a remote-code model, and TRL's SFTTrainer of any."""

import torch
from datasets import Dataset
from transformers import AutoModel, AutoProcessor, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_ossight, make_processor, picture


def test_lmms_eval_gets_what_it_asks_for(tiny_folder):
    model = AutoModel.from_pretrained(
        tiny_folder, trust_remote_code=True, dtype=torch.bfloat16, device_map="cpu"
    ).eval()
    processor = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True)
    assert AutoTokenizer.from_pretrained(tiny_folder, trust_remote_code=True).pad_token_id is not None
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "what colour is it"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[picture()], videos=[], audios=[], padding=True, return_tensors="pt")
    tokens = model.generate(**inputs.to(model.device), max_new_tokens=3, do_sample=False)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 3
    empty = processor(text=["what colour"], images=[], videos=None, audios=[], return_tensors="pt")
    assert "pixel_values" not in empty


def test_it_trains_in_trls_sft_trainer(tmp_path):
    row = {
        "images": [picture()],
        "prompt": [{"role": "user", "content": "what colour is it"}],
        "completion": [{"role": "assistant", "content": "red"}],
    }
    model = make_ossight()
    model.freeze_towers()
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=2, learning_rate=3e-3, use_cpu=True, bf16=False,
        max_length=None, logging_steps=1, report_to="none", save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=args, train_dataset=Dataset.from_list([row] * 8), processing_class=make_processor()
    )
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
