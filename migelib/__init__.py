"""Gradients of entropy and mutual information from samples, by score estimation."""

from .scores import (
    KDE,
    SSGE,
    Adaptive,
    DenoisingScore,
    GaussianScore,
    Landweber,
    NuMethod,
    Residual,
    Selected,
    Stein,
    Tikhonov,
    Transformed,
)
from .surrogates import entropy_surrogate, mutual_information_surrogate

__version__ = "0.1.0"

__all__ = [
    "KDE",
    "SSGE",
    "Adaptive",
    "DenoisingScore",
    "GaussianScore",
    "Landweber",
    "NuMethod",
    "Residual",
    "Selected",
    "Stein",
    "Tikhonov",
    "Transformed",
    "entropy_surrogate",
    "mutual_information_surrogate",
]
