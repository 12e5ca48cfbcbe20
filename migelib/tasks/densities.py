"""Densities with a known score, and samplers with a known entropy gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .base import draw_chi_square, draw_normal


@dataclass(frozen=True)
class Gaussian:
    r"""Gaussian :math:`N(\mu, \Sigma)`.

    Parameters
    ----------
    mean : Tensor [d]
        :math:`\mu`.
    covariance : Tensor [d, d]
        :math:`\Sigma`, positive definite.
    """

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw n samples."""
        noise = draw_normal((n, len(self.mean)), self.mean, generator)
        return self.mean + noise @ torch.linalg.cholesky(self.covariance).mT

    def score(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        r"""Score, :math:`-\Sigma^{-1} (x - \mu)`."""
        return -torch.linalg.solve(self.covariance, (points - self.mean).mT).mT


@dataclass(frozen=True)
class GaussianMixture:
    r"""Equal mixture of isotropic Gaussians :math:`N(\mu_k, \tau^2 I)`.

    Parameters
    ----------
    means : Tensor [k, d]
        The :math:`\mu_k`.
    scale : float
        :math:`\tau > 0`.
    """

    means: Float[Tensor, "k d"]
    scale: float

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw n samples."""
        component = torch.randint(len(self.means), (n,), generator=generator, device=generator.device)
        means = self.means[component.to(self.means.device)]
        return means + self.scale * draw_normal((n, self.means.shape[-1]), self.means, generator)

    def score(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        r"""Score, :math:`\sum_k w_k(x) (\mu_k - x) / \tau^2` with the posterior weights :math:`w_k(x)`."""
        to_means = self.means - points[..., None, :]
        weights = torch.softmax(-to_means.square().sum(-1) / (2 * self.scale**2), dim=-1)
        return (weights[..., None] * to_means).sum(-2) / self.scale**2


@dataclass(frozen=True)
class StudentT:
    r"""Multivariate Student-t with :math:`\nu` degrees of freedom, centred, with identity scale matrix.

    Parameters
    ----------
    dim : int
        Number of coordinates.
    df : float
        :math:`\nu > 0`.
    """

    dim: int
    df: float

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n d"]:
        r"""Draw n samples: Gaussian ones over the root of an independent :math:`\chi^2_\nu / \nu`."""
        noise = torch.randn((n, self.dim), generator=generator, device=generator.device, dtype=dtype)
        return noise / draw_chi_square(n, self.df, noise, generator).sqrt()

    def score(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        r"""Score, :math:`-(\nu + d)\, x / (\nu + \|x\|^2)`: it falls off in the tails."""
        return -(self.df + self.dim) * points / (self.df + points.square().sum(-1, keepdim=True))


# --- samplers with a known entropy gradient --------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearGaussian:
    r"""Linear map of Gaussian noise, :math:`z = A \epsilon`: :math:`H(z) = \tfrac d2 \ln 2 \pi e + \ln|\det A|`.

    Parameters
    ----------
    loading : Tensor [d, d]
        :math:`A`, invertible.
    """

    loading: Float[Tensor, "d d"]

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw n samples, differentiable in the loading."""
        return draw_normal((n, len(self.loading)), self.loading, generator) @ self.loading.mT

    def entropy(self) -> Float[Tensor, ""]:
        """Entropy, in nats."""
        return len(self.loading) / 2 * math.log(2 * math.pi * math.e) + torch.linalg.slogdet(self.loading).logabsdet

    def entropy_gradient(self) -> Float[Tensor, "d d"]:
        r"""Gradient of the entropy with respect to the loading, :math:`A^{-\top}`."""
        return torch.linalg.inv(self.loading.detach()).mT

    def score(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        r"""Score, :math:`-(A A^\top)^{-1} z`."""
        loading = self.loading.detach()
        return -torch.linalg.solve(loading @ loading.mT, points.mT).mT


@dataclass(frozen=True)
class SinhArcsinh:
    r"""Skewed and heavy-tailed samples, :math:`z_i = \sinh(\tau\, \mathrm{arsinh}\, \epsilon_i + \eta)`.

    The sinh-arcsinh distribution [Jones & Pewsey, Biometrika 96, 2009]: an invertible map of each
    coordinate of Gaussian noise. By Gauss-Hermite quadrature the entropy is
    :math:`H(z) = d\, (\tfrac12 \ln 2 \pi e + E \ln f'(\epsilon))`.

    Parameters
    ----------
    dim : int
        Number of coordinates.
    skew, tail : Tensor []
        :math:`\eta` and :math:`\tau > 0`; tails are heavier than a Gaussian's for :math:`\tau > 1`.
    """

    dim: int
    skew: Float[Tensor, ""]
    tail: Float[Tensor, ""]

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw n samples, differentiable in skew and tail."""
        return torch.sinh(self.tail * torch.asinh(draw_normal((n, self.dim), self.tail, generator)) + self.skew)

    def entropy(self) -> Float[Tensor, ""]:
        """Entropy, in nats; differentiable in skew and tail."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(200)
        noise = torch.as_tensor(nodes, dtype=self.tail.dtype, device=self.tail.device)
        weight = torch.as_tensor(weights / weights.sum(), dtype=self.tail.dtype, device=self.tail.device)
        log_slope = (weight * self._log_slope(noise)).sum()
        return self.dim * (0.5 * math.log(2 * math.pi * math.e) + log_slope)

    def entropy_gradient(self) -> Float[Tensor, "2"]:
        """Gradient of the entropy with respect to (skew, tail)."""
        skew = self.skew.detach().requires_grad_()
        tail = self.tail.detach().requires_grad_()
        return torch.stack(torch.autograd.grad(SinhArcsinh(self.dim, skew, tail).entropy(), (skew, tail)))

    def score(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        r"""Score, :math:`-(\epsilon + (\ln f')'(\epsilon)) / f'(\epsilon)` at :math:`\epsilon = f^{-1}(z)`."""
        skew, tail = self.skew.detach(), self.tail.detach()
        angle = torch.asinh(points)
        noise = torch.sinh((angle - skew) / tail)
        root = (1 + noise.square()).sqrt()
        slope = tail * torch.cosh(angle) / root
        log_slope_derivative = tail * torch.tanh(angle) / root - noise / root.square()
        return -(noise + log_slope_derivative) / slope

    def _log_slope(self, noise: Tensor) -> Tensor:
        angle = self.tail * torch.asinh(noise) + self.skew
        return torch.log(self.tail) + torch.log(torch.cosh(angle)) - 0.5 * torch.log1p(noise.square())


@dataclass(frozen=True)
class LinearMap:
    r"""Linear map of noise of any law, :math:`z = A u`: :math:`H(z) = H(u) + \ln|\det A|`.

    Parameters
    ----------
    noise : Gaussian, GaussianMixture or StudentT
        Law of u: an object with `sample(n, generator)` [n, d] and `score(points)`.
    loading : Tensor [d, d]
        :math:`A`, invertible.
    """

    noise: Gaussian | GaussianMixture | StudentT
    loading: Float[Tensor, "d d"]

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw n samples, differentiable in the loading."""
        return self.noise.sample(n, generator).to(self.loading) @ self.loading.mT

    def entropy_gradient(self) -> Float[Tensor, "d d"]:
        r"""Gradient of the entropy with respect to the loading, :math:`A^{-\top}`, whatever the law of u."""
        return torch.linalg.inv(self.loading.detach()).mT

    def score(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        r"""Score, :math:`A^{-\top} s_u(A^{-1} z)`."""
        loading = self.loading.detach()
        return torch.linalg.solve(loading.mT, self.noise.score(torch.linalg.solve(loading, points.mT).mT).mT).mT
