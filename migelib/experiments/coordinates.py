r"""Where the score is easy: the MI gradient in coordinates and with residuals that make its scores easy to estimate.

Explained in :doc:`/book/easy-scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..scores import SSGE, GaussianScore, Residual, ScoreEstimator, Transformed
from ..surrogates import mutual_information_surrogate
from ..tasks import cast, exact_score_surrogate, pair
from ..transforms import Gaussianise, Whitening
from .randomness import stream

METRICS = {"relative_error": "1"}

# None is the default of the surrogates.
METHODS: dict[str, ScoreEstimator | None] = {
    "ssge": SSGE(),
    "ssge-whitened": Transformed(Whitening(), SSGE()),
    "ssge-gaussianised": Transformed(Gaussianise(), SSGE()),
    "gaussian": GaussianScore(),
    "gaussian-gaussianised": Transformed(Gaussianise(), GaussianScore()),
    "residual": Transformed(Whitening(), Residual(GaussianScore(), SSGE())),
    "residual-gaussianised": Transformed(Gaussianise(), Residual(GaussianScore(), SSGE())),
    "default": None,
}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    tasks : tuple of str
        Tasks of `migelib.tasks.PAIRS`: a Gaussian pair, and elementwise maps of such pairs.
    dim, n : int
        Coordinates of x and of z, and samples a gradient.
    repeats : int
        Gradients that one seed averages the errors of.
    """

    seeds: int
    tasks: tuple[str, ...] = ("gauss-diagonal", "half-cube", "asinh", "skew", "bimodal", "uniform")
    dim: int = 16
    n: int = 256
    repeats: int = 1


PROFILES = {
    "quick": Config(seeds=16, tasks=("gauss-diagonal", "half-cube", "skew", "bimodal")),
    "full": Config(seeds=10, repeats=2),
}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(
    config: Config, shared: None, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Relative error of the gradient by every method and task, and geometric means over the tasks."""
    return [run_seed(config, seed, device) for seed in seeds]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Relative error of the gradient by every method and task, and each method's geometric mean over the tasks."""
    errors = {(method, name): [] for method in ("exact", *METHODS) for name in config.tasks}
    for name in config.tasks:
        task = cast(pair(name, config.dim), device=device)
        truth = task.mutual_information_gradient()
        for repeat in range(config.repeats):
            theta = task.theta.detach().clone().requires_grad_()
            x, z = task.at(theta).sample(config.n, stream(seed, name, repeat))
            surrogates = {"exact": exact_score_surrogate(task, x, z)}
            surrogates |= {m: mutual_information_surrogate(x, z, estimator) for m, estimator in METHODS.items()}
            for method, surrogate in surrogates.items():
                (gradient,) = torch.autograd.grad(surrogate, theta, retain_graph=True)
                errors[method, name].append(float((gradient - truth).norm() / truth.norm()))
    quantities = {f"{m}/{name}/relative_error": float(np.mean(values)) for (m, name), values in errors.items()}
    for method in ("exact", *METHODS):
        logs = [math.log(quantities[f"{method}/{name}/relative_error"]) for name in config.tasks]
        quantities[f"{method}/geometric-mean/relative_error"] = math.exp(sum(logs) / len(logs))
    return quantities, {}
