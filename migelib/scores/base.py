"""What every score estimator is: an object of settings with one method, `fit`."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

Score = TypeVar("Score")


class ScoreFunction(Protocol):
    r"""An estimated score: maps points [*batch, m, d] to estimates of :math:`\nabla \log q` there."""

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Return the estimates, of the shape of the points."""
        ...


@runtime_checkable
class ScoreEstimator(Protocol):
    """Settings of an estimator. `fit` returns a new function and leaves the settings as they are."""

    def fit(self, samples: Float[Tensor, "*batch n d"]) -> ScoreFunction:
        """Fit the score to samples [*batch, n, d]."""
        ...


@runtime_checkable
class PairScoreEstimator(Protocol):
    """An estimator that treats two variables jointly; surrogates of informations use this where it exists."""

    def fit_pair(
        self, x: Float[Tensor, "*batch n p"], z: Float[Tensor, "*batch n q"]
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        """Return joint minus marginal score at the paired samples, the parts for x and for z.

        Where it takes a third argument `wanted`, a pair of bool, that says which of the two parts will be used.
        """
        ...


def difference_at_pair(
    estimator: PairScoreEstimator,
    x: Float[Tensor, "*batch n p"],
    z: Float[Tensor, "*batch n q"],
    wanted: tuple[bool, bool],
) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
    """What `fit_pair` returns, told which parts are wanted where it can be: the other variable needs no density."""
    fit_pair = estimator.fit_pair
    if "wanted" in inspect.signature(fit_pair).parameters:
        fit_pair = partial(fit_pair, wanted=wanted)
    return fit_pair(x, z)


@runtime_checkable
class DividedEstimator(Protocol):
    """An estimator with a memory, which keeps one state for each of the scores that a surrogate needs."""

    def part(self, role: str) -> ScoreEstimator:
        """Return the estimator that remembers the score of that role, such as "z" or "x,z"; a new one at first."""
        ...


def part_of(estimator: ScoreEstimator, role: str) -> ScoreEstimator:
    """The part of an estimator with a memory that has this role; any other estimator itself."""
    return estimator.part(role) if isinstance(estimator, DividedEstimator) else estimator


def has_density(score: object) -> bool:
    """Whether a score has a method `log_density`, differentiable in the points; one made of others says so itself."""
    return hasattr(score, "log_density") and getattr(score, "has_density", True)


def check_density(score: object) -> None:
    """Raise TypeError unless a score is that of a density."""
    if not has_density(score):
        raise TypeError(
            f"estimator: expected one with a density, such as Adaptive(), Streaming(), GaussianScore() or KDE(), but "
            f"what it fits, {type(score).__name__}, is a score only; its gradients are there, its values are not"
        )


def density_of(score: object, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
    """Log density that belongs to a score, in nats; raises TypeError where there is none."""
    check_density(score)
    return score.log_density(points)


def outside_inference_mode() -> AbstractContextManager:
    """Leave inference mode, where nothing can be trained or differentiated; its tensors are to be cloned first."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def with_values(score: Score, values: Float[Tensor, "*batch n d"], samples: Float[Tensor, "*batch n d"]) -> Score:
    """Give a score its values at the very tensor it was fitted to; a copy by `dataclasses.replace` has none."""
    object.__setattr__(score, "values", values)
    if not (samples.requires_grad or samples.is_inference()):  # neither a graph is kept, nor what has no version
        object.__setattr__(score, "own", (samples, samples._version))
    return score


def at_samples(score: Score, points: Float[Tensor, "*batch m d"]) -> bool:
    """Whether the points are the tensor that the score was fitted to, unchanged: no value is looked at for that."""
    samples, version = getattr(score, "own", (None, 0))
    if points is not samples or points._version != version:
        return False
    return not points.requires_grad and forward_ad.unpack_dual(points).tangent is None
