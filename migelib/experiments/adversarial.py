r"""Adversarial training of the generators of all seeds, and what each method adds to it against mode collapse.

The generator of a GAN [Goodfellow et al., NeurIPS 2014] gets the gradient of its samples' entropy, of the samples
themselves or of features of them, as in the EGE paper [Wen et al., Knowledge-Based Systems 224, 2021]. Peers are
packed samples [Lin et al., NeurIPS 2018], noise on the discriminator's input [Sonderby et al., ICLR 2017], and the
entropy by a critic's bound [Kumar et al., 2019]. `gan_plane` and `gan_stacked` are the experiments.
Explained in :doc:`/book/gan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .. import bounds, critics
from ..scores import SSGE, ScoreEstimator
from ..surrogates import entropy_surrogate
from .randomness import Streams, seeded, stream
from .training import Stack, adam, descend

METRICS = {"modes": "1", "quality": "%", "kl": "nat", "setting": "1"}
JUDGED = ("modes", "quality", "kl")
# A run of the quick profile may lose a mode, or three in a hundred samples, by the rounding of another machine.
FLOORS = {"modes": 1.0, "quality": 3.0}

Result = tuple[dict[str, float], dict[str, np.ndarray]]


@dataclass(frozen=True)
class GameTraining:
    """Settings of the training on one kind of task.

    Attributes
    ----------
    steps, batch : int
        Steps, and samples a step.
    learning_rate, beta : float
        Adam's rate, but for a method that tunes it, and its first decay rate.
    noise : int
        Coordinates of the generator's input.
    width : int
        Units of the hidden layers in the plane, channels of the largest maps of images.
    evaluation : int
        Samples that are judged.
    """

    steps: int
    batch: int = 128
    learning_rate: float = 3e-3
    beta: float = 0.5
    noise: int = 16
    width: int = 128
    evaluation: int = 10_000


class Task(Protocol):
    """A law that generators learn.

    Attributes
    ----------
    size : int
        Numbers in one sample.
    """

    size: int

    def sample(self, n: int, random: Streams) -> Float[Tensor, "seeds n *shape"]:
        """Draw n samples for every seed."""

    def networks(self, training: GameTraining, pack: int) -> tuple[nn.Module, Discriminator]:
        """Generator, and discriminator of packs of samples."""

    def judge(self, samples: Float[Tensor, "seeds n *shape"]) -> list[dict[str, float]]:
        """Values of `JUDGED` for every seed."""

    def keep(self, samples: Float[Tensor, "n *shape"]) -> np.ndarray:
        """The few samples of one seed that a record keeps."""


class Discriminator(nn.Module):
    """Layers from samples to features and, by an activation and a linear layer, from these to a logit.

    Parameters
    ----------
    layers : Sequential
        All of them.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = layers[:-2], layers[-2:]

    def forward(self, samples: Float[Tensor, "n *shape"]) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n 1"]]:
        """Features of the last hidden layer, before its activation, and logits."""
        features = self.body(samples)
        return features, self.head(features)


# --- methods ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """The non-saturating loss alone; what a method adds to it has one `setting`, a number.

    Attributes
    ----------
    grid : tuple of float
        Settings to tune among; none where the setting is given.
    """

    grid: tuple[float, ...] = ()

    def rate(self, setting: float, default: float) -> float:
        """Learning rate."""
        return default

    def pack(self, setting: float) -> int:
        """Samples that the discriminator sees as one."""
        return 1

    def seen(self, samples: Float[Tensor, "seeds n *shape"], strength: float, random: Streams) -> Tensor:
        """Samples as the discriminator sees them, not packed yet."""
        return samples

    def critic(self, noise: int, size: int) -> Callable[[], nn.Module] | None:
        """What makes a network that is trained to maximise `spread`, from the sizes of the noise and of a sample."""
        return None

    def spread(self, game: Game, noise: Tensor, samples: Tensor, features: Tensor) -> Tensor | float:
        """What the generators maximise beside, summed over the seeds.

        Parameters
        ----------
        game : Game
        noise : Tensor [seeds, n, p]
            The generators' input.
        samples : Tensor [seeds, n, ...]
            What they made of it.
        features : Tensor [seeds, n, f]
            The discriminators' features of these samples.
        """
        return 0.0


@dataclass(frozen=True)
class Vanilla(Method):
    """The non-saturating loss alone, with the learning rate as its setting."""

    def rate(self, setting: float, default: float) -> float:
        """Learning rate: the setting."""
        return setting


Features = Callable[[Task, Tensor, Tensor], Float[Tensor, "seeds n d"]]


def output(task: Task, samples: Tensor, features: Tensor) -> Float[Tensor, "seeds n d"]:
    """The samples themselves."""
    return samples.flatten(2)


def discriminator(task: Task, samples: Tensor, features: Tensor) -> Float[Tensor, "seeds n d"]:
    """The discriminator's features."""
    return features


