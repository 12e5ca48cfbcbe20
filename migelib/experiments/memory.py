r"""What a memory of past batches does: scores at standing parameters, and informations in the loop of an optimiser.

The densities are none of the benchmark's. The settings of `Streaming` were chosen on other draws of pairs like "dense",
"sinh" and "clusters", among others, and none on "signs". Explained in :doc:`/book/memory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..scores import SSGE, Adaptive, ScoreEstimator, Streaming
from ..scores.mixtures import EllipticalMixture
from ..surrogates import mutual_information_surrogate
from .optimise import information, initial
from .randomness import stream

METRICS = {"relative_error": "1", "final": "nat", "worst": "nat", "updates": "1"}
TARGET = 50.0  # nats, of the maximisation
LAST = 5  # a minimum is judged over the last of so many parts of the updates

METHODS: dict[str, Callable[[], ScoreEstimator]] = {"streaming": Streaming, "default": Adaptive, "ssge": SSGE}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    families : tuple of str
        Densities of a pair: "dense", "sinh", "clusters", "signs" (see `draw_density`).
    dims : tuple of int
        Coordinates of the pair, half of them those of x.
    n, batches : int
        Samples of a batch, and batches at standing parameters.
    stateless_batches : int
        Of these, the last ones that the errors of estimators without a memory are averaged over.
    moved_dim : int
        Coordinates of the clusters that move to other places once, after half of the batches.
    loop_dims : tuple of int
        Coordinates of x and of z of the pairs whose information is optimised.
    decays : tuple of float
        Weights of the past in the moments of a Gaussian.
    reference : int
        Further samples of an update in place of a memory.
    updates : tuple of two int
        Updates of a minimisation, from 10 nats, and most of a maximisation, from half a nat to 50.
    learning_rate : float
        Adam's step size.
    """

    seeds: int
    families: tuple[str, ...] = ("dense", "sinh", "clusters", "signs")
    dims: tuple[int, ...] = (8, 24)
    n: int = 256
    batches: int = 12
    stateless_batches: int = 2
    moved_dim: int = 8
    loop_dims: tuple[int, ...] = (20,)
    decays: tuple[float, ...] = (0.0, 0.5, 0.9, 0.99)
    reference: int = 1024
    updates: tuple[int, int] = (1000, 650)
    learning_rate: float = 5e-3


