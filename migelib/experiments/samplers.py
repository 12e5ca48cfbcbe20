r"""Samplers without a density, and flows, fitted to energies: what `sampler_plane` and `sampler_high` share.

The samplers of all seeds and targets of one dimension are trained at once, as the entries of one stack: the targets of
the first seed, those of the second, and so on.
Explained in :doc:`/book/implicit-vi`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..scores import SSGE, DenoisingNetwork, ScoreEstimator
from ..surrogates import kl_surrogate
from ..tasks.energies import FunnelEnergy, LogisticRegression, PlaneEnergy
from .metrics import clock
from .randomness import Streams, seeded
from .training import Stack, adam, descend

Energy = PlaneEnergy | FunnelEnergy | LogisticRegression
LogProb = Callable[[Float[Tensor, "e n d"]], Float[Tensor, "e n"]]
Result = tuple[dict[str, float], dict[str, np.ndarray]]  # quantities and curves of one seed

SHOWN = 200  # samples of each target that a record keeps for a figure


@dataclass(frozen=True)
class Training:
    """Settings of the training of samplers, in the plane and beyond it.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    steps, n, learning_rate, hidden :
        Training of a sampler by Adam with a learning rate that falls as a cosine, samples a step, and the sampler's
        hidden layers.
    first_temper, tempered : float
        The log density is multiplied by a factor that rises from `first_temper` to 1 over this share of the steps: the
        annealed divergence of Rezende & Mohamed [ICML 2015, sec. 6.1], for every method.
    ardae_inner : tuple of int
        Steps of the AR-DAE network for each step of the sampler, one method each.
    ardae_hidden, ardae_noise, ardae_learning_rate :
        That network: width, scale of the noise, Adam's learning rate.
    equal_time : tuple of float
        For each of `ardae_inner`, by how much its steps are multiplied to take the processor time of `ege`; measured
        on single runs, see the curves <method>/step_seconds. Empty or 0: there is no such method.
    flow_steps : int
        Steps of the normalising flow; 0: there is no such method.
    """

    seeds: int
    steps: int = 1000
    n: int = 256
    learning_rate: float = 3e-3
    hidden: tuple[int, ...] = (64, 64, 64)
    first_temper: float = 0.15
    tempered: float = 0.4
    ardae_inner: tuple[int, ...] = (2, 5)
    ardae_hidden: int = 64
    ardae_noise: float = 0.2
    ardae_learning_rate: float = 1e-2
    equal_time: tuple[float, ...] = ()
    flow_steps: int = 400


def check_names(field: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError, which lists what there is, unless every name of a field of a Config is known."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{field}: unknown {', '.join(unknown)}; with these settings there are {', '.join(known)}")


@dataclass(frozen=True)
class Implicit:
    """A sampler without a density: a perceptron of noise.

    Attributes
    ----------
    estimator : ScoreEstimator or None
        Estimates the score of the sampler's density; None for AR-DAE, or for no entropy term.
    inner : int
        Steps of an AR-DAE network for each step of the sampler; 0 for the other methods.
    step_factor : float
        Multiplies the number of steps.
    snapshots : tuple of float
        Shares of the training at which samples are kept for a figure.
    """

    estimator: ScoreEstimator | None = None
    inner: int = 0
    step_factor: float = 1.0
    snapshots: tuple[float, ...] = ()

    def train(self, targets: Sequence[Energy], noise_dim: int, config: Training, streams: Streams) -> Sampler:
        """Minimise the divergence of a stack of samplers, one for each seed and target."""
        steps = max(1, round(config.steps * self.step_factor))
        network = perceptrons((noise_dim, *config.hidden, targets[0].dim), len(targets), streams)
        sampler = Sampler(network, noise_dim, len(targets))
        kept = sampler.noise(SHOWN, streams)  # drawn in any case, so that the snapshots do not change what follows
        moments = {round(share * steps) for share in self.snapshots}
        estimator = Denoiser(targets, config, streams) if self.inner else self.estimator
        optimiser = adam(network.parameters(), config.learning_rate)
        schedule = CosineAnnealingLR(optimiser, steps)
        log_prob = joint_log_prob(targets)
        for step in range(steps):
            if step in moments:
                sampler.keep(kept)
            for _ in range(self.inner):
                with torch.no_grad():
                    samples = network(sampler.noise(config.n, streams))
                estimator.step(samples)
            z = network(sampler.noise(config.n, streams))
            tempered = tempering(log_prob, step / steps, config)
            descend(optimiser, -tempered(z).mean(-1) if estimator is None else kl_surrogate(z, tempered, estimator))
            schedule.step()
        if steps in moments:
            sampler.keep(kept)
        return sampler

    def step_seconds(
        self, target: Energy, noise_dim: int, config: Training, device: torch.device, steps: int
    ) -> dict[str, np.ndarray]:
        """Seconds that one step takes when one sampler of one target is trained alone; of the processor on a CPU."""
        alone, streams = replace(self, step_factor=1.0, snapshots=()), Streams([0], "timing", device=device)
        started = clock(device)
        alone.train([target], noise_dim, replace(config, steps=steps), streams)
        return {"step_seconds": np.array((clock(device) - started) / steps)}


@dataclass(frozen=True)
class Flow:
    """A normalising flow, whose density is known: no score has to be estimated."""

    def train(self, targets: Sequence[Energy], noise_dim: int, config: Training, streams: Streams) -> Sampler:
        """Minimise the divergence of a stack of flows, one for each seed and target; their noise has its dimension."""
        del noise_dim
        dim, steps = targets[0].dim, config.flow_steps
        flow = stacked(lambda: SplineFlow(dim), len(targets), streams)
        sampler = Sampler(lambda noise: flow(noise)[0], dim, len(targets))
        optimiser = adam(flow.parameters(), config.learning_rate)
        schedule = CosineAnnealingLR(optimiser, steps)
        log_prob = joint_log_prob(targets)
        for step in range(steps):
            z, log_det = flow(sampler.noise(config.n, streams))
            descend(optimiser, -(tempering(log_prob, step / steps, config)(z) + log_det).mean(-1))
            schedule.step()
        return sampler

    def step_seconds(
        self, target: Energy, noise_dim: int, config: Training, device: torch.device, steps: int
    ) -> dict[str, np.ndarray]:
        """A flow is not part of the comparison at equal time."""
        return {}


class Sampler:
    """A stack of samplers, one for each seed and target: the targets of the first seed, those of the second, ...

    Parameters
    ----------
    network : callable
        From noise [e, n, p] to samples [e, n, d], where e is the number of seeds times that of the targets.
    noise_dim : int
        p.
    targets : int
        Number of targets.

    Attributes
    ----------
    snapshots : list of arrays [seeds, t, s, d]
        What `keep` kept, for t targets.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], noise_dim: int, targets: int) -> None:
        self.network, self.noise_dim, self.targets = network, noise_dim, targets
        self.snapshots: list[np.ndarray] = []

    def noise(self, n: int, streams: Streams) -> Float[Tensor, "e n p"]:
        """Draw noise for n samples of every target, from the stream of each seed."""
        return streams.normal(self.targets, n, self.noise_dim).flatten(0, 1)

    def keep(self, noise: Float[Tensor, "e s p"]) -> None:
        """Keep the samples of this noise for a figure."""
        self.snapshots.append(self._by_seed(self.network(noise).detach().cpu()).numpy())

    @torch.no_grad()
    def draw(self, n: int, streams: Streams) -> Float[Tensor, "seeds t n d"]:
        """Draw n samples of every sampler, on the CPU; a seed's samplers get the same noise. In chunks."""
        samples = []
        for chunk in streams.normal(1, n, self.noise_dim).split(20_000, 2):
            samples.append(self.network(chunk.expand(-1, self.targets, -1, -1).flatten(0, 1)).cpu())
        return self._by_seed(torch.cat(samples, 1))

    def _by_seed(self, samples: Float[Tensor, "e n d"]) -> Float[Tensor, "seeds t n d"]:
        return samples.unflatten(0, (-1, self.targets))


