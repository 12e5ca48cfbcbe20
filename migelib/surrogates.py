r"""Surrogates: scalars whose *gradients* estimate those of information measures.

A surrogate's value means nothing; only its first derivatives do. Each has the form
:math:`\frac1n \sum_i s_i \cdot z_i` with the estimated score :math:`s_i` held fixed, so that back-propagation gives
:math:`\frac1n \sum_i s_i \cdot \partial z_i / \partial \theta`, and forward mode the same along a tangent.

The score is fitted to the batch, and with `reference=` to further samples of the same distribution as well, which no
gradient flows through; the mean is over the batch alone.

A second derivative is wrong, as the score's own is not in it. `torch.compile` leaves a surrogate out of its graph. In
inference mode a surrogate returns its value. `torch.func.vmap` raises; the batch axes are there instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from .scores import ESTIMATORS, Adaptive, DenoisingScore, PairScoreEstimator, ScoreEstimator, as_estimator
from .scores.base import outside_inference_mode
from .validation import (
    check_log_prob,
    check_pair,
    check_points,
    check_samples,
    check_spread,
    fused_checks,
    settle_checks,
)


def outside_graphs(function: Callable) -> Callable:
    """Leave a function out of the graphs of `torch.compile`: what is fitted is not differentiated, nor of one shape."""

    @wraps(function)
    def guarded(*args: object, **kwargs: object) -> Tensor:
        # The compiler takes seconds to import, and is there where it is in use.
        eager = torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function
        return eager(*args, **kwargs)

    return guarded


@outside_graphs
@fused_checks()
def entropy_surrogate(
    z: Float[Tensor, "*batch n d"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: Float[Tensor, "*batch m d"] | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the entropy :math:`H(z)`, in nats (EGE).

    For reparameterised samples :math:`z = g_\theta(\epsilon)`,
    :math:`\nabla_\theta H = -E[\nabla_z \log q(z)^\top\, \partial g_\theta / \partial\theta]`
    [Wen et al., Knowledge-Based Systems 224, 2021]. Maximise the entropy by
    ``loss = task_loss - beta * entropy_surrogate(z)``.
    Derived in :doc:`/book/entropy-gradients`.

    Parameters
    ----------
    z : Tensor [*batch, n, d]
        Reparameterised samples. With batch axes the gradient is that of the sum of the entries' entropies.
    estimator : ScoreEstimator or str, optional
        How to estimate the score: an estimator, its name, or None for the default (see `scores.as_estimator`).
    reference : Tensor [*batch, m, d], optional
        Further samples of z at the same parameters, that only the score is fitted to, together with `z`; the mean is
        over `z`, and the reference gets no gradient. See the notes for when to use it.

    Returns
    -------
    Tensor []
        Only its gradient means anything: do not log its value as an entropy.

    Raises
    ------
    TypeError, ValueError
        If `z` is not a finite float32 or float64 tensor of at least two differing samples, `reference` does not match
        it in batch axes, coordinates, type or device or is not finite, or the estimator is unknown.

    Notes
    -----
    With ever more reference samples, and an estimator that is consistent, the gradient becomes that with the exact
    score, whose only error is the noise of the mean over the batch. That is a gain where the estimated score is what
    errs: a kernel estimator in many dimensions, or an information that is small, as when it is minimised. It is none,
    and can be a loss, where the errors of a score fitted to the batch alone cancel the noise of the mean, as those of
    `GaussianScore` do in an entropy, and those of the default in a large information.

    Examples
    --------
    A further forward pass without a graph gives the reference:

    >>> generator = torch.Generator().manual_seed(0)
    >>> model = torch.nn.Linear(4, 2)
    >>> z = model(torch.randn(100, 4, generator=generator))
    >>> with torch.no_grad():
    ...     z_ref = model(torch.randn(400, 4, generator=generator))
    >>> entropy_surrogate(z, SSGE(), reference=z_ref).backward()
    >>> model.weight.grad.shape
    torch.Size([2, 4])
    """
    estimator = as_estimator(estimator)
    check_samples(z, "z")
    n, (z,) = _with_reference(reference, z=z)
    check_spread(z, "z")
    return _contract(-_score_at(estimator, n, z), n, z)


