r"""The default: a density fitted by likelihood in coordinates chosen by likelihood, and its exact scores.

Derived in :doc:`/book/easy-scores`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..transforms import Gaussianise
from ..validation import check_count, check_pair, check_points, check_samples, check_spread, fused_checks
from .base import ScoreFunction
from .features import Features, FeatureScore, solve
from .guards import (
    HAS_ATOMS,
    IS_DEPENDENT,
    IS_NOISE_FREE,
    IS_STEEP,
    among,
    any_reason,
    has_atoms,
    is_unresolved,
    kept_coordinates,
    noise_free,
    warn,
)
from .kernel import Tikhonov
from .mixtures import (
    DEFECT,
    FINAL_PRIOR,
    EllipticalMixture,
    WideGaussian,
    cluster_features,
    excess_kurtosis,
    fit_gaussian,
    fit_mixture,
    fit_student,
    gaussian_defect,
    k_means,
    mixture_penalty,
    pad,
    refined,
)
from .ssge import SSGE

# These are measured, not derived, on tasks that are not of `tasks.PAIRS`.
PROMISE = 0.7  # share of its penalty that a mixture must gain in its first steps to be fitted to the end
CHASE = 0.3  # share of what other coordinates are ahead that it must gain as well
DAMPING = 5.0  # ridge times n d^2 of the kernel score of codes with atoms

RESIDUAL = 0.03  # ridge times n of the residual of a pair's scores
RESIDUALS = (1.0, 10.0)  # those that a single score chooses from
FEW = 1024  # samples that choices are made on, and that a kernel's n x n matrices are built for
REFITS = 5  # steps of expectation-maximisation on all of many samples
FEATURES = (256, 512)  # of a residual: so many, and with many samples n / 8 up to so many


@dataclass(frozen=True)
class _Coordinates:
    """Samples in candidate coordinates: the map's value, slope, and log-likelihood terms."""

    u: Float[Tensor, "*batch n d"]
    slope: Float[Tensor, "*batch n d"]
    log_slope: Float[Tensor, "*batch"]  # mean over the samples, corrected for the map's own fit
    steep: Bool[Tensor, "*batch"]  # steeper than the samples resolve


@dataclass(frozen=True)
class _Candidate:
    """A density in some coordinates, for every batch entry, and its penalised mean log-likelihood."""

    value: Float[Tensor, "*batch"]
    choice: Int[Tensor, "*batch"]  # which coordinates
    u: Float[Tensor, "*batch n d"]
    slope: Float[Tensor, "*batch n d"]
    model: EllipticalMixture

    def or_better(self, other: _Candidate) -> _Candidate:
        """Per batch entry the one of the larger value, this one where they are equal."""
        use = other.value > self.value

        def pick(mine: Tensor, others: Tensor) -> Tensor:
            return torch.where(use.reshape(use.shape + (1,) * (mine.ndim - use.ndim)), others, mine)

        names = [field.name for field in fields(EllipticalMixture)]
        model = EllipticalMixture(*(pick(getattr(self.model, n), getattr(other.model, n)) for n in names))
        parts = ("value", "choice", "u", "slope")
        return _Candidate(*(pick(getattr(self, n), getattr(other, n)) for n in parts), model)

    def refitted(self, joint: list[_Coordinates]) -> _Candidate:
        """The choice made on few samples, fitted to all of them."""
        u, slope = joint[0].u, joint[0].slope
        for index, candidate in enumerate(joint[1:], 1):
            use = (self.choice == index)[..., None, None]
            u, slope = torch.where(use, candidate.u, u), torch.where(use, candidate.slope, slope)
        used = torch.isfinite(self.model.log_weights).reshape(-1, self.model.means.shape[-2]).any(0).nonzero()[:, 0]
        model = self.model.of(used)
        prior = FINAL_PRIOR * (u.shape[-1] + 1) if len(used) > 1 else 0.0
        for _ in range(REFITS if len(used) > 1 or not bool(torch.isinf(model.df).all()) else 1):
            model = refined(model, u, prior)
        return replace(self, u=u, slope=slope, model=model)


