r"""EGE against closed forms: the entropy gradient of a linear-Gaussian sampler and of a skewed, heavy-tailed one.

Explained in :doc:`/book/entropy-gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..scores import SSGE, GaussianScore, ScoreEstimator
from ..surrogates import entropy_surrogate
from ..tasks import LinearGaussian, SinhArcsinh
from .metrics import flat_gradient
from .randomness import stream

METRICS = {"relative_error": "1", "cosine": "1", "gradient": "nat"}

ESTIMATORS: dict[str, ScoreEstimator] = {"ssge": SSGE(), "gaussian": GaussianScore()}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    dims : tuple of int
        Dimensions d.
    n : int
        Samples a gradient.
    repeats : int
        Gradients that one seed averages the errors of.
    scales : int
        Points of the curve of the entropy gradient against the scale of a Gaussian.
    """

    seeds: int
    dims: tuple[int, ...] = (2, 8, 32)
    n: int = 256
    repeats: int = 4
    scales: int = 12


PROFILES = {"quick": Config(seeds=10, repeats=8), "full": Config(seeds=10, dims=(1, 2, 4, 8, 16, 32, 64), repeats=32)}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(
    config: Config, shared: None, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Relative error and cosine of the gradients, by task, dimension and estimator."""
    return [run_seed(config, seed, device) for seed in seeds]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Relative error and cosine of the gradients, by task, dimension and estimator, for one seed."""
    quantities, curves = {}, {}
    for dim in config.dims:
        for name, task, parameters in _tasks(dim, seed, device):
            errors = {method: [] for method in ("exact", *ESTIMATORS)}
            truth = task.entropy_gradient().flatten()
            for repeat in range(config.repeats):
                z = task.sample(config.n, stream(seed, name, dim, repeat))
                for method in errors:
                    gradient = flat_gradient(_surrogate(method, z, task), parameters)
                    cosine = torch.nn.functional.cosine_similarity(gradient, truth, dim=0)
                    errors[method].append([(gradient - truth).norm() / truth.norm(), cosine])
            for method, values in errors.items():
                error, cosine = torch.tensor(values).mean(0).tolist()
                quantities[f"{method}/{name}-d{dim}/relative_error"] = error
                quantities[f"{method}/{name}-d{dim}/cosine"] = cosine
    scale = torch.logspace(-1, 1, config.scales).requires_grad_()
    for method, estimator in ESTIMATORS.items():
        noise = torch.randn(config.scales, config.n, 2, generator=stream(seed, "scale"))
        surrogate = entropy_surrogate(scale[:, None, None] * noise, estimator)
        (curves[method],) = torch.autograd.grad(surrogate, scale)
    return quantities, {name: curve.numpy() for name, curve in curves.items()}


def _tasks(dim: int, seed: int, device: torch.device) -> list[tuple[str, LinearGaussian | SinhArcsinh, list[Tensor]]]:
    """Samplers with a known entropy gradient, drawn anew for every seed, and their parameters."""
    generator = stream(seed, "tasks", dim)
    loading = torch.eye(dim) + 0.5 * torch.randn(dim, dim, generator=generator) / dim**0.5
    loading = loading.to(device).requires_grad_()
    skew = torch.tensor(0.5, device=device, requires_grad=True)
    tail = torch.tensor(1.3, device=device, requires_grad=True)
    return [
        ("linear", LinearGaussian(loading), [loading]),
        ("sinh-arcsinh", SinhArcsinh(dim, skew, tail), [skew, tail]),
    ]


def _surrogate(method: str, z: Float[Tensor, "n d"], task: LinearGaussian | SinhArcsinh) -> Float[Tensor, ""]:
    if method == "exact":
        return -(task.score(z.detach()) * z).sum(-1).mean()
    return entropy_surrogate(z, ESTIMATORS[method])
