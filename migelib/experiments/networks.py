"""Networks that several experiments, or a reader's own, may use.

Explained in :doc:`/book/infomax`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..validation import check_count


class Features(NamedTuple):
    """What `DeepInfoMaxEncoder` returns.

    Attributes
    ----------
    conv : Tensor [n, c, h, w]
        Last map of the convolutions.
    fc : Tensor [n, hidden]
        The hidden layer.
    y : Tensor [n, code]
        The code Y.
    """

    conv: Float[Tensor, "n c h w"]
    fc: Float[Tensor, "n hidden"]
    y: Float[Tensor, "n code"]


class DeepInfoMaxEncoder(nn.Module):
    """Encoder of Deep InfoMax for small images [Hjelm et al., ICLR 2019]: convolutions, one hidden layer, Y.

    Every convolution is 4 x 4 with stride 2, without a bias, and followed by batch normalisation and ReLU, as is the
    hidden layer; Y is linear. Explained in :doc:`/book/infomax`.

    Parameters
    ----------
    channels : int
        Of the images.
    size : int
        Height and width of the images, at least 2 to the number of convolutions.
    widths : tuple of int
        Channels of the convolutions.
    hidden, code : int
        Units of the hidden layer and of Y.

    Attributes
    ----------
    conv_dim : int
        Numbers in the last map of the convolutions.

    Raises
    ------
    ValueError
        If a number is not positive, or the images are too small for the convolutions.

    Examples
    --------
    >>> import torch
    >>> DeepInfoMaxEncoder()(torch.zeros(2, 3, 32, 32)).y.shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        widths: tuple[int, ...] = (64, 128, 256),
        hidden: int = 1024,
        code: int = 64,
    ) -> None:
        super().__init__()
        for name, value in {"channels": channels, "size": size, "hidden": hidden, "code": code}.items():
            check_count(value, name)
        if size >> len(widths) < 1:
            raise ValueError(f"size: expected at least {2 ** len(widths)} for {len(widths)} convolutions, got {size}")
        flat = (widths[-1] if widths else channels) * (size >> len(widths)) ** 2
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(flat, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU())
        self.y = nn.Linear(hidden, code)
        self.conv_dim = flat

    def forward(self, images: Float[Tensor, "n c h w"]) -> Features:
        """Features of the three layers."""
        conv = self.conv(images)
        fc = self.fc(conv.flatten(1))
        return Features(conv, fc, self.y(fc))


class PatchFeatures(nn.Module):
    r"""Edges and colours, counted in the quadrants of an image: a fixed map that is learned from patches alone.

    The filters are random patches of the images, whitened; a response above a threshold counts, and its mean over each
    cell of a grid is a feature [Coates, Ng & Lee, AISTATS 2011; Coates & Ng, ICML 2011]. Features are standardised
    over the images. Explained in :doc:`/book/infomax`.

    Parameters
    ----------
    images : Tensor [n, c, h, w]
        To draw patches from, and to standardise over.
    filters : int
        Number of filters.
    size : int
        Height and width of a patch.
    stride : int
        Distance of the places that a filter is applied at.
    threshold : float
        In standard deviations of white noise.
    pool : int
        Cells of the grid along each side.
    patches : int
        Number of patches that the covariance is estimated from.
    generator : torch.Generator, optional
        For the patches.

    Raises
    ------
    ValueError
        If there are fewer patches than filters, or the images are smaller than a patch.

    Examples
    --------
    >>> import torch
    >>> images = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> PatchFeatures(images, filters=16)(images).shape
    torch.Size([50, 64])
    """

    @torch.no_grad()
    def __init__(
        self,
        images: Float[Tensor, "n c h w"],
        filters: int = 128,
        size: int = 6,
        stride: int = 2,
        threshold: float = 1.0,
        pool: int = 2,
        patches: int = 20_000,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        n, channels, height, width = images.shape
        if min(height, width) < size:
            raise ValueError(f"images: expected at least {size} x {size} pixels, got shape {tuple(images.shape)}")
        if patches < filters:
            raise ValueError(f"patches: expected at least one a filter, {filters}, got {patches}")
        self.stride, self.threshold, self.pool = stride, threshold, pool
        image = torch.randint(n, (patches, 1, 1), generator=generator).to(images.device)
        down = torch.randint(height - size + 1, (patches, 1, 1), generator=generator)
        right = torch.randint(width - size + 1, (patches, 1, 1), generator=generator)
        down = (down + torch.arange(size)[:, None]).to(images.device)
        right = (right + torch.arange(size)).to(images.device)
        drawn = images.permute(0, 2, 3, 1)[image, down, right].permute(0, 3, 1, 2).flatten(1)
        drawn = drawn - drawn.mean(1, keepdim=True)  # brightness does not count
        values, vectors = torch.linalg.eigh(torch.cov(drawn.mT))
        whitening = (vectors * (values + 0.1 * values.mean()).rsqrt()) @ vectors.mT
        chosen = drawn[:filters] @ whitening
        chosen = chosen / chosen.norm(dim=1, keepdim=True).clamp_min(1e-6)  # an even patch stays zero
        weights = chosen @ whitening  # applied to a raw patch, it whitens and projects
        weights = weights - weights.mean(1, keepdim=True)
        self.register_buffer("weights", weights.reshape(filters, channels, size, size))
        responses = torch.cat([self._responses(part) for part in images.split(500)])
        std, mean = torch.std_mean(responses, 0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp_min(1e-6))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Features of images, filters times cells of them."""
        return (torch.cat([self._responses(part) for part in images.split(500)]) - self.mean) / self.std

    def _responses(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        responses = nn.functional.conv2d(images, self.weights, stride=self.stride)
        return nn.functional.adaptive_avg_pool2d((responses - self.threshold).clamp_min(0), self.pool).flatten(1)


def digit_classifier(side: int) -> nn.Sequential:
    """Small convolutional network from digits [n, side * side] to 64 features and, last, the logits of ten classes."""
    left = -(-side // 4)  # after two strides of two
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * left**2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


LOG_SCALE = -2.0  # of a Gaussian encoder's deviations at the start


@torch.no_grad()
def start_narrow(layer: nn.Linear, code: int, log_scale: float) -> None:
    """Shift the outputs code..2 code - 1 of a Gaussian encoder, its log scales at the start.

    Codes that start as noise of the prior's size are slow to be used.
    """
    layer.bias[code : 2 * code] += log_scale
