r"""Fixed maps of a high-dimensional variable to few coordinates, which stand for it in an information.

Where x is an image or another vector of hundreds of coordinates, its score is harder to estimate than that of the code.
An information with a fixed map of x is at most that with x itself, so that to maximise it is safe, and needs a density
of few coordinates only [Wen et al., ICLR 2020, sec. 4.2]. Use `RandomProjection` where nothing is known of x, and
`PatchFeatures` of images whose classes are told apart by shapes, of which a random projection keeps little: what the
code is to hold is decided by the map. To minimise an information take a map that is learned, or x itself: what the map
does not see is not removed. Neither map depends on trained parameters; compute it once for all data.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .validation import check_count


class RandomProjection(nn.Module):
    r"""Gaussian random projection of the flattened samples, to `size` coordinates.

    The matrix's entries have variance 1 / inputs, so that a coordinate has the scale of the inputs' root mean square.
    Compared in :doc:`/book/infomax`.

    Parameters
    ----------
    inputs : int
        Numbers a sample.
    size : int
        Coordinates of what it returns.
    generator : torch.Generator, optional
        For the matrix, on the CPU.

    Raises
    ------
    ValueError
        If `inputs` or `size` is not positive.

    Examples
    --------
    >>> images = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> generator = torch.Generator().manual_seed(0)
    >>> RandomProjection(images[0].numel(), 64, generator)(images).shape
    torch.Size([50, 64])
    """

    def __init__(self, inputs: int, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_count(inputs, "inputs")
        check_count(size, "size")
        self.register_buffer("matrix", torch.randn(inputs, size, generator=generator) / math.sqrt(inputs))

    def forward(self, samples: Float[Tensor, "n *shape"]) -> Float[Tensor, "n size"]:
        """Project samples [n, ...] of so many numbers each."""
        return samples.flatten(1) @ self.matrix


class PatchFeatures(nn.Module):
    r"""Edges and colours, counted in the quadrants of an image: a fixed map that is learned from patches alone.

    The filters are random patches of the images, whitened; a response above a threshold counts, and its mean over each
    cell of a grid is a feature [Coates, Ng & Lee, AISTATS 2011; Coates & Ng, ICML 2011]. Features are standardised
    over the images. Compared in :doc:`/book/infomax`.

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
