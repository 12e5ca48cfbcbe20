"""Noisy nonlinear encoders: the law of the code has no closed form, but its density is an integral one can compute."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from .base import PairScores, Truth, cast, draw_normal, monte_carlo_truth


@dataclass(frozen=True, eq=False)
class Encoder:
    r"""Two-layer encoder with Gaussian noise, :math:`z = V \tanh(U x + b) + \sigma \epsilon` of :math:`x \sim N(0, I)`.

    The weights are linear in the parameters, :math:`U = \sum_k \theta_k U_k` and :math:`V = \sum_k \theta_k V_k`. As
    :math:`H(z | x)` is constant, :math:`I(x; z) = H(z) - \tfrac q2 \ln 2 \pi e \sigma^2`. The density of z is a mean
    over x, :math:`q(z) = \sum_m w_m N(z; f(x_m), \sigma^2 I)`, over the nodes of a quadrature or over many draws.

    With more than one block, x and z consist of independent blocks that the same network encodes, and fixed
    rotations of x and of z hide the blocks from an estimator. The information is the blocks' number times one
    block's, so that dimensions are high and the truth is an integral in few.

    Parameters
    ----------
    theta : Tensor [k]
        :math:`\theta`.
    hidden_directions, out_directions : Tensor [k, h, p] and [k, q, h]
        :math:`U_k` and :math:`V_k`.
    bias : Tensor [h]
        b.
    noise : float
        :math:`\sigma > 0`.
    nodes : Tensor [m, p]
        The :math:`x_m`.
    log_weights : Tensor [m], optional
        :math:`\ln w_m` of a quadrature rule for the standard Gaussian; without them the nodes are independent draws.
    x_rotation, z_rotation : Tensor [blocks * p, blocks * p] and [blocks * q, blocks * q], optional
        Orthogonal matrices.
    blocks : int
        Number of blocks.
    truth_repeats, truth_samples : int
        Size of the Monte-Carlo mean where the nodes are draws; a repeat draws its own nodes, as many as there are.
    """

    theta: Float[Tensor, "k"]
    hidden_directions: Float[Tensor, "k h p"]
    out_directions: Float[Tensor, "k q h"]
    bias: Float[Tensor, "h"]
    noise: float
    nodes: Float[Tensor, "m p"]
    log_weights: Float[Tensor, "m"] | None = None
    x_rotation: Float[Tensor, "bp bp"] | None = None
    z_rotation: Float[Tensor, "bq bq"] | None = None
    blocks: int = 1
    truth_repeats: int = 128
    truth_samples: int = 512

    def at(self, theta: Float[Tensor, "k"]) -> Encoder:
        """Return the task at other parameters."""
        return replace(self, theta=theta)

    def encode(self, x: Float[Tensor, "*batch p"]) -> Float[Tensor, "*batch q"]:
        """Mean code of a block, differentiable in it and in theta."""
        hidden = torch.tensordot(self.theta, self.hidden_directions, dims=1)
        out = torch.tensordot(self.theta, self.out_directions, dims=1)
        return torch.tanh(x @ hidden.mT + self.bias) @ out.mT

    def sample(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n bp"], Float[Tensor, "n bq"]]:
        """Draw n pairs (x, z); z is differentiable in theta."""
        x = draw_normal((n, self.blocks, self.nodes.shape[-1]), self.nodes, generator)
        noise = draw_normal((n, self.blocks, self.out_directions.shape[-2]), self.nodes, generator)
        z = self.encode(x) + self.noise * noise
        return _rotated(x.flatten(-2), self.x_rotation), _rotated(z.flatten(-2), self.z_rotation)

    def mutual_information(self) -> Float[Tensor, ""]:
        """Mutual information, in nats."""
        return self.truth.information.to(self.theta)

    def mutual_information_gradient(self) -> Float[Tensor, "k"]:
        """Gradient with respect to theta, in nats."""
        return self.truth.gradient.to(self.theta)

    def mutual_information_gradient_error(self) -> Float[Tensor, "k"]:
        """Standard error of `mutual_information_gradient`; zero where it is a quadrature."""
        return self.truth.gradient_error.to(self.theta)

    @cached_property
    def truth(self) -> Truth:
        """Quadrature or Monte-Carlo mean, made when first asked for."""
        task = cast(replace(self, theta=self.theta.detach()), torch.float64)
        if self.log_weights is not None:
            return task._quadrature()

        def information(theta: Tensor, generator: torch.Generator) -> Tensor:
            there = task.at(theta)
            z = there.sample(self.truth_samples, generator)[1]
            z = _rotated(z, self.z_rotation.mT.double() if self.z_rotation is not None else None)
            there = replace(there, nodes=draw_normal(tuple(self.nodes.shape), task.nodes, generator))
            z = z.unflatten(-1, (self.blocks, -1)).flatten(0, 1)
            return self.blocks * (-there._log_density(z, jackknife=True).mean() - there._conditional_entropy())

        return monte_carlo_truth(information, task.theta, self.truth_repeats)

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "n bp"], z: Float[Tensor, "n bq"]) -> PairScores:
        r"""Exact scores at samples; that of z is :math:`\sum_m w_m(z) (f(x_m) - z) / \sigma^2`, posterior weights."""
        x_block = _rotated(x, self.x_rotation.mT if self.x_rotation is not None else None)
        z_block = _rotated(z, self.z_rotation.mT if self.z_rotation is not None else None)
        x_block, z_block = (block.unflatten(-1, (self.blocks, -1)) for block in (x_block, z_block))
        mean, pull_back = torch.func.vjp(self.encode, x_block)
        residual = (z_block - mean) / self.noise**2
        joint_x = pull_back(residual)[0] - x_block
        codes = self.encode(self.nodes)
        score_z = torch.cat(
            [
                (torch.softmax(self._logits(rows, codes), dim=-1) @ codes - rows) / self.noise**2
                for rows in z_block.flatten(0, 1).split(max(1, 2**23 // len(codes)))
            ]
        ).reshape(z_block.shape)
        joint_x = _rotated(joint_x.flatten(-2), self.x_rotation)
        joint_z, score_z = (_rotated(score.flatten(-2), self.z_rotation) for score in (-residual, score_z))
        return PairScores(joint_x, joint_z, -x, score_z)

    def _logits(self, z: Float[Tensor, "n q"], codes: Float[Tensor, "m q"]) -> Float[Tensor, "n m"]:
        squares = z.square().sum(-1)[:, None] + codes.square().sum(-1) - 2 * z @ codes.mT
        logits = -squares / (2 * self.noise**2)
        return logits if self.log_weights is None else logits + self.log_weights

    def _log_density(self, z: Float[Tensor, "n q"], jackknife: bool = False) -> Float[Tensor, "n"]:
        """Logarithm of the density of a block of z; with jackknife without the bias of order 1/m of drawn nodes."""
        logits = self._logits(z, self.encode(self.nodes))
        constant = z.shape[-1] / 2 * math.log(2 * math.pi * self.noise**2)
        if self.log_weights is not None:
            return torch.logsumexp(logits, dim=-1) - constant
        halves = torch.stack([torch.logsumexp(half, dim=-1) for half in logits.chunk(2, dim=-1)])
        log_sum, log_half = torch.logsumexp(halves, dim=0), halves.mean(0) + math.log(2)
        return (2 * log_sum - log_half if jackknife else log_sum) - math.log(len(self.nodes)) - constant

    def _conditional_entropy(self) -> float:
        return self.out_directions.shape[-2] / 2 * math.log(2 * math.pi * math.e * self.noise**2)

    def _quadrature(self) -> Truth:
        """Entropy of a block of z by the trapezoidal rule over a grid: z has one or two coordinates there."""
        codes, margin, step = self.encode(self.nodes), 8 * self.noise, self.noise / 3
        axes = [
            torch.arange(float(low) - margin, float(high) + margin, step, dtype=codes.dtype, device=codes.device)
            for low, high in zip(codes.min(0).values, codes.max(0).values, strict=True)
        ]
        grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        theta = self.theta.clone().requires_grad_()
        entropy, gradient = torch.zeros_like(theta[0].detach()), torch.zeros_like(theta.detach())
        for rows in grid.split(max(1, 2**22 // len(codes))):
            log_density = self.at(theta)._log_density(rows)
            part = -(log_density.exp() * log_density).sum() * step ** len(axes)
            gradient += torch.autograd.grad(part, theta)[0]
            entropy += part.detach()
        information = self.blocks * (entropy - self._conditional_entropy())
        return Truth(information, torch.zeros_like(entropy), self.blocks * gradient, torch.zeros_like(gradient))


def _rotated(points: Float[Tensor, "n d"], rotation: Float[Tensor, "d d"] | None) -> Float[Tensor, "n d"]:
    return points if rotation is None else points @ rotation
