"""Heavy-tailed pair: a multivariate Student-t, whose mutual information is the Gaussian one plus a constant."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .base import PairScores, draw_chi_square
from .gaussian import GaussianPair


@dataclass(frozen=True, eq=False)
class StudentPair:
    r"""Multivariate Student-t pair, :math:`(x, z) = (x_0, z_0) / \sqrt{w}` with :math:`w \sim \chi^2_\nu / \nu`.

    Dividing by a common random scale makes x and z dependent even where they are uncorrelated. The entropy of a
    Student-t in d dimensions is :math:`\tfrac12 \ln\det\Sigma + h_d(\nu)`, so
    :math:`I(x; z) = I(x_0; z_0) + h_p(\nu) + h_q(\nu) - h_{p+q}(\nu)`, and the gradient with respect to parameters of
    :math:`\Sigma` is that of the Gaussian pair
    [Arellano-Valle, Contreras-Reyes & Genton, Scandinavian Journal of Statistics 40, 2013].

    Parameters
    ----------
    core : GaussianPair
        The pair :math:`(x_0, z_0)`.
    df : float
        Degrees of freedom :math:`\nu > 0`.
    """

    core: GaussianPair
    df: float

    @property
    def theta(self) -> Float[Tensor, "k"]:
        """Parameters of the Gaussian pair."""
        return self.core.theta

    def at(self, theta: Float[Tensor, "k"]) -> StudentPair:
        """Return the task at other parameters."""
        return replace(self, core=self.core.at(theta))

    def sample(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
        """Draw n pairs (x, z), differentiable in theta."""
        x, z = self.core.sample(n, generator)
        root = draw_chi_square(n, self.df, z, generator).sqrt()
        return x / root, z / root

    def mutual_information(self) -> Float[Tensor, ""]:
        """Mutual information, in nats, differentiable in theta."""
        p, q = len(self.core.x_loading), len(self.core.z_loading)
        constant = _shape_entropy(p, self.df) + _shape_entropy(q, self.df) - _shape_entropy(p + q, self.df)
        return self.core.mutual_information() + constant

    def mutual_information_gradient(self) -> Float[Tensor, "k"]:
        """Gradient with respect to theta, in nats: that of the Gaussian pair."""
        return self.core.mutual_information_gradient()

    def mutual_information_gradient_error(self) -> Float[Tensor, "k"]:
        """Zero: the gradient has a closed form."""
        return self.core.mutual_information_gradient_error()

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> PairScores:
        r"""Exact scores at samples, each :math:`-(\nu + d)\, \Sigma^{-1} u / (\nu + u^\top \Sigma^{-1} u)`."""
        gaussian = self.core.scores(x, z)
        joint = torch.cat(gaussian[:2], dim=-1)
        joint_score = self._reweigh(torch.cat([x, z], dim=-1), joint)
        parts = joint_score.split([x.shape[-1], z.shape[-1]], dim=-1)
        return PairScores(*parts, self._reweigh(x, gaussian.x), self._reweigh(z, gaussian.z))

    def _reweigh(self, points: Float[Tensor, "n d"], score: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        squared_radius = -(points * score).sum(-1, keepdim=True)
        return score * (self.df + points.shape[-1]) / (self.df + squared_radius)


def _shape_entropy(dim: int, df: float) -> float:
    r"""Entropy :math:`h_d(\nu)` of the d-dimensional Student-t with identity scale matrix, in nats."""
    digamma = [float(torch.digamma(torch.tensor(v / 2, dtype=torch.float64))) for v in (df, df + dim)]
    log_volume = dim / 2 * math.log(df * math.pi) + math.lgamma(df / 2) - math.lgamma((df + dim) / 2)
    return log_volume + (df + dim) / 2 * (digamma[1] - digamma[0])
