r"""Kernel score estimators as spectral filters: Stein, Tikhonov, Landweber and the nu-method.

All solve :math:`\hat L \hat s = -\hat\zeta` in a reproducing-kernel space, where
:math:`\hat L g = \frac1n \sum_j K(\cdot, x_j)\, g(x_j)` and
:math:`\hat\zeta = \frac1n \sum_j \mathrm{div}_{x_j} K(x_j, \cdot)` come from Stein's identity, and
differ in the filter :math:`g_\lambda` that replaces the inverse of :math:`\hat L`,
:math:`\hat s = -g_\lambda(\hat L)\, \hat\zeta` [Zhou, Shi & Zhu, ICML 2020, sec. 3].
Derived in :doc:`/book/score-estimators`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import RADIAL_KERNELS, VectorKernel, power_of_two, with_width
from ..validation import (
    check_count,
    check_fraction,
    check_kernel,
    check_points,
    check_positive,
    check_samples,
    check_spread,
    fused_checks,
)
from .base import at_samples, outside_inference_mode, with_values


@dataclass(frozen=True)
class KernelScore:
    r"""What the kernel estimators' `fit` returns: :math:`\hat s(x) = a\, \hat\zeta(x) + \sum_j K(x, x_j)\, c_j`.

    Attributes
    ----------
    samples : Tensor [*batch, n, d]
        The points :math:`x_j`.
    width : Tensor [*batch]
        Kernel width.
    coefficients : Tensor [*batch, n, d]
        The vectors :math:`c_j`.
    stein_weight : float
        :math:`a`; 0 where the estimate lies in the span of the kernel's columns.
    kernel : str
        "rbf" or "imq".
    curl_free : bool
        Whether the kernel is curl-free rather than diagonal.
    dtype : torch.dtype
        Of the points and of the scores; everything is computed in the precision of `samples`.
    values : Tensor [*batch, n, d] or None
        The score at the samples as the fit leaves it; None in a copy with other coefficients.
    """

    samples: Float[Tensor, "*batch n d"]
    width: Float[Tensor, "*batch"]
    coefficients: Float[Tensor, "*batch n d"]
    stein_weight: float
    kernel: str
    curl_free: bool
    dtype: torch.dtype
    values: Float[Tensor, "*batch n d"] | None = field(default=None, init=False, repr=False, compare=False)

    @fused_checks()
    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.samples.to(self.dtype))
        if at_samples(self, points):
            return self.values.to(self.dtype, copy=True)
        kernel = self._kernel_at(points)
        value = kernel.apply(self.coefficients)
        return (value + self.stein_weight * kernel.stein() if self.stein_weight else value).to(self.dtype)

    def divergence(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Divergence of the score at points [*batch, m, d], in closed form."""
        check_points(points, self.samples.to(self.dtype))
        kernel = self._kernel_at(points)
        value = kernel.divergence(self.coefficients)
        return (value + self.stein_weight * kernel.stein_divergence() if self.stein_weight else value).to(self.dtype)

    def _kernel_at(self, points: Tensor) -> VectorKernel:
        return VectorKernel(points.to(self.samples), self.samples, self.width, self.kernel, self.curl_free)


