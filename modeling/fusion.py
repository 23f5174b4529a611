"""
Fusion: text embeddings look at the images before them, through a gate that starts closed.

    text (b, t, d) attends to visual (b, v, d) where mask (b, t, v) allows -> update (b, t, d), to be added to text

At initialisation tanh(gate) = 0 and the update is exactly zero, and it stays exactly zero for every token that has no image
before it; so a fused language model speaks as it did, without an image and before training.
After Flamingo's gated cross-attention (https://huggingface.co/papers/2204.14198), here on the input embeddings only, so that
no layer of the language model is touched.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .bridges import Float32Module


class GatedCrossAttention(Float32Module):
    """Multi-head cross-attention with a zero-initialised tanh gate. Raises ValueError if the heads do not divide the width."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"fusion_num_heads={num_heads} does not divide the language model's width {dim}")
        self.num_heads = num_heads
        self.text_norm = nn.LayerNorm(dim)
        self.visual_norm = nn.LayerNorm(dim)
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)
        self.gate = nn.Parameter(torch.zeros(1))

    def init_weights(self) -> None:
        super().init_weights()
        init.zeros_(self.gate)

    def forward(self, text: Tensor, visual: Tensor, mask: Tensor) -> Tensor:
        """text (b, t, d), visual (b, v, d), mask bool (b, t, v), True where a token may look -> (b, t, d) float32."""
        with torch.autocast(text.device.type, enabled=False):
            seen = self.visual_norm(visual.float())
            query, key, value = (
                projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for projected in (self.q_proj(self.text_norm(text.float())), self.k_proj(seen), self.v_proj(seen))
            )
            blind = ~mask.any(
                -1, keepdim=True
            )  # softmax over nothing is NaN: let the blind look anywhere, then drop it
            attended = nn.functional.scaled_dot_product_attention(query, key, value, (mask | blind).unsqueeze(1))
            update = self.o_proj(attended.transpose(1, 2).flatten(2))
            return (self.gate.tanh() * update).masked_fill(blind, 0.0)
