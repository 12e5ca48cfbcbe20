r"""Surrogates: scalars whose *gradients* estimate those of information measures.

A surrogate's value means nothing; only its backward pass does. Each has the form :math:`\frac1n \sum_i s_i \cdot z_i`
with the estimated score :math:`s_i` held fixed, so that back-propagation gives
:math:`\frac1n \sum_i s_i \cdot \partial z_i / \partial \theta`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .scores import PairScoreEstimator, ScoreEstimator, as_estimator
from .validation import check_pair, check_samples, check_spread


def entropy_surrogate(
    z: Float[Tensor, "*batch n d"], estimator: ScoreEstimator | str | None = None
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the entropy :math:`H(z)`, in nats (EGE).

    For reparameterised samples :math:`z = g_\theta(\epsilon)`,
    :math:`\nabla_\theta H = -E[\nabla_z \log q(z)^\top\, \partial g_\theta / \partial\theta]`
    [Wen et al., Knowledge-Based Systems 224, 2021]. Maximise the entropy by
    ``loss = task_loss - beta * entropy_surrogate(z)``.
    Derived in :doc:`/book/03_entropy_gradients`.

    Parameters
    ----------
    z : Tensor [*batch, n, d]
        Reparameterised samples. With batch axes the gradient is that of the sum of the entries' entropies.
    estimator : ScoreEstimator or str, optional
        How to estimate the score: an estimator, its name, or None for the default (see `scores.as_estimator`).

    Returns
    -------
    Tensor []
        Only its gradient means anything: do not log its value as an entropy.

    Raises
    ------
    TypeError, ValueError
        If `z` is not a finite floating-point tensor of at least two differing samples, or the estimator is unknown.
    """
    estimator = as_estimator(estimator)
    check_samples(z, "z")
    check_spread(z, "z")
    fixed = z.detach()
    return _contract(-estimator.fit(fixed)(fixed), z)


def mutual_information_surrogate(
    x: Float[Tensor, "*batch n p"],
    z: Float[Tensor, "*batch n q"],
    estimator: ScoreEstimator | str | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the mutual information :math:`I(x; z)`, in nats (MIGE).

    :math:`\nabla I = \nabla H(x) + \nabla H(z) - \nabla H(x, z)`, each by EGE; a term that depends on no parameter is
    not computed [Wen et al., ICLR 2020, eqs. 8-11]. Gradients flow through every argument that requires them.
    Maximise information by ``loss = task_loss - beta * mutual_information_surrogate(x, z)``.
    Derived in :doc:`/book/05_mutual_information_gradients`.

    Parameters
    ----------
    x, z : Tensor [*batch, n, p] and [*batch, n, q]
        Paired samples. With batch axes the gradient is that of the sum over the entries.
    estimator : ScoreEstimator or str, optional
        How to estimate the scores of (x, z), x and z: an estimator, its name, or None for the default. One that has
        a method `fit_pair(x, z)` returns both differences of joint and marginal score at once, from one joint model;
        the others are fitted three times.

    Returns
    -------
    Tensor []
        Only its gradient means anything: do not log its value as an information. Zero, without a gradient, where
        neither argument requires one.

    Raises
    ------
    TypeError, ValueError
        If `x` or `z` is not a finite floating-point tensor of at least two differing samples, if their batch axes,
        numbers of samples, types or devices differ, or the estimator is unknown.
    """
    estimator = as_estimator(estimator)
    check_pair(x, z)
    check_spread(x, "x")
    check_spread(z, "z")
    if not (x.requires_grad or z.requires_grad):
        return z.new_zeros(())
    if isinstance(estimator, PairScoreEstimator):
        differences = estimator.fit_pair(x.detach(), z.detach())
        parts = [_contract(d, v) for d, v in zip(differences, (x, z), strict=True) if v.requires_grad]
        return sum(parts, z.new_zeros(()))
    joint = torch.cat([x, z], dim=-1).detach()
    joint_score = estimator.fit(joint)(joint)
    surrogate = z.new_zeros(())
    for variable, part in zip((x, z), joint_score.split([x.shape[-1], z.shape[-1]], dim=-1), strict=True):
        if variable.requires_grad:
            fixed = variable.detach()
            surrogate = surrogate + _contract(part - estimator.fit(fixed)(fixed), variable)
    return surrogate


def _contract(score: Float[Tensor, "*batch n d"], z: Float[Tensor, "*batch n d"]) -> Float[Tensor, ""]:
    """Mean over the samples and sum over the batch of score . z, with the score held fixed."""
    return (score.detach() * z).sum(-1).mean(-1).sum()
