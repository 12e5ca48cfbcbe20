"""The methods: what each maximises, what it differentiates, and its updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import bounds, critics
from ...scores import SSGE, GaussianScore, RatioScore, RatioState, ScoreEstimator
from ...scores.ratio import RatioNetwork, classification_loss, draw_log_scale
from ...surrogates import mutual_information_surrogate
from ..randomness import Streams
from ..training import Stack, adam
from .config import GRADIENT_NORM, SPREAD
from .task import Draw


class MethodConfig(Protocol):
    """What a method reads of an experiment's settings: see `Config`; `variables` are the sizes of x and z."""

    network_updates: int
    network_rate: float
    hidden: int
    dense: bool
    shared_residuals: bool

    @property
    def variables(self) -> tuple[int, int]:
        """Numbers of coordinates of x and z."""


class GradientMethod:
    """A gradient of I(x; z) from batches; one object a run, which may learn from one update to the next.

    Parameters
    ----------
    config : Config
        Settings, of one cell.
    seeds : sequence of int
        The seeds of the run.
    device : torch.device
        That of the samples.
    """

    def __init__(self, config: MethodConfig, seeds: Sequence[int], device: torch.device) -> None:
        self.config, self.seeds, self.device = config, seeds, device

    def learn(self, draw: Callable[[], Draw]) -> None:
        """Update what the estimate needs, on new batches without a gradient."""

    def surrogate(self, batch: Draw) -> Float[Tensor, ""]:
        """Scalar whose gradient is the estimate, summed over the seeds."""
        raise NotImplementedError


class ScoreMethod(GradientMethod):
    """MIGE with one estimator without a memory.

    Parameters
    ----------
    make : callable
        Makes the estimator; None is the default.
    config, seeds, device :
        As for every method.
    """

    def __init__(
        self,
        make: Callable[[], ScoreEstimator | None],
        config: MethodConfig,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, seeds, device)
        self.estimator = make()

    def surrogate(self, batch: Draw) -> Float[Tensor, ""]:
        """MIGE's surrogate, summed over the seeds."""
        return mutual_information_surrogate(batch.x, batch.z, self.estimator)


class MemoryMethod(GradientMethod):
    """MIGE with an estimator that learns from the batches that it is asked about, one a seed.

    Parameters
    ----------
    make : callable
        Makes the estimator of one seed.
    config, seeds, device :
        As for every method.
    """

    def __init__(
        self, make: Callable[[], ScoreEstimator], config: MethodConfig, seeds: Sequence[int], device: torch.device
    ) -> None:
        super().__init__(config, seeds, device)
        self.estimators = [make() for _ in seeds]

    def surrogate(self, batch: Draw) -> Float[Tensor, ""]:
        """MIGE's surrogate of every seed, summed."""
        rows = zip(batch.x, batch.z, self.estimators, strict=True)
        return torch.stack([mutual_information_surrogate(x, z, estimator) for x, z, estimator in rows]).sum()


def streaming() -> ScoreEstimator:
    """Return the estimator with a memory, at its defaults."""
    from ...scores import Streaming

    return Streaming()


class TrainedMethod(GradientMethod):
    """Networks that maximise an objective, and an estimate that is differentiated with the networks held fixed."""

    def __init__(self, config: MethodConfig, seeds: Sequence[int], device: torch.device) -> None:
        super().__init__(config, seeds, device)
        self.networks = Stack.build(lambda: self.network(*config.variables), seeds, "networks", device=device)
        self.optimiser = adam(self.networks.parameters(), config.network_rate)

    def network(self, x_dim: int, z_dim: int) -> nn.Module:
        """Make the network of one seed."""
        raise NotImplementedError

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """What the networks maximise."""
        raise NotImplementedError

    def estimate(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """What is differentiated in z; by default the same."""
        return self.objective(batch)

    def learn(self, draw: Callable[[], Draw]) -> None:
        """Update the networks on new batches."""
        for _ in range(self.config.network_updates):
            self.optimiser.zero_grad()
            (-self.objective(draw())).sum().backward()
            clip(self.networks.parameters(), GRADIENT_NORM)
            self.optimiser.step()

    def surrogate(self, batch: Draw) -> Float[Tensor, ""]:
        """The estimates of all seeds, summed."""
        with self.networks.frozen():
            return self.estimate(batch).sum()


def clip(weights: Sequence[Float[Tensor, "seeds ..."]], largest: float) -> None:
    """Scale the gradient of every seed's weights down to a norm of `largest`."""
    norm = torch.stack([weight.grad.reshape(len(weight), -1).square().sum(-1) for weight in weights]).sum(0).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1)
    for weight in weights:
        weight.grad.mul_(factor.view(-1, *[1] * (weight.ndim - 1)))


class CriticMethod(TrainedMethod):
    """A critic, dense or separable, and a bound of its values."""

    def network(self, x_dim: int, z_dim: int) -> nn.Module:
        """A critic of x and z together, or a separable one with 32 features, as in SMILE's code."""
        if self.config.dense:
            return critics.ConcatenatedCritic(x_dim, z_dim, self.config.hidden, nn.SiLU)
        return critics.SeparableCritic(x_dim, z_dim, self.config.hidden, 32, nn.SiLU)

    def values(self, batch: Draw) -> Float[Tensor, "seeds n n"]:
        """CriticMethod values of all pairs."""
        return self.networks(batch.x, batch.z)


