r"""Deep InfoMax: an encoder trained to maximise I(x; E(x)), by MIGE and by variational bounds, judged by a classifier.

The representation-learning experiment of the MIGE paper [Wen et al., ICLR 2020] on the encoder of Deep InfoMax
[Hjelm et al., ICLR 2019].
Explained in :doc:`/book/11_infomax`.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import bounds, critics
from ..kernels import median_distance
from ..scores import SSGE
from ..surrogates import mutual_information_surrogate
from . import data
from .metrics import clock, effective_rank
from .networks import DeepInfoMaxEncoder, Features, PatchFeatures
from .randomness import seeded, stream

UNITS = {"test_accuracy": "%", "probe_accuracy": "%", "effective_rank": "1"}
# A percentage point: about the sampling error of a mean of three accuracies on 1,000 images.
FLOORS = {"test_accuracy": 1.0, "probe_accuracy": 1.0}
LAYERS = ("conv", "fc", "y")


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    methods : tuple of str
        Of `OBJECTIVES` and `REFERENCES`.
    dataset : str
        One of `migelib.data`: "mnist_5k", "mnist", "cifar10", "cifar100" or "stl10".
    train, test : int, optional
        Number of images to train the encoder and the classifiers on, and to test on, drawn once for all seeds; by
        default all.
    size : int, optional
        Height and width that the images are shrunk to by averaging; by default as they are.
    widths, hidden, code : tuple of int, int and int
        Of the encoder, see `migelib.models.DeepInfoMaxEncoder`.
    batch, epochs, learning_rate : int, int and float
        Training by Adam.
    other_rates : dict of float
        Learning rates of the methods that have one of their own.
    projection : int
        Coordinates of the fixed random projection of an image that stands for x.
    filters, components : int
        Filters of the structured projection, and how many of its principal components stand for x where moments do.
    noise : float
        Standard deviation of the noise that a normalised code carries, in those of the code's coordinates.
    resolved : int
        Where moments stand for a score: x carries noise of the variance of its principal component of this rank.
    memory : float
        Weight of the past in the moving moments.
    prior_weight : float
        Weight of prior matching, where a method has it.
    critic_hidden, embedding : int
        Width and, for a separable one, embedding of the critics.
    classifier_hidden, classifier_epochs, classifier_batch, classifier_rate : int, int, int and float
        The classifiers, trained by AdamW with a rate that falls linearly to zero.
    log_points : int
        How often during training the diagnostics are measured.
    timed_steps : int
        Steps of each method that are timed, interleaved; 0 for none.
    """

    seeds: int
    methods: tuple[str, ...]
    dataset: str
    train: int | None = None
    test: int | None = None
    size: int | None = None
    widths: tuple[int, ...] = (64, 128, 256)
    hidden: int = 1024
    code: int = 64
    batch: int = 128
    epochs: int = 5
    learning_rate: float = 3e-4
    other_rates: dict[str, float] = field(default_factory=dict)
    projection: int = 512
    filters: int = 128
    components: int = 64
    noise: float = 0.5
    resolved: int = 32
    memory: float = 0.95
    prior_weight: float = 0.1
    critic_hidden: int = 512
    embedding: int = 64
    classifier_hidden: int = 200
    classifier_epochs: int = 10
    classifier_batch: int = 128
    classifier_rate: float = 1e-3
    log_points: int = 20
    timed_steps: int = 0

    def __post_init__(self) -> None:
        unknown = sorted({*self.methods, *self.other_rates} - {*OBJECTIVES, *REFERENCES})
        if unknown:
            raise ValueError(
                f"methods: unknown {', '.join(unknown)}, expected some of {', '.join([*OBJECTIVES, *REFERENCES])}"
            )
        if self.dataset not in data.LOADERS:
            raise ValueError(f"dataset: unknown name {self.dataset!r}, expected one of {', '.join(data.LOADERS)}")
        if self.train is not None and self.train < self.batch:
            raise ValueError(f"train: expected at least one batch of {self.batch} images, got {self.train}")


