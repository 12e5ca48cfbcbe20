"""Spectral Stein gradient estimator."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import VectorKernel, expanded_squares, in_widths, radial_sum, rbf, rbf_in_widths, with_width
from ..validation import check_fraction, check_points, check_positive, check_samples, check_spread, fused_checks
from .base import at_samples, with_values


@dataclass(frozen=True)
class SSGE:
    r"""Estimate the score :math:`\nabla_x \log q(x)` from samples of :math:`q`.

    The score is expanded in the leading eigenfunctions of an RBF kernel; Stein's identity gives the coefficients
    [Shi, Sun & Zhu, ICML 2018, eqs. 12-15]. With no arguments this is the setting of the MIGE paper. An instance
    holds settings only: `fit` returns a new function.
    Derived in :doc:`/book/score-estimation`.

    Parameters
    ----------
    energy : float
        Keep the leading eigenvalues of the Gram matrix while their cumulative share of the trace is below this, in
        (0, 1); always at least one.
    n_eigen : int, optional
        Keep this many eigenvalues instead, in 1..n.
    width : float, optional
        Kernel width in the units of the samples; by default the median of all pairwise distances.
    median_factor : float
        Multiply the default width by this; in low dimension, where densities have structure at a finer scale than
        their extent, less than 1 (see :doc:`/book/implicit-vi`).
    shrinkage : bool
        Multiply every coefficient by its positive-part James-Stein factor, :math:`(1 - v_j / \|\hat\beta_j\|^2)_+`
        with the estimated variance :math:`v_j` of :math:`\hat\beta_j`: a coefficient that its own Monte-Carlo noise
        explains is left out, so that more eigenvalues may be kept. Meant for residuals of a good base score.

    Raises
    ------
    ValueError
        If `energy`, `n_eigen`, `width` or `median_factor` is outside its range.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> SSGE().fit(x)(x).shape
    torch.Size([500, 2])
    """

    energy: float = 0.99
    n_eigen: int | None = None
    width: float | None = None
    shrinkage: bool = False
    median_factor: float = 1.0

    def __post_init__(self) -> None:
        check_fraction(self.energy, "energy")
        check_positive(self.median_factor, "median_factor")
        check_positive(self.width, "width", optional=True)
        if self.n_eigen is not None and (not isinstance(self.n_eigen, int) or self.n_eigen < 1):
            raise ValueError(f"n_eigen: expected a positive integer or None, got {self.n_eigen!r}")

    @fused_checks()
    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "*batch n d"]) -> SpectralScore:
        r"""Fit the score to samples.

        Parameters
        ----------
        samples : Tensor [*batch, n, d]
            float32 or float64; every batch entry is a problem of its own.

        Returns
        -------
        SpectralScore
            The function points [*batch, m, d] -> score [*batch, m, d].

        Raises
        ------
        TypeError
            If `samples` is not a tensor of float32 or float64.
        ValueError
            If there are fewer than two samples, an entry is not finite, all samples are equal, or `n_eigen` > n; also
            if the median distance is 0 because half of the pairs coincide and no `width` is given.
        """
        return self._fit(samples, None)

    @fused_checks()
    @torch.no_grad()
    def fit_residual(self, samples: Float[Tensor, "*batch n d"], base: Float[Tensor, "*batch n d"]) -> SpectralScore:
        r"""Fit what a base score leaves, :math:`r = s - s_b`, from its values `base` at the samples.

        Stein's identity for the residual, :math:`E[r\, \phi] = -E[\nabla\phi + s_b\, \phi]`, gives the coefficients.

        Raises
        ------
        TypeError, ValueError
            As `fit`, and if `base` does not have the shape of the samples.
        """
        if base.shape != samples.shape:
            raise ValueError(f"base: expected the samples' shape {tuple(samples.shape)}, got {tuple(base.shape)}")
        return self._fit(samples, base.detach())

    def _fit(self, samples: Tensor, base: Tensor | None) -> SpectralScore:
        check_samples(samples)
        check_spread(samples)
        n = samples.shape[-2]
        if self.n_eigen is not None and self.n_eigen > n:
            raise ValueError(
                f"n_eigen: expected at most n = {n} for samples {tuple(samples.shape)}, got {self.n_eigen}"
            )
        dtype = samples.dtype
        given = samples
        samples, width = with_width(samples.detach().clone(), self.width, self.median_factor)
        unit = width[..., None, None]  # squares of widths and scores would not stay in range
        places, _ = in_widths(samples, samples, width)
        coefficients, values, kept = self._solve(places, None if base is None else base * unit)
        return with_values(SpectralScore(samples, width, coefficients / unit, kept, dtype), values / unit, given)

    def _solve(self, samples: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of the score, its values at the samples, and how many eigenvalues were kept; width one."""
        n = samples.shape[-2]
        gram = rbf_in_widths(samples, samples)
        eigenvalues, eigenvectors, rounding = _eigh(gram)
        keep = self._kept(eigenvalues, rounding)
        inverse = torch.where(keep, eigenvalues, torch.inf).reciprocal()
        target = radial_sum(gram, samples, samples) / n  # row j: mean over i of the gradient of k(x_i, x_j) in x_i
        if base is not None:
            target = target + gram @ base / n
        projected = eigenvectors.mT @ target
        if self.shrinkage:
            beta_squares = n * inverse.square() * projected.square().sum(-1)
            variance = (_mean_squares(samples, base, gram, eigenvectors, inverse) - beta_squares) / n
            projected = projected * (1 - variance / beta_squares.clamp_min(1e-30)).clamp(0, 1)[..., None]
        values = -n * inverse[..., None] * projected  # of the score at the samples, in the eigenvectors' basis
        both = eigenvectors @ torch.cat([inverse[..., None] * values, values], -1)
        return *both.tensor_split(2, -1), keep.sum(-1)

    def _kept(self, eigenvalues: Float[Tensor, "*batch n"], rounding: Float[Tensor, "*batch 1"]) -> Tensor:
        if self.n_eigen is not None:
            keep = torch.zeros_like(eigenvalues, dtype=torch.bool)
            keep[..., -self.n_eigen :] = True
        else:
            lower = eigenvalues.clamp_min(0)
            below = lower.cumsum(-1)
            keep = below - lower > (1 - self.energy) * below[..., -1:]
        # Eigenvalues at rounding level are noise, and their inverse squares would drown the rest.
        keep &= eigenvalues > rounding
        keep[..., -1] = True
        return keep


