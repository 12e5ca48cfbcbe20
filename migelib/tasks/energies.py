r"""Targets given by an energy: an unnormalised log density, and what is needed to judge a sampler of it.

A plane target has a box that holds all but a negligible part of its mass, so that divergences are sums over cells.
Explained in :doc:`/book/implicit-vi`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ..validation import check_count, check_positive
from .base import draw_normal

Box = tuple[tuple[float, float], tuple[float, float]]


def gaussian_log_prob(points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Log density of a standard Gaussian, up to its constant."""
    return -0.5 * points.square().sum(-1)


@dataclass(frozen=True)
class PlaneEnergy:
    r"""Target :math:`p(z) \propto e^{f(z)}` in the plane.

    Parameters
    ----------
    name : str
        Its name.
    function : callable
        f, from points [*batch, 2] to [*batch].
    box : pair of intervals
        Rectangle that holds nearly all of the mass.
    """

    name: str
    function: Callable[[Float[Tensor, "*batch 2"]], Float[Tensor, "*batch"]]
    box: Box
    dim: int = 2

    def log_prob(self, points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
        """Log density up to a constant."""
        return self.function(points)

    def score(self, points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Gradient of the log density."""
        return _score(self.log_prob, points)

    @cache  # noqa: B019 - the targets are a few module constants
    def log_masses(self, cells: int = 100, refine: int = 5) -> Float[Tensor, "c c"]:
        """Logarithm of the mass in each cell of the box, in float64; each is a sum over `refine` x `refine` points."""
        check_count(cells, "cells", 2)
        check_count(refine, "refine")
        fine = cells * refine
        centres = [low + (high - low) * (torch.arange(fine).double() + 0.5) / fine for low, high in self.box]
        points = torch.stack(torch.meshgrid(*centres, indexing="ij"), -1)
        log_mass = self.log_prob(points).reshape(cells, refine, cells, refine).logsumexp((1, 3))
        return log_mass - log_mass.flatten().logsumexp(0)

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 2"]:
        """Draw n points: a cell of a grid of 600 x 600 by its mass, then a uniform point of the cell."""
        cells = 600
        masses = self.log_masses(cells, 1).exp().flatten()
        drawn = torch.multinomial(masses, n, replacement=True, generator=generator)
        index = torch.stack([drawn // cells, drawn % cells], -1)
        place = (index + torch.rand(n, 2, generator=generator, dtype=torch.float64)) / cells
        low, high = torch.tensor(self.box, dtype=torch.float64).unbind(-1)
        return (low + (high - low) * place).to(dtype)

    def histogram(self, samples: Float[Tensor, "n 2"], cells: int = 100) -> Float[Tensor, "c c"]:
        """Share of the samples in each cell, in float64; a sample outside the box counts for the nearest cell."""
        low, high = torch.tensor(self.box, dtype=torch.float64).unbind(-1)
        place = (samples.detach().cpu().double() - low) / (high - low)
        index: Int[Tensor, "n 2"] = (place * cells).floor().clamp(0, cells - 1).long()
        counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2)
        return (counts / len(samples)).reshape(cells, cells).double()

    def divergences(self, samples: Float[Tensor, "n 2"], cells: int = 100) -> tuple[float, float]:
        r""":math:`\mathrm{KL}(q \,\|\, p)` in nats and the total variation distance, both over the cells of the grid.

        q is the histogram of the samples. A sum over cells is at most the divergence of the densities, and n samples
        of p itself give about (cells occupied) / 2n instead of 0: the floor.
        """
        if samples.ndim != 2 or samples.shape[-1] != 2 or len(samples) == 0:
            raise ValueError(f"samples: expected points [n, 2], got shape {tuple(samples.shape)}")
        q, log_p = self.histogram(samples, cells), self.log_masses(cells)
        return float((torch.xlogy(q, q) - q * log_p).sum()), float(0.5 * (q - log_p.exp()).abs().sum())


def _ring(z: Tensor) -> Tensor:
    return -((z.square().sum(-1) + 1e-12).sqrt() - 2).square() / (2 * 0.25**2)


def _eight_gaussians(z: Tensor) -> Tensor:
    angle = torch.arange(8, device=z.device, dtype=z.dtype) * math.pi / 4
    centres = 2 * torch.stack([angle.cos(), angle.sin()], -1)
    return (-(z[..., None, :] - centres).square().sum(-1) / (2 * 0.3**2)).logsumexp(-1)


def _banana(z: Tensor) -> Tensor:
    return -z[..., 0].square() / 2 - (z[..., 1] - z[..., 0].square() + 1).square() / (2 * 0.5**2)


def _funnel(z: Tensor) -> Tensor:
    v, x = z[..., :1], z[..., 1:]
    return -v[..., 0].square() / 2 - (x.square() * torch.exp(-v) + v).sum(-1) / 2


def _wave(z: Tensor) -> Tensor:
    return torch.sin(math.pi * z[..., 0] / 2)


def _normal(x: Tensor, scale: float) -> Tensor:
    return -x.square() / (2 * scale**2)


def _wall(z: Tensor) -> Tensor:
    """Soft wall at |z_i| = 4: beyond it a Gaussian tail with standard deviation 0.1."""
    return -functional.relu(z.abs() - 4).square().sum(-1) / (2 * 0.1**2)


def _u1(z: Tensor) -> Tensor:
    radius = (z.square().sum(-1) + 1e-12).sqrt()
    return _normal(radius - 2, 0.4) + torch.logaddexp(_normal(z[..., 0] - 2, 0.6), _normal(z[..., 0] + 2, 0.6))


def _u2(z: Tensor) -> Tensor:
    return _normal(z[..., 1] - _wave(z), 0.4) + _wall(z)


def _u3(z: Tensor) -> Tensor:
    bump = 3 * torch.exp(_normal(z[..., 0] - 1, 0.6))
    offset = z[..., 1] - _wave(z)
    return torch.logaddexp(_normal(offset, 0.35), _normal(offset + bump, 0.35)) + _wall(z)


def _u4(z: Tensor) -> Tensor:
    step = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    offset = z[..., 1] - _wave(z)
    return torch.logaddexp(_normal(offset, 0.4), _normal(offset + step, 0.35)) + _wall(z)


_WALLED = ((-4.5, 4.5), (-4.5, 4.5))
PLANE_ENERGIES: dict[str, PlaneEnergy] = {
    energy.name: energy
    for energy in (
        PlaneEnergy("ring", _ring, ((-3.5, 3.5), (-3.5, 3.5))),
        PlaneEnergy("eight-gaussians", _eight_gaussians, ((-3.5, 3.5), (-3.5, 3.5))),
        PlaneEnergy("banana", _banana, ((-4.5, 4.5), (-3.5, 16.0))),
        PlaneEnergy("funnel", _funnel, ((-5.0, 5.0), (-12.0, 12.0))),
        PlaneEnergy("u1", _u1, ((-4.5, 4.5), (-4.5, 4.5))),
        PlaneEnergy("u2", _u2, _WALLED),
        PlaneEnergy("u3", _u3, _WALLED),
        PlaneEnergy("u4", _u4, _WALLED),
    )
}
r"""The targets in the plane. `u1` to `u4` are the energies of Rezende & Mohamed [ICML 2015, table 1]; the last three
are constant along the first coordinate, hence improper, and have a soft wall at :math:`|z_i| = 4` here."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a target.

    Attributes
    ----------
    mean : Tensor [d]
        Mean.
    covariance : Tensor [d, d]
        Covariance.
    """

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]


@dataclass(frozen=True)
class FunnelEnergy:
    r"""Neal's funnel with a standard normal neck: :math:`v \sim N(0, 1)` and d - 1 coordinates :math:`N(0, e^v)`.

    Parameters
    ----------
    dim : int
        Number of coordinates d, v first; at least 2.
    """

    dim: int = 32
    name: str = "funnel-32d"

    def __post_init__(self) -> None:
        check_count(self.dim, "dim", 2)

    def log_prob(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Log density up to a constant."""
        return _funnel(points)

    def score(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Gradient of the log density."""
        return _score(self.log_prob, points)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw n points."""
        noise = draw_normal((n, self.dim), torch.zeros(()), generator)
        return torch.cat([noise[:, :1], noise[:, 1:] * torch.exp(noise[:, :1] / 2)], -1)

    def moments(self) -> Moments:
        r"""Closed form: mean zero; variance 1 for v and :math:`\sqrt e` for the others; no correlation."""
        variances = torch.full((self.dim,), math.sqrt(math.e), dtype=torch.float64)
        variances[0] = 1.0
        return Moments(torch.zeros(self.dim, dtype=torch.float64), variances.diag())


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    r"""Posterior of a Bayesian logistic regression: weights and an intercept, each :math:`N(0, s^2)` a priori.

    Parameters
    ----------
    features : Tensor [m, d]
        Standardised features, and a column of ones for the intercept.
    signs : Tensor [m]
        Labels, +1 or -1.
    prior_scale : float
        s.
    """

    features: Float[Tensor, "m d"]
    signs: Float[Tensor, "m"]
    prior_scale: float = 1.0
    name: str = "logistic"

    def __post_init__(self) -> None:
        check_positive(self.prior_scale, "prior_scale")
        if self.features.ndim != 2 or self.signs.shape != self.features.shape[:1]:
            raise ValueError(
                f"features and signs: expected shapes [m, d] and [m], got {tuple(self.features.shape)} and "
                f"{tuple(self.signs.shape)}"
            )
        if not bool((self.signs.abs() == 1).all()):
            raise ValueError("signs: expected +1 or -1 only")

    @property
    def dim(self) -> int:
        """Number of weights, the intercept included."""
        return self.features.shape[-1]

    def log_prob(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Log density of the weights up to a constant."""
        signed = (self.features * self.signs[:, None]).to(points)
        prior = points.square().sum(-1) / (2 * self.prior_scale**2)
        return functional.logsigmoid(points @ signed.mT).sum(-1) - prior

    def score(self, points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Gradient of the log density."""
        return _score(self.log_prob, points)


def breast_cancer_posterior() -> tuple[LogisticRegression, Moments]:
    """Logistic regression of the Wisconsin diagnostic data that scikit-learn ships: 569 cases, 30 features.

    Returns
    -------
    LogisticRegression
        The posterior of 31 weights, the intercept last, with a standard normal prior.
    Moments
        Its mean and covariance from a long run of NUTS [Hoffman & Gelman, JMLR 15, 2014], in the file
        `logistic_reference.json` beside this module; `tools/nuts_reference.py` made it and the file says how.
    """
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = torch.as_tensor(features)
    features = (features - features.mean(0)) / features.std(0, correction=0)
    features = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], -1)
    posterior = LogisticRegression(features.float(), 2 * torch.as_tensor(labels).float() - 1)
    stored = json.loads((resources.files(__package__) / "logistic_reference.json").read_text())
    mean, covariance = (torch.tensor(stored[name], dtype=torch.float64) for name in ("mean", "covariance"))
    return posterior, Moments(mean, covariance)


def _score(log_prob: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        (score,) = torch.autograd.grad(log_prob(leaf).sum(), leaf)
    return score
