r"""Fitting an implicit sampler to an energy: :math:`\min \mathrm{KL}(q \,\|\, p)` without the density of q.

The entropy half of the EGE paper [Wen et al., Knowledge-Based Systems 224, 2021] against no entropy term, against
AR-DAE [Lim et al., ICML 2020] at equal steps and at equal time, and against a normalising flow, which has a density.
Explained in :doc:`/book/implicit-vi`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.lazy import LazyComposedTransform
from zuko.transforms import MonotonicRQSTransform

from ..scores import SSGE, Adaptive, DenoisingNetwork, ScoreEstimator, Tikhonov
from ..surrogates import kl_surrogate
from ..tasks.energies import (
    PLANE_ENERGIES,
    FunnelEnergy,
    LogisticRegression,
    Moments,
    PlaneEnergy,
    breast_cancer_posterior,
)
from .metrics import maximum_mean_discrepancy
from .randomness import seeded, stream

Energy = PlaneEnergy | FunnelEnergy | LogisticRegression

UNITS = {
    "kl": "nat",
    "tv": "1",
    "score_error": "1",
    "eigenfunctions": "1",
    "mmd": "1",
    "mean_error": "1",
    "sd_error": "1",
    "gaussian_kl": "nat",
}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    targets : tuple of str
        Targets in the plane.
    steps, n, learning_rate, noise_dim, hidden :
        Training of the sampler by Adam with a learning rate that falls as a cosine, samples a step, and the sampler:
        noise coordinates, and widths of its hidden layers.
    first_temper, tempered : float
        The log density is multiplied by a factor that rises from `first_temper` to 1 over this share of the steps: the
        annealed divergence of Rezende & Mohamed [ICML 2015, sec. 6.1], for every method.
    ridge, median_factor : float
        Of `ege` in the plane: `Tikhonov` with this ridge and this multiple of the median width.
    ardae_inner : tuple of int
        Steps of the AR-DAE network for each step of the sampler.
    ardae_hidden, ardae_noise, ardae_learning_rate :
        That network: width, scale of the noise, Adam's learning rate.
    equal_time : tuple of float
        For each of `ardae_inner`, by how much its steps are multiplied to take the processor time of `ege`; measured
        on single runs, see the curves <method>/step_seconds. Empty or 0: not run.
    high_equal_time : tuple of float
        The same for the targets with more dimensions.
    flow_steps : int
        Steps of the normalising flow; 0: not run.
    high_dimensional : bool
        Whether the 32-dimensional funnel and the logistic regression are run.
    high_steps, high_hidden :
        Steps and hidden layers there; the noise has as many coordinates as the target.
    evaluation : int
        Samples that a divergence is measured with.
    cells : int
        The grid has cells x cells.
    snapshots : tuple of float
        Shares of the training at which samples are kept for a figure.
    """

    seeds: int
    targets: tuple[str, ...] = tuple(PLANE_ENERGIES)
    steps: int = 1000
    n: int = 256
    learning_rate: float = 3e-3
    noise_dim: int = 8
    hidden: tuple[int, ...] = (64, 64, 64)
    first_temper: float = 0.15
    tempered: float = 0.4
    ridge: float = 1e-3
    median_factor: float = 0.25
    ardae_inner: tuple[int, ...] = (2, 5)
    ardae_hidden: int = 64
    ardae_noise: float = 0.2
    ardae_learning_rate: float = 1e-2
    equal_time: tuple[float, ...] = (0.9, 0.46)
    high_equal_time: tuple[float, ...] = (0.0, 6.0)
    flow_steps: int = 400
    high_dimensional: bool = True
    high_steps: int = 300
    high_hidden: tuple[int, ...] = (128, 128)
    evaluation: int = 200_000
    cells: int = 80
    snapshots: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)


