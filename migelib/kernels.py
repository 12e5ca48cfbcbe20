r"""Kernels, their gradients and the median heuristic.

Derived in :doc:`/book/score-estimation`.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .validation import decide, require

FAR = 128  # half the samples' extent in kernel widths: beyond, float32 loses 1e-3 and more of near samples' distances


def half_extent(samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch 1 d"]:
    """Half of each coordinate's range, held fixed."""
    samples = samples.detach()
    return samples.amax(-2, keepdim=True) / 2 - samples.amin(-2, keepdim=True) / 2  # the range itself may overflow


def power_of_two(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Powers of two in (x, 2 x] for positive x, else one: to divide by them is exact, and keeps squares in range."""
    return torch.where(values > 0, values / values.frexp().mantissa, torch.ones_like(values))


def unit(samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch 1 1"]:
    """A power of two of the samples' extent."""
    return power_of_two(half_extent(samples).amax(-1, keepdim=True))


def centre(samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch 1 d"]:
    """Median of some fifteen samples, held fixed: not their mean, lest one far sample cost the others their digits."""
    step = max(1, samples.shape[-2] // 15)
    return samples.detach()[..., ::step, :].median(-2, keepdim=True).values


def squared_distances(x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
    r"""Pairwise squared Euclidean distances :math:`\|x_i - y_j\|^2` from one matrix product.

    Both sets are first shifted by a centre of `y`: distances do not change, and the expansion
    :math:`\|x\|^2 + \|y\|^2 - 2 x^\top y` then loses no digits to a common offset.
    """
    return expanded_squares(*_centred(x, y))


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets shifted by a centre of `y`; one tensor where they are one."""
    offset = centre(y)
    shifted = y - offset
    return (shifted if x is y else x - offset), shifted


def in_widths(x: Tensor, y: Tensor, width: Float[Tensor, "*batch"]) -> tuple[Tensor, Tensor]:
    """Both sets shifted by a centre of `y` and in units of the width: squares and eighth powers stay in range."""
    u, v = _centred(x, y)
    width = width[..., None, None]
    scaled = v / width
    return (scaled if u is v else u / width), scaled


def expanded_squares(x: Tensor, y: Tensor) -> Float[Tensor, "*batch n m"]:
    """Squared distances of centred sets; in place, as every new n x m tensor costs more than a pass over one."""
    of_y = y.square().sum(-1)
    of_x = of_y if x is y else x.square().sum(-1)
    squares = (-2 * x) @ y.mT
    return squares.add_(of_x[..., :, None]).add_(of_y[..., None, :]).clamp_min_(0)


def median_distance(samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    r"""Median of all :math:`n^2` pairwise distances, the diagonal's zeros included: the paper's kernel width.

    The upper median of an even count, as in the code published with the MIGE paper.

    Returns
    -------
    Tensor [*batch]
        In the units of the samples; 0 where at least half of the pairs coincide.
    """
    return _median_distance(samples, half_extent(samples))


def _median_distance(samples: Tensor, extent: Float[Tensor, "*batch 1 d"]) -> Float[Tensor, "*batch"]:
    scale = power_of_two(extent.amax(-1, keepdim=True))
    n, dim = samples.shape[-2:]
    rank = (n * n // 2 + 2 - n) // 2  # among the pairs taken once, of the upper median of n zeros and each pair twice
    # Zero coordinates add nothing, and `pdist` is ten times as fast on whole registers of eight. No matrix product:
    # between equal samples that leaves rounding, which would pass for a width.
    padded = torch.nn.functional.pad(samples / scale, (0, -dim % 8)).reshape(-1, n, dim + -dim % 8)
    medians = [_of_rank(torch.pdist(one), rank) for one in padded]
    return torch.stack(medians).reshape(samples.shape[:-2]) * scale[..., 0, 0]


def _of_rank(values: Float[Tensor, " n"], rank: int) -> Float[Tensor, ""]:
    """The element of this rank, one for the smallest."""
    try:
        array = values.numpy()  # numpy selects ten times as fast
    except (RuntimeError, TypeError):  # tensors of torch.func, or on another device than the CPU
        return values.kthvalue(rank).values
    return values.new_tensor(np.partition(array, rank - 1)[rank - 1])


def with_width(
    samples: Float[Tensor, "*batch n d"], width: float | None, median_factor: float = 1.0
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch"]]:
    """Samples and kernel width, the given one or the median distance times the factor.

    Both in float64 where some sample lies so far off that float32 would lose the others' distances.

    Raises
    ------
    ValueError
        If the median distance is 0 and no width is given.
    """
    extent = half_extent(samples)
    if width is None:
        found = median_factor * _median_distance(samples, extent)
    else:
        found = samples.new_full(samples.shape[:-2], width)
    is_far = (extent.amax((-2, -1)) / FAR > found).any() & (samples.dtype == torch.float32)
    require(
        (found != 0).all() | is_far,
        lambda: ValueError(
            f"samples: at least half of the pairs coincide (shape {tuple(samples.shape)}), so the median distance "
            "is 0 and no kernel width; pass width=..."
        ),
    )
    if samples.dtype == torch.float32 and decide(is_far):
        return with_width(samples.double(), width, median_factor)
    return samples, found


def rbf(
    x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"], width: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch n m"]:
    r"""Gram matrix of the RBF kernel of width :math:`\sigma`, :math:`k(x, y) = \exp(-\|x - y\|^2 / 2 \sigma^2)`."""
    return rbf_in_widths(*in_widths(x, y, width))


def rbf_in_widths(x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
    """`rbf` of sets that `in_widths` returned."""
    return expanded_squares(x, y).mul_(-0.5).exp_()


RADIAL_KERNELS = ("rbf", "imq")


def radial_derivatives(
    squares: Float[Tensor, "*batch n m"], kernel: str, order: int
) -> list[Float[Tensor, "*batch n m"]]:
    r"""A radial kernel's :math:`g_k = (-2)^k f^{(k)}(\rho)` up to `order`, in the *squared* distance :math:`\rho`.

    In units of the width. RBF: :math:`f(\rho) = \exp(-\rho / 2)`, which is every :math:`g_k`.
    IMQ: :math:`f(\rho) = (1 + \rho)^{-1/2}`.

    Raises
    ------
    ValueError
        If `kernel` is not one of `RADIAL_KERNELS`.
    """
    if kernel == "rbf":
        return [torch.exp(squares * -0.5)] * (order + 1)
    if kernel == "imq":
        base = 1 + squares
        derivatives = [base.rsqrt()]
        for k in range(order):
            derivatives.append((2 * k + 1) * derivatives[-1] / base)
        return derivatives
    raise ValueError(f"kernel: expected one of {', '.join(RADIAL_KERNELS)}, got {kernel!r}")


def radial_sum(
    weights: Float[Tensor, "*batch m n"], points: Float[Tensor, "*batch m d"], samples: Float[Tensor, "*batch n d"]
) -> Float[Tensor, "*batch m d"]:
    r""":math:`\sum_j w_{ij}\, (x_i - y_j)`, from one matrix product."""
    return weights.sum(-1, keepdim=True) * points - weights @ samples


class VectorKernel:
    r"""A matrix-valued kernel between points and samples, used through matrix products only.

    Diagonal: :math:`K(x, y) = f(\rho)\, I`. Curl-free: :math:`K(x, y) = -\sigma^2\, \nabla^2 f
    = g_1(\rho)\, I - g_2(\rho)\, \delta \delta^\top` with :math:`\delta = (x - y) / \sigma`; the factor
    :math:`\sigma^2` makes :math:`K(x, x) = I`, so that in both cases the operator :math:`\hat L g = \frac1n \sum_j
    K(\cdot, x_j) g(x_j)` has eigenvalues in [0, 1]. As :math:`\delta_{ij} \cdot c_j = x_i \cdot c_j - x_j \cdot c_j`
    is one matrix product, no tensor of size m x n x d is ever built [Zhou, Shi & Zhu, ICML 2020, sec. 3].

    Parameters
    ----------
    points, samples : Tensor [*batch, m, d] and [*batch, n, d]
        Where to evaluate, and the kernel's centres.
    width : Tensor [*batch]
        :math:`\sigma`.
    kernel : str
        One of `RADIAL_KERNELS`.
    curl_free : bool
        Curl-free instead of diagonal.
    """

    def __init__(
        self,
        points: Float[Tensor, "*batch m d"],
        samples: Float[Tensor, "*batch n d"],
        width: Float[Tensor, "*batch"],
        kernel: str,
        curl_free: bool,
    ) -> None:
        self.width = width[..., None]
        self.points, self.samples = in_widths(points, samples, width)
        self.curl_free, self.dim = curl_free, samples.shape[-1]
        self.squares = expanded_squares(self.points, self.samples)
        self.g = radial_derivatives(self.squares, kernel, 4 if curl_free else 2)

    def apply(self, c: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch m d"]:
        r""":math:`\sum_j K(x_i, x_j)\, c_j`."""
        if not self.curl_free:
            return self.g[0] @ c
        return self.g[1] @ c - self._radial_sum(self.g[2] * self._along(c))

    def divergence(self, c: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch m"]:
        r"""Divergence of `apply` in the points."""
        weights = self._h() if self.curl_free else self.g[1]
        return -(weights * self._along(c)).sum(-1) / self.width

    def stein(self) -> Float[Tensor, "*batch m d"]:
        r""":math:`\zeta(x_i) = \frac1n \sum_j \mathrm{div}_{x_j} K(x_j, x_i)`: minus the embedding of the score."""
        weights = self._h() if self.curl_free else self.g[1]
        return self._radial_sum(weights) / (self.samples.shape[-2] * self.width[..., None])

    def stein_divergence(self) -> Float[Tensor, "*batch m"]:
        """Divergence of `stein` in the points."""
        if not self.curl_free:
            return (self.dim * self.g[1] - self.squares * self.g[2]).mean(-1) / self.width / self.width
        slope = self.squares * self.g[4] - (self.dim + 4) * self.g[3]
        return (self.dim * self._h() + self.squares * slope).mean(-1) / self.width / self.width

    def _along(self, c: Tensor) -> Tensor:
        """delta_ij . c_j, [*batch, m, n]."""
        return self.points @ c.mT - (self.samples * c).sum(-1)[..., None, :]

    def _radial_sum(self, weights: Tensor) -> Tensor:
        return radial_sum(weights, self.points, self.samples)

    def _h(self) -> Tensor:
        """The divergence of the curl-free kernel is -h (delta . c)."""
        return (self.dim + 2) * self.g[2] - self.squares * self.g[3]
