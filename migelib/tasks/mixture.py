"""Mixture of Gaussian pairs: dependence that no covariance shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from .base import PairScores, Truth, cast, draw_normal, monte_carlo_truth


@dataclass(frozen=True, eq=False)
class MixturePair:
    r"""Equal mixture of Gaussian pairs, :math:`x = \mu^x_c + W^x_c \epsilon` and :math:`z = \mu^z_c + W^z_c \epsilon`.

    The component c is drawn once for x and z. :math:`\mu^z_c(\theta) = \mu_{c,0} + \sum_k \theta_k \nu_{kc}`, and
    :math:`W^z_c(\theta)` likewise; x does not depend on theta. All densities are closed-form mixtures; the information
    and its gradient are Monte-Carlo means of fixed seed with a standard error, see `monte_carlo_truth`.

    Parameters
    ----------
    theta : Tensor [k]
        :math:`\theta`.
    x_means, z_means : Tensor [c, p] and [c, q]
        :math:`\mu^x_c` and :math:`\mu_{c,0}`.
    x_loadings, z_loadings : Tensor [c, p, m] and [c, q, m]
        :math:`W^x_c` and :math:`W_{c,0}`.
    mean_directions, loading_directions : Tensor [k, c, q] and [k, c, q, m]
        :math:`\nu_{kc}` and the directions of :math:`W^z_c`.
    truth_repeats, truth_samples : int
        Size of the Monte-Carlo mean.
    """

    theta: Float[Tensor, "k"]
    x_means: Float[Tensor, "c p"]
    z_means: Float[Tensor, "c q"]
    x_loadings: Float[Tensor, "c p m"]
    z_loadings: Float[Tensor, "c q m"]
    mean_directions: Float[Tensor, "k c q"]
    loading_directions: Float[Tensor, "k c q m"]
    truth_repeats: int = 64
    truth_samples: int = 2048

    def at(self, theta: Float[Tensor, "k"]) -> MixturePair:
        """Return the task at other parameters."""
        return replace(self, theta=theta)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
        """Draw n pairs (x, z); z is differentiable in theta."""
        drawn = torch.randint(len(self.x_means), (n,), generator=generator, device=generator.device)
        component = drawn.to(self.x_means.device)
        noise = draw_normal((n, self.x_loadings.shape[-1]), self.x_means, generator)
        mine = component, torch.arange(n, device=component.device)  # of all components' samples, the drawn one's
        x, z = (
            (means[:, None] + noise @ loadings.mT)[mine]
            for means, loadings in ((self.x_means, self.x_loadings), self._z_components())
        )
        return x, z

    def mutual_information(self) -> Float[Tensor, ""]:
        """Mutual information, in nats: a Monte-Carlo mean."""
        return self.truth.information.to(self.theta)

    def mutual_information_gradient(self) -> Float[Tensor, "k"]:
        """Gradient with respect to theta, in nats: a Monte-Carlo mean."""
        return self.truth.gradient.to(self.theta)

    def mutual_information_gradient_error(self) -> Float[Tensor, "k"]:
        """Standard error of `mutual_information_gradient`."""
        return self.truth.gradient_error.to(self.theta)

    @cached_property
    def truth(self) -> Truth:
        """The Monte-Carlo mean, made when first asked for."""
        task = cast(replace(self, theta=self.theta.detach()), torch.float64)

        def information(theta: Tensor, generator: torch.Generator) -> Tensor:
            there = task.at(theta)
            return there.log_ratio(*there.sample(self.truth_samples, generator)).mean()

        return monte_carlo_truth(information, task.theta, self.truth_repeats)

    def log_ratio(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> Float[Tensor, "n"]:
        r""":math:`\ln q(x, z) - \ln q(x) - \ln q(z)` at pairs, differentiable in them and in theta."""
        means, loadings = self._z_components()
        log_x = _mixture(x, self.x_means, self.x_loadings)[0]
        log_z = _mixture(z, means, loadings)[0]
        both = torch.cat([self.x_means, means], dim=-1), torch.cat([self.x_loadings, loadings], dim=-2)
        return _mixture(torch.cat([x, z], dim=-1), *both)[0] - log_x - log_z

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> PairScores:
        r"""Exact scores at samples, each :math:`-\sum_c w_c(u)\, \Sigma_c^{-1} (u - \mu_c)`; computed in float64."""
        task = cast(self, torch.float64)
        means, loadings = task._z_components()
        both = torch.cat([task.x_means, means], dim=-1), torch.cat([task.x_loadings, loadings], dim=-2)
        joint = _mixture(torch.cat([x, z], dim=-1).double(), *both)[1].to(z)
        score_x = _mixture(x.double(), task.x_means, task.x_loadings)[1].to(x)
        score_z = _mixture(z.double(), means, loadings)[1].to(z)
        return PairScores(*joint.split([x.shape[-1], z.shape[-1]], dim=-1), score_x, score_z)

    def _z_components(self) -> tuple[Float[Tensor, "c q"], Float[Tensor, "c q m"]]:
        means = self.z_means + torch.tensordot(self.theta, self.mean_directions, dims=1)
        return means, self.z_loadings + torch.tensordot(self.theta, self.loading_directions, dims=1)


def _mixture(
    points: Float[Tensor, "n d"], means: Float[Tensor, "c d"], loadings: Float[Tensor, "c d m"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n d"]]:
    """Logarithm of the density of an equal mixture of Gaussians, and its score."""
    factors = torch.linalg.cholesky(loadings @ loadings.mT)
    centred = (points - means[:, None]).mT  # [c, d, n]
    white = torch.linalg.solve_triangular(factors, centred, upper=False)
    log_determinant = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]
    constant = points.shape[-1] / 2 * math.log(2 * math.pi) + math.log(len(means))
    log_parts = -white.square().sum(-2) / 2 - log_determinant - constant
    pulls = -torch.linalg.solve_triangular(factors.mT, white, upper=True)
    score = (torch.softmax(log_parts, dim=0)[:, None] * pulls).sum(0).mT
    return torch.logsumexp(log_parts, dim=0), score
