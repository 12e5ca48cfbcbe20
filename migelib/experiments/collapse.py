r"""What an entropy term does to a sampler that collapses: the run of the book's first five minutes.

A small network moves noise to where an energy with eight wells is low. Nothing in that loss keeps the samples apart.
The term ``- beta * entropy_surrogate(z)`` does, and for ``beta = 1`` the loss is the divergence from the energy's own
distribution, but for a constant.
Explained in :doc:`/book/five-minutes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..scores import SSGE, ScoreEstimator, Tikhonov
from ..surrogates import entropy_surrogate
from .randomness import seeded, stream

METRICS = {"wells": "1", "near": "%"}
FLOORS = {"wells": 1.0, "near": 1.0}  # whole wells; and a share of 20,000 samples of networks that differ

WELLS, RADIUS, SPREAD = 8, 2.0, 0.4
SHOWN = 150

METHODS: dict[str, ScoreEstimator | None] = {
    "tikhonov": Tikhonov(ridge=1e-3, median_factor=0.25),
    "ssge": SSGE(),
    "default": None,
}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    methods : tuple of str
        Score estimators, of `METHODS`.
    betas : tuple of float
        Weights of the entropy; 0 is no entropy term.
    watched : tuple of float
        Those of which samples are kept for a picture.
    steps, n, learning_rate, width, noise_dim :
        Training by Adam, samples a step, and the network.
    evaluation : int
        Samples that the trained network is judged by.
    snapshots : int
        Moments of the training, evenly spaced, at which they are kept.

    Raises
    ------
    ValueError
        If a method is unknown.
    """

    seeds: int
    methods: tuple[str, ...] = ("tikhonov",)
    betas: tuple[float, ...] = (0.0, 1.0, 10.0)
    watched: tuple[float, ...] = (0.0, 1.0)
    steps: int = 300
    n: int = 256
    learning_rate: float = 3e-3
    width: int = 64
    noise_dim: int = 8
    evaluation: int = 20_000
    snapshots: int = 31

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"methods: unknown {', '.join(sorted(unknown))}, expected some of {', '.join(METHODS)}")


PROFILES = {
    "quick": Config(seeds=5),
    "full": Config(seeds=5, methods=("tikhonov", "ssge"), betas=(0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
}
STUDIES: dict[str, Config] = {}

Result = tuple[dict[str, float], dict[str, np.ndarray]]


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(config: Config, shared: None, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Wells found, and the share of samples near one, by estimator and weight of the entropy.

    `exact` is what samples of the energy's own distribution have.
    """
    return [_run_seed(config, seed, device) for seed in seeds]


def _run_seed(config: Config, seed: int, device: torch.device) -> Result:
    exact = sample(config.evaluation, stream(seed, "exact"))
    quantities = {f"exact/all/{metric}": value for metric, value in found(exact).items()}
    curves: dict[str, np.ndarray] = {}
    for method in config.methods:
        for beta in config.betas:
            name = f"{method}/beta-{beta:g}"
            samples, snapshots = train(method, beta, config, seed, device)
            if beta in config.watched:
                curves[f"{name}/snapshots"] = snapshots
            quantities |= {f"{name}/{metric}": value for metric, value in found(samples).items()}
    return quantities, curves


def centres() -> Float[Tensor, "wells 2"]:
    """Where the energy is lowest: eight points on a circle."""
    angles = 2 * math.pi * torch.arange(WELLS) / WELLS
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=-1)


def energy(z: Float[Tensor, "n 2"]) -> Float[Tensor, "n"]:
    """Minus the log density, but for a constant, of eight equal Gaussians on a circle."""
    return -torch.logsumexp(-torch.cdist(z, centres().to(z)).square() / (2 * SPREAD**2), dim=-1)


def sample(n: int, generator: torch.Generator) -> Float[Tensor, "n 2"]:
    """Samples of the energy's own distribution."""
    wells = torch.randint(WELLS, (n,), generator=generator)
    return centres()[wells] + SPREAD * torch.randn(n, 2, generator=generator)


def train(
    method: str, beta: float, config: Config, seed: int, device: torch.device
) -> tuple[Float[Tensor, "evaluation 2"], np.ndarray]:
    """Samples of the trained network, and of it at evenly spaced moments of its training [snapshots, SHOWN, 2]."""
    sampler = seeded(lambda: perceptron(config), seed).to(device)
    optimiser = torch.optim.Adam(sampler.parameters(), config.learning_rate)
    noise = stream(seed, "noise", device=device)
    watched = torch.randn(SHOWN, config.noise_dim, generator=stream(seed, "watched", device=device), device=device)
    moments = set(np.linspace(0, config.steps, config.snapshots).round().astype(int).tolist())
    snapshots = []
    for step in range(config.steps + 1):
        if step in moments:
            snapshots.append(sampler(watched).detach().cpu().numpy())
        if step == config.steps:
            break
        z = sampler(torch.randn(config.n, config.noise_dim, generator=noise, device=device))
        loss = energy(z).mean()
        if beta > 0:
            loss = loss - beta * entropy_surrogate(z, METHODS[method])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    last = torch.randn(
        config.evaluation, config.noise_dim, generator=stream(seed, "test", device=device), device=device
    )
    return sampler(last).detach(), np.stack(snapshots).astype(np.float16)


def perceptron(config: Config) -> nn.Module:
    """Two hidden layers, from noise to the plane."""
    return nn.Sequential(
        *(nn.Linear(config.noise_dim, config.width), nn.SiLU()),
        *(nn.Linear(config.width, config.width), nn.SiLU()),
        nn.Linear(config.width, 2),
    )


def found(samples: Float[Tensor, "n 2"]) -> dict[str, float]:
    """Wells with a quarter of their share of the samples or more, and the samples within two spreads of one, in %."""
    distance, nearest = torch.cdist(samples, centres().to(samples)).min(-1)
    near = distance < 2 * SPREAD
    shares = torch.bincount(nearest[near], minlength=WELLS) / len(samples)
    return {"wells": float((shares >= 0.25 / WELLS).sum()), "near": 100 * float(near.float().mean())}
