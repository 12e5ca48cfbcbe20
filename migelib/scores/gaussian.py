"""Parametric score: a Gaussian fitted by maximum likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import unit
from ..validation import check_points, check_samples, check_spread, fused_checks, require


@dataclass(frozen=True)
class GaussianScore:
    r"""Score of the Gaussian with the samples' mean and covariance, :math:`\hat s(x) = -\hat\Sigma^{-1} (x - \hat\mu)`.

    Without shrinkage the covariance is the maximum-likelihood one (divided by n), so Stein's identity
    :math:`\frac1n \sum_i \hat s(x_i) x_i^\top = -I` holds exactly on the samples. Exact in the limit for Gaussian data
    only; for other data it is the best affine score in the sense of score matching [Hyvarinen, JMLR 2005, sec. 3.1].
    To first order in 1 / n the plug-in entropy of n Gaussian samples in d dimensions is too low by d (d + 3) / 4 n,
    which is 1 / 2 n for each parameter, and the plug-in information of p and q coordinates is too high by p q / 2 n.
    Derived in :doc:`/book/score-estimation`.

    Parameters
    ----------
    shrinkage : float or "ledoit-wolf", optional
        Weight a in [0, 1] of the scaled identity in :math:`(1 - a) \hat\Sigma + a\, \mathrm{tr}(\hat\Sigma) / d\, I`,
        or the one of least mean squared error [Ledoit & Wolf, J. Multivariate Analysis 88, 2004]. With a > 0, n <= d
        works.

    Raises
    ------
    ValueError
        If `shrinkage` is outside its range.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> score = GaussianScore().fit(x)(x)
    >>> torch.allclose(score.mT @ x / 500, -torch.eye(2), atol=1e-5)
    True
    """

    shrinkage: float | str | None = None

    def __post_init__(self) -> None:
        if self.shrinkage is None or self.shrinkage == "ledoit-wolf":
            return
        if isinstance(self.shrinkage, str) or not 0 <= self.shrinkage <= 1:
            raise ValueError(f'shrinkage: expected a number in [0, 1], "ledoit-wolf" or None, got {self.shrinkage!r}')

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> AffineScore:
        """Fit the score to samples.

        Parameters
        ----------
        samples : Tensor [*batch, n, d]
            float32 or float64; without shrinkage, n > d.

        Returns
        -------
        AffineScore
            The function points [*batch, m, d] -> score [*batch, m, d].

        Raises
        ------
        TypeError
            If `samples` is not a tensor of float32 or float64.
        ValueError
            If there are fewer than two samples, an entry is not finite, all samples are equal, or their shrunk
            covariance is singular (without shrinkage always so for n <= d).
        """
        check_samples(samples)
        check_spread(samples)
        samples = samples.detach()
        n, dim = samples.shape[-2:]
        scale = unit(samples)
        # A constant coordinate then has no variance, not one of rounding.
        shifted = (samples - samples[..., :1, :]) / scale
        mean = shifted.mean(-2, keepdim=True)
        covariance = shrunk_covariance(shifted - mean, self.shrinkage)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        # A pivot at rounding level means a singular covariance that the factorisation happened to survive.
        pivots = factor.diagonal(dim1=-2, dim2=-1).square() / covariance.diagonal(dim1=-2, dim2=-1)
        unshrunk = self.shrinkage is None or self.shrinkage == 0
        resolved = (failed == 0).all() & (pivots >= 10 * dim * torch.finfo(samples.dtype).eps).all()
        require(
            resolved & (n > dim or not unshrunk),
            lambda: ValueError(
                f"samples: expected an invertible covariance, which needs n > d (or shrinkage) and no constant or "
                f"linearly dependent coordinates, got shape {tuple(samples.shape)}"
            ),
        )
        return AffineScore(mean * scale + samples[..., :1, :], torch.cholesky_inverse(factor), scale)


def shrunk_covariance(
    centred: Float[Tensor, "*batch n d"], shrinkage: float | str | None
) -> Float[Tensor, "*batch d d"]:
    """Covariance of centred samples, divided by n, shrunk towards a multiple of the identity (see `GaussianScore`)."""
    n, dim = centred.shape[-2:]
    covariance = centred.mT @ centred / n
    if shrinkage is None or shrinkage == 0:
        return covariance
    level = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    weight = ledoit_wolf_weight(centred) if shrinkage == "ledoit-wolf" else torch.full_like(level, shrinkage)
    identity = torch.eye(dim, dtype=centred.dtype, device=centred.device)
    return (1 - weight)[..., None, None] * covariance + (weight * level)[..., None, None] * identity


def ledoit_wolf_weight(centred: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    r"""Ledoit and Wolf's shrinkage weight for centred samples, in [0, 1].

    The ratio of the covariance's sampling error, :math:`\frac1{n^2} \sum_i \|x_i x_i^\top - \hat\Sigma\|^2`, to its
    distance from the target, :math:`\|\hat\Sigma - \mu I\|^2` [J. Multivariate Analysis 88, 2004, sec. 3].
    """
    n = centred.shape[-2]
    covariance = centred.mT @ centred / n
    total = covariance.square().sum((-2, -1))
    level = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    distance = (total - centred.shape[-1] * level.square()).clamp_min(0)
    error = (centred.square().sum(-1).square().mean(-1) - total).clamp_min(0) / n
    weight = torch.minimum(error, distance) / distance.clamp_min(torch.finfo(centred.dtype).tiny)
    return torch.where(distance > 0, weight, torch.ones_like(weight))


@dataclass(frozen=True)
class AffineScore:
    r"""The function that `GaussianScore.fit` returns.

    Attributes
    ----------
    mean : Tensor [*batch, 1, d]
        :math:`\hat\mu`.
    precision : Tensor [*batch, d, d]
        :math:`u^2\, \hat\Sigma^{-1}`.
    unit : Tensor [*batch, 1, 1]
        :math:`u`, a power of two of the samples' extent, so that the precision stays in range.
    """

    mean: Float[Tensor, "*batch 1 d"]
    precision: Float[Tensor, "*batch d d"]
    unit: Float[Tensor, "*batch 1 1"]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.mean)
        return -((points - self.mean) / self.unit) @ self.precision / self.unit

    def divergence(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        r"""Divergence of the score at points [*batch, m, d]: :math:`-\mathrm{tr}\, \hat\Sigma^{-1}` everywhere."""
        check_points(points, self.mean)
        trace = self.precision.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        trace = trace / self.unit[..., 0] / self.unit[..., 0]
        return -trace.expand(points.shape[:-1])

    def log_density(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        r"""Log density at points [*batch, m, d], in nats: that of :math:`N(\hat\mu, \hat\Sigma)`."""
        check_points(points, self.mean)
        factor = torch.linalg.cholesky_ex(self.precision).L
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        squares = (((points - self.mean) / self.unit) @ factor).square().sum(-1)
        constant = log_det - points.shape[-1] * (self.unit[..., 0].log() + math.log(2 * math.pi) / 2)
        return constant - squares / 2
