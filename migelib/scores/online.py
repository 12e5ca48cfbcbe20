r"""What `Streaming` remembers of past batches, as decaying sums: moments, shapes of coordinates, mixtures, residuals.

Derived in :doc:`/book/memory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..validation import decide
from .features import Features, FeatureScore, solve
from .mixtures import EllipticalMixture, cluster_features, fit_gaussian, fit_mixture, k_means, pad

# These are measured, not derived, on tasks other than `tasks.PAIRS` (see the chapter).
OF_MOMENTS = 4.0  # samples a coordinate that a covariance needs
OF_CENTRES = 27.0  # samples a centre of a coordinate's shape
OF_MIXTURES = 8.0  # samples a coordinate of each component
ENOUGH = 4.0  # samples a coordinate of each component that the longest memory must hold for it to be tried
PRIOR = 0.1  # share of d + 1 pseudo-samples of the pooled covariance in every component of a mixture
CENTRES = 24  # of a coordinate's shape
FIRST_STEPS = 10  # of expectation-maximisation where a mixture starts on one batch
RESTART = 20  # batches after which mixtures that are not in use start anew ...
LOOK = 5  # ... and after which a test looks for more than one Gaussian, where there was none
HYSTERESIS = 10.0  # nats by which another density must be ahead


def lag(n: int, wanted: float, most: float) -> float:
    """Weight of the past with which batches of n samples hold as many as are wanted, and at most `most`."""
    return min(most, max(0.0, 1 - n / wanted))


class Moments(nn.Module):
    """Mean and covariance of decaying sums, merged without cancellation."""

    def __init__(self, batch: tuple[int, ...], dim: int, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("count", _zeros(like))
        self.register_buffer("mean", _zeros(like, *batch, dim))
        self.register_buffer("covariance", _zeros(like, *batch, dim, dim))

    def update(self, u: Float[Tensor, "*batch n d"], decay: float) -> None:
        """Add a batch; what was there before counts `decay` times what it did."""
        n = u.shape[-2]
        past = self.count * decay
        share = n / (past + n)
        mean = u.mean(-2)
        centred = u - mean[..., None, :]
        step = mean - self.mean
        between = share * (1 - share) * step[..., :, None] * step[..., None, :]
        self.covariance = (1 - share) * self.covariance + share * (centred.mT @ centred) / n + between
        self.mean = self.mean + share * step
        self.count = past + n

    def scale(self) -> Float[Tensor, "*batch 1 d"]:
        """Standard deviation of every coordinate; one where there is none."""
        variance = self.covariance.diagonal(dim1=-2, dim2=-1)[..., None, :]
        return torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()

    def factor(self) -> Float[Tensor, "*batch d d"]:
        """Cholesky factor of the covariance, with a ridge as that of `mixtures.fit_gaussian` where samples are few."""
        dim = self.mean.shape[-1]
        level = self.covariance.diagonal(dim1=-2, dim2=-1)
        few = 3 / self.count.clamp_min(2).square()
        weight = torch.where(self.count <= dim + 4, few, torch.full_like(few, 1e-10))
        ridge = torch.where(level > 0, weight * level, torch.ones_like(level))
        return torch.linalg.cholesky_ex((1 - weight) * self.covariance + torch.diag_embed(ridge))[0]


class Shapes(nn.Module):
    r"""Shape of every coordinate: means of the quantile function over fixed shares, averaged over batches.

    A quantile function is linear in location and scale, so the average over batches, each standardised by its own
    moments, carries over to a batch that has moved or grown. The map to a Gaussian is the smoothed CDF of
    `transforms.Gaussianise` with these means for centres, tabulated at them and interpolated by quintics.
    """

    def __init__(self, batch: tuple[int, ...], dim: int, like: Tensor) -> None:
        super().__init__()
        edges = torch.special.ndtr(torch.linspace(-3.2, 3.2, CENTRES + 1, dtype=torch.float64))
        edges[0], edges[-1] = 0, 1
        self.register_buffer("edges", edges.to(like.device), persistent=False)
        self.register_buffer("count", _zeros(like))
        self.register_buffer("centres", _zeros(like, *batch, dim, CENTRES))
        self.register_buffer("table", _zeros(like, 4, *batch, dim, CENTRES + 8))

    def update(self, s: Float[Tensor, "*batch n d"], decay: float) -> None:
        """Add a batch of standardised samples."""
        n = s.shape[-2]
        ranks = torch.arange(n + 1, device=s.device).to(s) / n
        low = torch.maximum(self.edges[:-1, None], ranks[None, :-1])
        share = (torch.minimum(self.edges[1:, None], ranks[None, 1:]) - low).clamp_min(0)
        share = share / share.sum(-1, keepdim=True)
        past = self.count * decay
        new = s.mT.sort(-1).values @ share.mT
        self.centres = self.centres + n / (past + n) * (new - self.centres)
        self.count = past + n
        self.table = self._tabulated()

    def _tabulated(self) -> Float[Tensor, "4 *batch d k"]:
        """Knots, the map there, and its two derivatives: at the centres, and at four further points in each tail."""
        weights, centres = self.edges.diff(), self.centres
        last = CENTRES - 1
        middle = torch.special.ndtri((self.edges[:-1] + self.edges[1:]) / 2)
        ranks = torch.arange(CENTRES, device=centres.device)
        below, above = (ranks - 4).clamp_min(0), (ranks + 4).clamp_max(last)
        local = (centres[..., above] - centres[..., below]) / (middle[above] - middle[below])
        width = self.count**-0.2 * local.clamp_min(0.01)  # ties leave no local scale
        room = 1 - (weights * width.square()).sum(-1, keepdim=True)
        variance = (weights * centres.square()).sum(-1, keepdim=True)
        centres = centres * (room.clamp_min(0) / variance.clamp_min(1e-12)).sqrt().clamp_max(1)
        beyond = 0.75 * torch.arange(1, 5, device=centres.device)
        apart = 1e-9 * ranks  # ties leave no interval
        knots = torch.cat(
            [
                centres[..., :1] - beyond.flip(0) * width[..., :1],
                centres + apart,
                centres[..., -1:] + apart[-1] + beyond * width[..., -1:],
            ],
            -1,
        )
        t = (knots[..., :, None] - centres[..., None, :]) / width[..., None, :]
        u = torch.special.ndtri((torch.special.ndtr(t) @ weights).clamp(1e-15, 1 - 1e-15))
        bumps = torch.exp(-t.square() / 2) * (weights / width)[..., None, :]
        inverse = torch.exp(u.square() / 2)
        slope = bumps.sum(-1) * inverse
        curvature = -(bumps * t / width[..., None, :]).sum(-1) * inverse + u * slope.square()
        return torch.stack([knots, u, slope, curvature])


def evaluate_shapes(
    table: Float[Tensor, "4 *batch d k"], s: Float[Tensor, "*batch n d"]
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
    """The map that `Shapes` tabulates and two derivatives, at standardised points; linear beyond the knots."""
    x = s.mT.contiguous()
    knots = table[0]
    inner = torch.minimum(torch.maximum(x, knots[..., :1]), knots[..., -1:])
    index = torch.searchsorted(knots, inner.detach(), right=True).clamp(1, knots.shape[-1] - 1) - 1
    left = table.gather(-1, index.expand(4, *index.shape))
    right = table.gather(-1, (index + 1).expand(4, *index.shape))
    u, slope, curvature = _quintic(inner, left, right)
    slope = slope.clamp_min(1e-6)
    curvature = torch.where(x == inner, curvature, torch.zeros_like(curvature))
    return (u + slope * (x - inner)).mT, slope.mT, curvature.mT


def _quintic(x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quintic through a value and two derivatives at both ends of an interval, with its two derivatives."""
    (start, value, slope, curvature), (stop, *ends) = left, right
    h = stop - start
    t = (x - start) / h
    slope, curvature = slope * h, curvature * h.square() / 2
    d0 = ends[0] - value - slope - curvature
    d1 = ends[1] * h - slope - 2 * curvature
    d2 = ends[2] * h.square() - 2 * curvature
    k3, k4, k5 = 10 * d0 - 4 * d1 + d2 / 2, -15 * d0 + 7 * d1 - d2, 6 * d0 - 3 * d1 + d2 / 2
    return (
        value + t * (slope + t * (curvature + t * (k3 + t * (k4 + t * k5)))),
        (slope + t * (2 * curvature + t * (3 * k3 + t * (4 * k4 + t * 5 * k5)))) / h,
        (2 * curvature + t * (6 * k3 + t * (12 * k4 + t * 20 * k5))) / h.square(),
    )


