"""The benchmark's pairs, built by name and dimension from fixed random generators."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ..validation import check_count
from .base import PairTask, cast
from .encoder import Encoder
from .gaussian import CorrelatedGaussian, GaussianPair
from .maps import Asinh, Bimodal, HalfCube, Map, NormalCDF, SinhArcsinhMap, Spiral, TransformedPair, Wiggle
from .mixture import MixturePair
from .student import StudentPair

STRENGTHS = (0.8, 0.5, 1.0, 0.65)  # parameters of the tasks; a task of fewer parameters has the first ones


def pair(name: str, dim: int, dtype: torch.dtype = torch.float32) -> PairTask:
    """Build a task of the benchmark.

    Parameters
    ----------
    name : str
        One of `PAIRS`.
    dim : int
        Number of coordinates of x, at least 1; of z too, except for `gauss-bottleneck` and `mlp`, whose z has fewer.
    dtype : torch.dtype
        Precision of the samples. Truth and exact scores are computed in double precision whatever it is.

    Returns
    -------
    PairTask
        The same object for the same arguments, so that a truth by Monte Carlo is computed once.

    Raises
    ------
    TypeError
        If the precision is neither float32 nor float64.
    ValueError
        If the name is unknown, or the dimension no integer or too small: `spiral` needs 2, `mlp-blocks` an even one.
    """
    if name not in PAIRS:
        raise ValueError(f"name: unknown task {name!r}, expected one of {', '.join(PAIRS)}")
    check_count(dim, "dim")
    if (name == "spiral" and dim < 2) or (name == "mlp-blocks" and dim % 2):
        raise ValueError(f"dim: task {name!r} does not exist in dimension {dim!r}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    return _built(name, dim, dtype)


@lru_cache(maxsize=128)
def _built(name: str, dim: int, dtype: torch.dtype) -> PairTask:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name}/{dim}".encode()))
    # Built in float64 and rounded once, so that the truth is that of the rounded task.
    return cast(PAIRS[name](dim, generator), dtype)


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _strengths(count: int) -> Float[Tensor, "k"]:
    return torch.tensor(STRENGTHS[:count], dtype=torch.float64)


def _groups(dim: int) -> Float[Tensor, "k d d"]:
    """Diagonal projections on up to four groups of coordinates, which alternate."""
    count = min(len(STRENGTHS), dim)
    return torch.stack([torch.diag((torch.arange(dim) % count == k).double()) for k in range(count)])


def _truth_samples(dim: int) -> int:
    """Samples a repeat of a mixture's Monte-Carlo truth: its relative error falls with the dimension by itself."""
    return max(256, 16384 // dim)


def _rotation(generator: torch.Generator, dim: int) -> Float[Tensor, "d d"]:
    q, r = torch.linalg.qr(_randn(generator, dim, dim))
    return q * r.diagonal().sign()


def _toy(dim: int, generator: torch.Generator) -> PairTask:
    """The paper's task on its grid of correlations; each is a problem of its own."""
    return CorrelatedGaussian(dim, torch.linspace(-0.8, 0.8, 32, dtype=torch.float64))


def _diagonal(dim: int, generator: torch.Generator) -> GaussianPair:
    r"""Coordinate i of z sees that of x only, with correlation :math:`\theta_k / \sqrt{1 + \theta_k^2}` in group k."""
    eye, zero, groups = torch.eye(dim).double(), torch.zeros(dim, dim).double(), _groups(dim)
    directions = torch.cat([groups, torch.zeros_like(groups)], dim=-1)
    x_loading, z_loading = torch.cat([eye, zero], dim=-1), torch.cat([zero, eye], dim=-1)
    return GaussianPair(_strengths(len(groups)), x_loading, z_loading, directions, normalise=True)


def _dense(dim: int, generator: torch.Generator) -> GaussianPair:
    """Random dense covariances of x and z and between them; theta moves the loadings of both."""
    count = min(len(STRENGTHS), dim)
    mixes = [torch.eye(dim) + _randn(generator, dim, dim) / math.sqrt(4 * dim) for _ in range(2)]
    x_base = torch.cat([mixes[0], torch.zeros(dim, dim)], dim=-1)
    z_base = torch.cat([torch.zeros(dim, dim), mixes[1]], dim=-1)
    shared = _randn(generator, count, dim, dim) / math.sqrt(dim * count)
    z_directions = torch.cat([shared, torch.zeros_like(shared)], dim=-1)
    shared = _randn(generator, count, dim, dim) / math.sqrt(dim * count)
    x_directions = torch.cat([torch.zeros_like(shared), shared / 2], dim=-1)
    return GaussianPair(_strengths(count), x_base, z_base, z_directions, x_directions)


def _linear_encoder(weights: Float[Tensor, "k q d"], noise: float) -> GaussianPair:
    r""":math:`z = \sum_k \theta_k A_k x + \sigma \epsilon` of :math:`x \sim N(0, I)`."""
    count, outputs, dim = weights.shape
    x_loading = torch.cat([torch.eye(dim), torch.zeros(dim, outputs)], dim=-1).double()
    z_loading = torch.cat([torch.zeros(outputs, dim), noise * torch.eye(outputs)], dim=-1).double()
    directions = torch.cat([weights, torch.zeros(count, outputs, outputs).double()], dim=-1)
    return GaussianPair(_strengths(count), x_loading, z_loading, directions)


def _bottleneck(dim: int, generator: torch.Generator) -> GaussianPair:
    """A linear encoder into a quarter of the dimensions."""
    outputs = max(1, dim // 4)
    return _linear_encoder(_randn(generator, min(4, dim), outputs, dim) / math.sqrt(dim), 0.5)


def _low_rank(dim: int, generator: torch.Generator) -> GaussianPair:
    """A linear encoder of an eighth of the dimensions of x into all of z; the rest of z is noise."""
    rank, count = max(1, dim // 8), min(4, dim)
    codes = _randn(generator, count, dim, rank) / math.sqrt(rank * count)
    return _linear_encoder(codes @ _rotation(generator, dim)[:rank], 0.5)


def _low_noise(dim: int, generator: torch.Generator) -> GaussianPair:
    """A nearly noise-free linear encoder: the spectrum of (x, z) spans orders of magnitude."""
    left, right = _rotation(generator, dim), _rotation(generator, dim)
    return _linear_encoder(left @ _groups(dim) @ right, 0.1)


def _mapped(x_map: Map | None, z_map: Map | None) -> Callable[[int, torch.Generator], PairTask]:
    return lambda dim, generator: TransformedPair(_diagonal(dim, generator), x_map, z_map)


def _student(dim: int, generator: torch.Generator) -> StudentPair:
    """Student-t with 3 degrees of freedom over the diagonal pair: finite variance, infinite kurtosis."""
    return StudentPair(_diagonal(dim, generator), 3.0)


def _signs(dim: int, generator: torch.Generator) -> MixturePair:
    r"""A coin decides the sign of :math:`z_i = \pm \theta_k x_i + \epsilon_i`, one for all i.

    Both marginals are Gaussian and nothing correlates, so that a Gaussian fit sees no dependence at all.
    """
    core = _diagonal(dim, generator)
    m = 2 * dim
    x_loadings = core.x_loading.expand(2, dim, m)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    directions = signs[None, :, None, None] * core.z_directions[:, None]
    zeros = torch.zeros(2, dim, dtype=torch.float64)
    return MixturePair(
        core.theta,
        zeros,
        zeros,
        x_loadings,
        core.z_loading.expand(2, dim, m),
        torch.zeros(len(core.theta), 2, dim, dtype=torch.float64),
        directions,
        truth_samples=_truth_samples(dim),
    )


def _clusters(dim: int, generator: torch.Generator) -> MixturePair:
    """Four clusters, which x and z share, each with its own correlations; theta moves z's means and loadings."""
    clusters, count = 4, 4
    x_means, z_means = (2 * _randn(generator, clusters, dim) / dim**0.25 for _ in range(2))
    # Directions 1 and 2 spread the clusters along random axes and on the whole, 3 and 4 strengthen the correlations.
    mean_directions = torch.zeros(count, clusters, dim, dtype=torch.float64)
    mean_directions[0], mean_directions[1] = z_means, 2 * _randn(generator, clusters, dim) / dim**0.25
    eye = torch.eye(dim, dtype=torch.float64).expand(clusters, dim, dim)
    zero = torch.zeros_like(eye)
    directions = torch.zeros(count, clusters, dim, 2 * dim, dtype=torch.float64)
    directions[2:, :, :, :dim] = _randn(generator, 2, clusters, dim, dim) / math.sqrt(dim)
    x_loadings, z_loadings = torch.cat([eye, zero], dim=-1), torch.cat([zero, eye], dim=-1)
    return MixturePair(
        _strengths(count),
        x_means,
        torch.zeros_like(z_means),
        x_loadings,
        z_loadings,
        mean_directions,
        directions,
        truth_samples=_truth_samples(dim),
    )


def _network(generator: torch.Generator, inputs: int, outputs: int, hidden: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Four random directions in weight space, two in each layer, and the biases."""
    hidden_directions = _randn(generator, 4, hidden, inputs) * 1.5 / math.sqrt(inputs)
    out_directions = _randn(generator, 4, outputs, hidden) * 1.5 / math.sqrt(hidden)
    hidden_directions[2:], out_directions[:2] = 0, 0
    return hidden_directions, out_directions, _randn(generator, hidden) / 2


def _mlp(dim: int, generator: torch.Generator) -> Encoder:
    """A random network of all of x with up to four outputs; the density of z is a mean over draws of x."""
    nodes = _randn(generator, 8192, dim)
    return Encoder(_strengths(4), *_network(generator, dim, min(4, dim)), 0.5, nodes)


def _mlp_blocks(dim: int, generator: torch.Generator) -> Encoder:
    """Pairs of coordinates through one random network, then hidden by rotations; exact by quadrature."""
    axis = torch.arange(-6, 6.01, 0.25, dtype=torch.float64)
    nodes = torch.cartesian_prod(axis, axis)
    nodes = nodes[nodes.norm(dim=-1) <= 6]
    log_weights = torch.log_softmax(-nodes.square().sum(-1) / 2, dim=0)
    rotations = _rotation(generator, dim), _rotation(generator, dim)
    weights = _network(torch.Generator().manual_seed(1), 2, 2)
    return Encoder(_strengths(4), *weights, 0.4, nodes, log_weights, *rotations, blocks=dim // 2)


PAIRS: dict[str, Callable[[int, torch.Generator], PairTask]] = {
    "toy": _toy,
    "gauss-diagonal": _diagonal,
    "gauss-dense": _dense,
    "gauss-bottleneck": _bottleneck,
    "gauss-low-rank": _low_rank,
    "gauss-low-noise": _low_noise,
    "half-cube": _mapped(None, HalfCube()),
    "asinh": _mapped(None, Asinh(3.0)),
    "skew": _mapped(SinhArcsinhMap(0.5, 1.0), SinhArcsinhMap(-0.7, 1.2)),
    "bimodal": _mapped(None, Bimodal()),
    "wiggle": _mapped(Wiggle(phase=0.0), Wiggle()),
    "uniform": _mapped(NormalCDF(), NormalCDF()),
    "spiral": _mapped(Spiral(1.0), Spiral(-1.0)),
    "student": _student,
    "student-asinh": lambda dim, generator: TransformedPair(_student(dim, generator), Asinh(1.0), Asinh(1.0)),
    "mixture-signs": _signs,
    "mixture-clusters": _clusters,
    "mlp": _mlp,
    "mlp-blocks": _mlp_blocks,
}
