"""
What a preference costs, as pure functions: tensors in, tensors out.

    rewards of both sides (b,) -> bradley_terry_loss -> (b,)
    step, steps               -> alpha_at           -> what the contrastive loss counts beside it
"""

from torch import Tensor, nn


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """
    What each pair (b,) of rewards costs, (b,) float32: -log sigmoid(chosen - rejected - margin).

    Rewards are a reward model's; or beta times a token's log-probability (reference-free, as SimPO's, https://arxiv.org/abs/2405.14734);
    or beta times what a policy's log-probability exceeds its reference's by (DPO, https://arxiv.org/abs/2305.18290). margin: by how
    much the chosen side has to be ahead (https://arxiv.org/abs/2307.09288).
    """
    return -nn.functional.logsigmoid(chosen.float() - rejected.float() - margin)


def alpha_at(step: int, steps: int, start: float, end: float) -> float:
    """Linear from `start` at step 0 to `end` at the last of `steps` optimiser steps; a function of nothing else."""
    return start + (end - start) * min(1.0, step / max(1, steps - 1))
