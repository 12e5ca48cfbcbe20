"""The pairs whose information is optimised, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..randomness import Streams
from .config import CALIBRATION, LARGEST, START, Config


def spiral(y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Turn the first two coordinates by the angle |y|^2 / d; a rotation keeps |y|, so that it can be turned back."""
    angle = y.square().mean(-1)
    cos, sin, (first, second) = torch.cos(angle), torch.sin(angle), y[..., :2].unbind(-1)
    turned = torch.stack([cos * first - sin * second, sin * first + cos * second], dim=-1)
    return torch.cat([turned, y[..., 2:]], dim=-1)


FAMILIES: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda y: y,
    "cubic": lambda y: y**3,
    "asinh": torch.asinh,
    "power": lambda y: y.sign() * y.abs() ** 1.5,
    "spiral": spiral,
}


class Draw(NamedTuple):
    """One draw for every seed.

    Attributes
    ----------
    x, z : Tensor [seeds, n, d]
        Pairs; z depends on the parameters.
    other : Tensor [seeds, n, d]
        A further draw of z, independent of x.
    """

    x: Float[Tensor, "seeds n d"]
    z: Float[Tensor, "seeds n d"]
    other: Float[Tensor, "seeds n d"]


class Pair:
    """The pairs of every seed, with the rotations and the scale of each.

    Parameters
    ----------
    config : Config
        Of one cell: its first family and dimension count.
    seeds : sequence of int
        The seeds.
    device : torch.device
        Where the samples are drawn.
    """

    def __init__(self, config: Config, seeds: Sequence[int], device: torch.device) -> None:
        self.config, (self.dim,), (family,) = config, config.dims, config.families
        self.map = FAMILIES[family]
        fixed = Streams(seeds, "task", self.dim, device=device)
        self.rotations = torch.linalg.qr(fixed.normal(2, self.dim, self.dim))[0]
        calibration = self.map(fixed.normal(CALIBRATION, self.dim) @ self.rotations[:, 1].mT)
        self.scale = calibration.square().mean((-2, -1), keepdim=True).sqrt()
        self.random = Streams(seeds, "samples", device=device)

    def sample(self, theta: Float[Tensor, "seeds k"]) -> Draw:
        """Draw a batch for every seed, differentiable in theta."""
        u, v, u_other, v_other = self.random.normal(4, self.config.batch, self.dim).unbind(1)
        x = self.map(u @ self.rotations[:, 1].mT) / self.scale
        rho = correlation(theta)[:, None]
        other = self._code(rho, u_other, v if self.config.shared_residuals else v_other)
        return Draw(x, self._code(rho, u, v), other.detach())

    def _code(self, rho: Tensor, u: Tensor, v: Tensor) -> Float[Tensor, "seeds n d"]:
        return (rho * u + (1 - rho.square()).sqrt() * v) @ self.rotations[:, 0].mT


def correlation(theta: Float[Tensor, "*seeds k"]) -> Float[Tensor, "*seeds k"]:
    """Correlations, at most `LARGEST` in absolute value."""
    return torch.tanh(theta).clamp(-LARGEST, LARGEST)


def information(theta: Float[Tensor, "*seeds k"], dim: int) -> Float[Tensor, "*seeds"]:
    """I(x; z), in nats and in double precision, differentiable; one parameter stands for all d correlations."""
    each = -0.5 * torch.log1p(-correlation(theta.double()).square())
    return each.expand(*theta.shape[:-1], dim).sum(-1)


def initial(goal: str, parameters: str, dim: int) -> Float[Tensor, "k"]:
    """Parameters where the information is `START`; of several, number j has a share of it in proportion to j.

    Their signs alternate. The paper says no more than that the shares are unequal.
    """
    if parameters == "shared":
        share, sign = torch.full((1,), START[goal] / dim, dtype=torch.float64), 1
    else:
        rank = torch.arange(1, dim + 1, dtype=torch.float64)
        share, sign = START[goal] * rank / rank.sum(), (-1) ** rank
    return (sign * torch.atanh((-torch.expm1(-2 * share)).sqrt())).float()
