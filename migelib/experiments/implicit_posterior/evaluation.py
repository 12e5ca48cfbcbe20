"""What is measured on trained variational autoencoders: likelihoods, and the distance from the true posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...tasks import gaussian_log_prob
from ..metrics import energy_kernel, importance_log_likelihood, mmd_squared
from ..randomness import Streams
from ..training import Stack, reconstruction_loss
from .config import Config
from .objectives import Method

GRID_LIMIT = 6.0  # of the quadrature over two-dimensional codes
ROWS = 20_000  # decoded at once


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
