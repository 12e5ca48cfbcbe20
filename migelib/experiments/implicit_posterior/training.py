"""Training of the variational autoencoders of all seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...critics import mlp
from ..randomness import Streams
from ..training import Stack, adam, descend, reconstruction_loss
from .config import Config
from .objectives import METHODS, Method


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