POWER_STEPS = 6  # the first eigenvalue is ten and more times the second wherever small eigenvalues count


def _eigh(gram: Float[Tensor, "*batch n n"]) -> tuple[Tensor, Tensor, Float[Tensor, "*batch 1"]]:
    r"""Eigenvalues (ascending) and eigenvectors of a Gram matrix, and the level at which eigenvalues are rounding.

    An eigensolver's error goes with the largest eigenvalue. That of the nearly constant eigenfunction is up to a
    hundred times the second in high dimension, and in single precision the error reached percents of the smallest
    eigenvalues kept. So the matrix that is decomposed has the first eigenvalue lowered to the norm of the others,
    above all of them: :math:`K - c\, u u^\top` has the eigenvectors of K.
    """
    n, eps = gram.shape[-1], torch.finfo(gram.dtype).eps
    if gram.dtype == torch.float64:
        eigenvalues, eigenvectors = torch.linalg.eigh(gram)
        return eigenvalues, eigenvectors, n * eps * eigenvalues[..., -1:]
    first, excess = _excess(gram)
    lowered = gram - (excess * first) @ first.mT
    eigenvalues, eigenvectors = torch.linalg.eigh(lowered, UPLO="U")  # a tenth faster than from the lower triangle
    rounding = n * eps * eigenvalues[..., -1:]
    eigenvalues[..., -1:].add_(excess[..., 0])
    return eigenvalues, eigenvectors, rounding