SMOOTH = SSGE(energy=0.999, shrinkage=True)


@dataclass(frozen=True)
class Entropy(Method):
    """EGE: the entropy of the samples, or of features of them, with a weight.

    Attributes
    ----------
    features : callable
        From the task, the samples [seeds, n, ...] and the discriminators' features of them.
    estimator : ScoreEstimator
        Of that entropy's gradient.
    """

    features: Features = output
    estimator: ScoreEstimator = SMOOTH

    def spread(self, game: Game, noise: Tensor, samples: Tensor, features: Tensor) -> Tensor:
        """The entropy's surrogate."""
        return entropy_surrogate(self.features(game.task, samples, features), self.estimator)


@dataclass(frozen=True)
class Packing(Method):
    """PacGAN: the discriminator sees packs, of as many samples as the setting says."""

    def pack(self, setting: float) -> int:
        """Samples that the discriminator sees as one: the setting."""
        return round(setting)


@dataclass(frozen=True)
class InstanceNoise(Method):
    """Noise on all that the discriminator sees; its deviation is the setting, which falls to zero."""

    def seen(self, samples: Float[Tensor, "seeds n *shape"], strength: float, random: Streams) -> Tensor:
        """The samples with noise of that deviation."""
        return samples + strength * random.normal(*samples.shape[1:])


@dataclass(frozen=True)
class InformationBound(Method):
    """MEG: a critic's Jensen-Shannon bound of the information of noise and samples, with a weight.

    Attributes
    ----------
    hidden : int
        Units of the critic's hidden layers.
    """

    hidden: int = 128

    def critic(self, noise: int, size: int) -> Callable[[], nn.Module]:
        """What makes the critic."""
        return partial(critics.SeparableCritic, noise, size, self.hidden)

    def spread(self, game: Game, noise: Tensor, samples: Tensor, features: Tensor) -> Tensor:
        """The bound."""
        return bounds.jsd(game.critic(noise, samples.flatten(2))).sum()


def named(methods: Mapping[str, Method], name: str) -> Method:
    """The method of that name; raises ValueError where it is unknown."""
    if name not in methods:
        raise ValueError(f"methods: unknown name {name!r}, expected some of {', '.join(methods)}")
    return methods[name]


# --- training --------------------------------------------------------------------------------------------------------