class Images(NamedTuple):
    """The images of a run, standardised by channel, and their classes."""

    x_train: Float[Tensor, "n c h w"]
    y_train: Int[Tensor, "n"]
    x_test: Float[Tensor, "m c h w"]
    y_test: Int[Tensor, "m"]


def data_source(config: Config) -> str:
    """Where the images came from."""
    return data.load(config.dataset).source


def load_images(config: Config, device: torch.device) -> Images:
    """The images of a run: the same ones for every seed, standardised by the training images' channels."""
    dataset = data.load(config.dataset)
    parts = []
    for name, count in (("train", config.train), ("test", config.test)):
        images, labels = getattr(dataset, f"x_{name}"), getattr(dataset, f"y_{name}")
        if count is not None:
            if count > len(images):
                raise ValueError(f"{name}: {config.dataset} has {len(images)} images only, got {count}")
            chosen = torch.randperm(len(images), generator=stream(0, "images", name))[:count]
            images, labels = images[chosen], labels[chosen]
        images = images.to(device).float() / 255
        if config.size is not None and config.size != images.shape[-1]:
            images = nn.functional.adaptive_avg_pool2d(images, config.size)
        parts += [images, labels.to(device)]
    mean = parts[0].mean((0, 2, 3), keepdim=True)
    std = parts[0].std((0, 2, 3), keepdim=True)
    for i in (0, 2):
        parts[i] = ((parts[i] - mean) / std).contiguous(memory_format=torch.channels_last)
    return Images(*parts)


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Accuracies of every method and layer, for one seed.

    The quantities are <method>/<layer>/test_accuracy, with the one-hidden-layer classifier, <method>/<layer>/
    probe_accuracy, with the linear one, and the effective rank of Y over the test images. The curves are the
    diagnostics of `train`, named <method>/<diagnostic>, and the times of `time_steps`.
    """
    images = load_images(config, device)
    quantities, curves = {}, {}
    for method in config.methods:
        if method in REFERENCES:
            projection = REFERENCES[method](config, images, stream(seed, method))
            layers = {"y": [projection(x) for x in (images.x_train, images.x_test)]}
        else:
            encoder, history = train(config, method, images, seed)
            layers = features(encoder, images)
            curves |= {f"{method}/{name}": np.array(curve, dtype=np.float32) for name, curve in history.items()}
            quantities[f"{method}/y/effective_rank"] = effective_rank(layers["y"][1])
        for layer, (train_features, test_features) in layers.items():
            for metric, hidden in (("test_accuracy", config.classifier_hidden), ("probe_accuracy", None)):
                quantities[f"{method}/{layer}/{metric}"] = classifier_accuracy(
                    config,
                    (train_features, images.y_train),
                    (test_features, images.y_test),
                    hidden,
                    stream(seed, "classifier", layer, metric),
                )
    if config.timed_steps:
        curves |= {f"{method}/step_ms": times for method, times in time_steps(config, images, seed).items()}
    return quantities, curves


# Objectives. Each is a module whose parameters are trained with the encoder's, and whose call returns the loss.


class Batch(NamedTuple):
    """What an objective sees of a step."""

    index: Int[Tensor, "n"]
    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    features: Features
    generator: torch.Generator


def pixel_projection(
    config: Config, images: Images, generator: torch.Generator, size: int | None = None
) -> Callable[[Tensor], Tensor]:
    """A fixed Gaussian random projection of the pixels, to `size` coordinates: what stands for x in the paper."""
    pixels = images.x_train[0].numel()
    matrix = torch.randn(pixels, size or config.projection, generator=generator).to(images.x_train) / math.sqrt(pixels)
    return lambda x: x.flatten(1) @ matrix


def patch_projection(config: Config, images: Images, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The structured projection: pooled responses of filters that are whitened patches of the training images."""
    return PatchFeatures(images.x_train, config.filters, generator=generator)


