r"""Fitting an implicit sampler beyond the plane: a funnel of 32 dimensions, a logistic regression of 31.

Where no grid reaches, the samples' moments are compared with those of the target, and the samples themselves where the
target can be sampled. The methods are those of `sampler_plane`, with the default estimator for `ege`.
Explained in :doc:`/book/implicit-vi`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..scores import Adaptive
from ..tasks.energies import FunnelEnergy, LogisticRegression, Moments, breast_cancer_posterior
from .metrics import maximum_mean_discrepancy
from .randomness import Streams, stream
from .samplers import Flow, Implicit, Result, Training, check_names, merged, trained_methods

METRICS = {"mmd": "1", "mean_error": "1", "sd_error": "1", "gaussian_kl": "nat"}

EVALUATION = 20_000  # samples that moments are taken of
COMPARED = 2_000  # samples in a maximum mean discrepancy


@dataclass(frozen=True)
class Config(Training):
    """Settings: those of `Training`, and the following. The noise has as many coordinates as the target.

    Attributes
    ----------
    methods : tuple of str
        What is compared, of the keys of `methods`.
    targets : tuple of str
        Targets, of `PROBLEMS`.

    Raises
    ------
    ValueError
        If a method or a target is unknown.
    """

    steps: int = 300
    hidden: tuple[int, ...] = (128, 128)
    equal_time: tuple[float, ...] = (0.0, 6.0)
    methods: tuple[str, ...] = (
        "exact",
        "none",
        "ssge-paper",
        "ege",
        "ar-dae-2",
        "ar-dae-5",
        "ar-dae-5-equal-time",
        "flow",
    )
    targets: tuple[str, ...] = ("funnel-32d", "logistic")

    def __post_init__(self) -> None:
        check_names("methods", self.methods, methods(self))
        check_names("targets", self.targets, PROBLEMS)


@dataclass(frozen=True, eq=False)
class HighProblem:
    """A target and what is known of it.

    Attributes
    ----------
    target : FunnelEnergy or LogisticRegression
        The energy.
    moments : Moments
        Mean and covariance, on the CPU.
    sample : callable or None
        Draws n points of the target, where there is a way.
    """

    target: FunnelEnergy | LogisticRegression
    moments: Moments
    sample: Callable[[int, torch.Generator], Float[Tensor, "n d"]] | None = None


def funnel(device: torch.device) -> HighProblem:
    """Neal's funnel in 32 dimensions."""
    del device  # it has no data
    target = FunnelEnergy()
    return HighProblem(target, target.moments(), target.sample)


def logistic(device: torch.device) -> HighProblem:
    """The posterior of a logistic regression, whose moments come from a long run of NUTS."""
    target, moments = breast_cancer_posterior()
    return HighProblem(replace(target, features=target.features.to(device), signs=target.signs.to(device)), moments)


PROBLEMS: dict[str, Callable[[torch.device], HighProblem]] = {"funnel-32d": funnel, "logistic": logistic}


def methods(config: Config) -> dict[str, HighExact | HighTrained]:
    """What these settings can compare, by name."""
    trained = trained_methods(Adaptive(), config)
    return {"exact": HighExact()} | {name: HighTrained(sampler) for name, sampler in trained.items()}


@dataclass(frozen=True)
class HighExact:
    """Samples of the target itself, where it can be sampled."""

    def measure(
        self, name: str, problem: HighProblem, config: Config, seeds: Sequence[int], device: torch.device
    ) -> list[Result]:
        """Distances from the target, for every seed."""
        if problem.sample is None:
            return [({}, {}) for _ in seeds]
        label = (name, problem.target.name)
        return [(distances(name, problem, problem.sample(EVALUATION, stream(s, *label)), s), {}) for s in seeds]


@dataclass(frozen=True)
class HighTrained:
    """Samples of a trained sampler.

    Attributes
    ----------
    sampler : Implicit or Flow
        How it is trained.
    """

    sampler: Implicit | Flow

    def measure(
        self, name: str, problem: HighProblem, config: Config, seeds: Sequence[int], device: torch.device
    ) -> list[Result]:
        """Distances from the target, and the seconds that a step takes, for every seed."""
        target = problem.target
        streams = Streams(seeds, name, target.name, device=device)
        drawn = self.sampler.train([target], target.dim, config, streams).draw(EVALUATION, streams)[:, 0]
        results: list[Result] = []
        for seed, samples in zip(seeds, drawn, strict=True):
            curves = self.sampler.step_seconds(target, target.dim, config, device, steps=10)
            named = {f"{name}/{target.name}/{curve}": values for curve, values in curves.items()}
            results.append((distances(name, problem, samples, seed), named))
        return results


PROFILES = {
    "quick": Config(
        seeds=5,
        methods=("exact", "none", "ssge-paper", "ege", "ar-dae-2"),
        targets=("funnel-32d",),
        steps=30,
        n=128,
        ardae_inner=(2,),
        equal_time=(),
        flow_steps=0,
    ),
    "cpu": Config(seeds=5),
    "full": Config(seeds=5, steps=5000, n=512, flow_steps=5000),
}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> list[HighProblem]:
    """The targets, with their data on the device."""
    return [PROBLEMS[name](device) for name in config.targets]


def run_seeds(config: Config, shared: list[HighProblem], seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Distances between the samples of every method and the targets, for every seed. Curves: seconds a step."""
    known = methods(config)
    return merged(
        [known[name].measure(name, problem, config, seeds, device) for problem in shared for name in config.methods]
    )


def distances(name: str, problem: HighProblem, samples: Float[Tensor, "n d"], seed: int) -> dict[str, float]:
    """Errors of the moments of a method's samples and, where the target can be sampled, their discrepancy from it."""
    target = problem.target
    errors = moment_errors(samples, problem.moments)
    if problem.sample is not None:
        reference = problem.sample(COMPARED, stream(seed, "reference", target.name))
        errors["mmd"] = maximum_mean_discrepancy(samples[:COMPARED], reference)
    return {f"{name}/{target.name}/{metric}": value for metric, value in errors.items()}


def moment_errors(samples: Float[Tensor, "n d"], moments: Moments) -> dict[str, float]:
    """Distances of the samples' mean and covariance from those of the target.

    Returns
    -------
    dict
        mean_error, root mean square over the coordinates of the difference of the means in standard deviations of the
        target; sd_error, the same of the ratio of the standard deviations less 1; gaussian_kl, the divergence of the
        Gaussian with the samples' moments from that with the target's; a billionth of the target's covariance is added
        to the samples', so that it is finite where they lie in a subspace.
    """
    samples = samples.double()
    mean, covariance = samples.mean(0), samples.mT.cov() + 1e-9 * moments.covariance
    scale = moments.covariance.diagonal().sqrt()
    shift = mean - moments.mean
    factor = torch.linalg.cholesky(moments.covariance)
    white = torch.linalg.solve_triangular(factor, torch.stack([shift], -1), upper=False)
    ratio = torch.cholesky_solve(covariance, factor)
    log_det = torch.linalg.slogdet(covariance).logabsdet - 2 * factor.diagonal().log().sum()
    return {
        "mean_error": float((shift / scale).square().mean().sqrt()),
        "sd_error": float((covariance.diagonal().sqrt() / scale - 1).square().mean().sqrt()),
        "gaussian_kl": float((ratio.trace() + white.square().sum() - len(mean) - log_det) / 2),
    }
