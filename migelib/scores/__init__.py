"""Score estimators: settings objects with one method, `fit(samples) -> score`."""

from __future__ import annotations

from .adaptive import Adaptive, AdaptiveScore
from .base import PairScoreEstimator, ScoreEstimator, ScoreFunction
from .combinators import Residual, Selected, Transformed, score_divergence, score_matching_loss
from .gaussian import AffineScore, GaussianScore
from .guards import NoDensityWarning
from .kde import KDE, DensityScore
from .kernel import KernelScore, Landweber, NuMethod, Stein, SteinScore, Tikhonov
from .mixtures import EllipticalMixture
from .neural import DenoisingNetwork, DenoisingScore, DenoisingState, NeuralScore
from .ratio import GaussianRatioScore, RatioScore, RatioState
from .ssge import SSGE, SpectralScore
from .streaming import Streaming, StreamingScore

ESTIMATORS: dict[str, type[ScoreEstimator]] = {
    "adaptive": Adaptive,
    "denoising": DenoisingScore,
    "gaussian": GaussianScore,
    "kde": KDE,
    "landweber": Landweber,
    "numethod": NuMethod,
    "ratio": RatioScore,
    "ssge": SSGE,
    "stein": Stein,
    "tikhonov": Tikhonov,
}


def as_estimator(estimator: ScoreEstimator | str | None) -> ScoreEstimator:
    """Turn a user's choice of estimator into an estimator.

    Parameters
    ----------
    estimator : ScoreEstimator, str or None
        An estimator; the name of one of `ESTIMATORS`, which then has its default settings; or None for the default,
        `Adaptive()`. The paper's is `SSGE()`.

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If it is neither a name nor has a method `fit`.
    """
    if estimator is None:
        return Adaptive()
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator: unknown name {estimator!r}, expected one of {', '.join(sorted(ESTIMATORS))}")
        return ESTIMATORS[estimator]()
    if isinstance(estimator, type) or not isinstance(estimator, ScoreEstimator):
        raise TypeError(f"estimator: expected an estimator such as SSGE(), a name or None, got {estimator!r}")
    return estimator


__all__ = [
    "ESTIMATORS",
    "KDE",
    "SSGE",
    "Adaptive",
    "AdaptiveScore",
    "AffineScore",
    "DenoisingNetwork",
    "DenoisingScore",
    "DenoisingState",
    "DensityScore",
    "EllipticalMixture",
    "GaussianRatioScore",
    "GaussianScore",
    "KernelScore",
    "Landweber",
    "NeuralScore",
    "NoDensityWarning",
    "NuMethod",
    "PairScoreEstimator",
    "RatioScore",
    "RatioState",
    "Residual",
    "ScoreEstimator",
    "ScoreFunction",
    "Selected",
    "SpectralScore",
    "Stein",
    "SteinScore",
    "Streaming",
    "StreamingScore",
    "Tikhonov",
    "Transformed",
    "as_estimator",
    "score_divergence",
    "score_matching_loss",
]
