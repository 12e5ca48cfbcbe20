r"""Invertible maps of each variable: they change the samples' law, but not their mutual information.

For a diffeomorphism f that does not depend on the parameters, :math:`I(f(x); g(z)) = I(x; z)` and the gradients agree
too, so a Gaussian pair's closed form is the truth for all of these tasks
[Czyz et al., Beyond Normal, NeurIPS 2023, sec. 2 use this for the values].

A map has three methods: `forward(u)`, `inverse(y)` and `push_score(u, score)`, which turns the score of u at u into the
score of :math:`y = f(u)` at f(u),

.. math:: s_y = J_f(u)^{-\top} (s_u(u) - \nabla_u \ln |\det J_f(u)|).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from .base import PairScores, PairTask

Points = Float[Tensor, "*batch n d"]


class Map(Protocol):
    """Diffeomorphism that carries samples and scores along."""

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        ...

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y."""
        ...

    def push_score(self, u: Points, score: Points) -> Points:
        """Score of f(u), from u and its score."""
        ...


class Elementwise:
    """Base of the maps that act on each coordinate alone; they give f, its inverse and two derivatives."""

    def derivatives(self, u: Points) -> tuple[Points, Points]:
        r"""Slope :math:`f'` and :math:`(\ln f')'`."""
        raise NotImplementedError

    def push_score(self, u: Points, score: Points) -> Points:
        """Score of f(u), from u and its score."""
        slope, log_slope_derivative = self.derivatives(u)
        return (score - log_slope_derivative) / slope


@dataclass(frozen=True)
class HalfCube(Elementwise):
    r"""Signed power, :math:`\mathrm{sign}(u) |u|^{3/2}`: the density of the result has a pole at 0."""

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        return u * u.abs().sqrt()

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y."""
        return y.sign() * y.abs().pow(2 / 3)

    def derivatives(self, u: Points) -> tuple[Points, Points]:
        """Slope and derivative of its logarithm; u = 0 excepted."""
        return 1.5 * u.abs().sqrt(), 1 / (2 * u)


@dataclass(frozen=True)
class Asinh(Elementwise):
    r"""Compression of the tails, :math:`\mathrm{arsinh}(c\, u)`; a standard Gaussian becomes bimodal for c > 1.

    Parameters
    ----------
    scale : float
        :math:`c > 0`.
    """

    scale: float = 1.0

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        return torch.asinh(self.scale * u)

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y."""
        return torch.sinh(y) / self.scale

    def derivatives(self, u: Points) -> tuple[Points, Points]:
        """Slope and derivative of its logarithm."""
        square = 1 + (self.scale * u).square()
        return self.scale / square.sqrt(), -(self.scale**2) * u / square


@dataclass(frozen=True)
class SinhArcsinhMap(Elementwise):
    r"""Skew and tails, :math:`\sinh(\tau\, \mathrm{arsinh}\, u + \eta)` [Jones & Pewsey, Biometrika 96, 2009].

    Parameters
    ----------
    skew, tail : float
        :math:`\eta` and :math:`\tau > 0`.
    """

    skew: float = 0.5
    tail: float = 1.0

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        return torch.sinh(self.tail * torch.asinh(u) + self.skew)

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y."""
        return torch.sinh((torch.asinh(y) - self.skew) / self.tail)

    def derivatives(self, u: Points) -> tuple[Points, Points]:
        """Slope and derivative of its logarithm."""
        angle, root = self.tail * torch.asinh(u) + self.skew, (1 + u.square()).sqrt()
        return self.tail * torch.cosh(angle) / root, self.tail * torch.tanh(angle) / root - u / root.square()


@dataclass(frozen=True)
class NormalCDF(Elementwise):
    r"""Copula coordinates, :math:`2 \Phi(u) - 1`: a standard Gaussian becomes uniform on (-1, 1)."""

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        return torch.erf(u / math.sqrt(2))

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y; y = 1 after rounding is read as the largest number below it."""
        largest = 1 - torch.finfo(y.dtype).eps / 2
        return torch.erfinv(y.clamp(-largest, largest)) * math.sqrt(2)

    def derivatives(self, u: Points) -> tuple[Points, Points]:
        """Slope and derivative of its logarithm."""
        return math.sqrt(2 / math.pi) * torch.exp(-u.square() / 2), -u