def leading(samples: Float[Tensor, "n d"], count: int) -> tuple[Float[Tensor, "n k"], Float[Tensor, "k"]]:
    """The leading principal components of samples, largest first, and their variances."""
    values, vectors = torch.linalg.eigh(torch.cov(samples.mT))
    return (samples - samples.mean(0)) @ vectors[:, -count:].flip(1), values[-count:].flip(0)


class Mige(nn.Module):
    r"""MIGE with a fixed projection of the image as x and one score estimator: the paper's recipe by default.

    Where `balanced`, the code is batch-normalised and carries noise, so that the information is finite; and x and the
    code are each divided by their median distance, so that neither drops out of the joint kernel.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        generator: torch.Generator,
        projection: Callable[[Config, Images, torch.Generator], Callable[[Tensor], Tensor]] = pixel_projection,
        balanced: bool = False,
        energy: float = 0.99,
    ) -> None:
        super().__init__()
        # Fixed, so computed once for all images.
        self.register_buffer("x", projection(config, images, generator)(images.x_train))
        self.normalise = nn.BatchNorm1d(config.code, affine=False) if balanced else None
        self.noise = config.noise
        self.estimator = SSGE(energy)

    def pair(self, batch: Batch) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
        """The samples of x and z."""
        x, z = self.x[batch.index], batch.features.y
        if self.normalise is None:
            return x, z
        z = _noisy(self.normalise(z), self.noise, batch.generator)
        return x / median_distance(x), z / median_distance(z.detach())

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Minus the surrogate of I(x; z)."""
        return -mutual_information_surrogate(*self.pair(batch), self.estimator)


class MomentMige(nn.Module):
    r"""MIGE with Gaussian scores whose moments are moving averages over batches.

    x is the leading principal components of a projection, with noise that hides those of small variance; the code is
    batch-normalised and carries noise. Both scores are linear, :math:`-\Sigma^{-1} (u - \mu)`.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        generator: torch.Generator,
        projection: Callable[[Config, Images, torch.Generator], Callable[[Tensor], Tensor]] = patch_projection,
    ) -> None:
        super().__init__()
        x, variances = leading(projection(config, images, generator)(images.x_train), config.components)
        self.register_buffer("x", x)
        self.x_noise = float(variances[min(config.resolved, len(variances)) - 1].sqrt())
        self.normalise = nn.BatchNorm1d(config.code, affine=False)
        self.noise = config.noise
        self.moments = MovingMoments(config.memory)

    def pair(self, batch: Batch) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
        """The samples of x and z."""
        x = _noisy(self.x[batch.index], self.x_noise, batch.generator)
        return x, _noisy(self.normalise(batch.features.y), self.noise, batch.generator)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Minus a surrogate of I(x; z), in its dependence on z."""
        x, z = self.pair(batch)
        self.moments.update(torch.cat([x, z], -1))
        joint = self.moments.score(torch.cat([x, z], -1))[:, x.shape[1] :]
        marginal = self.moments.score(z, start=x.shape[1])
        return ((marginal - joint) * z).sum(-1).mean()


