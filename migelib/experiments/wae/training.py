"""Training of the autoencoders of all seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..randomness import Streams
from ..training import adam, descend, reconstruction_loss
from .config import Config, Frontier
from .networks import Autoencoder
from .objectives import METHODS, Penalty


def train(
    method: str,
    weight: float,
    frontier: Frontier,
    config: Config,
    images: Float[Tensor, "n p"],
    seeds: Sequence[int],
    device: torch.device,
) -> Autoencoder:
    """Train the autoencoders of all seeds; initial weights and batches are the same for all methods of a seed.

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"methods: unknown name {method!r}, expected one of {', '.join(METHODS)}")
    objective = METHODS[method]
    model = Autoencoder.build(objective.encoding, images.shape[-1], config.hidden, frontier.code, seeds, device)
    penalty = objective.start(config, frontier.code, seeds, device)
    optimiser = adam(model.networks.parameters(), config.learning_rate)
    noise = Streams(seeds, "noise", method, weight, frontier.setting, device=device)
    order = Streams(seeds, "batches", frontier.batch, device=device)
    steps = frontier.epochs * (len(images) // frontier.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for index in order.batches(len(images), frontier.batch, steps):
        descend(optimiser, loss(model, penalty, weight, images[index], noise))
        schedule.step()
    return model


def loss(
    model: Autoencoder, penalty: Penalty, weight: float, x: Float[Tensor, "seeds n p"], noise: Streams
) -> Float[Tensor, ""]:
    """Reconstruction error of a batch and weighted penalty, in nats, summed over the seeds."""
    z, divergence = model.encode(x, noise)
    error = reconstruction_loss(model.decode(z), x).mean(-1).sum()
    return error + weight * (penalty(z, noise) + divergence.mean(-1).sum())
