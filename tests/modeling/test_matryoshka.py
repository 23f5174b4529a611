"""Matryoshka: all widths from one pass equal each width by itself; truncation; what there is not."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close

from modeling.matryoshka import nested_cosines, truncate


def test_every_width_is_the_cosine_of_its_first_numbers():
    a, b = torch.randn(5, 12, dtype=torch.double), torch.randn(7, 12, dtype=torch.double)
    for dim, cosines in zip([2, 3, 12], nested_cosines(a, b, [2, 3, 12]), strict=True):
        assert_close(cosines, cosine_similarity(a[:, None, :dim], b[None, :, :dim], dim=-1))


def test_gradients_are_those_of_each_width_by_itself():
    a = torch.randn(4, 8, dtype=torch.double, requires_grad=True)
    b = torch.randn(4, 8, dtype=torch.double)
    (ours,) = torch.autograd.grad(sum(c.diagonal().sum() for c in nested_cosines(a, b, [4, 8])), a)
    plain = sum((normalize(a[:, :d], dim=1) * normalize(b[:, :d], dim=1)).sum() for d in (4, 8))
    assert_close(ours, torch.autograd.grad(plain, a)[0])


def test_truncated_embeddings_are_at_unit_length():
    features = torch.randn(3, 8)
    short = truncate(features, 5)
    assert short.shape == (3, 5)
    assert_close(short.norm(dim=1), torch.ones(3))
    assert_close(truncate(features), normalize(features, dim=1))
    for wrong in (0, 9):
        with pytest.raises(ValueError, match=f"truncate_dim={wrong}: embeddings have 1 to 8"):
            truncate(features, wrong)


@pytest.mark.parametrize("dims", [[], [4, 2], [0, 4], [4, 9], [4, 4]])
def test_dims_that_do_not_nest_are_refused(dims):
    with pytest.raises(ValueError, match="dims must ascend"):
        list(nested_cosines(torch.randn(2, 8), torch.randn(2, 8), dims))
