r"""Generative adversarial networks and mode collapse: the entropy gradient as a force that spreads samples.

The generator of a GAN [Goodfellow et al., NeurIPS 2014] gets the gradient of its samples' entropy, of the samples
themselves or of features of them, as in the EGE paper [Wen et al., Knowledge-Based Systems 224, 2021]. Peers are
packed samples [Lin et al., NeurIPS 2018], noise on the discriminator's input [Sonderby et al., ICLR 2017], and the
entropy by a critic's bound [Kumar et al., 2019].
Explained in :doc:`/book/14_gan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .. import bounds, critics
from ..scores import SSGE, ScoreEstimator
from ..surrogates import entropy_surrogate
from .data import load
from .networks import batches, digit_classifier
from .randomness import seeded, stream

UNITS = {"modes": "1", "quality": "%", "kl": "nat", "setting": "1", "accuracy": "%"}
# A run of the quick profile may lose a mode, or three in a hundred samples, by the rounding of another machine.
FLOORS = {"modes": 1.0, "quality": 3.0}

DEVIATIONS = 3.0  # a sample this near to its mode, in standard deviations, is of high quality
FAIR = 0.1  # a mode is covered if it has this share of its part of the samples, of high quality
CONFIDENT = 0.9  # a stack is of high quality if the classifier is this sure of each of its digits
DIGITS = 10


@dataclass(frozen=True)
class Method:
    """What a generator's training has beside the non-saturating loss.

    Attributes
    ----------
    entropy : str, optional
        Of what the entropy is increased: "output", or for images "projection", "discriminator" or "classifier".
    estimator : ScoreEstimator, optional
        Of that entropy's gradient.
    grid : tuple of float
        Settings that `tune` tries: the weight of the entropy or of the bound, the noise's first deviation, the number
        of samples in a pack, or for "vanilla" the learning rate.
    """

    grid: tuple[float, ...]
    entropy: str | None = None
    estimator: ScoreEstimator | None = None


SMOOTH = SSGE(energy=0.999, shrinkage=True)
METHODS = {
    "vanilla": Method((1e-3, 2e-3, 4e-3, 8e-3)),
    "ege": Method((0.1, 0.3, 1.0, 3.0), "output", SMOOTH),
    "ssge-paper": Method((0.1, 0.3, 1.0, 3.0), "output", SSGE()),
    "pacgan": Method((2, 4)),
    "instance-noise": Method((0.1, 0.3, 1.0)),
    "meg": Method((0.1, 0.3, 1.0, 3.0)),
    "ege-projection": Method((0.1, 0.3, 1.0), "projection", SMOOTH),
    "ege-discriminator": Method((0.1, 0.3, 1.0), "discriminator", SMOOTH),
    "ege-classifier": Method((0.1, 0.3, 1.0), "classifier", SMOOTH),
}
PLANE = ("vanilla", "ege", "ssge-paper", "pacgan", "instance-noise", "meg")


@dataclass(frozen=True)
class Training:
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


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    plane : Training
        On the mixtures in the plane.
    stacked : Training
        On stacks of three digits.
    tasks : tuple of str
        Of `MIXTURES`.
    methods : tuple of str
        Of `PLANE`.
    settings : dict
        Task -> method -> setting; of those in the plane that are not listed it is tuned.
    tuning_seeds : int
        Runs for every entry of a method's grid, with seeds that are not reported.
    stacked_methods : tuple of str
        Their settings must be listed.
    data : str
        "mnist" or "mnist_5k": where the digits come from.
    size : int
        Height and width that the digits are resized to, a multiple of 4.
    projection : int
        Coordinates of the random projection.
    critic_hidden : int
        Units of the bound's critic.
    checkpoints : int
        How often during training the samples are judged.
    """

    seeds: int
    plane: Training
    stacked: Training
    tasks: tuple[str, ...] = ("ring", "grid")
    methods: tuple[str, ...] = PLANE
    settings: dict[str, dict[str, float]] = field(default_factory=dict)
    tuning_seeds: int = 1
    stacked_methods: tuple[str, ...] = ()
    data: str = "mnist"
    size: int = 28
    projection: int = 32
    critic_hidden: int = 128
    checkpoints: int = 10