class NwjMethod(CriticMethod):
    """The bound of Nguyen, Wainwright and Jordan."""

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """The bound."""
        return bounds.nwj(self.values(batch))


class MineMethod(CriticMethod):
    """MINE; its moving average follows the updates of the critic, with the decay of the published code."""

    log_mean: Tensor | None = None

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """The bound; the average moves on."""
        bound, self.log_mean = bounds.mine(self.values(batch), self.log_mean, decay=0.9)
        return bound

    def estimate(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """The bound at the average so far."""
        return bounds.mine(self.values(batch), self.log_mean, decay=0.9)[0]


class InfoNceMethod(CriticMethod):
    """InfoNCE."""

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """The bound."""
        return bounds.infonce(self.values(batch))


class SmileMethod(CriticMethod):
    """SMILE, whose gradients are those of the Jensen-Shannon objective; the clipped value is for reading only."""

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """The Jensen-Shannon objective."""
        return bounds.jsd(self.values(batch))


class FloMethod(TrainedMethod):
    """FLO with normalised embeddings and a temperature that is learnt."""

    def network(self, x_dim: int, z_dim: int) -> nn.Module:
        """The embeddings, as wide as the hidden layers."""
        hidden = self.config.hidden
        return critics.FenchelLegendreCritic(x_dim, z_dim, hidden, hidden, activation=nn.SiLU)

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """The bound."""
        return bounds.flo(*self.networks(batch.x, batch.z))


class ClubMethod(TrainedMethod):
    """The sampled CLUB: a Gaussian q(z | x) with a diagonal covariance, fitted by maximum likelihood."""

    def network(self, x_dim: int, z_dim: int) -> nn.Module:
        """Means and log-variances."""
        return critics.GaussianConditional(x_dim, z_dim, self.config.hidden, layers=2, activation=nn.SiLU)

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """Mean log-likelihood."""
        return self.networks(batch.x, batch.z).diagonal(dim1=-2, dim2=-1).mean(-1)

    def estimate(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """Contrast of each z with that of the next pair, in place of all others."""
        values = self.networks(batch.x, batch.z)
        return values.diagonal(0, -2, -1).mean(-1) - values.diagonal(1, -2, -1).mean(-1)


class KnifeMethod(TrainedMethod):
    """KNIFE: mixtures of eight Gaussians for q(z) and q(z | x), fitted by maximum likelihood."""

    def network(self, x_dim: int, z_dim: int) -> nn.Module:
        """Both densities."""
        return critics.MixtureDensities(x_dim, z_dim, 8, self.config.hidden, activation=nn.SiLU)

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """Sum of the mean log-likelihoods."""
        log_conditional, log_marginal = self.networks(batch.x, batch.z)
        return (log_conditional + log_marginal).mean(-1)

    def estimate(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """Difference of the entropies."""
        return bounds.knife(*self.networks(batch.x, batch.z))


class SpreadMethod(TrainedMethod):
    """Spread information: the log ratio of a classifier that is told the noise level, with noise on z alone."""

    def __init__(self, config: MethodConfig, seeds: Sequence[int], device: torch.device) -> None:
        super().__init__(config, seeds, device)
        self.random = Streams(seeds, "spread", device=device)

    def network(self, x_dim: int, z_dim: int) -> nn.Module:
        """The classifier of x, noisy z and the logarithm of the noise level."""
        return RatioNetwork(x_dim + z_dim + 1, self.config.hidden)

    def objective(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """Log-likelihood of the classes."""
        log_scale, noise = self._noise(batch.z)
        other_noise = noise if self.config.shared_residuals else log_scale.exp() * self.random.normal(*noise.shape[1:])
        joint = self.networks(batch.x, batch.z + noise, log_scale)
        return -classification_loss(joint, self.networks(batch.x, batch.other + other_noise, log_scale))

    def estimate(self, batch: Draw) -> Float[Tensor, "seeds"]:
        """Mean log ratio; with the network held fixed its gradient is that of the ratio, through z."""
        log_scale, noise = self._noise(batch.z)
        return self.networks(batch.x, batch.z + noise, log_scale).mean(-1)

    def _noise(self, z: Float[Tensor, "seeds n d"]) -> tuple[Float[Tensor, "seeds n 1"], Float[Tensor, "seeds n d"]]:
        log_scale = self.random.draw(lambda generator: draw_log_scale(SPREAD, z.shape[1], z, generator))
        return log_scale, log_scale.exp() * self.random.normal(*z.shape[1:])


METHODS: Mapping[str, Callable[[MethodConfig, Sequence[int], torch.device], GradientMethod]] = {
    "streaming": partial(MemoryMethod, streaming),
    "adaptive": partial(ScoreMethod, lambda: None),
    "ssge": partial(ScoreMethod, SSGE),  # the paper's
    "gaussian": partial(ScoreMethod, GaussianScore),  # shrinkage would take away the gradient of a small information
    "ratio": partial(MemoryMethod, lambda: RatioScore(steps=5, state=RatioState(), spread=SPREAD)),
    "smi": SpreadMethod,
    "knife": KnifeMethod,
    "club": ClubMethod,
    "nwj": NwjMethod,
    "mine": MineMethod,
    "infonce": InfoNceMethod,
    "smile": SmileMethod,
    "flo": FloMethod,
}
