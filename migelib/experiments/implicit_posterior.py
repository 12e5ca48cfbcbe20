r"""Variational autoencoders whose posterior of each image is implicit: noise at the encoder's input, and no density.

The evidence bound of a variational autoencoder [Kingma & Welling, ICLR 2014] has the divergence
:math:`\mathrm{KL}(q(z \mid x) \,\|\, p)` of each image's codes from the prior. An implicit encoder trains on its
gradient, with a score estimated from several codes of the image [Wen et al., Knowledge-Based Systems 224, 2021];
beside it stand Gaussian encoders, which have it in closed form. Explained in :doc:`/book/autoencoder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..critics import mlp
from ..scores import ScoreEstimator
from ..surrogates import kl_surrogate
from ..tasks import gaussian_log_prob
from .data import load, load_images
from .metrics import clock, energy_kernel, importance_log_likelihood, mmd_squared
from .networks import start_narrow
from .randomness import Streams, stream
from .training import Stack, adam, descend, reconstruction_loss
from .wae import ESTIMATORS

METRICS = {
    "reconstruction": "nat",
    "log_likelihood": "nat",
    "grid_log_likelihood": "nat",
    "posterior_distance": "1",
}
LOG_SCALE = -2.0  # of a Gaussian encoder's deviations at the start
GRID_LIMIT = 6.0  # of the quadrature over two-dimensional codes
ROWS = 20_000  # decoded at once


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    methods : tuple of str
        Posteriors, of `METHODS`: "vae" and "vae-full" are Gaussians with a diagonal and with a full covariance,
        "vae-3x" the former with three times the steps; the others are implicit.
    data : str
        "mnist" or "mnist_5k".
    images, test_images : int
        How many of the training and of the test images are used.
    hidden : int
        Units of each of two hidden layers of the encoder and of the decoder.
    learning_rate : float
        Of Adam at the start; it falls to zero along a cosine.
    posterior_codes : tuple of int
        Coordinates of the codes.
    posterior_batch, posterior_samples, posterior_steps : int
        Images a step, codes of each of them, and steps.
    posterior_noise : int
        Coordinates of the noise at the input of an implicit encoder.
    likelihood_images, likelihood_samples : int
        Test images whose likelihood is bounded, and samples of the bound.
    grid : int
        Points on each axis of the quadrature of the likelihood over two-dimensional codes.
    """

    seeds: int
    methods: tuple[str, ...]
    data: str = "mnist"
    images: int = 60_000
    test_images: int = 10_000
    hidden: int = 128
    learning_rate: float = 4e-3
    posterior_codes: tuple[int, ...] = (2, 8)
    posterior_batch: int = 64
    posterior_samples: int = 32
    posterior_steps: int = 800
    posterior_noise: int = 16
    likelihood_images: int = 300
    likelihood_samples: int = 300
    grid: int = 300


PROFILES = {
    "quick": Config(
        seeds=5,
        methods=("vae", "ege"),
        data="mnist_5k",
        hidden=64,
        posterior_codes=(2,),
        posterior_batch=32,
        posterior_samples=16,
        posterior_steps=250,
        likelihood_images=100,
        likelihood_samples=100,
        grid=150,
    ),
    "cpu": Config(
        seeds=5,
        methods=("vae", "vae-full", "vae-3x", "ege", "ssge-paper"),
        images=20_000,
        test_images=4000,
        posterior_steps=1000,
        likelihood_images=150,
        grid=150,
    ),
    "full": Config(
        seeds=5,
        methods=("vae", "vae-full", "vae-3x", "ege", "ssge-paper", "gaussian"),
        hidden=512,
        posterior_steps=3000,
        likelihood_images=1000,
        likelihood_samples=1000,
    ),
}
STUDIES: dict[str, Config] = {}


# --- encoders