@dataclass(frozen=True)
class Bimodal(Elementwise):
    r"""Split at the origin, :math:`u + a \tanh(b u)`: a standard Gaussian becomes two separated bumps.

    Parameters
    ----------
    shift, rate : float
        a and b, both > 0: the density at 0 falls by the factor 1 + a b.
    """

    shift: float = 1.5
    rate: float = 4.0

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        return u + self.shift * torch.tanh(self.rate * u)

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y, by bisection."""
        return _bisect(self.forward, y, y.abs().max() + 1)

    def derivatives(self, u: Points) -> tuple[Points, Points]:
        """Slope and derivative of its logarithm."""
        tanh = torch.tanh(self.rate * u)
        bump = self.shift * self.rate * (1 - tanh.square())
        return 1 + bump, -2 * self.rate * tanh * bump / (1 + bump)


@dataclass(frozen=True)
class Wiggle(Elementwise):
    r"""Oscillating slope, :math:`u + \tfrac{a}{b} \sin(b u + c)`: several modes and a skew.

    Parameters
    ----------
    depth, rate, phase : float
        a in (0, 1), b > 0 and c; the slope lies in [1 - a, 1 + a].
    """

    depth: float = 0.8
    rate: float = 3.0
    phase: float = 1.0

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        return u + self.depth / self.rate * torch.sin(self.rate * u + self.phase)

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y, by bisection."""
        return _bisect(self.forward, y, y.abs().max() + 1)

    def derivatives(self, u: Points) -> tuple[Points, Points]:
        """Slope and derivative of its logarithm."""
        angle = self.rate * u + self.phase
        slope = 1 + self.depth * torch.cos(angle)
        return slope, -self.depth * self.rate * torch.sin(angle) / slope


