"""Ratio estimator: the logarithm of a density ratio, learnt by a classifier and differentiated."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..validation import (
    check_count,
    check_pair,
    check_points,
    check_positive,
    check_samples,
    check_spread,
)
from .base import outside_inference_mode
from .neural import DenoisingState, standardised, training

CLIP = 10.0  # Yu et al. 2026, app. C.1.3: of the gradient's norm


class RatioNetwork(nn.Module):
    r"""Logit :math:`T(x, z, \ln \sigma)` of a classifier of joint pairs against pairs of the marginals' product.

    Parameters
    ----------
    dim : int
        Number of inputs: coordinates of x and z, and one for :math:`\ln \sigma` where there is noise.
    hidden : int
        Width of the two hidden layers, with SiLU.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        )

    def forward(self, *inputs: Float[Tensor, "n _"]) -> Float[Tensor, "n"]:
        """Logits of the rows; the inputs are concatenated."""
        return self.layers(torch.cat(inputs, dim=-1)).squeeze(-1)


def classification_loss(
    joint: Float[Tensor, "*batch n"], product: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    r"""Cross-entropy :math:`E_p[\mathrm{sp}(-T)] + E_{p \otimes p}[\mathrm{sp}(T)]`, with sp the softplus.

    Its minimiser is the logarithm of the ratio of the two densities [Gutmann & Hyvarinen, AISTATS 2010].
    """
    return functional.softplus(-joint).mean(-1) + functional.softplus(product).mean(-1)


def draw_log_scale(
    spread: tuple[float, float], n: int, like: Tensor, generator: torch.Generator
) -> Float[Tensor, "n 1"]:
    r"""Draw :math:`\ln \sigma` uniformly, sigma between the two ends of `spread`, on the generator's device."""
    low, high = map(math.log, spread)
    uniform = torch.rand(n, 1, dtype=like.dtype, generator=generator, device=generator.device)
    return (low + (high - low) * uniform).to(like.device)


class RatioState(DenoisingState):
    """Networks, optimisers and random generator that a `RatioScore` goes on training from one `fit` to the next.

    The caller owns it and passes it in, so nothing is kept out of sight; use one state for each quantity estimated.
    """


@dataclass(frozen=True)
class RatioScore:
    r"""Score from the logarithm of a density ratio that a classifier learns.

    A network T tells joint pairs (x, z) from pairs of the marginals' product; the minimiser of its cross-entropy is
    :math:`\ln p(x, z) / p(x) p(z)`, whose gradients in x and z are the differences of joint and marginal scores that an
    information needs [Yu et al. 2026, eqs. 3.10-3.13; Chen et al. 2025]. A single density is compared with the Gaussian
    of its means and variances, whose score is added.

    With `spread` the information is that of noisy variables, averaged over noise levels: every sample gets its own
    sigma, log-uniform between the two ends, and Gaussian noise of sigma standard deviations on the variables that need
    a gradient; T has :math:`\ln \sigma` as a further input. That information is finite and has a gradient where the
    code has atoms or no noise, and the two classes overlap [Yu et al. 2026, sec. 3: spread mutual information]. A
    single density is fitted without noise.

    Without a `state` every `fit` trains a new network from the same seed. With one, it goes on training the state's
    network, so that a few steps a call follow a slowly moving model. Coordinates are standardised, one by one. In
    inference mode it trains all the same; inside a transform of `torch.func` it cannot, and raises RuntimeError.
    Derived in :doc:`/book/score-estimators`.

    Parameters
    ----------
    steps : int
        Training steps a call of `fit`.
    state : RatioState, optional
        What to go on training; changed in place.
    spread : tuple of two floats, optional
        Least and largest noise level, in standard deviations of the coordinates, 0 < low < high.
    hidden : int
        Width of the two hidden layers.
    batch : int
        Most samples a step.
    learning_rate : float
        Of Adam.
    seed : int
        Of the initial weights and of the noise.

    Raises
    ------
    ValueError
        If a setting is outside its range.

    Examples
    --------
    In a training loop, a state and a few steps a call:

    >>> estimator = RatioScore(steps=5, state=RatioState(), spread=(0.01, 1.0))
    >>> x, z = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0))
    >>> [part.shape for part in estimator.fit_pair(x, z)]
    [torch.Size([100, 3]), torch.Size([100, 3])]
    """

    steps: int = 500
    state: RatioState | None = None
    spread: tuple[float, float] | None = None
    hidden: int = 256
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "hidden", "batch"):
            check_count(getattr(self, name), name)
        check_positive(self.learning_rate, "learning_rate")
        if self.spread is not None:
            ends = self.spread if isinstance(self.spread, tuple) else ()
            if not (len(ends) == 2 and all(isinstance(end, int | float) for end in ends) and 0 < ends[0] < ends[1]):
                raise ValueError(f"spread: expected two noise levels (low, high), 0 < low < high, got {self.spread!r}")

    def fit(self, samples: Float[Tensor, "*batch n d"]) -> GaussianRatioScore:
        """Train on samples [*batch, n, d], one network a batch entry.

        Raises
        ------
        TypeError
            If `samples` is not a tensor of float32 or float64.
        ValueError
            If there are fewer than two samples, an entry is not finite, or all samples are equal.
        """
        check_samples(samples)
        check_spread(samples)
        with training("RatioScore"):
            white, mean, scale = standardised(samples.detach().clone())
            state, networks = self._state(), []
            for index, entry in enumerate(white.reshape(-1, *white.shape[-2:])):

                def draw(rows: Tensor, generator: torch.Generator, entry: Tensor = entry) -> tuple[list, list]:
                    return [entry[rows]], [draw_normal(entry[rows], generator)]

                network = self._train(state, ("single", entry.shape[-1], index), entry, draw)
                networks.append(copy.deepcopy(network).requires_grad_(False))  # later training must not change it
        return GaussianRatioScore(mean, scale, tuple(networks))

    def fit_pair(
        self,
        x: Float[Tensor, "*batch n p"],
        z: Float[Tensor, "*batch n q"],
        wanted: tuple[bool, bool] = (True, True),
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        """Joint minus marginal score at paired samples, the parts for x and for z.

        With `spread` they are those of the noisy variables at one draw of the noise; `wanted` says which have any.

        Raises
        ------
        TypeError, ValueError
            If `x` or `z` is not a finite tensor of at least two differing samples, or they are not paired.
        """
        check_pair(x, z)
        check_spread(x, "x")
        check_spread(z, "z")
        with training("RatioScore"):
            state = self._state()
            (x, _, x_scale), (z, _, z_scale) = standardised(x.detach().clone()), standardised(z.detach().clone())
            entries = zip(x.reshape(-1, *x.shape[-2:]), z.reshape(-1, *z.shape[-2:]), strict=True)
            parts = [self._pair_entry(state, index, *entry, wanted) for index, entry in enumerate(entries)]
            of_x, of_z = map(torch.stack, zip(*parts, strict=True))
        return of_x.reshape(x.shape) / x_scale, of_z.reshape(z.shape) / z_scale

    def part(self, role: str) -> RatioScore:
        """The estimator whose state is that of one role in a measure; where it has none, itself."""
        return self if self.state is None else replace(self, state=self.state.part(role))

    def _pair_entry(
        self, state: RatioState, index: int, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"], wanted: tuple[bool, bool]
    ) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
        def draw(rows: Tensor, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
            """Joint pairs, and the same with the rows of x in another order, and with the same noise."""
            x_rows, z_rows = x[rows], z[rows]
            other = x_rows[torch.randperm(len(rows), generator=generator).to(x.device)]
            if self.spread is None:
                return [x_rows, z_rows], [other, z_rows]
            log_scale = draw_log_scale(self.spread, len(rows), x, generator)
            x_noise, z_noise = (
                log_scale.exp() * draw_normal(v, generator) if noisy else torch.zeros_like(v)
                for v, noisy in zip((x_rows, z_rows), wanted, strict=True)
            )
            z_rows = z_rows + z_noise
            return [x_rows + x_noise, z_rows, log_scale], [other + x_noise, z_rows, log_scale]

        network = self._train(state, ("pair", x.shape[-1], z.shape[-1], index), torch.cat([x, z], dim=-1), draw)
        inputs, _ = draw(torch.arange(len(x), device=x.device), state.generator)
        inputs[:2] = (v.requires_grad_() for v in inputs[:2])
        return torch.autograd.grad(network(*inputs).sum(), inputs[:2])

    def _state(self) -> RatioState:
        return (RatioState() if self.state is None else self.state).seeded(self.seed)

    def _train(
        self,
        state: RatioState,
        key: tuple,
        samples: Float[Tensor, "n d"],
        draw: Callable[[Tensor, torch.Generator], tuple[list[Tensor], list[Tensor]]],
    ) -> RatioNetwork:
        n, dim = samples.shape
        noisy = key[0] == "pair" and self.spread is not None
        network, optimiser = state.network(
            key, lambda: RatioNetwork(dim + noisy, self.hidden).to(samples), self.seed, self.learning_rate
        )
        for _ in range(self.steps):
            rows = torch.randperm(n, generator=state.generator)[: self.batch].to(samples.device)
            joint, product = draw(rows, state.generator)
            loss = classification_loss(network(*joint), network(*product))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimiser.step()
        return network


@dataclass(frozen=True)
class GaussianRatioScore:
    """The function that `RatioScore.fit` returns: gradient of a log ratio to a Gaussian, and that Gaussian's score.

    Attributes
    ----------
    mean, scale : Tensor [*batch, 1, d]
        Of the Gaussian.
    networks : tuple of RatioNetwork
        One for each batch entry.
    """

    mean: Float[Tensor, "*batch 1 d"]
    scale: Float[Tensor, "*batch 1 d"]
    networks: tuple[RatioNetwork, ...]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.mean)
        follow = points.requires_grad and torch.is_grad_enabled()  # the score itself may be differentiated
        with outside_inference_mode(), torch.enable_grad():
            white = ((points if follow else points.detach().clone()) - self.mean) / self.scale
            white = white if follow else white.requires_grad_()
            entries = white.reshape(-1, *white.shape[-2:])
            logits = [network(entry) for network, entry in zip(self.networks, entries, strict=True)]
            (gradient,) = torch.autograd.grad(torch.stack(logits).sum(), white, create_graph=follow)
            score = (gradient - white) / self.scale
        return score if follow else score.detach()


def draw_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise on the generator's device and move it to that of `like`, in its shape and dtype."""
    drawn = torch.randn(like.shape, dtype=like.dtype, generator=generator, device=generator.device)
    return drawn.to(like.device)