class ImplicitEncoder(nn.Module):
    """Draws m codes of each image, by noise at the first hidden layer; it has no density.

    Parameters
    ----------
    pixels, hidden, code : int
        Numbers of pixels, of units of each of two hidden layers, and of coordinates of a code.
    noise : int
        Coordinates of the noise.
    """

    def __init__(self, pixels: int, hidden: int, code: int, noise: int) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, hidden)
        self.noise = nn.Linear(noise, hidden, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, code))

    def forward(
        self, x: Float[Tensor, "b p"], noise: Float[Tensor, "b m k"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b"]]:
        """Codes, and zeros in place of the divergence that a density would have."""
        return self.rest(self.first(x)[:, None] + self.noise(noise)), x.new_zeros(len(x))


class GaussianEncoder(nn.Module):
    """Draws m codes of each image from a Gaussian, whose mean and triangular factor are its outputs.

    The hidden layers are those of an implicit encoder.

    Parameters
    ----------
    pixels, hidden, code : int
        Numbers of pixels, of units of each of two hidden layers, and of coordinates of a code.
    full : bool
        Whether the covariance is full; else it is diagonal.
    """

    def __init__(self, pixels: int, hidden: int, code: int, full: bool) -> None:
        super().__init__()
        self.code, self.full = code, full
        self.first = nn.Linear(pixels, hidden)
        outputs = 2 * code + (code * (code - 1) // 2 if full else 0)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        start_narrow(self.rest[-1], code, LOG_SCALE)

    def forward(
        self, x: Float[Tensor, "b p"], noise: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b"]]:
        """Codes, and KL(q(z | x) || p) of each image, in nats."""
        output = self.rest(self.first(x))
        mean, log_scale, below = output.tensor_split((self.code, 2 * self.code), dim=1)
        factor = torch.diag_embed(log_scale.exp())
        if self.full:
            rows, columns = torch.tril_indices(self.code, self.code, -1, device=x.device)
            unit = torch.diag_embed(torch.ones_like(mean))
            unit[:, rows, columns] = below
            factor = factor @ unit
        divergence = 0.5 * (mean.square().sum(-1) + factor.square().sum((-2, -1)) - self.code) - log_scale.sum(-1)
        return mean[:, None] + noise @ factor.mT, divergence


# --- methods


@dataclass(frozen=True)
class Gaussian:
    """Gaussian posteriors, whose divergence from the prior has a closed form.

    Attributes
    ----------
    full : bool
        Whether the covariance is full.
    pace : int
        Steps, as a multiple of the configuration's.
    """

    full: bool = False
    pace: int = 1

    @property
    def kind(self) -> str:
        """Name of the stream of the initial weights: methods with the same networks start from the same."""
        return "vae-full" if self.full else "vae"

    def encoder(self, config: Config, pixels: int, code: int) -> GaussianEncoder:
        """Make an encoder."""
        return GaussianEncoder(pixels, config.hidden, code, self.full)

    def noise_shape(self, config: Config, code: int) -> tuple[int, int]:
        """Codes of each image in training, and the size of an encoder's noise."""
        return 1, code

    def divergence(self, z: Float[Tensor, "seeds b 1 d"], closed: Float[Tensor, "seeds b"]) -> Float[Tensor, ""]:
        """Mean divergence over the images, summed over the seeds."""
        return closed.mean(-1).sum()


@dataclass(frozen=True)
class Implicit:
    """Posteriors without a density; the gradient of their divergence comes from an estimated score.

    Attributes
    ----------
    estimator : ScoreEstimator or None
        Of the score of an image's codes.
    """

    estimator: ScoreEstimator | None
    pace = 1
    kind = "implicit"

    def encoder(self, config: Config, pixels: int, code: int) -> ImplicitEncoder:
        """Make an encoder."""
        return ImplicitEncoder(pixels, config.hidden, code, config.posterior_noise)

    def noise_shape(self, config: Config, code: int) -> tuple[int, int]:
        """Codes of each image in training, and the size of an encoder's noise."""
        return config.posterior_samples, config.posterior_noise

    def divergence(self, z: Float[Tensor, "seeds b m d"], closed: Float[Tensor, "seeds b"]) -> Float[Tensor, ""]:
        """Surrogate of the mean divergence over the images, each a problem of its own, summed over the seeds."""
        return kl_surrogate(z, gaussian_log_prob, self.estimator) / z.shape[1]


Method = Gaussian | Implicit
METHODS: dict[str, Method] = {
    "vae": Gaussian(),
    "vae-3x": Gaussian(pace=3),
    "vae-full": Gaussian(full=True),
    **{name: Implicit(estimator) for name, estimator in ESTIMATORS.items()},
}


# --- training


def train(
    name: str, code: int, config: Config, images: Float[Tensor, "n p"], seeds: Sequence[int], device: torch.device
) -> Stack:
    """Train the variational autoencoders of all seeds on images that are binarised anew for every batch.

    Returns
    -------
    Stack
        With parts "encoder" and "decoder".

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    if name not in METHODS:
        raise ValueError(f"methods: unknown name {name!r}, expected one of {', '.join(METHODS)}")
    method, pixels = METHODS[name], images.shape[-1]
    model = build(method, code, config, pixels, seeds, device)
    optimiser = adam(model.parameters(), config.learning_rate)
    steps = config.posterior_steps * method.pace
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    noise = Streams(seeds, "posterior", name, code, device=device)
    order = Streams(seeds, "posterior batches", device=device)
    for index in order.batches(len(images), config.posterior_batch, steps):
        descend(optimiser, loss(model, method, code, config, images[index], noise))
        schedule.step()
    return model


def build(method: Method, code: int, config: Config, pixels: int, seeds: Sequence[int], device: torch.device) -> Stack:
    """Make the networks of every seed."""

    def make() -> nn.ModuleDict:
        encoder = method.encoder(config, pixels, code)
        return nn.ModuleDict({"encoder": encoder, "decoder": mlp([code, config.hidden, config.hidden, pixels])})

    return Stack.build(make, seeds, "posterior", method.kind, code, device=device)


def loss(
    model: Stack, method: Method, code: int, config: Config, x: Float[Tensor, "seeds b p"], noise: Streams
) -> Float[Tensor, ""]:
    """Negative evidence bound of a batch, in nats, summed over the seeds.

    The divergence's gradient uses all codes of an image; the first is decoded.
    """
    x = (noise.uniform(*x.shape[1:]) < x).to(x)
    z, closed = model.part("encoder")(x, noise.normal(x.shape[1], *method.noise_shape(config, code)))
    error = reconstruction_loss(model.part("decoder")(z[:, :, 0]), x).mean(-1).sum()
    return error + method.divergence(z, closed)


# --- the run


@dataclass(frozen=True)
class Shared:
    """Training images as rows of grey values, and binary test images."""

    train: Float[Tensor, "n p"]
    test: Float[Tensor, "b p"]


Result = tuple[dict[str, float], dict[str, np.ndarray]]


def data_source(config: Config) -> str:
    """Where the images come from."""
    return load(config.data).source


def prepare(config: Config, device: torch.device) -> Shared:
    """Load the images, and binarise those whose likelihood is bounded, the same for all seeds."""
    images = load_images(config.data, config.images, config.test_images, device)
    return Shared(images.x_train, binarised(images.x_test[: config.likelihood_images]))


def binarised(x: Float[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    """Images whose pixels are one with the probability of their grey value, else zero."""
    return (torch.rand(x.shape, generator=stream(0, "binarise")).to(x) < x).to(x)


def run_seeds(config: Config, shared: Shared, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Every method of the configuration with all sizes of the code.

    Quantities are named <method>/posterior-d<code>/<metric>. The curves are codes of a few images for figures, and
    <...>/training_s, the seconds of every training by `clock`, an equal share of them for each of the seeds that were
    trained together.
    """
    results: list[Result] = [({}, {}) for _ in seeds]
    for code in config.posterior_codes:
        for method in config.methods:
            started = clock(device)
            model = train(method, code, config, shared.train, seeds, device)
            seconds = np.float32((clock(device) - started) / len(seeds))
            metrics, few = evaluate(model, METHODS[method], code, config, shared.test, seeds, device)
            start = f"{method}/posterior-d{code}"
            for row, (quantities, curves) in enumerate(results):
                quantities |= {f"{start}/{metric}": values[row] for metric, values in metrics.items()}
                curves[f"{start}/training_s"] = seconds
                curves |= {f"{start}/{name}": x[row].cpu().numpy().astype(np.float16) for name, x in few.items()}
    return results


# --- what is measured


@torch.no_grad()
def evaluate(
    model: Stack,
    method: Method,
    code: int,
    config: Config,
    images: Float[Tensor, "b p"],
    seeds: Sequence[int],
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, Float[Tensor, "seeds ..."]]]:
    """Metrics of every seed on binary images, and in two dimensions codes for figures."""
    decoder, x, count = model.part("decoder"), images.expand(len(seeds), -1, -1), config.likelihood_samples
    noise = Streams(seeds, "likelihood", code, device=device)
    _, size = method.noise_shape(config, code)
    z, _ = model.part("encoder")(x, noise.normal(len(images), count, size))
    bound = importance_log_likelihood(partial(log_joint, decoder, x), z, noise.normal(*z.shape[1:]))
    metrics = {
        "reconstruction": reconstruction_loss(decoder(z[:, :, 0]), x).mean(-1).tolist(),
        "log_likelihood": bound.mean(-1).tolist(),
    }
    if code != 2:
        return metrics, {}
    evidence, posterior = grid_posterior(decoder, x, config.grid, count, noise)
    metrics["grid_log_likelihood"] = evidence.mean(-1).tolist()
    # A seed at a time: distances of all pairs of codes of an image.
    metrics["posterior_distance"] = [posterior_distance(*pair) for pair in zip(z, posterior, strict=True)]
    return metrics, {"codes": z[:, :4, :200], "posterior": posterior[:, :4, :200]}


def posterior_distance(z: Float[Tensor, "b m d"], posterior: Float[Tensor, "b m d"]) -> float:
    """Energy distance of codes from those of the true posterior, over the latter's mean distance; over the images."""
    scale = torch.cdist(posterior, posterior).mean((-2, -1))
    return float((mmd_squared(z, posterior, energy_kernel) / scale).mean())


def log_joint(
    decoder: Stack, x: Float[Tensor, "seeds b p"], z: Float[Tensor, "seeds b m d"]
) -> Float[Tensor, "seeds b m"]:
    """Log density of the decoder's binary images and the prior, in nats."""
    chunk = max(1, ROWS // z.shape[2])
    log_likelihood = [
        -reconstruction_loss(decoder(codes), rows[:, :, None])
        for rows, codes in zip(x.split(chunk, dim=1), z.split(chunk, dim=1), strict=True)
    ]
    return torch.cat(log_likelihood, dim=1) + gaussian_log_prob(z) - z.shape[-1] / 2 * math.log(2 * math.pi)


def grid_posterior(
    decoder: Stack, x: Float[Tensor, "seeds b p"], points: int, count: int, noise: Streams
) -> tuple[Float[Tensor, "seeds b"], Float[Tensor, "seeds b count 2"]]:
    """Evidence of each image by quadrature over two-dimensional codes, and samples of its true posterior.

    A sample is a grid point, moved uniformly within its cell.
    """
    axis = torch.linspace(-GRID_LIMIT, GRID_LIMIT, points, device=x.device)
    step = float(axis[1] - axis[0])
    grid = torch.cartesian_prod(axis, axis)
    log_prior = gaussian_log_prob(grid) - math.log(2 * math.pi)
    parts = []
    for codes in grid.split(ROWS):
        logits = decoder(codes.expand(len(x), -1, -1))
        parts.append(x @ logits.mT - functional.softplus(logits).sum(-1)[:, None])
    log_weights = torch.cat(parts, -1) + log_prior + 2 * math.log(step)
    evidence = log_weights.logsumexp(-1)
    cumulative = (log_weights - evidence[..., None]).exp().double().cumsum(-1)
    shape = (x.shape[1], count)
    uniform = noise.draw(lambda g: torch.rand(shape, generator=g, dtype=torch.float64, device=g.device))
    index = torch.searchsorted(cumulative, uniform * cumulative[..., -1:]).clamp_max(len(grid) - 1)
    return evidence, grid[index] + (noise.uniform(*shape, 2) - 0.5) * step