PROFILES = {
    "quick": Config(
        seeds=5,
        targets=("ring", "u2"),
        steps=200,
        n=200,
        ardae_inner=(2,),
        equal_time=(),
        flow_steps=0,
        high_dimensional=False,
        evaluation=50_000,
    ),
    "cpu": Config(seeds=5),
    "full": Config(seeds=5, steps=5000, n=512, flow_steps=5000, high_steps=5000, evaluation=1_000_000),
}


@dataclass(frozen=True)
class Method:
    """How a sampler is trained.

    Attributes
    ----------
    estimator : ScoreEstimator or None
        Estimates the score of the sampler's density; None for AR-DAE, or for no entropy term.
    inner : int
        Steps of an AR-DAE network for each step of the sampler; 0 for the other methods.
    step_factor : float
        Multiplies the number of steps.
    """

    estimator: ScoreEstimator | None = None
    inner: int = 0
    step_factor: float = 1.0


def methods(config: Config, plane: bool) -> dict[str, Method]:
    """The ways to train a sampler of a target in the plane, or in many dimensions."""
    ege = Tikhonov(ridge=config.ridge, median_factor=config.median_factor) if plane else Adaptive()
    chosen = {"none": Method(), "ssge-paper": Method(SSGE()), "ege": Method(ege)}
    chosen |= {f"ar-dae-{inner}": Method(inner=inner) for inner in config.ardae_inner}
    factors = config.equal_time if plane else config.high_equal_time
    return chosen | {
        f"ar-dae-{inner}-equal-time": Method(inner=inner, step_factor=factor)
        for inner, factor in zip(config.ardae_inner, factors, strict=False)
        if factor
    }


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Divergences of every method and target, for one seed.

    In the plane: the KL divergence of q from p and the total variation distance on a grid (`exact` is what samples of p
    itself give), and the error of the score estimators at samples of p. Elsewhere: distances of the moments, and of the
    samples where p can be sampled. Curves: samples of every method, and processor seconds a step of a single run.
    """
    targets = [PLANE_ENERGIES[name] for name in config.targets]
    quantities, curves = {}, {}
    trained = {}
    for name, method in methods(config, plane=True).items():
        sizes = (config.noise_dim, *config.hidden, 2)
        sampler, snapshots = train_sampler(targets, method, sizes, config.steps, config, stream(seed, name), device)
        trained[name] = partial(_draw, sampler, config.noise_dim, generator=stream(seed, name, "evaluation"))
        if snapshots and name in ("ege", "ssge-paper"):
            curves[f"{name}/snapshots"] = np.stack(snapshots).astype(np.float16)
        curves[f"{name}/step_seconds"] = np.array(step_seconds(targets[0], method, sizes, config, device))
    if config.flow_steps:
        flow = train_flow(targets, config.flow_steps, config, stream(seed, "flow"), device)
        trained["flow"] = partial(flow.sample, generator=stream(seed, "flow", "evaluation"))
    for name, draw in trained.items():
        samples = draw(config.evaluation)
        curves[f"{name}/samples"] = samples[:, :200].numpy().astype(np.float16)
        for target, points in zip(targets, samples, strict=True):
            kl, tv = target.divergences(points, config.cells)
            quantities |= {f"{name}/{target.name}/kl": kl, f"{name}/{target.name}/tv": tv}
    for target in targets:
        points = target.sample(config.evaluation, stream(seed, "exact", target.name))
        kl, tv = target.divergences(points, config.cells)
        quantities |= {f"exact/{target.name}/kl": kl, f"exact/{target.name}/tv": tv}
        quantities |= score_errors(target, config, stream(seed, "score", target.name), device)
    if config.high_dimensional:
        high_quantities, high_curves = _high_dimensional(config, seed, device)
        quantities, curves = quantities | high_quantities, curves | high_curves
    return quantities, curves


def train_sampler(
    targets: Sequence[Energy],
    method: Method,
    sizes: Sequence[int],
    steps: int,
    config: Config,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Stack, list[np.ndarray]]:
    """Minimise the divergence of a stack of samplers, one a target.

    Returns
    -------
    Stack
        The samplers.
    list of arrays [s, 200, 2]
        Samples at the shares `config.snapshots` of the training, of the same noise.
    """
    steps = max(1, round(steps * method.step_factor))
    sampler = Stack(sizes, len(targets), generator, device)
    optimiser = torch.optim.Adam(sampler.weights, lr=config.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    log_prob = joint_log_prob(targets)
    shape = (len(targets), config.n, sizes[0])
    kept, snapshots = torch.randn(len(targets), 200, sizes[0], generator=generator).to(device), []
    moments = {round(share * steps) for share in config.snapshots}
    denoiser = None
    if method.inner:
        denoiser = DenoiserStack(
            targets[0].dim,
            len(targets),
            config.ardae_hidden,
            2,
            config.ardae_noise,
            config.ardae_learning_rate,
            generator,
            device,
        )
    for step in range(steps):
        if step in moments:
            snapshots.append(sampler(kept).detach().cpu().numpy())
        for _ in range(method.inner):
            with torch.no_grad():
                samples = sampler(torch.randn(shape, generator=generator).to(device))
            denoiser.step(samples)
        z = sampler(torch.randn(shape, generator=generator).to(device))
        estimator = denoiser or method.estimator
        tempered = tempering(log_prob, step / steps, config)
        loss = -tempered(z).mean(-1).sum() if estimator is None else kl_surrogate(z, tempered, estimator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()
    if steps in moments:
        snapshots.append(sampler(kept).detach().cpu().numpy())
    return sampler, snapshots


@torch.no_grad()
def _draw(sampler: Stack, noise_dim: int, n: int, generator: torch.Generator) -> Float[Tensor, "s n d"]:
    """Draw n samples of every sampler, of the same noise, in chunks."""
    count = len(sampler.weights[0])
    chunks = []
    for noise in torch.randn(n, noise_dim, generator=generator).split(20_000):
        chunks.append(sampler(noise.to(sampler.weights[0]).expand(count, -1, -1)).cpu())
    return torch.cat(chunks, 1)


def step_seconds(
    target: Energy, method: Method, sizes: Sequence[int], config: Config, device: torch.device, steps: int = 50
) -> float:
    """Processor seconds that one step takes when a sampler of one target is trained alone."""
    method = Method(method.estimator, method.inner)
    started = time.process_time()
    train_sampler([target], method, sizes, steps, config, stream(0, "timing"), device)
    return (time.process_time() - started) / steps


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
        "ege": methods(config, plane=True)["ege"].estimator.fit(samples),
        "adaptive": Adaptive().fit(samples),
    }
    errors = {
        f"{name}/{target.name}/score_error": float(
            ((score(samples) - truth).square().sum() / truth.square().sum()).sqrt()
        )
        for name, score in estimates.items()
    }
    return errors | {f"ssge-paper/{target.name}/eigenfunctions": float(paper.n_eigen.double().mean())}


class SplineFlow(nn.Module):
    """Autoregressive flow of zuko from noise to samples: rational-quadratic splines, then two affine layers.

    The splines act on [-5, 5] [Durkan et al., NeurIPS 2019]; the affine layers give targets beyond it.

    Parameters
    ----------
    dim : int
        Number of coordinates.
    """

    def __init__(self, dim: int) -> None:
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


@dataclass(frozen=True, eq=False)
class FlowStack:
    """Flows of one shape, one a target, with stacked weights.

    Attributes
    ----------
    flow : SplineFlow
        Gives the shape.
    weights, buffers : dict of tensors
        Stacked along the first axis.
    dim : int
        Number of coordinates.
    """

    flow: SplineFlow
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    dim: int

    def __call__(self, noise: Float[Tensor, "s n d"]) -> tuple[Float[Tensor, "s n d"], Float[Tensor, "s n"]]:
        """Samples and log determinants of every flow."""
        evaluate = torch.vmap(lambda w, b, x: torch.func.functional_call(self.flow, (w, b), (x,)))
        return evaluate(self.weights, self.buffers, noise)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "s n d"]:
        """Draw n samples of every flow, of the same noise, in chunks."""
        like = next(iter(self.weights.values()))
        chunks = torch.randn(n, self.dim, generator=generator).split(20_000)
        return torch.cat([self(noise.to(like).expand(len(like), -1, -1))[0].cpu() for noise in chunks], 1)


def train_flow(
    targets: Sequence[Energy], steps: int, config: Config, generator: torch.Generator, device: torch.device
) -> FlowStack:
    """Minimise the divergence of a stack of flows, whose density is known: no score has to be estimated."""
    dim = targets[0].dim
    flows = seeded(lambda: [SplineFlow(dim) for _ in targets], generator.initial_seed())
    weights, buffers = torch.func.stack_module_state(flows)
    weights = {name: weight.detach().to(device).requires_grad_() for name, weight in weights.items()}
    stack = FlowStack(flows[0].to(device), weights, {name: b.to(device) for name, b in buffers.items()}, dim)
    optimiser = torch.optim.Adam(weights.values(), lr=config.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    log_prob = joint_log_prob(targets)
    for step in range(steps):
        z, log_det = stack(torch.randn(len(targets), config.n, dim, generator=generator).to(device))
        loss = -(tempering(log_prob, step / steps, config)(z) + log_det).mean(-1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()
    return stack


def _high_dimensional(
    config: Config, seed: int, device: torch.device
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Distances between the samples of every method and the two targets beyond the plane, and seconds a step."""
    funnel = FunnelEnergy()
    logistic, reference = breast_cancer_posterior()
    quantities, curves = {}, {}
    for target, moments in ((funnel, funnel.moments()), (logistic, reference)):
        drawn = {}
        for name, method in methods(config, plane=False).items():
            generator = stream(seed, name, target.name)
            sizes = (target.dim, *config.high_hidden, target.dim)
            sampler, _ = train_sampler([target], method, sizes, config.high_steps, config, generator, device)
            drawn[name] = _draw(sampler, target.dim, 20_000, generator)[0]
            seconds = step_seconds(target, method, sizes, config, device, steps=10)
            curves[f"{name}/{target.name}/step_seconds"] = np.array(seconds)
        if config.flow_steps:
            generator = stream(seed, "flow", target.name)
            drawn["flow"] = train_flow([target], config.flow_steps, config, generator, device).sample(
                20_000, generator
            )[0]
        exact = None
        if isinstance(target, FunnelEnergy):
            exact = target.sample(2000, stream(seed, "reference", target.name))
            drawn["exact"] = target.sample(20_000, stream(seed, "exact", target.name))
        for name, samples in drawn.items():
            errors = moment_errors(samples, moments)
            if exact is not None:
                errors["mmd"] = maximum_mean_discrepancy(samples[:2000], exact)
            quantities |= {f"{name}/{target.name}/{metric}": value for metric, value in errors.items()}
    return quantities, curves


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