class OnlineMixture(nn.Module):
    """Mixture of k Gaussians of white samples, one step of expectation-maximisation a batch.

    [Cappe & Moulines, Journal of the Royal Statistical Society B 71, 2009.]
    """

    def __init__(self, batch: tuple[int, ...], dim: int, k: int, like: Tensor) -> None:
        super().__init__()
        self.k = k
        self._model: EllipticalMixture | None = None
        self.register_buffer("mass", _zeros(like, *batch, k))
        self.register_buffer("first", _zeros(like, *batch, k, dim))
        self.register_buffer("second", _zeros(like, *batch, k, dim, dim))

    @property
    def model(self) -> EllipticalMixture:
        """The mixture of the sums so far."""
        if self._model is None:
            self._model = self._maximised()
        return self._model

    def _maximised(self) -> EllipticalMixture:
        """The mixture that maximises the likelihood of the sums, under a weak prior towards a common covariance."""
        dim = self.first.shape[-1]
        mass = self.mass.clamp_min(1e-3)
        means = self.first / mass[..., None]
        scatter = self.second - mass[..., None, None] * means[..., :, None] * means[..., None, :]
        total = mass.sum(-1)
        within = scatter.sum(-3, keepdim=True) / total[..., None, None, None]
        identity = torch.eye(dim, dtype=means.dtype, device=means.device)
        prior = PRIOR * (dim + 1)
        scales = (scatter + prior * (within + 1e-3 * identity)) / (mass[..., None, None] + prior)
        return EllipticalMixture(torch.log(mass / total[..., None]), means, scales, None)

    def start(
        self, u: Float[Tensor, "*batch n d"], features: Float[Tensor, "2 *batch n f"], where: Bool[Tensor, "*batch"]
    ) -> None:
        """Anew from this batch, where that is wanted: the better of the starts in two embeddings of its samples."""
        starts = k_means(features[..., : self.k - 1], self.k)
        model, responsibility = fit_mixture(u, fit_gaussian(u), starts, FIRST_STEPS)
        best = model.log_density(u).mean(-1).argmax(0)
        self._add(u, _taken(responsibility, best), 0.0, where)

    def update(self, u: Float[Tensor, "*batch n d"], log_terms: Float[Tensor, "*batch k n"], decay: float) -> None:
        """Add a batch with the responsibilities that the model before it gives, by its components' log densities."""
        everywhere = torch.ones_like(log_terms[..., 0, 0], dtype=torch.bool)
        self._add(u, torch.softmax(log_terms, -2), decay, everywhere)

    def _add(
        self, u: Float[Tensor, "*batch n d"], responsibility: Float[Tensor, "*batch k n"], decay: float, where: Tensor
    ) -> None:
        weighted = responsibility[..., None] * u[..., None, :, :]
        new = {
            "mass": responsibility.sum(-1),
            "first": responsibility @ u,
            "second": weighted.mT @ u[..., None, :, :],
        }
        for name, value in new.items():
            past = getattr(self, name)
            chosen = where.reshape(where.shape + (1,) * (value.ndim - where.ndim))
            setattr(self, name, torch.where(chosen, decay * past + value, past))
        self._model = None

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self._model = None

    def _apply(self, function: Callable, recurse: bool = True) -> OnlineMixture:
        self._model = None
        return super()._apply(function, recurse)


