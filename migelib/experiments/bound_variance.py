r"""Bias and variance of variational bounds and of gradient estimates against the true mutual information.

Correlated Gaussians, many batches at each true mutual information. The bounds are given their optimal critic, so that
what is seen is due to the finite batch alone. The gradients are those in the correlation: of the bounds with the
optimal critic held fixed, of MIGE with estimated scores, and with the exact scores.
Explained in :doc:`/book/information-measures`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import bounds
from ..scores import SSGE, GaussianScore, ScoreEstimator
from ..surrogates import mutual_information_surrogate
from ..tasks import CorrelatedGaussian
from .randomness import stream

METRICS = {"relative_bias": "1", "relative_std": "1", "relative_median_bias": "1", "log10_relative_std": "1"}

# The ratio p(x, y) / p(x) p(y) has no fourth moment here (|rho| > 1/3), so that the sample variance of whatever is
# linear in it has itself an infinite variance: its mean and std do not settle. The median and the logarithm do.
HEAVY_TAILED = ("nwj", "nwj-gradient")


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    dim, n : int
        Dimension d, and samples a batch.
    information : tuple of int
        Grid of true mutual informations, in nats.
    batches, ssge_batches : int
        Batches a seed and grid point, and how many of them SSGE sees.
    chunk : int
        Batches held in memory at once.
    critic_scale, critic_information : float
        The critic whose scale is differentiated, and its true mutual information in nats.
    critic_n, critic_streams, critic_steps, critic_warm_up : int
        Its batches, the number of independent runs, the steps of each, and how many of these are not counted.
    decay : float
        Weight of the past in MINE's moving average.
    """

    seeds: int
    dim: int = 16
    n: int = 256
    information: tuple[int, ...] = (1, 2, 4, 8, 16)
    batches: int = 100
    ssge_batches: int = 10
    chunk: int = 50
    critic_scale: float = 0.5
    critic_information: float = 4
    critic_n: int = 16
    critic_streams: int = 100
    critic_steps: int = 200
    critic_warm_up: int = 100
    decay: float = 0.99


PROFILES = {
    "quick": Config(seeds=5),
    "full": Config(
        seeds=10, information=(1, 2, 3, 4, 6, 8, 12, 16), batches=1000, ssge_batches=40, critic_streams=1000
    ),
}
STUDIES: dict[str, Config] = {}


def correlation(dim: int, information: float) -> float:
    r"""Correlation of `CorrelatedGaussian` with this mutual information, :math:`\sqrt{1 - e^{-2 I / d}}`."""
    return math.sqrt(-math.expm1(-2 * information / dim))


def nwj_std(dim: int, information: float, n: int) -> float:
    """Standard deviation of the NWJ estimate with the optimal critic, in nats, in closed form."""
    rho = correlation(dim, information)
    ratio = math.expm1(2 * information) + (1 - rho**4) ** -dim - 1
    return math.sqrt(dim * rho**2 / n + ratio / (n * (n - 1)))


def exact_gradient_std(dim: int, n: int) -> float:
    """Relative standard deviation of the gradient estimate with the exact scores, in closed form."""
    return math.sqrt(2 / (n * dim))


