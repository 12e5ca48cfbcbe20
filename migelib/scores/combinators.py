"""Estimators made of estimators: `Residual`, `Transformed`, `Selected`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import unit
from ..transforms import FittedMap, Transform
from ..validation import check_count, check_points, check_samples, check_spread, fused_checks
from .base import ScoreEstimator, ScoreFunction, density_of, has_density, outside_inference_mode


def score_divergence(score: ScoreFunction, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
    """Divergence of a score: its own closed form, or else automatic differentiation, one pass a coordinate."""
    if hasattr(score, "divergence"):
        return score.divergence(points)
    with outside_inference_mode(), torch.enable_grad():
        points = points.detach().clone().requires_grad_()
        values = score(points)
        total = torch.zeros_like(values[..., 0])
        for i in range(points.shape[-1]):
            total = total + torch.autograd.grad(values[..., i].sum(), points, retain_graph=True)[0][..., i]
    return total.detach()


def score_matching_loss(score: ScoreFunction, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch"]:
    r"""Implicit score-matching loss, the mean of :math:`\|\hat s\|^2 / 2 + \mathrm{div}\, \hat s` over the points.

    On points that the score was not fitted to it estimates :math:`\tfrac12 E \|\hat s - s\|^2` up to a constant that
    does not depend on the estimate [Hyvarinen, JMLR 6, 2005, theorem 1].
    """
    return (score(points).square().sum(-1) / 2 + score_divergence(score, points)).mean(-1)


@dataclass(frozen=True)
class Residual:
    r"""A base score plus a kernel estimate of what it leaves, :math:`\hat s = s_b + \hat r`.

    The residual obeys :math:`E[r\, \phi] = -E[\nabla\phi + s_b\, \phi]`; the kernel method solves it as it solves
    Stein's identity, so its regularisation shrinks towards the base instead of towards zero.
    Derived in :doc:`/book/easy-scores`.

    Parameters
    ----------
    base : ScoreEstimator
        For instance `GaussianScore()`.
    estimator : ScoreEstimator
        A kernel estimator: `SSGE`, `Stein`, `Tikhonov`, `Landweber` or `NuMethod`.

    Raises
    ------
    TypeError
        If `estimator` has no method `fit_residual`.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) ** 3
    >>> Residual(GaussianScore(), SSGE(shrinkage=True)).fit(x)(x).shape
    torch.Size([200, 2])
    """

    base: ScoreEstimator
    estimator: ScoreEstimator

    def __post_init__(self) -> None:
        _check_estimator(self.base, "base")
        if isinstance(self.estimator, type) or not hasattr(self.estimator, "fit_residual"):
            raise TypeError(f"estimator: expected a kernel estimator such as SSGE(), got {self.estimator!r}")

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> SumScore:
        """Fit both parts to samples [*batch, n, d]; raises what they raise."""
        check_samples(samples)
        samples = samples.detach()
        base = self.base.fit(samples)
        return SumScore(base, self.estimator.fit_residual(samples, base(samples)))


@dataclass(frozen=True)
class SumScore:
    """The function that `Residual.fit` returns: the sum of two.

    Attributes
    ----------
    base, residual : ScoreFunction
        The parts.
    """

    base: ScoreFunction
    residual: ScoreFunction

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        return self.base(points) + self.residual(points)

    def divergence(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Divergence of the score at points [*batch, m, d]."""
        return score_divergence(self.base, points) + score_divergence(self.residual, points)


@dataclass(frozen=True)
class Transformed:
    r"""Estimate the score of u = T(x), and map it back: :math:`s_x = J^\top s_u(T(x)) + \nabla \ln |\det J|`.

    Derived in :doc:`/book/easy-scores`.

    Parameters
    ----------
    transform : Transform
        For instance `transforms.Whitening()`.
    estimator : ScoreEstimator
        What estimates the score of u.

    Raises
    ------
    TypeError
        If one of them has no method `fit`.

    Examples
    --------
    A kernel estimator that does not depend on the units of the coordinates:

    >>> import torch
    >>> from migelib.transforms import Whitening
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> units = torch.tensor([1.0, 100.0])
    >>> estimator = Transformed(Whitening(), SSGE())
    >>> scaled = estimator.fit(units * x)(units * x) * units
    >>> torch.allclose(scaled, estimator.fit(x)(x), atol=1e-2)
    True
    """

    transform: Transform
    estimator: ScoreEstimator

    def __post_init__(self) -> None:
        _check_estimator(self.transform, "transform")
        _check_estimator(self.estimator, "estimator")

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> TransformedScore:
        """Fit the map, then the score, to samples [*batch, n, d]; raises what they raise."""
        check_samples(samples)
        scale = unit(samples).expand_as(samples[..., :1, :])
        samples = samples.detach() / scale
        fitted = self.transform.fit(samples)
        return TransformedScore(fitted, self.estimator.fit(fitted(samples)), scale)


