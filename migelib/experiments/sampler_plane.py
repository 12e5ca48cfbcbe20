r"""Fitting an implicit sampler to energies in the plane: :math:`\min \mathrm{KL}(q \,\|\, p)` without the density of q.

The entropy half of the EGE paper [Wen et al., Knowledge-Based Systems 224, 2021] against no entropy term, against
AR-DAE [Lim et al., ICML 2020] at equal steps and at equal time, and against a normalising flow, which has a density.
In the plane the divergence is measured on a grid; `sampler_high` goes beyond the plane.
Explained in :doc:`/book/implicit-vi`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..scores import SSGE, Adaptive, Tikhonov
from ..tasks.energies import PLANE_ENERGIES, PlaneEnergy
from .randomness import Streams, stream
from .samplers import SHOWN, Flow, Implicit, Result, Training, check_names, merged, trained_methods

METRICS = {"kl": "nat", "tv": "1", "score_error": "1", "eigenfunctions": "1"}


@dataclass(frozen=True)
class Config(Training):
    """Settings: those of `Training`, and the following.

    Attributes
    ----------
    methods : tuple of str
        What is compared, of the keys of `methods`.
    targets : tuple of str
        Targets, of `migelib.tasks.PLANE_ENERGIES`.
    noise_dim : int
        Coordinates of a sampler's noise.
    ridge, median_factor : float
        Of `ege`: `Tikhonov` with this ridge and this multiple of the median width.
    evaluation : int
        Samples that a divergence is measured with.
    cells : int
        The grid has cells x cells.
    snapshots : tuple of float
        Shares of the training at which samples of the entropy gradient's methods are kept for a figure.

    Raises
    ------
    ValueError
        If a method or a target is unknown.
    """

    methods: tuple[str, ...] = (
        "exact",
        "none",
        "ssge-paper",
        "ege",
        "ar-dae-2",
        "ar-dae-5",
        "ar-dae-2-equal-time",
        "ar-dae-5-equal-time",
        "flow",
    )
    targets: tuple[str, ...] = tuple(PLANE_ENERGIES)
    noise_dim: int = 8
    ridge: float = 1e-3
    median_factor: float = 0.25
    equal_time: tuple[float, ...] = (0.9, 0.46)
    evaluation: int = 200_000
    cells: int = 80
    snapshots: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)

    def __post_init__(self) -> None:
        check_names("methods", self.methods, methods(self))
        check_names("targets", self.targets, PLANE_ENERGIES)


def methods(config: Config) -> dict[str, PlaneExact | PlaneTrained]:
    """What these settings can compare, by name."""
    ege = Tikhonov(ridge=config.ridge, median_factor=config.median_factor)
    trained = trained_methods(ege, config, config.snapshots)
    return {"exact": PlaneExact()} | {name: PlaneTrained(sampler) for name, sampler in trained.items()}


@dataclass(frozen=True)
class PlaneExact:
    """Samples of the targets themselves: the least that the grid's divergence can be, and the estimators' errors."""

    def measure(self, name: str, config: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
        """Divergences of samples of p, and errors of the score estimators there, for every seed."""
        results: list[Result] = []
        for seed in seeds:
            quantities: dict[str, float] = {}
            for target in energies(config):
                points = target.sample(config.evaluation, stream(seed, name, target.name))
                quantities |= divergences(name, target, points, config)
                quantities |= score_errors(target, config, stream(seed, "score", target.name), device)
            results.append((quantities, {}))
        return results


@dataclass(frozen=True)
class PlaneTrained:
    """Samples of trained samplers, one a target.

    Attributes
    ----------
    sampler : Implicit or Flow
        How they are trained.
    """

    sampler: Implicit | Flow

    def measure(self, name: str, config: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
        """Divergences, samples for a figure, and the seconds that a step takes, for every seed."""
        targets = energies(config)
        trained = self.sampler.train(targets, config.noise_dim, config, Streams(seeds, name, device=device))
        drawn = trained.draw(config.evaluation, Streams(seeds, name, "evaluation", device=device))
        results: list[Result] = []
        for row, samples in enumerate(drawn):
            quantities: dict[str, float] = {}
            for target, points in zip(targets, samples, strict=True):
                quantities |= divergences(name, target, points, config)
            curves = {"samples": samples[:, :SHOWN].numpy().astype(np.float16)}
            if trained.snapshots:
                curves["snapshots"] = np.stack([snapshot[row] for snapshot in trained.snapshots]).astype(np.float16)
            curves |= self.sampler.step_seconds(targets[0], config.noise_dim, config, device, steps=50)
            results.append((quantities, {f"{name}/{curve}": values for curve, values in curves.items()}))
        return results


PROFILES = {
    "quick": Config(
        seeds=5,
        methods=("exact", "none", "ssge-paper", "ege", "ar-dae-2"),
        targets=("ring", "u2"),
        steps=200,
        n=200,
        ardae_inner=(2,),
        equal_time=(),
        flow_steps=0,
        evaluation=50_000,
    ),
    "cpu": Config(seeds=5),
    "full": Config(seeds=5, steps=5000, n=512, flow_steps=5000, evaluation=1_000_000),
}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared."""


def run_seeds(config: Config, shared: None, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Divergences of every method and target, for every seed.

    The KL divergence of q from p and the total variation distance on a grid (`exact` is what samples of p itself give),
    and the error of the score estimators at samples of p. Curves: samples, snapshots of the training, and seconds a
    step.
    """
    known = methods(config)
    return merged([known[name].measure(name, config, seeds, device) for name in config.methods])


def energies(config: Config) -> list[PlaneEnergy]:
    """The targets."""
    return [PLANE_ENERGIES[name] for name in config.targets]


def divergences(name: str, target: PlaneEnergy, points: Float[Tensor, "n 2"], config: Config) -> dict[str, float]:
    """The divergence of a method's samples from their target, and the total variation distance."""
    kl, tv = target.divergences(points, config.cells)
    return {f"{name}/{target.name}/kl": kl, f"{name}/{target.name}/tv": tv}


@torch.no_grad()
def score_errors(
    target: PlaneEnergy, config: Config, generator: torch.Generator, device: torch.device, repeats: int = 8
) -> dict[str, float]:
    """Relative error of the scores estimated from n samples of the target itself, and eigenfunctions that SSGE keeps.

    Where the sampler has reached its target, this is the error of the entropy gradient that holds it there.
    """
    samples = torch.stack([target.sample(config.n, generator) for _ in range(repeats)]).to(device)
    truth = target.score(samples)
    paper = SSGE().fit(samples)
    estimates = {
        "ssge-paper": paper,
        "ssge-fine": SSGE(energy=0.9999, median_factor=0.5).fit(samples),
        "ege": Tikhonov(ridge=config.ridge, median_factor=config.median_factor).fit(samples),
        "adaptive": Adaptive().fit(samples),
    }
    errors = {
        f"{name}/{target.name}/score_error": float(
            ((score(samples) - truth).square().sum() / truth.square().sum()).sqrt()
        )
        for name, score in estimates.items()
    }
    return errors | {f"ssge-paper/{target.name}/eigenfunctions": float(paper.n_eigen.double().mean())}
