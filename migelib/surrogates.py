r"""Surrogates: scalars whose *gradients* estimate those of information measures.

A surrogate's value is zero by construction, so that a logged loss stays what it was; only its first derivatives mean
anything (`migelib.entropy` and `migelib.mutual_information` have values). Each has the form
:math:`\frac1n \sum_i s_i \cdot (z_i - \bar z_i)` with the estimated score :math:`s_i` and the copy
:math:`\bar z_i = z_i` held fixed, so that back-propagation gives
:math:`\frac1n \sum_i s_i \cdot \partial z_i / \partial \theta`, and forward mode the same along a tangent.

The score is fitted to the batch, and with `reference=` to further samples of the same distribution as well, which no
gradient flows through; the mean is over the batch alone.

A second derivative is wrong, as the score's own is not in it. `torch.compile` leaves a surrogate out of its graph.
Where no gradient is recorded, as in inference mode, nothing is fitted. `torch.func.vmap` raises; the batch axes are
there instead.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import wraps

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from .kernels import unit
from .labels import ClassModel, check_labels, is_discrete, nested
from .scores import ESTIMATORS, PairScoreEstimator, ScoreEstimator, as_estimator
from .scores.base import difference_at_pair, outside_inference_mode, part_of
from .validation import (
    check_log_prob,
    check_nonnegative,
    check_pair,
    check_points,
    check_samples,
    check_spread,
    fused_checks,
    settle_checks,
)


class NoGradientWarning(UserWarning):
    """Nothing that a surrogate depends on requires a gradient, although gradients are being recorded."""


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
    spread: float = 0.0,
    generator: torch.Generator | None = None,
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
    spread : float
        Standard deviations, of each coordinate over the batch, of Gaussian noise that is added to what requires a
        gradient; see the notes.
    generator : torch.Generator, optional
        For that noise.

    Returns
    -------
    Tensor []
        Zero; only its gradient means anything. `migelib.entropy` has a value.

    Raises
    ------
    TypeError, ValueError
        If `z` is not a finite float32 or float64 tensor of at least two differing samples, `reference` does not match
        it in batch axes, coordinates, type or device or is not finite, `spread` is negative, or the estimator is
        unknown.

    Warns
    -----
    NoGradientWarning
        Where gradients are recorded and `z` requires none, as samples that are not reparameterised do not.

    Notes
    -----
    Every axis before the last two is a batch axis: a feature map [n, c, h, w] is n c batches of h samples. Samples of
    images are ``images.flatten(1)``.

    With ever more reference samples, and an estimator that is consistent, the gradient becomes that with the exact
    score, whose only error is the noise of the mean over the batch. That is a gain where the estimated score is what
    errs: a kernel estimator in many dimensions, or an information that is small, as when it is minimised. It is none,
    and can be a loss, where the errors of a score fitted to the batch alone cancel the noise of the mean, as those of
    `GaussianScore` do in an entropy, and those of the default in a large information.

    With `spread` the measure is that of a noisy variable, :math:`z + s\, \mathrm{diag}(\hat\sigma)\, \epsilon`, with
    the batch's deviations :math:`\hat\sigma` held fixed; a reference gets noise as well. It is finite and smooth where
    z has atoms, lies on a manifold, or is a function of x. An information of the noisy variable is at most that of the
    variable, and zero only where that is [Yu, Liu, Hernandez-Lobato & OuYang, arXiv 2610.10021, 2026, prop. 3.2].

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
    n, (z,) = _prepared(reference, spread, generator, z=z)
    check_spread(z, "z")
    _warn_unless_needed(z)
    return _entropy(estimator, n, "z", z)


@outside_graphs
@fused_checks()
def mutual_information_surrogate(
    x: Float[Tensor, "*batch n p"],
    z: Float[Tensor, "*batch n q"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: tuple[Float[Tensor, "*batch m p"], Float[Tensor, "*batch m q"]] | None = None,
    spread: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the mutual information :math:`I(x; z)`, in nats (MIGE).

    :math:`\nabla I = \nabla H(x) + \nabla H(z) - \nabla H(x, z)`, each by EGE; a term that depends on no parameter is
    not computed [Wen et al., ICLR 2020, eqs. 8-11]. Gradients flow through every argument that requires them.
    Maximise information by ``loss = task_loss - beta * mutual_information_surrogate(x, z)``.
    Derived in :doc:`/book/mutual-information-gradients`.

    Parameters
    ----------
    x, z : Tensor [*batch, n, p] and [*batch, n, q]
        Paired samples. With batch axes the gradient is that of the sum over the entries; every axis before the last two
        is one, so that images [n, c, h, w] are to be passed as ``images.flatten(1)``. One of the two may be discrete: a
        tensor [*batch, n] of integers or bool, see the notes.
    estimator : ScoreEstimator or str, optional
        How to estimate the scores of (x, z), x and z: an estimator, its name, or None for the default. One that has
        a method `fit_pair(x, z)` returns both differences of joint and marginal score at once, from one joint model;
        the others are fitted three times.
    reference : tuple of Tensor [*batch, m, p] and [*batch, m, q], optional
        Further paired samples (x, z) at the same parameters, that only the scores are fitted to, together with `x` and
        `z`; the means are over `x` and `z`, and the reference gets no gradient. When to use it: see the notes of
        `entropy_surrogate`.
    spread : float
        Standard deviations, of each coordinate over the batch, of Gaussian noise that is added to what requires a
        gradient; see the notes of `entropy_surrogate`.
    generator : torch.Generator, optional
        For that noise.

    Returns
    -------
    Tensor []
        Zero; only its gradient means anything, and there is none where neither `x` nor `z` requires one.
        `migelib.mutual_information` has a value.

    Raises
    ------
    TypeError, ValueError
        If `x` or `z` is not a finite float32 or float64 tensor of at least two differing samples, if their batch axes,
        numbers of samples, types or devices differ, both are discrete, `reference` does not match them, `spread` is
        negative, or the estimator is unknown.

    Warns
    -----
    NoGradientWarning
        Where gradients are recorded and neither variable requires one.

    Notes
    -----
    *Scale.* The information does not depend on the units of x and z, and neither does what the default and
    `GaussianScore` estimate. A kernel estimator has one width for (x, z): where one variable is much larger than the
    other, the smaller drops out of the joint score, and the estimate has any value. Bring both to one scale, as the
    second example does.

    *Labels.* With a discrete variable y, :math:`I(y; z) = H(z) - \sum_c p(c)\, H(z \mid y = c)`, with a gradient in z.
    The classes are modelled together (`migelib.labels`): each has its own mean and a covariance drawn towards the
    common one, the estimator is fitted to the deviations of all classes, and H(z) is the entropy of the same model, so
    that errors cancel. A class of 64 samples and more, and of eight a coordinate, may have a shape of its own. A sample
    that is alone in its class gets no gradient; neither does any where there is one class only, or where none has two
    samples. Classes that do not overlap have no gradient left.

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

    A kernel estimator in coordinates of one scale gives the same whatever the units of x:

    >>> whitened = Transformed(Whitening(), SSGE())
    >>> z = codes(x)
    >>> def gradient(scale):
    ...     loss = mutual_information_surrogate(scale * x, z, whitened)
    ...     return torch.autograd.grad(loss, z, retain_graph=True)[0]
    >>> first, same = gradient(1), gradient(100)
    >>> float((first - same).norm() / first.norm()) < 0.01  # without whitening 1.2
    True

    Labels as integers:

    >>> labels = (x[:, 0] > 0).long()
    >>> mutual_information_surrogate(labels, codes(x)).backward()
    """
    estimator = as_estimator(estimator)
    check_variables(x=x, z=z)
    n, (x, z) = _prepared(reference, spread, generator, x=x, z=z)
    _check_spreads(x=x, z=z)
    _warn_unless_needed(x, z)
    if is_discrete(x):
        return _information_of_labels(estimator, n, "z|x", x, z)
    if is_discrete(z):
        return _information_of_labels(estimator, n, "x|z", z, x)
    return _information(estimator, n, "x,z", x, z)


