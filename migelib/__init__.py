"""Gradients of entropy and mutual information from samples, by score estimation."""

from .scores import SSGE, GaussianScore
from .surrogates import entropy_surrogate, mutual_information_surrogate

__version__ = "0.1.0"

__all__ = ["SSGE", "GaussianScore", "entropy_surrogate", "mutual_information_surrogate"]
