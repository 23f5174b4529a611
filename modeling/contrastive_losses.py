"""
Contrastive losses: logits of every pair (n, n), whose diagonal is what belongs together -> how wrong they are.

Unusual: pairs that are as right as the diagonal (the same picture twice, the same words twice) can be named, and are no negatives.
"""

import torch
from torch import Tensor, nn


MAX_LOGIT_SCALE = 100.0  # as CLIP's


def info_nce(similarity: Tensor, equal: Tensor | None = None) -> Tensor:
    """
    Symmetric InfoNCE of logits (n, n) whose diagonal is the pairs: the mean of both directions. equal (n, n) bool: pairs that are
    as right as the diagonal and therefore no negatives; they are left out. Source: https://arxiv.org/abs/2103.00020.
    """
    if equal is not None:
        itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        similarity = similarity.masked_fill(equal & ~itself, -torch.inf)
    pairs = torch.arange(len(similarity), device=similarity.device)
    rows = nn.functional.cross_entropy(similarity, pairs)
    return (rows + nn.functional.cross_entropy(similarity.T, pairs)) / 2


def sigmoid_loss(similarity: Tensor, equal: Tensor | None = None) -> Tensor:
    """
    Every cell of logits (n, n), bias included, a yes or no of its own; a sum divided by n. equal, as for `info_nce`: left out.
    Source: https://arxiv.org/abs/2303.15343.
    """
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    cells = -nn.functional.logsigmoid(torch.where(itself, similarity, -similarity))
    if equal is not None:
        cells = cells.masked_fill(equal & ~itself, 0.0)
    return cells.sum() / len(similarity)


__all__ = ["MAX_LOGIT_SCALE", "info_nce", "sigmoid_loss"]
