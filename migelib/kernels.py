r"""Kernels, their gradients and the median heuristic.

Derived in :doc:`/book/04_score_estimation`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def squared_distances(x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
    r"""Pairwise squared Euclidean distances :math:`\|x_i - y_j\|^2` from one matrix product.

    Both sets are first shifted by the mean of `y`: distances do not change, and the expansion
    :math:`\|x\|^2 + \|y\|^2 - 2 x^\top y` then loses no digits to a common offset.
    """
    offset = y.mean(-2, keepdim=True).detach()
    x, y = x - offset, y - offset
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return (squares - 2 * x @ y.mT).clamp_min(0)


def median_distance(samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    r"""Median of all :math:`n^2` pairwise distances, the diagonal's zeros included: the paper's kernel width.

    The upper median of an even count, as in the code published with the MIGE paper.

    Returns
    -------
    Tensor [*batch]
        In the units of the samples; 0 where at least half of the pairs coincide.
    """
    distances = squared_distances(samples, samples).flatten(-2).sqrt()
    return distances.kthvalue(distances.shape[-1] // 2 + 1, dim=-1).values


def rbf(
    x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"], width: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch n m"]:
    r"""Gram matrix of the RBF kernel of width :math:`\sigma`, :math:`k(x, y) = \exp(-\|x - y\|^2 / 2 \sigma^2)`."""
    return torch.exp(-squared_distances(x, y) / (2 * width[..., None, None].square()))


def rbf_mean_gradient(
    samples: Float[Tensor, "*batch n d"], gram: Float[Tensor, "*batch n n"], width: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch n d"]:
    r"""Mean over i of the gradient of :math:`k(x_i, x_j)` with respect to :math:`x_i`, for every j.

    In matrix form :math:`\frac{1}{n \sigma^2} (\mathrm{diag}(K 1) X - K X)`: one matrix product, and no tensor of
    size n x n x d.
    """
    centred = samples - samples.mean(-2, keepdim=True)  # a common offset cancels in exact arithmetic only
    n = samples.shape[-2]
    return (gram.sum(-1, keepdim=True) * centred - gram @ centred) / (n * width[..., None, None].square())