def nwj_gradient_std(dim: int, information: float, n: int) -> float:
    """Relative standard deviation of the NWJ gradient with the optimal critic, in closed form."""
    rho = correlation(dim, information)
    transposed = (1 + dim * rho**4) / (1 + rho**2) ** (dim + 2)
    return math.sqrt(2 / (n * dim) + math.exp(2 * information) * (1 + transposed) / (dim * n * (n - 1)))


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(
    config: Config, shared: None, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Bias and spread of every method at every true mutual information."""
    return [run_seed(config, seed, device) for seed in seeds]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Bias and spread of every method at every true mutual information, for one seed."""
    quantities: dict[str, float] = {}
    rows: dict[str, list[float]] = {}
    for information in config.information:
        for method, errors in relative_errors(config, information, stream(seed, information), device).items():
            name = f"{method}/mi{information}"
            mean, std, median = float(errors.mean()), float(errors.std()), float(errors.median())
            if method in HEAVY_TAILED:
                quantities |= {f"{name}/relative_median_bias": median, f"{name}/log10_relative_std": math.log10(std)}
            else:
                quantities |= {f"{name}/relative_bias": mean, f"{name}/relative_std": std}
            low, high = np.quantile(errors.numpy(), (0.05, 0.95))
            curves = {"mean": mean, "median": median, "low": low, "high": high, "std": std}
            curves |= {"rms": float(errors.square().mean().sqrt()), "median_error": float(errors.abs().median())}
            for curve, value in curves.items():
                rows.setdefault(f"{method}/{curve}", []).append(value)
    for method, bias in critic_gradient_bias(config, stream(seed, "critic"), device).items():
        quantities[f"{method}/mi{config.critic_information:g}/relative_bias"] = bias
    return quantities, {name: np.array(row) for name, row in rows.items()}


def relative_errors(
    config: Config, information: float, generator: torch.Generator, device: torch.device
) -> dict[str, Float[Tensor, "batches"]]:
    """Estimate over truth minus one, for every method and batch: "dv" and "nwj" are values, the rest gradients."""
    rho = correlation(config.dim, information)
    gradient = rho * config.dim / (1 - rho**2)
    errors: dict[str, list[Tensor]] = {}
    for start in range(0, config.batches, config.chunk):
        count = min(config.chunk, config.batches - start)
        estimates = one_chunk(config, rho, count, max(0, min(count, config.ssge_batches - start)), generator, device)
        for method, estimate in estimates.items():
            truth = information if method in ("dv", "nwj") else gradient
            errors.setdefault(method, []).append((estimate.double() - truth) / truth)
    return {method: torch.cat(parts) for method, parts in errors.items()}


def one_chunk(
    config: Config, rho: float, count: int, ssge_count: int, generator: torch.Generator, device: torch.device
) -> dict[str, Float[Tensor, "count"]]:
    """Estimates of every method from the same `count` batches; SSGE sees the first `ssge_count` of them."""
    rhos = torch.full((count,), rho, device=device, requires_grad=True)  # one leaf a batch: one gradient a batch
    task = CorrelatedGaussian(config.dim, rhos)
    x, y = task.sample(config.n, generator)

    def gradient(scalars: Tensor) -> Tensor:
        return torch.autograd.grad(scalars.sum(), rhos, retain_graph=True)[0]

    def mige(estimator: ScoreEstimator, used: int) -> Tensor:
        return gradient(mutual_information_surrogate(x[:used], y[:used], estimator))[:used]

    log_ratio = task.density_ratio(x, y)  # its own dependence on rho is detached: the critic stays fixed
    dv, nwj = bounds.donsker_varadhan(log_ratio), bounds.nwj(1 + log_ratio)
    score = (task.score_joint(x, y)[1] - task.score_y(y)).detach()
    estimates = {
        "dv": dv,
        "nwj": nwj,
        "dv-gradient": gradient(dv),
        "nwj-gradient": gradient(nwj),
        "exact": gradient((score * y).sum(-1).mean(-1)),
        "mige-gaussian": mige(GaussianScore(), count),
    }
    if ssge_count:
        estimates["mige"] = mige(SSGE(), ssge_count)
    return {method: estimate.detach().cpu() for method, estimate in estimates.items()}


def critic_gradient_bias(config: Config, generator: torch.Generator, device: torch.device) -> dict[str, float]:
    r"""Relative bias of the gradient in the scale a of the critic :math:`T = a \ln r`, without and with MINE's average.

    The truth is :math:`d (1 - a) \rho^2 / (1 - (1 - a)^2 \rho^2)`. The critic does not move, so that the moving average
    has nothing to lag behind.
    """
    rho = correlation(config.dim, config.critic_information)
    shortfall = 1 - config.critic_scale
    truth = config.dim * shortfall * rho**2 / (1 - shortfall**2 * rho**2)
    task = CorrelatedGaussian(config.dim, torch.full((config.critic_streams,), rho, device=device))
    scale = torch.tensor(config.critic_scale, device=device, requires_grad=True)
    sums, running = {"dv-critic": 0.0, "mine-critic": 0.0}, None
    for step in range(config.critic_steps):
        critic = scale * task.density_ratio(*task.sample(config.critic_n, generator))
        corrected, running = bounds.mine(critic, running, config.decay)
        if step >= config.critic_warm_up:
            for method, value in (("dv-critic", bounds.donsker_varadhan(critic)), ("mine-critic", corrected)):
                sums[method] += float(torch.autograd.grad(value.mean(), scale, retain_graph=True)[0])
    steps = config.critic_steps - config.critic_warm_up
    return {method: total / steps / truth - 1 for method, total in sums.items()}
