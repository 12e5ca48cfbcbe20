r"""MIGE against closed forms, for every case of which argument depends on the parameters.

Explained in :doc:`/book/mutual-information-gradients`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..scores import SSGE, GaussianScore
from ..surrogates import entropy_surrogate, mutual_information_surrogate
from ..tasks import JointGaussian, exact_score_surrogate
from .metrics import flat_gradient
from .randomness import stream

METRICS = {"relative_error": "1", "cosine": "1"}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    x_dim, z_dim : int
        Numbers of coordinates p and q of x and z; the source u has p coordinates too.
    noise : float
        Standard deviation of the noise of x and of z, beside a signal of about unit variance.
    n, large_n : int
        Samples a gradient, and samples for the check that the errors vanish.
    repeats : int
        Pairs of matrices, drawn anew for each gradient, that one seed averages the errors of.
    noise_levels : tuple of float
        Noise of z along the curve towards a noise-free encoder, where x has none.
    """

    seeds: int
    x_dim: int = 6
    z_dim: int = 3
    noise: float = 0.5
    n: int = 256
    large_n: int = 100_000
    repeats: int = 4
    noise_levels: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01)


PROFILES = {"quick": Config(seeds=10, repeats=6, noise_levels=(1.0, 0.1, 0.01)), "full": Config(seeds=10, repeats=64)}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(
    config: Config, shared: None, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Relative error and cosine of the gradients of every case and surrogate."""
    return [run_seed(config, seed, device) for seed in seeds]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Relative error and cosine of the gradients of every case and surrogate, for one seed."""
    quantities = {}
    for case in ("only-z", "only-x", "both"):
        errors = _errors(config, case, config.noise, config.noise, seed, device)
        quantities |= {f"{method}/{case}/{metric}": value for (method, metric), value in errors.items()}
        quantities[f"exact/{case}-large-n/relative_error"] = _large_sample_error(config, case, seed, device)
    errors = _errors(config, "noise-free", 0.0, 0.0, seed, device)
    quantities |= {f"{method}/noise-free/{metric}": value for (method, metric), value in errors.items()}

    towards = [_errors(config, "only-z", 0.0, noise, seed, device) for noise in config.noise_levels]
    curves = {"/".join(name): np.array([errors[name] for errors in towards]) for name in towards[0]}
    return quantities, curves


def _errors(
    config: Config, case: str, x_noise: float, z_noise: float, seed: int, device: torch.device
) -> dict[tuple[str, str], float]:
    """Relative error and cosine with the truth of every surrogate, (method, metric) -> mean over the repeats."""
    values = defaultdict(list)
    for repeat in range(config.repeats):
        generator = stream(seed, "linear pair", repeat)
        task, (b, a) = linear_pair(config, x_noise, z_noise, generator, device)
        parameters = {"only-z": [a], "only-x": [b], "both": [b, a], "noise-free": [a]}[case]
        x, z = task.sample(config.n, generator)
        if case == "noise-free":  # the information is infinite; its gradient is that of H(z) alone
            truth = flat_gradient(task.entropies()[1], parameters)
            surrogates = {
                "ssge": mutual_information_surrogate(x, z, SSGE()),
                "entropy-ssge": entropy_surrogate(z, SSGE()),
                "entropy-gaussian": entropy_surrogate(z, GaussianScore()),
            }
        else:
            truth = flat_gradient(task.mutual_information(), parameters)
            surrogates = {
                "exact": exact_score_surrogate(task, x, z),
                "ssge": mutual_information_surrogate(x, z, SSGE()),
                "gaussian": mutual_information_surrogate(x, z, GaussianScore()),
            }
        for method, surrogate in surrogates.items():
            gradient = flat_gradient(surrogate, parameters)
            values[method, "relative_error"].append(float((gradient - truth).norm() / truth.norm()))
            values[method, "cosine"].append(float(torch.nn.functional.cosine_similarity(gradient, truth, dim=0)))
    return {name: float(np.mean(value)) for name, value in values.items()}


def _large_sample_error(config: Config, case: str, seed: int, device: torch.device) -> float:
    """Relative error with the true scores and many samples: a wrong factor in the identity would show here."""
    generator = stream(seed, "large sample", case)
    task, (b, a) = linear_pair(config, config.noise, config.noise, generator, device)
    parameters = {"only-z": [a], "only-x": [b], "both": [b, a]}[case]
    truth = flat_gradient(task.mutual_information(), parameters)
    estimate = flat_gradient(exact_score_surrogate(task, *task.sample(config.large_n, generator)), parameters)
    return float((estimate - truth).norm() / truth.norm())


def linear_pair(
    config: Config, x_noise: float, z_noise: float, generator: torch.Generator, device: torch.device
) -> tuple[JointGaussian, list[Tensor]]:
    r"""Two noisy linear views of one source, :math:`x = B u + \tau_x \xi` and :math:`z = A u + \tau_z \eta`.

    Returns
    -------
    task : JointGaussian
        Of the pair, with :math:`\epsilon = (u, \xi, \eta)` and matrices drawn by the generator. All is in double
        precision: without noise the joint covariance is singular, and close to that it is badly conditioned.
    parameters : list of Tensor
        B [p, p] and A [q, p], which require a gradient.
    """
    p, q = config.x_dim, config.z_dim
    options = {"dtype": torch.float64, "device": device}
    b = torch.eye(p, dtype=torch.float64) + 0.3 * torch.randn(p, p, dtype=torch.float64, generator=generator)
    a = torch.randn(q, p, dtype=torch.float64, generator=generator) / p**0.5
    b, a = b.to(device).requires_grad_(), a.to(device).requires_grad_()
    x_loading = torch.cat([b, x_noise * torch.eye(p, **options), torch.zeros(p, q, **options)], dim=1)
    z_loading = torch.cat([a, torch.zeros(q, p, **options), z_noise * torch.eye(q, **options)], dim=1)
    return JointGaussian(x_loading, z_loading), [b, a]
