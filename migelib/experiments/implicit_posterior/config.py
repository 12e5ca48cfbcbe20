"""Settings of the variational autoencoders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    methods : tuple of str
        Posteriors, of `objectives.METHODS`: "vae" and "vae-full" are Gaussians with a diagonal and with a full
        covariance, "vae-3x" the former with three times the steps; the others are implicit.
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