@dataclass(frozen=True)
class Adaptive:
    r"""Maximum-likelihood score in coordinates where the density is simple: the default of the surrogates.

    1. Every coordinate is standardised, or, where their distributions are not Gaussian by Shapiro and Francia's test,
       mapped to a Gaussian through its smoothed CDF (`transforms.Gaussianise`).
    2. There a Gaussian is fitted; a Student-t where the kurtosis asks for it, and a mixture of Gaussians, from two
       spectral starts, where one of three tests sees more than one Gaussian (`mixtures.cluster_features`).
    3. Coordinates and family are those of the largest likelihood, less :math:`p / n` for p further parameters [Akaike,
       IEEE Transactions on Automatic Control 19, 1974] and, for the maps, leaving each sample out of its own CDF.
       A mixture must gain what `mixture_penalty` says.
    4. Where the dimension is small, :math:`d (d + 1) \le n`, a ridge regression in random features (`Features`) adds
       what Stein's identity finds missing in the score. For new points its ridge is chosen by leaving each sample out,
       and there may be none; for the samples' own gradients (`at_samples`, `fit_pair`) it is hardly shrunk, and a pair
       of which a single component will do has it only where held-out samples ask for it.

    The choices are made on at most 1,024 samples, drawn with a fixed seed, and what is chosen is fitted to all, so that
    the cost is linear in n.

    For a mutual information `fit_pair` fits one density to both variables jointly and takes the scores of the
    marginals from it, so that errors of the marginals cancel. For Gaussian data the
    estimated gradient is that of the plug-in information, whose bias does not depend on the parameters, so
    that the gradient has none.

    No density holds a coordinate with atoms (the zeros of a ReLU), and a density fitted to it has a score of any size.
    Nor do the samples resolve one that is steep, as behind a leaky ReLU or a saturated tanh. For such batch entries a
    kernel estimator answers instead, `Tikhonov` for atoms and `SSGE` for steep coordinates, with the variables brought
    to one scale, and with a warning. A code without noise has an infinite information with its input: where its
    coordinates are linear in it, the gradient of their entropy is left, with a warning. Of a pair only the variables
    that need a gradient count. A coordinate that is a linear function of others adds no information, and its score is
    zero.
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

    Examples
    --------
    >>> x, e = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    >>> of_x, of_z = Adaptive().fit_pair(x, x + e)  # that of z is near x - z / 2
    >>> of_z.shape
    torch.Size([200, 3])
    """

    bandwidth: float | None = None
    components: int = 8
    steps: int = 20

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
        return self._fitted(samples, False)

    @fused_checks()
    @torch.no_grad()
    def at_samples(self, samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Score at the samples that it is fitted to, for the gradient of an entropy; what the surrogates use.

        The density is that of `fit`. Its kernel residual is shrunk hardly at all, as in `fit_pair`: what it fits of the
        samples' own noise is what is taken out of the gradient's, while at other points it would be noise.

        Raises
        ------
        TypeError, ValueError
            As `fit`.
        """
        return self._fitted(samples, True)(samples)

    def _fitted(self, samples: Tensor, own: bool) -> AdaptiveScore:
        check_samples(samples)
        check_spread(samples)
        kept, dependent = kept_coordinates(samples)
        reasons = {IS_DEPENDENT: torch.tensor(dependent)}
        if kept is None:
            score = self._fit(samples, reasons, own)
        else:
            score = self._fit(samples[..., kept], reasons, own)
            score = replace(score, origin=samples[..., :1, :].double(), kept=kept)
        warn({"samples": reasons})
        return score

    def _fit(self, samples: Tensor, reasons: dict[str, Tensor], own: bool) -> AdaptiveScore:
        """The score and the reasons why no density gives it; for its `own` samples, or for any points."""
        dtype = samples.dtype
        samples = samples.detach().double()  # a nearly noise-free encoder has a condition number beyond float32
        origin = samples[..., :1, :]
        samples = samples - origin  # a coordinate without spread is zero exactly
        reasons[HAS_ATOMS] = atoms = has_atoms(samples)
        maps, choices = self._maps(samples)
        best = self._select([(c,) for c in choices])
        residual = _residual(best.u, best.model, own)
        reasons[IS_STEEP] = steep = ~atoms & torch.where(best.choice > 0, choices[-1].steep, choices[0].steep)
        start = torch.zeros_like(samples[..., :1, :])
        plain = AdaptiveScore(
            maps=tuple(maps),
            choice=best.choice,
            model=best.model,
            residual=residual,
            origin=start,
            kept=None,
            correction=None,
            fallbacks=(),
            dtype=samples.dtype,
        )
        fallbacks = _fallbacks(samples, atoms, steep)
        correction = _Correction.fit(samples, plain(samples))
        return replace(plain, origin=origin, correction=correction, fallbacks=fallbacks, dtype=dtype)

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
        x, z, kept = _checked_pair(x, z)
        scores, reasons = self._fit_pair(_centred(x, kept[0]), _centred(z, kept[1]), wanted)
        warn(dict(zip(("x", "z"), reasons, strict=True)))
        return tuple(
            score.to(whole) if index is None else among(score.to(whole), index, whole.shape[-1])
            for score, index, whole in zip(scores, kept, (x, z), strict=True)
        )

    @fused_checks()
    @torch.no_grad()
    def log_ratio(self, x: Float[Tensor, "*batch n p"], z: Float[Tensor, "*batch n q"]) -> Float[Tensor, "*batch n"]:
        r"""Log ratio :math:`\ln q(x, z) - \ln q(x) - \ln q(z)` at paired samples, in nats, of the one joint density.

        Its mean is a plug-in information: too large by about half a nat for every n of its dependence's parameters.
        The maps' slopes cancel. The kernel residual, which is no density's, is left out. NaN in batch entries of which
        no density holds a variable, or where one decides a coordinate of the other, with a warning.

        Raises
        ------
        TypeError, ValueError
            As `fit_pair`.
        """
        x, z, (in_x, in_z) = _checked_pair(x, z)
        dtype = x.dtype
        x, z = (_centred(v, kept) for v, kept in ((x, in_x), (z, in_z)))
        best, reasons, _ = self._guarded_pair(x, z, (True, True))
        warn(dict(zip(("x", "z"), reasons, strict=True)))
        if best is None:
            return torch.full_like(x[..., 0], torch.nan, dtype=dtype)
        u, split = best.u, x.shape[-1]
        sides = ((0, split), (split, u.shape[-1]))
        ratio = best.model.log_density(u)
        ratio = ratio - sum(best.model.marginal(*side).log_density(u[..., slice(*side)]) for side in sides)
        guarded = any_reason(reasons, torch.zeros_like(ratio[..., 0], dtype=torch.bool))
        return torch.where(guarded[..., None], torch.nan, ratio).to(dtype)

    def _guarded_pair(
        self, x: Tensor, z: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[_Candidate | None, list[dict[str, Tensor]], list[Tensor]]:
        """The joint density, None if it is in no batch entry one; why it is none; coordinates that have no noise."""
        nowhere = torch.zeros(x.shape[:-2], dtype=torch.bool, device=x.device)
        reasons = [{HAS_ATOMS: has_atoms(v)} if needed else {} for v, needed in zip((x, z), wanted, strict=True)]
        still = [noise_free(z, x) & wanted[0], noise_free(x, z) & wanted[1]]
        for why, where, needed in zip(reasons, still, wanted, strict=True):
            if needed:
                why[IS_NOISE_FREE] = where.any(-1)
        guarded = any_reason(reasons, nowhere)
        if bool(guarded.all()):
            return None, reasons, still
        best, coordinates = self._pair_density(x, z)
        second = len(coordinates[1])
        chosen = best.choice // second > 0, best.choice % second > 0
        for maps, mapped, why, needed in zip(coordinates, chosen, reasons, wanted, strict=True):
            if needed:
                why[IS_STEEP] = ~guarded & torch.where(mapped, maps[-1].steep, maps[0].steep)
        return best, reasons, still

    def _fit_pair(
        self, x: Tensor, z: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[tuple[Tensor, Tensor], list[dict[str, Tensor]]]:
        """Score differences of centred float64 samples, and where and why no density gave them."""
        best, reasons, still = self._guarded_pair(x, z, wanted)
        nowhere = torch.zeros(x.shape[:-2], dtype=torch.bool, device=x.device)
        guarded = any_reason(reasons, nowhere)
        difference = torch.zeros_like(torch.cat([x, z], -1))
        if not bool(guarded.all()):
            difference = _difference(best, x.shape[-1], wanted)
        atoms = any_reason([{HAS_ATOMS: why[HAS_ATOMS]} for why in reasons if why], nowhere)
        for where, kind in ((atoms, True), (guarded & ~atoms, False)):
            if bool(where.any()):
                difference = torch.where(where[..., None, None], _kernel_pair(x, z, kind), difference)
        parts = difference.tensor_split([x.shape[-1]], -1)
        for part, v, other, where in zip(parts, (x, z), (z, x), still, strict=True):
            for entry in _indices(where.any(-1)):
                part[entry] = self._finite_part(other[entry], v[entry], where[entry])
        return parts, reasons

    def _finite_part(self, given: Tensor, samples: Tensor, still: Bool[Tensor, "d"]) -> Tensor:
        """Score difference of what depends on parameters in I(given; samples), where `given` decides coordinates.

        With those as a and the others as b, I = I(given; b) + H(a, b) - H(b) - H(a | b, given), and the last is that of
        noise which is not there.
        """
        difference = -self._fit(samples, {}, True)(samples)
        if not bool(still.all()):
            rest = samples[:, ~still]
            information = self._fit_pair(given, rest - rest[:1], (False, True))[0][1]
            difference[:, ~still] += information + self._fit(rest, {}, True)(rest)
        return difference

    def _pair_density(self, x: Tensor, z: Tensor) -> tuple[_Candidate, tuple[list[_Coordinates], list[_Coordinates]]]:
        """The joint density, in coordinates of each variable, and what these were chosen from."""
        xs, zs = (self._maps(v)[1] for v in (x, z))
        return self._select([(a, b) for a in xs for b in zs]), (xs, zs)

    def _maps(self, samples: Tensor) -> tuple[list, list[_Coordinates]]:
        """Candidate maps and coordinates: Gaussianised only in batch entries whose coordinates are not Gaussian."""
        maps = [_Standardise.fit(samples)]
        plain = _is_gaussian(_few(samples))
        if bool(plain.all()):
            return maps, [_mapped(maps[0], samples)]
        maps.append(Gaussianise(self.bandwidth).fit(samples))
        standard, gaussianised = (_mapped(fitted, samples) for fitted in maps)
        barred = torch.where(plain, -torch.inf, gaussianised.log_slope)
        return maps, [standard, replace(gaussianised, log_slope=barred)]

    def _select(self, candidates: list[tuple[_Coordinates, ...]]) -> _Candidate:
        """Coordinates and density of the largest penalised likelihood, for every batch entry."""
        joint = [
            _Coordinates(
                torch.cat([c.u for c in cs], -1),
                torch.cat([c.slope for c in cs], -1),
                sum(c.log_slope for c in cs),
                torch.stack([c.steep for c in cs]).any(0),
            )
            for cs in candidates
        ]
        n, dim = joint[0].u.shape[-2:]
        if n <= dim:  # one Gaussian only, and that in the span of the samples
            return _select_wide(joint)
        best = self._among([replace(c, u=_few(c.u), slope=_few(c.slope)) for c in joint])
        if n > FEW:
            best = best.refitted(joint)
        return best

    def _among(self, joint: list[_Coordinates]) -> _Candidate:
        n, dim = joint[0].u.shape[-2:]
        gaussians = [fit_gaussian(c.u) for c in joint]
        first, *others = (self._candidate(joint, i, model, 0) for i, model in enumerate(gaussians))
        best = first
        for candidate in others:
            best = best.or_better(candidate)
        for index, model in enumerate(gaussians):
            heavy = excess_kurtosis(model, joint[index].u) > 2
            if n > 2 * dim and bool(heavy.any()):
                for df in (10.0, 5.0, 3.0):
                    model = fit_student(joint[index].u, df, model, 4)
                    best = best.or_better(self._candidate(joint, index, model, 1, heavy))
        leading = best.choice
        for index, gauss in enumerate(gaussians):
            tried = (leading == index) | (index == 0)
            if bool(tried.any()):
                best = self._or_mixtures(best, joint, index, gauss, tried)
        return best

    def _candidate(
        self,
        joint: list[_Coordinates],
        index: int,
        model: EllipticalMixture,
        extra: float | Float[Tensor, "*batch"],
        allowed: Bool[Tensor, "*batch"] | bool = True,
    ) -> _Candidate:
        """A density with `extra` parameters in the coordinates of that index; of no value where it is not allowed."""
        coordinates = joint[index]
        n = coordinates.u.shape[-2]
        value = model.log_density(coordinates.u).mean(-1) + coordinates.log_slope - extra / n
        value = torch.where(torch.isfinite(value) & allowed, value, -torch.inf)
        choice = torch.full_like(value, index, dtype=torch.long)
        return _Candidate(value, choice, coordinates.u, coordinates.slope, pad(model, self.components))

    def _or_mixtures(
        self,
        best: _Candidate,
        joint: list[_Coordinates],
        index: int,
        gauss: EllipticalMixture,
        active: Bool[Tensor, "*batch"],
    ) -> _Candidate:
        """The best so far, or mixtures of 2, 4, 8, ... Gaussians as long as more help; an entry stops on its own."""
        u = joint[index].u
        n, dim = u.shape[-2:]
        if self.components < 2:
            return best
        floor = gauss.log_density(u).mean(-1)
        # What steep coordinates are ahead says little.
        steep = torch.stack([c.steep for c in joint]).gather(0, best.choice[None])[0]
        behind = (best.value - floor - joint[index].log_slope).clamp_min(0) * ((best.choice != index) & ~steep)
        features, seen = cluster_features(u, gauss, self.components)
        active, first = active & seen, min(5, self.steps)
        most, extras = torch.full_like(floor, -torch.inf), torch.zeros_like(floor)
        member = torch.zeros_like(u[..., :1]).expand(*u.shape[:-1], self.components).mT.clone()
        member[..., 0, :] = 1
        k = 2
        while k <= self.components and n >= k * (dim + 1) and bool(active.any()):
            extra = mixture_penalty(n, dim, k)
            model, responsibility = fit_mixture(u, gauss, k_means(features[..., : k - 1], k), first)
            value, start = model.log_density(u).mean(-1).max(0)
            # After a few steps most of the gain is there: less than this share of the penalty will not make it.
            promising = value - floor > PROMISE * extra / n + CHASE * behind
            helps = active & promising & (value - extra / n > most)
            use = helps[..., None, None]
            member[..., :k, :] = torch.where(
                use, torch.where(start[..., None, None] == 0, *responsibility), member[..., :k, :]
            )
            most, extras = torch.where(helps, value - extra / n, most), torch.where(helps, extra, extras)
            active = torch.where(behind > 0, helps, helps | (k == 2))
            k *= 2
        if not bool((extras > 0).any()):
            return best
        model, _ = fit_mixture(u, gauss, member[..., : k // 2, :], self.steps - first)
        return best.or_better(self._candidate(joint, index, model, extras, extras > 0))


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
    residual : FeatureScore or None
        Kernel estimate of what its score lacks there.
    origin : Tensor [*batch, 1, d]
        What is subtracted from the points before all else.
    kept : Tensor [k] or None
        Coordinates that the score depends on, where they are not all; those that the samples do not vary in have none.
    correction : _Correction or None
        Affine, with which Stein's identity holds on the samples for affine functions.
    fallbacks : tuple of _Fallback
        What answers in batch entries whose samples no density holds.
    dtype : torch.dtype
        Of the points and of the scores; everything is computed in float64.
    """

    maps: tuple
    choice: Tensor
    model: EllipticalMixture | WideGaussian
    residual: FeatureScore | None
    origin: Tensor
    kept: Tensor | None
    correction: _Correction | None
    fallbacks: tuple[_Fallback, ...]
    dtype: torch.dtype

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.origin.to(self.dtype))
        points = self._shifted(points)
        u, slope, curvature = self._mapped(points, 2)
        correction = 0 if self.correction is None else self.correction(points)
        score = self.model.score(u)
        if self.residual is not None:
            score = score + self.residual(u)
        score = slope * score + curvature / slope + correction
        for fallback in self.fallbacks:
            score = torch.where(fallback.where[..., None, None], fallback.score(points), score)
        score = score.to(self.dtype)
        return score if self.kept is None else among(score, self.kept, self.origin.shape[-1])

    def log_density(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Log of the fitted density at points [*batch, m, d], in nats.

        Without what the kernel residual and the affine correction add to the score, which are no gradients of a
        density. Coordinates that have no score are left out. NaN in batch entries that a kernel estimator answers.

        Raises
        ------
        TypeError, ValueError
            As a call does.
        """
        check_points(points, self.origin.to(self.dtype))
        u, slope = self._mapped(self._shifted(points), 1)
        density = self.model.log_density(u) + slope.log().sum(-1)
        for fallback in self.fallbacks:
            density = torch.where(fallback.where[..., None], torch.nan, density)
        return density.to(self.dtype)

    def _shifted(self, points: Tensor) -> Tensor:
        points = points.double() - self.origin
        return points if self.kept is None else points[..., self.kept]

    def _mapped(self, points: Tensor, order: int) -> list[Tensor]:
        """Every batch entry's chosen map and its derivatives; one that no entry chose is not evaluated."""
        used = [i for i in range(len(self.maps)) if bool((self.choice == i).any())]
        parts = self.maps[used[0]].evaluate(points, order)
        if len(used) > 1:
            use = self.choice[..., None, None] == used[1]
            others = self.maps[used[1]].evaluate(points, order)
            parts = [torch.where(use, other, part) for part, other in zip(parts, others, strict=True)]
        return parts


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
    """Kernel score of samples without a density; its width leaves out the pairs that coincide."""

    unit: Tensor
    score: ScoreFunction

    @classmethod
    def fit(cls, samples: Tensor, atoms: bool) -> _Kernel:
        """Fit to samples with atoms, whose small eigenvalues are to be damped, not cut; or to steep ones."""
        n, dim = samples.shape[-2:]
        unit = _distance(_few(samples))
        samples = samples / unit
        ridge = DAMPING / (n * dim**2) if atoms else RESIDUAL / n
        if n > FEW:
            features = _features(samples, 2.0 if atoms else 1.0)
            return cls(unit, FeatureScore(features, solve(*features.statistics(samples, 0 * samples), ridge)))
        return cls(unit, (Tikhonov(ridge=ridge, width=2.0) if atoms else SSGE(width=1.0)).fit(samples))

    def __call__(self, points: Tensor) -> Tensor:
        return self.score(points / self.unit) / self.unit


@dataclass(frozen=True)
class _Fallback:
    """A score for some batch entries only: those with atoms, or those that are steep."""

    where: Bool[Tensor, "*batch"]
    score: _Kernel


def _fallbacks(samples: Tensor, atoms: Bool[Tensor, "*batch"], steep: Bool[Tensor, "*batch"]) -> tuple[_Fallback, ...]:
    kinds = ((atoms, True), (steep, False))
    return tuple(_Fallback(where, _Kernel.fit(samples, kind)) for where, kind in kinds if bool(where.any()))


def _distance(samples: Tensor) -> Float[Tensor, "*batch 1 1"]:
    """Median distance of the pairs that do not coincide."""
    distance = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist").flatten(-2)
    return torch.where(distance > 0, distance, torch.nan).nanmedian(-1).values[..., None, None]


def _kernel_pair(x: Tensor, z: Tensor, atoms: bool) -> Tensor:
    """Joint minus marginal score by kernels, each variable at the scale of its median distance by root d."""
    units = [_distance(v) / v.shape[-1] ** 0.5 for v in (x, z)]
    x, z = x / units[0], z / units[1]
    joint, x_score, z_score = (_Kernel.fit(v, atoms)(v) for v in (torch.cat([x, z], -1), x, z))
    difference = joint - torch.cat([x_score, z_score], -1)
    split = x.shape[-1]
    return torch.cat([difference[..., :split] / units[0], difference[..., split:] / units[1]], -1)


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


def _checked_pair(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """A pair that may be fitted, and which coordinates of each have a score."""
    check_pair(x, z)
    check_spread(x, "x")
    check_spread(z, "z")
    return x, z, (kept_coordinates(x)[0], kept_coordinates(z)[0])


def _centred(samples: Tensor, kept: Tensor | None) -> Tensor:
    """In float64, less the first sample: a coordinate without spread is zero exactly."""
    samples = (samples if kept is None else samples[..., kept]).detach().double()
    return samples - samples[..., :1, :]


def _few(samples: Tensor) -> Tensor:
    """At most FEW of the samples, the same each time."""
    n = samples.shape[-2]
    if n <= FEW:
        return samples
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:FEW]
    return samples[..., chosen.to(samples.device), :]


def _varies(samples: Tensor) -> Bool[Tensor, "*batch 1 d"]:
    """Coordinates with spread."""
    return (samples != samples[..., :1, :]).any(-2, keepdim=True)


def _features(u: Tensor, width: float) -> Features:
    least, most = FEATURES
    return Features.draw(u.shape[-1], min(most, max(least, u.shape[-2] // 8)), u.new_full(u.shape[:-2], width))


def _width(dim: int) -> float:
    """Median distance of samples of N(0, I), by Wilson and Hilferty's median of a chi-squared."""
    return math.sqrt(2 * dim * (1 - 2 / (9 * dim)) ** 3)


def _resolves(n: int, dim: int) -> bool:
    """Whether n samples resolve more functions than the mean and covariance of `dim` coordinates."""
    return dim * (dim + 1) <= n


def _residual(u: Tensor, model: EllipticalMixture, own: bool) -> FeatureScore | None:
    """What Stein's identity finds missing in the score of a density.

    For any points the ridge is the one that brings held-out samples' scores nearest to the truth, if there is one.
    """
    n, dim = u.shape[-2:]
    if not _resolves(n, dim):
        return None
    features, base = _features(u, _width(dim)), model.score(u)
    if own:
        coefficients = solve(*features.statistics(u, base), RESIDUAL / n)
    else:
        losses = _held_out(features, u, base)
        least, index = losses.min(0)
        if not bool((least < 0).any()):
            return None
        coefficients = solve(*features.statistics(u, base), u.new_tensor(RESIDUALS)[index] / n)
        coefficients = torch.where((least < 0)[..., None, None], coefficients, 0)
    return FeatureScore(features, coefficients * _varies(u))


def _held_out(features: Features, u: Tensor, base: Tensor) -> Float[Tensor, "r *batch"]:
    """Leave-one-out loss of each of the RESIDUALS, on few samples."""
    few = _few(u), _few(base)
    return torch.stack([features.held_out(*few, ridge / few[0].shape[-2]) for ridge in RESIDUALS])


def _difference(best: _Candidate, split: int, wanted: tuple[bool, bool]) -> Tensor:
    """Joint minus marginal scores of a density of both variables; zero for a variable that is not wanted."""
    u, model = best.u, best.model
    n, dim = u.shape[-2:]
    densities = [
        (u, model),
        (u[..., :split], model.marginal(0, split)) if wanted[0] else None,
        (u[..., split:], model.marginal(split, dim)) if wanted[1] else None,
    ]
    densities = [density for density in densities if density is not None]
    scores = [density.score(part) for part, density in densities]
    if _resolves(n, dim):
        features = [_features(part, _width(part.shape[-1])) for part, _ in densities]
        # One Gaussian or Student-t has the pair's gradient from its maximised likelihood, whose errors cancel; what
        # functions the residual adds is to be called for.
        use = torch.isfinite(model.log_weights).sum(-1) > 1
        if not bool(use.all()):
            use = use | (_held_out(features[0], u, scores[0]).amin(0) < 0)
        # Not shrunk more than it must be: what the functions fit of the samples' own noise is what is taken out of the
        # gradient's.
        if bool(use.any()):
            for index, (part, _) in enumerate(densities):
                coefficients = solve(*features[index].statistics(part, scores[index]), RESIDUAL / n) * _varies(part)
                residual = features[index].score(part, coefficients)
                scores[index] = scores[index] + torch.where(use[..., None, None], residual, 0)
    parts = list(scores[0].tensor_split([split], -1))
    left = scores[1:]
    parts = [part - left.pop(0) if needed else 0 * part for part, needed in zip(parts, wanted, strict=True)]
    return torch.cat(parts, -1) * best.slope


def _indices(mask: Bool[Tensor, "*batch"]) -> list[tuple[int, ...]]:
    """Indices of the batch entries where the mask holds; one by one, since torch.func's tensors have no `tolist`."""
    return [tuple(int(i) for i in index) for index in mask.nonzero()]


def _is_gaussian(samples: Tensor) -> Bool[Tensor, "*batch"]:
    """Whether no coordinate that varies shows that it is not Gaussian; all of them together, as if independent."""
    varies = _varies(samples)[..., 0, :]
    defect = torch.where(varies, gaussian_defect(samples), 0)
    return defect.sum(-1) < DEFECT * varies.sum(-1).sqrt()


def _mapped(fitted: object, samples: Tensor) -> _Coordinates:
    u, slope = fitted.evaluate(samples, 1)
    u = u * _varies(samples)  # zero exactly where there is no spread
    n, plain = samples.shape[-2], isinstance(fitted, _Standardise)
    steep = is_unresolved(samples, slope, torch.full(samples.shape[:-2], not plain, device=samples.device))
    if plain:
        return _Coordinates(u, slope, torch.log(slope).mean(-2).sum(-1) - 2 * samples.shape[-1] / n, steep)
    # log f = log phi(u) + log slope; leaving a sample out takes its own bump from f. What that costs is the optimism.
    return _Coordinates(u, slope, (torch.log(slope).mean(-2) - fitted.optimism(samples, u, slope)).sum(-1), steep)


def _select_wide(joint: list[_Coordinates]) -> _Candidate:
    """Coordinates of the largest likelihood of one Gaussian, for every batch entry."""
    value = torch.stack([WideGaussian.fit(c.u).log_density(c.u).mean(-1) + c.log_slope for c in joint])
    value, choice = torch.where(torch.isfinite(value), value, -torch.inf).max(0)
    u, slope = joint[0].u, joint[0].slope
    for index, candidate in enumerate(joint[1:], 1):
        use = (choice == index)[..., None, None]
        u, slope = torch.where(use, candidate.u, u), torch.where(use, candidate.slope, slope)
    return _Candidate(value, choice, u, slope, WideGaussian.fit(u))
