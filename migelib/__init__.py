"""Gradients of entropy, mutual information and kindred measures from samples, by score estimation."""

from .information import entropy, mutual_information
from .scores import (
    KDE,
    SSGE,
    Adaptive,
    DenoisingScore,
    GaussianScore,
    Landweber,
    NoDensityWarning,
    NuMethod,
    RatioScore,
    Residual,
    Selected,
    Stein,
    Streaming,
    Tikhonov,
    Transformed,
)
from .surrogates import (
    NoGradientWarning,
    conditional_entropy_surrogate,
    conditional_mutual_information_surrogate,
    entropy_surrogate,
    kl_surrogate,
    mutual_information_surrogate,
    total_correlation_surrogate,
)

__version__ = "0.2.0"

__all__ = [
    "KDE",
    "SSGE",
    "Adaptive",
    "DenoisingScore",
    "GaussianScore",
    "Landweber",
    "NoDensityWarning",
    "NoGradientWarning",
    "NuMethod",
    "RatioScore",
    "Residual",
    "Selected",
    "Stein",
    "Streaming",
    "Tikhonov",
    "Transformed",
    "conditional_entropy_surrogate",
    "conditional_mutual_information_surrogate",
    "entropy",
    "entropy_surrogate",
    "kl_surrogate",
    "mutual_information",
    "mutual_information_surrogate",
    "total_correlation_surrogate",
]
