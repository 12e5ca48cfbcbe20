"""Parametric score: a Gaussian fitted by maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..validation import check_points, check_samples, check_spread


@dataclass(frozen=True)
class GaussianScore:
    r"""Score of the Gaussian with the samples' mean and covariance, :math:`\hat s(x) = -\hat\Sigma^{-1} (x - \hat\mu)`.

    The covariance is the maximum-likelihood one (divided by n), so Stein's identity
    :math:`\frac1n \sum_i \hat s(x_i) x_i^\top = -I` holds exactly on the samples. Exact in the limit for Gaussian data
    only; for other data it is the best affine score in the sense of score matching [Hyvarinen, JMLR 2005, sec. 3.1].
    Derived in :doc:`/book/04_score_estimation`.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> score = GaussianScore().fit(x)(x)
    >>> torch.allclose(score.mT @ x / 500, -torch.eye(2), atol=1e-5)
    True
    """

    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> AffineScore:
        """Fit the score to samples.

        Parameters
        ----------
        samples : Tensor [*batch, n, d]
            float32 or float64, with n > d.

        Returns
        -------
        AffineScore
            The function points [*batch, m, d] -> score [*batch, m, d].

        Raises
        ------
        TypeError
            If `samples` is not a floating-point tensor.
        ValueError
            If there are fewer than two samples, an entry is not finite, all samples are equal, or their covariance is
            singular (always so for n <= d).
        """
        check_samples(samples)
        check_spread(samples)
        samples = samples.detach()
        n, dim = samples.shape[-2:]
        mean = samples.mean(-2, keepdim=True)
        centred = samples - mean
        covariance = centred.mT @ centred / n
        factor, failed = torch.linalg.cholesky_ex(covariance)
        # A pivot at rounding level means a singular covariance that the factorisation happened to survive.
        pivots = factor.diagonal(dim1=-2, dim2=-1).square() / covariance.diagonal(dim1=-2, dim2=-1)
        if n <= dim or bool(failed.any()) or bool((pivots < 10 * dim * torch.finfo(samples.dtype).eps).any()):
            raise ValueError(
                f"samples: expected an invertible covariance, which needs n > d and no constant or linearly dependent "
                f"coordinates, got shape {tuple(samples.shape)}"
            )
        return AffineScore(mean, torch.cholesky_inverse(factor))


@dataclass(frozen=True)
class AffineScore:
    r"""The function that `GaussianScore.fit` returns.

    Attributes
    ----------
    mean : Tensor [*batch, 1, d]
        :math:`\hat\mu`.
    precision : Tensor [*batch, d, d]
        :math:`\hat\Sigma^{-1}`.
    """

    mean: Float[Tensor, "*batch 1 d"]
    precision: Float[Tensor, "*batch d d"]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.mean)
        return -(points - self.mean) @ self.precision
