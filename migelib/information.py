r"""Plug-in values of entropies and informations, in nats, for logging; the surrogates have their gradients.

A value is the mean of log densities that are fitted to the samples themselves. It costs what the surrogate costs, has
no gradient, and is biased: an information is too high, the more so the more dimensions and the fewer samples. It tells
whether a training moves; to state an information use held-out samples and a bound (`migelib.bounds`), or a known
conditional (`migelib.codes`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .labels import ClassModel, is_discrete
from .scores import ScoreEstimator, as_estimator
from .scores.base import DividedEstimator, density_of, part_of
from .surrogates import check_variables, held_fixed, outside_graphs
from .validation import check_samples, check_spread, fused_checks


@outside_graphs
@fused_checks()
def entropy(z: Float[Tensor, "*batch n d"], estimator: ScoreEstimator | str | None = None) -> Float[Tensor, "*batch"]:
    r"""Plug-in value of the entropy, :math:`-\frac1n \sum_i \ln \hat q(z_i)`, in nats, without a gradient.

    Derived in :doc:`/book/information-measures`.

    Parameters
    ----------
    z : Tensor [*batch, n, d]
        Samples, of float32 or float64.
    estimator : ScoreEstimator or str, optional
        That of the surrogate whose training it reports: an estimator, its name, or None for the default (see
        `scores.as_estimator`). One with a memory, such as `Streaming`, answers from it without an update.

    Returns
    -------
    Tensor [*batch]
        One value for each batch entry; a scalar tensor without batch axes. NaN where the estimator found that the
        samples have no density. What bias it has, the estimator says: that of `GaussianScore` is known.

    Raises
    ------
    TypeError, ValueError
        If `z` is not a finite float32 or float64 tensor of at least two differing samples, the estimator is unknown,
        or it has no density, as `SSGE` has none.

    Examples
    --------
    >>> z = 3 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> round(float(entropy(z, GaussianScore())), 1)  # truth: ln(18 pi e), 5.04
    5.1
    """
    estimator = as_estimator(estimator)
    check_samples(z, "z")
    check_spread(z, "z")
    return held_fixed(estimator, lambda fixed: -_log_density(estimator, "z", fixed).mean(-1), z).detach()


@outside_graphs
@fused_checks()
def mutual_information(
    x: Float[Tensor, "*batch n p"] | Int[Tensor, "*batch n"],
    z: Float[Tensor, "*batch n q"] | Int[Tensor, "*batch n"],
    estimator: ScoreEstimator | str | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Plug-in value of the mutual information, in nats, without a gradient.

    It is :math:`\frac1n \sum_i \ln \hat q(x_i, z_i) / \hat q(x_i)\, \hat q(z_i)`. An estimator that has a method
    `log_ratio(x, z)` gives the ratio from one joint density; the others are fitted three times.
    Derived in :doc:`/book/information-measures`.

    Parameters
    ----------
    x, z : Tensor [*batch, n, p] and [*batch, n, q]
        Paired samples, of float32 or float64. One of them may be discrete: integer labels [*batch, n], as in
        `mutual_information_surrogate`; the value is then at most the labels' entropy.
    estimator : ScoreEstimator or str, optional
        As in `entropy`.

    Returns
    -------
    Tensor [*batch]
        One value for each batch entry; a scalar tensor without batch axes. NaN where the estimator found that the
        samples have no density.

    Raises
    ------
    TypeError, ValueError
        If `x` or `z` is not a finite float32 or float64 tensor of at least two differing samples, if their batch axes,
        numbers of samples, types or devices differ, both are discrete, the estimator is unknown, or it has no density.

    Examples
    --------
    >>> x, e = torch.randn(2, 1000, 1, generator=torch.Generator().manual_seed(0))
    >>> information = mutual_information(x, x + e, GaussianScore())
    >>> round(float(information), 2)  # the truth is ln(2) / 2
    0.35
    >>> labels = (x[:, 0] > 0).long()
    >>> float(mutual_information(labels, x + e, GaussianScore())) < 0.69  # at most ln 2
    True
    """
    estimator = as_estimator(estimator)
    check_variables(x=x, z=z)
    x, z, role = (z, x, "x|z") if is_discrete(z) else (x, z, "z|x")
    check_spread(z, role[0])
    if is_discrete(x):
        asked = _asked(estimator)
        return held_fixed(estimator, lambda z: ClassModel.fit(asked, role, x, z).log_ratio(z).mean(-1), z).detach()
    check_spread(x, "x")
    return held_fixed(estimator, lambda x, z: _log_ratio(estimator, x, z).mean(-1), x, z).detach()


def _log_ratio(estimator: ScoreEstimator, x: Tensor, z: Tensor) -> Float[Tensor, "*batch n"]:
    pair = part_of(estimator, "x,z")
    if hasattr(pair, "log_ratio"):
        return pair.log_ratio(x, z)
    joint = _log_density(estimator, "x,z", torch.cat([x, z], dim=-1))
    return joint - _log_density(estimator, "x", x) - _log_density(estimator, "z", z)


def _log_density(estimator: ScoreEstimator, role: str, z: Tensor) -> Float[Tensor, "*batch n"]:
    return density_of(_asked(part_of(estimator, role)).fit(z), z)


def _asked(estimator: ScoreEstimator) -> ScoreEstimator:
    """The estimator, or what asks its memory without an update, where it has one."""
    has_memory = hasattr(estimator, "log_density_of") or isinstance(estimator, DividedEstimator)
    return _Memory(estimator) if has_memory else estimator


class _Memory:
    """The densities that an estimator remembers, in the place of those that it would fit."""

    def __init__(self, estimator: ScoreEstimator) -> None:
        self.estimator = estimator

    def part(self, role: str) -> _Memory:
        return _Memory(part_of(self.estimator, role))

    def fit(self, samples: Tensor) -> object:
        return self if hasattr(self.estimator, "log_density_of") else self.estimator.fit(samples)

    def log_density(self, points: Tensor) -> Tensor:
        return self.estimator.log_density_of(points)