class Game:
    """Generators, discriminators and their optimisers, of all seeds; `step` takes one step of each.

    Parameters
    ----------
    task : Task
    method : Method
    setting : float
        The method's.
    training : GameTraining
    seeds : sequence of int
        Methods of one seed share the samples, and the initial weights where they fit.
    device : torch.device
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        setting: float,
        training: GameTraining,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.task, self.method, self.setting, self.training = task, method, setting, training
        self.pack, self.random, self.done = method.pack(setting), Streams(seeds, "train", device=device), 0
        pairs = [
            seeded(lambda: task.networks(training, self.pack), stream(seed, "networks").initial_seed())
            for seed in seeds
        ]
        self.generator, self.discriminator = (
            Stack([network.to(device) for network in networks]) for networks in zip(*pairs, strict=True)
        )
        make = method.critic(training.noise, task.size)
        self.critic = None if make is None else Stack.build(make, seeds, "critic", device=device)

        self._opponents = [self.discriminator] if self.critic is None else [self.discriminator, self.critic]
        rate = method.rate(setting, training.learning_rate)
        self.optimisers = [adam(x.parameters(), rate, training.beta) for x in (self.generator, *self._opponents)]
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self.share) for o in self.optimisers]

    def share(self, step: int) -> float:
        """1, then falling to 0 over the second half: of the rates, since a last iterate wanders, and of the setting."""
        return min(1.0, 2 - 2 * step / self.training.steps)

    def step(self) -> None:
        """One step of the discriminators, of the critics where there are some, and of the generators."""
        n, softplus, strength = self.training.batch, functional.softplus, self.setting * self.share(self.done)
        real, noise = self.task.sample(n, self.random), self.random.normal(n, self.training.noise)
        made = self.generator(noise)
        fixed = made.detach()
        _, real_logits = self.discriminator(self.seen(real))
        features, logits = self.discriminator(self.seen(fixed))
        descend(self.optimisers[1], softplus(-real_logits).mean((1, 2)) + softplus(logits).mean((1, 2)))
        if self.critic is not None:
            descend(self.optimisers[2], -self.method.spread(self, noise, fixed, features))
        with ExitStack() as held:
            for opponent in self._opponents:
                held.enter_context(opponent.frozen())
            features, logits = self.discriminator(self.seen(made))
            spread = self.method.spread(self, noise, made, features)
            descend(self.optimisers[0], softplus(-logits).mean((1, 2)).sum() - strength * spread)
        for schedule in self.schedules:
            schedule.step()
        self.done += 1

    def seen(self, samples: Float[Tensor, "seeds n *shape"]) -> Tensor:
        """Samples as the discriminators see them: noisy, or packed along their first axis."""
        samples = self.method.seen(samples, self.setting * self.share(self.done), self.random)
        return samples.unflatten(1, (-1, self.pack)).flatten(2, 3)

    @torch.no_grad()
    def samples(self, n: int, random: Streams) -> Float[Tensor, "seeds n *shape"]:
        """Draw n samples of the generators as they are used, with running means of batch normalisation."""
        self.generator.eval()
        noise = random.normal(n, self.training.noise)
        drawn = torch.cat([self.generator(part) for part in noise.split(1000, dim=1)], dim=1)
        self.generator.train()
        return drawn


def measure(
    name: str,
    task: Task,
    method: Method,
    setting: float,
    training: GameTraining,
    checkpoints: int,
    seeds: Sequence[int],
    device: torch.device,
) -> list[Result]:
    """Train generators, and judge them at the checkpoints.

    Parameters
    ----------
    name : str
        Of the quantities and curves: the method's and the task's.
    task, method, setting, training, seeds, device
        As of `Game`.
    checkpoints : int
        How often during training the samples are judged.

    Returns
    -------
    list of (dict, dict)
        For every seed the final quantities <name>/<metric>, the setting among them, and the curves <name>/<metric>
        over the checkpoints and <name>/samples.
    """
    game = Game(task, method, setting, training, seeds, device)
    marks = {round(i) for i in np.linspace(0, training.steps, checkpoints + 1)[1:]}
    histories: list[dict[str, list[float]]] = [{metric: [] for metric in ("step", *JUDGED)} for _ in seeds]
    for step in range(1, training.steps + 1):
        game.step()
        if step in marks:
            count = training.evaluation if step == training.steps else min(5000, training.evaluation)
            samples = game.samples(count, Streams(seeds, "evaluate", device=device))
            for history, judged in zip(histories, task.judge(samples), strict=True):
                for metric, value in {"step": step, **judged}.items():
                    history[metric].append(value)

    results = []
    for history, own in zip(histories, samples, strict=True):
        quantities = {f"{name}/{metric}": history[metric][-1] for metric in JUDGED} | {f"{name}/setting": setting}
        curves = {f"{name}/{metric}": np.array(values, dtype=np.float32) for metric, values in history.items()}
        results.append((quantities, curves | {f"{name}/samples": task.keep(own)}))
    return results