class KernelEstimator:
    """What the kernel estimators share: argument checks, width, and the residual form. Subclasses give `_solve`."""

    kernel: str
    width: float | None
    median_factor: float
    curl_free: bool = False

    def __post_init__(self) -> None:
        check_kernel(self.kernel, RADIAL_KERNELS)
        check_positive(self.width, "width", optional=True)
        check_positive(self.median_factor, "median_factor")

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> KernelScore:
        """Fit the score to samples.

        Parameters
        ----------
        samples : Tensor [*batch, n, d]
            float32 or float64; every batch entry is a problem of its own.

        Returns
        -------
        KernelScore
            The function points [*batch, m, d] -> score [*batch, m, d], with a closed-form `divergence`.

        Raises
        ------
        TypeError
            If `samples` is not a tensor of float32 or float64.
        ValueError
            If there are fewer than two samples, an entry is not finite or all samples are equal; also if the median
            distance is 0 because half of the pairs coincide and no `width` is given.
        """
        return self._fit(samples, None)

    @fused_checks()
    @torch.no_grad()
    def fit_residual(self, samples: Float[Tensor, "*batch n d"], base: Float[Tensor, "*batch n d"]) -> KernelScore:
        r"""Fit what a base score leaves, :math:`r = s - s_b`, from its values `base` at the samples.

        Stein's identity for the residual, :math:`E[r\, \phi] = -E[\nabla\phi + s_b\, \phi]`, replaces
        :math:`\hat\zeta` by :math:`\hat\zeta + \hat L s_b`.

        Raises
        ------
        TypeError, ValueError
            As `fit`, and if `base` does not have the shape of the samples.
        """
        if base.shape != samples.shape:
            raise ValueError(f"base: expected the samples' shape {tuple(samples.shape)}, got {tuple(base.shape)}")
        return self._fit(samples, base.detach())

    def _fit(self, samples: Tensor, base: Tensor | None) -> KernelScore:
        check_samples(samples)
        check_spread(samples)
        own, width = with_width(samples.detach().clone(), self.width, self.median_factor)
        score, values = self._fitted(own, width, None if base is None else base.to(own), samples.dtype)
        return with_values(score, values, samples)

    def _fitted(
        self, samples: Tensor, width: Tensor, base: Tensor | None, dtype: torch.dtype
    ) -> tuple[KernelScore, Tensor]:
        kernel = VectorKernel(samples, samples, width, self.kernel, self.curl_free)
        target = _target(kernel, base)
        weight, coefficients = self._solve(kernel, target)
        values = weight * target + kernel.apply(coefficients)
        if base is not None:
            coefficients = coefficients + weight / samples.shape[-2] * base
        return KernelScore(samples, width, coefficients, weight, self.kernel, self.curl_free, dtype), values

    def _solve(self, kernel: VectorKernel, target: Tensor) -> tuple[float, Tensor]:
        """Weight a and coefficients c with -g(L) zeta = a zeta + sum_j K(., x_j) c_j, from zeta's values."""
        raise NotImplementedError


def _target(kernel: VectorKernel, base: Float[Tensor, "*batch n d"] | None) -> Float[Tensor, "*batch n d"]:
    r""":math:`\hat\zeta + \hat L s_b` at the samples."""
    target = kernel.stein()
    return target if base is None else target + kernel.apply(base) / base.shape[-2]


def _ridge_solution(kernel: VectorKernel, target: Float[Tensor, "*batch n d"], ridge: float) -> Tensor:
    r""":math:`(K + n \lambda I)^{-1}` times the target, for a diagonal kernel."""
    damped = kernel.g[0].clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(target.shape[-2] * ridge)
    factor = torch.linalg.cholesky_ex(damped).L  # damped: it cannot fail
    solution = torch.linalg.solve_triangular(factor, target, upper=False)
    return torch.linalg.solve_triangular(factor.mT, solution, upper=True)


