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


class MLPAdapter(Float32Module):
    """Norm and a two-layer perceptron over each patch: (..., vision) -> (..., text), float32."""

    def __init__(self, vision_dim: int, hidden_dim: int, text_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(vision_dim)
        self.linear_1 = nn.Linear(vision_dim, hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, text_dim)

    def forward(self, patches: Tensor) -> Tensor:
        with torch.autocast(patches.device.type, enabled=False):
            return self.linear_2(nn.functional.gelu(self.linear_1(self.norm(patches.float()))))