class MovingMoments:
    """Moving averages of the mean and the second moments of batches, in double precision, and the Gaussian's score.

    Parameters
    ----------
    memory : float
        Weight of the past, in [0, 1).

    Raises
    ------
    ValueError
        If `memory` is not in its range.
    """

    ridge = 1e-3  # share of the variances, for the first batches

    def __init__(self, memory: float) -> None:
        if not 0 <= memory < 1:
            raise ValueError(f"memory: expected a number in [0, 1), got {memory!r}")
        self.memory = memory
        self.weight = 0.0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def update(self, samples: Float[Tensor, "n d"]) -> None:
        """Take a batch in."""
        samples = samples.detach().double()
        new = 1 - self.memory
        self.weight = self.memory * self.weight + new
        self.first = self.memory * self.first + new * samples.mean(0)
        self.second = self.memory * self.second + new * (samples.mT @ samples) / len(samples)

    def moments(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
        """Mean and covariance."""
        mean = self.first / self.weight
        covariance = self.second / self.weight - torch.outer(mean, mean)
        return mean, covariance + self.ridge * torch.diag(covariance.diagonal())

    def score(self, samples: Float[Tensor, "n d"], start: int = 0) -> Float[Tensor, "n d"]:
        """Score of the Gaussian of the coordinates from `start` on, at samples of these coordinates."""
        mean, covariance = self.moments()
        centred = samples.detach().double() - mean[start:]
        return -torch.linalg.solve(covariance[start:, start:], centred.mT).mT.to(samples.dtype)


def _noisy(z: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    return z + noise * torch.randn(z.shape, generator=generator).to(z)


class ShortcutCritic(nn.Module):
    r"""Separable critic :math:`T(x, y) = f(x)^\top g(y)`, each side a network plus a linear map.

    The network has one hidden layer with batch normalisation; both it and the shortcut are those of the critics in
    the published code of Deep InfoMax. Without the shortcut Y collapses to a few directions early in training.
    """

    def __init__(self, x_dim: int, y_dim: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, embedding)
                )
                for dim in (x_dim, y_dim)
            ]
        )
        self.shortcuts = nn.ModuleList([nn.Linear(dim, embedding, bias=False) for dim in (x_dim, y_dim)])

    def forward(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Float[Tensor, "n n"]:
        """Matrix of all critic values."""
        f, g = (layer(v) + line(v) for layer, line, v in zip(self.layers, self.shortcuts, (x, y), strict=True))
        return f @ g.mT


class GlobalCritic(nn.Module):
    """DIM(G): a critic of the image and Y, trained with the encoder; with or without prior matching.

    The critic's x is the projected image, as in `Mige`; without a projection it is the encoder's own last
    convolutional map, as in Deep InfoMax.

    Prior matching trains a discriminator between the logistic function of Y and uniform noise; the encoder gets its
    gradient reversed.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        generator: torch.Generator,
        bound: Callable[[Tensor], Tensor],
        concatenated: bool = False,
        prior: bool = False,
        projection: Callable[[Config, Images, torch.Generator], Callable[[Tensor], Tensor]] | None = pixel_projection,
    ) -> None:
        super().__init__()
        self.register_buffer("x", projection(config, images, generator)(images.x_train) if projection else None)
        x_dim = _encoder(config, images).conv_dim if self.x is None else self.x.shape[1]
        self.bound = bound
        if concatenated:
            self.critic = critics.ConcatenatedCritic(x_dim, config.code, config.critic_hidden)
        else:
            self.critic = ShortcutCritic(x_dim, config.code, config.critic_hidden, config.embedding)
        self.prior = critics.mlp([config.code, 200, 1]) if prior else None
        self.weight = config.prior_weight

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Minus the bound, plus the discriminator's loss where there is one."""
        y = batch.features.y
        x = batch.features.conv.flatten(1) if self.x is None else self.x[batch.index]
        loss = -self.bound(self.critic(x, y))
        if self.prior is not None:
            code = torch.sigmoid(y)
            code = code.detach() * 2 - code  # value of the code, minus its gradient
            uniform = torch.rand(y.shape, generator=batch.generator).to(y)
            softplus = nn.functional.softplus
            loss = loss + self.weight * (softplus(self.prior(code)) + softplus(-self.prior(uniform))).mean()
        return loss


class Autoencoder(nn.Module):
    """Mean squared error of the image that a two-layer network decodes from Y."""

    def __init__(self, config: Config, images: Images, generator: torch.Generator) -> None:
        super().__init__()
        self.decoder = critics.mlp([config.code, config.hidden, images.x_train[0].numel()])

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Error per pixel."""
        return nn.functional.mse_loss(self.decoder(batch.features.y), batch.images.flatten(1))


class Supervised(nn.Module):
    """Cross-entropy of a linear classifier of Y: what the encoder can do when it is told the classes."""

    def __init__(self, config: Config, images: Images, generator: torch.Generator) -> None:
        super().__init__()
        self.head = nn.Linear(config.code, int(images.y_train.max()) + 1)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy in nats."""
        return nn.functional.cross_entropy(self.head(batch.features.y), batch.labels)


OBJECTIVES: dict[str, Callable[[Config, Images, torch.Generator], nn.Module | None]] = {
    "random": lambda *_: None,
    "mige": Mige,
    **{
        f"mige-{size}d": functools.partial(Mige, projection=functools.partial(pixel_projection, size=size))
        for size in (8, 64, 2048)
    },
    "mige-balanced": functools.partial(Mige, balanced=True, energy=0.95),
    "mige-patches": functools.partial(Mige, projection=patch_projection),
    "mige-moments": MomentMige,
    "mige-moments-pixels": functools.partial(MomentMige, projection=pixel_projection),
    **{
        name + suffix: functools.partial(GlobalCritic, bound=bound, **options)
        for name, bound in (("jsd", bounds.jsd), ("infonce", bounds.infonce))
        for suffix, options in {
            "": {},
            "-prior": {"prior": True},
            "-concatenated": {"concatenated": True},
            "-concatenated-prior": {"concatenated": True, "prior": True},
            "-map": {"projection": None},
            "-patches": {"projection": patch_projection},
        }.items()
    },
    "autoencoder": Autoencoder,
    "supervised": Supervised,
}


# Training.


def encoder_of(config: Config, images: Images, generator: torch.Generator) -> DeepInfoMaxEncoder:
    """A new encoder, drawn with the generator's seed, on the images' device."""
    encoder = seeded(lambda: _encoder(config, images), generator.initial_seed())
    return encoder.to(images.x_train.device, memory_format=torch.channels_last)


def _encoder(config: Config, images: Images) -> DeepInfoMaxEncoder:
    return DeepInfoMaxEncoder(*images.x_train.shape[1:3], config.widths, config.hidden, config.code)


def objective_of(config: Config, method: str, images: Images, generator: torch.Generator) -> nn.Module | None:
    """The objective of a method, its parameters drawn with the generator's seed, on the images' device."""
    objective = seeded(lambda: OBJECTIVES[method](config, images, generator), generator.initial_seed())
    return None if objective is None else objective.to(images.x_train.device)


class Trainer:
    """An encoder, an objective and their optimiser; `step` takes one step.

    Parameters
    ----------
    config : Config
    method : str
        One of `OBJECTIVES`.
    images : Images
    seed : int
        All methods start from the encoder of that seed, and see the same batches.
    """

    def __init__(self, config: Config, method: str, images: Images, seed: int) -> None:
        self.images = images
        self.generator = stream(seed, "noise", method)
        self.encoder = encoder_of(config, images, stream(seed, "encoder"))
        self.objective = objective_of(config, method, images, stream(seed, "objective", method))
        modules = nn.ModuleList([self.encoder, *([self.objective] if self.objective else [])])
        rate = config.other_rates.get(method, config.learning_rate)
        self.optimiser = torch.optim.Adam(modules.parameters(), lr=rate, fused=True)

    def step(self, index: Int[Tensor, "b"]) -> Batch:
        """One step on the images of that index; the gradients are left for inspection."""
        batch = self.batch(index)
        loss = self.objective(batch) if self.objective else batch.features.y.square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return batch

    def batch(self, index: Int[Tensor, "b"]) -> Batch:
        """The images of that index, and their features."""
        images = self.images.x_train[index]
        return Batch(index, images, self.images.y_train[index], self.encoder(images), self.generator)


def train(config: Config, method: str, images: Images, seed: int) -> tuple[DeepInfoMaxEncoder, dict[str, list[float]]]:
    """Train an encoder.

    Returns
    -------
    DeepInfoMaxEncoder
        In evaluation mode.
    dict
        Diagnostics at `config.log_points` steps of training: "step"; of the batch's Y, "effective_rank" and "scale",
        the root mean variance of its coordinates; "gradient_norm", of the encoder's parameters; and for MIGE
        "kept_joint" and "kept_marginal", the numbers of eigenvalues that the two scores keep.
    """
    trainer = Trainer(config, method, images, seed)
    history = defaultdict(list)
    order = stream(seed, "batches")
    n = len(images.x_train)
    per_epoch = n // config.batch
    total = config.epochs * per_epoch
    logged = {round(i) for i in np.linspace(0, total - 1, min(config.log_points, total))}
    if trainer.objective is None:  # no training; a few batches for the running means of batch normalisation
        for index in torch.randperm(n, generator=order)[: 20 * config.batch].split(config.batch):
            with torch.no_grad():
                trainer.encoder(images.x_train[index.to(images.x_train.device)])
        return trainer.encoder.eval(), history
    for step in range(total):
        if step % per_epoch == 0:
            permutation = torch.randperm(n, generator=order).to(images.x_train.device)
        start = step % per_epoch * config.batch
        batch = trainer.step(permutation[start : start + config.batch])
        if step in logged:
            history["step"].append(step)
            for name, value in diagnostics(trainer, batch).items():
                history[name].append(value)
    return trainer.encoder.eval(), history


@torch.no_grad()
def diagnostics(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """What `train` logs after a step."""
    y = batch.features.y.detach()
    gradients = [p.grad for p in trainer.encoder.parameters() if p.grad is not None]
    result = {
        "effective_rank": effective_rank(y),
        "scale": float(y.var(0).mean().sqrt()),
        "gradient_norm": float(torch.stack([g.norm() for g in gradients]).norm()),
    }
    if isinstance(trainer.objective, Mige):
        x, z = trainer.objective.pair(batch)
        estimator = trainer.objective.estimator
        result["kept_joint"] = float(estimator.fit(torch.cat([x, z], -1)).n_eigen)
        result["kept_marginal"] = float(estimator.fit(z).n_eigen)
    return result


def time_steps(config: Config, images: Images, seed: int) -> dict[str, np.ndarray]:
    """Milliseconds of a training step, `config.timed_steps` for each method and the encoder alone, interleaved.

    "encoder" steps on the mean square of Y.
    """
    device = images.x_train.device
    methods = {"encoder": "random"} | {m: m for m in config.methods if m in OBJECTIVES and m != "random"}
    trainers = {name: Trainer(config, method, images, seed) for name, method in methods.items()}
    times = defaultdict(list)
    for step in range(config.timed_steps + 2):
        index = torch.randperm(len(images.x_train), generator=stream(seed, "time", step))[: config.batch].to(device)
        for name, trainer in trainers.items():
            started = clock(device)
            trainer.step(index)
            times[name].append(1e3 * (clock(device) - started))
    return {name: np.array(values[2:], dtype=np.float32) for name, values in times.items()}  # the first warm up


# Evaluation.


@torch.no_grad()
def features(encoder: DeepInfoMaxEncoder, images: Images) -> dict[str, tuple[Tensor, Tensor]]:
    """Frozen features of the training and the test images, by layer, flattened."""
    parts = [[encoder(x) for x in part.split(500)] for part in (images.x_train, images.x_test)]
    return {layer: tuple(torch.cat([getattr(f, layer).flatten(1) for f in part]) for part in parts) for layer in LAYERS}


def pca(config: Config, images: Images, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The leading principal components of the pixels, as many as Y has coordinates."""
    pixels = images.x_train.flatten(1)
    mean = pixels.mean(0)
    directions = torch.linalg.eigh(torch.cov(pixels.mT)).eigenvectors[:, -config.code :]
    return lambda x: (x.flatten(1) - mean) @ directions


def pca_of_patches(config: Config, images: Images, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The leading principal components of the structured projection, as many as Y has coordinates."""
    patches = patch_projection(config, images, generator)
    samples = patches(images.x_train)
    directions = torch.linalg.eigh(torch.cov(samples.mT)).eigenvectors[:, -config.code :]
    return lambda x: patches(x) @ directions


REFERENCES: dict[str, Callable[[Config, Images, torch.Generator], Callable[[Tensor], Tensor]]] = {
    "pca": pca,
    "projection": pixel_projection,
    "patches": patch_projection,
    "patches-pca": pca_of_patches,
}


def classifier_accuracy(
    config: Config,
    train: tuple[Float[Tensor, "n d"], Int[Tensor, "n"]],
    test: tuple[Float[Tensor, "m d"], Int[Tensor, "m"]],
    hidden: int | None,
    generator: torch.Generator,
) -> float:
    """Test accuracy in per cent of a classifier of standardised features, with one hidden layer or none.

    Parameters
    ----------
    config : Config
    train, test : tuple
        Features and classes.
    hidden : int, optional
        Units of the hidden layer; None for a linear classifier.
    generator : torch.Generator
        For the initial weights and the batches.
    """
    (x, labels), (x_test, labels_test) = train, test
    std, mean = torch.std_mean(x, 0)
    std = torch.where(std > 0, std, torch.ones_like(std))  # of units that never fire
    x, x_test = (x - mean) / std, (x_test - mean) / std
    sizes = [x.shape[1], *([hidden] if hidden else []), int(labels.max()) + 1]
    network = seeded(lambda: critics.mlp(sizes), generator.initial_seed()).to(x.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.classifier_rate, weight_decay=1e-3, fused=True)
    size = min(config.classifier_batch, len(x))
    total = config.classifier_epochs * (len(x) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / total)
    for _ in range(config.classifier_epochs):
        permutation = torch.randperm(len(x), generator=generator).to(x.device)
        for index in permutation[: len(x) // size * size].split(size):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[index]), labels[index]).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        return 100 * float((network(x_test).argmax(1) == labels_test).double().mean())


CRITIC_KINDS = ("prior", "concatenated", "concatenated-prior", "map", "patches")
MAIN = ("random", "mige", "mige-patches", "mige-moments", "jsd", "infonce", "supervised")
FIXED = ("pca", "projection", "patches", "patches-pca")
VARIANTS = (
    "mige-balanced",
    "mige-8d",
    "mige-64d",
    "mige-moments-pixels",
    *(f"{bound}-{kind}" for bound in ("jsd", "infonce") for kind in CRITIC_KINDS),
    "autoencoder",
)


# From pilots on images held out of the training set, the same rates for mige, mige-patches, mige-moments, jsd and
# infonce: 3e-4, 1e-3 and 3e-3 on MNIST, 3e-4 and 1e-3 on CIFAR-10. A variant has the rate of what it varies.
PROFILES = {
    "quick": Config(
        seeds=3,
        methods=(*MAIN, *FIXED, *VARIANTS),
        dataset="mnist_5k",
        train=3_000,
        widths=(16, 32, 64),
        hidden=256,
        epochs=4,
        learning_rate=3e-3,
        other_rates={
            "infonce": 1e-3,
            **{f"infonce-{kind}": 1e-3 for kind in CRITIC_KINDS},
            "autoencoder": 1e-3,
            "supervised": 1e-3,
        },
        filters=64,
        critic_hidden=64,
        classifier_epochs=10,
        classifier_batch=256,
        classifier_rate=3e-3,
        log_points=5,
    ),
    "cpu": Config(
        seeds=3,
        methods=(*MAIN, *FIXED, "mige-64d", "mige-2048d", "jsd-patches", "infonce-patches"),
        dataset="cifar10",
        train=20_000,
        test=5_000,
        epochs=5,
        other_rates={"mige-moments": 1e-3},
        classifier_epochs=6,
        classifier_rate=2e-3,
        timed_steps=10,
    ),
    "cpu-large": Config(
        seeds=3,
        methods=("random", "mige", "mige-moments", "jsd", "infonce", "pca"),
        dataset="cifar10",
        epochs=8,
        other_rates={"mige-moments": 1e-3},
        classifier_epochs=6,
        classifier_rate=2e-3,
    ),
    "full": Config(
        seeds=3,
        methods=(*MAIN, *FIXED, *VARIANTS, "mige-2048d"),
        dataset="cifar10",
        epochs=100,
        other_rates={"mige-moments": 1e-3, "mige-moments-pixels": 1e-3},
        log_points=100,
        timed_steps=20,
    ),
}