class OnlineResidual(nn.Module):
    r"""What a density's score leaves, a ridge regression in random features of white samples.

    Before a batch is learnt from, it says what the residual so far would have gained there: the score-matching loss of
    :math:`\alpha \hat r` less that of zero is :math:`\alpha^2 a / 2 + \alpha b` with :math:`a = E \|\hat r\|^2` and
    :math:`b = E[\mathrm{div}\, \hat r + s_b \cdot \hat r]`, least at :math:`\alpha = -b / a`. It is taken
    with b a standard error closer to zero.
    """

    def __init__(self, batch: tuple[int, ...], dim: int, count: int, like: Tensor) -> None:
        super().__init__()
        width = torch.full(batch, math.sqrt(dim / 2), dtype=torch.float64, device=like.device)
        self.features = Features.draw(dim, count, width)
        self.register_buffer("count", _zeros(like, *batch))
        self.register_buffer("gram", _zeros(like, *batch, count, count))
        self.register_buffer("target", _zeros(like, *batch, count, dim))
        self.register_buffer("coefficients", _zeros(like, *batch, count, dim))
        self.register_buffer("squares", _zeros(like, *batch))
        self.register_buffer("slope", _zeros(like, *batch))
        self.register_buffer("noise", _zeros(like, *batch))

    def update(
        self,
        u: Float[Tensor, "*batch n d"],
        base: Float[Tensor, "*batch n d"],
        decay: float,
        keep: Bool[Tensor, "*batch"],
    ) -> None:
        """Judge the residual on a batch, then add the batch; where it is not kept, the base is another one."""
        n = u.shape[-2]
        score = self.score()
        residual = score(u)
        gained = score.divergence(u) + (base * residual).sum(-1)
        self.squares = keep * (decay * self.squares + residual.square().sum((-2, -1)))
        self.slope = keep * (decay * self.slope + gained.sum(-1))
        self.noise = keep * (decay * self.noise + gained.square().sum(-1))
        gram, target = self.features.statistics(u, base)
        past = keep * decay * self.count
        share = (n / (past + n))[..., None, None]
        self.gram, self.target = torch.lerp(self.gram, gram, share), torch.lerp(self.target, target, share)
        self.count = past + n
        self.coefficients = solve(self.gram, self.target, 1 / self.count)

    def score(self) -> FeatureScore:
        """The residual as it is now, a function of white points."""
        return FeatureScore(self.features, self.coefficients)

    def _apply(self, function: Callable, recurse: bool = True) -> OnlineResidual:
        """Move the features, which the seed decides and no state holds, with the buffers."""
        super()._apply(function, recurse)
        tensors = (self.features.frequencies, self.features.phases, self.features.width)
        self.features = Features(*(function(tensor) for tensor in tensors))
        return self


