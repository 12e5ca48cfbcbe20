r"""An encoder trained to use a channel well, by the gradients of every method, where the capacity is known.

x ~ N(0, I_d) is encoded into the box [-1, 1]^d and sent with noise, :math:`z = \tanh e_\theta(x) + \sigma \epsilon`.
The encoder maximises I(x; z). Its truth at any moment is

.. math:: I(x; z) = E \ln \frac{N(z; \tanh e_\theta(x), \sigma^2 I)}{p(z)}, \qquad
    p(z) \approx \frac1m \sum_j N(z; \tanh e_\theta(x_j), \sigma^2 I),

and no encoder does better than d times the capacity of one bounded coordinate [Smith, Information and Control 18,
1971], which the algorithm of Blahut and Arimoto finds. The code that reaches it is nearly uniform in the box, and far
from Gaussian: to an estimate that sees second moments only the best code lies in the corners.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import critics
from .metrics import clock
from .optimise import METHODS
from .optimise.task import Draw
from .randomness import Streams
from .training import Stack, adam, descend

METRICS = {"information": "nat", "gap": "nat", "ms": "ms"}
FLOORS = {"ms": 1e6}  # a time is that of its machine

FINAL_DRAWS = 8  # of the truth at the end, whose standard error is then below 0.01

Result = tuple[dict[str, float], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    methods : tuple of str
        Names of `optimise.METHODS`.
    dims : tuple of int
        Coordinates of x and of z.
    noise : float
        Its standard deviation, in half widths of the box.
    updates, batch, learning_rate :
        Updates of the encoder by Adam, samples of each, and Adam's step size.
    encoder : int
        Width of the encoder's two hidden layers.
    network_updates, network_rate, hidden, dense, shared_residuals :
        Of the methods' networks, as in `optimise`; here joint and product samples share nothing.
    codes : int
        Components of the mixture that the truth is computed with.
    """

    seeds: int
    methods: tuple[str, ...] = (
        "streaming",
        "adaptive",
        "ssge",
        "gaussian",
        "ratio",
        "knife",
        "infonce",
        "smile",
        "flo",
    )
    dims: tuple[int, ...] = (1, 2)
    noise: float = 0.1
    updates: int = 1000
    batch: int = 256
    learning_rate: float = 1e-3
    encoder: int = 64
    network_updates: int = 5
    network_rate: float = 1e-3
    hidden: int = 256
    dense: bool = False
    shared_residuals: bool = False
    codes: int = 8000

    @property
    def variables(self) -> tuple[int, int]:
        """Numbers of coordinates of x and z."""
        return self.dims[0], self.dims[0]


CPU = Config(seeds=5, updates=500)
PROFILES = {
    "quick": replace(CPU, methods=("streaming", "ssge", "gaussian"), dims=(1,), updates=100, codes=2000),
    "cpu": CPU,
    "full": Config(seeds=10, updates=3000),
}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def units(config: Config) -> list[Config]:
    """Every method in every dimension."""
    cells = itertools.product(config.methods, config.dims)
    return [replace(config, methods=(method,), dims=(dim,)) for method, dim in cells]


def run_seeds(config: Config, shared: None, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """True information that every method reaches, its gap to the capacity, and the time of an update."""
    results: list[Result] = [({}, {}) for _ in seeds]
    for cell in units(config):
        (method,), (dim,) = cell.methods, cell.dims
        curves, ms = trained(cell, seeds, device)
        limit = dim * capacity(cell.noise)
        for (quantities, kept), curve in zip(results, curves, strict=True):
            values: Mapping[str, float] = {"information": curve[-1], "gap": limit - curve[-1], "ms": ms}
            quantities |= {f"{method}/box-d{dim}/{metric}": float(value) for metric, value in values.items()}
            kept[f"{method}/box-d{dim}/information"] = curve
    return results


def trained(config: Config, seeds: Sequence[int], device: torch.device) -> tuple[Float[np.ndarray, "seeds k"], float]:
    """Train the encoders of one cell: true information at ten moments and at the end, and the time of an update."""
    (dim,), (name,) = config.dims, config.methods
    method = METHODS[name](config, seeds, device)
    encoder = Stack.build(lambda: bounded_encoder(dim, config.encoder), seeds, "encoder", device=device)
    optimiser = adam(encoder.parameters(), config.learning_rate)
    random, judging = Streams(seeds, "samples", device=device), Streams(seeds, "truth", device=device)

    def draw() -> Draw:
        x, noise = random.normal(2, config.batch, dim).unbind(1)
        z = encoder(x) + config.noise * noise
        return Draw(x, z, z.detach().roll(1, dims=1))  # the z of another x

    def held_fixed() -> Draw:
        with torch.no_grad():
            return draw()

    curve, seconds, every = [], 0.0, max(1, config.updates // 10)
    for step in range(config.updates):
        if step % every == 0:
            curve.append(information(encoder, judging, config))
        started = clock(device)
        method.learn(held_fixed)
        descend(optimiser, -method.surrogate(draw()))
        seconds += clock(device) - started
    curve.append(torch.stack([information(encoder, judging, config) for _ in range(FINAL_DRAWS)]).mean(0))
    return torch.stack(curve, dim=-1).cpu().numpy(), 1000 * seconds / config.updates / len(seeds)


def bounded_encoder(dim: int, hidden: int) -> nn.Sequential:
    """Network into the box, with SiLU in its two hidden layers."""
    return nn.Sequential(critics.mlp([dim, hidden, hidden, dim], nn.SiLU), nn.Tanh())


@torch.no_grad()
def information(encoder: Stack, random: Streams, config: Config) -> Float[Tensor, "seeds"]:
    """True information of every seed's code, in nats: the mean of ln p(z | x) / p(z), with a mixture of other codes."""
    (dim,), n = config.dims, config.codes // 8
    centres, codes = encoder(random.normal(config.codes + n, dim)).double().split([config.codes, n], dim=1)
    noise = random.normal(n, dim).double()
    squares = torch.cdist(codes + config.noise * noise, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    log_mixture = (-squares / (2 * config.noise**2)).logsumexp(-1) - math.log(config.codes)
    return (-noise.square().sum(-1) / 2 - log_mixture).mean(-1)


@cache
def capacity(noise: float, points: int = 161, steps: int = 2000) -> float:
    """Capacity of one coordinate in [-1, 1] with Gaussian noise, in nats, by the algorithm of Blahut and Arimoto."""
    inputs, outputs = np.linspace(-1, 1, points), np.linspace(-1 - 6 * noise, 1 + 6 * noise, 4 * points)
    law = np.exp(-((outputs - inputs[:, None]) ** 2) / (2 * noise**2))
    law /= law.sum(-1, keepdims=True)
    entropy = -(law * np.log(law + 1e-300)).sum(-1)
    weights = np.full(points, 1 / points)
    for _ in range(steps):
        divergence = -entropy - law @ np.log(weights @ law)  # of each input's law from that of the output
        weights = weights * np.exp(divergence - divergence.max())
        weights /= weights.sum()
    return float(weights @ (-entropy - law @ np.log(weights @ law)))
