"""
Bridges: small modules that carry vision features into the language model's space. Tensors in, tensors out.

Unusual: they compute in float32 whatever the towers' dtype, under autocast too, and keep their weights in float32 through
`.half()` and `.to(bfloat16)`: they are tiny, they are what is trained, and half precision is where frozen-tower training
breaks first on GPUs without bfloat16.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init


class Float32Module(nn.Module):
    """A module whose parameters no cast narrows below float32. Moving between devices works as ever."""

    def _apply(self, fn, recurse: bool = True):
        def without_narrowing(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            if tensor.is_floating_point() and changed.element_size() < tensor.element_size():
                return tensor.to(changed.device)
            return changed

        return super()._apply(without_narrowing, recurse)

    def init_weights(self) -> None:
        """Xavier for every matrix, zero for every bias; restored weights are left alone."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    init.zeros_(module.bias)


def pixel_shuffle(patches: Tensor, rows: int, columns: int, factor: int) -> Tensor:
    """
    Lay each `factor` x `factor` block of neighbouring patches side by side in one token, row by row:
    (n, rows * columns, d) -> (n, rows * columns / factor**2, d * factor**2). After Idefics 3 (https://huggingface.co/papers/2408.12637).

    Raises ValueError where the blocks do not fit.
    """
    if rows % factor or columns % factor:
        raise ValueError(f"pixel_shuffle={factor} does not divide the {rows} x {columns} patches")
    blocks = patches.unflatten(1, (rows // factor, factor, columns // factor, factor))
    return blocks.transpose(2, 3).flatten(3).flatten(3).flatten(1, 2)


class MLPAdapter(Float32Module):
    """
    Norm and a two-layer perceptron over each block of patches: (n, blocks, vision) -> (n, blocks * tokens, text), float32.

    A block may become several tokens: language models read about one word a token, and a block can hold more to say.
    """

    def __init__(self, vision_dim: int, hidden_dim: int, text_dim: int, tokens: int = 1):
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(vision_dim)
        self.linear_1 = nn.Linear(vision_dim, hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, text_dim * tokens)

    def forward(self, blocks: Tensor) -> Tensor:
        with torch.autocast(blocks.device.type, enabled=False):
            adapted = self.linear_2(nn.functional.gelu(self.linear_1(self.norm(blocks.float()))))
        return adapted.unflatten(-1, (self.tokens, -1)).flatten(1, 2)
