"""Spectral Stein gradient estimator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import VectorKernel, power_of_two, rbf, rbf_mean_gradient, with_width
from ..validation import check_fraction, check_points, check_positive, check_samples, check_spread, fused_checks


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
        samples, width = with_width(samples.detach().clone(), self.width, self.median_factor)
        scale = power_of_two(width)[..., None, None]  # squares of widths and scores would not stay in range
        fitted = self._coefficients(samples / scale, width / scale[..., 0, 0], None if base is None else base * scale)
        return SpectralScore(samples, width, fitted[0] / scale, fitted[1], dtype)

    def _coefficients(self, samples: Tensor, width: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
        """Coefficients of the score, and how many eigenvalues were kept."""
        n = samples.shape[-2]
        gram = rbf(samples, samples, width)
        eigenvalues, eigenvectors = torch.linalg.eigh(gram)  # ascending
        keep = self._kept(eigenvalues)
        inverse_squares = torch.where(keep, eigenvalues, torch.inf).square().reciprocal()
        target = rbf_mean_gradient(samples, gram, width)
        if base is not None:
            target = target + gram @ base / n
        projected = eigenvectors.mT @ target
        if self.shrinkage:
            inverse = inverse_squares.sqrt()
            beta_squares = n * inverse_squares * projected.square().sum(-1)
            variance = (_mean_squares(samples, base, gram, width, eigenvectors, inverse) - beta_squares) / n
            inverse_squares = inverse_squares * (1 - variance / beta_squares.clamp_min(1e-30)).clamp(0, 1)
        coefficients = -n * eigenvectors @ (inverse_squares[..., None] * projected)
        return coefficients, keep.sum(-1)

    def _kept(self, eigenvalues: Float[Tensor, "*batch n"]) -> Tensor:
        n = eigenvalues.shape[-1]
        rank = torch.arange(n, 0, -1, device=eigenvalues.device)  # 1 for the largest, which comes last
        if self.n_eigen is not None:
            wanted = rank <= self.n_eigen
        else:
            descending = eigenvalues.clamp_min(0).flip(-1)
            share = (descending.cumsum(-1) / descending.sum(-1, keepdim=True)).flip(-1)
            wanted = share < self.energy
        # Eigenvalues at rounding level are noise, and their inverse squares would drown the rest.
        resolved = eigenvalues > n * torch.finfo(eigenvalues.dtype).eps * eigenvalues[..., -1:]
        return (wanted & resolved) | (rank == 1)


def _mean_squares(
    samples: Float[Tensor, "*batch n d"],
    base: Float[Tensor, "*batch n d"] | None,
    gram: Float[Tensor, "*batch n n"],
    width: Float[Tensor, "*batch"],
    eigenvectors: Float[Tensor, "*batch n n"],
    inverse: Float[Tensor, "*batch n"],
) -> Float[Tensor, "*batch n"]:
    r"""Mean square of the terms :math:`\nabla\psi_j(x_i) + s_b(x_i)\, \psi_j(x_i)`, whose mean is :math:`-\beta_j`.

    With :math:`\psi_j = \sum_l k(\cdot, x_l)\, e_{lj}` these are quadratic forms in :math:`e_j`, and
    :math:`2 (x_l - x_i) \cdot (x_m - x_i) = p_{li} + p_{mi} - p_{lm}` in terms of the squared distances p makes them
    sums over matrices n x n: no tensor of gradients is built.
    """
    n = samples.shape[-2]
    precision = width.square().reciprocal()[..., None]
    centred = samples - samples.mean(-2, keepdim=True)
    squares = torch.cdist(centred, centred).square()
    values = n**0.5 * eigenvectors  # psi_j(x_i)
    nystrom = values * inverse[..., None, :]  # e_lj
    gradients = ((gram * squares) @ nystrom * values).sum(-2)
    gradients = gradients - (squares * (gram @ gram) @ nystrom * nystrom).sum(-2) / 2
    total = gradients * precision.square()
    if base is not None:
        along = base @ centred.mT
        along = gram * (along - along.diagonal(dim1=-2, dim2=-1)[..., None])  # k(x_i, x_l) s_b(x_i) . (x_l - x_i)
        total = total + 2 * (along @ nystrom * values).sum(-2) * precision
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
    """

    samples: Float[Tensor, "*batch n d"]
    width: Float[Tensor, "*batch"]
    coefficients: Float[Tensor, "*batch n d"]
    n_eigen: Int[Tensor, "*batch"]
    dtype: torch.dtype

    def __call__(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m d"]:
        """Evaluate the score at points [*batch, m, d]; raises TypeError or ValueError where they do not fit."""
        check_points(points, self.samples.to(self.dtype))
        return (rbf(points.to(self.samples), self.samples, self.width) @ self.coefficients).to(self.dtype)

    def divergence(self, points: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch m"]:
        """Divergence of the score at points [*batch, m, d], in closed form."""
        check_points(points, self.samples.to(self.dtype))
        kernel = VectorKernel(points.to(self.samples), self.samples, self.width, "rbf", False)
        return kernel.divergence(self.coefficients).to(self.dtype)