@outside_graphs
@fused_checks()
def conditional_entropy_surrogate(
    z: Float[Tensor, "*batch n q"],
    given: Float[Tensor, "*batch n r"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: tuple[Float[Tensor, "*batch m q"], Float[Tensor, "*batch m r"]] | None = None,
    spread: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the conditional entropy :math:`H(z \mid w)` of z given w, in nats.

    :math:`\nabla H(z \mid w) = \nabla H(z, w) - \nabla H(w)`, each by EGE [Wen et al., Knowledge-Based Systems 224,
    2021]. Gradients flow through both arguments where they require them.
    Derived in :doc:`/book/beyond`.

    Parameters
    ----------
    z, given : Tensor [*batch, n, q] and [*batch, n, r]
        Paired samples of z and w. With batch axes the gradient is that of the sum over the entries. `given` may be
        discrete: a tensor [*batch, n] of integers or bool, see the notes of `mutual_information_surrogate`.
    estimator : ScoreEstimator or str, optional
        How to estimate the scores: an estimator, its name, or None for the default. One that has a method `fit_pair`
        is used for :math:`H(z) - I(z; w)`, which is the same and leaves it to fit z and w in their own coordinates.
    reference : tuple of Tensor [*batch, m, q] and [*batch, m, r], optional
        Further paired samples (z, w) at the same parameters, that only the scores are fitted to, as in
        `entropy_surrogate`.
    spread : float
        Standard deviations, of each coordinate over the batch, of Gaussian noise that is added to what requires a
        gradient; see the notes of `entropy_surrogate`.
    generator : torch.Generator, optional
        For that noise.

    Returns
    -------
    Tensor []
        Zero; only its gradient means anything, and there is none where neither `z` nor `given` requires one.

    Raises
    ------
    TypeError, ValueError
        If `z` or `given` is not a finite float32 or float64 tensor of at least two differing samples, if their batch
        axes, numbers of samples, types or devices differ, `reference` does not match them, or the estimator is unknown.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> given, noise = torch.randn(2, 200, 1, generator=generator)
    >>> scale = torch.tensor(2.0, requires_grad=True)
    >>> z = given + scale * noise
    >>> conditional_entropy_surrogate(z, given, GaussianScore()).backward()
    >>> round(float(scale.grad), 2)  # H(z | w) is ln(scale) and a constant
    0.5
    """
    estimator = as_estimator(estimator)
    check_variables(z=z, given=given)
    n, (z, given) = _prepared(reference, spread, generator, z=z, given=given)
    _check_spreads(z=z, given=given)
    _warn_unless_needed(z, given)
    if is_discrete(given):
        return _entropy_given_labels(estimator, n, "z|given", given, z)
    if isinstance(estimator, PairScoreEstimator):
        return _entropy(estimator, n, "z", z) - _information(estimator, n, "z,given", z, given)
    return _entropy(estimator, n, "z,given", z, given) - _entropy(estimator, n, "given", given)


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
    spread: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of the conditional mutual information :math:`I(x; z \mid w)`, in nats.

    :math:`I(x; z \mid w) = H(x, w) + H(z, w) - H(x, z, w) - H(w)`, each by EGE, or by the chain rule
    :math:`I(x; z \mid w) = I(x; (z, w)) - I(x; w)` [Cover & Thomas, Elements of Information Theory, 2006, sec. 2.5].
    A term that depends on no parameter is not computed. Gradients flow through every argument that requires them.
    Derived in :doc:`/book/beyond`.

    Parameters
    ----------
    x, z, given : Tensor [*batch, n, p], [*batch, n, q] and [*batch, n, r]
        Paired samples of x, z and w. With batch axes the gradient is that of the sum over the entries. `given`, and one
        of `x` and `z`, may be discrete: a tensor [*batch, n] of integers or bool, see the notes of
        `mutual_information_surrogate`.
    estimator : ScoreEstimator or str, optional
        How to estimate the scores: an estimator, its name, or None for the default. One that has a method `fit_pair`
        is used for the chain rule; the others are fitted to the four sets of variables.
    reference : tuple of Tensor [*batch, m, p], [*batch, m, q] and [*batch, m, r], optional
        Further samples (x, z, w) at the same parameters, that only the scores are fitted to, as in
        `entropy_surrogate`.
    spread : float
        Standard deviations, of each coordinate over the batch, of Gaussian noise that is added to what requires a
        gradient; see the notes of `entropy_surrogate`.
    generator : torch.Generator, optional
        For that noise.

    Returns
    -------
    Tensor []
        Zero; only its gradient means anything, and there is none where none of `x`, `z` and `given` requires one.

    Raises
    ------
    TypeError, ValueError
        If one of the three is not a finite float32 or float64 tensor of at least two differing samples, if their batch
        axes, numbers of samples, types or devices differ, both `x` and `z` are discrete, `reference` does not match
        them, or the estimator is unknown.

    Examples
    --------
    What a code must not know of an attribute, beyond what the class says of it:

    >>> generator = torch.Generator().manual_seed(0)
    >>> attribute, label = torch.randint(0, 2, (2, 200), generator=generator)
    >>> noise = torch.randn(200, 2, generator=generator)
    >>> z = torch.stack([attribute, label], -1) + noise
    >>> z.requires_grad_()  # doctest: +ELLIPSIS
    tensor(...
    >>> conditional_mutual_information_surrogate(attribute, z, label).backward()
    >>> z.grad.shape
    torch.Size([200, 2])
    """
    estimator = as_estimator(estimator)
    check_variables(x=x, z=z, given=given)
    n, (x, z, given) = _prepared(reference, spread, generator, x=x, z=z, given=given)
    _check_spreads(x=x, z=z, given=given)
    _warn_unless_needed(x, z, given)
    if is_discrete(x):
        return _conditional_information_of_labels(estimator, n, "x", x, "z", z, given)
    if is_discrete(z):
        return _conditional_information_of_labels(estimator, n, "z", z, "x", x, given)
    if is_discrete(given):
        return (
            _entropy_given_labels(estimator, n, "x|given", given, x)
            + _entropy_given_labels(estimator, n, "z|given", given, z)
            - _entropy_given_labels(estimator, n, "x,z|given", given, x, z)
        )
    if isinstance(estimator, PairScoreEstimator):
        names = "x", "z"
        if _needs_gradient(x) and not _needs_gradient(z):
            x, z, names = z, x, ("z", "x")  # then I(x; w) depends on no parameter of x
        whole = _information(estimator, n, f"{names[0]},({names[1]},given)", x, torch.cat([z, given], dim=-1))
        return whole - _information(estimator, n, f"{names[0]},given", x, given)
    return (
        _entropy(estimator, n, "x,given", x, given)
        + _entropy(estimator, n, "z,given", z, given)
        - _entropy(estimator, n, "x,z,given", x, z, given)
        - _entropy(estimator, n, "given", given)
    )


@outside_graphs
@fused_checks()
def total_correlation_surrogate(
    z: Float[Tensor, "*batch n d"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: Float[Tensor, "*batch m d"] | None = None,
    spread: float = 0.0,
    generator: torch.Generator | None = None,
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
    spread : float
        Standard deviations, of each coordinate over the batch, of Gaussian noise that is added to what requires a
        gradient; see the notes of `entropy_surrogate`.
    generator : torch.Generator, optional
        For that noise.

    Returns
    -------
    Tensor []
        Zero; only its gradient means anything, and there is none where `z` requires none.

    Raises
    ------
    TypeError, ValueError
        If `z` is not a finite float32 or float64 tensor of at least two samples, has one coordinate only or a constant
        one, `reference` does not match it, or the estimator is unknown.

    Examples
    --------
    >>> x, e = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> z = torch.stack([x, a * x + e], -1)
    >>> total_correlation_surrogate(z, GaussianScore()).backward()
    >>> round(float(a.grad), 1)  # of ln(1 + a^2) / 2
    0.5
    """
    estimator = as_estimator(estimator)
    check_samples(z, "z")
    if z.shape[-1] < 2:
        raise ValueError(f"z: expected at least two coordinates, got shape {tuple(z.shape)}")
    n, (z,) = _prepared(reference, spread, generator, z=z)
    coordinates = z.mT[..., None]  # [*batch, d, n, 1]: a batch of one-dimensional samples
    check_spread(coordinates, "z, a coordinate")
    _warn_unless_needed(z)
    if isinstance(estimator, PairScoreEstimator):
        return _information_of_halves(estimator, n, z)
    return _entropy(estimator, n, "coordinates", coordinates) - _entropy(estimator, n, "z", z)


@outside_graphs
@fused_checks()
def kl_surrogate(
    z: Float[Tensor, "*batch n d"],
    log_prob: Callable[[Float[Tensor, "*batch n d"]], Float[Tensor, "*batch n"]],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: Float[Tensor, "*batch m d"] | None = None,
    spread: float = 0.0,
    generator: torch.Generator | None = None,
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
    spread : float
        Standard deviations, of each coordinate over the batch, of Gaussian noise that is added to what requires a
        gradient; see the notes of `entropy_surrogate`.
    generator : torch.Generator, optional
        For that noise.

    Returns
    -------
    Tensor []
        Zero; only its gradient means anything.

    Raises
    ------
    TypeError, ValueError
        If `z` is not a finite float32 or float64 tensor of at least two differing samples, `log_prob` is not callable
        or does not return a finite floating-point tensor [*batch, n], `reference` does not match `z`, or the estimator
        is unknown.

    Examples
    --------
    >>> noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> scale = torch.tensor(2.0, requires_grad=True)
    >>> def log_prob(z):
    ...     return -z.square().sum(-1) / 2
    >>> kl_surrogate(scale * noise, log_prob, GaussianScore()).backward()
    >>> round(float(scale.grad))  # of scale^2 - 2 ln(scale)
    3
    """
    estimator = as_estimator(estimator)
    check_samples(z, "z")
    if not callable(log_prob):
        raise TypeError(f"log_prob: expected a function of points [*batch, n, d], got {type(log_prob).__name__}")
    n, (fitted,) = _prepared(reference, spread, generator, z=z)
    check_spread(fitted, "z")
    z = fitted[..., :n, :] if spread else z
    log_p = log_prob(z)
    check_log_prob(log_p, z)
    _warn_unless_needed(z, log_p)
    return -_entropy(estimator, n, "z", fitted) - zero_valued(log_p).mean(-1).sum()


def _check_spreads(**variables: Tensor) -> None:
    """Raise ValueError if all samples of a continuous variable are equal."""
    for name, variable in variables.items():
        if not is_discrete(variable):
            check_spread(variable, name)


def zero_valued(quantity: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The quantity less a copy that is held fixed: zero, with all of its derivatives."""
    return quantity - quantity.detach()


def check_variables(**variables: Tensor) -> None:
    """Raise unless they are paired: samples of one batch, number, type and device, and labels where they may be.

    `given` may be labels, and one of x and z, but not both.

    Raises
    ------
    TypeError, ValueError
        With the name of the variable that does not fit.
    """
    discrete = [name for name, variable in variables.items() if is_discrete(variable) and name != "given"]
    if "x" in variables and len(discrete) == 2:
        raise TypeError(
            "x and z: expected one of them continuous, got integer labels in both; their information is that of a table"
            " of counts, which no parameter moves"
        )
    like_name = "z" if "x" not in variables or discrete == ["x"] else "x"
    like = variables[like_name]
    check_samples(like, like_name)
    for name, variable in variables.items():
        if name == like_name:
            continue
        if is_discrete(variable):
            check_labels(variable, like, name, like_name)
        else:
            check_pair(like, variable, like_name, name)


def _warn_unless_needed(*variables: Tensor) -> None:
    """Warn, with the line outside of the library that called, where gradients are recorded and none is required."""
    if not torch.is_grad_enabled() or any(map(_needs_gradient, variables)):
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("migelib", "torch", "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "surrogate: nothing that it depends on requires a gradient, so that it has no effect. Expected samples that "
        "are differentiable functions of parameters, as from `.rsample()`, not `.sample()`, and not `.detach()`ed; "
        "where none is wanted, as in an evaluation, call it under torch.no_grad()",
        NoGradientWarning,
        stacklevel=level,
    )


def _prepared(
    reference: Tensor | tuple[Tensor, ...] | None,
    spread: float,
    generator: torch.Generator | None,
    **variables: Float[Tensor, "*batch n _"],
) -> tuple[int, list[Float[Tensor, "*batch n+m _"]]]:
    """The number n of samples, and the variables with those of the reference after their own, all with their noise."""
    check_nonnegative(spread, "spread")
    n, samples = _with_reference(reference, **variables)
    if spread > 0:
        samples = [_noisy(v, n, spread, generator) if _needs_gradient(v) else v for v in samples]
    return n, samples


def _noisy(
    samples: Float[Tensor, "*batch n+m d"], n: int, spread: float, generator: torch.Generator | None
) -> Float[Tensor, "*batch n+m d"]:
    """Samples plus Gaussian noise of so many standard deviations of the batch, held fixed."""
    batch = samples.detach()[..., :n, :]
    scale = unit(batch)  # the variance itself may be out of range
    deviation = (batch / scale).std(-2, correction=0, keepdim=True) * scale
    device = samples.device if generator is None else generator.device
    noise = torch.randn(samples.shape, generator=generator, dtype=samples.dtype, device=device)
    return samples + spread * deviation * noise.to(samples.device)


def _with_reference(
    reference: Tensor | tuple[Tensor, ...] | None, **variables: Float[Tensor, "*batch n _"]
) -> tuple[int, list[Float[Tensor, "*batch n+m _"]]]:
    """The number n of samples, and the variables with those of the reference, held fixed, after their own."""
    samples = list(variables.values())
    n = next(v.shape[-2] for v in samples if not is_discrete(v))
    if reference is None:
        return n, samples
    further = reference if isinstance(reference, tuple | list) else (reference,)
    wanted = f"reference: expected further samples of ({', '.join(variables)}), "
    if len(further) != len(variables):
        raise TypeError(f"{wanted}a tuple of {len(variables)} tensors, got {type(reference).__name__}")
    shapes = set()
    for more, (name, variable) in zip(further, variables.items(), strict=True):
        if is_discrete(variable):
            _check_further_labels(more, variable, f"reference for {name}", name)
            shapes.add(more.shape)
        else:
            check_points(more, variable, f"reference for {name}", name)
            shapes.add(more.shape[:-1])
    if len(shapes) > 1:
        raise ValueError(f"{wanted}as many of each, got shapes {', '.join(str(tuple(more.shape)) for more in further)}")
    return n, [
        torch.cat([own, more.detach()], dim=-1 if is_discrete(own) else -2)
        for own, more in zip(samples, further, strict=True)
    ]


def _check_further_labels(more: Tensor, labels: Int[Tensor, "*batch n"], name: str, labels_name: str) -> None:
    if not is_discrete(more):
        kind = more.dtype if isinstance(more, Tensor) else type(more).__name__
        raise TypeError(f"{name}: expected integer labels, as {labels_name} are, got {kind}")
    if more.ndim != labels.ndim or more.shape[:-1] != labels.shape[:-1] or more.device != labels.device:
        raise ValueError(
            f"{name}: expected labels [*batch, m] with the batch axes and on the device of {labels_name} "
            f"{tuple(labels.shape)}, {labels.device}, got shape {tuple(more.shape)}, {more.device}"
        )


# In what follows the first n samples are the batch, and those after them the reference. A role names a score among
# those that a surrogate needs, for an estimator that remembers them.


def _entropy(
    estimator: ScoreEstimator, n: int, role: str, *variables: Float[Tensor, "*batch n+m _"]
) -> Float[Tensor, ""]:
    """EGE surrogate of the variables' joint entropy; zero, and no score fitted, where none requires a gradient."""
    z = torch.cat(variables, dim=-1)
    if not _needs_gradient(z):
        return z.new_zeros(())
    part = part_of(estimator, role)

    def score_at_batch(fixed: Tensor) -> Tensor:
        if hasattr(part, "at_samples"):  # its score at its own samples is for gradients
            return part.at_samples(fixed)[..., :n, :]
        batch = fixed if fixed.shape[-2] == n else fixed[..., :n, :]  # the same tensor is checked once
        return part.fit(fixed)(batch)

    return _contract(-held_fixed(estimator, score_at_batch, z), n, z)


def _needs_gradient(z: Tensor) -> bool:
    """Whether a derivative may be asked for: in reverse mode, or, where there is a tangent, in forward mode."""
    if is_discrete(z):
        return False
    return (z.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(z).tangent is not None


def held_fixed(
    estimator: ScoreEstimator, function: Callable, *variables: Float[Tensor, "*batch n+m _"]
) -> Tensor | tuple[Tensor, ...]:
    """What the function returns for copies without gradient or tangent, outside inference mode and autocast."""
    if not isinstance(estimator, tuple(ESTIMATORS.values())):
        settle_checks()  # somebody's own estimator, which may have a state, sees checked values only
    # Gram matrices do not survive half precision, and a network is not trained in inference mode.
    with outside_inference_mode(), torch.autocast(variables[0].device.type, enabled=False):
        return function(*(variable.detach().clone() for variable in variables))


def _information(
    estimator: ScoreEstimator, n: int, role: str, x: Float[Tensor, "*batch n+m p"], z: Float[Tensor, "*batch n+m q"]
) -> Float[Tensor, ""]:
    """MIGE surrogate of I(x; z); zero, and no score fitted, where neither requires a gradient."""
    needed = _needs_gradient(x), _needs_gradient(z)
    if not any(needed):
        return z.new_zeros(())
    if isinstance(estimator, PairScoreEstimator):
        part = part_of(estimator, role)
        # A variable without a gradient, such as a one-hot label, need have no density.
        differences = held_fixed(estimator, lambda x, z: difference_at_pair(part, x, z, needed), x, z)
        parts = [_contract(d[..., :n, :], n, v) for d, v, need in zip(differences, (x, z), needed, strict=True) if need]
        return sum(parts, z.new_zeros(()))
    return _entropy(estimator, n, "x", x) + _entropy(estimator, n, "z", z) - _entropy(estimator, n, role, x, z)


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
    return _information(estimator, n, f"halves {at}:{at + dim}", first, second) + within


def _class_scores(
    estimator: ScoreEstimator,
    n: int,
    role: str,
    labels: Int[Tensor, "*batch n+m"],
    z: Float[Tensor, "*batch n+m d"],
    within: Int[Tensor, "*batch n+m"] | None = None,
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n d"]]:
    """Scores of z given its label, and given only the label `within` which that is; by default, given none."""

    def scores(fixed: Tensor) -> tuple[Tensor, Tensor]:
        if within is None:
            return ClassModel.fit(estimator, role, labels, fixed).scores(fixed[..., :n, :])
        pairs, group_of_pair = nested(within, labels)
        return ClassModel.fit(estimator, role, pairs, fixed).scores(fixed[..., :n, :], group_of_pair)

    return held_fixed(estimator, scores, z)


def _entropy_given_labels(
    estimator: ScoreEstimator,
    n: int,
    role: str,
    labels: Int[Tensor, "*batch n+m"],
    *variables: Float[Tensor, "*batch n+m _"],
) -> Float[Tensor, ""]:
    """EGE surrogate of H(variables | labels); zero, and nothing fitted, where none requires a gradient."""
    z = torch.cat(variables, dim=-1)
    if not _needs_gradient(z):
        return z.new_zeros(())
    conditional, _ = _class_scores(estimator, n, role, labels, z)
    return _contract(-conditional, n, z)


def _information_of_labels(
    estimator: ScoreEstimator,
    n: int,
    role: str,
    labels: Int[Tensor, "*batch n+m"],
    z: Float[Tensor, "*batch n+m d"],
    within: Int[Tensor, "*batch n+m"] | None = None,
) -> Float[Tensor, ""]:
    """MIGE surrogate of I(labels; z), or given further labels; zero, and nothing fitted, where z needs no gradient."""
    if not _needs_gradient(z):
        return z.new_zeros(())
    conditional, marginal = _class_scores(estimator, n, role, labels, z, within)
    return _contract(conditional - marginal, n, z)


def _conditional_information_of_labels(
    estimator: ScoreEstimator,
    n: int,
    name: str,
    labels: Int[Tensor, "*batch n+m"],
    z_name: str,
    z: Float[Tensor, "*batch n+m q"],
    given: Tensor,
) -> Float[Tensor, ""]:
    """MIGE surrogate of I(labels; z | given), where that is discrete too, or by the chain rule."""
    if is_discrete(given):
        return _information_of_labels(estimator, n, f"{z_name}|{name},given", labels, z, given)
    both = torch.cat([z, given], dim=-1)
    whole = _information_of_labels(estimator, n, f"{z_name},given|{name}", labels, both)
    return whole - _information_of_labels(estimator, n, f"given|{name}", labels, given)


def _contract(score: Float[Tensor, "*batch n d"], n: int, z: Float[Tensor, "*batch n+m d"]) -> Float[Tensor, ""]:
    """Mean over the batch's samples and sum over its entries of score . z, with the score held fixed; of value zero."""
    return (score.detach() * zero_valued(z[..., :n, :])).sum(-1).mean(-1).sum()