# --- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """Gaussians of one deviation and equal weight in the plane.

    Attributes
    ----------
    centres : Tensor [k, 2]
    deviation : float
    """

    centres: Float[Tensor, "k 2"]
    deviation: float

    @classmethod
    def ring(cls) -> Mixture:
        """Eight modes on a circle of radius 2."""
        angle = torch.arange(8) * (2 * math.pi / 8)
        return cls(2 * torch.stack([angle.cos(), angle.sin()], dim=-1), 0.1)

    @classmethod
    def grid(cls) -> Mixture:
        """Twenty-five modes on a square grid of spacing 1."""
        axis = torch.arange(-2.0, 3.0)
        return cls(torch.cartesian_prod(axis, axis), 0.05)

    def to(self, device: torch.device) -> Mixture:
        """The mixture on a device."""
        return replace(self, centres=self.centres.to(device))

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """Draw n samples."""
        index = torch.randint(len(self.centres), (n,), generator=generator)
        noise = torch.randn(n, 2, generator=generator)
        return self.centres[index.to(self.centres.device)] + self.deviation * noise.to(self.centres)

    def networks(self, training: Training, pack: int) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator of packs of samples."""
        width = training.width
        return critics.mlp([training.noise, width, width, 2]), critics.mlp([2 * pack, width, width, 1])

    def judge(self, samples: Float[Tensor, "n 2"]) -> dict[str, float]:
        r"""Covered modes, share of samples of high quality, and a divergence from the true law.

        The latter is the KL divergence of the samples' histogram from the true one, over the modes and one cell for
        what lies too far from all of them, which has the probability :math:`e^{-9/2}`: a lower bound of the divergence
        of the laws, and zero for a perfect generator.
        """
        distance, mode = torch.cdist(samples, self.centres).min(dim=-1)
        good = distance <= DEVIATIONS * self.deviation
        counts = torch.bincount(mode[good], minlength=len(self.centres)).double()
        outside = math.exp(-(DEVIATIONS**2) / 2)
        truth = counts.new_tensor([*[(1 - outside) / len(counts)] * len(counts), outside])
        found = torch.cat([counts, (len(samples) - counts.sum())[None]]) / len(samples)
        return {
            "modes": float((counts >= FAIR * len(samples) / len(counts)).sum()),
            "quality": 100 * float(good.double().mean()),
            "kl": float(torch.xlogy(found, found / truth).sum()),
        }


MIXTURES: dict[str, Callable[[], Mixture]] = {"ring": Mixture.ring, "grid": Mixture.grid}


