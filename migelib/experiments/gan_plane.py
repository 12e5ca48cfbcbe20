r"""Mode collapse in the plane: generators of a ring and of a grid of Gaussians, each method tuned.

The methods are those of `adversarial`: the entropy gradient of the samples beside packing, instance noise and a
critic's bound.
Explained in :doc:`/book/gan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import critics
from ..scores import SSGE
from .adversarial import (
    FLOORS,
    JUDGED,
    METRICS,
    Discriminator,
    Entropy,
    GameTraining,
    InformationBound,
    InstanceNoise,
    Method,
    Packing,
    Result,
    Vanilla,
    measure,
    named,
)
from .randomness import Streams

__all__ = ["FLOORS", "METHODS", "METRICS", "MIXTURES", "PROFILES", "STUDIES", "Config", "prepare", "run_seeds"]

DEVIATIONS = 3.0  # a sample this near to its mode, in standard deviations, is of high quality
FAIR = 0.1  # a mode is covered if it has this share of its part of the samples, of high quality

METHODS: dict[str, Method] = {
    "vanilla": Vanilla((1e-3, 2e-3, 4e-3, 8e-3)),
    "ege": Entropy((0.1, 0.3, 1.0, 3.0)),
    "ssge-paper": Entropy((0.1, 0.3, 1.0, 3.0), estimator=SSGE()),
    "pacgan": Packing((2, 4)),
    "instance-noise": InstanceNoise((0.1, 0.3, 1.0)),
    "meg": InformationBound((0.1, 0.3, 1.0, 3.0)),
}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    training : GameTraining
    tasks : tuple of str
        Of `MIXTURES`.
    methods : tuple of str
        Of `METHODS`.
    settings : tuple of (str, float)
        Settings of <method>/<task>; of those that are not listed it is tuned.
    tuning_seeds : int
        Runs for every entry of a method's grid, with seeds that are not reported.
    checkpoints : int
        How often during training the samples are judged.
    """

    seeds: int
    training: GameTraining
    tasks: tuple[str, ...] = ("ring", "grid")
    methods: tuple[str, ...] = tuple(METHODS)
    settings: tuple[tuple[str, float], ...] = ()
    tuning_seeds: int = 1
    checkpoints: int = 10


PROFILES = {
    "quick": Config(
        seeds=5,
        training=GameTraining(steps=600),
        tasks=("ring",),
        methods=("vanilla", "ege", "pacgan", "meg"),
        settings=(("vanilla/ring", 3e-3), ("ege/ring", 0.3), ("pacgan/ring", 2), ("meg/ring", 0.3)),
        checkpoints=5,
    ),
    "cpu": Config(seeds=5, training=GameTraining(steps=4000)),
    "full": Config(seeds=5, training=GameTraining(steps=20_000, batch=256), tuning_seeds=2),
}
STUDIES = {"large": replace(PROFILES["cpu"], training=GameTraining(steps=20_000), tasks=("grid",))}


@dataclass(frozen=True)
class Mixture:
    """Gaussians of one deviation and equal weight in the plane.

    Attributes
    ----------
    centres : Tensor [k, 2]
    deviation : float
    """

    centres: Float[Tensor, "k 2"]
    deviation: float
    size = 2

    @classmethod
    def ring(cls) -> Mixture:
        """Eight modes on a circle of radius 2."""
        angle = torch.arange(8) * (2 * math.pi / 8)
        return cls(2 * torch.stack([angle.cos(), angle.sin()], dim=-1), 0.1)

    @classmethod
    def grid(cls) -> Mixture:
        """Twenty-five modes on a square grid of spacing 1."""
        axis = torch.arange(-2.0, 3.0)
        return cls(torch.cartesian_prod(axis, axis), 0.05)

    def to(self, device: torch.device) -> Mixture:
        """The mixture on a device."""
        return replace(self, centres=self.centres.to(device))

    def sample(self, n: int, random: Streams) -> Float[Tensor, "seeds n 2"]:
        """Draw n samples for every seed."""
        index, noise = random.integers(len(self.centres), n), random.normal(n, 2)
        return self.centres[index] + self.deviation * noise

    def networks(self, training: GameTraining, pack: int) -> tuple[nn.Module, Discriminator]:
        """Generator, and discriminator of packs of samples."""
        width = training.width
        generator = critics.mlp([training.noise, width, width, 2])
        return generator, Discriminator(critics.mlp([2 * pack, width, width, 1]))

    def judge(self, samples: Float[Tensor, "seeds n 2"]) -> list[dict[str, float]]:
        r"""Covered modes, share of samples of high quality, and a divergence from the true law, for every seed.

        The latter is the KL divergence of the samples' histogram from the true one, over the modes and one cell for
        what lies too far from all of them, which has the probability :math:`e^{-9/2}`: a lower bound of the divergence
        of the laws, and zero for a perfect generator.
        """
        return [self._judge(own) for own in samples]

    def _judge(self, samples: Float[Tensor, "n 2"]) -> dict[str, float]:
        distance, mode = torch.cdist(samples, self.centres).min(dim=-1)
        good = distance <= DEVIATIONS * self.deviation
        counts = torch.bincount(mode[good], minlength=len(self.centres)).double()
        outside = math.exp(-(DEVIATIONS**2) / 2)
        truth = counts.new_tensor([*[(1 - outside) / len(counts)] * len(counts), outside])
        found = torch.cat([counts, (len(samples) - counts.sum())[None]]) / len(samples)
        return {
            "modes": float((counts >= FAIR * len(samples) / len(counts)).sum()),
            "quality": 100 * float(good.double().mean()),
            "kl": float(torch.xlogy(found, found / truth).sum()),
        }

    def keep(self, samples: Float[Tensor, "n 2"]) -> np.ndarray:
        """The first 500 samples, in half precision."""
        return samples[:500].half().cpu().numpy()


