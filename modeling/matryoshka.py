"""
Matryoshka embeddings: the first 64, 128, … numbers of an embedding are an embedding themselves.

    a (n, d), b (m, d) -> cosines of their first k numbers, for each k: (n, m) each
    loss(cosines) at each k, weighted -> loss

Unusual: the dot products of the first k numbers are those of the first k' < k and of what stands between, so all widths together
cost one matrix product of the widest, not one each.

Source: Kusupati et al. 2022, https://arxiv.org/abs/2205.13147.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def truncate(features: Tensor, dim: int | None = None) -> Tensor:
    """
    The first `dim` numbers of features (…, d), at unit length: (…, dim). None: all. Raises ValueError for a dim they do not have.
    """
    if dim is not None and not 0 < dim <= features.shape[-1]:
        raise ValueError(f"truncate_dim={dim}: embeddings have 1 to {features.shape[-1]} numbers")
    return torch.nn.functional.normalize(features[..., :dim], dim=-1)


def nested_cosines(a: Tensor, b: Tensor, dims: Sequence[int]) -> Iterator[Tensor]:
    """
    Cosine similarities (n, m) of the first k numbers of a (n, d) and b (m, d), for each k of `dims`, which ascend.

    Raises ValueError for dims that do not ascend or that they do not have.
    """
    if list(dims) != sorted(set(dims)) or not dims or dims[0] < 1 or dims[-1] > a.shape[-1]:
        raise ValueError(f"dims must ascend from at least 1 to at most {a.shape[-1]}, are {list(dims)}")
    start, dots = 0, a.new_zeros(())
    squares_a, squares_b = a.new_zeros(()), a.new_zeros(())
    for stop in dims:
        here, there = a[:, start:stop], b[:, start:stop]
        dots = dots + here @ there.T
        squares_a = squares_a + here.square().sum(1, keepdim=True)
        squares_b = squares_b + there.square().sum(1)
        yield dots * squares_a.clamp(min=1e-12).rsqrt() * squares_b.clamp(min=1e-12).rsqrt()
        start = stop


__all__ = ["nested_cosines", "truncate"]
