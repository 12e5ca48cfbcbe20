"""Neural score estimator: a denoising autoencoder, trained alongside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..kernels import half_extent, power_of_two
from ..validation import (
    check_count,
    check_pair,
    check_points,
    check_positive,
    check_samples,
    check_spread,
    settle_checks,
)
from .base import outside_inference_mode


class DenoisingNetwork(nn.Module):
    """Residual network (x, sigma) -> score; with zero output weights at first it is the score of a standard Gaussian.

    Parameters
    ----------
    dim : int
        Number of coordinates of x.
    hidden : int
        Width.
    blocks : int
        Number of residual blocks.
    """

    def __init__(self, dim: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.inlet = nn.Linear(dim + 1, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(blocks)
        )
        self.outlet = nn.Sequential(nn.SiLU(), nn.Linear(hidden, dim))
        nn.init.zeros_(self.outlet[1].weight)
        nn.init.zeros_(self.outlet[1].bias)

    def forward(self, x: Float[Tensor, "m d"], sigma: Float[Tensor, "m 1"]) -> Float[Tensor, "m d"]:
        """Score of x's density smoothed by noise of scale sigma."""
        h = self.inlet(torch.cat([x, sigma], -1))
        for block in self.blocks:
            h = h + block(h)
        return self.outlet(h) - x


