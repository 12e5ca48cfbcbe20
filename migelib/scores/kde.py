"""Score of a kernel density estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import centre, power_of_two, squared_distances, unit
from ..validation import check_points, check_positive, check_samples, check_spread, fused_checks


@dataclass(frozen=True)
class KDE:
    r"""Score of the Gaussian kernel density estimate: the mean shift :math:`(\sum_j w_j(x)\, x_j - x) / h^2`.

    The weights :math:`w_j(x)` are the softmax of :math:`-\|x - x_j\|^2 / 2 h^2`. Consistent, but its error grows
    quickly with the dimension. At the samples that it was fitted to its density counts each sample's own kernel: an
    entropy's plug-in value is too low by that, too high by the kernel's width, and nears
    :math:`\ln n + \frac d2 \ln 2 \pi h^2` in many dimensions, an information's nears :math:`\ln n`.
    Derived in :doc:`/book/score-estimators`.

    Parameters
    ----------
    width : float, optional
        :math:`h` in the units of the samples; by default Scott's rule :math:`h = s\, n^{-1 / (d + 4)}` with the root
        mean variance :math:`s^2` of the coordinates [Scott, Multivariate Density Estimation, 1992, ch. 6].

    Raises
    ------
    ValueError
        If `width` is outside its range.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> float((KDE().fit(x)(x) + x).square().mean()) < 0.3  # the score is -x
    True
    """

    width: float | None = None

    def __post_init__(self) -> None:
        check_positive(self.width, "width", optional=True)

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> DensityScore:
        """Fit the score to samples [*batch, n, d].

        Raises
        ------
        TypeError
            If `samples` is not a tensor of float32 or float64.
        ValueError
            If there are fewer than two samples, an entry is not finite, or all samples are equal.
        """
        check_samples(samples)
        check_spread(samples)
        samples = samples.detach().clone()
        n, dim = samples.shape[-2:]
        if self.width is None:
            scale = unit(samples)  # the variance itself may be out of range
            width = (samples / scale).var(-2).mean(-1).sqrt() * scale[..., 0, 0] * n ** (-1 / (dim + 4))
        else:
            width = samples.new_full(samples.shape[:-2], self.width)
        return DensityScore(samples, width)


@dataclass(frozen=True)
class DensityScore:
    """The function that `KDE.fit` returns.

    Attributes
    ----------
    samples : Tensor [*batch, n, d]
        The kernel's centres.
    width : Tensor [*batch]
        Bandwidth h.
    """

    samples: Float[Tensor, "*batch n d"]
    width: Float[Tensor, "*batch"]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        weights = torch.softmax(self._exponents(points), dim=-1)
        offset = centre(self.samples)  # of the samples and the points alike, so that digits are kept
        width = self.width[..., None, None]
        return (weights @ (self.samples - offset) - (points - offset)) / width / width

    def divergence(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Divergence of the score at points [*batch, m, d], in closed form."""
        weights = torch.softmax(self._exponents(points), dim=-1)
        width = self.width[..., None]
        centred = (self.samples - centre(self.samples)) / width[..., None]  # a variance: keep its digits
        variance = (weights @ centred.square().sum(-1, keepdim=True))[..., 0] - (weights @ centred).square().sum(-1)
        return (variance - points.shape[-1]) / width / width

    def log_density(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Log density at points [*batch, m, d], in nats: the mean of the samples' kernels."""
        n, dim = self.samples.shape[-2:]
        constant = math.log(n) + dim * (self.width[..., None].log() + math.log(2 * math.pi) / 2)
        return torch.logsumexp(self._exponents(points), dim=-1) - constant

    def _exponents(self, points: Tensor) -> Float[Tensor, "*batch m n"]:
        check_points(points, self.samples)
        width = self.width[..., None, None]
        scale = power_of_two(width)
        squares = squared_distances(points / scale, self.samples / scale)
        return -squares / (2 * (width / scale).square())
