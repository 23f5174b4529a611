"""Tiny detectors and CLIPs that know nothing, for tests of what is around them."""

import sys
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
)


# at the end: recipes/evaluate.py must not stand before the library of that name
sys.path.append(str(Path(__file__).parents[2] / "recipes"))
from pretrain_detector import tokenizer_of, words  # noqa: E402  recipes are scripts, not a package


def word_tokenizer():
    return tokenizer_of(words())


def make_detector(seed=0):
    """A GroundingDINO of 8 queries for pictures of 32 x 32 pixels and texts of 32 tokens."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    text = {"model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
    backbone = {"model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1]}
    backbone |= {"num_heads": [1, 2], "window_size": 4, "out_indices": [1, 2]}
    config = GroundingDinoConfig(
        text_config=text, backbone_config=backbone, d_model=32, num_queries=8, num_feature_levels=2, encoder_layers=1,
        encoder_ffn_dim=32, encoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=32, decoder_attention_heads=2,
        max_text_len=32,
    )  # fmt: skip
    pixels = GroundingDinoImageProcessor(size={"height": 32, "width": 32})
    return GroundingDinoForObjectDetection(config).eval(), GroundingDinoProcessor(pixels, tokenizer)


def make_clip(seed=0):
    """A CLIP of 16 numbers for pictures of 32 x 32 pixels and texts of 16 tokens."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 16
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.sep_token_id,
    }
    text |= {"bos_token_id": tokenizer.cls_token_id, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=16
    )
    pixels = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    return CLIPModel(config).eval(), CLIPProcessor(pixels, tokenizer)