@outside_graphs
@fused_checks()
def mutual_information_surrogate(
    x: Float[Tensor, "*batch n p"],
    z: Float[Tensor, "*batch n q"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: tuple[Float[Tensor, "*batch m p"], Float[Tensor, "*batch m q"]] | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the mutual information :math:`I(x; z)`, in nats (MIGE).

    :math:`\nabla I = \nabla H(x) + \nabla H(z) - \nabla H(x, z)`, each by EGE; a term that depends on no parameter is
    not computed [Wen et al., ICLR 2020, eqs. 8-11]. Gradients flow through every argument that requires them.
    Maximise information by ``loss = task_loss - beta * mutual_information_surrogate(x, z)``.
    Derived in :doc:`/book/mutual-information-gradients`.

    Parameters
    ----------
    x, z : Tensor [*batch, n, p] and [*batch, n, q]
        Paired samples. With batch axes the gradient is that of the sum over the entries.
    estimator : ScoreEstimator or str, optional
        How to estimate the scores of (x, z), x and z: an estimator, its name, or None for the default. One that has
        a method `fit_pair(x, z)` returns both differences of joint and marginal score at once, from one joint model;
        the others are fitted three times.
    reference : tuple of Tensor [*batch, m, p] and [*batch, m, q], optional
        Further paired samples (x, z) at the same parameters, that only the scores are fitted to, together with `x` and
        `z`; the means are over `x` and `z`, and the reference gets no gradient. When to use it: see the notes of
        `entropy_surrogate`.

    Returns
    -------
    Tensor []
        Only its gradient means anything: do not log its value as an information. Zero, without a gradient, where
        neither `x` nor `z` requires one.

    Raises
    ------
    TypeError, ValueError
        If `x` or `z` is not a finite float32 or float64 tensor of at least two differing samples, if their batch axes,
        numbers of samples, types or devices differ, `reference` does not match them, or the estimator is unknown.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> encoder = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Tanh())
    >>> def codes(x):
    ...     return encoder(x) + 0.3 * torch.randn(len(x), 2, generator=generator)
    >>> x, x_ref = torch.randn(500, 4, generator=generator).split([100, 400])
    >>> with torch.no_grad():
    ...     z_ref = codes(x_ref)
    >>> mutual_information_surrogate(x, codes(x), reference=(x_ref, z_ref)).backward()
    >>> encoder[0].weight.grad.shape
    torch.Size([2, 4])
    """
    estimator = as_estimator(estimator)
    check_pair(x, z)
    n, (x, z) = _with_reference(reference, x=x, z=z)
    check_spread(x, "x")
    check_spread(z, "z")
    return _information(estimator, n, x, z)


@outside_graphs
@fused_checks()
def conditional_entropy_surrogate(
    z: Float[Tensor, "*batch n q"],
    given: Float[Tensor, "*batch n r"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: tuple[Float[Tensor, "*batch m q"], Float[Tensor, "*batch m r"]] | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the conditional entropy :math:`H(z \mid w)` of z given w, in nats.

    :math:`\nabla H(z \mid w) = \nabla H(z, w) - \nabla H(w)`, each by EGE [Wen et al., Knowledge-Based Systems 224,
    2021]. Gradients flow through both arguments where they require them.
    Derived in :doc:`/book/beyond`.

    Parameters
    ----------
    z, given : Tensor [*batch, n, q] and [*batch, n, r]
        Paired samples of z and w. With batch axes the gradient is that of the sum over the entries.
    estimator : ScoreEstimator or str, optional
        How to estimate the scores: an estimator, its name, or None for the default. One that has a method `fit_pair`
        is used for :math:`H(z) - I(z; w)`, which is the same and leaves it to fit z and w in their own coordinates.
    reference : tuple of Tensor [*batch, m, q] and [*batch, m, r], optional
        Further paired samples (z, w) at the same parameters, that only the scores are fitted to, as in
        `entropy_surrogate`.

    Returns
    -------
    Tensor []
        Only its gradient means anything: do not log its value as an entropy. Zero, without a gradient, where neither
        `z` nor `given` requires one.

    Raises
    ------
    TypeError, ValueError
        If `z` or `given` is not a finite float32 or float64 tensor of at least two differing samples, if their batch
        axes, numbers of samples, types or devices differ, `reference` does not match them, or the estimator is unknown.
    """
    estimator = as_estimator(estimator)
    check_pair(z, given, "z", "given")
    n, (z, given) = _with_reference(reference, z=z, given=given)
    check_spread(z, "z")
    check_spread(given, "given")
    if isinstance(estimator, PairScoreEstimator):
        return _entropy(estimator, n, z) - _information(estimator, n, z, given)
    return _entropy(estimator, n, z, given) - _entropy(estimator, n, given)


@outside_graphs
@fused_checks()
def conditional_mutual_information_surrogate(
    x: Float[Tensor, "*batch n p"],
    z: Float[Tensor, "*batch n q"],
    given: Float[Tensor, "*batch n r"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: tuple[Float[Tensor, "*batch m p"], Float[Tensor, "*batch m q"], Float[Tensor, "*batch m r"]]
    | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the conditional mutual information :math:`I(x; z \mid w)`, in nats.

    :math:`I(x; z \mid w) = H(x, w) + H(z, w) - H(x, z, w) - H(w)`, each by EGE, or by the chain rule
    :math:`I(x; z \mid w) = I(x; (z, w)) - I(x; w)` [Cover & Thomas, Elements of Information Theory, 2006, sec. 2.5].
    A term that depends on no parameter is not computed. Gradients flow through every argument that requires them.
    Derived in :doc:`/book/beyond`.

    Parameters
    ----------
    x, z, given : Tensor [*batch, n, p], [*batch, n, q] and [*batch, n, r]
        Paired samples of x, z and w. With batch axes the gradient is that of the sum over the entries.
    estimator : ScoreEstimator or str, optional
        How to estimate the scores: an estimator, its name, or None for the default. One that has a method `fit_pair`
        is used for the chain rule; the others are fitted to the four sets of variables.
    reference : tuple of Tensor [*batch, m, p], [*batch, m, q] and [*batch, m, r], optional
        Further samples (x, z, w) at the same parameters, that only the scores are fitted to, as in
        `entropy_surrogate`.

    Returns
    -------
    Tensor []
        Only its gradient means anything: do not log its value as an information. Zero, without a gradient, where none
        of `x`, `z` and `given` requires one.

    Raises
    ------
    TypeError, ValueError
        If one of the three is not a finite float32 or float64 tensor of at least two differing samples, if their batch
        axes, numbers of samples, types or devices differ, `reference` does not match them, or the estimator is unknown.
    """
    estimator = as_estimator(estimator)
    check_pair(x, z)
    check_pair(x, given, "x", "given")
    n, (x, z, given) = _with_reference(reference, x=x, z=z, given=given)
    for variable, name in ((x, "x"), (z, "z"), (given, "given")):
        check_spread(variable, name)
    if isinstance(estimator, PairScoreEstimator):
        if _needs_gradient(x) and not _needs_gradient(z):
            x, z = z, x  # then I(x; w) depends on no parameter of x
        return _information(estimator, n, x, torch.cat([z, given], dim=-1)) - _information(estimator, n, x, given)
    return (
        _entropy(estimator, n, x, given)
        + _entropy(estimator, n, z, given)
        - _entropy(estimator, n, x, z, given)
        - _entropy(estimator, n, given)
    )


@outside_graphs
@fused_checks()
def total_correlation_surrogate(
    z: Float[Tensor, "*batch n d"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: Float[Tensor, "*batch m d"] | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the total correlation :math:`\sum_i H(z_i) - H(z)`, in nats.

    It is zero exactly where the coordinates are independent [Watanabe, IBM Journal of Research and Development 4,
    1960]. Minimise it by ``loss = task_loss + beta * total_correlation_surrogate(z)``.
    Derived in :doc:`/book/beyond`.

    Parameters
    ----------
    z : Tensor [*batch, n, d]
        Reparameterised samples, d >= 2. With batch axes the gradient is that of the sum over the entries.
    estimator : ScoreEstimator or str, optional
        How to estimate the scores: an estimator, its name, or None for the default. One that has a method `fit_pair`
        is used for the d - 1 mutual informations of halves, halves of halves and so on, whose sum is the same; the
        others are fitted to z and, in one batch, to its coordinates.
    reference : Tensor [*batch, m, d], optional
        Further samples of z at the same parameters, that only the scores are fitted to, as in `entropy_surrogate`.

    Returns
    -------
    Tensor []
        Only its gradient means anything: do not log its value as an information. Zero, without a gradient, where `z`
        requires none.

    Raises
    ------
    TypeError, ValueError
        If `z` is not a finite float32 or float64 tensor of at least two samples, has one coordinate only or a constant
        one, `reference` does not match it, or the estimator is unknown.
    """
    estimator = as_estimator(estimator)
    check_samples(z, "z")
    if z.shape[-1] < 2:
        raise ValueError(f"z: expected at least two coordinates, got shape {tuple(z.shape)}")
    n, (z,) = _with_reference(reference, z=z)
    coordinates = z.mT[..., None]  # [*batch, d, n, 1]: a batch of one-dimensional samples
    check_spread(coordinates, "z, a coordinate")
    if isinstance(estimator, PairScoreEstimator):
        return _information_of_halves(estimator, n, z)
    return _entropy(estimator, n, coordinates) - _entropy(estimator, n, z)


@outside_graphs
@fused_checks()
def kl_surrogate(
    z: Float[Tensor, "*batch n d"],
    log_prob: Callable[[Float[Tensor, "*batch n d"]], Float[Tensor, "*batch n"]],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: Float[Tensor, "*batch m d"] | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of :math:`\mathrm{KL}(q(z) \,\|\, p)`, in nats, for an unnormalised p.

    :math:`\nabla \mathrm{KL} = -\nabla H(z) - \nabla E \ln p(z)`: the entropy's by EGE [Wen et al., Knowledge-Based
    Systems 224, 2021], the other as it stands. The constant of p drops out.
    Derived in :doc:`/book/beyond`.

    Parameters
    ----------
    z : Tensor [*batch, n, d]
        Reparameterised samples of q. With batch axes the gradient is that of the sum over the entries.
    log_prob : callable
        Differentiable function of points [*batch, n, d] that returns :math:`\ln p` up to a constant, [*batch, n]. If
        it has parameters that require a gradient they get that of :math:`-E \ln p(z)`, which is that of the divergence
        only where p is normalised.
    estimator : ScoreEstimator or str, optional
        How to estimate the score of z: an estimator, its name, or None for the default.
    reference : Tensor [*batch, m, d], optional
        Further samples of z at the same parameters, that only the score is fitted to, as in `entropy_surrogate`.

    Returns
    -------
    Tensor []
        Only its gradient means anything: do not log its value as a divergence.

    Raises
    ------
    TypeError, ValueError
        If `z` is not a finite float32 or float64 tensor of at least two differing samples, `log_prob` is not callable
        or does not return a finite floating-point tensor [*batch, n], `reference` does not match `z`, or the estimator
        is unknown.
    """
    estimator = as_estimator(estimator)
    check_samples(z, "z")
    n, (fitted,) = _with_reference(reference, z=z)
    check_spread(fitted, "z")
    if not callable(log_prob):
        raise TypeError(f"log_prob: expected a function of points [*batch, n, d], got {type(log_prob).__name__}")
    log_p = log_prob(z)
    check_log_prob(log_p, z)
    return -_entropy(estimator, n, fitted) - log_p.mean(-1).sum()


def _with_reference(
    reference: Tensor | tuple[Tensor, ...] | None, **variables: Float[Tensor, "*batch n _"]
) -> tuple[int, list[Float[Tensor, "*batch n+m _"]]]:
    """The number n of samples, and the variables with those of the reference, held fixed, after their own."""
    samples = list(variables.values())
    n = samples[0].shape[-2]
    if reference is None:
        return n, samples
    further = reference if isinstance(reference, tuple | list) else (reference,)
    wanted = f"reference: expected further samples of ({', '.join(variables)}), "
    if len(further) != len(variables):
        raise TypeError(f"{wanted}a tuple of {len(variables)} tensors, got {type(reference).__name__}")
    for more, (name, variable) in zip(further, variables.items(), strict=True):
        check_points(more, variable, f"reference for {name}", name)
    if len({more.shape[-2] for more in further}) > 1:
        raise ValueError(f"{wanted}as many of each, got shapes {', '.join(str(tuple(more.shape)) for more in further)}")
    return n, [torch.cat([own, more.detach()], dim=-2) for own, more in zip(samples, further, strict=True)]


# In what follows the first n samples are the batch, and those after them the reference.


def _entropy(estimator: ScoreEstimator, n: int, *variables: Float[Tensor, "*batch n+m _"]) -> Float[Tensor, ""]:
    """EGE surrogate of the variables' joint entropy; zero, and no score fitted, where none requires a gradient."""
    z = torch.cat(variables, dim=-1)
    if not _needs_gradient(z):
        return z.new_zeros(())
    return _contract(-_score_at(estimator, n, z), n, z)


def _needs_gradient(z: Tensor) -> bool:
    """Whether a derivative may be asked for: in reverse mode, or, where there is a tangent, in forward mode."""
    return z.requires_grad or forward_ad.unpack_dual(z).tangent is not None


def _score_at(estimator: ScoreEstimator, n: int, z: Float[Tensor, "*batch n+m d"]) -> Float[Tensor, "*batch n d"]:
    """Score fitted to all samples, at the batch."""

    def at_batch(fixed: Tensor) -> Tensor:
        if isinstance(estimator, Adaptive):  # its score at its own samples is for gradients
            return estimator.at_samples(fixed)[..., :n, :]
        batch = fixed if fixed.shape[-2] == n else fixed[..., :n, :]  # the same tensor is checked once
        return estimator.fit(fixed)(batch)

    return _held_fixed(estimator, at_batch, z)


def _held_fixed(
    estimator: ScoreEstimator, function: Callable, *variables: Float[Tensor, "*batch n+m _"]
) -> Tensor | tuple[Tensor, ...]:
    """What the function returns for copies without gradient or tangent, outside inference mode and autocast."""
    if not isinstance(estimator, tuple(ESTIMATORS.values())):
        settle_checks()  # somebody's own estimator, which may have a state, sees checked values only
    # Gram matrices do not survive half precision, and a network is not trained in inference mode.
    with outside_inference_mode(), torch.autocast(variables[0].device.type, enabled=False):
        return function(*(variable.detach().clone() for variable in variables))


def _information(
    estimator: ScoreEstimator, n: int, x: Float[Tensor, "*batch n+m p"], z: Float[Tensor, "*batch n+m q"]
) -> Float[Tensor, ""]:
    """MIGE surrogate of I(x; z); zero, and no score fitted, where neither requires a gradient."""
    if not (_needs_gradient(x) or _needs_gradient(z)):
        return z.new_zeros(())
    if isinstance(estimator, PairScoreEstimator):
        needed = _needs_gradient(x), _needs_gradient(z)
        fit_pair = estimator.fit_pair
        if isinstance(estimator, Adaptive):  # a variable without a gradient, such as labels, need have no density
            fit_pair = partial(fit_pair, wanted=needed)
        differences = _held_fixed(estimator, fit_pair, x, z)
        parts = [_contract(d[..., :n, :], n, v) for d, v, need in zip(differences, (x, z), needed, strict=True) if need]
        return sum(parts, z.new_zeros(()))
    return _entropy(estimator, n, x) + _entropy(estimator, n, z) - _entropy(estimator, n, x, z)


def _information_of_halves(
    estimator: PairScoreEstimator, n: int, z: Float[Tensor, "*batch n+m d"], at: int = 0
) -> Float[Tensor, ""]:
    """Surrogate of the total correlation: I of the halves of the coordinates from `at` on, and so on within each."""
    dim = z.shape[-1]
    if dim == 1:
        return z.new_zeros(())
    first, second = z.split([dim // 2, dim - dim // 2], dim=-1)
    within = _information_of_halves(estimator, n, first, at)
    within = within + _information_of_halves(estimator, n, second, at + dim // 2)
    if isinstance(estimator, DenoisingScore) and estimator.state is not None:  # its networks are of one pair each
        estimator = replace(estimator, state=estimator.state.part((at, dim)))
    return _information(estimator, n, first, second) + within


def _contract(score: Float[Tensor, "*batch n d"], n: int, z: Float[Tensor, "*batch n+m d"]) -> Float[Tensor, ""]:
    """Mean over the batch's samples and sum over its entries of score . z, with the score held fixed."""
    return (score.detach() * z[..., :n, :]).sum(-1).mean(-1).sum()