@dataclass
class DenoisingState:
    """Networks, optimisers and random generator that a `DenoisingScore` goes on training from one `fit` to the next.

    The caller owns it and passes it in, so nothing is kept out of sight; use one state for each quantity estimated.
    """

    networks: dict[tuple, tuple[nn.Module, torch.optim.Optimizer]] = field(default_factory=dict)
    generator: torch.Generator | None = None
    parts: dict[str, DenoisingState] = field(default_factory=dict)

    def part(self, role: str) -> DenoisingState:
        """The state of one of several scores or informations that a measure is the sum of."""
        return self.parts.setdefault(role, type(self)())

    def seeded(self, seed: int) -> DenoisingState:
        """The state itself, with a generator, of this seed where it had none."""
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(seed)
        return self

    def network(
        self, key: tuple, build: Callable[[], nn.Module], seed: int, learning_rate: float
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The network of that key and its Adam, made where there is none, with weights of the seed."""
        if key not in self.networks:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = build()
            self.networks[key] = network, torch.optim.Adam(network.parameters(), lr=learning_rate)
        return self.networks[key]


@dataclass(frozen=True)
class DenoisingScore:
    r"""Score from an amortised residual denoising autoencoder (AR-DAE).

    A network :math:`f(x, \sigma)` minimises :math:`E \|u + \sigma f(x + \sigma u, \sigma)\|^2` over noise
    :math:`u \sim N(0, I)` and scales :math:`\sigma \sim N(0, \delta^2)`; its minimiser is the score of the smoothed
    density, and at :math:`\sigma = 0` that of the samples [Lim et al., ICML 2020, sec. 3].

    Without a `state` every `fit` trains a new network from the same seed, and the same samples give the same score.
    With one, `fit` goes on training the state's network, so that a few steps a call follow a slowly moving model; a
    surrogate trains a part of the state for each score that it needs.
    Samples are standardised, coordinate by coordinate. In inference mode it trains all the same; inside a transform of
    `torch.func` it cannot, and raises RuntimeError. Derived in :doc:`/book/score-estimators`.

    Parameters
    ----------
    steps : int
        Training steps a call of `fit`.
    state : DenoisingState, optional
        What to go on training; changed in place.
    hidden, blocks : int
        Width and number of residual blocks.
    noise : float
        :math:`\delta`, in units of the coordinates' standard deviations.
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
    >>> import torch
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> score = DenoisingScore(steps=50).fit(x)
    >>> float((score(x) + x).square().mean()) < 0.3  # the truth is -x
    True

    A state goes on from batch to batch:

    >>> estimator = DenoisingScore(steps=5, state=DenoisingState())
    >>> estimator.fit(x)(x).shape
    torch.Size([200, 2])
    """

    steps: int = 500
    state: DenoisingState | None = None
    hidden: int = 128
    blocks: int = 2
    noise: float = 0.3
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "hidden", "blocks", "batch"):
            check_count(getattr(self, name), name)
        check_positive(self.noise, "noise")
        check_positive(self.learning_rate, "learning_rate")

    def fit(self, samples: Float[Tensor, "*batch n d"]) -> NeuralScore:
        """Train on samples [*batch, n, d], one network a batch entry.

        Raises
        ------
        TypeError
            If `samples` is not a tensor of float32 or float64.
        ValueError
            If there are fewer than two samples, an entry is not finite, or all samples are equal.
        """
        return self._fit(samples, self._state(), "single")

    def fit_pair(
        self, x: Float[Tensor, "*batch n p"], z: Float[Tensor, "*batch n q"]
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        """Joint minus marginal score at paired samples, by three networks: of (x, z), of x and of z.

        Raises
        ------
        TypeError, ValueError
            If `x` or `z` is not a finite tensor of at least two differing samples, or they are not paired.
        """
        check_pair(x, z)
        state = self._state()
        joint = torch.cat([x, z], -1)
        of_joint = self._fit(joint, state, "joint")(joint.detach())
        of_x = self._fit(x, state, "x")(x.detach())
        of_z = self._fit(z, state, "z")(z.detach())
        return of_joint[..., : x.shape[-1]] - of_x, of_joint[..., x.shape[-1] :] - of_z

    def part(self, role: str) -> DenoisingScore:
        """The estimator whose state is that of one role; where it has none, itself."""
        return self if self.state is None else replace(self, state=self.state.part(role))

    def _state(self) -> DenoisingState:
        return (DenoisingState() if self.state is None else self.state).seeded(self.seed)

    def _fit(self, samples: Tensor, state: DenoisingState, role: str) -> NeuralScore:
        check_samples(samples)
        check_spread(samples)
        with training("DenoisingScore"):
            return self._trained(samples.detach().clone(), state, role)

    def _trained(self, samples: Tensor, state: DenoisingState, role: str) -> NeuralScore:
        white, mean, scale = standardised(samples)
        n, dim = samples.shape[-2:]
        entries = white.reshape(-1, n, dim)
        trained = [self._train(entry, state, (role, dim, index)) for index, entry in enumerate(entries)]
        return NeuralScore(mean, scale, tuple(trained))

    def _train(self, samples: Tensor, state: DenoisingState, key: tuple) -> DenoisingNetwork:
        n, dim = samples.shape
        network, optimiser = state.network(
            key,
            lambda: DenoisingNetwork(dim, self.hidden, self.blocks).to(samples),
            self.seed,
            self.learning_rate,
        )
        size = min(n, self.batch)
        for _ in range(self.steps):
            rows = torch.randperm(n, generator=state.generator)[:size].to(samples.device)
            noise = torch.randn(size, dim + 1, generator=state.generator, dtype=samples.dtype).to(samples.device)
            u, sigma = noise[:, :dim], self.noise * noise[:, dim:]
            loss = (u + sigma * network(samples[rows] + sigma * u, sigma)).square().sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        # A copy: later training of the state must not change a score that was already returned.
        frozen = DenoisingNetwork(dim, self.hidden, self.blocks).to(samples).requires_grad_(False)
        frozen.load_state_dict(network.state_dict())
        return frozen


@dataclass(frozen=True)
class NeuralScore:
    """The function that `DenoisingScore.fit` returns.

    Attributes
    ----------
    mean, scale : Tensor [*batch, 1, d]
        The standardisation.
    networks : tuple of DenoisingNetwork
        One for each batch entry.
    """

    mean: Float[Tensor, "*batch 1 d"]
    scale: Float[Tensor, "*batch 1 d"]
    networks: tuple[DenoisingNetwork, ...]

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.mean)
        white = ((points - self.mean) / self.scale).reshape(-1, *points.shape[-2:])
        zero = torch.zeros_like(white[0, :, :1])
        values = torch.stack([network(entry, zero) for network, entry in zip(self.networks, white, strict=True)])
        return values.reshape(points.shape) / self.scale


@contextmanager
def training(estimator: str) -> Iterator[None]:
    """Where the networks of an estimator of that name are trained, after the checks of what they are trained on."""
    settle_checks()  # before a state is trained
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{estimator}: expected no transform of torch.func around it, where networks cannot be trained; "
            "differentiate by torch.autograd, in reverse mode or by forward_ad, or use another estimator"
        )
    with outside_inference_mode(), torch.enable_grad():
        yield


def standardised(
    samples: Float[Tensor, "*batch n d"],
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch 1 d"], Float[Tensor, "*batch 1 d"]]:
    """Samples of mean zero and variance one a coordinate, and mean and scale; a constant coordinate has scale one."""
    first = samples[..., :1, :]  # what is left of a coordinate without spread is zero, not rounding
    centred = samples - first
    mean = first + centred.mean(-2, keepdim=True)
    units = power_of_two(half_extent(samples))  # the square itself may be out of range
    scale = ((centred - centred.mean(-2, keepdim=True)) / units).square().mean(-2, keepdim=True).sqrt()
    scale = torch.where(scale > 0, scale * units, torch.ones_like(scale))
    return (samples - mean) / scale, mean, scale
