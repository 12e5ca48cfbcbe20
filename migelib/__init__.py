"""Gradients of entropy, mutual information and kindred measures from samples, by score estimation."""

from .scores import (
    KDE,
    SSGE,
    Adaptive,
    DenoisingScore,
    GaussianScore,
    Landweber,
    NoDensityWarning,
    NuMethod,
    Residual,
    Selected,
    Stein,
    Tikhonov,
    Transformed,
)
from .surrogates import (
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
    "NuMethod",
    "Residual",
    "Selected",
    "Stein",
    "Tikhonov",
    "Transformed",
    "conditional_entropy_surrogate",
    "conditional_mutual_information_surrogate",
    "entropy_surrogate",
    "kl_surrogate",
    "mutual_information_surrogate",
    "total_correlation_surrogate",
]
