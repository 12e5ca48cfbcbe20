"""What every score estimator is: an object of settings with one method, `fit`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from ..validation import decide

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
        """Return joint minus marginal score at the paired samples, the parts for x and for z."""
        ...


def outside_inference_mode() -> AbstractContextManager:
    """Leave inference mode, where nothing can be trained or differentiated; its tensors are to be cloned first."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def with_values(score: Score, values: Float[Tensor, "*batch n d"]) -> Score:
    """Give a score that was just fitted its values at its samples; a copy by `dataclasses.replace` has none."""
    object.__setattr__(score, "values", values)
    return score


def at_samples(score: Score, points: Float[Tensor, "*batch m d"]) -> bool:
    """Whether the points are the score's samples, whose values it knows, and no derivative in them is asked for."""
    if score.values is None or points.shape != score.samples.shape:
        return False
    if (points.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(points).tangent is not None:
        return False
    return decide((points == score.samples).all())
