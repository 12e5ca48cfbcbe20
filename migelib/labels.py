r"""Conditional densities of a variable given a discrete one, which share what small classes cannot tell.

.. math:: q(z \mid c) = |\det A_c|\, f(A_c (z - m_c)), \qquad q(z) = \sum_c p(c)\, q(z \mid c)

Class c has its own mean :math:`m_c` and its own covariance, drawn towards the common one; the shape f of the density is
estimated from the deviations of all classes. The marginal is that of the same model, so that what is wrong with it
cancels in :math:`\nabla \ln q(z \mid y) - \nabla \ln q(z)`: classes that do not differ have a difference of zero, and
so have classes that do not overlap. Of an estimator without a density the responsibilities are those of Gaussian
classes; of one with a memory f is remembered, and means and covariances are the batch's.
Derived in :doc:`/book/beyond`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .scores.base import DividedEstimator, ScoreEstimator, ScoreFunction, check_density, has_density, part_of
from .scores.combinators import score_divergence
from .scores.gaussian import shrunk_covariance
from .validation import check_spread

# These are measured, not derived, on classes of Gaussian and bimodal noise, none of them from `tasks.PAIRS`.
ALONE = 64  # samples, and eight a coordinate, from which on a class may have a shape of its own


def is_discrete(variable: object) -> bool:
    """Whether an argument is a tensor of integers or of bool."""
    return isinstance(variable, Tensor) and not (variable.is_floating_point() or variable.is_complex())


def check_labels(labels: Int[Tensor, "*batch n"], like: Float[Tensor, "*batch n d"], name: str, like_name: str) -> None:
    """Raise unless labels are one integer for each sample of the variable `like`, on its device.

    Raises
    ------
    TypeError
        If their shape is not [*batch, n].
    ValueError
        If the devices differ.
    """
    if labels.shape != like.shape[:-1]:
        raise TypeError(
            f"{name}: expected samples [*batch, n, d] of float32 or float64, or integer labels, one for each sample of "
            f"{like_name}, {list(like.shape[:-1])}; got {labels.dtype} of shape {tuple(labels.shape)}. "
            f"Labels [n, 1] become [n] by `.squeeze(-1)`, one-hot ones by `.argmax(-1)`, numbers samples by `.float()`"
        )
    if labels.device != like.device:
        raise ValueError(f"{name} and {like_name}: expected one device, got {labels.device} and {like.device}")


def nested(
    outer: Int[Tensor, "*batch n"], inner: Int[Tensor, "*batch n"]
) -> tuple[Int[Tensor, "*batch n"], Int[Tensor, "C"]]:
    """One label for each pair of two labels that occurs, 0..C - 1, and the outer label's index of each."""
    _, outer = torch.unique(outer, return_inverse=True)
    inner_values, inner = torch.unique(inner, return_inverse=True)
    values, pairs = torch.unique(outer * len(inner_values) + inner, return_inverse=True)
    return pairs, values // len(inner_values)


