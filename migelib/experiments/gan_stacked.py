r"""Mode collapse on images: generators of stacks of three digits, a thousand modes that a classifier tells apart.

The methods are those of `adversarial`, with the entropy of features: of a random projection, of the discriminator, of
a classifier.
Explained in :doc:`/book/gan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from . import adversarial
from .adversarial import (
    FLOORS,
    Discriminator,
    Entropy,
    GameTraining,
    InformationBound,
    InstanceNoise,
    Method,
    Packing,
    Result,
    Vanilla,
    discriminator,
    measure,
    named,
)
from .data import load, load_images
from .networks import digit_classifier
from .randomness import Streams
from .training import Stack, adam, train_classifier

__all__ = ["FLOORS", "METHODS", "METRICS", "PROFILES", "STUDIES", "Config", "data_source", "prepare", "run_seeds"]

METRICS = adversarial.METRICS | {"accuracy": "%"}

CONFIDENT = 0.9  # a stack is of high quality if the classifier is this sure of each of its digits
DIGITS = 10


def projection(task: Stacks, samples: Tensor, features: Tensor) -> Float[Tensor, "seeds n d"]:
    """A random projection of the pixels."""
    return samples.flatten(2) @ task.matrix


def classifier(task: Stacks, samples: Tensor, features: Tensor) -> Float[Tensor, "seeds n d"]:
    """The guiding classifier's logits of all channels."""
    return channel_logits(task.guide, samples).flatten(2)


METHODS: dict[str, Method] = {
    "vanilla": Vanilla(),
    "ege-projection": Entropy(features=projection),
    "ege-discriminator": Entropy(features=discriminator),
    "ege-classifier": Entropy(features=classifier),
    "pacgan": Packing(),
    "meg": InformationBound(),
    "instance-noise": InstanceNoise(),
}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    training : GameTraining
    methods : tuple of str
        Of `METHODS`.
    settings : tuple of (str, float)
        The setting of every method.
    data : str
        "mnist" or "mnist_5k": where the digits come from.
    size : int
        Height and width that the digits are resized to, a multiple of 4.
    projection : int
        Coordinates of the random projection.
    checkpoints : int
        How often during training the samples are judged.
    """

    seeds: int
    training: GameTraining
    methods: tuple[str, ...]
    settings: tuple[tuple[str, float], ...]
    data: str = "mnist"
    size: int = 28
    projection: int = 32
    checkpoints: int = 10


# From pilots with seed 1000: two weights each of "ege-projection" and "ege-classifier", three of "ege-discriminator",
# three rates of "vanilla", one setting of the others.
_SETTINGS = {
    "vanilla": 3e-3,
    "ege-projection": 0.3,
    "ege-discriminator": 0.1,
    "ege-classifier": 1.0,
    "pacgan": 2,
    "meg": 0.3,
}
_CPU = Config(
    seeds=5,
    training=GameTraining(steps=2000, noise=64, width=32, evaluation=26_000),
    methods=tuple(_SETTINGS),
    settings=tuple(_SETTINGS.items()),
    size=16,
)

PROFILES = {
    "quick": replace(
        _CPU,
        training=GameTraining(steps=40, noise=64, width=32, evaluation=2000),
        methods=("vanilla", "ege-classifier"),
        data="mnist_5k",
        checkpoints=5,
    ),
    "cpu": _CPU,
    "full": Config(
        seeds=5,
        training=GameTraining(steps=30_000, noise=64, width=128, evaluation=26_000, learning_rate=1e-3),
        methods=(*_SETTINGS, "instance-noise"),
        settings=tuple((_SETTINGS | {"vanilla": 1e-3, "instance-noise": 0.3}).items()),
    ),
}
STUDIES: dict[str, Config] = {}


def data_source(config: Config) -> str:
    """Where the digits came from."""
    return load(config.data).source


class Digits(NamedTuple):
    """Training and test digits, with values in -1..1, and their labels."""

    x: Float[Tensor, "n s s"]
    y: Int[Tensor, "n"]
    x_test: Float[Tensor, "m s s"]
    y_test: Int[Tensor, "m"]


def prepare(config: Config, device: torch.device) -> Digits:
    """The digits, resized.

    Raises
    ------
    ValueError
        If a method is unknown or has no setting.
    """
    for name in config.methods:
        named(METHODS, name)
        if name not in dict(config.settings):
            raise ValueError(f"settings: expected one of every method, got none of {name!r}; add ({name!r}, <number>)")
    images = load_images(config.data, device)
    x, x_test = (
        functional.interpolate(2 * x - 1, size=config.size, mode="bilinear", antialias=True).squeeze(1)
        for x in (images.x_train, images.x_test)
    )
    return Digits(x, images.y_train, x_test, images.y_test)


@dataclass(frozen=True)
class Stacks:
    """Images whose three channels are independent digits: a thousand modes.

    Attributes
    ----------
    digits : Tensor [n, s, s]
        With values in -1..1.
    classifier : Stack
        The judge, one a seed: digits [seeds, n, s * s] to the logits of their classes; held fixed.
    make_guide : callable
        What trains `guide`.
    matrix : Tensor [seeds, 3 s s, p]
        The random projections.
    """

    digits: Float[Tensor, "n s s"]
    classifier: Callable[[Tensor], Tensor]
    make_guide: Callable[[], Callable[[Tensor], Tensor]]
    matrix: Float[Tensor, "seeds q p"]

    @property
    def size(self) -> int:
        """Numbers in one stack."""
        return 3 * self.digits[0].numel()

    @cached_property
    def guide(self) -> Callable[[Tensor], Tensor]:
        """Another classifier, for a method that may see one: it should not see its judge. Trained at the first use."""
        return self.make_guide()

    def sample(self, n: int, random: Streams) -> Float[Tensor, "seeds n 3 s s"]:
        """Draw n stacks for every seed."""
        return self.digits[random.integers(len(self.digits), 3, n).mT]

    def networks(self, training: GameTraining, pack: int) -> tuple[nn.Module, Discriminator]:
        """Convolutional generator, and discriminator of packs of stacks, with as many maps as `training.width`."""
        width, side = training.width, self.digits.shape[-1] // 4
        generator = nn.Sequential(
            nn.Linear(training.noise, width * side**2),
            nn.Unflatten(1, (width, side, side)),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, 3, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        layers = nn.Sequential(
            nn.Conv2d(3 * pack, width // 2, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(width * side**2, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 1),
        )
        return generator, Discriminator(layers)

    @torch.no_grad()
    def judge(self, samples: Float[Tensor, "seeds n 3 s s"]) -> list[dict[str, float]]:
        """For every seed the modes found, share of samples the judge is sure of, and divergence from uniform modes."""
        parts = [channel_logits(self.classifier, part).softmax(-1).max(-1) for part in samples.split(500, dim=1)]
        confidence, digit = (torch.cat(found, dim=1) for found in zip(*parts, strict=True))
        mode = (digit * digit.new_tensor([DIGITS**2, DIGITS, 1])).sum(-1)  # CUDA has no product of integer matrices
        judged = []
        for own_mode, least in zip(mode, confidence.amin(-1), strict=True):
            share = torch.bincount(own_mode, minlength=DIGITS**3).double() / len(own_mode)
            judged.append(
                {
                    "modes": float((share > 0).sum()),
                    "quality": 100 * float((least >= CONFIDENT).double().mean()),
                    "kl": float(torch.xlogy(share, share * len(share)).sum()),
                }
            )
        return judged

    def keep(self, samples: Float[Tensor, "n 3 s s"]) -> np.ndarray:
        """The first eight samples, as bytes."""
        return (127.5 * (samples[:8] + 1)).to(torch.uint8).cpu().numpy()


def channel_logits(
    classifier: Callable[[Tensor], Tensor], stacks: Float[Tensor, "seeds n 3 s s"]
) -> Float[Tensor, "seeds n 3 c"]:
    """Classifiers' logits of each channel."""
    return classifier(stacks.flatten(1, 2).flatten(2)).unflatten(1, (-1, 3))


