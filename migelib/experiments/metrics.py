"""What the experiments measure, in one place: errors of gradients, classifiers, representations and samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..kernels import median_distance, rbf
from ..tasks import gaussian_log_prob


def flat_gradient(output: Float[Tensor, ""], inputs: Sequence[Tensor]) -> Float[Tensor, "p"]:
    """Gradient of a scalar with respect to all inputs, as one vector; zero where it does not depend on one."""
    found = torch.autograd.grad(output, inputs, allow_unused=True, retain_graph=True)
    both = zip(found, inputs, strict=True)
    return torch.cat([(torch.zeros_like(at) if g is None else g).flatten() for g, at in both])


def calibration_error(log_probs: Float[Tensor, "n c"], y: Int64[Tensor, "n"], bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over bins of equal width, as a share."""
    confidence, predicted = log_probs.exp().max(-1)
    gap = confidence - (predicted == y).to(confidence)
    which = (confidence * bins).long().clamp(0, bins - 1)
    sums = torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add_(0, which, gap)
    return float(sums.abs().sum() / len(y))


def auroc(negatives: Float[Tensor, "n"], positives: Float[Tensor, "m"]) -> float:
    """Probability that a positive has a larger value than a negative, ties counting half."""
    from sklearn.metrics import roc_auc_score  # here, so that experiments without it need no scikit-learn

    labels = np.repeat([0, 1], [len(negatives), len(positives)])
    return float(roc_auc_score(labels, torch.cat([negatives, positives]).cpu().numpy()))


def effective_rank(y: Float[Tensor, "n d"]) -> float:
    r"""Exponential of the entropy of the covariance's normalised eigenvalues: d for white codes, 1 for one direction.

    Defined by Roy & Vetterli [EUSIPCO, 2007] for singular values; here for variances.
    """
    values = torch.linalg.eigvalsh(torch.cov(y.double().mT)).clamp_min(0)
    share = values / values.sum()
    return float(torch.exp(torch.special.entr(share).sum()))


SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the inverse multiquadrics, as in the WAE's published code


def rbf_kernel(squares: Tensor, dim: int) -> Tensor:
    """RBF whose width is the median distance of two draws of a standard Gaussian (Wilson and Hilferty's formula)."""
    return torch.exp(-squares / (4 * dim * (1 - 2 / (9 * dim)) ** 3))


def multiquadric_kernel(squares: Tensor, dim: int) -> Tensor:
    """Mean of inverse multiquadrics C / (C + r^2) with C = 2 d times each of `SCALES`."""
    return sum(2 * dim * scale / (2 * dim * scale + squares) for scale in SCALES) / len(SCALES)


def energy_kernel(squares: Tensor, dim: int) -> Tensor:
    """Minus the distance: the squared MMD is then the energy distance."""
    return -(squares + 1e-12).sqrt()


KERNELS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "rbf": rbf_kernel,
    "imq": multiquadric_kernel,
    "energy": energy_kernel,
}


def mmd_squared(
    x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"], kernel: Callable[[Tensor, int], Tensor]
) -> Float[Tensor, "*batch"]:
    r"""Unbiased estimate of the squared maximum mean discrepancy, by U-statistics; it may be negative.

    With :math:`k = -\|x - y\|` this is the energy distance, :math:`2 E\|x - y\| - E\|x - x'\| - E\|y - y'\|`.
    """
    return mean_kernel(x, x, kernel) + mean_kernel(y, y, kernel) - 2 * mean_kernel(x, y, kernel)


def mean_kernel(
    x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"], kernel: Callable[[Tensor, int], Tensor]
) -> Float[Tensor, "*batch"]:
    """Mean of a kernel over all pairs of a point of x and one of y; over pairs of different points where y is x."""
    squares = x.square().sum(-1)[..., None] + y.square().sum(-1)[..., None, :] - 2 * x @ y.mT
    values = kernel(squares.clamp_min(0), x.shape[-1])
    if y is not x:
        return values.mean((-2, -1))
    n = x.shape[-2]
    return (values.sum((-2, -1)) - values.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


def frechet_distance(
    mean: Float[Tensor, "f"],
    covariance: Float[Tensor, "f f"],
    other_mean: Float[Tensor, "f"],
    other_covariance: Float[Tensor, "f f"],
) -> Float[Tensor, ""]:
    r"""Squared 2-Wasserstein distance of two Gaussians.

    :math:`\|m_1 - m_2\|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})`.
    """
    first, second = covariance.double(), other_covariance.double()
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return (mean - other_mean).double().square().sum() + first.trace() + second.trace() - 2 * cross


def maximum_mean_discrepancy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    r"""Root of the biased estimate of :math:`\mathrm{MMD}^2` with an RBF kernel of y's median width.

    [Gretton et al., JMLR 13, 2012.]
    """
    width = median_distance(y)
    square = rbf(x, x, width).mean() + rbf(y, y, width).mean() - 2 * rbf(x, y, width).mean()
    return float(square.clamp_min(0).sqrt())


def importance_log_likelihood(
    log_density: Callable[[Float[Tensor, "*batch k d"]], Float[Tensor, "*batch k"]],
    samples: Float[Tensor, "*batch m d"],
    noise: Float[Tensor, "*batch k d"],
) -> Float[Tensor, "*batch"]:
    r"""Importance-sampled lower bound of the evidence, :math:`\ln \frac1k \sum_i p(x, z_i) / r(z_i)`.

    It needs no density of the posterior: the proposal r is fitted to its samples. The mean is at most the evidence for
    every r [Burda et al., ICLR 2016]. r is a Gaussian with the mean and the covariance of the samples (45 %), the same
    with doubled deviations (45 %), and the prior (10 %), which keeps the weights finite.

    Parameters
    ----------
    log_density : callable
        :math:`\ln p(x, z)` of each image at codes [*batch, k, d]; a standard Gaussian is the prior of z.
    samples : Tensor [*batch, m, d]
        Samples of the posterior of each image.
    noise : Tensor [*batch, k, d]
        Standard normal numbers, from which the k draws of r are made.
    """
    count, d = noise.shape[-2:]
    mean = samples.mean(-2, keepdim=True)
    centred = samples - mean
    covariance = centred.mT @ centred / (samples.shape[-2] - 1)
    jitter = 1e-6 + 1e-3 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    factor = torch.linalg.cholesky(covariance + jitter[..., None, None] * torch.eye(d).to(samples))
    component = torch.arange(count, device=samples.device) * 20 // count  # twentieths: 9, 9 and 2
    stretch = torch.where(component < 9, 1.0, 2.0)[:, None]
    z = torch.where((component < 18)[:, None], mean + stretch * noise @ factor.mT, noise)
    white = torch.linalg.solve_triangular(factor, (z - mean).mT, upper=False).mT
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[..., None]
    parts = [
        math.log(0.45) + gaussian_log_prob(white) - log_det,
        math.log(0.45) + gaussian_log_prob(white / 2) - log_det - d * math.log(2),
        math.log(0.10) + gaussian_log_prob(z),
    ]
    log_proposal = torch.stack(parts).logsumexp(0) - d / 2 * math.log(2 * math.pi)
    return (log_density(z) - log_proposal).logsumexp(-1) - math.log(count)


def clock(device: torch.device) -> float:
    """Return seconds for differences: what the process computed on a CPU, so that others do not count, or wall time."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