@dataclass(frozen=True)
class TransformedScore:
    """The function that `Transformed.fit` returns; its divergence is found by automatic differentiation.

    Attributes
    ----------
    transform : FittedMap
        T, of points in the unit.
    score : ScoreFunction
        The score of u.
    unit : Tensor [*batch, 1, d]
        A power of two of the samples' extent, so that their squares stay in range.
    """

    transform: FittedMap
    score: ScoreFunction
    unit: Float[Tensor, "*batch 1 d"]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.unit)
        points = points / self.unit
        mapped = self.score(self.transform(points))
        return (self.transform.pull_back(points, mapped) + self.transform.log_det_gradient(points)) / self.unit

    @property
    def has_density(self) -> bool:
        """Whether the score of u is that of a density."""
        return has_density(self.score)

    def log_density(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        r"""Log density at points [*batch, m, d], in nats: :math:`\ln q_u(T(x)) + \ln |\det J|`.

        Raises
        ------
        TypeError
            If the score of u is that of no density.
        """
        check_points(points, self.unit)
        points = points / self.unit
        log_det = self.transform.log_det(points) - self.unit.log().sum(-1)
        return density_of(self.score, self.transform(points)) + log_det


@dataclass(frozen=True)
class Selected:
    r"""The candidate of least held-out score-matching loss, chosen by cross-validation for every batch entry.

    Samples i, i + folds, i + 2 folds, ... form a fold, so the samples' order must carry no information. The chosen
    candidate is then fitted to all samples.
    Derived in :doc:`/book/easy-scores`.

    Parameters
    ----------
    candidates : sequence of ScoreEstimator
        At least one. Their divergence should be closed-form, as it is for the affine and the kernel estimators.
    folds : int
        Number of folds, at least 2.

    Raises
    ------
    TypeError
        If a candidate has no method `fit`.
    ValueError
        If there is no candidate or `folds` < 2.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> int(Selected([SSGE(), GaussianScore()]).fit(x).choice)
    1
    """

    candidates: Sequence[ScoreEstimator]
    folds: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if not self.candidates:
            raise ValueError("candidates: expected at least one")
        for candidate in self.candidates:
            _check_estimator(candidate, "candidates")
        check_count(self.folds, "folds", 2)

    def losses(self, samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "k *batch"]:
        """Held-out loss of every candidate, one row each.

        Raises
        ------
        ValueError
            If there are fewer than 2 x `folds` samples, and what the candidates raise.
        """
        check_samples(samples)
        check_spread(samples)
        n = samples.shape[-2]
        if n < 2 * self.folds:
            raise ValueError(
                f"samples: expected at least 2 x folds = {2 * self.folds}, got shape {tuple(samples.shape)}"
            )
        with outside_inference_mode(), torch.no_grad():  # a candidate's divergence may be found by differentiation
            return self._losses(samples.detach().clone())

    def _losses(self, samples: Tensor) -> Tensor:
        n = samples.shape[-2]
        fold = torch.arange(n, device=samples.device) % self.folds
        losses = samples.new_zeros(len(self.candidates), *samples.shape[:-2])
        for held_out in range(self.folds):
            kept, tested = samples[..., fold != held_out, :], samples[..., fold == held_out, :]
            share = tested.shape[-2] / n
            for i, candidate in enumerate(self.candidates):
                losses[i] += share * score_matching_loss(candidate.fit(kept), tested)
        return losses

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> SelectedScore:
        """Choose, then fit the choice to samples [*batch, n, d]; raises as `losses` does."""
        check_samples(samples)
        losses = self.losses(samples / unit(samples))  # their order does not depend on the unit
        choice = torch.where(torch.isfinite(losses), losses, torch.inf).argmin(0)
        used = [i for i in range(len(self.candidates)) if bool((choice == i).any())]
        return SelectedScore({i: self.candidates[i].fit(samples.detach()) for i in used}, choice)


@dataclass(frozen=True)
class SelectedScore:
    """The function that `Selected.fit` returns.

    Attributes
    ----------
    scores : dict of int to ScoreFunction
        The candidates that some batch entry chose, by their position.
    choice : Tensor [*batch]
        The position that every batch entry chose.
    """

    scores: dict[int, ScoreFunction]
    choice: Int[Tensor, "*batch"]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        return self._pick({i: score(points) for i, score in self.scores.items()}, 2)

    def divergence(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Divergence of the score at points [*batch, m, d]."""
        return self._pick({i: score_divergence(score, points) for i, score in self.scores.items()}, 1)

    @property
    def has_density(self) -> bool:
        """Whether all chosen candidates have one."""
        return all(map(has_density, self.scores.values()))

    def log_density(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Log density at points [*batch, m, d], in nats; raises TypeError where a chosen candidate has none."""
        return self._pick({i: density_of(score, points) for i, score in self.scores.items()}, 1)

    def _pick(self, values: dict[int, Tensor], axes: int) -> Tensor:
        choice = self.choice[(...,) + (None,) * axes]
        picked = next(iter(values.values()))
        for i, value in values.items():
            picked = torch.where(choice == i, value, picked)
        return picked


def _check_estimator(value: object, name: str) -> None:
    if isinstance(value, type) or not hasattr(value, "fit"):
        raise TypeError(f"{name}: expected an object with a method fit, got {value!r}")
