r"""Autoencoders pushed to their prior: an aggregate posterior matched to it, and an implicit posterior of each image.

Both add the estimated gradient of an entropy to a reconstruction loss [Wen et al., Knowledge-Based Systems 224, 2021].
A Wasserstein autoencoder [Tolstikhin et al., ICLR 2018] has its codes matched to a Gaussian by that of
:math:`\mathrm{KL}(q(z) \,\|\, p)`, beside maximum mean discrepancies and a discriminator. A variational autoencoder
[Kingma & Welling, ICLR 2014] has an encoder with noise at its input and no density, beside the Gaussian one.
Explained in :doc:`/book/15_autoencoder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..critics import mlp
from ..scores import SSGE, GaussianScore, ScoreEstimator
from ..surrogates import kl_surrogate
from ..tasks import gaussian_log_prob
from .data import load
from .metrics import KERNELS, clock, energy_kernel, frechet_distance, mean_kernel, mmd_squared, multiquadric_kernel
from .networks import batches, digit_classifier
from .randomness import seeded, stream
from .records import Record

UNITS = {
    "reconstruction": "nat",
    "energy_distance": "1",
    "mmd_squared": "1",
    "frechet": "1",
    "accuracy": "%",
    "log_likelihood": "nat",
    "grid_log_likelihood": "nat",
    "posterior_distance": "1",
}

# How the score of the codes is estimated. "gaussian" leaves their mean and covariance only: an ablation.
ESTIMATORS: dict[str, ScoreEstimator | None] = {
    "ege": SSGE(energy=0.999, shrinkage=True),
    "ssge-paper": SSGE(),
    "gaussian": GaussianScore(),
    "adaptive": None,
}
LOG_SCALE = -2.0  # of a Gaussian encoder's deviations at the start
GRID_LIMIT = 6.0  # of the quadrature over two-dimensional codes
ROWS = 20_000  # decoded at once


@dataclass(frozen=True)
class Frontier:
    """One frontier: the size of the code, the training, and by method the weights of its regulariser.

    Attributes
    ----------
    code : int
        Coordinates d of a code.
    batch : int
        Images a step.
    epochs : int
        Passes over the training images.
    weights : dict
        Method -> weights. The method is "none", "vae", "wae-gan", "wae-mmd-" with a kernel of `KERNELS`, or one of
        `ESTIMATORS`.
    """

    code: int
    batch: int
    epochs: int
    weights: dict[str, tuple[float, ...]]

    @property
    def setting(self) -> str:
        """Its name in quantities."""
        return f"d{self.code}-b{self.batch}-e{self.epochs}"


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    frontiers : tuple of Frontier
        What is trained; the figures are made from the first.
    data : str
        "mnist" or "mnist_5k".
    images, test_images : int
        How many of the training and of the test images are used.
    hidden : int
        Units of each of two hidden layers of the encoder and of the decoder.
    learning_rate : float
        Of Adam at the start; it falls to zero along a cosine.
    prior_draws : int
        Draws of the prior for each code of a batch, in the discrepancies.
    discriminator_rate : float
        That of the discriminator's Adam.
    classifier_epochs : int
        Passes in the training of the classifier whose features measure the samples.
    posterior_codes : tuple of int
        Code sizes of the variational autoencoders.
    posterior_methods : tuple of str
        Their posteriors: "vae" and "vae-full" are Gaussians with a diagonal and with a full covariance, "vae-3x" the
        former with three times the steps; one of `ESTIMATORS` makes it implicit.
    posterior_batch, posterior_samples, posterior_steps : int
        Images a step, codes of each of them, and steps.
    posterior_noise : int
        Coordinates of the noise at the input of an implicit encoder.
    likelihood_images, likelihood_samples : int
        Test images whose likelihood is bounded, and samples of the bound.
    grid : int
        Points on each axis of the quadrature of the likelihood over two-dimensional codes.
    kept : dict
        Method -> weight: those whose codes and samples are kept for figures.
    """

    seeds: int
    frontiers: tuple[Frontier, ...]
    data: str = "mnist"
    images: int = 60_000
    test_images: int = 10_000
    hidden: int = 128
    learning_rate: float = 4e-3
    prior_draws: int = 4
    discriminator_rate: float = 1e-3
    classifier_epochs: int = 2
    posterior_codes: tuple[int, ...] = (2, 8)
    posterior_methods: tuple[str, ...] = ("vae", "vae-full", "ege", "ssge-paper")
    posterior_batch: int = 64
    posterior_samples: int = 32
    posterior_steps: int = 800
    posterior_noise: int = 16
    likelihood_images: int = 300
    likelihood_samples: int = 300
    grid: int = 300
    kept: dict[str, float] = field(default_factory=dict)