@dataclass(frozen=True)
class _Classes:
    """Labels counted: their distinct values, of which an entry need not have all.

    Attributes
    ----------
    values : Tensor [C]
        The distinct labels.
    index : Tensor [*batch, n]
        Of each sample's label among them.
    counts : Tensor [*batch, C]
        Numbers of samples, as floating-point numbers.
    """

    values: Int[Tensor, "C"]
    index: Int[Tensor, "*batch n"]
    counts: Float[Tensor, "*batch C"]

    @classmethod
    def of(cls, labels: Int[Tensor, "*batch n"]) -> _Classes:
        values, index = torch.unique(labels, return_inverse=True)
        counts = torch.zeros(*labels.shape[:-1], len(values), dtype=torch.float64, device=labels.device)
        return cls(values, index, counts.scatter_add(-1, index, torch.ones_like(index, dtype=counts.dtype)))

    def sums(self, z: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch C k"]:
        """Sum of the samples of each class."""
        total = z.new_zeros(*z.shape[:-2], len(self.values), z.shape[-1])
        return total.scatter_add(-2, self.index[..., None].expand(z.shape), z)

    def of_sample(self, quantity: Float[Tensor, "*batch C k"]) -> Float[Tensor, "*batch n k"]:
        """A quantity of each class, at its samples."""
        return quantity.gather(-2, self.index[..., None].expand(*self.index.shape, quantity.shape[-1]))

    def mapped(
        self, z: Float[Tensor, "*batch n d"], maps: Float[Tensor, "*batch C d d"]
    ) -> Float[Tensor, "*batch n d"]:
        """Every sample mapped by the matrix of its class."""
        out = torch.zeros_like(z)
        for c in range(len(self.values)):
            out = torch.where((self.index == c)[..., None], z @ maps[..., c, :, :], out)
        return out


@dataclass(frozen=True)
class ClassModel:
    r"""The model of all classes, and where its samples are.

    Attributes
    ----------
    classes : _Classes
        Of the samples.
    means : Tensor [*batch, C, d]
        :math:`m_c`.
    maps : Tensor [*batch, C, d, d] or None
        :math:`A_c^\top`, in double precision; None where a class has too few samples for a covariance of its own.
    root : Tensor [*batch, d, d]
        R with :math:`R R^\top = \Sigma^{-1}`, the inverse of the common covariance.
    score : ScoreFunction
        That of f, and its density where it has one.
    own : tuple of (index, class, ScoreFunction)
        Scores of large classes whose shape is not the common one, each of one batch entry.
    """

    classes: _Classes
    means: Float[Tensor, "*batch C d"]
    maps: Float[Tensor, "*batch C d d"] | None
    root: Float[Tensor, "*batch d d"]
    score: ScoreFunction
    own: tuple[tuple[tuple[int, ...], int, ScoreFunction], ...] = ()

    @classmethod
    def fit(
        cls, estimator: ScoreEstimator, role: str, labels: Int[Tensor, "*batch n"], z: Float[Tensor, "*batch n d"]
    ) -> ClassModel:
        """Fit to samples and their labels; of an estimator with a memory, the part of that role remembers f."""
        classes = _Classes.of(labels)
        means = classes.sums(z.double()) / classes.counts.clamp_min(1)[..., None]
        deviations = z.double() - classes.of_sample(means)
        # What is left of equal samples is rounding.
        rounding = torch.finfo(z.dtype).eps * z.double().abs().amax(-2, keepdim=True)
        deviations = torch.where(deviations.abs() > rounding, deviations, 0)
        # What is left of n samples when their mean is taken out has a share (n - 1) / n of their variance.
        grown = (classes.counts / (classes.counts - 1).clamp_min(1)).sqrt()
        deviations = deviations * classes.of_sample(grown[..., None])
        alone = classes.of_sample(classes.counts[..., None])[..., 0] < 2
        deviations = _without(deviations, alone, z.double() - z.double().mean(-2, keepdim=True))
        check_spread(deviations, "a variable within its classes")
        root, maps = _coordinates(classes, deviations)
        common = deviations if maps is None else classes.mapped(deviations, maps)
        common = common.to(z.dtype)
        score = part_of(estimator, role).fit(_filled(common, alone))
        # A memory takes each sample once.
        own = () if isinstance(estimator, DividedEstimator) else _own_shapes(estimator, classes, common, alone)
        return cls(classes, means, maps, root, score, tuple(own))

    def scores(
        self, z: Float[Tensor, "*batch n d"], within: Int[Tensor, "C"] | None = None
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
        """Scores of the conditional and of the marginal density at the first n samples.

        Where `within` says which group every class is of, the marginal is that of the sample's group. A sample that is
        alone in its class has the marginal's score in both.
        """
        index = self.classes.index[..., : z.shape[-2]]
        share = self._log_joint(z, index, within).softmax(0)
        marginal, conditional = torch.zeros_like(z), torch.zeros_like(z)
        for c, u in self._points(z):
            score = self._at(c, u)
            marginal = marginal + share[c][..., None] * score
            conditional = torch.where((index == c)[..., None], score, conditional)
        alone = self.classes.of_sample(self.classes.counts[..., None])[..., : z.shape[-2], :] < 2
        return torch.where(alone, marginal, conditional), marginal

    def log_ratio(self, z: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        r""":math:`\ln q(z \mid y) / q(z)` at the samples, in nats.

        Raises
        ------
        TypeError
            If the estimator has no density.
        """
        check_density(self.score)
        joint = self._log_joint(z, self.classes.index, None)
        prior = (self.classes.counts / z.shape[-2]).log()
        posterior = joint.log_softmax(0).movedim(0, -1)
        own = posterior.gather(-1, self.classes.index[..., None])[..., 0]
        return own - self.classes.of_sample(prior[..., None])[..., 0].to(own.dtype)

    def _log_joint(
        self, z: Float[Tensor, "*batch n d"], index: Int[Tensor, "*batch n"], within: Int[Tensor, "C"] | None
    ) -> Float[Tensor, "C *batch n"]:
        """Log density of every class at the samples, with its share; of other groups there is none."""
        log_density = []
        for c, u in self._points(z):
            joint = self._log_density(c, u) + (self.classes.counts[..., c, None] / self.classes.index.shape[-1]).log()
            if self.maps is not None:
                joint = joint + self.maps[..., c, :, :].diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
            if within is not None:
                joint = torch.where(within[index] == within[c], joint, -torch.inf)
            log_density.append(joint)
        return torch.stack(log_density).to(z.dtype)

    def _points(self, z: Float[Tensor, "*batch n d"]) -> Iterator[tuple[int, Float[Tensor, "*batch n d"]]]:
        """Samples in the common coordinates, as if they were of each class in turn."""
        for c in range(len(self.classes.values)):
            u = z.double() - self.means[..., c, None, :]
            yield c, (u if self.maps is None else u @ self.maps[..., c, :, :]).to(z.dtype)

    def _log_density(self, c: int, u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        """Of the common shape, or of the class's own; a Gaussian's where the estimator has none."""
        squares = (u.double() @ self.root).square().sum(-1)
        constant = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        gaussian = constant - squares / 2 - u.shape[-1] / 2 * math.log(2 * math.pi)
        if not has_density(self.score):
            return gaussian
        log_density = self.score.log_density(u).double()
        for entry, own, score in self.own:
            if own == c:
                log_density[entry] = score.log_density(u[entry]).double()
        return torch.where(torch.isnan(log_density).any(-1, keepdim=True), gaussian, log_density)

    def _at(self, c: int, u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Score of class c at its points in the common coordinates, carried back to those of z."""
        score = _score_of_density(self.score, u)
        for entry, own, other in self.own:
            if own == c:
                score[entry] = _score_of_density(other, u[entry])
        return score if self.maps is None else (score.double() @ self.maps[..., c, :, :].mT).to(score.dtype)


def _score_of_density(score: ScoreFunction, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
    """Gradient of the log density, where there is one: a score's corrections are for the samples that it is fitted to.

    Where the density is not known, NaN, the score itself.
    """
    values = score(points)
    if not has_density(score):
        return values
    gradient = torch.func.grad(lambda u: score.log_density(u).sum())(points)
    return torch.where(torch.isfinite(gradient).all(-1, keepdim=True).all(-2, keepdim=True), gradient, values)


def _without(deviations: Tensor, alone: Bool[Tensor, "*batch n"], whole: Tensor) -> Tensor:
    """Deviations, or where an entry has no class of two samples those from the mean of all."""
    return torch.where(alone.all(-1)[..., None, None], whole, deviations)


def _filled(samples: Float[Tensor, "*batch n d"], alone: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch n d"]:
    """Samples with those alone in their class, whose deviation is zero, replaced by others in turn."""
    alone = alone & ~alone.all(-1, keepdim=True)
    order = alone.to(torch.uint8).argsort(dim=-1, stable=True)
    turn = torch.arange(samples.shape[-2], device=samples.device) % (~alone).sum(-1, keepdim=True)
    return samples.gather(-2, order.gather(-1, turn)[..., None].expand(samples.shape))


def _coordinates(
    classes: _Classes, deviations: Float[Tensor, "*batch n d"]
) -> tuple[Float[Tensor, "*batch d d"], Float[Tensor, "*batch C d d"] | None]:
    """Root of the common precision, and the maps of the classes' covariances to the common one.

    A class's covariance is the mean of its own, counted by its samples, and the common one at its scale, counted as
    d + 1: a class that is narrower than the others stays so.
    """
    n, dim = deviations.shape[-2:]
    covariance = shrunk_covariance(deviations, "ledoit-wolf")
    # A coordinate that has no spread within the classes keeps that of rounding.
    level = 1e-12 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    covariance = covariance + torch.diag_embed(level[..., None].expand(covariance.shape[:-1]))
    if n <= dim:
        return torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1).rsqrt()), None
    factor = torch.linalg.cholesky_ex(covariance).L
    identity = torch.eye(dim, dtype=factor.dtype, device=factor.device)
    root = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).mT
    if 2 * n < len(classes.values) * (dim + 1):
        return root, None
    counts = classes.counts[..., None, None]
    scatter = torch.stack(
        [(deviations * (classes.index == c)[..., None]).mT @ deviations for c in range(len(classes.values))], dim=-3
    )
    # tr(S^-1 S_c) / d, of its n_c d numbers and two more that are those of the common covariance.
    whitened = (root.mT[..., None, :, :] @ scatter @ root[..., None, :, :]).diagonal(dim1=-2, dim2=-1).sum(-1)
    scale = (whitened + 2) / (classes.counts * dim + 2)
    target = scale[..., None, None] * covariance[..., None, :, :]
    shrunk = (scatter + (dim + 1) * target) / (counts + dim + 1)
    own = torch.linalg.cholesky_ex(shrunk).L
    # Transposed, as samples are rows: A = L L_c^-1 is the identity for a class of the common covariance.
    return root, torch.linalg.solve_triangular(own.mT, factor.mT[..., None, :, :].expand_as(own), upper=True)


Own = tuple[tuple[int, ...], int, ScoreFunction]


def _own_shapes(
    estimator: ScoreEstimator, classes: _Classes, common: Float[Tensor, "*batch n d"], alone: Bool[Tensor, "*batch n"]
) -> Iterator[Own]:
    """Large classes whose samples held out are more likely under a fit to the class than under one to all."""
    large = (classes.counts >= max(ALONE, 8 * common.shape[-1])) & (classes.counts < common.shape[-2])
    for *entry, c in large.nonzero().tolist():
        entry = tuple(entry)
        every, own = common[entry][~alone[entry]], common[entry][classes.index[entry] == c]
        gain = _merit(estimator.fit(own[::2]), own[1::2]) - _merit(estimator.fit(every[::2]), own[1::2])
        if bool(gain.mean() > gain.std() / len(gain) ** 0.5):
            yield entry, c, estimator.fit(own)


def _merit(score: ScoreFunction, points: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """How well a score fits points held out: its log density, or else minus the score-matching loss."""
    if has_density(score):
        return score.log_density(points)
    return -(score(points).square().sum(-1) / 2 + score_divergence(score, points))