@dataclass(frozen=True)
class Spiral:
    r"""Rotation by an angle that depends on the radius: joint structure within a variable [Beyond Normal, sec. 2].

    Coordinates (1, 2), (3, 4), ... are rotated by :math:`v\, (\|u\|^2 - d) / \sqrt{2 d}`, the squared radius in units
    of its standard deviation for a standard Gaussian, so that the angle's spread is v in every dimension. The norm is
    kept and the map preserves volume: its Jacobian is :math:`R (I + A u\, \nabla a^\top)` with A the generator of the
    rotation R, and :math:`\nabla a^\top A u \propto u^\top A u = 0`.

    Parameters
    ----------
    speed : float
        v.
    """

    speed: float = 1.0

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        return _rotate(u, self._angle(u))

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y: the rotation back, as the norm is kept."""
        return _rotate(y, -self._angle(y))

    def push_score(self, u: Points, score: Points) -> Points:
        r"""Score of f(u), :math:`R (s - \nabla a\, (A u)^\top s)`."""
        angle_gradient = 2 * self.speed / math.sqrt(2 * u.shape[-1]) * u
        along = (_quarter_turn(u) * score).sum(-1, keepdim=True)
        return _rotate(score - angle_gradient * along, self._angle(u))

    def _angle(self, u: Points) -> Float[Tensor, "*batch n 1"]:
        dim = u.shape[-1]
        return self.speed * (u.square().sum(-1, keepdim=True) - dim) / math.sqrt(2 * dim)


@dataclass(frozen=True)
class Compose:
    """One map after another: `maps[0]` is applied first."""

    maps: tuple[Map, ...]

    def forward(self, u: Points) -> Points:
        """Return f(u)."""
        for each in self.maps:
            u = each.forward(u)
        return u

    def inverse(self, y: Points) -> Points:
        """Return u with f(u) = y."""
        for each in reversed(self.maps):
            y = each.inverse(y)
        return y

    def push_score(self, u: Points, score: Points) -> Points:
        """Score of f(u), from u and its score."""
        for each in self.maps:
            u, score = each.forward(u), each.push_score(u, score)
        return score


@dataclass(frozen=True, eq=False)
class TransformedPair:
    r"""Pair :math:`(f(x), g(z))` of another task's x and z, with the other task's information and gradient.

    Parameters
    ----------
    core : PairTask
        The other task.
    x_map, z_map : Map or None
        f and g; None leaves the variable as it is.
    """

    core: PairTask
    x_map: Map | None = None
    z_map: Map | None = None

    @property
    def theta(self) -> Float[Tensor, "*k"]:
        """Parameters of the other task."""
        return self.core.theta

    def at(self, theta: Float[Tensor, "*k"]) -> TransformedPair:
        """Return the task at other parameters."""
        return replace(self, core=self.core.at(theta))

    def sample(self, n: int, generator: torch.Generator) -> tuple[Points, Points]:
        """Draw n pairs, differentiable in theta."""
        x, z = self.core.sample(n, generator)
        return (self.x_map.forward(x) if self.x_map else x), (self.z_map.forward(z) if self.z_map else z)

    def mutual_information(self) -> Float[Tensor, "*batch"]:
        """Mutual information, in nats: that of the other task."""
        return self.core.mutual_information()

    def mutual_information_gradient(self) -> Float[Tensor, "*k"]:
        """Gradient with respect to theta, in nats: that of the other task."""
        return self.core.mutual_information_gradient()

    def mutual_information_gradient_error(self) -> Float[Tensor, "*k"]:
        """Standard error of the gradient: that of the other task."""
        return self.core.mutual_information_gradient_error()

    @torch.no_grad()
    def scores(self, x: Points, z: Points) -> PairScores:
        """Exact scores at samples, by the change of variables; computed in float64."""
        u, v = x.double(), z.double()  # the poles of some scores cancel in joint minus marginal
        u = self.x_map.inverse(u) if self.x_map else u
        v = self.z_map.inverse(v) if self.z_map else v
        core = self.core.scores(u, v)
        pushed_x = (self.x_map.push_score(u, score) if self.x_map else score for score in (core.joint_x, core.x))
        pushed_z = (self.z_map.push_score(v, score) if self.z_map else score for score in (core.joint_z, core.z))
        (joint_x, marginal_x), (joint_z, marginal_z) = pushed_x, pushed_z
        return PairScores(joint_x.to(x), joint_z.to(z), marginal_x.to(x), marginal_z.to(z))


def _rotate(u: Points, angle: Float[Tensor, "*batch n 1"]) -> Points:
    """Rotate the coordinate pairs (1, 2), (3, 4), ...; the last one of an odd number stays."""
    turned = torch.cos(angle) * u + torch.sin(angle) * _quarter_turn(u)
    return turned if u.shape[-1] % 2 == 0 else torch.cat([turned[..., :-1], u[..., -1:]], dim=-1)


def _quarter_turn(u: Points) -> Points:
    """Generator of the rotation, (u_1, u_2) -> (-u_2, u_1) in every pair."""
    paired = u[..., : u.shape[-1] // 2 * 2]
    turned = torch.stack([-paired[..., 1::2], paired[..., 0::2]], dim=-1).flatten(-2)
    return turned if u.shape[-1] % 2 == 0 else torch.cat([turned, torch.zeros_like(u[..., -1:])], dim=-1)


def _bisect(increasing: Callable[[Points], Points], y: Points, bound: Tensor) -> Points:
    """Solve increasing(u) = y for u in [-bound, bound], to rounding."""
    low, high = torch.zeros_like(y) - bound, torch.zeros_like(y) + bound
    for _ in range(60):
        middle = (low + high) / 2
        above = increasing(middle) > y
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2