class OnlineDensity(nn.Module):
    """Density of the batches seen: coordinates as they are or Gaussianised, and in them one Gaussian or a mixture.

    Each batch is whitened by its own moments, as far as it has samples enough, so that mean, scale and correlation do
    not lag behind; what is remembered is the shape of white samples. A candidate is judged by the log-likelihood of
    each batch before it has learnt from it.
    """

    def __init__(self, batch: tuple[int, ...], dim: int, components: int, decay: float, n: int, like: Tensor) -> None:
        super().__init__()
        self.decay, self.steps, self.is_mixed = decay, 0, False
        sizes = [2**i for i in range(1, components.bit_length())]
        sizes = [k for k in sizes if n / (1 - decay) >= ENOUGH * k * (dim + 1)]
        self.moments, self.mapped = Moments(batch, dim, like), Moments((2, *batch), dim, like)
        self.shapes = Shapes(batch, dim, like)
        self.mixtures = nn.ModuleList(OnlineMixture((2, *batch), dim, k, like) for k in sizes)
        self.register_buffer("evidence", _zeros(like, 2, 1 + len(sizes), *batch))
        self.register_buffer("choice", torch.zeros(batch, dtype=torch.long, device=like.device))
        self.register_buffer("changed", torch.zeros(batch, dtype=torch.bool, device=like.device))

    def standardised(self, v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Samples in units of the moments."""
        return (v - self.moments.mean[..., None, :]) / self.moments.scale()

    def update(self, v: Float[Tensor, "*batch n d"]) -> None:
        """Judge the candidates on a batch, choose, and add the batch to all of them."""
        n, dim = v.shape[-2:]
        memory = lag(n, OF_MOMENTS * dim, self.decay)
        self.moments.update(v, memory)
        s = self.standardised(v)
        known = self.steps > 0
        log_slope = self._log_slope(s) if known else None
        self.shapes.update(s, lag(n, OF_CENTRES * CENTRES, self.decay))
        mapped = torch.stack([s, evaluate_shapes(self.shapes.table, s)[0]])
        self.mapped.update(mapped, memory)
        factor = self.mapped.factor()
        u = _solve(factor, mapped - self.mapped.mean[..., None, :])
        if known:
            correlation = self.mapped.scale()[..., 0, :].log() - factor.diagonal(dim1=-2, dim2=-1).log()
            self._judge(u, log_slope + correlation.sum(-1)[..., None], n)
        if self.steps % (RESTART if self.is_mixed else LOOK) == 0:
            self._restart(u)
        self.steps += 1

    def _log_slope(self, s: Float[Tensor, "*batch n d"]) -> Float[Tensor, "2 *batch n"]:
        """Sum of the logarithms of the slopes, of the samples as they are and of the map before it has seen them.

        What that map makes of new samples has not the variance that it was fitted to; it is scaled to that.
        """
        mapped, slope, _ = evaluate_shapes(self.shapes.table, s)
        spread = mapped.var(-2, correction=0, keepdim=True).clamp_min(1e-12)
        log_slope = (slope.log() - spread.log() / 2).sum(-1)
        return torch.stack([torch.zeros_like(log_slope), log_slope])

    def _judge(self, u: Float[Tensor, "2 *batch n d"], log_slope: Float[Tensor, "2 *batch n"], n: int) -> None:
        dim = u.shape[-1]
        values = [log_slope - u.square().sum(-1) / 2 - dim / 2 * math.log(2 * math.pi)]
        for mixture in self.mixtures:
            if not self.is_mixed:
                values.append(values[0] - 1)  # not chosen, and soon forgotten
                continue
            log_terms = mixture.model.log_terms(u)
            values.append(log_slope + log_terms.logsumexp(-2))
            mixture.update(u, log_terms, lag(n, OF_MIXTURES * mixture.k * dim, self.decay))
        value = torch.stack(values, 1).sum(-1).nan_to_num(-1e30)
        self.evidence = self.decay * self.evidence + value - value[0, 0]  # only differences count
        flat = self.evidence.flatten(0, 1)
        best, index = flat.max(0)
        ahead = best > flat.gather(0, self.choice[None])[0] + HYSTERESIS
        self.changed = ahead
        self.choice = torch.where(ahead, index, self.choice)

    def _restart(self, u: Float[Tensor, "2 *batch n d"]) -> None:
        """Mixtures not in use anew, as expectation-maximisation does not leave a bad start; none, if none is seen."""
        if not self.mixtures:
            return
        features, shown = cluster_features(u, fit_gaussian(u), self.mixtures[-1].k)
        kinds = torch.arange(2, device=u.device).reshape(2, *[1] * self.choice.ndim)
        families = 1 + len(self.mixtures)
        in_use = (self.choice // families == kinds) & (self.choice % families > 0)
        self.is_mixed = decide((shown | in_use).any())
        if not self.is_mixed:
            return
        for i, mixture in enumerate(self.mixtures, 1):
            mixture.start(u, features, ~(in_use & (self.choice % families == i)) | (self.steps == 0))

    def chosen(self) -> ChosenDensity:
        """The density in use, fixed as it is now."""
        batch, dim = self.moments.mean.shape[:-1], self.moments.mean.shape[-1]
        gaussian = EllipticalMixture(
            self.moments.mean.new_zeros(2, *batch, 1),
            self.moments.mean.new_zeros(2, *batch, 1, dim),
            torch.eye(dim, dtype=torch.float64, device=self.choice.device).expand(2, *batch, 1, dim, dim),
            None,
        )
        most = self.mixtures[-1].k if self.mixtures else 1
        models = [pad(model, most) for model in (gaussian, *(m.model for m in self.mixtures))]
        names = ("log_weights", "means", "scales")
        parts = (torch.stack([getattr(m, name) for m in models], 1).flatten(0, 1) for name in names)
        log_weights, means, scales = (_taken(part, self.choice) for part in parts)
        kind = self.choice // len(models)
        factor, mean = _taken(self.mapped.factor(), kind), _taken(self.mapped.mean, kind)
        root = factor[..., None, :, :]
        return ChosenDensity(
            self.moments.mean[..., None, :],
            self.moments.scale(),
            kind == 1,
            self.shapes.table,
            mean,
            factor @ factor.mT,
            EllipticalMixture(log_weights, mean[..., None, :] + means @ factor.mT, root @ scales @ root.mT, None),
        )

    def get_extra_state(self) -> dict[str, int | bool]:
        """Number of batches seen, and whether mixtures are learnt, a part of `state_dict`."""
        return {"steps": self.steps, "is_mixed": self.is_mixed}

    def set_extra_state(self, state: dict[str, int | bool]) -> None:
        """Set what `get_extra_state` returned."""
        self.steps, self.is_mixed = state["steps"], state["is_mixed"]


@dataclass(frozen=True)
class ChosenDensity:
    """A density of `OnlineDensity`, and its marginals, at points.

    Attributes
    ----------
    location, scale : Tensor [*batch, 1, d]
        Of the standardisation.
    is_mapped : Tensor [*batch]
        Whether the standardised coordinates are Gaussianised.
    table : Tensor [4, *batch, d, k]
        Of their map.
    mean, covariance : Tensor [*batch, d] and [*batch, d, d]
        Of the mapped coordinates.
    model : EllipticalMixture
        Their density.
    """

    location: Float[Tensor, "*batch 1 d"]
    scale: Float[Tensor, "*batch 1 d"]
    is_mapped: Bool[Tensor, "*batch"]
    table: Float[Tensor, "4 *batch d k"]
    mean: Float[Tensor, "*batch d"]
    covariance: Float[Tensor, "*batch d d"]
    model: EllipticalMixture

    def marginal(self, start: int, stop: int) -> ChosenDensity:
        """The density of coordinates start..stop - 1."""
        return ChosenDensity(
            self.location[..., start:stop],
            self.scale[..., start:stop],
            self.is_mapped,
            self.table[..., start:stop, :],
            self.mean[..., start:stop],
            self.covariance[..., start:stop, start:stop],
            self.model.marginal(start, stop),
        )

    def coordinates(
        self, points: Float[Tensor, "*batch n d"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
        """Mapped coordinates, the map's slope, and the gradient of its logarithm."""
        s = (points - self.location) / self.scale
        use = self.is_mapped[..., None, None]
        mapped, slope, curvature = evaluate_shapes(self.table, s)
        slope = torch.where(use, slope, torch.ones_like(slope))
        bent = torch.where(use, curvature, torch.zeros_like(slope)) / slope / self.scale
        return torch.where(use, mapped, s), slope / self.scale, bent

    def white(self, mapped: Float[Tensor, "*batch n d"]) -> tuple[Tensor, Float[Tensor, "*batch d d"]]:
        """White samples of mapped coordinates, and the factor that colours them."""
        factor = torch.linalg.cholesky_ex(self.covariance)[0]
        return _solve(factor, mapped - self.mean[..., None, :]), factor

    def log_density(self, points: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        """Log density at points, in nats."""
        mapped, slope, _ = self.coordinates(points)
        return self.model.log_density(mapped) + slope.log().sum(-1)


def _solve(factor: Tensor, rows: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
    return torch.linalg.solve_triangular(factor, rows.mT, upper=False).mT


def _taken(stacked: Float[Tensor, "k *batch _"], index: Int[Tensor, "*batch"]) -> Tensor:
    """Of k tensors, for every batch entry the one of that index."""
    shape = index.shape + (1,) * (stacked.ndim - 1 - index.ndim)
    return stacked.gather(0, index.reshape(1, *shape).expand(1, *stacked.shape[1:]))[0]


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=like.device)