@dataclass(frozen=True)
class SteinScore:
    r"""What `Stein.fit` returns: values at the samples, extended to new points by :math:`K(x, X) K^{+} \hat s(X)`.

    Attributes
    ----------
    samples : Tensor [*batch, n, d]
        The points :math:`x_j`.
    width : Tensor [*batch]
        Kernel width.
    values : Tensor [*batch, n, d]
        The score at the samples.
    base : Tensor [*batch, n, d] or None
        Values of the base score of which this is the residual.
    ridge : float
        :math:`\eta / n`.
    kernel : str
        "rbf" or "imq".
    dtype : torch.dtype
        Of the points and of the scores.
    """

    samples: Float[Tensor, "*batch n d"]
    width: Float[Tensor, "*batch"]
    values: Float[Tensor, "*batch n d"]
    base: Float[Tensor, "*batch n d"] | None
    ridge: float
    kernel: str
    dtype: torch.dtype

    @fused_checks()
    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.samples.to(self.dtype))
        return self.values.to(self.dtype, copy=True) if at_samples(self, points) else self.extension(points)

    def divergence(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Divergence of the extension at points [*batch, m, d], in closed form."""
        return self.extension.divergence(points)

    @cached_property
    def extension(self) -> KernelScore:
        """The Nystrom extension, from an eigendecomposition when it is first asked for.

        In double precision: in single precision too many eigenvalues are at rounding level, and which are dropped is
        chance.
        """
        with outside_inference_mode(), torch.no_grad():
            samples, width = self.samples.double(), self.width.double()
            kernel = VectorKernel(samples, samples, width, self.kernel, False)
            target = _target(kernel, None if self.base is None else self.base.double())
            n = samples.shape[-2]
            eigenvalues, vectors = torch.linalg.eigh(kernel.g[0])
            # Squared at the end of the extension: eigenvalues at rounding level would drown the rest.
            resolved = eigenvalues > n * torch.finfo(target.dtype).eps * eigenvalues[..., -1:]
            gain = torch.where(resolved, n / (eigenvalues * (eigenvalues + n * self.ridge)), 0)
            coefficients = -vectors @ (gain[..., None] * (vectors.mT @ target))
        return KernelScore(samples, width, coefficients, 0.0, self.kernel, False, self.dtype)


@dataclass(frozen=True)
class Stein(KernelEstimator):
    r"""Stein gradient estimator, :math:`\hat s(X) = -(K + \eta I)^{-1}\, n\, \hat\zeta(X)` at the samples.

    [Li & Turner, ICLR 2018.] In the reproducing-kernel view it is Tikhonov regularisation restricted to the
    span of :math:`K(\cdot, x_j)`, with :math:`\eta = n \lambda`: at the samples it equals `Tikhonov`. New points
    get the Nystrom extension :math:`\hat s(x) = K(x, X) K^{+} \hat s(X)`; eigenvalues at rounding level are dropped.
    The samples need one n x n Cholesky factor; the first new points need an eigendecomposition.
    Derived in :doc:`/book/score-estimators`.

    Parameters
    ----------
    ridge : float
        :math:`\eta / n`, positive.
    kernel : str
        "rbf" or "imq".
    width : float, optional
        Kernel width in the units of the samples; by default the median of all pairwise distances.
    median_factor : float
        Multiply the default width by this.

    Raises
    ------
    ValueError
        If a setting is outside its range.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> Stein().fit(x)(x).shape
    torch.Size([500, 2])
    """

    ridge: float = 1e-3
    kernel: str = "rbf"
    width: float | None = None
    median_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.ridge, "ridge")

    def _fitted(
        self, samples: Tensor, width: Tensor, base: Tensor | None, dtype: torch.dtype
    ) -> tuple[SteinScore, Tensor]:
        kernel = VectorKernel(samples, samples, width, self.kernel, False)
        values = -samples.shape[-2] * _ridge_solution(kernel, _target(kernel, base), self.ridge)
        return SteinScore(samples, width, values, base, self.ridge, self.kernel, dtype), values


@dataclass(frozen=True)
class Tikhonov(KernelEstimator):
    r"""Tikhonov-regularised score, :math:`\hat s = -(\hat L + \lambda I)^{-1} \hat\zeta`.

    [Zhou, Shi & Zhu, ICML 2020, sec. 3.] With the curl-free kernel it is the kernel exponential family
    estimator [Sriperumbudur et al., JMLR 2017]. By the push-through identity
    :math:`\hat s(x) = \frac1\lambda [K(x, X) (K + n \lambda I)^{-1} \hat\zeta(X) - \hat\zeta(x)]`. The diagonal kernel
    needs one n x n Cholesky factor, the curl-free one conjugate gradients.
    Derived in :doc:`/book/score-estimators`.

    Parameters
    ----------
    ridge : float
        :math:`\lambda`, positive.
    kernel : str
        "rbf" or "imq".
    curl_free : bool
        Curl-free instead of diagonal kernel.
    width : float, optional
        Kernel width in the units of the samples; by default the median of all pairwise distances.
    tolerance : float
        Relative residual at which conjugate gradients stop, in (0, 1).
    max_steps : int
        Most steps of conjugate gradients.
    median_factor : float
        Multiply the default width by this.

    Raises
    ------
    ValueError
        If a setting is outside its range.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> float((Tikhonov().fit(x)(x) + x).square().mean()) < 0.3  # the score is -x
    True
    """

    ridge: float = 1e-3
    kernel: str = "rbf"
    curl_free: bool = False
    width: float | None = None
    tolerance: float = 1e-5
    max_steps: int = 500
    median_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.ridge, "ridge")
        check_fraction(self.tolerance, "tolerance")
        check_count(self.max_steps, "max_steps")

    def _solve(self, kernel: VectorKernel, target: Tensor) -> tuple[float, Tensor]:
        n = target.shape[-2]
        if kernel.curl_free:
            scale = power_of_two(target.abs().amax((-2, -1), keepdim=True))  # the squared residual may be out of range
            solution = scale * _conjugate_gradients(
                lambda c: kernel.apply(c) + n * self.ridge * c, target / scale, self.tolerance, self.max_steps
            )
        else:
            solution = _ridge_solution(kernel, target, self.ridge)
        return -1 / self.ridge, solution / self.ridge


@dataclass(frozen=True)
class Landweber(KernelEstimator):
    r"""Landweber iteration, :math:`\hat s_{t+1} = \hat s_t - (\hat\zeta + \hat L \hat s_t)` from :math:`\hat s_0 = 0`.

    Early stopping regularises: t steps act like a ridge of 1 / t [Zhou, Shi & Zhu, ICML 2020, sec. 3]. The step
    size 1 is safe, as the eigenvalues of :math:`\hat L` lie in [0, 1].
    Derived in :doc:`/book/score-estimators`.

    Parameters
    ----------
    steps : int
        Number of steps t.
    kernel : str
        "rbf" or "imq".
    curl_free : bool
        Curl-free instead of diagonal kernel.
    width : float, optional
        Kernel width in the units of the samples; by default the median of all pairwise distances.
    median_factor : float
        Multiply the default width by this.

    Raises
    ------
    ValueError
        If a setting is outside its range.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> float((Landweber().fit(x)(x) + x).square().mean()) < 0.3  # the score is -x
    True
    """

    steps: int = 300
    kernel: str = "rbf"
    curl_free: bool = False
    width: float | None = None
    median_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")

    def _solve(self, kernel: VectorKernel, target: Tensor) -> tuple[float, Tensor]:
        n, weight, c = target.shape[-2], 0.0, torch.zeros_like(target)
        for _ in range(self.steps):
            c = c - (weight * target + kernel.apply(c)) / n
            weight -= 1.0
        return weight, c


@dataclass(frozen=True)
class NuMethod(KernelEstimator):
    r"""The :math:`\nu`-method, an accelerated Landweber iteration: t steps act like a ridge of :math:`1 / t^2`.

    [Zhou, Shi & Zhu, ICML 2020, sec. 3; Engl, Hanke & Neubauer, 1996, sec. 6.3.]
    Derived in :doc:`/book/score-estimators`.

    Parameters
    ----------
    steps : int
        Number of steps t.
    nu : float
        :math:`\nu > 0`, the qualification of the method.
    kernel : str
        "rbf" or "imq".
    curl_free : bool
        Curl-free instead of diagonal kernel.
    width : float, optional
        Kernel width in the units of the samples; by default the median of all pairwise distances.
    median_factor : float
        Multiply the default width by this.

    Raises
    ------
    ValueError
        If a setting is outside its range.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> float((NuMethod().fit(x)(x) + x).square().mean()) < 0.3  # the score is -x
    True
    """

    steps: int = 20
    nu: float = 1.0
    kernel: str = "rbf"
    curl_free: bool = False
    width: float | None = None
    median_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        check_positive(self.nu, "nu")

    def _solve(self, kernel: VectorKernel, target: Tensor) -> tuple[float, Tensor]:
        n, nu = target.shape[-2], self.nu
        weight, c = 0.0, torch.zeros_like(target)
        previous_weight, previous_c = weight, c
        for t in range(1, self.steps + 1):
            momentum, step = nu_coefficients(t, nu)
            new_c = c + momentum * (c - previous_c) - step / n * (weight * target + kernel.apply(c))
            new_weight = weight + momentum * (weight - previous_weight) - step
            (previous_weight, previous_c), (weight, c) = (weight, c), (new_weight, new_c)
        return weight, c


def nu_coefficients(t: int, nu: float) -> tuple[float, float]:
    """Momentum and step size of step t = 1, 2, ... of the nu-method."""
    momentum = 0.0  # at t = 1 there is no earlier step
    if t > 1:
        momentum = (t - 1) * (2 * t - 3) * (2 * t + 2 * nu - 1)
        momentum /= (t + 2 * nu - 1) * (2 * t + 4 * nu - 1) * (2 * t + 2 * nu - 3)
    return momentum, 4 * (2 * t + 2 * nu - 1) * (t + nu - 1) / ((t + 2 * nu - 1) * (2 * t + 4 * nu - 1))


def _conjugate_gradients(operator, target: Tensor, tolerance: float, max_steps: int) -> Tensor:
    """Solve operator(c) = target for every batch entry at once; finished entries stay as they are."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    c, residual = torch.zeros_like(target), target.clone()
    direction, norm = residual, dot(residual, residual)
    goal = tolerance**2 * norm
    for _ in range(max_steps):
        active = norm > goal
        if not bool(active.any()):
            break
        image = operator(direction)
        step = torch.where(active, norm / dot(direction, image).clamp_min(torch.finfo(target.dtype).tiny), 0)
        c, residual = c + step * direction, residual - step * image
        new_norm = dot(residual, residual)
        direction = (
            residual + torch.where(active, new_norm / norm.clamp_min(torch.finfo(target.dtype).tiny), 0) * direction
        )
        norm = torch.where(active, new_norm, norm)
    return c