def trained_classifiers(digits: Digits, seeds: Sequence[int], label: str) -> Stack:
    """Train a classifier of digits for every seed, its numbers drawn under a label, and hold it fixed."""
    x, y, device = digits.x.flatten(1), digits.y, digits.x.device
    network = Stack.build(lambda: digit_classifier(digits.x.shape[-1]), seeds, label, device=device)
    steps = 2 * (len(x) // 128) if len(x) > 10_000 else 300
    indices: Iterator[Tensor] = Streams(seeds, label, device=device).batches(len(x), 128, steps)
    train_classifier(network, lambda index: (x[index], y[index]), indices, adam(network.parameters(), 2e-3))
    for weight in network.parameters():
        weight.requires_grad_(False)
    return network


@torch.no_grad()
def accuracy(network: Stack, digits: Digits) -> list[float]:
    """Share of the test digits that each classifier gets right, in per cent."""
    parts = digits.x_test.flatten(1).expand(len(network), -1, -1).split(500, dim=1)
    predicted = torch.cat([network(part).argmax(-1) for part in parts], dim=1)
    return (100 * (predicted == digits.y_test).double().mean(-1)).tolist()


def stacks(config: Config, digits: Digits, seeds: Sequence[int]) -> Stacks:
    """Stacks of the training digits, with every seed's own judge, guide and projection."""
    device, pixels = digits.x.device, 3 * config.size**2
    judge = trained_classifiers(digits, seeds, "classifier")
    make_guide = partial(trained_classifiers, digits, seeds, "guide")
    matrix = Streams(seeds, "projection", device=device).normal(pixels, config.projection)
    return Stacks(digits.x, judge, make_guide, matrix / math.sqrt(pixels))


def run_seeds(config: Config, shared: Digits, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Every method, for these seeds at once.

    Quantities are <method>/stacked/<metric>, the setting among them, those of stacks of test digits as "data", and
    the judge's accuracy. Curves are <method>/stacked/<metric> over the checkpoints and <method>/stacked/samples.
    """
    task = stacks(config, shared, seeds)
    random = Streams(seeds, "real", device=device)
    real = replace(task, digits=shared.x_test).sample(config.training.evaluation, random)
    results: list[Result] = [
        ({"classifier/stacked/accuracy": share} | {f"data/stacked/{metric}": v for metric, v in judged.items()}, {})
        for share, judged in zip(accuracy(task.classifier, shared), task.judge(real), strict=True)
    ]
    settings = dict(config.settings)
    for name in config.methods:
        key, method, setting = f"{name}/stacked", named(METHODS, name), settings[name]
        found = measure(key, task, method, setting, config.training, config.checkpoints, seeds, device)
        for (quantities, curves), (new_quantities, new_curves) in zip(results, found, strict=True):
            quantities |= new_quantities
            curves |= new_curves
    return results