_ALL = {
    "none": (0.0,),
    "ege": (1.0, 5.0, 20.0, 60.0),
    "ssge-paper": (1.0, 5.0, 20.0, 60.0),
    "gaussian": (1.0, 5.0, 20.0, 60.0),
    "wae-mmd-imq": (30.0, 100.0, 300.0, 1000.0),
    "wae-mmd-rbf": (3.0, 10.0, 30.0, 100.0),
    "wae-mmd-energy": (3.0, 10.0, 30.0, 100.0),
    "wae-gan": (0.5, 1.0, 2.0, 5.0),
    "vae": (0.3, 1.0),
}
_KEPT = {"none": 0.0, "ege": 5.0, "wae-mmd-imq": 300.0, "wae-gan": 1.0, "vae": 1.0}


def _some(methods: tuple[str, ...], first: int, last: int) -> dict[str, tuple[float, ...]]:
    return {method: _ALL[method][first:last] for method in methods}


PROFILES = {
    "quick": Config(
        seeds=5,
        frontiers=(
            Frontier(
                8,
                64,
                5,
                {"none": (0.0,), "ege": (5.0, 20.0), "wae-mmd-imq": (100.0, 300.0), "wae-mmd-energy": (10.0,)}
                | {"wae-gan": (1.0,), "vae": (1.0,)},
            ),
        ),
        data="mnist_5k",
        hidden=64,
        classifier_epochs=4,
        posterior_codes=(2,),
        posterior_methods=("vae", "ege"),
        posterior_batch=32,
        posterior_samples=16,
        posterior_steps=250,
        likelihood_images=100,
        likelihood_samples=100,
        grid=150,
        kept=_KEPT,
    ),
    "cpu": Config(
        seeds=5,
        frontiers=(
            Frontier(
                8,
                128,
                6,
                _some(("none",), 0, 1)
                | _some(("ege", "wae-mmd-imq", "wae-mmd-rbf", "wae-mmd-energy"), 0, 4)
                | _some(("ssge-paper", "gaussian"), 1, 3)
                | _some(("wae-gan",), 1, 3)
                | _some(("vae",), 0, 2),
            ),
            Frontier(8, 128, 30, _some(("ege", "gaussian"), 1, 2) | _some(("wae-mmd-imq", "wae-mmd-energy"), 2, 3)),
            Frontier(
                2,
                128,
                6,
                _some(("none",), 0, 1)
                | _some(("ege", "wae-mmd-imq"), 0, 3)
                | _some(("wae-mmd-rbf",), 1, 3)
                | _some(("vae",), 1, 2),
            ),
            Frontier(32, 128, 6, _some(("ege", "wae-mmd-imq", "wae-mmd-energy"), 1, 3) | _some(("ssge-paper",), 1, 2)),
            Frontier(8, 32, 2, _some(("ege", "wae-mmd-imq"), 1, 3) | _some(("wae-mmd-energy",), 2, 3)),
            Frontier(8, 512, 6, _some(("ege", "wae-mmd-imq"), 1, 3) | _some(("wae-mmd-energy",), 2, 3)),
        ),
        images=20_000,
        test_images=4000,
        posterior_methods=("vae", "vae-full", "vae-3x", "ege", "ssge-paper"),
        posterior_steps=1000,
        likelihood_images=150,
        grid=150,
        kept=_KEPT,
    ),
    "full": Config(
        seeds=5,
        frontiers=(
            Frontier(8, 128, 6, _ALL),
            Frontier(2, 128, 6, _some(("none",), 0, 1) | _some(("ege", "wae-mmd-imq", "vae"), 1, 3)),
            Frontier(32, 128, 6, _some(("ege", "ssge-paper", "wae-mmd-imq"), 1, 3)),
            Frontier(8, 32, 2, _some(("ege", "wae-mmd-imq"), 1, 3)),
            Frontier(8, 512, 6, _some(("ege", "wae-mmd-imq", "wae-mmd-energy"), 1, 3)),
            Frontier(8, 128, 30, _some(("ege",), 1, 2) | _some(("wae-mmd-imq",), 1, 3)),
        ),
        hidden=512,
        posterior_methods=("vae", "vae-full", "vae-3x", "ege", "ssge-paper", "gaussian"),
        posterior_steps=3000,
        likelihood_images=1000,
        likelihood_samples=1000,
        kept=_KEPT,
    ),
}