PROFILES = {
    "quick": Config(seeds=5),
    "cpu": Config(seeds=5, batches=32, stateless_batches=4, loop_dims=(20, 100), updates=(1500, 700)),
}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(
    config: Config, shared: None, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Errors of the scores by method, density and batch, and the informations of the optimised pairs."""
    return [run_seed(config, seed, device) for seed in seeds]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """What one seed measures."""
    quantities, curves = {}, {}
    for family in config.families:
        for dim in config.dims:
            density = draw_density(family, dim, stream(seed, family, dim)).to(device)
            batches = drawn([density] * config.batches, config.n, stream(seed, family, dim, "batches"))
            for method in METHODS:
                seen = batches if method == "streaming" else batches[-config.stateless_batches :]
                errors = errors_of(METHODS[method](), seen)
                name = f"{method}/{family}-d{dim}/relative_error"
                quantities[name] = float(errors[-config.stateless_batches :].mean())
                if method == "streaming":
                    curves[name] = errors
    places = [draw_density("clusters", config.moved_dim, stream(seed, "moved", i)).to(device) for i in range(2)]
    moved = [places[2 * i >= config.batches] for i in range(config.batches)]
    errors = errors_of(Streaming(), drawn(moved, config.n, stream(seed, "moved", "batches")))
    curves[f"streaming/moved-d{config.moved_dim}/relative_error"] = errors
    for dim in config.loop_dims:
        for goal in ("min", "max"):
            for method, path in optimised(config, goal, dim, seed, device).items():
                quantities |= {f"{method}/{goal}-d{dim}/{key}": value for key, value in judged(path, goal).items()}
                curves[f"{method}/{goal}-d{dim}/information"] = path
    return quantities, {name: curve.astype(np.float32) for name, curve in curves.items()}


@dataclass(frozen=True)
class PairDensity:
    """A mixture of Gaussians, of which every coordinate may be mapped by sinh.

    Attributes
    ----------
    mixture : EllipticalMixture
        Density of the pair, its first half x.
    bent : bool
        Whether it is mapped.
    """

    mixture: EllipticalMixture
    bent: bool

    @property
    def dim(self) -> int:
        """Coordinates of the pair."""
        return self.mixture.means.shape[-1]

    def to(self, device: torch.device) -> PairDensity:
        """The density on a device."""
        parts = (getattr(self.mixture, name) for name in ("log_weights", "means", "scales", "df"))
        return PairDensity(EllipticalMixture(*(part.to(device) for part in parts)), self.bent)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw pairs."""
        weights = self.mixture.log_weights.exp().cpu()
        index = torch.multinomial(weights, n, True, generator=generator).to(self.mixture.means.device)
        noise = torch.randn(n, self.dim, 1, generator=generator, dtype=torch.float64).to(index.device)
        factor = torch.linalg.cholesky(self.mixture.scales)[index]
        points = self.mixture.means[index] + (factor @ noise)[..., 0]
        return points.sinh() if self.bent else points

    def difference(self, pairs: Float[Tensor, "n d"]) -> Float[Tensor, "n q"]:
        """The part for z of the joint score, less the score of z."""
        u = pairs.asinh() if self.bent else pairs
        z, start = u[..., self.dim // 2 :], self.dim // 2
        value = self.mixture.score(u)[..., start:] - self.mixture.marginal(start, self.dim).score(z)
        return value / z.cosh() if self.bent else value


def draw_density(family: str, dim: int, generator: torch.Generator) -> PairDensity:
    """Density of a pair of dim / 2 coordinates each, in double precision.

    "dense" is a Gaussian with the covariance of 2 dim random samples; "sinh" maps a Gaussian pair of correlation 0.8;
    "clusters" are three Gaussians of correlation 0.6 with random means; "signs" are two of correlation 0.8 and -0.8.

    Raises
    ------
    ValueError
        If there is no such family.
    """
    half = torch.eye(dim // 2, dtype=torch.float64)
    means = torch.zeros(1, dim, dtype=torch.float64)

    def correlated(rho: float) -> Tensor:
        return torch.cat([torch.cat([half, rho * half], -1), torch.cat([rho * half, half], -1)])

    if family == "dense":
        factor = torch.randn(dim, 2 * dim, generator=generator, dtype=torch.float64)
        scales = (factor @ factor.mT / (2 * dim))[None]
    elif family == "sinh":
        scales = correlated(0.8)[None]
    elif family == "clusters":
        means = 1.5 * torch.randn(3, dim, generator=generator, dtype=torch.float64)
        scales = correlated(0.6).expand(3, dim, dim)
    elif family == "signs":
        means, scales = means.expand(2, dim), torch.stack([correlated(0.8), correlated(-0.8)])
    else:
        raise ValueError(f"family: unknown name {family!r}, expected dense, sinh, clusters or signs")
    log_weights = means.new_full(means.shape[:1], -math.log(len(means)))
    return PairDensity(EllipticalMixture(log_weights, means, scales, means.new_tensor(math.inf)), family == "sinh")


def drawn(densities: Sequence[PairDensity], n: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """A batch of n pairs of each density, with the true differences of scores."""
    batches = [density.sample(n, generator) for density in densities]
    return [(batch, density.difference(batch)) for density, batch in zip(densities, batches, strict=True)]


def errors_of(estimator: ScoreEstimator, batches: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Relative error, batch by batch, of the difference of scores by which the surrogate multiplies dz / d theta."""
    errors = []
    for pairs, truth in batches:
        x, z = pairs.float().chunk(2, -1)
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(mutual_information_surrogate(x.detach(), z, estimator), z)
        errors.append(float((len(z) * gradient - truth).norm() / truth.norm()))
    return np.array(errors)


class MovingGaussian:
    """Scores of Gaussians whose moments are averages over the past, one Gaussian for each decay.

    Parameters
    ----------
    decays : Tensor [m]
        Weights of the past at a new batch.
    """

    def __init__(self, decays: Float[Tensor, "m"]) -> None:
        self.decays = decays[:, None, None]
        self.count, self.first, self.second = (torch.zeros_like(self.decays) for _ in range(3))

    def update(self, pairs: Float[Tensor, "m n d"]) -> None:
        """Add a batch to the sums."""
        self.count = self.decays * self.count + pairs.shape[-2]
        self.first = self.decays * self.first + pairs.sum(-2, keepdim=True)
        self.second = self.decays * self.second + pairs.mT @ pairs

    def difference(self, pairs: Float[Tensor, "m n d"]) -> Float[Tensor, "m n q"]:
        """The part for z of the joint score, less the score of z."""
        mean = self.first / self.count
        covariance = self.second / self.count - mean.mT @ mean
        centred, half = pairs - mean, pairs.shape[-1] // 2
        own = torch.linalg.solve(covariance[..., half:, half:], centred[..., half:], left=False)
        return own - torch.linalg.solve(covariance, centred, left=False)[..., half:]


def optimised(config: Config, goal: str, dim: int, seed: int, device: torch.device) -> dict[str, np.ndarray]:
    """Information [updates] of the pair that each method optimises, before every update."""
    decays = dict.fromkeys(f"decay-{decay:g}" for decay in config.decays)
    paths = trained(config, goal, dim, seed, config.decays, 0, device)
    found = dict(zip(decays, paths, strict=True))
    return found | {"reference": trained(config, goal, dim, seed, (0.0,), config.reference, device)[0]}


def trained(
    config: Config,
    goal: str,
    dim: int,
    seed: int,
    decays: Sequence[float],
    reference: int,
    device: torch.device,
) -> Float[np.ndarray, "m updates"]:
    r"""Information on the way of Adam, for pairs :math:`z = \rho x + \sqrt{1 - \rho^2}\, v` and rho = tanh theta."""
    generator = stream(seed, "loop", goal, dim, device=device)
    theta = initial(goal, "shared", dim).to(device).double().expand(len(decays), 1).clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], config.learning_rate, maximize=goal == "max")
    gaussian = MovingGaussian(torch.tensor(decays, dtype=torch.float64, device=device))
    path = []
    for _ in range(config.updates[goal == "max"]):
        path.append(information(theta.detach(), dim))
        rho = torch.tanh(theta)[..., None]
        draw = torch.randn(
            2, 1, config.n + reference, dim, generator=generator, device=device, dtype=torch.float64
        ).expand(2, len(decays), -1, -1)
        x, z = draw[0], rho * draw[0] + (1 - rho**2).sqrt() * draw[1]
        pairs = torch.cat([x, z], -1).detach()
        gaussian.update(pairs)
        difference = gaussian.difference(pairs[:, : config.n])
        optimiser.zero_grad()
        (difference * z[:, : config.n]).sum(-1).mean(-1).sum().backward()
        optimiser.step()
    return torch.stack(path, -1).cpu().numpy()


def judged(path: Float[np.ndarray, "updates"], goal: str) -> dict[str, float]:
    """Mean and maximum over the last fifth of a minimisation; updates until a maximisation is there, or all."""
    if goal == "min":
        last = path[-len(path) // LAST :]
        return {"final": float(last.mean()), "worst": float(last.max())}
    there = path >= TARGET
    return {"updates": float(there.argmax() if there.any() else len(path))}
