r"""Invertible maps, fitted to samples: whitening, a smooth Gaussianisation of every coordinate, and compositions.

A transform is a settings object; `fit(samples)` returns a map u = T(x). A score is mapped back by the chain rule,
:math:`s_x(x) = J(x)^\top s_u(T(x)) + \nabla \ln |\det J(x)|`. Derived in :doc:`/book/04_score_estimation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .validation import check_points, check_positive_required, check_samples, check_spread


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
        check_positive_required(self.floor, "floor")

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

    def log_det_gradient(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Zero: the determinant is constant."""
        check_points(points, self.mean)
        return torch.zeros_like(points)


@dataclass(frozen=True)
class Gaussianise:
    r"""Map every coordinate to a standard Gaussian through its smoothed CDF, :math:`u = \Phi^{-1}(\hat F(x))`.

    :math:`\hat F(x) = \frac1m \sum_j \Phi((x - c_j) / h)` with Gaussian smoothing. The centres are the samples, or,
    beyond `centres` of them, averages of as many blocks of sorted samples. They are drawn towards the mean so that
    :math:`\hat F` keeps the samples' variance; at a bandwidth of one standard deviation the map is exactly affine.
    Beyond the centres it continues linearly.

    Parameters
    ----------
    bandwidth : float
        :math:`h` in units of the coordinate's spread (the smaller of its standard deviation and its interquartile
        range / 1.349), in (0, 1].
    centres : int
        Most centres a coordinate, at least 2.

    Raises
    ------
    ValueError
        If a setting is outside its range.
    """

    bandwidth: float = 0.2
    centres: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth <= 1:
            raise ValueError(f"bandwidth: expected a number in (0, 1], got {self.bandwidth!r}")
        if not isinstance(self.centres, int) or self.centres < 2:
            raise ValueError(f"centres: expected an integer of at least 2, got {self.centres!r}")

    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> ElementwiseMap:
        """Fit to samples [*batch, n, d]; raises TypeError or ValueError if they are no spread of finite samples."""
        check_samples(samples)
        check_spread(samples)
        ordered = samples.detach().sort(-2).values
        n = ordered.shape[-2]
        mean = ordered.mean(-2, keepdim=True)
        deviation = (ordered - mean).square().mean(-2, keepdim=True).sqrt()
        quartiles = ordered[..., [n // 4, (3 * n) // 4], :]
        spread = (quartiles[..., 1:, :] - quartiles[..., :1, :]) / 1.349
        spread = torch.where((spread > 0) & (spread < deviation), spread, deviation)
        # A constant coordinate has no scale of its own; any positive one maps it to zero.
        spread = torch.where(deviation > 0, spread, 1)
        width = self.bandwidth * spread
        if n > self.centres:
            blocks = torch.arange(n, device=ordered.device) * self.centres // n
            sums = torch.zeros(*ordered.shape[:-2], self.centres, ordered.shape[-1]).to(ordered)
            centres = sums.index_add(-2, blocks, ordered) / blocks.bincount()[:, None]
        else:
            centres = ordered
        weights = (torch.arange(n, device=ordered.device) * centres.shape[-2] // n).bincount().to(ordered) / n
        centred = centres - mean
        variance = (weights[:, None] * centred.square()).sum(-2, keepdim=True)
        shrink = ((deviation.square() - width.square()).clamp_min(0) / variance.clamp_min(1e-30)).sqrt()
        return ElementwiseMap((mean + shrink * centred).mT.contiguous(), weights, width.mT.contiguous())


_LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class ElementwiseMap:
    """The function that `Gaussianise.fit` returns.

    Attributes
    ----------
    centres : Tensor [*batch, d, c]
        Ascending centres of every coordinate.
    weights : Tensor [c]
        Their shares.
    width : Tensor [*batch, d, 1]
        Bandwidths.
    """

    centres: Float[Tensor, "*batch d c"]
    weights: Float[Tensor, "c"]
    width: Float[Tensor, "*batch d 1"]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Map the points."""
        return self.evaluate(points, 0)[0]

    def pull_back(
        self, points: Float[Tensor, "*batch m d"], vectors: Float[Tensor, "*batch m d"]
    ) -> Float[Tensor, "*batch m d"]:
        """Slopes times the vectors: the Jacobian is diagonal."""
        return vectors * self.evaluate(points, 1)[1]

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
        # One coordinate at a time keeps the work at m x c: the tensor m x c x d is never built.
        columns = [
            self._column(points[..., i], self.centres[..., i, :], self.width[..., i, :], order)
            for i in range(points.shape[-1])
        ]
        return [torch.stack(parts, -1) for parts in zip(*columns, strict=True)]

    def _column(self, x: Tensor, centres: Tensor, width: Tensor, order: int) -> list[Tensor]:
        inner = torch.minimum(torch.maximum(x, centres[..., :1] - 3 * width), centres[..., -1:] + 3 * width)
        t = (inner[..., :, None] - centres[..., None, :]) / width[..., None]
        lower, upper = torch.special.ndtr(t) @ self.weights, torch.special.ndtr(-t) @ self.weights
        u = torch.where(lower < upper, torch.special.ndtri(lower), -torch.special.ndtri(upper))
        bumps = torch.exp(-t.square() / 2)
        inverse_density = torch.exp(u.square() / 2) / width
        slope = (bumps @ self.weights) * inverse_density
        parts = [u + slope * (x - inner), slope]
        if order > 1:
            curvature = -((bumps * t) @ self.weights) * inverse_density / width + u * slope.square()
            parts.append(torch.where(x == inner, curvature, 0))
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
