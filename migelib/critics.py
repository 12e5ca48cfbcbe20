r"""Critics: networks that return the matrix of values :math:`T(x_i, z_j)` which the bounds of `migelib.bounds` take.

Derived in :doc:`/book/information-measures`.
"""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .validation import check_positive


def mlp(sizes: list[int]) -> nn.Sequential:
    """Fully connected network with ReLU between its layers; `sizes` lists all widths, input and output included."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SeparableCritic(nn.Module):
    r"""Critic :math:`T(x, z) = f(x)^\top g(z)`: n evaluations of each network give all n^2 values.

    Parameters
    ----------
    x_dim, z_dim : int
        Numbers of coordinates of x and z.
    hidden : int
        Width of the two hidden layers of f and g.
    embedding : int
        Size of f(x) and g(z). The defaults are those of the MIGE paper's code.
    """

    def __init__(self, x_dim: int, z_dim: int, hidden: int = 512, embedding: int = 20) -> None:
        super().__init__()
        self.f = mlp([x_dim, hidden, hidden, embedding])
        self.g = mlp([z_dim, hidden, hidden, embedding])

    def forward(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> Float[Tensor, "n n"]:
        """Matrix of all critic values, :math:`T(x_i, z_j)` at (i, j)."""
        return self.f(x) @ self.g(z).mT


class ConcatenatedCritic(nn.Module):
    r"""Critic :math:`T(x, z) = f([x, z])`: any function of both, for n^2 evaluations of the network.

    Parameters
    ----------
    x_dim, z_dim : int
        Numbers of coordinates of x and z.
    hidden : int
        Width of the two hidden layers.
    """

    def __init__(self, x_dim: int, z_dim: int, hidden: int = 256) -> None:
        super().__init__()
        # A linear layer of [x, z] is the sum of one of x and one of z: the first layer is evaluated 2 n times, not n^2.
        self.from_x = nn.Linear(x_dim, hidden)
        self.from_z = nn.Linear(z_dim, hidden, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), mlp([hidden, hidden, 1]))

    def forward(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> Float[Tensor, "n n"]:
        """Matrix of all critic values, :math:`T(x_i, z_j)` at (i, j)."""
        return self.rest(self.from_x(x)[:, None] + self.from_z(z)).squeeze(-1)


class GaussianConditional(nn.Module):
    r"""Conditional :math:`q(z | x) = N(z; \mu(x), \mathrm{diag}\, \sigma^2(x))` for `club`.

    Two networks, one for the mean and one for the log-variance, as Cheng et al. [ICML 2020] have; the log-variance
    goes through a tanh, so that it lies in (-1, 1) times `log_variance_range`.

    Parameters
    ----------
    x_dim, z_dim : int
        Numbers of coordinates of x and z.
    hidden : int
        Width of the one hidden layer of each network.
    log_variance_range : float
        Largest absolute value of the log-variance, > 0.

    Raises
    ------
    ValueError
        If `log_variance_range` is not positive.
    """

    def __init__(self, x_dim: int, z_dim: int, hidden: int = 256, log_variance_range: float = 5.0) -> None:
        super().__init__()
        check_positive(log_variance_range, "log_variance_range")
        self.mean = mlp([x_dim, hidden, z_dim])
        self.log_variance = mlp([x_dim, hidden, z_dim])
        self.log_variance_range = log_variance_range

    def forward(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> Float[Tensor, "n n"]:
        r"""Matrix of :math:`\ln q(z_j | x_i)` at (i, j), from two matrix products."""
        mean, log_variance = self._moments(x)
        precision = torch.exp(-log_variance)
        offset = z.mean(0).detach()  # distances do not change; the expanded square loses fewer digits
        mean, z = mean - offset, z - offset
        squares = (
            precision @ z.square().mT - 2 * (precision * mean) @ z.mT + (precision * mean.square()).sum(-1)[:, None]
        )
        return -(squares + (log_variance + math.log(2 * math.pi)).sum(-1)[:, None]) / 2

    def log_prob(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> Float[Tensor, "n"]:
        r""":math:`\ln q(z_i | x_i)` of the joint pairs alone: what is maximised to fit the conditional."""
        mean, log_variance = self._moments(x)
        squares = (z - mean).square() * torch.exp(-log_variance)
        return -(squares + log_variance + math.log(2 * math.pi)).sum(-1) / 2

    def _moments(self, x: Float[Tensor, "n p"]) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n q"]]:
        log_variance = self.log_variance_range * torch.tanh(self.log_variance(x) / self.log_variance_range)
        return self.mean(x), log_variance
