r"""The default: a density fitted by likelihood in coordinates chosen by likelihood, and its exact scores.

Derived in :doc:`/book/easy-scores`.
"""

from __future__ import annotations

import math
import warnings
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

# These are measured, not derived.
RIDGE = 3.0  # times 1 / n^2: share of the variances added to a covariance of few samples
FINAL_PRIOR = 0.03  # share of d + 1 pseudo-samples that is left of the prior in a mixture's last step
FUNCTIONS = 10  # samples for each function of a residual that a single component does not call for
PROMISE = 0.7  # share of its penalty that a mixture must gain in its first steps to be fitted to the end
# So are these, on codes of the activations that networks have and on smooth densities, none of them from `tasks.PAIRS`.
ATOM = 0.05  # share of the samples that may have one value of a coordinate before it counts as discrete
STEEP = 5.0  # times that a map may exceed the slope that the samples on either side have ...
STEEP_SHARE = 0.01  # ... in this share of a variable's entries
NARROW = (
    0.01  # standard deviations a standard deviation of normal scores, where standardised coordinates resolve it ...
)
NARROW_SHARE = 0.005  # ... but for this share of a variable's entries
NOISE_FREE = 1e-9  # share of a variance that is left when other variables are known, where nothing but they decide it
DEPENDENT = 1e-12  # the same within a variable: rounding of float32


