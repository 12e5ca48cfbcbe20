r"""Invertible maps, fitted to samples: whitening, a smooth Gaussianisation of every coordinate, and compositions.

A transform is a settings object; `fit(samples)` returns a map u = T(x). A score is mapped back by the chain rule,
:math:`s_x(x) = J(x)^\top s_u(T(x)) + \nabla \ln |\det J(x)|`. Derived in :doc:`/book/easy-scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .validation import check_count, check_points, check_positive, check_samples, check_spread, fused_checks


class FittedMap(Protocol):
    """An invertible differentiable map of points [*batch, m, d]."""

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Map the points."""
        ...

    def pull_back(
        self, points: Float[Tensor, "*batch m d"], vectors: Float[Tensor, "*batch m d"]
    ) -> Float[Tensor, "*batch m d"]:
        r"""Transposed Jacobian at the points times the vectors, :math:`J(x_i)^\top v_i`."""
        ...

    def log_det(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        r""":math:`\ln |\det J|` at the points."""
        ...

    def log_det_gradient(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        r"""Gradient of :math:`\ln |\det J|` at the points."""
        ...


@runtime_checkable
class Transform(Protocol):
    """Settings of a map. `fit` returns a new map and leaves the settings as they are."""

    def fit(self, samples: Float[Tensor, "*batch n d"]) -> FittedMap:
        """Fit the map to samples [*batch, n, d]."""
        ...


@dataclass(frozen=True)
class Whitening:
    r"""Affine map to mean zero and identity covariance, :math:`u = \Sigma^{-1/2} (x - \mu)`.

    The covariance is divided by n. Directions whose variance is below `floor` times the largest are stretched as if
    they had that variance, so that n <= d and constant coordinates work.

    Parameters
    ----------
    floor : float
        Smallest variance relative to the largest, positive.

    Raises
    ------
    ValueError
        If `floor` is not positive.
    """

    floor: float = 1e-6

    def __post_init__(self) -> None:
        check_positive(self.floor, "floor")

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> AffineMap:
        """Fit to samples [*batch, n, d]; raises TypeError or ValueError if they are no spread of finite samples."""
        check_samples(samples)
        check_spread(samples)
        samples = samples.detach()
        mean = samples.mean(-2, keepdim=True)
        centred = samples - mean
        values, vectors = torch.linalg.eigh(centred.mT @ centred / samples.shape[-2])
        values = torch.maximum(values, self.floor * values[..., -1:])
        # The symmetric root: among all whitening maps the one that moves the samples least.
        return AffineMap(mean, (vectors * values.rsqrt()[..., None, :]) @ vectors.mT)


@dataclass(frozen=True)
class AffineMap:
    """The map u = (x - mean) @ matrix.

    Attributes
    ----------
    mean : Tensor [*batch, 1, d]
        What is subtracted.
    matrix : Tensor [*batch, d, d]
        Invertible.
    """

    mean: Float[Tensor, "*batch 1 d"]
    matrix: Float[Tensor, "*batch d d"]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Map the points."""
        check_points(points, self.mean)
        return (points - self.mean) @ self.matrix

    def pull_back(
        self, points: Float[Tensor, "*batch m d"], vectors: Float[Tensor, "*batch m d"]
    ) -> Float[Tensor, "*batch m d"]:
        """Transposed Jacobian times the vectors."""
        check_points(points, self.mean)
        return vectors @ self.matrix.mT

    def log_det(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Logarithm of the matrix's determinant, the same everywhere."""
        check_points(points, self.mean)
        return torch.linalg.slogdet(self.matrix).logabsdet[..., None].expand(points.shape[:-1])

    def log_det_gradient(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Zero: the determinant is constant."""
        check_points(points, self.mean)
        return torch.zeros_like(points)


@dataclass(frozen=True)
class Gaussianise:
    r"""Map every coordinate to a standard Gaussian through its smoothed CDF, :math:`u = \Phi^{-1}(\hat F(x))`.

    :math:`\hat F(x) = \sum_j w_j\, \Phi((x - c_j) / h_j)`, with the centres :math:`c_j` at the samples, or, beyond
    `centres` of them, at averages of neighbours; the outermost samples are always kept as they are. The
    width follows the data, :math:`h_j = b\, \Delta x_j / \Delta g_j`: the slope of the sorted samples against their
    normal scores :math:`g = \Phi^{-1}(\text{rank} / n)`, over the nearest quarter of the samples. In the Gaussian's own
    coordinate the smoothing is therefore the same everywhere, in the bulk as in heavy tails. The centres are drawn
    towards the mean so that :math:`\hat F` keeps the samples' variance; for Gaussian samples the map is then affine
    up to noise. Beyond the centres it continues linearly.

    Parameters
    ----------
    bandwidth : float, optional
        :math:`b`, in units of the standard Gaussian, in (0, 1]; by default :math:`n^{-1/5}`.
    centres : int
        Most centres a coordinate, at least 4.

    Raises
    ------
    ValueError
        If a setting is outside its range.
    """

    bandwidth: float | None = None
    centres: int = 64

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not (isinstance(self.bandwidth, Real) and 0 < self.bandwidth <= 1):
            raise ValueError(f"bandwidth: expected a number in (0, 1] or None, got {self.bandwidth!r}")
        check_count(self.centres, "centres", 4)

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> ElementwiseMap:
        """Fit to samples [*batch, n, d]; raises TypeError or ValueError if they are no spread of finite samples."""
        check_samples(samples)
        check_spread(samples)
        ordered = samples.detach().sort(-2).values
        n = ordered.shape[-2]
        bandwidth = n**-0.2 if self.bandwidth is None else self.bandwidth
        mean = ordered.mean(-2, keepdim=True)
        deviation = (ordered - mean).square().mean(-2, keepdim=True).sqrt()
        constant = ordered[..., :1, :] == ordered[..., -1:, :]  # maps to zero, with slope one
        deviation = torch.where(constant, torch.ones_like(deviation), deviation)
        reach = max(1, n // 8)
        ranks = torch.arange(n, device=ordered.device)
        below, above = (ranks - reach).clamp_min(0), (ranks + reach).clamp_max(n - 1)
        normal = torch.special.ndtri((ranks.to(ordered) + 0.5) / n)
        local = (ordered[..., above, :] - ordered[..., below, :]) / (normal[above] - normal[below])[:, None]
        width = bandwidth * torch.maximum(local, 0.01 * deviation)  # ties leave no local scale
        width = torch.where(constant, deviation, width)
        block = _blocks(n, self.centres).to(ordered.device)
        count = block.bincount()
        average = torch.zeros(len(count), n).to(ordered)
        average[block, ranks] = (1 / count).to(ordered)[block]
        centres, width = average @ ordered, average @ width
        weights = count.to(ordered) / n
        room = deviation.square() - (weights[:, None] * width.square()).sum(-2, keepdim=True)
        variance = (weights[:, None] * (centres - mean).square()).sum(-2, keepdim=True)
        shrink = (room.clamp_min(0) / variance.clamp_min(torch.finfo(ordered.dtype).tiny)).sqrt().clamp_max(1)
        return ElementwiseMap((mean + shrink * (centres - mean)).mT.contiguous(), weights, width.mT.contiguous())


def _blocks(n: int, most: int) -> Tensor:
    """Block of every rank: single samples in both tails, equal shares between, at most `most` blocks."""
    if n <= most:
        return torch.arange(n)
    tail = most // 4
    inner = torch.arange(n - 2 * tail) * (most - 2 * tail) // (n - 2 * tail)
    return torch.cat([torch.arange(tail), tail + inner, most - tail + torch.arange(tail)])


@dataclass(frozen=True)
class ElementwiseMap:
    """The function that `Gaussianise.fit` returns.

    Attributes
    ----------
    centres : Tensor [*batch, d, c]
        Ascending centres of every coordinate.
    weights : Tensor [c]
        Their shares.
    width : Tensor [*batch, d, c]
        Their widths.
    """

    centres: Float[Tensor, "*batch d c"]
    weights: Float[Tensor, "c"]
    width: Float[Tensor, "*batch d c"]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Map the points."""
        return self.evaluate(points, 0)[0]

    def pull_back(
        self, points: Float[Tensor, "*batch m d"], vectors: Float[Tensor, "*batch m d"]
    ) -> Float[Tensor, "*batch m d"]:
        """Slopes times the vectors: the Jacobian is diagonal."""
        return vectors * self.evaluate(points, 1)[1]

    def log_det(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Sum of the logarithms of the slopes."""
        return self.evaluate(points, 1)[1].log().sum(-1)

    def log_det_gradient(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Curvature over slope."""
        _, slope, curvature = self.evaluate(points, 2)
        return curvature / slope

    def evaluate(self, points: Float[Tensor, "*batch m d"], order: int = 2) -> list[Float[Tensor, "*batch m d"]]:
        r"""The map and its first `order` derivatives in each coordinate (at most two).

        With density :math:`f` and :math:`u = T(x)`: :math:`T' = f / \varphi(u)` and
        :math:`T'' = f' / \varphi(u) + u\, T'^2`.
        """
        check_points(points, self.centres.mT)
        # A few coordinates at a time keep the work small: the tensor d x m x c is never built.
        chunk = max(1, 2**17 // max(1, points[..., 0].numel() * self.centres.shape[-1]))
        columns = points.mT.split(chunk, -2)
        centres, width = self.centres.split(chunk, -2), self.width.split(chunk, -2)
        parts = [self._rows(*rows, order) for rows in zip(columns, centres, width, strict=True)]
        return [torch.cat(part, -2).mT for part in zip(*parts, strict=True)]

    def optimism(
        self, samples: Float[Tensor, "*batch n d"], u: Float[Tensor, "*batch n d"], slope: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch d"]:
        r"""How far each coordinate's mean log density at the fit's own samples exceeds that of leaving each one out.

        A sample's own share of the density, :math:`\frac1n K((x_i - c_j) / h_j) / h_j` with its centre j, is removed.
        """
        n = samples.shape[-2]
        rank = samples.mT.argsort(-1).argsort(-1)
        own = _blocks(n, self.centres.shape[-1]).to(samples.device)[rank]
        width = self.width.gather(-1, own)
        bump = torch.exp(-((samples.mT - self.centres.gather(-1, own)) / width).square() / 2) / width
        density = slope.mT * torch.exp(-u.mT.square() / 2)
        left = ((n * density - bump) / ((n - 1) * density)).clamp_min(1e-3)
        return -torch.log(left).mean(-1)

    def _rows(self, x: Tensor, centres: Tensor, width: Tensor, order: int) -> list[Tensor]:
        low, high = centres[..., :1] - 3 * width[..., :1], centres[..., -1:] + 3 * width[..., -1:]
        inner = torch.minimum(torch.maximum(x, low), high)
        t = (inner[..., :, None] - centres[..., None, :]) / width[..., None, :]
        lower = torch.special.ndtr(t) @ self.weights
        # The upper tail keeps its digits; in float64 enough are left of 1 - lower, at least 1 / n times a 3 sigma tail.
        upper = 1 - lower if t.dtype == torch.float64 else torch.special.ndtr(-t) @ self.weights
        u = torch.where(lower < upper, torch.special.ndtri(lower), -torch.special.ndtri(upper))
        bumps = torch.exp(-t.square() / 2) * (self.weights / width)[..., None, :]
        inverse_density = torch.exp(u.square() / 2)
        slope = bumps.sum(-1) * inverse_density
        parts = [u + slope * (x - inner), slope]
        if order > 1:
            curvature = -(bumps * t / width[..., None, :]).sum(-1) * inverse_density + u * slope.square()
            parts.append(torch.where(x == inner, curvature, torch.zeros_like(curvature)))
        return parts[: order + 1]


@dataclass(frozen=True)
class Composition:
    """Apply several transforms in turn, each fitted to what the ones before it return.

    Parameters
    ----------
    transforms : sequence of Transform
        In the order of application; at least one.

    Raises
    ------
    ValueError
        If there is none.
    """

    transforms: Sequence[Transform]

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        if not self.transforms:
            raise ValueError("transforms: expected at least one")

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> ComposedMap:
        """Fit every transform to samples [*batch, n, d]; raises what they raise."""
        maps = []
        for transform in self.transforms:
            maps.append(transform.fit(samples))
            samples = maps[-1](samples)
        return ComposedMap(tuple(maps))


@dataclass(frozen=True)
class ComposedMap:
    """The function that `Composition.fit` returns.

    Attributes
    ----------
    maps : tuple of FittedMap
        In the order of application.
    """

    maps: tuple[FittedMap, ...]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Map the points."""
        for fitted in self.maps:
            points = fitted(points)
        return points

    def pull_back(
        self, points: Float[Tensor, "*batch m d"], vectors: Float[Tensor, "*batch m d"]
    ) -> Float[Tensor, "*batch m d"]:
        """Transposed Jacobian times the vectors: the factors' in reverse order."""
        for fitted, at in reversed(self._stages(points)):
            vectors = fitted.pull_back(at, vectors)
        return vectors

    def log_det(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Sum of the factors' log-determinants."""
        return sum(fitted.log_det(at) for fitted, at in self._stages(points))

    def log_det_gradient(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Gradient of the sum of the factors' log-determinants."""
        gradient = torch.zeros_like(points)
        for fitted, at in reversed(self._stages(points)):
            gradient = fitted.pull_back(at, gradient) + fitted.log_det_gradient(at)
        return gradient

    def _stages(self, points: Tensor) -> list[tuple[FittedMap, Tensor]]:
        stages = []
        for fitted in self.maps:
            stages.append((fitted, points))
            points = fitted(points)
        return stages
