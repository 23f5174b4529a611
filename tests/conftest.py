"""Tiny, offline, seeded stand-ins: every test builds its world in memory in under a second."""

import os


# a hub that is not there must not be waited for; tests that need one serve it themselves
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipImageProcessor

from modeling import OSSightConfig, OSSightForConditionalGeneration
from processing import OSSightProcessor
from processing.chat_template import FLATTEN, PLAIN


# a shell starts what it runs in the background with Ctrl-C ignored, and so would every process of a test
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
WORDS = (
    "<pad> </s> <unk> <image> USER: ASSISTANT: what colour is it red blue green a b c d e f g ? Describe the picture."
)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {
    "siglip": {
        "model_type": "siglip_vision_model",
        "image_size": 16,
        "patch_size": 4,
        "vision_use_head": False,
        **SMALL,
    },
    "clip": {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 4, **SMALL},
    "dinov2": {"model_type": "dinov2", "image_size": 16, "patch_size": 4, **SMALL},
    "vit": {"model_type": "vit", "image_size": 16, "patch_size": 4, **SMALL},
}
TEXT = {
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1, "max_position_embeddings": 128, **SMALL},
    "llama": {"model_type": "llama", "num_key_value_heads": 1, "max_position_embeddings": 128, **SMALL},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
}


def pytest_addoption(parser):
    parser.addoption("--real-data", default=str(ROOT.parent / "shared" / "data"), help="folder with real samples")


@pytest.fixture(scope="session")
def real_data(request) -> Path:
    folder = Path(request.config.getoption("--real-data"))
    if not folder.is_dir():
        pytest.skip(f"no real samples in {folder}")
    return folder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = WORDS.split()
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def make_processor() -> OSSightProcessor:
    images = SiglipImageProcessor(size={"height": 16, "width": 16})
    template = FLATTEN.replace("IMAGE_TOKEN", "<image>") + PLAIN.replace("eos_token", "' ' + eos_token")
    return OSSightProcessor(images, make_tokenizer(), patch_size=4, image_token="<image>", chat_template=template)


def make_ossight(vision: str = "siglip", text: str = "qwen2", **config) -> OSSightForConditionalGeneration:
    """A tiny OSSight with random weights and, unlike a new one, an open gate: a closed one would hide every fusion bug."""
    vocab = {"vocab_size": len(WORDS.split()), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(0)
    model = OSSightForConditionalGeneration(
        OSSightConfig(vision_config=VISION[vision], text_config=TEXT[text] | vocab, image_token_id=3, **config)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # 0.02 is too tame: attention would be flat, and a wrong mask would not show
        if model.model.fusion is not None:
            model.model.fusion.gate.fill_(1.0)
    model.generation_config.eos_token_id = None  # every generation runs its length
    model.generation_config.pad_token_id = 0
    return model.eval()


def picture(seed: int = 0, size: int = 16) -> Image.Image:
    pixels = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def processor() -> OSSightProcessor:
    return make_processor()


@pytest.fixture
def model() -> OSSightForConditionalGeneration:
    return make_ossight()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny OSSight as a user would have it on disk: weights, code, processor."""
    folder = tmp_path_factory.mktemp("tiny_ossight")
    make_ossight().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder
