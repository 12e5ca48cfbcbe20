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


def mlp(sizes: list[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected network with an activation between its layers; `sizes` lists all widths, input to output."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
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
    activation : type
        Of the hidden layers.
    """

    def __init__(
        self, x_dim: int, z_dim: int, hidden: int = 512, embedding: int = 20, activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.f = mlp([x_dim, hidden, hidden, embedding], activation)
        self.g = mlp([z_dim, hidden, hidden, embedding], activation)

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
    activation : type
        Of the hidden layers.
    """

    def __init__(self, x_dim: int, z_dim: int, hidden: int = 256, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        # A linear layer of [x, z] is the sum of one of x and one of z: the first layer is evaluated 2 n times, not n^2.
        self.from_x = nn.Linear(x_dim, hidden)
        self.from_z = nn.Linear(z_dim, hidden, bias=False)
        self.rest = nn.Sequential(activation(), mlp([hidden, hidden, 1], activation))

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
        Width of the hidden layers of each network.
    log_variance_range : float
        Largest absolute value of the log-variance, > 0.
    layers : int
        Number of hidden layers of each network.
    activation : type
        Of the hidden layers.

    Raises
    ------
    ValueError
        If `log_variance_range` is not positive.
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        hidden: int = 256,
        log_variance_range: float = 5.0,
        layers: int = 1,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_positive(log_variance_range, "log_variance_range")
        self.mean = mlp([x_dim, *layers * [hidden], z_dim], activation)
        self.log_variance = mlp([x_dim, *layers * [hidden], z_dim], activation)
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


class FenchelLegendreCritic(nn.Module):
    r"""Critic :math:`f(x)^\top g(z) / \tau` of normalised embeddings, with :math:`u(x, z)`, for `flo`.

    The bilinear form of Guo et al. [NeurIPS 2022], as in their code: u is a network of both embeddings, and the
    temperature, which starts at 1, is learnt; here by its logarithm, so that it stays positive.

    Parameters
    ----------
    x_dim, z_dim : int
        Numbers of coordinates of x and z.
    hidden : int
        Width of the two hidden layers of f and g.
    embedding : int
        Size of f(x) and g(z).
    head : int
        Width of the one hidden layer of u.
    activation : type
        Of the hidden layers.

    Examples
    --------
    >>> critic, u = FenchelLegendreCritic(3, 2)(torch.randn(5, 3), torch.randn(5, 2))
    >>> critic.shape, u.shape
    (torch.Size([5, 5]), torch.Size([5]))
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        hidden: int = 512,
        embedding: int = 512,
        head: int = 128,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.f = mlp([x_dim, hidden, hidden, embedding], activation)
        self.g = mlp([z_dim, hidden, hidden, embedding], activation)
        self.u = mlp([2 * embedding, head, 1], activation)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]
    ) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n"]]:
        """Matrix of all critic values, :math:`T(x_i, z_j)` at (i, j), and u of the joint pairs."""
        f, g = nn.functional.normalize(self.f(x), dim=-1), nn.functional.normalize(self.g(z), dim=-1)
        return torch.exp(-self.log_temperature) * (f @ g.mT), self.u(torch.cat([f, g], dim=-1)).squeeze(-1)


class MixtureDensities(nn.Module):
    r"""Densities :math:`q(z)` and :math:`q(z | x)`, each a mixture of K Gaussians with full covariances, for `knife`.

    KNIFE [Pichler et al., ICML 2022, sec. 3]: the weights, means and inverse Cholesky factors of the first are
    parameters, those of the second the outputs of a network. A factor is a unit lower triangular matrix times a
    diagonal one, whose logarithm goes through a tanh, so that it lies in (-1, 1) times `log_scale_range`.

    Parameters
    ----------
    x_dim, z_dim : int
        Numbers of coordinates of x and z; the network has :math:`K (1 + 2 q + q^2)` outputs.
    components : int
        K.
    hidden : int
        Width of the two hidden layers.
    log_scale_range : float
        Largest absolute value of the logarithm of an inverse scale, > 0.
    activation : type
        Of the hidden layers.

    Raises
    ------
    ValueError
        If `log_scale_range` is not positive.

    Examples
    --------
    >>> densities = MixtureDensities(3, 2)
    >>> log_conditional, log_marginal = densities(torch.randn(5, 3), torch.randn(5, 2))
    >>> log_conditional.shape, log_marginal.shape
    (torch.Size([5]), torch.Size([5]))
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        components: int = 8,
        hidden: int = 256,
        log_scale_range: float = 5.0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_positive(log_scale_range, "log_scale_range")
        self.z_dim, self.components, self.log_scale_range = z_dim, components, log_scale_range
        size = components * (1 + 2 * z_dim + z_dim**2)
        self.marginal = nn.Parameter(0.01 * torch.randn(size))  # their code's spread; equal components would stay equal
        self.conditional = mlp([x_dim, hidden, hidden, size], activation)

    def forward(
        self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        r""":math:`\ln q(z_i | x_i)` and :math:`\ln q(z_i)` of the joint pairs: the sum is maximised to fit them."""
        weight, mean, log_scale, lower = self._parts(self.conditional(x))
        scaled = log_scale.exp() * (z[:, None] - mean)
        conditional = self._log_prob(weight, log_scale, scaled + (lower @ scaled[..., None]).squeeze(-1))
        weight, mean, log_scale, lower = self._parts(self.marginal)
        scaled = log_scale.exp() * (z[:, None] - mean)
        white = scaled + (scaled.transpose(0, 1) @ lower.mT).transpose(0, 1)  # one product a component
        return conditional, self._log_prob(weight, log_scale, white)

    def _parts(self, values: Float[Tensor, "*n s"]) -> list[Tensor]:
        """Log-weights [*n, K], means [*n, K, q], logarithms of inverse scales [*n, K, q], lower parts [*n, K, q, q]."""
        k, q = self.components, self.z_dim
        weight, mean, log_scale, lower = values.split([k, k * q, k * q, k * q * q], dim=-1)
        log_scale = self.log_scale_range * torch.tanh(log_scale / self.log_scale_range)
        return [
            weight.log_softmax(-1),
            mean.unflatten(-1, (k, q)),
            log_scale.unflatten(-1, (k, q)),
            lower.unflatten(-1, (k, q, q)).tril(-1),
        ]

    def _log_prob(self, weight: Tensor, log_scale: Tensor, white: Float[Tensor, "n k q"]) -> Float[Tensor, "n"]:
        logs = weight + log_scale.sum(-1) - white.square().sum(-1) / 2
        return logs.logsumexp(-1) - self.z_dim / 2 * math.log(2 * math.pi)