@dataclass(frozen=True)
class Stacks:
    """Images whose three channels are independent digits: a thousand modes.

    Attributes
    ----------
    digits : Tensor [n, 1, s, s]
        With values in -1..1.
    classifier : Module
        Digits to the logits of their classes, held fixed; it was trained on the same digits. It is the judge.
    guide : Module
        Another, trained from another seed, for a method that may see a classifier: it should not see its judge.
    accuracy : float
        Of the classifier on test digits, in per cent.
    matrix : Tensor [3 s s, p]
        The random projection.
    """

    digits: Float[Tensor, "n 1 s s"]
    classifier: nn.Module
    guide: nn.Module
    accuracy: float
    matrix: Float[Tensor, "q p"]

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
        """Draw n stacks."""
        index = torch.randint(len(self.digits), (3, n), generator=generator).to(self.digits.device)
        return torch.cat([self.digits[row] for row in index], dim=1)

    def networks(self, training: Training, pack: int) -> tuple[nn.Module, nn.Module]:
        """Convolutional generator and discriminator of packs of stacks, as many maps as `training.width`."""
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
        discriminator = nn.Sequential(
            nn.Conv2d(3 * pack, width // 2, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(width * side**2, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 1),
        )
        return generator, discriminator

    def judge(self, samples: Float[Tensor, "n 3 s s"]) -> dict[str, float]:
        """Modes that the classifier finds, share of samples it is sure of, and the modes' divergence from uniform."""
        with torch.no_grad():
            probabilities = torch.cat([logits(self.classifier, part).softmax(-1) for part in samples.split(500)])
        confidence, digit = probabilities.max(-1)
        mode = (digit * digit.new_tensor([DIGITS**2, DIGITS, 1])).sum(-1)  # CUDA has no product of integer matrices
        share = torch.bincount(mode, minlength=DIGITS**3).double() / len(samples)
        return {
            "modes": float((share > 0).sum()),
            "quality": 100 * float((confidence.amin(-1) >= CONFIDENT).double().mean()),
            "kl": float(torch.xlogy(share, share * len(share)).sum()),
        }


def logits(classifier: nn.Module, stacks: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 3 c"]:
    """A classifier's logits of each channel."""
    return classifier(stacks.flatten(0, 1).flatten(1)).unflatten(0, (-1, 3))


@lru_cache(maxsize=2)
def stacks(data: str, size: int, projection: int, seed: int, device: torch.device) -> tuple[Stacks, Stacks]:
    """Stacks of the training and of the test digits, with classifiers trained anew for the seed.

    The arguments are those of `Config`.
    """
    dataset = load(data)
    parts = []
    for images, labels in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        images = functional.interpolate(
            images.to(device).float() / 127.5 - 1, size=size, mode="bilinear", antialias=True
        )
        parts.append((images, labels.to(device)))
    (x, y), (x_test, y_test) = parts
    network, guide = (_classifier(x, y, size, stream(seed, name)) for name in ("classifier", "guide"))
    with torch.no_grad():
        predicted = torch.cat([network(part.flatten(1)).argmax(-1) for part in x_test.split(500)])
    accuracy = 100 * float((predicted == y_test).double().mean())
    pixels = 3 * size**2
    matrix = torch.randn(pixels, projection, generator=stream(seed, "projection")) / math.sqrt(pixels)
    return tuple(Stacks(digits, network, guide, accuracy, matrix.to(device)) for digits in (x, x_test))


def _classifier(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> nn.Module:
    network = seeded(lambda: digit_classifier(size), generator.initial_seed()).to(x.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for index in batches(len(x), 128, 2 * (len(x) // 128) if len(x) > 10_000 else 300, generator):
        index = index.to(x.device)
        loss = functional.cross_entropy(network(x[index].flatten(1)), y[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.requires_grad_(False)


def data_source(config: Config) -> str:
    """Where the digits came from."""
    return load(config.data).source


# --- training --------------------------------------------------------------------------------------------------------


class Trainer:
    """A generator, a discriminator and their optimisers; `step` takes one step of each.

    Parameters
    ----------
    task : Mixture or Stacks
    method : str
        One of `METHODS`.
    setting : float
        See `Method.grid`.
    training : Training
    config : Config
    seed : int
        Methods of one seed share the samples, and the initial weights where they fit.
    device : torch.device

    Raises
    ------
    ValueError
        If the method is unknown.
    """

    def __init__(
        self,
        task: Mixture | Stacks,
        method: str,
        setting: float,
        training: Training,
        config: Config,
        seed: int,
        device: torch.device,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method: unknown name {method!r}, expected one of {', '.join(METHODS)}")
        self.task, self.method, self.setting, self.training, self.config = task, method, setting, training, config
        self.pack = round(setting) if method == "pacgan" else 1
        self.device, self.random, self.done = device, stream(seed, "train"), 0
        networks = seeded(lambda: task.networks(training, self.pack), stream(seed, "networks").initial_seed())
        self.generator, self.discriminator = (network.to(device) for network in networks)
        rate = setting if method == "vanilla" else training.learning_rate
        self.optimisers = [self._adam(network, rate) for network in (self.generator, self.discriminator)]
        self.critic = None
        if method == "meg":
            size = task.sample(1, stream(seed, "size")).numel()
            critic = seeded(
                lambda: critics.SeparableCritic(training.noise, size, config.critic_hidden),
                stream(seed, "critic").initial_seed(),
            )
            self.critic = critic.to(device)
            self.optimisers.append(self._adam(self.critic, rate))

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self._share) for o in self.optimisers]

    def _share(self, step: int) -> float:
        """1, then falling to 0 over the second half: of the rates, since a last iterate wanders, and of `setting`."""
        return min(1.0, 2 - 2 * step / self.training.steps)

    def _adam(self, network: nn.Module, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), rate, betas=(self.training.beta, 0.999), fused=True)

    def step(self) -> None:
        """One step of the discriminator, of the bound's critic where there is one, and of the generator."""
        n = self.training.batch
        real, noise = self.task.sample(n, self.random), self._noise(n)
        fake = self.generator(noise)
        self._descend(1, self._discriminator_loss(real, fake.detach()))
        if self.critic is not None:
            self._descend(2, -bounds.jsd(self.critic(noise, fake.detach().flatten(1))))
        for network in (self.discriminator, self.critic):
            if network is not None:
                network.requires_grad_(False)
        loss = functional.softplus(-self.discriminator(self._seen(fake))).mean() - self._spread(noise, fake)
        self._descend(0, loss)
        for network in (self.discriminator, self.critic):
            if network is not None:
                network.requires_grad_(True)
        self.done += 1

    def _descend(self, which: int, loss: Tensor) -> None:
        self.optimisers[which].zero_grad()
        loss.backward()
        self.optimisers[which].step()
        self.schedules[which].step()

    def _noise(self, n: int) -> Tensor:
        return torch.randn(n, self.training.noise, generator=self.random).to(self.device)

    def _seen(self, samples: Tensor) -> Tensor:
        """Samples as the discriminator sees them: noisy, or packed."""
        if self.method == "instance-noise":
            deviation = self.setting * self._share(self.done)
            samples = samples + deviation * torch.randn(samples.shape, generator=self.random).to(samples)
        return samples.unflatten(0, (-1, self.pack)).flatten(1, 2)

    def _discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        softplus = functional.softplus
        real_logits, fake_logits = (self.discriminator(self._seen(samples)) for samples in (real, fake))
        return softplus(-real_logits).mean() + softplus(fake_logits).mean()

    def _spread(self, noise: Tensor, fake: Tensor) -> Tensor | float:
        """What the generator is to maximise beside: an entropy's surrogate, or the bound of the information."""
        method, weight = METHODS[self.method], self.setting * self._share(self.done)
        if self.critic is not None:
            return weight * bounds.jsd(self.critic(noise, fake.flatten(1)))
        if method.entropy is None:
            return 0.0
        return weight * entropy_surrogate(self._features(method.entropy, fake), method.estimator)

    def _features(self, kind: str, fake: Tensor) -> Tensor:
        return {
            "output": lambda: fake.flatten(1),
            "projection": lambda: fake.flatten(1) @ self.task.matrix,
            "discriminator": lambda: self.discriminator[:-2](fake),
            "classifier": lambda: logits(self.task.guide, fake).flatten(1),
        }[kind]()

    @torch.no_grad()
    def samples(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples of the generator as it is used, with running means of batch normalisation."""
        self.generator.eval()
        noise = torch.randn(n, self.training.noise, generator=generator).to(self.device)
        drawn = torch.cat([self.generator(part) for part in noise.split(1000)])
        self.generator.train()
        return drawn


def train(
    task: Mixture | Stacks,
    method: str,
    setting: float,
    training: Training,
    config: Config,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, float], dict[str, list[float]], Tensor]:
    """Train one generator: its final metrics, their values at the checkpoints, and samples."""
    trainer = Trainer(task, method, setting, training, config, seed, device)
    marks = {round(i) for i in np.linspace(0, training.steps, config.checkpoints + 1)[1:]}
    history: dict[str, list[float]] = {}
    for step in range(1, training.steps + 1):
        trainer.step()
        if step in marks:
            last = step == training.steps
            count = training.evaluation if last else min(5000, training.evaluation)
            samples = trainer.samples(count, stream(seed, "evaluate"))
            for metric, value in {"step": step, **task.judge(samples)}.items():
                history.setdefault(metric, []).append(value)
    return {metric: history[metric][-1] for metric in ("modes", "quality", "kl")}, history, samples


@cache
def mixture(name: str) -> Mixture:
    """The mixture of that name; raises ValueError where it is unknown."""
    if name not in MIXTURES:
        raise ValueError(f"tasks: unknown name {name!r}, expected some of {', '.join(MIXTURES)}")
    return MIXTURES[name]()


_TUNED: dict[tuple[str, torch.device], tuple[dict, dict]] = {}


def tune(config: Config, device: torch.device) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Setting of least mean KL divergence for every task in the plane and method that has none, and the metrics tried.

    The seeds are none of the reported ones.
    """
    key = (repr(config), device)
    if key in _TUNED:
        return _TUNED[key]
    chosen, curves = {}, {}
    for task in config.tasks:
        chosen[task] = dict(config.settings.get(task, {}))
        for method in config.methods:
            if method in chosen[task]:
                continue
            grid = METHODS[method].grid
            tried = [
                [
                    train(mixture(task).to(device), method, setting, config.plane, config, 1000 + i, device)[0]
                    for i in range(config.tuning_seeds)
                ]
                for setting in grid
            ]
            for metric in ("modes", "quality", "kl"):
                values = np.array([[run[metric] for run in runs] for runs in tried], dtype=np.float32)
                curves[f"tuning/{task}/{method}/{metric}"] = values
            curves[f"tuning/{task}/{method}/setting"] = np.array(grid, dtype=np.float32)
            chosen[task][method] = grid[int(curves[f"tuning/{task}/{method}/kl"].mean(-1).argmin())]
    _TUNED[key] = chosen, curves
    return chosen, curves


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Every method on every task, for one seed.

    Quantities are <method>/<task>/<metric>, the setting among them; of "stacked" too those of the data, and the
    classifier's accuracy. Curves are <method>/<task>/<metric> over the checkpoints and <method>/<task>/samples, and
    what `tune` tried, the same for every seed.
    """
    chosen, curves = tune(config, device)
    curves, quantities = dict(curves), {}
    jobs = [(name, mixture(name).to(device), config.plane, chosen[name], config.methods) for name in config.tasks]
    if config.stacked_methods:
        task, held_out = stacks(config.data, config.size, config.projection, seed, device)
        jobs.append(("stacked", task, config.stacked, config.settings["stacked"], config.stacked_methods))
        quantities["classifier/stacked/accuracy"] = task.accuracy
        real = held_out.judge(held_out.sample(config.stacked.evaluation, stream(seed, "real")))
        quantities |= {f"data/stacked/{metric}": value for metric, value in real.items()}
    for name, task, training, settings, methods in jobs:
        for method in methods:
            final, history, samples = train(task, method, settings[method], training, config, seed, device)
            quantities |= {f"{method}/{name}/{metric}": value for metric, value in final.items()}
            quantities[f"{method}/{name}/setting"] = settings[method]
            curves |= {f"{method}/{name}/{metric}": np.array(v, dtype=np.float32) for metric, v in history.items()}
            kept = samples[:500].half() if name != "stacked" else (127.5 * (samples[:8] + 1)).to(torch.uint8)
            curves[f"{method}/{name}/samples"] = kept.cpu().numpy()
    return quantities, curves


_RING = {"vanilla": 3e-3, "ege": 0.3, "pacgan": 2, "meg": 0.3}
# From pilots with seed 1000: two weights each of "ege-projection" and "ege-classifier", three of "ege-discriminator",
# three rates of "vanilla", one setting of the others.
_STACKED = {
    "vanilla": 3e-3,
    "ege-projection": 0.3,
    "ege-discriminator": 0.1,
    "ege-classifier": 1.0,
    "pacgan": 2,
    "meg": 0.3,
}

PROFILES = {
    "quick": Config(
        seeds=5,
        plane=Training(steps=600),
        tasks=("ring",),
        methods=tuple(_RING),
        settings={"ring": _RING, "stacked": _STACKED},
        stacked=Training(steps=40, noise=64, width=32, evaluation=2000),
        stacked_methods=("vanilla", "ege-classifier"),
        data="mnist_5k",
        size=16,
        checkpoints=5,
    ),
    "cpu": Config(
        seeds=5,
        plane=Training(steps=4000),
        settings={"stacked": _STACKED},
        stacked=Training(steps=2000, noise=64, width=32, evaluation=26_000),
        stacked_methods=tuple(_STACKED),
        size=16,
    ),
    "cpu-large": Config(seeds=5, plane=Training(steps=20_000), stacked=Training(steps=0), tasks=("grid",)),
    "full": Config(
        seeds=5,
        plane=Training(steps=20_000, batch=256),
        settings={"stacked": _STACKED | {"vanilla": 1e-3, "instance-noise": 0.3}},
        tuning_seeds=2,
        stacked=Training(steps=30_000, noise=64, width=128, evaluation=26_000, learning_rate=1e-3),
        stacked_methods=(*_STACKED, "instance-noise"),
    ),
}