@dataclass(frozen=True)
class Images:
    """Grey images with values in 0..1 as rows, and their labels."""

    x_train: Float[Tensor, "n p"]
    y_train: Int[Tensor, "n"]
    x_test: Float[Tensor, "m p"]
    y_test: Int[Tensor, "m"]


def data_source(config: Config) -> str:
    """Where the images come from."""
    return load(config.data).source


def load_images(config: Config, device: torch.device) -> Images:
    """The first `images` training and `test_images` test images, on the device.

    The halves of MNIST's test set come from different writers, so they are mixed; the embedded subset is mixed already.
    """
    dataset = load(config.data)
    order = torch.arange(len(dataset.x_test))
    if config.data == "mnist":
        order = torch.randperm(len(order), generator=stream(0, "test images"))
    rows = [
        (x[index].flatten(1).to(device).float() / 255, y[index].to(device))
        for x, y, index in (
            (dataset.x_train, dataset.y_train, slice(0, config.images)),
            (dataset.x_test, dataset.y_test, order[: config.test_images]),
        )
    ]
    return Images(*rows[0], *rows[1])


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Every method, weight and setting, for one seed.

    Quantities are named <method>/d<code>-b<batch>-e<epochs>-w<weight>/<metric> on the frontiers and
    <method>/posterior-d<code>/<metric> for the variational autoencoders. The curves are codes, samples and labels for
    figures, and the seconds of every training, <...>/training_s, by `clock`.
    """
    return measure(config, load_images(config, device), seed, device)


def measure(
    config: Config, images: Images, seed: int, device: torch.device
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """What `run_seed` returns, for given images."""
    ruler = Ruler.train(images, config.classifier_epochs, stream(seed, "classifier"), device)
    quantities = {"classifier/test/accuracy": ruler.accuracy, "train-images/test/frechet": ruler.floor}
    curves: dict[str, np.ndarray] = {"labels": images.y_test[:1000].to(torch.uint8).cpu().numpy()}
    for frontier in config.frontiers:
        for method, weights in frontier.weights.items():
            for weight in weights:
                name = f"{method}/{frontier.setting}-w{weight:g}"
                started = clock(device)
                model = train_autoencoder(method, weight, frontier, config, images, seed, device)
                curves[f"{name}/training_s"] = np.float32(clock(device) - started)
                metrics, codes, samples = evaluate(model, images, ruler, stream(seed, "evaluate", frontier.code))
                quantities |= {f"{name}/{metric}": value for metric, value in metrics.items()}
                if config.kept.get(method) == weight and frontier.code == 2:
                    curves[f"{name}/codes"] = codes[:1000].cpu().numpy().astype(np.float16)
                elif config.kept.get(method) == weight and frontier is config.frontiers[0]:
                    curves[f"{name}/samples"] = (255 * samples[:10]).to(torch.uint8).cpu().numpy()
    for code in config.posterior_codes:
        for method in config.posterior_methods:
            metrics, kept = run_posterior(method, code, config, images, seed, device)
            quantities |= {f"{method}/posterior-d{code}/{metric}": value for metric, value in metrics.items()}
            curves |= {f"{method}/posterior-d{code}/{name}": value for name, value in kept.items()}
    return quantities, curves


# --- the aggregate posterior


@dataclass(frozen=True)
class Autoencoder:
    """Encoder of images [n, p], whose output has the Gaussian's log variances too if `variational`, and decoder."""

    encoder: nn.Module
    decoder: nn.Module
    code: int
    variational: bool

    def encode(self, x: Float[Tensor, "n p"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes [n, d], and KL(q(z | x) || p) of each image; the latter zero where the encoder is deterministic."""
        output = self.encoder(x)
        if not self.variational:
            return output, output.new_zeros(len(x))
        mean, log_variance = output.split(self.code, dim=-1)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        return mean + (0.5 * log_variance).exp() * noise, divergence


def train_autoencoder(
    method: str,
    weight: float,
    frontier: Frontier,
    config: Config,
    images: Images,
    seed: int,
    device: torch.device,
) -> Autoencoder:
    """Train one autoencoder; initial weights and batches are the same for all methods of a seed.

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    code, pixels = frontier.code, images.x_train.shape[-1]
    variational = method == "vae"
    build = partial(_build, pixels, config.hidden, code, variational)
    networks = seeded(build, stream(seed, "networks", code, variational).initial_seed()).to(device)
    model = Autoencoder(networks["encoder"], networks["decoder"], code, variational)
    penalty = _penalty(method, code, config, seed, device)
    optimiser = torch.optim.Adam(networks.parameters(), lr=config.learning_rate)
    noise = stream(seed, "noise", method, weight, frontier.setting)
    steps = frontier.epochs * (len(images.x_train) // frontier.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for index in batches(len(images.x_train), frontier.batch, steps, stream(seed, "batches", frontier.batch)):
        x = images.x_train[index.to(device)]
        z, divergence = model.encode(x, noise)
        loss = reconstruction_loss(model.decoder(z), x).mean() + weight * (penalty(z, noise) + divergence.mean())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


def _build(pixels: int, hidden: int, code: int, variational: bool) -> nn.ModuleDict:
    encoder = mlp([pixels, hidden, hidden, 2 * code if variational else code])
    if variational:
        start_narrow(encoder[-1], code, 2 * LOG_SCALE)
    return nn.ModuleDict({"encoder": encoder, "decoder": mlp([code, hidden, hidden, pixels])})


@torch.no_grad()
def start_narrow(layer: nn.Linear, code: int, value: float) -> None:
    """Shift the outputs that are log scales: codes that start as noise of the prior's size are slow to be used."""
    layer.bias[code : 2 * code] += value


def reconstruction_loss(logits: Float[Tensor, "*n p"], x: Float[Tensor, "*n p"]) -> Float[Tensor, "*n"]:
    """Binary cross entropy of each image, in nats: a sum over its pixels."""
    return functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


Penalty = Callable[[Float[Tensor, "n d"], torch.Generator], Float[Tensor, ""]]


def _penalty(method: str, code: int, config: Config, seed: int, device: torch.device) -> Penalty:
    if method in ("none", "vae"):
        return lambda z, noise: z.new_zeros(())
    if method in ESTIMATORS:
        return lambda z, noise: kl_surrogate(z, gaussian_log_prob, ESTIMATORS[method])
    if method == "wae-gan":
        return Discriminator(code, config, stream(seed, "discriminator", code), device)
    kernel = KERNELS.get(method.removeprefix("wae-mmd-"))
    if kernel is None:
        known = ["none", "vae", "wae-gan", *ESTIMATORS, *(f"wae-mmd-{name}" for name in KERNELS)]
        raise ValueError(f"method: unknown name {method!r}, expected one of {', '.join(known)}")
    return partial(_discrepancy, kernel, config.prior_draws)


def _discrepancy(
    kernel: Callable[[Tensor, int], Tensor], draws: int, z: Float[Tensor, "n d"], noise: torch.Generator
) -> Float[Tensor, ""]:
    """Squared MMD without the term of the prior alone, which has no gradient."""
    prior = torch.randn(draws * len(z), z.shape[-1], generator=noise).to(z)
    return mean_kernel(z, z, kernel) - 2 * mean_kernel(z, prior, kernel)


class Discriminator:
    """WAE-GAN's penalty: a network trained to tell codes from the prior, and the codes' non-saturating loss."""

    def __init__(self, code: int, config: Config, generator: torch.Generator, device: torch.device) -> None:
        self.network = seeded(lambda: mlp([code, config.hidden, config.hidden, 1]), generator.initial_seed()).to(device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=config.discriminator_rate, betas=(0.5, 0.999))

    def __call__(self, z: Float[Tensor, "n d"], noise: torch.Generator) -> Float[Tensor, ""]:
        """One step of the discriminator, then the penalty under it."""
        prior = torch.randn(z.shape, generator=noise).to(z)
        loss = functional.softplus(self.network(z.detach())).mean() + functional.softplus(-self.network(prior)).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.network.requires_grad_(False)
        penalty = functional.softplus(-self.network(z)).mean()
        self.network.requires_grad_(True)
        return penalty


def dominated(run: Record, setting: str, peer: str, method: str) -> dict[float, bool]:
    """For each weight of the peer, whether some weight of the method is better in reconstruction and energy distance.

    Better means lower by more than twice the standard error of the difference of two means.

    Raises
    ------
    ValueError
        If there is no point of the peer or of the method in that setting, such as "d8-b128-e6".
    """

    def points(name: str) -> dict[float, list[tuple[float, float]]]:
        found = {}
        for quantity in run.quantities:
            start, _, metric = quantity.rpartition("/")
            if metric == "reconstruction" and start.startswith(f"{name}/{setting}-w"):
                pair = [run[f"{start}/{metric}"] for metric in ("reconstruction", "energy_distance")]
                found[float(start.rpartition("-w")[2])] = [(q.mean, q.std / math.sqrt(q.n)) for q in pair]
        if not found:
            raise ValueError(f"{run.experiment}.{run.profile}: no point of {name!r} in {setting!r}")
        return dict(sorted(found.items()))

    def better(point: list[tuple[float, float]], other: list[tuple[float, float]]) -> bool:
        return all(a[0] + 2 * math.hypot(a[1], b[1]) < b[0] for a, b in zip(point, other, strict=True))

    mine = points(method).values()
    return {weight: any(better(point, other) for point in mine) for weight, other in points(peer).items()}


@torch.no_grad()
def evaluate(
    model: Autoencoder, images: Images, ruler: Ruler, generator: torch.Generator
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Metrics on the test images, their codes, and samples of the decoder at draws of the prior."""
    x = images.x_test
    z, _ = model.encode(x, generator)
    prior = torch.randn(z.shape, generator=generator).to(z)
    few = slice(0, 2000)  # distances of all pairs
    samples = torch.sigmoid(model.decoder(prior))
    metrics = {
        "reconstruction": float(reconstruction_loss(model.decoder(z), x).mean()),
        "energy_distance": float(mmd_squared(z[few], prior[few], energy_kernel)),
        "mmd_squared": float(mmd_squared(z[few], prior[few], multiquadric_kernel)),
        "frechet": ruler.distance(samples),
    }
    return metrics, z, samples


@dataclass(frozen=True)
class Ruler:
    """A classifier's features of the test images: the scale on which samples are measured.

    Attributes
    ----------
    features : Module
        Images [n, p] to features [n, f].
    mean, covariance : Tensor
        Of the test images' features.
    accuracy : float
        Of the classifier on the test images, in per cent.
    floor : float
        Distance of as many training images from the test images.
    """

    features: nn.Module
    mean: Tensor
    covariance: Tensor
    accuracy: float
    floor: float

    @classmethod
    def train(cls, images: Images, epochs: int, generator: torch.Generator, device: torch.device) -> Ruler:
        """Train the classifier on the training images."""
        side = math.isqrt(images.x_train.shape[-1])
        network = seeded(partial(digit_classifier, side), generator.initial_seed()).to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        n = len(images.x_train)
        for index in batches(n, 128, epochs * (n // 128), generator):
            index = index.to(device)
            loss = functional.cross_entropy(network(images.x_train[index]), images.y_train[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        features = network[:-1]
        with torch.no_grad():
            values = _in_parts(features, images.x_test)
            accuracy = 100 * float((network[-1](values).argmax(-1) == images.y_test).float().mean())
            ruler = cls(features, values.mean(0), values.T.cov(), accuracy, math.nan)
        return replace(ruler, floor=ruler.distance(images.x_train[: len(images.x_test)]))

    @torch.no_grad()
    def distance(self, samples: Float[Tensor, "n p"]) -> float:
        """Frechet distance of the features of samples and test images, over the latter's total variance."""
        values = _in_parts(self.features, samples)
        distance = frechet_distance(values.mean(0), values.T.cov(), self.mean, self.covariance)
        return float(distance / self.covariance.double().trace())


def _in_parts(network: nn.Module, x: Float[Tensor, "n p"]) -> Tensor:
    return torch.cat([network(rows) for rows in x.split(500)])  # many images at once are slower


# --- the posterior of each image


class PosteriorEncoder(nn.Module):
    """Draws m codes of each image.

    The Gaussian kinds have a mean and a triangular factor as outputs, and noise behind it; the implicit kind has noise
    at the first hidden layer, and no density. The hidden layers are of the same size.
    """

    def __init__(self, kind: str, pixels: int, hidden: int, code: int, noise: int) -> None:
        super().__init__()
        self.kind, self.code = kind, code
        self.noise_size = noise if kind == "implicit" else code
        self.first = nn.Linear(pixels, hidden)
        self.noise = nn.Linear(noise, hidden, bias=False) if kind == "implicit" else None
        outputs = {"implicit": code, "vae": 2 * code, "vae-full": 2 * code + code * (code - 1) // 2}[kind]
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        if kind != "implicit":
            start_narrow(self.rest[-1], code, LOG_SCALE)

    def forward(self, x: Float[Tensor, "b p"], noise: Float[Tensor, "b m k"]) -> tuple[Tensor, Tensor]:
        """Codes [b, m, d], and the Gaussians' KL(q(z | x) || p) [b], zero for the implicit kind."""
        hidden = self.first(x)
        if self.noise is not None:
            return self.rest(hidden[:, None] + self.noise(noise)), hidden.new_zeros(len(x))
        output = self.rest(hidden)
        mean, log_scale = output[:, : self.code], output[:, self.code : 2 * self.code]
        factor = torch.diag_embed(log_scale.exp())
        if self.kind == "vae-full":
            rows, columns = torch.tril_indices(self.code, self.code, -1, device=x.device)
            unit = torch.eye(self.code).to(x).repeat(len(x), 1, 1)
            unit[:, rows, columns] = output[:, 2 * self.code :]
            factor = factor @ unit
        divergence = 0.5 * (mean.square().sum(-1) + factor.square().sum((-2, -1)) - self.code) - log_scale.sum(-1)
        return mean[:, None] + noise @ factor.mT, divergence

    def draw(self, x: Float[Tensor, "b p"], count: int, generator: torch.Generator) -> Tensor:
        """Codes [b, count, d]."""
        noise = torch.randn(len(x), count, self.noise_size, generator=generator).to(x)
        return self(x, noise)[0]


def train_posterior(
    method: str, code: int, config: Config, images: Images, seed: int, device: torch.device
) -> tuple[PosteriorEncoder, nn.Module]:
    """Train a variational autoencoder on images that are binarised anew for every batch.

    Each image has `posterior_samples` codes, all of which the divergence's gradient uses; the first is decoded.
    """
    kinds = {"vae": "vae", "vae-3x": "vae", "vae-full": "vae-full"} | dict.fromkeys(ESTIMATORS, "implicit")
    if method not in kinds:
        raise ValueError(f"posterior: unknown method {method!r}, expected one of {', '.join(kinds)}")
    kind, steps = kinds[method], config.posterior_steps * (3 if method.endswith("-3x") else 1)
    pixels = images.x_train.shape[-1]

    def build() -> nn.ModuleDict:
        encoder = PosteriorEncoder(kind, pixels, config.hidden, code, config.posterior_noise)
        return nn.ModuleDict({"encoder": encoder, "decoder": mlp([code, config.hidden, config.hidden, pixels])})

    networks = seeded(build, stream(seed, "posterior", kind, code).initial_seed()).to(device)
    encoder, decoder = networks["encoder"], networks["decoder"]
    optimiser = torch.optim.Adam(networks.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = stream(seed, "posterior", method, code)
    count = config.posterior_samples if kind == "implicit" else 1
    order = stream(seed, "posterior batches")
    for index in batches(len(images.x_train), config.posterior_batch, steps, order):
        x = images.x_train[index.to(device)]
        x = (torch.rand(x.shape, generator=generator).to(x) < x).to(x)
        noise = torch.randn(len(x), count, encoder.noise_size, generator=generator).to(x)
        z, divergence = encoder(x, noise)
        if kind == "implicit":  # a sum over the images, each a problem of its own
            divergence = kl_surrogate(z, gaussian_log_prob, ESTIMATORS[method]) / len(x)
        loss = reconstruction_loss(decoder(z[:, 0]), x).mean() + divergence.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return encoder, decoder


@torch.no_grad()
def run_posterior(
    method: str, code: int, config: Config, images: Images, seed: int, device: torch.device
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Train one variational autoencoder; its metrics on binarised test images, and codes for figures."""
    started = clock(device)
    with torch.enable_grad():
        encoder, decoder = train_posterior(method, code, config, images, seed, device)
    kept = {"training_s": np.float32(clock(device) - started)}
    x = images.x_test[: config.likelihood_images]
    x = (torch.rand(x.shape, generator=stream(0, "binarise")).to(x) < x).to(x)
    generator = stream(seed, "likelihood", code)
    z = encoder.draw(x, config.likelihood_samples, generator)
    metrics = {
        "reconstruction": float(reconstruction_loss(decoder(z[:, 0]), x).mean()),
        "log_likelihood": float(
            importance_log_likelihood(partial(log_joint, decoder, x), z, config.likelihood_samples, generator).mean()
        ),
    }
    if code != 2:
        return metrics, kept
    evidence, posterior = grid_posterior(decoder, x, config.grid, config.likelihood_samples, generator)
    metrics["grid_log_likelihood"] = float(evidence.mean())
    scale = torch.cdist(posterior, posterior).mean((-2, -1))
    metrics["posterior_distance"] = float((mmd_squared(z, posterior, energy_kernel) / scale).mean())
    few = {"codes": z[:4, :200], "posterior": posterior[:4, :200]}
    return metrics, kept | {name: value.cpu().numpy().astype(np.float16) for name, value in few.items()}


def log_joint(decoder: nn.Module, x: Float[Tensor, "b p"], z: Float[Tensor, "b m d"]) -> Float[Tensor, "b m"]:
    """Log density of the decoder's binary images and the prior, in nats."""
    chunk = max(1, ROWS // z.shape[1])
    log_likelihood = [
        -reconstruction_loss(decoder(codes), rows[:, None])
        for rows, codes in zip(x.split(chunk), z.split(chunk), strict=True)
    ]
    return torch.cat(log_likelihood) + gaussian_log_prob(z) - z.shape[-1] / 2 * math.log(2 * math.pi)


def importance_log_likelihood(
    log_density: Callable[[Float[Tensor, "b k d"]], Float[Tensor, "b k"]],
    samples: Float[Tensor, "b m d"],
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "b"]:
    r"""Importance-sampled lower bound of the evidence, :math:`\ln \frac1k \sum_i p(x, z_i) / r(z_i)`.

    It needs no density of the posterior: the proposal r is fitted to its samples. The mean is at most the evidence for
    every r [Burda et al., ICLR 2016]. r is a Gaussian with the mean and the covariance of the samples (45 %), the same
    with doubled deviations (45 %), and the prior (10 %), which keeps the weights finite.

    Parameters
    ----------
    log_density : callable
        :math:`\ln p(x, z)` of each of b images at codes [b, k, d]; a standard Gaussian is the prior of z.
    samples : Tensor [b, m, d]
        Samples of the posterior of each image.
    count : int
        k.
    generator : torch.Generator
        Of the draws.
    """
    b, m, d = samples.shape
    mean = samples.mean(-2, keepdim=True)
    centred = samples - mean
    covariance = centred.mT @ centred / (m - 1)
    jitter = 1e-6 + 1e-3 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    factor = torch.linalg.cholesky(covariance + jitter[:, None, None] * torch.eye(d).to(samples))
    noise = torch.randn(b, count, d, generator=generator).to(samples)
    component = (torch.arange(count) * 20 // count).to(samples.device)  # twentieths: 9, 9 and 2
    stretch = torch.where(component < 9, 1.0, 2.0)[:, None]
    z = torch.where((component < 18)[:, None], mean + stretch * noise @ factor.mT, noise)
    white = torch.linalg.solve_triangular(factor, (z - mean).mT, upper=False).mT
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]
    parts = [
        math.log(0.45) + gaussian_log_prob(white) - log_det,
        math.log(0.45) + gaussian_log_prob(white / 2) - log_det - d * math.log(2),
        math.log(0.10) + gaussian_log_prob(z),
    ]
    log_proposal = torch.stack(parts).logsumexp(0) - d / 2 * math.log(2 * math.pi)
    return (log_density(z) - log_proposal).logsumexp(-1) - math.log(count)


def grid_posterior(
    decoder: nn.Module, x: Float[Tensor, "b p"], points: int, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b count 2"]]:
    """Evidence of each image by quadrature over two-dimensional codes, and samples of its true posterior.

    A sample is a grid point, moved uniformly within its cell.
    """
    axis = torch.linspace(-GRID_LIMIT, GRID_LIMIT, points, device=x.device)
    step = float(axis[1] - axis[0])
    grid = torch.cartesian_prod(axis, axis)
    log_prior = gaussian_log_prob(grid) - math.log(2 * math.pi)
    parts = []
    for codes in grid.split(ROWS):
        logits = decoder(codes)
        parts.append(x @ logits.mT - functional.softplus(logits).sum(-1))
    log_weights = torch.cat(parts, -1) + log_prior + 2 * math.log(step)
    evidence = log_weights.logsumexp(-1)
    cumulative = (log_weights - evidence[:, None]).exp().double().cumsum(-1)
    uniform = torch.rand(len(x), count, generator=generator, dtype=torch.float64).to(x.device) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, uniform).clamp_max(len(grid) - 1)
    shift = (torch.rand(len(x), count, 2, generator=generator) - 0.5).to(x) * step
    return evidence, grid[index] + shift
