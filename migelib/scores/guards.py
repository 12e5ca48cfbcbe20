"""What no density holds: atoms, steep coordinates, codes without noise, and linearly dependent coordinates.

Each function says for every batch entry whether it is so. The reasons are the texts of one warning.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool
from torch import Tensor

# These are measured, not derived, on codes of the activations that networks have and on smooth densities, none of them
# from `tasks.PAIRS`.
ATOM = 0.05  # share of the samples that may have one value of a coordinate before it counts as discrete
STEEP = 5.0  # times that a map may exceed the slope that the samples on either side have ...
STEEP_SHARE = 0.01  # ... in this share of a variable's entries
NARROW = 0.01  # standard deviations a standard deviation of normal scores: standardised coordinates resolve that ...
NARROW_SHARE = 0.005  # ... but for this share of a variable's entries
NOISE_FREE = 1e-9  # share of a variance that is left when other variables are known, where nothing but they decide it
DEPENDENT = 1e-12  # the same within a variable: rounding of float32

HAS_ATOMS = f"a coordinate has one value in more than {ATOM:.0%} of the samples, so that it has no density"
IS_STEEP = "its density is steeper in places than the samples resolve"
IS_NOISE_FREE = (
    "given the other variable a coordinate has no noise, so that the information is infinite and only the gradient of "
    "the entropy is left"
)
IS_DEPENDENT = "a coordinate is a linear function of others, so that there is no density; its score is set to zero"


class NoDensityWarning(UserWarning):
    """What an estimator was fitted to has no density, or none that the samples resolve."""


def warn(found: dict[str, dict[str, Tensor]]) -> None:
    """One warning of what was found in which variable."""
    reasons = [f"{name}: {why}" for name, masks in found.items() for why, mask in masks.items() if bool(mask.any())]
    if reasons:
        warnings.warn(
            f"{'; '.join(reasons)}. A kernel estimator stands in where no density does, and its gradient is biased. "
            "Add noise to the variable before its information or entropy is estimated; where the distribution of a "
            "code given its input is known, use migelib.codes.",
            NoDensityWarning,
            stacklevel=3,
        )


def any_reason(reasons: list[dict[str, Tensor]], nowhere: Bool[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Whether one of the reasons holds."""
    return torch.stack([nowhere, *(mask for masks in reasons for mask in masks.values())]).any(0)


def _pivots(samples: Tensor) -> Float[Tensor, "*batch d"]:
    """Share of every coordinate's variance that the coordinates before it leave; one without spread keeps all."""
    centred = samples - samples.mean(-2, keepdim=True)
    scale = centred.square().sum(-2, keepdim=True).sqrt()
    white = centred / torch.where(scale > 0, scale, torch.ones_like(scale))
    correlation = white.mT @ white
    rounding = 1e-14 + (scale == 0).to(scale).squeeze(-2)  # so that none is negative
    return torch.linalg.cholesky_ex(correlation + torch.diag_embed(rounding))[0].diagonal(dim1=-2, dim2=-1).square()


def has_atoms(samples: Tensor) -> Bool[Tensor, "*batch"]:
    """Whether a coordinate that varies has one value in more than a share ATOM of the samples."""
    most = max(2, int(ATOM * samples.shape[-2]))
    ordered = samples.sort(-2).values
    varies = ordered[..., 0, :] < ordered[..., -1, :]
    return ((ordered[..., most:, :] == ordered[..., :-most, :]).any(-2) & varies).any(-1)


def noise_free(given: Tensor, samples: Tensor) -> Bool[Tensor, "*batch d"]:
    """Coordinates of which a linear function of `given` leaves nothing but rounding, or of what those before leave."""
    n, dim = samples.shape[-2:]
    if n <= given.shape[-1] + dim + 4:
        return torch.zeros_like(samples[..., 0, :], dtype=torch.bool)
    before, after = _pivots(samples), _pivots(torch.cat([given, samples], -1))[..., -dim:]
    return (after < NOISE_FREE * before) & (before > DEPENDENT)


def is_unresolved(samples: Tensor, slope: Tensor, chosen: Bool[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Whether coordinates, or a map of them with this slope where it is chosen, are steeper than the samples resolve.

    Both slopes are held against that of the normal scores over n / 16 neighbours: a map's, which its smoothing carries
    over from where samples are dense to where they are not, and that of standardised coordinates, the constant.
    """
    n = samples.shape[-2]
    reach = max(8, n // 16)
    if n < 4 * reach:
        return torch.zeros_like(chosen)
    ordered, order = samples.sort(-2)
    normal = torch.special.ndtri((torch.arange(n, device=samples.device).to(samples) + 0.5) / n)[:, None]
    gap = (ordered[..., reach:, :] - ordered[..., :-reach, :]).clamp_min(torch.finfo(samples.dtype).tiny)
    rise = (normal[reach:] - normal[:-reach]) / gap
    slope = slope.gather(-2, order)
    limit = STEEP * max(1, 128 / n) * rise  # eight neighbours of few samples are too large a share
    steep = torch.zeros_like(slope, dtype=torch.bool)
    steep[..., reach:, :] |= slope[..., reach:, :] > limit
    steep[..., :-reach, :] |= slope[..., :-reach, :] > limit
    deviation = (ordered - ordered.mean(-2, keepdim=True)).square().mean(-2, keepdim=True).sqrt()
    narrow = NARROW * deviation * rise > 1
    shares = [found.to(samples).mean((-2, -1)) for found in (steep, narrow)]
    return torch.where(chosen, shares[0] > STEEP_SHARE, shares[1] > NARROW_SHARE)


def kept_coordinates(samples: Tensor) -> tuple[Tensor | None, bool]:
    """Indices of the coordinates that have a score, or None if all do, and whether others are left out as dependent.

    Left out are those that vary in no batch entry, and those that in all entries are linear functions of the ones
    before them, up to the rounding of the samples' type.
    """
    dim = samples.shape[-1]
    vary = _varies(samples).reshape(-1, dim).any(0)
    free = vary & _is_new(samples).reshape(-1, dim).any(0)
    return (None if bool(free.all()) else free.nonzero()[:, 0]), bool((vary & ~free).any())


def is_singular(samples: Tensor) -> Bool[Tensor, "*batch"]:
    """Whether a coordinate is constant or a linear function of others, up to the rounding of the samples' type."""
    return ~(_varies(samples) & _is_new(samples)).all(-1)


def _varies(samples: Tensor) -> Bool[Tensor, "*batch d"]:
    return (samples != samples[..., :1, :]).any(-2)


def _is_new(samples: Tensor) -> Bool[Tensor, "*batch d"]:
    """Whether a coordinate is no linear function of those before it; so of few samples, which cannot tell."""
    n, dim = samples.shape[-2:]
    if n <= dim + 4:
        return torch.ones_like(samples[..., 0, :], dtype=torch.bool)
    fine = (samples - samples[..., :1, :]).detach().double()
    deviation = (fine - fine.mean(-2, keepdim=True)).square().mean(-2).sqrt()
    error = torch.finfo(samples.dtype).eps * samples.abs().amax(-2) / deviation
    error = torch.where(deviation > 0, error, torch.zeros_like(error)).square().sum(-1, keepdim=True)
    return _pivots(fine) > DEPENDENT + error


def among(score: Tensor, kept: Tensor, dim: int) -> Tensor:
    """The score of `kept` coordinates among `dim`, zero elsewhere."""
    return score.new_zeros(*score.shape[:-1], dim).index_copy(-1, kept, score)
