r"""Fitting an implicit sampler to an energy: :math:`\min_\theta \mathrm{KL}(q_\theta \,\|\, p)` without the density of q.

The entropy half of the EGE paper [Wen et al., Knowledge-Based Systems 224, 2021] against no entropy term, against AR-DAE
[Lim et al., ICML 2020] at equal steps and at equal wall time, and against a normalising flow, which has a density.
Explained in :doc:`/book/13_implicit_vi`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import zuko
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..scores import SSGE, DenoisingNetwork, ScoreEstimator, Tikhonov
from ..surrogates import kl_surrogate
from ..tasks.energies import (
    PLANE_ENERGIES,
    FunnelEnergy,
    LogisticRegression,
    Moments,
    PlaneEnergy,
    breast_cancer_posterior,
)
from . import stream

Energy = PlaneEnergy | FunnelEnergy | LogisticRegression


class Stack:
    """Perceptrons of one shape, one a target, with the weights of a layer in one tensor: all are trained at once.

    Parameters
    ----------
    sizes : sequence of int
        Widths of the layers, input and output included; SiLU between them.
    count : int
        How many.
    generator : torch.Generator
        Of the initial weights, uniform with variance 1 / inputs, so that the first samples are as wide as the targets.
    device : torch.device
        Where the weights are.
    """

    def __init__(self, sizes: Sequence[int], count: int, generator: torch.Generator, device: torch.device) -> None:
        self.weights: list[Tensor] = []
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            networks = [DenoisingNetwork(dim, hidden, blocks) for _ in range(count)]
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


def cosine(optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate that falls to zero as half a cosine over the steps."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
