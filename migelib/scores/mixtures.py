r"""Densities that `Adaptive` fits: one Gaussian, a Student-t, and mixtures of Gaussians, by maximum likelihood.

Derived in :doc:`/book/easy-scores`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# These are measured, not derived.
RIDGE = 3.0  # times 1 / n^2: share of the variances added to a covariance of few samples
FINAL_PRIOR = 0.03  # share of d + 1 pseudo-samples that is left of the prior in a mixture's last step
EDGE = 0.95  # times the largest eigenvalue of noise, in the limit: what one of finite noise hardly exceeds
SEEN = 2.0  # standard deviations of a test that make a mixture worth a try
DEFECT = 3.0  # standard deviations from which on coordinates are no Gaussian's


@dataclass(frozen=True)
class EllipticalMixture:
    r"""Density :math:`\sum_k w_k\, t_\nu(u; \mu_k, \Sigma_k)`; Gaussian components where :math:`\nu = \infty`.

    Attributes
    ----------
    log_weights : Tensor [*batch, k]
        :math:`\ln w_k`.
    means : Tensor [*batch, k, d]
        :math:`\mu_k`.
    scales : Tensor [*batch, k, d, d]
        :math:`\Sigma_k`.
    df : Tensor [*batch] or None
        :math:`\nu`; None where it is infinite everywhere, which then need not be looked up.
    """

    log_weights: Float[Tensor, "*batch k"]
    means: Float[Tensor, "*batch k d"]
    scales: Float[Tensor, "*batch k d d"]
    df: Float[Tensor, "*batch"] | None

    def marginal(self, start: int, stop: int) -> EllipticalMixture:
        """The density of coordinates start..stop - 1, which is of the same family."""
        scales = self.scales[..., start:stop, start:stop]
        return EllipticalMixture(self.log_weights, self.means[..., start:stop], scales, self.df)

    def of(self, components: Int[Tensor, "j"]) -> EllipticalMixture:
        """The same density from these components only, the others being of weight zero."""
        weights, means = self.log_weights[..., components], self.means[..., components, :]
        return EllipticalMixture(weights, means, self.scales[..., components, :, :], self.df)

    def _whitened(self, u: Float[Tensor, "*batch n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """White offsets L^-1 (u - mean) [*batch, k, d, n], the inverse factors L^-1, and the log-determinants of L."""
        factor, failed = torch.linalg.cholesky_ex(self.scales)
        factor = torch.where(failed[..., None, None] == 0, factor, torch.nan)  # not finite, so it is never chosen
        identity = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)  # then products, faster than solves
        white = inverse @ (u[..., None, :, :] - self.means[..., :, None, :]).mT
        return white, inverse, factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _log_components(self, squares: Tensor, log_det: Tensor, dim: int) -> Tensor:
        """Per component the log density with its weight, from squared distances [*batch, k, n]."""
        log_density = -dim / 2 * math.log(2 * math.pi) - squares / 2
        if self.df is None:
            return log_density + (self.log_weights - log_det)[..., None]
        heavy = ~torch.isinf(self.df)
        if bool(heavy.any()):
            df = torch.where(heavy, self.df, 1.0)[..., None, None]
            student = (
                torch.lgamma((df + dim) / 2)
                - torch.lgamma(df / 2)
                - dim / 2 * torch.log(df * math.pi)
                - (df + dim) / 2 * torch.log1p(squares / df)
            )
            log_density = torch.where(heavy[..., None, None], student, log_density)
        return log_density + (self.log_weights - log_det)[..., None]

    def _tails(self, squares: Tensor, dim: int) -> Tensor:
        """Weight of each sample in a t's score, (df + d) / (df + squared distance); one for a Gaussian."""
        if self.df is None:
            return torch.ones_like(squares)
        heavy = ~torch.isinf(self.df)[..., None, None]
        df = torch.where(heavy, self.df[..., None, None], 1.0)
        return torch.where(heavy, (df + dim) / (df + squares), 1.0)

    def log_density(self, u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        """Log density, in nats."""
        return self.log_terms(u).logsumexp(-2)

    def log_terms(self, u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch k n"]:
        """Log density of every component with its weight, in nats."""
        white, _, log_det = self._whitened(u)
        return self._log_components(white.square().sum(-2), log_det, u.shape[-1])

    def posterior(self, u: Float[Tensor, "*batch n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Per sample [*batch, k, n]: posterior weights, a t's weights, and squared distances."""
        white, _, log_det = self._whitened(u)
        squares = white.square().sum(-2)
        log_density = self._log_components(squares, log_det, u.shape[-1])
        return torch.softmax(log_density, -2), self._tails(squares, u.shape[-1]), squares

    def score(self, u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        r"""Score, the mean of the components' scores under their posterior weights."""
        white, inverse, log_det = self._whitened(u)
        squares = white.square().sum(-2)
        weights = torch.softmax(self._log_components(squares, log_det, u.shape[-1]), -2)
        weights = weights * self._tails(squares, u.shape[-1])
        return -(inverse.mT @ (white * weights[..., None, :])).sum(-3).mT


@dataclass(frozen=True)
class WideGaussian:
    r"""The Gaussian that `fit_gaussian` fits to n <= d samples, in their span: nothing of size d x d is built.

    With standardised samples T, a ridge w and :math:`A = c I + T T^\top`, c = n w / (1 - w), the inverse of
    :math:`(1 - w) T^\top T / n + w I` is :math:`(I - T^\top A^{-1} T) / w`.
    """

    mean: Tensor
    scale: Tensor
    white: Float[Tensor, "*batch n d"]
    factor: Float[Tensor, "*batch n n"]
    ridge: float

    @classmethod
    def fit(cls, u: Float[Tensor, "*batch n d"]) -> WideGaussian:
        """Fit to samples [*batch, n, d]."""
        n = u.shape[-2]
        mean = u.mean(-2, keepdim=True)
        scale = (u - mean).square().mean(-2, keepdim=True).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return cls._of((u - mean) / scale, mean, scale, RIDGE / n**2)

    @classmethod
    def _of(cls, white: Tensor, mean: Tensor, scale: Tensor, ridge: float) -> WideGaussian:
        n = white.shape[-2]
        identity = torch.eye(n, dtype=white.dtype, device=white.device)
        gram = white @ white.mT + n * ridge / (1 - ridge) * identity
        return cls(mean, scale, white, torch.linalg.cholesky(gram), ridge)

    def marginal(self, start: int, stop: int) -> WideGaussian:
        """The density of coordinates start..stop - 1."""
        mean, scale, white = (part[..., start:stop] for part in (self.mean, self.scale, self.white))
        return self._of(white, mean, scale, self.ridge)

    def _pull(self, u: Tensor) -> tuple[Tensor, Tensor]:
        v = (u - self.mean) / self.scale
        weights = torch.cholesky_solve(self.white @ v.mT, self.factor).mT
        return v, (v - weights @ self.white) / self.ridge

    def log_density(self, u: Tensor) -> Tensor:
        """Log density, in nats."""
        n, dim = self.white.shape[-2:]
        v, pull = self._pull(u)
        log_det = 2 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_det = log_det - n * math.log(n * self.ridge / (1 - self.ridge)) + dim * math.log(self.ridge)
        log_det = log_det + 2 * self.scale.log().sum((-2, -1))
        return -((v * pull).sum(-1) + log_det[..., None] + dim * math.log(2 * math.pi)) / 2

    def score(self, u: Tensor) -> Tensor:
        """Score at points [*batch, m, d]."""
        return -self._pull(u)[1] / self.scale


def fit_gaussian(u: Float[Tensor, "*batch n d"]) -> EllipticalMixture:
    r"""Gaussian by maximum likelihood; with hardly more samples than d a small ridge keeps it regular.

    The gradient of :math:`\ln\det\hat\Sigma` is unbiased for Gaussian data however noisy the covariance is, and a ridge
    of the size that its own error would call for (Ledoit and Wolf's) biases it badly. One is needed to n = d + 4 only:
    with more samples the inverse covariance has a finite variance. It is a share :math:`3 / n^2` of the coordinates'
    variances, the size of the smallest eigenvalue that n samples of n independent coordinates have [Edelman, SIAM
    Journal on Matrix Analysis and Applications 9, 1988]. Explained in :doc:`/book/easy-scores`.
    """
    n, dim = u.shape[-2:]
    mean = u.mean(-2, keepdim=True)
    centred = u - mean
    covariance = centred.mT @ centred / n
    level = covariance.diagonal(dim1=-2, dim2=-1)
    # Rounding alone may make a covariance singular: hence a floor.
    weight = RIDGE / n**2 if n <= dim + 4 else 1e-10
    covariance = _filled((1 - weight) * covariance + weight * torch.diag_embed(level), level)
    zero = u.new_zeros(*u.shape[:-2], 1)
    return EllipticalMixture(zero, mean, covariance[..., None, :, :], torch.full_like(zero[..., 0], math.inf))


def fit_student(u: Float[Tensor, "*batch n d"], df: float, start: EllipticalMixture, steps: int) -> EllipticalMixture:
    r"""Student-t of given df by iterated weighting, :math:`w_i = (\nu + d) / (\nu + \|u_i - \mu\|_{\Sigma^{-1}}^2)`."""
    model = replace(start, df=torch.full_like(start.df, df))
    for _ in range(steps):
        model = refined(model, u, 0.0)
    return model


def fit_mixture(
    u: Float[Tensor, "*batch n d"], gauss: EllipticalMixture, responsibility: Float[Tensor, "*batch k n"], steps: int
) -> tuple[EllipticalMixture, Float[Tensor, "*batch k n"]]:
    r"""Mixture of k Gaussians by expectation-maximisation from given memberships, and its responsibilities.

    On the way each covariance is averaged with the pooled one, which counts as d + 1 samples, so that none is singular.
    The last maximisation leaves a small share of that prior: as for one Gaussian, the gradient of the maximised
    likelihood has little bias however noisy the covariances are, and shrinking them biases it.
    """
    dim = u.shape[-1]
    for _ in range(steps):
        model = _maximise(u, responsibility, gauss, dim + 1)
        white, _, log_det = model._whitened(u)
        responsibility = torch.softmax((model.log_weights - log_det)[..., None] - white.square().sum(-2) / 2, -2)
    return _maximise(u, responsibility, gauss, FINAL_PRIOR * (dim + 1)), responsibility


def refined(model: EllipticalMixture, u: Float[Tensor, "*batch n d"], prior: float) -> EllipticalMixture:
    """One step of expectation-maximisation of any of these densities; `prior` as in `_maximise`, in samples."""
    weights, tails, _ = model.posterior(u)
    return _maximise(u, weights, model, prior, tails)


def mixture_penalty(n: int, dim: int, k: int) -> float:
    r"""What a mixture of k Gaussians must gain, in nats of all n samples, over one Gaussian.

    Akaike's penalty, p for p further parameters, is what they gain on data that need none, p / 2 where n is large, and
    as much again. Of n a few times d they gain more: as parts of n / k samples of one Gaussian, by Bartlett's
    decomposition of a Wishart matrix, :math:`g = n (h(n) - h(n / k))` with
    :math:`h(m) = \frac12 \sum_{j \le d} \psi(\tfrac{m - j}2) - \frac d2 \ln \tfrac m2`. The penalty is g + p / 2 and
    three standard deviations: a gain of half a chi-squared has its mean g as its variance.
    """

    def half_log_det(m: float) -> float:
        rank = torch.arange(1, dim + 1, dtype=torch.float64)
        return float(torch.digamma((m - rank) / 2).sum() - dim * math.log(m / 2)) / 2

    gain = n * (half_log_det(n) - half_log_det(n / k)) + (k - 1) / 2
    return gain + (k - 1) * (dim + 1 + dim * (dim + 1) / 2) / 2 + 3 * math.sqrt(gain)


def _maximise(
    u: Tensor, weights: Tensor, like: EllipticalMixture, prior: float, tails: Tensor | None = None
) -> EllipticalMixture:
    """Density of most likelihood given posterior (and a t's) weights [*batch, k, n]; `prior` pooled samples each."""
    mass = weights.sum(-1)
    pulls = weights if tails is None else weights * tails
    samples = u[..., None, :, :]
    total = pulls.sum(-1).clamp_min(1e-3)[..., None]
    means = pulls @ u / total
    # About u = 0, where the samples are centred: what is lost to rounding is far below the prior's floor.
    scatter = (samples * pulls[..., None]).mT @ samples - (total * means)[..., :, None] * means[..., None, :]
    within = scatter.sum(-3, keepdim=True) / u.shape[-2]
    scales = (scatter + prior * (within + 1e-5 * like.scales)) / (mass.clamp_min(1e-3) + prior)[..., None, None]
    # A coordinate without spread has variance one in every component, as in `fit_gaussian`.
    scales = torch.where(torch.diag_embed((u == u[..., :1, :]).all(-2))[..., None, :, :], 1.0, scales)
    return EllipticalMixture(torch.log(mass / mass.sum(-1, keepdim=True)), means, scales, like.df)


def _filled(scales: Float[Tensor, "*batch d d"], spread: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d d"]:
    """Variance one for coordinates without spread: the same term in the likelihood of every density, and no score."""
    return torch.where(torch.diag_embed(spread == 0), torch.ones_like(scales), scales)


def cluster_features(
    u: Float[Tensor, "*batch n d"], gauss: EllipticalMixture, k: int
) -> tuple[Float[Tensor, "2 *batch n f"], Bool[Tensor, "*batch"]]:
    r"""Two embeddings of the samples in which clusters lie apart, at most k - 1 leading coordinates of each.

    Principal components show clusters of different means. Kernel principal components of the squared cosine of
    whitened samples, :math:`(e_i \cdot e_j)^2 = \langle e_i e_i^\top, e_j e_j^\top \rangle`, show clusters of different
    covariances: they are those of the matrices :math:`e_i e_i^\top`, free of the samples' norms.

    Also whether they show anything that one Gaussian would not: a principal component that is not Gaussian
    (`gaussian_defect`), an `excess_kurtosis`, or a spectrum above the edge :math:`(1 + \sqrt{n / D})^2` of noise in
    D = d (d + 1) / 2 coordinates [Marchenko & Pastur, 1967].
    """
    n, dim = u.shape[-2:]
    centred = u - gauss.means
    values, vectors = torch.linalg.eigh(gauss.scales[..., 0, :, :])
    principal = (centred @ vectors[..., -(k - 1) :]).flip(-1)
    white = centred @ (vectors * values.clamp_min(1e-12).rsqrt()[..., None, :]) @ vectors.mT
    direction = white / white.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    gram = (direction @ direction.mT).square()
    gram = gram - gram.mean(-1, keepdim=True)
    gram = gram - gram.mean(-2, keepdim=True)
    # A few steps of subspace iteration: an eigenvalue that stands out is found, and others are noise. The start is a
    # function of each sample, so that their order is free.
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(dim, 2 * k, generator=generator, dtype=torch.float64).to(u)
    block = (direction @ probes).square()
    for _ in range(8):
        block = gram @ torch.linalg.qr(block)[0]
    basis = torch.linalg.qr(block)[0]
    values, vectors = torch.linalg.eigh(basis.mT @ gram @ basis)
    spectral = (basis @ (vectors * values.clamp_min(0).sqrt()[..., None, :]))[..., -(k - 1) :].flip(-1)
    size = dim * (dim + 1) / 2
    edge = (1 + math.sqrt(n / size)) ** 2 * (1 - 1 / dim)
    defect = gaussian_defect(principal)
    seen = (values[..., -1] > EDGE * edge) | (defect.amax(-1) > SEEN) | (excess_kurtosis(gauss, u).abs() > SEEN)
    few = min(principal.shape[-1], spectral.shape[-1])
    return torch.stack([principal[..., :few], spectral[..., :few]]), seen


def gaussian_defect(u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch d"]:
    """Shapiro and Wilk's statistic of every coordinate, by Royston's approximation about N(0, 1) for Gaussian samples.

    The squared correlation W of the sorted samples with the normal scores [Shapiro & Francia, JASA 67, 1972], and the
    mean and deviation that ln(1 - W) has [Royston, Statistics and Computing 3, 1993]; large where they are not.
    """
    n = u.shape[-2]
    ranks = torch.arange(1, n + 1, device=u.device, dtype=u.dtype)
    normal = torch.special.ndtri((ranks - 0.375) / (n + 0.25))
    ordered = u.sort(-2).values
    ordered = ordered - ordered.mean(-2, keepdim=True)
    along = (normal @ ordered).square() / normal.square().sum()
    lost = 1 - along / ordered.square().sum(-2).clamp_min(torch.finfo(u.dtype).tiny)
    v = math.log(math.log(n)) - math.log(n)
    mean, deviation = 1.0521 * v - 1.2725, 1.0308 - 0.26758 * (math.log(math.log(n)) + 2 / math.log(n))
    return (torch.log(lost.clamp_min(1e-12)) - mean) / deviation


def k_means(features: Float[Tensor, "*batch n f"], k: int) -> Float[Tensor, "*batch k n"]:
    """Membership in k clusters: Lloyd's iteration from centres drawn far apart (k-means++) with a fixed seed."""
    n = features.shape[-2]
    generator = torch.Generator().manual_seed(0)
    flat = features.reshape(-1, n, features.shape[-1])
    centres = flat[:, :0]
    squares = flat.square().sum(-1)
    rank = squares.argsort(-1).argsort(-1)  # noise goes by distance from the mean, so that the samples' order is free
    for _ in range(k):
        # Gumbel's trick: a draw with probability proportional to the squared distance, the same for every entry.
        noise = -torch.log(-torch.log(torch.rand(n, generator=generator).clamp(1e-7, 1 - 1e-7))).to(flat)
        index = (torch.log(squares.clamp_min(1e-12)) + noise[rank]).argmax(-1)
        centres = torch.cat([centres, flat[torch.arange(len(flat), device=flat.device), index][:, None]], 1)
        squares = torch.cdist(flat, centres).square().amin(-1)
    for _ in range(5):
        member = torch.nn.functional.one_hot(torch.cdist(flat, centres).argmin(-1), k).to(flat)
        count = member.sum(-2)[..., None]
        centres = torch.where(count > 0, member.mT @ flat / count.clamp_min(1), centres)
    member = torch.nn.functional.one_hot(torch.cdist(flat, centres).argmin(-1), k).to(flat)
    return member.reshape(*features.shape[:-1], k).mT


def excess_kurtosis(gauss: EllipticalMixture, u: Tensor) -> Tensor:
    r"""Mardia's kurtosis, :math:`E \|u\|^4 - d (d + 2)` of whitened samples, in its standard errors for a Gaussian."""
    n, dim = u.shape[-2:]
    fourth = gauss.posterior(u)[2][..., 0, :].square().mean(-1)
    return (fourth - dim * (dim + 2) * (n - 1) / (n + 1)) / math.sqrt(8 * dim * (dim + 2) / n)


def pad(model: EllipticalMixture, k: int) -> EllipticalMixture:
    """The same density with k components, the further ones of weight zero."""
    missing = k - model.means.shape[-2]
    if missing <= 0:
        return model
    dim = model.means.shape[-1]
    batch = model.means.shape[:-2]
    return EllipticalMixture(
        torch.cat([model.log_weights, model.log_weights.new_full((*batch, missing), -torch.inf)], -1),
        torch.cat([model.means, model.means[..., :1, :].expand(*batch, missing, dim)], -2),
        torch.cat([model.scales, model.scales[..., :1, :, :].expand(*batch, missing, dim, dim)], -3),
        model.df,
    )
