r"""Kernel scores linear in the number of samples: random Fourier features and sums over the samples.

With features :math:`\phi` the kernel is :math:`k(x, y) \approx \phi(x) \cdot \phi(y)`, a score in its space is
:math:`\hat r(x) = C^\top \phi(x)`, and what a base score :math:`s_b` lacks obeys Stein's identity
:math:`E[\phi\, r^\top] = -E[\nabla\phi + \phi\, s_b^\top]`. Both sides are means over samples, so that they may be
accumulated; the coefficients are a ridge regression. Derived in :doc:`/book/easy-scores`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..validation import check_count, check_positive, require

ENTRIES = 2**22  # of a matrix of features: samples are taken so many at a time that it is no larger


@dataclass(frozen=True)
class Features:
    r"""Random Fourier features of the RBF kernel, :math:`\phi_m(x) = \sqrt{2 / M} \cos(w_m \cdot x / \sigma + b_m)`.

    [Rahimi & Recht, NIPS 2007.] Blocks of d frequencies are orthogonal, with the norms of Gaussian vectors, which
    lowers the kernel's error [Yu et al., NIPS 2016].
    Derived in :doc:`/book/easy-scores`.

    Attributes
    ----------
    frequencies : Tensor [M, d]
        :math:`w_m`, for width one.
    phases : Tensor [M]
        :math:`b_m`, in [0, 2 pi).
    width : Tensor [*batch]
        :math:`\sigma`, in the units of the points; every batch entry has its own.

    Examples
    --------
    >>> u = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> features = Features.draw(2, 100, torch.tensor(1.5))
    >>> gram, target = features.statistics(u, torch.zeros_like(u))
    >>> features.score(u, solve(gram, target, 1e-3)).shape
    torch.Size([1000, 2])
    """

    frequencies: Float[Tensor, "m d"]
    phases: Float[Tensor, "m"]
    width: Float[Tensor, "*batch"]

    @classmethod
    def draw(cls, dim: int, count: int, width: Float[Tensor, "*batch"], seed: int = 0) -> Features:
        """`count` features of `dim` coordinates, the same for the same seed; raises ValueError if one is no count."""
        check_count(dim, "dim")
        check_count(count, "count")
        generator = torch.Generator().manual_seed(seed)
        blocks = -(-count // dim)
        gaussian = torch.randn(2, blocks, dim, dim, dtype=torch.float64, generator=generator)
        directions = torch.linalg.qr(gaussian[0])[0].mT  # signs do not matter, a cosine has any phase
        frequencies = (directions * gaussian[1].norm(dim=-1, keepdim=True)).reshape(-1, dim)[:count]
        phases = 2 * math.pi * torch.rand(count, dtype=torch.float64, generator=generator)
        return cls(frequencies.to(width), phases.to(width), width)

    def values(self, u: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n m"]:
        """The features at points [*batch, n, d]."""
        return self._scale * torch.cos(self._angles(u))

    def statistics(
        self, u: Float[Tensor, "*batch n d"], base: Float[Tensor, "*batch n d"]
    ) -> tuple[Float[Tensor, "*batch m m"], Float[Tensor, "*batch m d"]]:
        r"""Means over the samples of :math:`\phi\phi^\top` and of :math:`\nabla\phi + \phi\, s_b^\top`.

        O(n M^2) operations, and memory for `ENTRIES` features and the result.

        Parameters
        ----------
        u : Tensor [*batch, n, d]
            The samples.
        base : Tensor [*batch, n, d]
            Values of the base score there.
        """
        n = u.shape[-2]
        gram, target, sines = 0, 0, 0
        for part, score in zip(self._chunks(u), self._chunks(base), strict=True):
            angles = self._angles(part)
            phi = torch.cos(angles)
            gram = gram + phi.mT @ phi
            target = target + phi.mT @ score
            sines = sines + torch.sin(angles).sum(-2)
        slopes = -sines[..., None] * (self.frequencies / self.width[..., None, None])
        return self._scale**2 / n * gram, self._scale / n * (target + slopes)

    def score(
        self, u: Float[Tensor, "*batch n d"], coefficients: Float[Tensor, "*batch m d"]
    ) -> Float[Tensor, "*batch n d"]:
        """`values(u) @ coefficients`, in bounded memory."""
        return self._by_chunks(lambda part: self.values(part) @ coefficients, u)

    def divergence(
        self, u: Float[Tensor, "*batch n d"], coefficients: Float[Tensor, "*batch m d"]
    ) -> Float[Tensor, "*batch n"]:
        """Divergence of `score` in the points."""
        along = -self._scale * (self.frequencies * coefficients).sum(-1) / self.width[..., None]
        return self._by_chunks(lambda part: (torch.sin(self._angles(part)) @ along[..., None])[..., 0], u, -1)

    def held_out(
        self, u: Float[Tensor, "*batch n d"], base: Float[Tensor, "*batch n d"], ridge: float
    ) -> Float[Tensor, "*batch"]:
        r"""Score-matching loss that the residual adds to the base's, each sample left out of the residual's own fit.

        The mean over i of :math:`\tfrac12 \|r_{-i}\|^2 + s_b \cdot r_{-i} + \mathrm{div}\, r_{-i}` at :math:`x_i`
        [Hyvarinen, JMLR 6, 2005, theorem 1]: negative where the residual brings the score nearer to the truth. A sample
        changes the normal equations by rank one, so that all n fits cost O(n M^2) [Sherman & Morrison, 1950].

        Parameters
        ----------
        u, base : Tensor [*batch, n, d]
            Samples, and the base score there.
        ridge : float
            As for `solve`, positive.
        """
        check_positive(ridge, "ridge")
        n, angles = u.shape[-2], self._angles(u)
        phi, sines = self._scale * torch.cos(angles), -self._scale * torch.sin(angles)
        scaled = self.frequencies / self.width[..., None, None]
        total = phi.mT @ base + sines.sum(-2)[..., None] * scaled
        identity = torch.eye(phi.shape[-1], dtype=u.dtype, device=u.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(phi.mT @ phi + n * ridge * identity))
        pull = phi @ inverse
        leverage = (pull * phi).sum(-1, keepdim=True)
        slope = (pull * sines) @ scaled  # nabla phi^T A^-1 phi
        # -phi^T C and -sum_k d_k phi^T C_k, each without what sample i itself puts into them.
        value = pull @ total - slope - leverage * base
        coefficients = inverse @ total
        own = ((sines @ (inverse * (scaled @ scaled.mT))) * sines).sum(-1) + (slope * base).sum(-1)
        divergence = (sines @ (scaled * coefficients).sum(-1, keepdim=True))[..., 0] - own
        residual = -value / (1 - leverage)
        divergence = -divergence + (slope * residual).sum(-1)
        return (residual.square().sum(-1) / 2 + (residual * base).sum(-1) + divergence).mean(-1)

    @property
    def _scale(self) -> float:
        return math.sqrt(2 / len(self.phases))

    def _angles(self, u: Tensor) -> Tensor:
        return (u / self.width[..., None, None]) @ self.frequencies.mT + self.phases

    def _chunks(self, u: Tensor) -> tuple[Tensor, ...]:
        return u.split(max(1, ENTRIES // (len(self.phases) * u[..., 0, 0].numel())), -2)

    def _by_chunks(self, function: Callable[[Tensor], Tensor], u: Tensor, axis: int = -2) -> Tensor:
        return torch.cat([function(part) for part in self._chunks(u)], axis)


@dataclass(frozen=True)
class FeatureScore:
    r"""A score in the space of the features, :math:`\hat r(x) = C^\top \phi(x)`.

    Attributes
    ----------
    features : Features
        :math:`\phi`.
    coefficients : Tensor [*batch, M, d]
        :math:`C`.
    """

    features: Features
    coefficients: Float[Tensor, "*batch m d"]

    def __call__(self, points: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Evaluate it at points [*batch, n, d]."""
        return self.features.score(points, self.coefficients)

    def divergence(self, points: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        """Its divergence at points [*batch, n, d]."""
        return self.features.divergence(points, self.coefficients)


def solve(
    gram: Float[Tensor, "*batch m m"], target: Float[Tensor, "*batch m d"], ridge: float | Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch m d"]:
    r"""Coefficients :math:`C = -(G + \lambda I)^{-1} T` of the residual from its statistics, by a Cholesky factor.

    Parameters
    ----------
    gram, target : Tensor [*batch, M, M] and [*batch, M, d]
        What `Features.statistics` returns, or averages of it.
    ridge : float or Tensor [*batch]
        :math:`\lambda`, positive: that of `Tikhonov`, in units of the kernel's value at distance zero. A fixed share of
        1 / n leaves noise and bias in balance.

    Raises
    ------
    ValueError
        If `ridge` is a number and not positive, or a tensor of which an entry is not.
    """
    if isinstance(ridge, Tensor):
        require((ridge > 0).all(), lambda: ValueError(f"ridge: expected positive numbers, got {ridge}"))
    else:
        check_positive(ridge, "ridge")
    weight = torch.as_tensor(ridge, dtype=gram.dtype, device=gram.device)[..., None, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return -torch.cholesky_solve(target, torch.linalg.cholesky(gram + weight * identity))