MIXTURES: dict[str, Callable[[], Mixture]] = {"ring": Mixture.ring, "grid": Mixture.grid}


def mixture(name: str) -> Mixture:
    """The mixture of that name; raises ValueError where it is unknown."""
    if name not in MIXTURES:
        raise ValueError(f"tasks: unknown name {name!r}, expected some of {', '.join(MIXTURES)}")
    return MIXTURES[name]()


@dataclass(frozen=True)
class Shared:
    """What all seeds share.

    Attributes
    ----------
    settings : dict of float
        By <method>/<task>.
    tuned : dict of array
        What `tune` tried, by tuning/<task>/<method>/<metric>.
    """

    settings: dict[str, float]
    tuned: dict[str, np.ndarray]


def prepare(config: Config, device: torch.device, tuned: Mapping[str, np.ndarray] | None = None) -> Shared:
    """Settings of every method on every task: the given one, or that of least mean KL divergence in the grid.

    Parameters
    ----------
    config : Config
    device : torch.device
    tuned : mapping of array, optional
        `Shared.tuned` of an earlier call; what it has is not tuned again.

    Raises
    ------
    ValueError
        If a method or a task is unknown.
    """
    settings, tuned = dict(config.settings), dict(tuned or {})
    for task, name in _pairs(config):
        method, place = named(METHODS, name), f"tuning/{task}/{name}"
        law = mixture(task).to(device)
        if f"{name}/{task}" in settings:
            continue
        if f"{place}/kl" not in tuned:
            tuned |= {f"{place}/{metric}": values for metric, values in tune(config, law, method, device).items()}
        settings[f"{name}/{task}"] = method.grid[int(tuned[f"{place}/kl"].mean(-1).argmin())]
    return Shared(settings, tuned)


def _pairs(config: Config) -> Iterator[tuple[str, str]]:
    return ((task, name) for task in config.tasks for name in config.methods)


def tune(config: Config, task: Mixture, method: Method, device: torch.device) -> dict[str, np.ndarray]:
    """Metrics [settings, seeds] of every setting in the method's grid, and the grid; no seed is a reported one."""
    seeds = range(1000, 1000 + config.tuning_seeds)
    tried = [
        measure("tried", task, method, setting, config.training, config.checkpoints, seeds, device)
        for setting in method.grid
    ]
    values = {
        metric: [[quantities[f"tried/{metric}"] for quantities, _ in results] for results in tried] for metric in JUDGED
    }
    return {name: np.array(value, dtype=np.float32) for name, value in {**values, "setting": method.grid}.items()}


def run_seeds(config: Config, shared: Shared, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Every method on every task, for these seeds at once.

    Quantities are <method>/<task>/<metric>, the setting among them. Curves are <method>/<task>/<metric> over the
    checkpoints and <method>/<task>/samples, and what `tune` tried, the same for every seed.
    """
    results: list[Result] = [({}, dict(shared.tuned)) for _ in seeds]
    for task, name in _pairs(config):
        key, law, method = f"{name}/{task}", mixture(task).to(device), named(METHODS, name)
        found = measure(key, law, method, shared.settings[key], config.training, config.checkpoints, seeds, device)
        for (quantities, curves), (new_quantities, new_curves) in zip(results, found, strict=True):
            quantities |= new_quantities
            curves |= new_curves
    return results