def perceptrons(sizes: Sequence[int], count: int, streams: Streams) -> Stack:
    """Stack of perceptrons, `count` a seed; SiLU between the layers, initial weights uniform with variance 1 / inputs.

    Parameters
    ----------
    sizes : sequence of int
        Widths of the layers, input and output included.
    count : int
        Networks a seed.
    streams : Streams
        Of the initial weights, which lie on its device.

    Returns
    -------
    Stack
        From inputs [e, n, p] to outputs [e, n, q], where e is the number of seeds times `count`.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs, device=streams.device), nn.SiLU()]
    stack = Stack([nn.Sequential(*layers[:-1])] * (len(streams) * count))
    weights = stack.parameters()
    with torch.no_grad():
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            outputs, inputs = weight.shape[1:]
            bound = math.sqrt(3 / inputs)
            weight.copy_(((2 * streams.uniform(count, inputs, outputs) - 1) * bound).flatten(0, 1).mT)
            bias.copy_(((2 * streams.uniform(count, outputs) - 1) * bound).flatten(0, 1))
    return stack


def stacked(make: Callable[[], nn.Module], count: int, streams: Streams) -> Stack:
    """Stack of networks with their own initial weights, `count` a seed, drawn under the first state of its stream."""
    networks: list[nn.Module] = []
    for generator in streams.generators:
        networks += seeded(lambda: [make() for _ in range(count)], generator.initial_seed())
    return Stack([network.to(streams.device) for network in networks])


class SplineFlow(nn.Module):
    """Autoregressive flow of zuko from noise to samples: rational-quadratic splines, then two affine layers.

    The splines act on [-5, 5] [Durkan et al., NeurIPS 2019]; the affine layers give targets beyond it.

    Parameters
    ----------
    dim : int
        Number of coordinates.
    """

    def __init__(self, dim: int) -> None:
        from zuko.flows.autoregressive import MaskedAutoregressiveTransform
        from zuko.lazy import LazyComposedTransform
        from zuko.transforms import MonotonicRQSTransform

        super().__init__()
        orders = torch.arange(dim), torch.arange(dim).flip(0)
        splines = {"univariate": partial(MonotonicRQSTransform, slope=1e-3), "shapes": [(8,), (8,), (7,)]}
        layers = [
            MaskedAutoregressiveTransform(dim, order=orders[i % 2], hidden_features=(64, 64), **kind)
            for i, kind in enumerate((splines, splines, splines, {}, {}))
        ]
        self.layers = LazyComposedTransform(*layers)

    def forward(self, noise: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
        """Samples and the log determinant of the map's derivative."""
        return self.layers(None).call_and_ladj(noise)