def _excess(gram: Float[Tensor, "*batch n n"]) -> tuple[Float[Tensor, "*batch n 1"], Float[Tensor, "*batch 1 1"]]:
    """First eigenvector by power iterations, and by how much its eigenvalue may be lowered and stay the largest.

    The excess is zero where the iterations have not converged, as with two far clusters of one size.
    """
    eps = torch.finfo(gram.dtype).eps
    first = gram.new_ones(*gram.shape[:-1], 1)
    for _ in range(POWER_STEPS):
        first = gram @ first  # at most n^6 in the end, which is in range; its square is not
    first = first / first.amax(-2, keepdim=True)
    first = first / torch.linalg.vector_norm(first, dim=-2, keepdim=True)
    image = gram @ first
    largest = (first * image).sum(-2, keepdim=True)
    residual = torch.linalg.vector_norm(image - largest * first, dim=-2, keepdim=True)
    others = torch.linalg.matrix_norm(gram, keepdim=True).square() - largest.square()
    # A quarter more, so that no other is as large; at least a hundredth, as the difference has no more digits.
    ceiling = torch.maximum(1.25**2 * others, (largest / 100).square()).sqrt()
    return first, (largest - ceiling).clamp_min(0) * (residual < 8 * eps * largest)


def _mean_squares(
    samples: Float[Tensor, "*batch n d"],
    base: Float[Tensor, "*batch n d"] | None,
    gram: Float[Tensor, "*batch n n"],
    eigenvectors: Float[Tensor, "*batch n n"],
    inverse: Float[Tensor, "*batch n"],
) -> Float[Tensor, "*batch n"]:
    r"""Mean square of the terms :math:`\nabla\psi_j(x_i) + s_b(x_i)\, \psi_j(x_i)`, whose mean is :math:`-\beta_j`.

    With :math:`\psi_j = \sum_l k(\cdot, x_l)\, e_{lj}` these are quadratic forms in :math:`e_j`, and
    :math:`2 (x_l - x_i) \cdot (x_m - x_i) = p_{li} + p_{mi} - p_{lm}` in terms of the squared distances p makes them
    sums over matrices n x n: no tensor of gradients is built.
    """
    n = samples.shape[-2]
    squares = expanded_squares(samples, samples)
    values = n**0.5 * eigenvectors  # psi_j(x_i)
    nystrom = values * inverse[..., None, :]  # e_lj
    total = ((gram * squares) @ nystrom * values).sum(-2)
    total = total - (squares * (gram @ gram) @ nystrom * nystrom).sum(-2) / 2
    if base is not None:
        along = base @ samples.mT
        along = gram * (along - along.diagonal(dim1=-2, dim2=-1)[..., None])  # k(x_i, x_l) s_b(x_i) . (x_l - x_i)
        total = total + 2 * (along @ nystrom * values).sum(-2)
        total = total + (values.square() * base.square().sum(-1, keepdim=True)).sum(-2)
    return total / n


@dataclass(frozen=True)
class SpectralScore:
    r"""The function that `SSGE.fit` returns: :math:`\hat s(x) = \sum_j k(x, x_j)\, c_j`.

    Attributes
    ----------
    samples : Tensor [*batch, n, d]
        The points :math:`x_j`.
    width : Tensor [*batch]
        Kernel width.
    coefficients : Tensor [*batch, n, d]
        The vectors :math:`c_j`.
    n_eigen : Tensor [*batch]
        How many eigenvalues were kept.
    dtype : torch.dtype
        Of the points and of the scores; everything is computed in the precision of `samples`.
    values : Tensor [*batch, n, d] or None
        The score at the samples as the fit leaves it; None in a copy with other coefficients.
    """

    samples: Float[Tensor, "*batch n d"]
    width: Float[Tensor, "*batch"]
    coefficients: Float[Tensor, "*batch n d"]
    n_eigen: Int[Tensor, "*batch"]
    dtype: torch.dtype
    values: Float[Tensor, "*batch n d"] | None = field(default=None, init=False, repr=False, compare=False)

    @fused_checks()
    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.samples.to(self.dtype))
        if at_samples(self, points):
            return self.values.to(self.dtype, copy=True)
        return (rbf(points.to(self.samples), self.samples, self.width) @ self.coefficients).to(self.dtype)

    def divergence(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Divergence of the score at points [*batch, m, d], in closed form."""
        check_points(points, self.samples.to(self.dtype))
        kernel = VectorKernel(points.to(self.samples), self.samples, self.width, "rbf", False)
        return kernel.divergence(self.coefficients).to(self.dtype)
