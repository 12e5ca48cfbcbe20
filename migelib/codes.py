r"""Codes with a known conditional, :math:`q(z \mid x_i) = N(\mu_i, \mathrm{diag}\, \sigma_i^2)`, and their information.

A stochastic encoder that is reparameterised, :math:`z = \mu(x) + \sigma(x)\, \epsilon`, has a conditional density in
closed form. Then :math:`H(z \mid x)` is exact, and only the marginal q(z) is unknown.
A code may have batch axes: measures are then one a batch entry, and the gradient of a surrogate is that of their sum.
Derived in :doc:`/book/bottleneck`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps

import torch
from jaxtyping import Float
from torch import Tensor

from .scores import ScoreEstimator
from .surrogates import entropy_surrogate, zero_valued
from .validation import check_precision


def _without_autocast(function: Callable) -> Callable:
    """Squared distances and covariances do not survive half precision."""

    @wraps(function)
    def guarded(code: GaussianCode, *args: object, **kwargs: object) -> Tensor:
        with torch.autocast(code.mean.device.type, enabled=False):
            return function(code, *args, **kwargs)

    return guarded


@dataclass(frozen=True)
class GaussianCode:
    r"""A batch of conditionals of a stochastic encoder, or several batches that have nothing to do with each other.

    Parameters
    ----------
    mean, scale : Tensor [*batch, n, d]
        :math:`\mu_i` and :math:`\sigma_i > 0`, differentiable in the encoder.

    Raises
    ------
    TypeError
        If they are not tensors of one dtype, float32 or float64.
    ValueError
        If the shapes differ, are not [*batch, n, d], or a scale is not positive.
    """

    mean: Float[Tensor, "*batch n d"]
    scale: Float[Tensor, "*batch n d"]

    def __post_init__(self) -> None:
        check_precision(self.mean, "mean")
        check_precision(self.scale, "scale")
        if self.mean.dtype != self.scale.dtype:
            raise TypeError(f"mean and scale: expected one dtype, got {self.mean.dtype} and {self.scale.dtype}")
        if self.mean.ndim < 2 or self.mean.shape != self.scale.shape:
            raise ValueError(
                "mean and scale: expected one shape [*batch, n, d], "
                f"got {tuple(self.mean.shape)} and {tuple(self.scale.shape)}"
            )
        if not bool((self.scale > 0).all()):
            raise ValueError("scale: expected positive values")

    def detach(self) -> GaussianCode:
        """Return this code without gradients."""
        return self._with(self.mean.detach(), self.scale.detach())

    def shifted(self, offset: Float[Tensor, "*batch n d"]) -> GaussianCode:
        """Return this code with an offset added to its means."""
        return self._with(self.mean + offset, self.scale)

    @classmethod
    def _with(cls, mean: Tensor, scale: Tensor) -> GaussianCode:
        """A code whose scales were checked before: no check, for which the host would wait for the device."""
        code = object.__new__(cls)
        code.__dict__.update(mean=mean, scale=scale)
        return code

    def sample(self, generator: torch.Generator) -> Float[Tensor, "*batch n d"]:
        """A sample of each conditional, differentiable, with noise from the generator."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=generator.device)
        return self.reparameterised(noise.to(self.mean.device))

    def reparameterised(self, noise: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        r"""The sample :math:`\mu_i + \sigma_i \epsilon_i` of each conditional, from standard normal noise."""
        return self.mean + self.scale * noise

    def conditional_entropy(self) -> Float[Tensor, "*batch"]:
        r""":math:`H(z \mid x)`, in nats; exact for the batch, and so is its gradient."""
        return self.scale.log().sum(-1).mean(-1) + 0.5 * self.mean.shape[-1] * math.log(2 * math.pi * math.e)

    def rate(self) -> Float[Tensor, "*batch"]:
        r"""Rate of the variational bottleneck, :math:`E\, \mathrm{KL}(q(z \mid x) \,\|\, N(0, I))`, in nats.

        It is :math:`I(x; z) + \mathrm{KL}(q(z) \,\|\, N(0, I))` [Alemi et al., ICLR 2017].
        """
        squares = self.mean.square() + self.scale.square()
        return (0.5 * (squares - 1) - self.scale.log()).sum(-1).mean(-1)

    @_without_autocast
    def log_conditional(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        r"""Matrix of :math:`\ln q(z_j \mid x_i)` at (i, j)."""
        offset = self.mean.mean(
            -2, keepdim=True
        ).detach()  # distances do not change; the expanded square loses fewer digits
        mean, points = self.mean - offset, points - offset
        precision = self.scale.square().reciprocal()
        squares = precision @ points.square().mT - 2 * (precision * mean) @ points.mT
        squares = squares + (precision * mean.square()).sum(-1, keepdim=True)
        log_scale = self.scale.log().sum(-1, keepdim=True)
        return -0.5 * squares.clamp_min(0) - log_scale - 0.5 * self.mean.shape[-1] * math.log(2 * math.pi)

    @_without_autocast
    def pairwise_kl(self) -> Float[Tensor, "*batch n n"]:
        r"""Matrix of :math:`\mathrm{KL}(q(z \mid x_i) \,\|\, q(z \mid x_j))` at (i, j), in nats."""
        mean = self.mean - self.mean.mean(-2, keepdim=True).detach()
        precision = self.scale.square().reciprocal()
        squares = (mean.square() + self.scale.square()) @ precision.mT - 2 * mean @ (precision * mean).mT
        squares = squares + (precision * mean.square()).sum(-1)[..., None, :]
        log_scale = self.scale.log().sum(-1)
        kl = 0.5 * (squares - self.mean.shape[-1]) + log_scale[..., None, :] - log_scale[..., None]
        return kl.masked_fill(_diagonal(kl), 0).clamp_min(0)

    @_without_autocast
    def mixture_score(
        self, points: Float[Tensor, "*batch m d"], leave_out: bool = False
    ) -> Float[Tensor, "*batch m d"]:
        r"""Score of the batch's mixture :math:`\frac1n \sum_i q(z \mid x_i)` at points, held fixed.

        A kernel density estimate whose kernels are known.

        Parameters
        ----------
        points : Tensor [*batch, m, d]
            Where to evaluate.
        leave_out : bool
            Leave conditional j out at point j, m = n: that which the point was drawn from.

        Raises
        ------
        ValueError
            If the only conditional is to be left out.
        """
        if leave_out:
            self._check_others()
        code, points = self.detach(), points.detach()
        log_terms = code.log_conditional(points)
        if leave_out:
            log_terms = log_terms.masked_fill(_diagonal(log_terms), -torch.inf)
        weights = torch.softmax(log_terms, dim=-2).mT
        precision = code.scale.square().reciprocal()
        offset = code.mean.mean(-2, keepdim=True)
        return weights @ (precision * (code.mean - offset)) - (weights @ precision) * (points - offset)

    def _check_others(self) -> None:
        n = self.mean.shape[-2]
        if n < 2:
            raise ValueError(f"code: expected at least two conditionals, as one is left out, got {n}")

    @_without_autocast
    def gaussian_surrogate(self, moments: CodeMoments | None = None) -> Float[Tensor, ""]:
        r"""Scalar whose gradient is that of I(x; z) with the score of a Gaussian that has the code's covariance.

        The covariance is that of the means plus the mean of the noise's; so it is regular for any n. The score being
        affine, the expectation over the noise is exact and no sample is needed. NaN where the covariance is not
        positive definite in double precision.

        Parameters
        ----------
        moments : CodeMoments, optional
            Of past codes; by default those of this batch.
        """
        moments = CodeMoments.of(self) if moments is None else moments
        precision = _inverse(moments.covariance(), self.mean)
        return _affine_surrogate(self, self.mean - moments.mean[..., None, :].to(self.mean), precision)

    def gaussian_information(self) -> Float[Tensor, "*batch"]:
        r"""Information if q(z) were Gaussian, :math:`\frac12 \ln\det\Sigma - E \sum_k \ln \sigma_k(x)`, in nats.

        With the true covariance an upper bound, since the Gaussian has the largest entropy; from n samples of the
        means it is biased downwards.
        """
        log_det = torch.linalg.slogdet(CodeMoments.of(self).covariance()).logabsdet.to(self.mean)
        return 0.5 * log_det - self.scale.log().sum(-1).mean(-1)


@dataclass(frozen=True)
class CodeMoments:
    r"""Mean and covariance of q(z), from the conditionals of one batch or of many.

    Attributes
    ----------
    mean : Tensor [*batch, d]
        Of the means.
    second : Tensor [*batch, d, d]
        Mean of :math:`\mu_i \mu_i^\top`.
    noise : Tensor [*batch, d]
        Mean of :math:`\sigma_i^2`.
    """

    mean: Float[Tensor, "*batch d"]
    second: Float[Tensor, "*batch d d"]
    noise: Float[Tensor, "*batch d"]

    @classmethod
    def of(cls, code: GaussianCode) -> CodeMoments:
        """CodeMoments of one batch, held fixed, in float64: the covariance is a difference of second moments."""
        mean, scale = code.mean.detach().double(), code.scale.detach().double()
        return cls(mean.mean(-2), mean.mT @ mean / mean.shape[-2], scale.square().mean(-2))

    def updated(self, new: CodeMoments, decay: float) -> CodeMoments:
        """Moments of a mixture: the past, this, with weight `decay`, and the new ones with the rest."""
        return CodeMoments(
            torch.lerp(self.mean, new.mean, 1 - decay),
            torch.lerp(self.second, new.second, 1 - decay),
            torch.lerp(self.noise, new.noise, 1 - decay),
        )

    def covariance(self) -> Float[Tensor, "*batch d d"]:
        """Of z: that of the means plus the mean of the noise's."""
        return self.second - self.mean[..., None] * self.mean[..., None, :] + torch.diag_embed(self.noise)


def code_information_surrogate(
    code: GaussianCode,
    z: Float[Tensor, "*batch n d"],
    estimator: ScoreEstimator | str | None = None,
    *,
    reference: Float[Tensor, "*batch m d"] | None = None,
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of :math:`I(x; z) = H(z) - H(z \mid x)`: the first by EGE, the other exact.

    Parameters
    ----------
    code : GaussianCode
        The conditionals.
    z : Tensor [*batch, n, d]
        Reparameterised samples of them. With batch axes the gradient is that of the sum over the entries.
    estimator : ScoreEstimator or str, optional
        How to estimate the score of z (see `scores.as_estimator`).
    reference : Tensor [*batch, m, d], optional
        Further samples, of other conditionals too, that only the score is fitted to (see `entropy_surrogate`).

    Returns
    -------
    Tensor []
        Zero; only its gradient means anything. `information_bracket` has values.
    """
    return entropy_surrogate(z, estimator, reference=reference) - zero_valued(code.conditional_entropy()).sum()


def mixture_information_surrogate(
    code: GaussianCode, z: Float[Tensor, "*batch n d"], leave_out: bool = False
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient estimates that of I(x; z), with the score of the batch's own mixture for that of q(z).

    Both scores act along the sample,
    :math:`\frac1n \sum_i (\nabla_z \ln q(z_i \mid x_i) - \hat s(z_i)) \cdot z_i`: where one conditional dominates the
    mixture at its own sample the two cancel, whereas the exact H(z | x) would leave the noise of the second. That is
    the case as soon as I(x; z) exceeds :math:`\ln n`, and then there is no gradient, or, with that conditional left
    out, a pull towards the nearest other one.
    """
    fixed = code.detach()
    own = (fixed.mean - z.detach()) / fixed.scale.square()
    return ((own - code.mixture_score(z, leave_out)) * zero_valued(z)).sum(-1).mean(-1).sum()


@dataclass(frozen=True)
class Centres:
    r"""Mixture of Gaussians with a common covariance for q(z).

    Attributes
    ----------
    means : Tensor [*batch, c, d]
        Of the components.
    weights : Tensor [*batch, c]
        Of the components, summing to one.
    within : CodeMoments
        CodeMoments of the codes' deviations from the means of their components.
    """

    means: Float[Tensor, "*batch c d"]
    weights: Float[Tensor, "*batch c"]
    within: CodeMoments


@_without_autocast
def mixture_of_classes_surrogate(
    code: GaussianCode, z: Float[Tensor, "*batch n d"], centres: Centres
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient is that of I(x; z) with the score of a mixture of Gaussians of a common covariance.

    Given the responsibilities of the components at the sample, the score is affine and its expectation over the noise
    exact; z serves for the responsibilities only. NaN where the covariance is not positive definite in double
    precision.
    """
    covariance = centres.within.second + torch.diag_embed(centres.within.noise)
    precision = _inverse(covariance, code.mean)
    means = centres.means.to(code.mean)
    pulled = means @ precision
    log_weights = centres.weights.clamp_min(1e-9).log().to(code.mean)
    log_odds = z.detach() @ pulled.mT + (log_weights - 0.5 * (pulled * means).sum(-1))[..., None, :]
    return _affine_surrogate(code, code.mean - log_odds.softmax(-1) @ means, precision)


def _affine_surrogate(
    code: GaussianCode, centred: Float[Tensor, "*batch n d"], precision: Float[Tensor, "*batch d d"]
) -> Float[Tensor, ""]:
    """Surrogate of I(x; z) with the score -precision (z - centre), its expectation over the noise taken exactly."""
    variances = code.scale.square() * precision.diagonal(dim1=-2, dim2=-1)[..., None, :]
    quadratic = ((centred @ precision) * centred + variances).sum(-1)
    return zero_valued(0.5 * quadratic.mean(-1) - code.conditional_entropy()).sum()


def pairwise_information(code: GaussianCode) -> Float[Tensor, "*batch"]:
    r"""Kolchinsky and Tracey's bound, :math:`-\frac1n \sum_i \ln \frac1n \sum_j e^{-\mathrm{KL}(q_i \| q_j)}`, in nats.

    An upper bound on the information between the index of the batch's input and z, which is at most :math:`\ln n`; the
    penalty of the nonlinear bottleneck [Kolchinsky, Tracey & Wolpert, Entropy 21, 2019]. Differentiable.
    """
    kl = code.pairwise_kl()
    return math.log(kl.shape[-1]) - torch.logsumexp(-kl, dim=-1).mean(-1)


@torch.no_grad()
def information_bracket(
    code: GaussianCode, generator: torch.Generator
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    r"""Two estimates of I(x; z), in nats, from n conditionals, that bracket it in expectation.

    The mean of :math:`\ln q(z_i \mid x_i) / \hat q(z_i)` with the mixture of all n conditionals for :math:`\hat q` is
    biased downwards, and cannot exceed :math:`\ln n`; with the mixture of the other n - 1 it is biased upwards
    [Poole et al., ICML 2019, sec. 2].

    Raises
    ------
    ValueError
        If there is one conditional only.
    """
    code._check_others()
    code = GaussianCode(code.mean.double(), code.scale.double())  # squares of large distances cancel
    z = code.sample(generator)
    n = z.shape[-2]
    starts = range(0, n, 1024)
    blocks = [code.log_conditional(block) for block in z.split(1024, dim=-2)]
    own = _joined(block.diagonal(-start, -2, -1) for start, block in zip(starts, blocks, strict=True))
    lower = own - _joined(block.logsumexp(-2) for block in blocks) + math.log(n)
    others = (
        block.masked_fill(_diagonal(block, start), -torch.inf) for start, block in zip(starts, blocks, strict=True)
    )
    upper = own - _joined(block.logsumexp(-2) for block in others) + math.log(n - 1)
    return lower.mean(-1), upper.mean(-1)


def _joined(blocks: Iterable[Float[Tensor, "*batch b"]]) -> Float[Tensor, "*batch n"]:
    return torch.cat(list(blocks), dim=-1)


def _inverse(covariance: Float[Tensor, "*batch d d"], like: Tensor) -> Float[Tensor, "*batch d d"]:
    """Inverse by Cholesky, computed in float64: the noise of a trained code may be far smaller than its signal.

    NaN where there is none: an exception would make the host wait for the device in every step of a training.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance.double())
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.solve_triangular(factor, identity, upper=False)  # `cholesky_inverse` would wait as well
    return (root.mT @ root).masked_fill((failed != 0)[..., None, None], torch.nan).to(like)


def _diagonal(matrix: Float[Tensor, "*batch n m"], start: int = 0) -> Tensor:
    rows = torch.arange(matrix.shape[-2], device=matrix.device)[:, None]
    return rows == torch.arange(matrix.shape[-1], device=matrix.device) + start