class NoDensityWarning(UserWarning):
    """What an estimator was fitted to has no density, or none that the samples resolve."""


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
       A mixture must gain what `mixture_penalty` says.
    4. Where the dimension is small, :math:`d (d + 1) \le n`, `SSGE` adds what Stein's identity finds missing in the
       score; with a pair only where no single component will do, or where the samples are many times the functions.

    For a mutual information `fit_pair` fits one density to both variables jointly and takes the scores of the
    marginals from it, so that errors of the marginals cancel and independence gives zero. For Gaussian data the
    estimated gradient is that of the plug-in information, whose bias does not depend on the parameters, so
    that the gradient has none.

    No density holds a coordinate with atoms (the zeros of a ReLU), and a density fitted to it has a score of any size.
    Nor do the samples resolve one that is steep, as behind a leaky ReLU or a saturated tanh. For such batch entries a
    kernel estimator answers instead, `SSGE` with the variables brought to one scale, with a warning. A code without
    noise has an infinite information with its input: where its coordinates are linear in it, the gradient of their
    entropy is left, with a warning. Of a pair only the variables that need a gradient count. A coordinate that is a
    linear function of others adds no information, and its score is zero.
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

    Warns
    -----
    NoDensityWarning
        Where the samples have no density, or none that they resolve, with the reason and what to do.
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
        kept, dependent = _kept(samples)
        reasons = {_DEPENDENT: torch.tensor(dependent)}
        if kept is None:
            score = self._fit(samples, reasons)
        else:
            score = replace(self._fit(samples[..., kept], reasons), origin=samples[..., :1, :].double(), kept=kept)
        _warn({"samples": reasons})
        return score

    def _fit(self, samples: Tensor, reasons: dict[str, Tensor]) -> AdaptiveScore:
        dtype = samples.dtype
        samples = samples.detach().double()  # a nearly noise-free encoder has a condition number beyond float32
        origin = samples[..., :1, :]
        samples = samples - origin  # a coordinate without spread is zero exactly
        reasons[_ATOMS] = guarded = _atoms(samples)
        maps = self._maps(samples)
        choices = [_coordinates(fitted, samples) for fitted in maps]
        choice, (u, _), model = self._select([(c,) for c in choices])
        residual = _residual(u, model, _resolved(u, u.shape[-1]))
        reasons[_STEEP] = steep = ~guarded & _unresolved(samples, choices[1], choice == 1)
        guarded = guarded | steep
        start = torch.zeros_like(samples[..., :1, :])
        plain = AdaptiveScore(
            maps=tuple(maps),
            choice=choice,
            model=model,
            residual=residual,
            origin=start,
            kept=None,
            correction=None,
            fallback=None,
            dtype=samples.dtype,
        )
        fallback = _Fallback(guarded, _Kernel.fit(samples)) if bool(guarded.any()) else None
        correction = _Correction.fit(samples, plain(samples))
        return replace(plain, origin=origin, correction=correction, fallback=fallback, dtype=dtype)

    @fused_checks()
    @torch.no_grad()
    def fit_pair(
        self,
        x: Float[Tensor, "*batch n p"],
        z: Float[Tensor, "*batch n q"],
        wanted: tuple[bool, bool] = (True, True),
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        r"""Joint minus marginal score at paired samples, the parts for x and for z.

        `wanted` says which of them are used: only such a variable must have a density.

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
        (in_x, _), (in_z, _) = _kept(x), _kept(z)
        parts = x if in_x is None else x[..., in_x], z if in_z is None else z[..., in_z]
        scores, reasons = self._fit_pair(*parts, wanted)
        _warn(dict(zip(("x", "z"), reasons, strict=True)))
        return tuple(
            score if kept is None else _among(score, kept, whole.shape[-1])
            for score, kept, whole in zip(scores, (in_x, in_z), (x, z), strict=True)
        )

    def _fit_pair(
        self, x: Tensor, z: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[tuple[Tensor, Tensor], list[dict[str, Tensor]]]:
        dtype = x.dtype
        x, z = x.detach().double(), z.detach().double()
        x, z = x - x[..., :1, :], z - z[..., :1, :]  # a coordinate without spread is zero exactly
        nowhere = torch.zeros(x.shape[:-2], dtype=torch.bool, device=x.device)
        reasons = [{_ATOMS: _atoms(v)} if needed else {} for v, needed in zip((x, z), wanted, strict=True)]
        still = [_noise_free(z, x) & wanted[0], _noise_free(x, z) & wanted[1]]
        for why, where, needed in zip(reasons, still, wanted, strict=True):
            if needed:
                why[_NOISE_FREE] = where.any(-1)
        guarded = _any(reasons, nowhere)
        if not bool(guarded.all()):
            difference, choice, coordinates = self._density_pair(x, z)
            for v, mapped, chosen, why, needed in zip(
                (x, z), coordinates, (choice >= 2, choice % 2 == 1), reasons, wanted, strict=True
            ):
                if needed:
                    why[_STEEP] = ~guarded & _unresolved(v, mapped, chosen)
            guarded = _any(reasons, nowhere)
        if bool(guarded.all()):
            difference = _kernel_pair(x, z)
        elif bool(guarded.any()):
            difference = torch.where(guarded[..., None, None], _kernel_pair(x, z), difference)
        parts = difference.tensor_split([x.shape[-1]], -1)
        for part, v, other, where in zip(parts, (x, z), (z, x), still, strict=True):
            for entry in map(tuple, where.any(-1).nonzero().tolist()):
                part[entry] = self._finite_part(other[entry], v[entry], where[entry])
        return (parts[0].to(dtype), parts[1].to(dtype)), reasons

    def _finite_part(self, given: Tensor, samples: Tensor, still: Bool[Tensor, "d"]) -> Tensor:
        """Score difference of what depends on parameters in I(given; samples), where `given` decides coordinates.

        With those as a and the others as b, I = I(given; b) + H(a, b) - H(b) - H(a | b, given), and the last is that of
        noise which is not there.
        """
        difference = -self._fit(samples, {})(samples)
        if not bool(still.all()):
            rest = samples[:, ~still]
            information = self._fit_pair(given, rest, (False, True))[0][1]
            difference[:, ~still] += information + self._fit(rest, {})(rest)
        return difference

    def _density_pair(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, tuple[_Coordinates, _Coordinates]]:
        """Joint minus marginal score of the chosen density, the choice, and both variables' mapped coordinates."""
        xs = [_coordinates(fitted, x) for fitted in self._maps(x)]
        zs = [_coordinates(fitted, z) for fitted in self._maps(z)]
        choice, parts, model = self._select([(a, b) for a in xs for b in zs])
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
        difference = (joint - torch.cat([marginal_x, marginal_z], -1)) * slope
        return difference, choice, (xs[1], zs[1])

    def _maps(self, samples: Tensor) -> list:
        return [_Standardise.fit(samples), Gaussianise(self.bandwidth).fit(samples)]

    def _select(
        self, candidates: list[tuple[_Coordinates, ...]]
    ) -> tuple[Tensor, tuple[Tensor, Tensor], EllipticalMixture | WideGaussian]:
        """Coordinates and density of the largest penalised likelihood, for every batch entry."""
        joint = [
            _Coordinates(
                torch.cat([c.u for c in cs], -1), torch.cat([c.slope for c in cs], -1), sum(c.log_slope for c in cs)
            )
            for cs in candidates
        ]
        n, dim = joint[0].u.shape[-2:]
        if n <= dim:  # one Gaussian only, and that in the span of the samples
            return _select_wide(joint)
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
            extra = mixture_penalty(n, dim, k)
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
    model : EllipticalMixture or WideGaussian
        The density in its coordinates.
    residual : SpectralScore or None
        Kernel estimate of what its score lacks there.
    origin : Tensor [*batch, 1, d]
        What is subtracted from the points before all else.
    kept : Tensor [k] or None
        Coordinates that the score depends on, where they are not all; those that the samples do not vary in have none.
    correction : _Correction or None
        Affine, with which Stein's identity holds on the samples for affine functions.
    fallback : _Fallback or None
        What answers in batch entries whose samples no density holds.
    dtype : torch.dtype
        Of the points and of the scores; everything is computed in float64.
    """

    maps: tuple
    choice: Tensor
    model: EllipticalMixture | WideGaussian
    residual: SpectralScore | None
    origin: Tensor
    kept: Tensor | None
    correction: _Correction | None
    fallback: _Fallback | None
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
        correction = 0 if self.correction is None else self.correction(points)
        score = self.model.score(u)
        if self.residual is not None:
            score = score + self.residual(u)
        score = slope * score + curvature / slope + correction
        if self.fallback is not None:
            score = torch.where(self.fallback.where[..., None, None], self.fallback.score(points), score)
        score = score.to(self.dtype)
        return score if self.kept is None else _among(score, self.kept, self.origin.shape[-1])


@dataclass(frozen=True)
class _Correction:
    """Affine function with which a score obeys Stein's identities for affine functions exactly on the samples.

    They are mean(s) = 0 and mean((x - mu) s^T) = -I, so the function is (x - mean) @ matrix + offset; with fewer
    samples than coordinates the matrix, a Gaussian's precision times low rank, is never built.
    """

    mean: Tensor
    matrix: Tensor | None
    wide: tuple | None
    offset: Tensor

    @classmethod
    def fit(cls, samples: Tensor, values: Tensor) -> _Correction:
        n, dim = samples.shape[-2:]
        mean = samples.mean(-2, keepdim=True)
        centred, offset = samples - mean, -values.mean(-2, keepdim=True)
        if n <= dim:
            return cls(mean, None, (WideGaussian.fit(samples), centred, values / n), offset)
        identity = torch.eye(dim, dtype=samples.dtype, device=samples.device)
        defect = identity + centred.mT @ values / n
        covariance = fit_gaussian(samples).scales[..., 0, :, :]
        return cls(mean, -torch.cholesky_solve(defect, torch.linalg.cholesky(covariance)), None, offset)

    def __call__(self, points: Tensor) -> Tensor:
        if self.wide is None:
            return (points - self.mean) @ self.matrix + self.offset
        gauss, centred, values = self.wide
        score = gauss.score(points)
        return score + (score @ centred.mT) @ values + self.offset


@dataclass(frozen=True)
class _Kernel:
    """Score by `SSGE` of samples without a density; its width leaves out the pairs that coincide."""

    unit: Tensor
    score: SpectralScore

    @classmethod
    def fit(cls, samples: Tensor) -> _Kernel:
        unit = _distance(samples)
        return cls(unit, SSGE(width=1.0).fit(samples / unit))

    def __call__(self, points: Tensor) -> Tensor:
        return self.score(points / self.unit) / self.unit


@dataclass(frozen=True)
class _Fallback:
    """A score for some batch entries only."""

    where: Bool[Tensor, "*batch"]
    score: _Kernel


def _distance(samples: Tensor) -> Float[Tensor, "*batch 1 1"]:
    """Median distance of the pairs that do not coincide."""
    distance = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist").flatten(-2)
    return torch.where(distance > 0, distance, torch.nan).nanmedian(-1).values[..., None, None]


def _kernel_pair(x: Tensor, z: Tensor) -> Tensor:
    """Joint minus marginal score by kernels, each variable at the scale of its median distance by root d."""
    units = [_distance(v) / v.shape[-1] ** 0.5 for v in (x, z)]
    x, z = x / units[0], z / units[1]
    joint = torch.cat([x, z], -1)
    difference = _Kernel.fit(joint)(joint) - torch.cat([_Kernel.fit(x)(x), _Kernel.fit(z)(z)], -1)
    split = x.shape[-1]
    return torch.cat([difference[..., :split] / units[0], difference[..., split:] / units[1]], -1)


_ATOMS = f"a coordinate has one value in more than {ATOM:.0%} of the samples, so that it has no density"
_STEEP = "its density is steeper in places than the samples resolve"
_NOISE_FREE = (
    "given the other variable a coordinate has no noise, so that the information is infinite and only the gradient of "
    "the entropy is left"
)
_DEPENDENT = "a coordinate is a linear function of others, so that there is no density; its score is set to zero"


def _warn(found: dict[str, dict[str, Tensor]]) -> None:
    """One warning of what was found in which variable."""
    reasons = [f"{name}: {why}" for name, masks in found.items() for why, mask in masks.items() if bool(mask.any())]
    if reasons:
        warnings.warn(
            f"{'; '.join(reasons)}. A kernel estimator stands in where no density does, and its gradient is biased. "
            "Add noise to the variable before its information or entropy is estimated; where the distribution of a "
            "code given its input is known, use migelib.codes.",
            NoDensityWarning,
            stacklevel=3,
        )


def _any(reasons: list[dict[str, Tensor]], nowhere: Bool[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    return torch.stack([nowhere, *(mask for masks in reasons for mask in masks.values())]).any(0)


def _pivots(samples: Tensor) -> Float[Tensor, "*batch d"]:
    """Share of every coordinate's variance that the coordinates before it leave; one without spread keeps all."""
    centred = samples - samples.mean(-2, keepdim=True)
    scale = centred.square().sum(-2, keepdim=True).sqrt()
    white = centred / torch.where(scale > 0, scale, torch.ones_like(scale))
    correlation = white.mT @ white
    rounding = 1e-14 + (scale == 0).to(scale).squeeze(-2)  # so that none is negative
    return torch.linalg.cholesky_ex(correlation + torch.diag_embed(rounding))[0].diagonal(dim1=-2, dim2=-1).square()


def _atoms(samples: Tensor) -> Bool[Tensor, "*batch"]:
    """Whether a coordinate that varies has one value in more than a share ATOM of the samples."""
    most = max(2, int(ATOM * samples.shape[-2]))
    ordered = samples.sort(-2).values
    varies = ordered[..., 0, :] < ordered[..., -1, :]
    return ((ordered[..., most:, :] == ordered[..., :-most, :]).any(-2) & varies).any(-1)


def _noise_free(given: Tensor, samples: Tensor) -> Bool[Tensor, "*batch d"]:
    """Coordinates of which a linear function of `given` leaves nothing but rounding, or of what those before leave."""
    n, dim = samples.shape[-2:]
    if n <= given.shape[-1] + dim + 4:
        return torch.zeros_like(samples[..., 0, :], dtype=torch.bool)
    before, after = _pivots(samples), _pivots(torch.cat([given, samples], -1))[..., -dim:]
    return (after < NOISE_FREE * before) & (before > DEPENDENT)


def _unresolved(samples: Tensor, mapped: _Coordinates, chosen: Bool[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Whether the coordinates, mapped ones where they are chosen, are steep beyond what the samples resolve.

    Both slopes are held against that of the normal scores over n / 16 neighbours: a map's, which its smoothing carries
    over from where samples are dense to where they are not, and that of standardised coordinates, the constant.
    """
    n = samples.shape[-2]
    reach = max(8, n // 16)
    if n < 4 * reach:
        return torch.zeros_like(chosen)
    ordered, order = samples.sort(-2)
    normal = torch.special.ndtri((torch.arange(n, device=samples.device).to(samples) + 0.5) / n)[:, None]
    gap = (ordered[..., reach:, :] - ordered[..., :-reach, :]).clamp_min(torch.finfo(samples.dtype).tiny)
    rise = (normal[reach:] - normal[:-reach]) / gap
    slope = mapped.slope.gather(-2, order)
    limit = STEEP * max(1, 128 / n) * rise  # eight neighbours of few samples are too large a share
    steep = torch.zeros_like(slope, dtype=torch.bool)
    steep[..., reach:, :] |= slope[..., reach:, :] > limit
    steep[..., :-reach, :] |= slope[..., :-reach, :] > limit
    deviation = (ordered - ordered.mean(-2, keepdim=True)).square().mean(-2, keepdim=True).sqrt()
    narrow = NARROW * deviation * rise > 1
    shares = [found.to(samples).mean((-2, -1)) for found in (steep, narrow)]
    return torch.where(chosen, shares[0] > STEEP_SHARE, shares[1] > NARROW_SHARE)


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


def _kept(samples: Tensor) -> tuple[Tensor | None, bool]:
    """Indices of the coordinates that have a score, or None if all do, and whether others are left out as dependent.

    Left out are those that vary in no batch entry, and those that in all entries are linear functions of the ones
    before them, up to the rounding of the samples' type.
    """
    n, dim = samples.shape[-2:]
    vary = (samples != samples[..., :1, :]).flatten(0, -2).any(0)
    free = vary
    if n > dim + 4:
        fine = (samples - samples[..., :1, :]).detach().double()
        deviation = (fine - fine.mean(-2, keepdim=True)).square().mean(-2).sqrt()
        error = torch.finfo(samples.dtype).eps * samples.abs().amax(-2) / deviation
        error = torch.where(deviation > 0, error, torch.zeros_like(error)).square().sum(-1, keepdim=True)
        free = vary & (_pivots(fine) > DEPENDENT + error).reshape(-1, dim).any(0)
    return (None if bool(free.all()) else free.nonzero()[:, 0]), bool((vary & ~free).any())


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


def _select_wide(joint: list[_Coordinates]) -> tuple[Tensor, tuple[Tensor, Tensor], WideGaussian]:
    """Coordinates of the largest likelihood of one Gaussian, for every batch entry."""
    value = torch.stack([WideGaussian.fit(c.u).log_density(c.u).mean(-1) + c.log_slope for c in joint])
    choice = torch.where(torch.isfinite(value), value, -torch.inf).argmax(0)
    u, slope = joint[0].u, joint[0].slope
    for index, candidate in enumerate(joint[1:], 1):
        use = (choice == index)[..., None, None]
        u, slope = torch.where(use, candidate.u, u), torch.where(use, candidate.slope, slope)
    return choice, (u, slope), WideGaussian.fit(u)


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
