r"""Kernels, their gradients and the median heuristic.

Derived in :doc:`/book/score-estimation`.
"""

from __future__ import annotations

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
    offset = centre(y)
    x, y = x - offset, y - offset
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return (squares - 2 * x @ y.mT).clamp_min(0)


def median_distance(samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    r"""Median of all :math:`n^2` pairwise distances, the diagonal's zeros included: the paper's kernel width.

    The upper median of an even count, as in the code published with the MIGE paper.

    Returns
    -------
    Tensor [*batch]
        In the units of the samples; 0 where at least half of the pairs coincide.
    """
    # Not from one matrix product: between equal samples that leaves rounding, which would pass for a width.
    scale = unit(samples)
    samples = samples / scale
    distances = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist").flatten(-2)
    return distances.kthvalue(distances.shape[-1] // 2 + 1, dim=-1).values * scale[..., 0, 0]


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
    found = median_factor * median_distance(samples) if width is None else samples.new_full(samples.shape[:-2], width)
    far = (half_extent(samples).amax((-2, -1)) / FAR > found).any() & (samples.dtype == torch.float32)
    require(
        (found != 0).all() | far,
        lambda: ValueError(
            f"samples: at least half of the pairs coincide (shape {tuple(samples.shape)}), so the median distance "
            "is 0 and no kernel width; pass width=..."
        ),
    )
    if samples.dtype == torch.float32 and decide(far):
        return with_width(samples.double(), width, median_factor)
    return samples, found


def rbf(
    x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"], width: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch n m"]:
    r"""Gram matrix of the RBF kernel of width :math:`\sigma`, :math:`k(x, y) = \exp(-\|x - y\|^2 / 2 \sigma^2)`."""
    width = width[..., None, None]
    scale = power_of_two(width)
    return torch.exp(-squared_distances(x / scale, y / scale) / (2 * (width / scale).square()))


def rbf_mean_gradient(
    samples: Float[Tensor, "*batch n d"], gram: Float[Tensor, "*batch n n"], width: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch n d"]:
    r"""Mean over i of the gradient of :math:`k(x_i, x_j)` with respect to :math:`x_i`, for every j.

    In matrix form :math:`\frac{1}{n \sigma^2} (\mathrm{diag}(K 1) X - K X)`: one matrix product, and no tensor of
    size n x n x d.
    """
    centred = samples - centre(samples)  # a common offset cancels in exact arithmetic only
    n = samples.shape[-2]
    return (gram.sum(-1, keepdim=True) * centred - gram @ centred) / (n * width[..., None, None].square())


RADIAL_KERNELS = ("rbf", "imq")


def radial_derivatives(
    squares: Float[Tensor, "*batch n m"], width: Float[Tensor, "*batch"], kernel: str, order: int
) -> list[Float[Tensor, "*batch n m"]]:
    r"""A radial kernel and its derivatives up to `order` in the *squared* distance :math:`\rho = \|x - y\|^2`.

    RBF: :math:`f(\rho) = \exp(-\rho / 2 \sigma^2)`. IMQ: :math:`f(\rho) = (1 + \rho / \sigma^2)^{-1/2}`.

    Raises
    ------
    ValueError
        If `kernel` is not one of `RADIAL_KERNELS`.
    """
    inverse_square = width[..., None, None].square().reciprocal()
    if kernel == "rbf":
        value = torch.exp(-squares * inverse_square / 2)
        return [value * (-inverse_square / 2) ** k for k in range(order + 1)]
    if kernel == "imq":
        base = 1 + squares * inverse_square
        derivatives = [base.rsqrt()]
        for k in range(order):
            derivatives.append(derivatives[-1] * (-(k + 0.5)) * inverse_square / base)
        return derivatives
    raise ValueError(f"kernel: expected one of {', '.join(RADIAL_KERNELS)}, got {kernel!r}")


class VectorKernel:
    r"""A matrix-valued kernel between points and samples, used through matrix products only.

    Diagonal: :math:`K(x, y) = f(\rho)\, I`. Curl-free: :math:`K(x, y) = -\sigma^2\, \nabla^2 f
    = -\sigma^2 (2 f'(\rho)\, I + 4 f''(\rho)\, \delta \delta^\top)` with :math:`\delta = x - y`; the factor
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
        offset = centre(samples)  # differences alone matter; without an offset they keep their digits
        # In units of the width: the fourth derivative, of the order of its eighth inverse power, stays in range.
        self.width = width[..., None]
        self.points, self.samples = ((part - offset) / self.width[..., None] for part in (points, samples))
        self.curl_free, self.dim = curl_free, samples.shape[-1]
        self.squares = squared_distances(self.points, self.samples)
        self.f = radial_derivatives(self.squares, torch.ones_like(width), kernel, 4 if curl_free else 2)

    def apply(self, c: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch m d"]:
        r""":math:`\sum_j K(x_i, x_j)\, c_j`."""
        if not self.curl_free:
            return self.f[0] @ c
        along = self.f[2] * self._along(c)
        return -(2 * self.f[1] @ c + 4 * self._radial_sum(along))

    def divergence(self, c: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch m"]:
        r"""Divergence of `apply` in the points."""
        along = self._along(c)
        if not self.curl_free:
            return 2 * (self.f[1] * along).sum(-1) / self.width
        return -(self._h() * along).sum(-1) / self.width

    def stein(self) -> Float[Tensor, "*batch m d"]:
        r""":math:`\zeta(x_i) = \frac1n \sum_j \mathrm{div}_{x_j} K(x_j, x_i)`: minus the embedding of the score."""
        n = self.samples.shape[-2]
        weights = self._h() if self.curl_free else -2 * self.f[1]
        return self._radial_sum(weights) / (n * self.width[..., None])

    def stein_divergence(self) -> Float[Tensor, "*batch m"]:
        """Divergence of `stein` in the points."""
        if not self.curl_free:
            return -(2 * self.dim * self.f[1] + 4 * self.squares * self.f[2]).mean(-1) / self.width / self.width
        slope = 8 * self.f[3] + 8 * self.squares * self.f[4] + 4 * (self.dim + 2) * self.f[3]
        return (self.dim * self._h() + 2 * self.squares * slope).mean(-1) / self.width / self.width

    def _along(self, c: Tensor) -> Tensor:
        """delta_ij . c_j, [*batch, m, n]."""
        return self.points @ c.mT - (self.samples * c).sum(-1)[..., None, :]

    def _radial_sum(self, weights: Tensor) -> Tensor:
        """sum_j weights_ij (x_i - x_j), [*batch, m, d]."""
        return weights.sum(-1, keepdim=True) * self.points - weights @ self.samples

    def _h(self) -> Tensor:
        """The divergence of the unscaled curl-free kernel is -h (delta . c)."""
        return 8 * self.squares * self.f[3] + 4 * (self.dim + 2) * self.f[2]
