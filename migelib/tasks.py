r"""Distributions with a known score, entropy, mutual information and gradient: accuracy is measured against these.

Samples are reparameterised: they are differentiable functions of the task's parameters, which may be tensors that
require a gradient. Noise is drawn by an explicit generator, on the generator's device, so that a run on a GPU sees the
same samples as one on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def _noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)


# --- densities with a known score ------------------------------------------------------------------------------------


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
        noise = _noise((n, len(self.mean)), self.mean, generator)
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
        return means + self.scale * _noise((n, self.means.shape[-1]), self.means, generator)

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
        half_df = torch.full((n, 1), self.df / 2, dtype=dtype, device=generator.device)
        return noise / (torch._standard_gamma(half_df, generator=generator) * 2 / self.df).sqrt()

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
        return _noise((n, len(self.loading)), self.loading, generator) @ self.loading.mT

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
        return torch.sinh(self.tail * torch.asinh(_noise((n, self.dim), self.tail, generator)) + self.skew)

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


# --- pairs with a known mutual-information gradient ------------------------------------------------------------------


@dataclass(frozen=True)
class CorrelatedGaussian:
    r"""The toy task of the MIGE paper: :math:`x \sim N(0, I_d)`, :math:`y = \rho x + \sqrt{1 - \rho^2}\, \epsilon`.

    Parameters
    ----------
    dim : int
        Number of coordinates d of x and of y.
    rho : float or Tensor [*batch]
        Correlation of :math:`x_i` and :math:`y_i`, in (-1, 1); a tensor makes one problem an entry.

    Raises
    ------
    ValueError
        If `dim` < 1 or an entry of `rho` is outside (-1, 1).
    """

    dim: int
    rho: Float[Tensor, "*batch"]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "rho", torch.as_tensor(self.rho, dtype=None if torch.is_tensor(self.rho) else torch.float32)
        )
        if self.dim < 1:
            raise ValueError(f"dim: expected a positive integer, got {self.dim!r}")
        if not bool((self.rho.detach().abs() < 1).all()):
            raise ValueError(f"rho: expected entries in (-1, 1), got {self.rho.detach().tolist()}")

    def sample(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
        """Draw n pairs (x, y); y is differentiable in rho."""
        x, noise = _noise((2, *self.rho.shape, n, self.dim), self.rho, generator)
        rho = self.rho[..., None, None]
        return x, rho * x + (1 - rho.square()).sqrt() * noise

    def mutual_information(self) -> Float[Tensor, "*batch"]:
        r"""Mutual information, :math:`-\tfrac d2 \ln(1 - \rho^2)` nats."""
        return -self.dim / 2 * torch.log1p(-self.rho.square())

    def mutual_information_gradient(self) -> Float[Tensor, "*batch"]:
        r"""Derivative with respect to rho, :math:`\rho d / (1 - \rho^2)` nats."""
        rho = self.rho.detach()
        return rho * self.dim / (1 - rho.square())

    def score_y(self, y: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Score of y (and, as both are standard Gaussians, of x)."""
        return -y

    def score_joint(
        self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n d"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
        r"""Score of (x, y): its parts :math:`-(x - \rho y) / (1 - \rho^2)` and :math:`-(y - \rho x) / (1 - \rho^2)`."""
        rho = self.rho.detach()[..., None, None]
        return -(x - rho * y) / (1 - rho.square()), -(y - rho * x) / (1 - rho.square())

    def density_ratio(
        self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n n"]:
        r"""Matrix of :math:`\ln p(x_i, y_j) / p(x_i) p(y_j)`: the critic at which the variational bounds are tight."""
        rho = self.rho.detach()[..., None, None]
        squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
        quadratic = (rho * x @ y.mT - rho.square() * squares / 2) / (1 - rho.square())
        return quadratic + self.mutual_information().detach()[..., None, None]


@dataclass(frozen=True)
class JointGaussian:
    r"""Linear functions of common noise :math:`\epsilon \sim N(0, I_k)`: :math:`x = W_x \epsilon, z = W_z \epsilon`.

    Every jointly Gaussian pair has this form, with a gradient through either loading or both.

    Parameters
    ----------
    x_loading, z_loading : Tensor [p, k] and [q, k]
        :math:`W_x` and :math:`W_z`, of full row rank. Where their rows together are linearly dependent (a noise-free
        encoder) the mutual information is infinite.
    """

    x_loading: Float[Tensor, "p k"]
    z_loading: Float[Tensor, "q k"]

    def sample(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
        """Draw n pairs (x, z), differentiable in the loadings."""
        noise = _noise((n, self.x_loading.shape[-1]), self.x_loading, generator)
        return noise @ self.x_loading.mT, noise @ self.z_loading.mT

    def entropies(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """Entropies of x, z and (x, z), in nats, differentiable in the loadings."""
        joint = torch.cat([self.x_loading, self.z_loading])
        return tuple(
            0.5 * (len(w) * math.log(2 * math.pi * math.e) + torch.linalg.slogdet(w @ w.mT).logabsdet)
            for w in (self.x_loading, self.z_loading, joint)
        )

    def mutual_information(self) -> Float[Tensor, ""]:
        """Mutual information, in nats, differentiable in the loadings."""
        h_x, h_z, h_joint = self.entropies()
        return h_x + h_z - h_joint

    def scores(
        self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]
    ) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"], Float[Tensor, "n p"], Float[Tensor, "n q"]]:
        """Scores: the x- and z-parts of that of (x, z), then those of x and z alone; needs a finite information."""
        w_x, w_z = self.x_loading.detach(), self.z_loading.detach()

        def score(points: Tensor, w: Tensor) -> Tensor:
            return -torch.linalg.solve(w @ w.mT, points.mT).mT

        joint = score(torch.cat([x, z], dim=-1), torch.cat([w_x, w_z]))
        return joint[..., : x.shape[-1]], joint[..., x.shape[-1] :], score(x, w_x), score(z, w_z)