class Stack:
    """Perceptrons of one shape, one a target, with the weights of a layer in one tensor: all are trained at once.

    Parameters
    ----------
    sizes : sequence of int
        Widths of the layers, input and output included; SiLU between them.
    count : int
        How many.
    generator : torch.Generator
        Of the initial weights, uniform with variance 1 / inputs.
    device : torch.device
        Where the weights are.
    """

    def __init__(self, sizes: Sequence[int], count: int, generator: torch.Generator, device: torch.device) -> None:
        self.weights: list[Tensor] = []
        for inputs, outputs in itertools.pairwise(sizes):
            for shape in ((count, inputs, outputs), (count, 1, outputs)):
                uniform = 2 * torch.rand(shape, generator=generator) - 1
                self.weights.append((uniform * math.sqrt(3 / inputs)).to(device).requires_grad_())

    def __call__(self, x: Float[Tensor, "s n p"]) -> Float[Tensor, "s n q"]:
        """Outputs at inputs [s, n, p]."""
        for layer in range(0, len(self.weights), 2):
            x = x if layer == 0 else functional.silu(x)
            x = torch.baddbmm(self.weights[layer + 1], x, self.weights[layer])
        return x


class DenoiserStack:
    r"""A stack of AR-DAE networks: a score estimator whose `fit` only standardises; `step` trains it.

    The network, the loss and the standardisation are those of `migelib.scores.DenoisingScore`; here one network a
    target is trained at once, on samples drawn afresh at every step.

    Parameters
    ----------
    dim, count : int
        Coordinates, and number of networks.
    hidden, blocks : int
        Width and number of residual blocks.
    noise : float
        Largest scale of the noise's normal law, in standard deviations of the samples.
    learning_rate : float
        Of Adam.
    generator : torch.Generator
        Of the noise and of the initial weights.
    device : torch.device
        Where the weights are.
    """

    def __init__(
        self,
        dim: int,
        count: int,
        hidden: int,
        blocks: int,
        noise: float,
        learning_rate: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        networks = seeded(
            lambda: [DenoisingNetwork(dim, hidden, blocks) for _ in range(count)], generator.initial_seed()
        )
        weights, _ = torch.func.stack_module_state(networks)
        self.weights = {name: weight.detach().to(device).requires_grad_() for name, weight in weights.items()}
        self.blocks, self.noise, self.generator = blocks, noise, generator
        self.optimiser = torch.optim.Adam(self.weights.values(), lr=learning_rate)

    def network(self, x: Float[Tensor, "s n d"], sigma: Float[Tensor, "s n 1"]) -> Float[Tensor, "s n d"]:
        """All networks, `DenoisingNetwork.forward` each."""
        h = self._linear("inlet", torch.cat([x, sigma], -1))
        for block in range(self.blocks):
            inner = self._linear(f"blocks.{block}.1", functional.silu(h))
            h = h + self._linear(f"blocks.{block}.3", functional.silu(inner))
        return self._linear("outlet.1", functional.silu(h)) - x

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(self.weights[f"{name}.bias"][:, None], x, self.weights[f"{name}.weight"].mT)

    def step(self, samples: Float[Tensor, "s n d"]) -> None:
        """One step of Adam on the denoising loss of samples [s, n, d]."""
        mean, scale = _standardisation(samples)
        drawn = torch.randn(*samples.shape[:-1], samples.shape[-1] + 1, generator=self.generator).to(samples)
        u, sigma = drawn[..., :-1], self.noise * drawn[..., -1:]
        loss = (u + sigma * self.network((samples - mean) / scale + sigma * u, sigma)).square().sum(-1).mean(-1).sum()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def fit(self, samples: Float[Tensor, "s n d"]) -> Callable[[Tensor], Tensor]:
        """Score function of the networks as they are, in the units of these samples."""
        mean, scale = _standardisation(samples)

        @torch.no_grad()
        def score(points: Float[Tensor, "s m d"]) -> Float[Tensor, "s m d"]:
            return self.network((points - mean) / scale, torch.zeros_like(points[..., :1])) / scale

        return score


def _standardisation(samples: Tensor) -> tuple[Tensor, Tensor]:
    return samples.mean(-2, keepdim=True), samples.std(-2, keepdim=True, correction=0).clamp_min(1e-6)


def joint_log_prob(targets: Sequence[Energy]) -> Callable[[Float[Tensor, "s n d"]], Float[Tensor, "s n"]]:
    """Log density of a stack of samples, each entry under its own target."""
    return lambda z: torch.stack([target.log_prob(points) for target, points in zip(targets, z, strict=True)])


def tempering(
    log_prob: Callable[[Float[Tensor, "s n d"]], Float[Tensor, "s n"]], share: float, config: Config
) -> Callable[[Float[Tensor, "s n d"]], Float[Tensor, "s n"]]:
    """Log density times the factor of this share of the training."""
    rise = min(1.0, share / config.tempered)
    factor = config.first_temper + (1 - config.first_temper) * rise
    return lambda z: factor * log_prob(z)
