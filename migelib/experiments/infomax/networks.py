"""The encoder's size, fixed maps of an image, and the critic of Deep InfoMax.

A fixed map is made from (config, images, generator), for one seed, and takes images [n, c, h, w] to [n, d].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...projections import PatchFeatures, RandomProjection
from ..data import Images
from ..networks import DeepInfoMaxEncoder

if TYPE_CHECKING:
    from .config import Config

Map = Callable[[Tensor], Tensor]
MapMaker = Callable[["Config", Images, torch.Generator], Map]


def new_encoder(config: Config, images: Images) -> DeepInfoMaxEncoder:
    """An encoder of these images, with new weights; channels last, since convolutions on a CPU are faster so."""
    encoder = DeepInfoMaxEncoder(*images.x_train.shape[1:3], config.widths, config.hidden, config.code)
    return encoder.to(memory_format=torch.channels_last)


def pixel_projection(config: Config, images: Images, generator: torch.Generator, size: int | None = None) -> Map:
    """A fixed Gaussian random projection of the pixels, to `size` coordinates: what stands for x in the paper."""
    projection = RandomProjection(images.x_train[0].numel(), size or config.projection, generator)
    return projection.to(images.x_train.device)


def patch_projection(config: Config, images: Images, generator: torch.Generator) -> Map:
    """The structured projection: pooled responses of filters that are whitened patches of the training images."""
    return PatchFeatures(images.x_train, config.filters, generator=generator)


def pca(config: Config, images: Images, generator: torch.Generator) -> Map:
    """The leading principal components of the pixels, as many as Y has coordinates."""
    pixels = images.x_train.flatten(1)
    mean = pixels.mean(0)
    directions = torch.linalg.eigh(torch.cov(pixels.mT)).eigenvectors[:, -config.code :]
    return lambda x: (x.flatten(1) - mean) @ directions


def pca_of_patches(config: Config, images: Images, generator: torch.Generator) -> Map:
    """The leading principal components of the structured projection, as many as Y has coordinates."""
    patches = patch_projection(config, images, generator)
    samples = patches(images.x_train)
    directions = torch.linalg.eigh(torch.cov(samples.mT)).eigenvectors[:, -config.code :]
    return lambda x: patches(x) @ directions


def leading(samples: Float[Tensor, "n d"], count: int) -> tuple[Float[Tensor, "n k"], Float[Tensor, "k"]]:
    """The leading principal components of samples, largest first, and their variances."""
    values, vectors = torch.linalg.eigh(torch.cov(samples.mT))
    return (samples - samples.mean(0)) @ vectors[:, -count:].flip(1), values[-count:].flip(0)


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
