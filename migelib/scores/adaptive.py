r"""The default: a density fitted by likelihood in coordinates chosen by likelihood, and its exact scores.

Derived in :doc:`/book/easy-scores`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..kernels import median_distance
from ..transforms import Gaussianise
from ..validation import check_count, check_pair, check_points, check_samples, check_spread, fused_checks
from .ssge import SSGE, SpectralScore

# These four are measured, not derived.
RIDGE = 3.0  # times 1 / n^2: share of the variances added to a covariance of few samples
FINAL_PRIOR = 0.03  # share of d + 1 pseudo-samples that is left of the prior in a mixture's last step
FUNCTIONS = 10  # samples for each function of a residual that a single component does not call for
PROMISE = 0.7  # share of its penalty that a mixture must gain in its first steps to be fitted to the end


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
    df : Tensor [*batch]
        :math:`\nu`.
    """

    log_weights: Float[Tensor, "*batch k"]
    means: Float[Tensor, "*batch k d"]
    scales: Float[Tensor, "*batch k d d"]
    df: Float[Tensor, "*batch"]

    def marginal(self, start: int, stop: int) -> EllipticalMixture:
        """The density of coordinates start..stop - 1, which is of the same family."""
        scales = self.scales[..., start:stop, start:stop]
        return EllipticalMixture(self.log_weights, self.means[..., start:stop], scales, self.df)

    def components(self, u: Float[Tensor, "*batch n d"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Per component: log density with weight, squared distance, pull P (u - mean), and weight in the t's score."""
        dim = u.shape[-1]
        centred = u[..., None, :, :] - self.means[..., :, None, :]  # [*batch, k, n, d]: k is small
        factor, failed = torch.linalg.cholesky_ex(self.scales)
        factor = torch.where(failed[..., None, None] == 0, factor, torch.nan)  # not finite, so it is never chosen
        identity = torch.eye(dim, dtype=u.dtype, device=u.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)  # then products, faster than solves
        white = inverse @ centred.mT
        pull = (inverse.mT @ white).mT
        squares = white.square().sum(-2)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[..., None]
        df = self.df[..., None, None]
        finite = torch.where(torch.isinf(df), torch.ones_like(df), df)
        student = (
            torch.lgamma((finite + dim) / 2)
            - torch.lgamma(finite / 2)
            - dim / 2 * torch.log(finite * math.pi)
            - (finite + dim) / 2 * torch.log1p(squares / finite)
        )
        gauss = -dim / 2 * math.log(2 * math.pi) - squares / 2
        log_density = torch.where(torch.isinf(df), gauss, student) - log_det + self.log_weights[..., None]
        tail = torch.where(torch.isinf(df), torch.ones_like(squares), (finite + dim) / (finite + squares))
        return log_density, squares, pull, tail

    def log_density(self, u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        """Log density, in nats."""
        return self.components(u)[0].logsumexp(-2)

    def score(self, u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        r"""Score, the mean of the components' scores under their posterior weights."""
        log_density, _, pull, tail = self.components(u)
        return -(torch.softmax(log_density, -2) * tail).unsqueeze(-2).mul(pull.mT).sum(-3).mT


@dataclass(frozen=True)
class _Coordinates:
    """Samples in candidate coordinates: the map's value, slope, and log-likelihood terms."""

    u: Float[Tensor, "*batch n d"]
    slope: Float[Tensor, "*batch n d"]
    log_slope: Float[Tensor, "*batch"]  # mean over the samples, corrected for the map's own fit


@dataclass(frozen=True)
class Adaptive:
    r"""Maximum-likelihood score in coordinates where the density is simple: the default of the surrogates.

    1. Every coordinate is standardised, or mapped to a Gaussian through its smoothed CDF (`transforms.Gaussianise`).
    2. There a Gaussian, a Student-t or a mixture of Gaussians is fitted; a mixture from two spectral starts.
    3. Coordinates and family are those of the largest likelihood, less :math:`p / n` for p further parameters [Akaike,
       IEEE Transactions on Automatic Control 19, 1974] and, for the maps, leaving each sample out of its own CDF.
    4. Where the dimension is small, :math:`d (d + 1) \le n`, `SSGE` adds what Stein's identity finds missing in the
       score; with a pair only where no single component will do, or where the samples are many times the functions.

    For a mutual information `fit_pair` fits one density to both variables jointly and takes the scores of the
    marginals from it, so that errors of the marginals cancel and independence gives zero. For Gaussian data the
    estimated gradient is that of the plug-in information, whose bias does not depend on the parameters, so
    that the gradient has none.
    Derived in :doc:`/book/easy-scores`.

    Parameters
    ----------
    bandwidth : float, optional
        Of the smoothed CDF, in the units of a standard Gaussian, in (0, 1]; by default :math:`n^{-1/5}`.
    components : int
        Most components of a mixture, at least 1.
    steps : int
        Steps of expectation-maximisation.

    Raises
    ------
    ValueError
        If a setting is outside its range.
    """

    bandwidth: float | None = None
    components: int = 8
    steps: int = 30

    def __post_init__(self) -> None:
        Gaussianise(self.bandwidth)  # raises where it is out of range
        check_count(self.components, "components")
        check_count(self.steps, "steps")

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> AdaptiveScore:
        """Fit the score to samples [*batch, n, d].

        Raises
        ------
        TypeError
            If `samples` is not a tensor of float32 or float64.
        ValueError
            If there are fewer than two samples, an entry is not finite, or all samples are equal.
        """
        check_samples(samples)
        check_spread(samples)
        kept = _varying(samples)
        if kept is not None:
            return replace(self.fit(samples[..., kept]), origin=samples[..., :1, :].double(), kept=kept)
        dtype = samples.dtype
        samples = samples.detach().double()  # a nearly noise-free encoder has a condition number beyond float32
        origin = samples[..., :1, :]
        samples = samples - origin  # a coordinate without spread is zero exactly
        maps = self._maps(samples)
        choices = [_coordinates(fitted, samples) for fitted in maps]
        choice, (u, _), model = self._select([(c,) for c in choices])
        residual = _residual(u, model, _resolved(u, u.shape[-1]))
        gauss = fit_gaussian(samples)
        covariance = gauss.scales[..., 0, :, :]
        start = torch.zeros_like(gauss.means)
        plain = AdaptiveScore(
            maps=tuple(maps),
            choice=choice,
            model=model,
            residual=residual,
            origin=start,
            kept=None,
            mean=gauss.means,
            matrix=torch.zeros_like(covariance),
            offset=start,
            dtype=samples.dtype,
        )
        values = plain(samples)
        # Stein's identities for affine functions, mean(s) = 0 and mean((x - mu) s^T) = -I, made exact on the samples.
        centred = samples - gauss.means
        identity = torch.eye(samples.shape[-1], dtype=samples.dtype, device=samples.device)
        defect = identity + centred.mT @ values / samples.shape[-2]
        matrix = -torch.cholesky_solve(defect, torch.linalg.cholesky(covariance))
        offset = -values.mean(-2, keepdim=True)
        return replace(plain, origin=origin, matrix=matrix, offset=offset, dtype=dtype)

    @fused_checks()
    @torch.no_grad()
    def fit_pair(
        self, x: Float[Tensor, "*batch n p"], z: Float[Tensor, "*batch n q"]
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        r"""Joint minus marginal score at paired samples, the parts for x and for z.

        In the coordinates u = T(x), v = S(z) the log-determinants cancel:
        :math:`\nabla_z \ln q(x, z) - \nabla_z \ln q(z) = J_S^\top (\nabla_v \ln q(u, v) - \nabla_v \ln q(v))`.

        Raises
        ------
        TypeError, ValueError
            If `x` or `z` is not a finite tensor of at least two differing samples, or they are not paired.
        """
        check_pair(x, z)
        check_spread(x, "x")
        check_spread(z, "z")
        in_x, in_z = _varying(x), _varying(z)
        if in_x is not None:
            score_x, score_z = self.fit_pair(x[..., in_x], z)
            return _among(score_x, in_x, x.shape[-1]), score_z
        if in_z is not None:
            score_x, score_z = self.fit_pair(x, z[..., in_z])
            return score_x, _among(score_z, in_z, z.shape[-1])
        dtype = x.dtype
        x, z = x.detach().double(), z.detach().double()
        x, z = x - x[..., :1, :], z - z[..., :1, :]  # a coordinate without spread is zero exactly
        xs = [_coordinates(fitted, x) for fitted in self._maps(x)]
        zs = [_coordinates(fitted, z) for fitted in self._maps(z)]
        _, parts, model = self._select([(a, b) for a in xs for b in zs])
        split = x.shape[-1]
        u, slope = parts
        densities = [
            (u, model),
            (u[..., :split], model.marginal(0, split)),
            (u[..., split:], model.marginal(split, u.shape[-1])),
        ]
        scores = [density.score(part) for part, density in densities]
        resolved = torch.stack([_resolved(part, u.shape[-1]) for part, _ in densities]).all(0)
        residuals = [_residual(part, density, resolved) for part, density in densities]
        if residuals[0] is not None:
            # One Gaussian or Student-t has the pair's gradient from its maximised likelihood, whose errors cancel; the
            # residual's functions cost a share k / n of it.
            use = torch.isfinite(model.log_weights).sum(-1) > 1
            use = (use | (FUNCTIONS * residuals[0].n_eigen <= u.shape[-2]))[..., None, None]
            scores = [
                score + torch.where(use, residual(part), 0)
                for score, residual, (part, _) in zip(scores, residuals, densities, strict=True)
            ]
        joint, marginal_x, marginal_z = scores
        difference = ((joint - torch.cat([marginal_x, marginal_z], -1)) * slope).to(dtype)
        return difference[..., :split], difference[..., split:]

    def _maps(self, samples: Tensor) -> list:
        return [_Standardise.fit(samples), Gaussianise(self.bandwidth).fit(samples)]

    def _select(
        self, candidates: list[tuple[_Coordinates, ...]]
    ) -> tuple[Tensor, tuple[Tensor, Tensor], EllipticalMixture]:
        """Coordinates and density of the largest penalised likelihood, for every batch entry."""
        joint = [
            _Coordinates(
                torch.cat([c.u for c in cs], -1), torch.cat([c.slope for c in cs], -1), sum(c.log_slope for c in cs)
            )
            for cs in candidates
        ]
        n, dim = joint[0].u.shape[-2:]
        best = None

        def offer(index: int, model: EllipticalMixture, extra: float, mask: Tensor | bool = True) -> Tensor:
            """Keep the model where it is better than what came before and the mask allows it; its gain over that."""
            nonlocal best
            value = model.log_density(joint[index].u).mean(-1) + joint[index].log_slope - extra / n
            value = torch.where(torch.isfinite(value) & mask, value, -torch.inf)
            model = _pad(model, self.components)
            here = (value, torch.full_like(value, index, dtype=torch.long), joint[index].u, joint[index].slope, model)
            gain = value if best is None else value - best[0]
            best = here if best is None else _better(best, here)
            return gain

        gaussians = [fit_gaussian(c.u) for c in joint]
        for index, model in enumerate(gaussians):
            offer(index, model, 0)
        for index, model in enumerate(gaussians):
            heavy = _excess_kurtosis(model, joint[index].u) > 2
            if n > 2 * dim and bool(heavy.any()):
                for df in (10.0, 5.0, 3.0):
                    model = fit_student(joint[index].u, df, model, 4)
                    offer(index, model, 1, heavy)
        leading = best[1]
        for index in sorted({0, *leading.flatten().tolist()}):
            tried = (leading == index) | (index == 0)
            self._offer_mixtures(joint[index].u, gaussians[index], partial(offer, index), tried)
        _, choice, u, slope, model = best
        return choice, (u, slope), model

    def _offer_mixtures(
        self, u: Tensor, gauss: EllipticalMixture, offer: Callable[..., Tensor], active: Bool[Tensor, "*batch"]
    ) -> None:
        """Mixtures of 2, 4, 8, ... Gaussians, as long as more of them help; a batch entry stops on its own."""
        n, dim = u.shape[-2:]
        floor = gauss.log_density(u).mean(-1)
        if self.components < 2:
            return
        features = _cluster_features(u, gauss, self.components)
        k = 2
        while k <= self.components and n >= k * (dim + 1) and bool(active.any()):
            extra = (k - 1) * (dim + 1 + dim * (dim + 1) / 2)
            first = min(5, self.steps)
            starts = torch.stack([_k_means(f[..., : k - 1], k) for f in features])
            model, responsibility = fit_mixture(u, gauss, starts, first)
            value, best = model.log_density(u).mean(-1).max(0)
            responsibility = torch.where(best[..., None, None] == 0, *responsibility)
            # After a few steps most of the gain is there: less than this share of the penalty will not make it.
            helps = active & (value - floor > PROMISE * extra / n)
            if bool(helps.any()):
                model, _ = fit_mixture(u, gauss, responsibility, self.steps - first)
                helps = helps & (offer(model, extra, helps) > 0)
            if k > 2:
                active = helps
            k *= 2


@dataclass(frozen=True)
class AdaptiveScore:
    """The function that `Adaptive.fit` returns.

    Attributes
    ----------
    maps : tuple
        The candidate maps: standardisation and Gaussianisation.
    choice : Tensor [*batch]
        Which map each batch entry chose.
    model : EllipticalMixture
        The density in its coordinates.
    residual : SpectralScore or None
        Kernel estimate of what its score lacks there.
    origin : Tensor [*batch, 1, d]
        What is subtracted from the points before all else.
    kept : Tensor [k] or None
        Coordinates that the score depends on, where they are not all; those that the samples do not vary in have none.
    mean, matrix, offset : Tensor [*batch, 1, d], [*batch, d, d] and [*batch, 1, d]
        Affine correction (x - mean) @ matrix + offset, with which Stein's identity holds on the samples for affine
        functions.
    dtype : torch.dtype
        Of the points and of the scores; everything is computed in float64.
    """

    maps: tuple
    choice: Tensor
    model: EllipticalMixture
    residual: SpectralScore | None
    origin: Tensor
    kept: Tensor | None
    mean: Tensor
    matrix: Tensor
    offset: Tensor
    dtype: torch.dtype

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.origin.to(self.dtype))
        points = points.double() - self.origin
        if self.kept is not None:
            points = points[..., self.kept]
        used = self.choice.unique().tolist()  # evaluating a map that no batch entry chose would double the cost
        u, slope, curvature = self.maps[used[0]].evaluate(points, 2)
        if len(used) > 1:
            use = self.choice[..., None, None] == used[1]
            other = self.maps[used[1]].evaluate(points, 2)
            u, slope, curvature = (torch.where(use, b, a) for a, b in zip((u, slope, curvature), other, strict=True))
        correction = (points - self.mean) @ self.matrix + self.offset
        score = self.model.score(u)
        if self.residual is not None:
            score = score + self.residual(u)
        score = (slope * score + curvature / slope + correction).to(self.dtype)
        return score if self.kept is None else _among(score, self.kept, self.origin.shape[-1])


@dataclass(frozen=True)
class _Standardise:
    """Every coordinate to mean zero and variance one."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, samples: Tensor) -> _Standardise:
        mean = samples.mean(-2, keepdim=True)
        scale = (samples - mean).square().mean(-2, keepdim=True).sqrt()
        return cls(mean, torch.where(scale > 0, scale, torch.ones_like(scale)))

    def evaluate(self, points: Tensor, order: int = 2) -> list[Tensor]:
        parts = [(points - self.mean) / self.scale, (1 / self.scale).expand_as(points), torch.zeros_like(points)]
        return parts[: order + 1]


def _varying(samples: Tensor) -> Tensor | None:
    """Indices of the coordinates that vary in any batch entry, or None if all do."""
    vary = (samples != samples[..., :1, :]).flatten(0, -2).any(0)
    return None if bool(vary.all()) else vary.nonzero()[:, 0]


def _among(score: Tensor, kept: Tensor, dim: int) -> Tensor:
    """The score of `kept` coordinates among `dim`, zero elsewhere."""
    return score.new_zeros(*score.shape[:-1], dim).index_copy(-1, kept, score)


def _resolved(u: Tensor, dim: int) -> Bool[Tensor, "*batch"]:
    """Whether a kernel's n eigenfunctions resolve more than the mean and covariance of `dim` coordinates."""
    if dim * (dim + 1) > u.shape[-2]:
        return torch.zeros(u.shape[:-2], dtype=torch.bool, device=u.device)
    return median_distance(u) > 0


def _residual(u: Tensor, model: EllipticalMixture, resolved: Bool[Tensor, "*batch"]) -> SpectralScore | None:
    """What Stein's identity finds missing in the score of a density; zero in batch entries that are not resolved.

    Its coefficients are not shrunk: what they fit of the samples' own noise is what is taken out of the gradient's.
    """
    if not bool(resolved.any()):
        return None
    base, use = model.score(u), resolved[..., None, None]
    one = u[tuple(resolved.nonzero()[0].tolist())]  # stands in where a kernel would have no width
    fitted = SSGE(energy=0.999).fit_residual(torch.where(use, u, one), base)
    return replace(fitted, coefficients=torch.where(use, fitted.coefficients, 0))


def _coordinates(fitted: object, samples: Tensor) -> _Coordinates:
    u, slope = fitted.evaluate(samples, 1)
    u = u * (samples != 0).any(-2, keepdim=True)  # zero exactly where there is no spread
    n = samples.shape[-2]
    if isinstance(fitted, _Standardise):
        return _Coordinates(u, slope, torch.log(slope).mean(-2).sum(-1) - 2 * samples.shape[-1] / n)
    # log f = log phi(u) + log slope; leaving a sample out takes its own bump from f. What that costs is the optimism.
    return _Coordinates(u, slope, (torch.log(slope).mean(-2) - fitted.optimism(samples, u, slope)).sum(-1))


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


def _filled(scales: Float[Tensor, "*batch d d"], spread: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d d"]:
    """Variance one for coordinates without spread: the same term in the likelihood of every density, and no score."""
    return torch.where(torch.diag_embed(spread == 0), torch.ones_like(scales), scales)


def fit_student(u: Float[Tensor, "*batch n d"], df: float, start: EllipticalMixture, steps: int) -> EllipticalMixture:
    r"""Student-t of given df by iterated weighting, :math:`w_i = (\nu + d) / (\nu + \|u_i - \mu\|_{\Sigma^{-1}}^2)`."""
    model = EllipticalMixture(start.log_weights, start.means, start.scales, torch.full_like(start.df, df))
    for _ in range(steps):
        tail = model.components(u)[3].mT  # [*batch, n, 1]
        mean = (tail * u).sum(-2, keepdim=True) / tail.sum(-2, keepdim=True)
        centred = u - mean
        scale = (tail * centred).mT @ centred / u.shape[-2]
        model = EllipticalMixture(model.log_weights, mean, scale[..., None, :, :], model.df)
    return model


def fit_mixture(
    u: Float[Tensor, "*batch n d"], gauss: EllipticalMixture, responsibility: Float[Tensor, "*batch n k"], steps: int
) -> tuple[EllipticalMixture, Float[Tensor, "*batch n k"]]:
    r"""Mixture of k Gaussians by expectation-maximisation from given memberships, and its responsibilities.

    On the way each covariance is averaged with the pooled one, which counts as d + 1 samples, so that none is singular.
    The last maximisation leaves a small share of that prior: as for one Gaussian, the gradient of the maximised
    likelihood has little bias however noisy the covariances are, and shrinking them biases it.
    """
    dim = u.shape[-1]
    for _ in range(steps):
        model = _maximise(u, responsibility, gauss, dim + 1)
        responsibility = torch.softmax(model.components(u)[0], -2).mT
    return _maximise(u, responsibility, gauss, FINAL_PRIOR * (dim + 1)), responsibility


def _maximise(u: Tensor, responsibility: Tensor, gauss: EllipticalMixture, prior: float) -> EllipticalMixture:
    n = u.shape[-2]
    mass = responsibility.sum(-2).clamp_min(1e-3)  # [*batch, k]
    means = responsibility.mT @ u / mass[..., None]
    centred = u[..., None, :, :] - means[..., :, None, :]
    scatter = (responsibility.mT[..., None] * centred).mT @ centred  # [*batch, k, d, d]
    within = scatter.sum(-3, keepdim=True) / n
    scales = (scatter + prior * (within + 1e-5 * gauss.scales)) / (mass[..., None, None] + prior)
    scales = _filled(scales, within.diagonal(dim1=-2, dim2=-1))
    return EllipticalMixture(torch.log(mass / mass.sum(-1, keepdim=True)), means, scales, gauss.df)


def _cluster_features(
    u: Float[Tensor, "*batch n d"], gauss: EllipticalMixture, k: int
) -> tuple[Float[Tensor, "*batch n f"], Float[Tensor, "*batch n f"]]:
    r"""Two embeddings of the samples in which clusters lie apart, at most k - 1 leading coordinates of each.

    Principal components show clusters of different means. Kernel principal components of the squared cosine of
    whitened samples, :math:`(e_i \cdot e_j)^2 = \langle e_i e_i^\top, e_j e_j^\top \rangle`, show clusters of different
    covariances: they are those of the matrices :math:`e_i e_i^\top`, free of the samples' norms.
    """
    centred = u - gauss.means
    values, vectors = torch.linalg.eigh(gauss.scales[..., 0, :, :])
    principal = (centred @ vectors[..., -(k - 1) :]).flip(-1)
    white = centred @ (vectors * values.clamp_min(1e-12).rsqrt()[..., None, :])
    direction = white / white.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    gram = (direction @ direction.mT).square()
    gram = gram - gram.mean(-1, keepdim=True)
    gram = gram - gram.mean(-2, keepdim=True)
    values, vectors = torch.linalg.eigh(gram)
    spectral = (vectors * values.clamp_min(0).sqrt()[..., None, :])[..., -(k - 1) :].flip(-1)
    return principal, spectral


def _k_means(features: Float[Tensor, "*batch n f"], k: int) -> Float[Tensor, "*batch n k"]:
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
    for _ in range(8):
        member = torch.nn.functional.one_hot(torch.cdist(flat, centres).argmin(-1), k).to(flat)
        count = member.sum(-2)[..., None]
        centres = torch.where(count > 0, member.mT @ flat / count.clamp_min(1), centres)
    member = torch.nn.functional.one_hot(torch.cdist(flat, centres).argmin(-1), k).to(flat)
    return member.reshape(*features.shape[:-1], k)


def _excess_kurtosis(gauss: EllipticalMixture, u: Tensor) -> Tensor:
    r"""Mardia's kurtosis, :math:`E \|u\|^4 - d (d + 2)` of whitened samples, in its standard errors for a Gaussian."""
    n, dim = u.shape[-2:]
    fourth = gauss.components(u)[1][..., 0, :].square().mean(-1)
    return (fourth - dim * (dim + 2) * (n - 1) / (n + 1)) / math.sqrt(8 * dim * (dim + 2) / n)


def _pad(model: EllipticalMixture, k: int) -> EllipticalMixture:
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


def _better(a: tuple, b: tuple) -> tuple:
    """Per batch entry the one of the larger value."""
    use = b[0] > a[0]

    def pick(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(use.reshape(use.shape + (1,) * (first.ndim - use.ndim)), second, first)

    fields = ("log_weights", "means", "scales", "df")
    model = EllipticalMixture(*(pick(getattr(a[4], f), getattr(b[4], f)) for f in fields))
    return (*(pick(x, y) for x, y in zip(a[:4], b[:4], strict=True)), model)
