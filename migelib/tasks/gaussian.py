"""Gaussian pairs with a closed-form mutual-information gradient, from which most other truths follow."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .base import PairScores, draw_normal


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
        x, noise = draw_normal((2, *self.rho.shape, n, self.dim), self.rho, generator)
        rho = self.rho[..., None, None]
        return x, rho * x + (1 - rho.square()).sqrt() * noise

    def mutual_information(self) -> Float[Tensor, "*batch"]:
        r"""Mutual information, :math:`-\tfrac d2 \ln(1 - \rho^2)` nats."""
        return -self.dim / 2 * torch.log1p(-self.rho.square())

    def mutual_information_gradient(self) -> Float[Tensor, "*batch"]:
        r"""Derivative with respect to rho, :math:`\rho d / (1 - \rho^2)` nats."""
        rho = self.rho.detach()
        return rho * self.dim / (1 - rho.square())

    def mutual_information_gradient_error(self) -> Float[Tensor, "*batch"]:
        """Zero: the gradient has a closed form."""
        return torch.zeros_like(self.rho.detach())

    @property
    def theta(self) -> Float[Tensor, "*batch"]:
        """The parameters of the protocol `PairTask`: rho."""
        return self.rho

    def at(self, theta: Float[Tensor, "*batch"]) -> CorrelatedGaussian:
        """Return the task at other correlations."""
        return replace(self, rho=theta)

    def scores(self, x: Float[Tensor, "*batch n d"], z: Float[Tensor, "*batch n d"]) -> PairScores:
        """Exact scores at samples."""
        return PairScores(*self.score_joint(x, z), self.score_y(x), self.score_y(z))

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
        noise = draw_normal((n, self.x_loading.shape[-1]), self.x_loading, generator)
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

    def scores(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> PairScores:
        r"""Exact scores at samples, each :math:`-\Sigma^{-1} u`; needs a finite information."""
        w_x, w_z = self.x_loading.detach(), self.z_loading.detach()
        joint = gaussian_score(torch.cat([x, z], dim=-1), torch.cat([w_x, w_z]))
        return PairScores(*joint.split([len(w_x), len(w_z)], dim=-1), gaussian_score(x, w_x), gaussian_score(z, w_z))


@dataclass(frozen=True, eq=False)
class GaussianPair:
    r"""Gaussian pair whose loadings are linear in a few parameters: a `PairTask` with a closed form.

    With noise :math:`\epsilon \sim N(0, I_m)`, :math:`x = W_x(\theta) \epsilon` and :math:`z = W_z(\theta) \epsilon`,
    where :math:`W(\theta) = W_0 + \sum_k \theta_k D_k`. A linear encoder, dense or of low rank, with little noise or
    with much, is of this form; so is any cross-covariance.

    Parameters
    ----------
    theta : Tensor [k]
        :math:`\theta`.
    x_loading, z_loading : Tensor [p, m] and [q, m]
        The :math:`W_0` of x and of z.
    z_directions : Tensor [k, q, m]
        The :math:`D_k` of z.
    x_directions : Tensor [k, p, m], optional
        Those of x; without them x does not depend on theta.
    normalise : bool
        Scale the rows of both loadings to length one, so that all coordinates have unit variance at every theta.
    """

    theta: Float[Tensor, "k"]
    x_loading: Float[Tensor, "p m"]
    z_loading: Float[Tensor, "q m"]
    z_directions: Float[Tensor, "k q m"]
    x_directions: Float[Tensor, "k p m"] | None = None
    normalise: bool = False

    def at(self, theta: Float[Tensor, "k"]) -> GaussianPair:
        """Return the task at other parameters."""
        return replace(self, theta=theta)

    def joint(self, dtype: torch.dtype | None = None) -> JointGaussian:
        """Return the pair of loadings at theta, differentiable in it, in another precision if wanted."""
        theta = self.theta.to(dtype)
        loadings = []
        for base, directions in ((self.x_loading, self.x_directions), (self.z_loading, self.z_directions)):
            loading = base.to(theta)
            if directions is not None:
                loading = loading + torch.tensordot(theta, directions.to(theta), dims=1)
            loadings.append(loading / loading.norm(dim=-1, keepdim=True) if self.normalise else loading)
        return JointGaussian(*loadings)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
        """Draw n pairs (x, z), differentiable in theta."""
        return self.joint().sample(n, generator)

    def mutual_information(self) -> Float[Tensor, ""]:
        """Mutual information, in nats, differentiable in theta; computed in float64."""
        return self.joint(torch.float64).mutual_information().to(self.theta.dtype)

    def mutual_information_gradient(self) -> Float[Tensor, "k"]:
        """Gradient with respect to theta, in nats; computed in float64."""
        theta = self.theta.detach().double().requires_grad_()
        value = self.at(theta).joint().mutual_information()
        return torch.autograd.grad(value, theta)[0].to(self.theta.dtype)

    def mutual_information_gradient_error(self) -> Float[Tensor, "k"]:
        """Zero: the gradient has a closed form."""
        return torch.zeros_like(self.theta.detach())

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> PairScores:
        r"""Exact scores at samples, each :math:`-\Sigma^{-1} u`; computed in float64."""
        return self.joint(torch.float64).scores(x, z)


def gaussian_score(points: Float[Tensor, "n d"], loading: Float[Tensor, "d m"]) -> Float[Tensor, "n d"]:
    r"""Score of :math:`N(0, W W^\top)`, solved in the loading's precision and returned in that of the points."""
    factor = torch.linalg.cholesky(loading @ loading.mT)
    return -torch.cholesky_solve(points.to(loading).mT, factor).mT.to(points.dtype)