class Denoiser:
    r"""AR-DAE networks, one for each seed and target: a score estimator whose `fit` only standardises.

    The network, the loss and the standardisation are those of `migelib.scores.DenoisingScore`; here all networks are
    trained at once, by `step`, on samples drawn afresh for every step.

    Parameters
    ----------
    targets : sequence of energies
        The targets.
    config : Training
        Width of the networks, scale of the noise in standard deviations of the samples, and Adam's learning rate.
    streams : Streams
        Of the noise and of the initial weights.
    """

    def __init__(self, targets: Sequence[Energy], config: Training, streams: Streams) -> None:
        dim = targets[0].dim
        self.network = stacked(lambda: DenoisingNetwork(dim, config.ardae_hidden, blocks=2), len(targets), streams)
        self.targets, self.scale, self.streams = len(targets), config.ardae_noise, streams
        self.optimiser = adam(self.network.parameters(), config.ardae_learning_rate)

    def step(self, samples: Float[Tensor, "e n d"]) -> None:
        """One step of Adam on the denoising loss of the samples."""
        mean, scale = _standardisation(samples)
        n, dim = samples.shape[-2:]
        drawn = self.streams.normal(self.targets, n, dim + 1).flatten(0, 1)
        u, sigma = drawn[..., :-1], self.scale * drawn[..., -1:]
        score = self.network((samples - mean) / scale + sigma * u, sigma)
        descend(self.optimiser, (u + sigma * score).square().sum(-1).mean(-1))

    def fit(self, samples: Float[Tensor, "e n d"]) -> Callable[[Tensor], Tensor]:
        """Score function of the networks as they are, in the units of these samples."""
        mean, scale = _standardisation(samples)

        @torch.no_grad()
        def score(points: Float[Tensor, "e m d"]) -> Float[Tensor, "e m d"]:
            return self.network((points - mean) / scale, torch.zeros_like(points[..., :1])) / scale

        return score


def _standardisation(samples: Tensor) -> tuple[Tensor, Tensor]:
    return samples.mean(-2, keepdim=True), samples.std(-2, keepdim=True, correction=0).clamp_min(1e-6)


def joint_log_prob(targets: Sequence[Energy]) -> LogProb:
    """Log density of the samples of a stack, each entry under its own target."""

    def log_prob(z: Float[Tensor, "e n d"]) -> Float[Tensor, "e n"]:
        of_target = z.unflatten(0, (-1, len(targets))).unbind(1)
        return torch.stack([t.log_prob(points) for t, points in zip(targets, of_target, strict=True)], 1).flatten(0, 1)

    return log_prob


def tempering(log_prob: LogProb, share: float, config: Training) -> LogProb:
    """Log density times the factor of this share of the training."""
    rise = min(1.0, share / config.tempered)
    factor = config.first_temper + (1 - config.first_temper) * rise
    return lambda z: factor * log_prob(z)


def trained_methods(
    ege: ScoreEstimator, config: Training, snapshots: tuple[float, ...] = ()
) -> dict[str, Implicit | Flow]:
    """The ways to train a sampler, given the estimator of `ege`, and the shares of the training that a figure shows."""
    chosen: dict[str, Implicit | Flow] = {
        "none": Implicit(),
        "ssge-paper": Implicit(SSGE(), snapshots=snapshots),
        "ege": Implicit(ege, snapshots=snapshots),
    }
    if config.flow_steps:
        chosen["flow"] = Flow()
    chosen |= {f"ar-dae-{inner}": Implicit(inner=inner) for inner in config.ardae_inner}
    return chosen | {
        f"ar-dae-{inner}-equal-time": Implicit(inner=inner, step_factor=factor)
        for inner, factor in zip(config.ardae_inner, config.equal_time, strict=False)
        if factor
    }


def merged(parts: Sequence[list[Result]]) -> list[Result]:
    """Results of every seed, from those of every method or target."""
    results: list[Result] = []
    for of_seed in zip(*parts, strict=True):
        quantities = {name: value for part, _ in of_seed for name, value in part.items()}
        results.append((quantities, {name: curve for _, part in of_seed for name, curve in part.items()}))
    return results
