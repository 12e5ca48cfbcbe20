r"""An estimator with a memory, for training loops.

Derived in :doc:`/book/memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..validation import check_count, check_pair, check_points, check_samples, check_spread, decide, fused_checks
from .adaptive import Adaptive
from .base import ScoreFunction
from .features import FeatureScore
from .guards import has_atoms, is_singular, is_unresolved, noise_free
from .online import ChosenDensity, OnlineDensity, OnlineResidual, evaluate_shapes


class Streaming(nn.Module):
    r"""Score of a density that is learnt from all batches of a training: the estimator for training loops.

    1. A batch is standardised and whitened by its own moments; only where it has fewer than four samples a coordinate
       do batches before it help, and no more of them than that takes.
    2. What is remembered is the shape of the white samples: a smoothed quantile function for every coordinate, and
       mixtures of 2, 4, 8, ... Gaussians, each updated by one step of expectation-maximisation a batch. The coordinates
       (as they are, or Gaussianised) and the number of components are those of the largest *prequential*
       log-likelihood: each batch is scored before it is learnt from [Dawid, JRSS A 147, 1984].
    3. What the density's score leaves is a ridge regression in random features, whose statistics are sums, multiplied
       by the factor that would have served best on the batches so far.

    So mean, scale and linear dependence follow the parameters without a lag. A longer memory of them would not help: in
    the closed loop an average of past batches takes out none of the noise that slows an optimiser down, and its lag
    makes it overshoot. For less noise give the surrogate a `reference`, which does not lag.

    As for `Adaptive`, the pair of an information has one joint density, whose marginals are exact. That estimator
    answers for the first batch, and for batches without a density: with atoms, noise-free or dependent coordinates, or
    coordinates steeper than the samples resolve.
    Derived in :doc:`/book/memory`.

    Parameters
    ----------
    decay : float
        Largest weight of the past at a new batch, in [0, 1). Each statistic takes less where fewer samples do.
    components : int
        Most components of a mixture; with 1 the density is a Gaussian in one of the two kinds of coordinates.
    features : int
        Random features of the residual; 0 leaves it out.

    Raises
    ------
    ValueError
        If a setting is outside its range.

    Notes
    -----
    One instance belongs to one term of a loss, and keeps one state for each of the scores that its surrogate needs.
    In training mode a fit updates it; after `eval()` it answers without an update, and before the first batch not at
    all. `state_dict` holds everything, and loads into a new instance; `reset()` forgets. Batches may differ in their
    number of samples, not in their other axes. Nothing of it is a parameter: an optimiser does not see it.

    In plain data-parallel training each process learns from its own part of a batch and the gradients are averaged;
    after `sync()` all learn from the whole batch.

    Examples
    --------
    >>> streaming = Streaming()
    >>> generator = torch.Generator().manual_seed(0)
    >>> for _ in range(3):
    ...     x, e = torch.randn(2, 64, 2, generator=generator)
    ...     parts = streaming.fit_pair(x, x + e)
    >>> parts[1].shape
    torch.Size([64, 2])
    """

    def __init__(self, decay: float = 0.9, components: int = 8, features: int = 128) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay!r}")
        check_count(components, "components")
        check_count(features, "features", 0)
        self.decay, self.components, self.features = decay, components, features
        self.terms = nn.ModuleDict()
        self.group: object = None

    def extra_repr(self) -> str:
        """Settings, for `print`."""
        return f"decay={self.decay}, components={self.components}, features={self.features}"

    def part(self, role: str) -> StreamingPart:
        """The estimator that remembers the score of one role in a surrogate, such as "z" or "x,z"."""
        return StreamingPart(self, role)

    def fit(self, samples: Float[Tensor, "*batch n d"]) -> ScoreFunction:
        """Learn from samples [*batch, n, d] in training mode, and return the score of their density.

        Raises
        ------
        TypeError
            If `samples` is not a tensor of float32 or float64.
        ValueError
            If there are fewer than two samples, an entry is not finite, all samples are equal, or their coordinates or
            batch axes are not those of the batches before.
        RuntimeError
            In evaluation mode before the first batch.
        """
        return self.part("z").fit(samples)

    def fit_pair(
        self,
        x: Float[Tensor, "*batch n p"],
        z: Float[Tensor, "*batch n q"],
        wanted: tuple[bool, bool] = (True, True),
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        """Learn from pairs in training mode; joint minus marginal score there, the parts for x and for z.

        `wanted` says which of them are used; the other part is zero. Raises as `fit` does, or if they are not paired.
        """
        return self.part("x,z").fit_pair(x, z, wanted)

    def log_density_of(self, z: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        """Log density at points [*batch, n, d], in nats, without an update; RuntimeError before the first batch."""
        return self.part("z").log_density_of(z)

    def log_ratio(self, x: Float[Tensor, "*batch n p"], z: Float[Tensor, "*batch n q"]) -> Float[Tensor, "*batch n"]:
        """Log of q(x, z) / q(x) q(z) at pairs, in nats, without an update; RuntimeError before the first batch."""
        return self.part("x,z").log_ratio(x, z)

    def reset(self) -> None:
        """Forget all batches."""
        self.terms.clear()

    def sync(self, group: object = None) -> Streaming:
        """From now on learn from the whole batch of all processes of `torch.distributed`; returns self.

        Each process gathers the samples of all, so parts of one size are needed, and answers for its own. With the
        gradients averaged over the processes, as `DistributedDataParallel` does, they are those of the whole batch.

        Raises
        ------
        RuntimeError
            If the process group is not initialised.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise RuntimeError("sync: expected an initialised torch.distributed process group (init_process_group)")
        self.group = torch.distributed.group.WORLD if group is None else group
        return self

    def gathered(self, samples: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch m d"]:
        """The samples of all processes, after `sync()`."""
        if self.group is None:
            return samples
        parts = [torch.empty_like(samples) for _ in range(torch.distributed.get_world_size(self.group))]
        torch.distributed.all_gather(parts, samples.contiguous(), group=self.group)
        return torch.cat(parts, -2)

    def get_extra_state(self) -> dict[str, tuple]:
        """Shapes of the states, a part of `state_dict`."""
        return {role: term.shape for role, term in self.terms.items()}

    def set_extra_state(self, state: dict[str, tuple]) -> None:
        """Set what `get_extra_state` returned: empty states of these shapes, which `load_state_dict` fills."""
        self.terms.clear()
        for role, (batch, split, n) in state.items():
            self.terms[role] = Term(tuple(batch), tuple(split), self, n, torch.zeros(()))

    def term(self, role: str, batch: tuple[int, ...], split: tuple[int, ...], n: int, like: Tensor) -> Term:
        """State of a role; a new one at its first batch in training mode."""
        if role not in self.terms:
            if not self.training:
                raise RuntimeError(
                    f"Streaming: nothing learnt yet of {role!r}; fit at least one batch in training mode"
                )
            self.terms[role] = Term(batch, split, self, n, like)
        term = self.terms[role]
        if term.shape[:2] != (batch, split):
            raise ValueError(
                f"samples: expected batch axes {list(term.shape[0])} and {list(term.shape[1])} coordinates, as in the "
                f"batches before, got {list(batch)} and {list(split)}; use one Streaming() for each term of a loss, or "
                f"reset() it"
            )
        # A state that was loaded stands on the CPU, as before the first batch there is nothing that could be moved.
        return term if next(term.buffers(), like).device == like.device else term.to(like.device)


@dataclass(frozen=True)
class StreamingPart:
    """What `Streaming.part` returns: the estimator with the state of one role.

    Attributes
    ----------
    whole : Streaming
        The settings and all states.
    role : str
        Its role.
    """

    whole: Streaming
    role: str

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> ScoreFunction:
        """As `Streaming.fit`."""
        check_samples(samples)
        check_spread(samples)
        every = self.whole.gathered(samples.detach())
        term = self._term(every)
        v = every.double()
        if term.is_beyond(v) or decide(_has_no_density(every) | term.is_unresolved(v)):
            return Adaptive().fit(every)
        first = term.density.steps == 0
        if self.whole.training:
            term.density.update(v)
        if first:
            return Adaptive().fit(every)
        return term.score(v, self.whole.training, samples.dtype)

    @fused_checks()
    @torch.no_grad()
    def fit_pair(
        self,
        x: Float[Tensor, "*batch n p"],
        z: Float[Tensor, "*batch n q"],
        wanted: tuple[bool, bool] = (True, True),
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        """As `Streaming.fit_pair`."""
        check_pair(x, z)
        check_spread(x, "x")
        check_spread(z, "z")
        every = tuple(self.whole.gathered(variable.detach()) for variable in (x, z))
        term = self._term(*every)
        v = torch.cat(every, -1).double()
        flag = _pair_has_no_density(*every, wanted) | term.is_unresolved(v, wanted)
        if term.is_beyond(v) or decide(flag):
            return self._own(Adaptive().fit_pair(*every, wanted), x)
        first = term.density.steps == 0
        if self.whole.training:
            term.density.update(v)
        if first:
            return self._own(Adaptive().fit_pair(*every, wanted), x)
        return self._own(term.differences(v, wanted, self.whole.training, x.dtype), x)

    def log_density_of(self, z: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        """As `Streaming.log_density_of`."""
        check_samples(z)
        term = self._learnt(z)
        if term.is_beyond(z):
            return Adaptive().fit(z).log_density(z)
        return term.density.chosen().log_density(z.double()).to(z.dtype)

    def log_ratio(self, x: Float[Tensor, "*batch n p"], z: Float[Tensor, "*batch n q"]) -> Float[Tensor, "*batch n"]:
        """As `Streaming.log_ratio`."""
        check_pair(x, z)
        term, v = self._learnt(x, z), torch.cat([x, z], -1).double()
        if term.is_beyond(v):
            return Adaptive().log_ratio(x, z)
        p, chosen = x.shape[-1], term.density.chosen()
        marginals = (chosen.marginal(0, p), v[..., :p]), (chosen.marginal(p, v.shape[-1]), v[..., p:])
        ratio = chosen.log_density(v) - sum(density.log_density(part) for density, part in marginals)
        return ratio.to(x.dtype)

    def _own(self, parts: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of this process."""
        if self.whole.group is None:
            return parts
        start = torch.distributed.get_rank(self.whole.group) * x.shape[-2]
        return tuple(part[..., start : start + x.shape[-2], :] for part in parts)

    def _term(self, *variables: Tensor) -> Term:
        batch, n = tuple(variables[0].shape[:-2]), variables[0].shape[-2]
        split = tuple(variable.shape[-1] for variable in variables)
        return self.whole.term(self.role, batch, split, n, variables[0])

    def _learnt(self, *variables: Tensor) -> Term:
        terms, dim = self.whole.terms, sum(variable.shape[-1] for variable in variables)
        if self.role in terms and (dim >= terms[self.role].most or terms[self.role].density.steps):
            return self._term(*variables)
        raise RuntimeError(f"Streaming: nothing learnt yet of {self.role!r}; fit at least one batch before")


class Term(nn.Module):
    """State of one role: the density of one variable, or of a pair, and the residuals of the scores read off it."""

    def __init__(
        self, batch: tuple[int, ...], split: tuple[int, ...], settings: Streaming, n: int, like: Tensor
    ) -> None:
        super().__init__()
        dim = sum(split)
        self.shape = batch, split, n
        self.decay = settings.decay
        self.most = n / (1 - settings.decay)
        names = ("joint", "x", "z") if len(split) == 2 else ("z",)
        sizes = (dim, *split) if len(split) == 2 else split
        self.residuals = nn.ModuleDict()
        if dim < self.most:
            self.density = OnlineDensity(batch, dim, settings.components, settings.decay, n, like)
            if settings.features and dim * (dim + 1) <= self.most:  # a kernel resolves no more
                count = settings.features
                self.residuals = nn.ModuleDict(
                    {name: OnlineResidual(batch, size, count, like) for name, size in zip(names, sizes, strict=True)}
                )

    def is_beyond(self, v: Tensor) -> bool:
        """Whether even the memory holds fewer samples than coordinates, so that it is of no use."""
        return v.shape[-1] >= self.most

    def is_unresolved(self, v: Float[Tensor, "*batch n d"], wanted: tuple[bool, ...] = (True,)) -> Bool[Tensor, ""]:
        """Whether a wanted variable is steeper than its samples resolve, in the coordinates chosen before."""
        if self.is_beyond(v) or self.density.steps == 0:
            return torch.zeros((), dtype=torch.bool, device=v.device)
        mean = v.mean(-2, keepdim=True)
        scale = (v - mean).square().mean(-2, keepdim=True).sqrt()
        slope = evaluate_shapes(self.density.shapes.table, (v - mean) / scale)[1] / scale
        chosen = self.density.choice >= 1 + len(self.density.mixtures)
        parts = zip(v.split(self.shape[1], -1), slope.split(self.shape[1], -1), wanted, strict=True)
        return torch.stack([is_unresolved(part, rise, chosen).any() for part, rise, use in parts if use]).any()

    def score(self, v: Float[Tensor, "*batch n d"], learn: bool, dtype: torch.dtype) -> StreamingScore:
        """Score of the one variable; its residual first learns from the samples if it is to."""
        chosen = self.density.chosen()
        if learn and self.residuals:
            self._score(chosen, chosen.coordinates(v)[0], "z", learn)
        residual = self.residuals["z"].score() if self.residuals else None
        return StreamingScore(chosen, residual, dtype, self.factor(("z",)))

    def factor(self, names: tuple[str, ...]) -> Float[Tensor, "*batch 1 1"]:
        """By what residuals of these names are multiplied: what would have served the batches best, less its error."""
        if not self.residuals:
            return torch.zeros((), dtype=torch.float64)
        kept = [self.residuals[name] for name in names]
        squares = sum(residual.squares for residual in kept)
        gain = -sum(residual.slope for residual in kept) - sum(residual.noise for residual in kept).sqrt()
        best = gain / squares.clamp_min(torch.finfo(squares.dtype).tiny)
        return best.clamp(0, 1)[..., None, None]

    def differences(
        self, v: Float[Tensor, "*batch n d"], wanted: tuple[bool, bool], learn: bool, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        """Joint minus marginal score of both variables; zeros for one that is not wanted."""
        split = self.shape[1][0]
        chosen = self.density.chosen()
        mapped, slope, _ = chosen.coordinates(v)
        ranges = {"joint": (0, v.shape[-1]), "x": (0, split), "z": (split, v.shape[-1])}
        names = ["joint", *(name for name, use in zip(("x", "z"), wanted, strict=True) if use)]
        found = {}
        for name in names:
            start, stop = ranges[name]
            found[name] = self._score(chosen.marginal(start, stop), mapped[..., start:stop], name, learn)
        factor = self.factor(tuple(names))  # one for all, so that what they have in common cancels
        values = {
            name: slope[..., slice(*ranges[name])] * (base + factor * rest) for name, (base, rest) in found.items()
        }
        joint = values["joint"].split(self.shape[1], -1)
        return tuple(
            (part - values[name]).to(dtype) if name in values else torch.zeros_like(part, dtype=dtype)
            for name, part in zip(("x", "z"), joint, strict=True)
        )

    def _score(
        self, density: ChosenDensity, mapped: Float[Tensor, "*batch n d"], name: str, learn: bool
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
        """Score of a density in its mapped coordinates and its residual there, which first learns if it is to."""
        base = density.model.score(mapped)
        if not self.residuals:
            return base, torch.zeros_like(base)
        residual = self.residuals[name]
        white, factor = density.white(mapped)
        if learn:
            residual.update(white, base @ factor, self.decay, ~self.density.changed)
        return base, pulled(residual.score()(white), factor)


def pulled(score: Float[Tensor, "*batch n d"], factor: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch n d"]:
    """Score of samples, from that of white ones that a factor colours."""
    return torch.linalg.solve_triangular(factor.mT, score.mT, upper=True).mT


@dataclass(frozen=True)
class StreamingScore:
    """The function that `Streaming.fit` returns.

    Attributes
    ----------
    density : ChosenDensity
        The density in use when it was fitted.
    residual : FeatureScore or None
        What its score leaves, in white coordinates.
    dtype : torch.dtype
        Of the points and of the scores; everything is computed in float64.
    factor : Tensor [*batch, 1, 1]
        By what the residual is multiplied.
    """

    density: ChosenDensity
    residual: FeatureScore | None
    dtype: torch.dtype
    factor: Tensor

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.density.location.to(self.dtype))
        mapped, slope, bent = self.density.coordinates(points.double())
        score = self.density.model.score(mapped)
        if self.residual is not None:
            white, factor = self.density.white(mapped)
            score = score + self.factor * pulled(self.residual(white), factor)
        return (slope * score + bent).to(self.dtype)

    def log_density(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Log density at points [*batch, m, d], in nats; the residual has none."""
        check_points(points, self.density.location.to(self.dtype))
        return self.density.log_density(points.double()).to(self.dtype)


def _has_no_density(samples: Float[Tensor, "*batch n d"]) -> Bool[Tensor, ""]:
    return (has_atoms(samples) | is_singular(samples)).any()


def _pair_has_no_density(x: Tensor, z: Tensor, wanted: tuple[bool, bool]) -> Bool[Tensor, ""]:
    found = is_singular(x).any() | is_singular(z).any()
    x, z = x.double(), z.double()
    for variable, given, use in ((x, z, wanted[0]), (z, x, wanted[1])):
        if use:
            found = found | has_atoms(variable).any() | noise_free(given, variable).any()
    return found
