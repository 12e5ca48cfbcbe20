r"""The toy experiment: the gradient of the mutual information of correlated Gaussians over a grid of correlations.

Figure 1 of the MIGE paper [Wen et al., ICLR 2020] with the settings of its published code, and what that figure lacks:
MINE with a working bias correction, and the exact scores, whose error is the Monte-Carlo floor.
Explained in :doc:`/book/06_toy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import bounds
from ..scores import SSGE
from ..surrogates import mutual_information_surrogate
from ..tasks import CorrelatedGaussian
from . import stream

UNITS = {"relative_error": "1"}

# Relative errors of the authors' published curves, one run each: computed from the result files of the repository
# zhouyiji/MIGE, folder toy/results. Their "MINE" is the plain Donsker-Varadhan bound.
PUBLISHED = {
    "mige/d8/relative_error": 0.059,
    "mige/d16/relative_error": 0.116,
    "mige/d32/relative_error": 0.280,
    "mine-dv/d8/relative_error": 0.152,
    "mine-dv/d16/relative_error": 0.405,
    "mine-dv/d32/relative_error": 0.752,
    "mine-f/d8/relative_error": 0.415,
    "mine-f/d16/relative_error": 0.589,
    "mine-f/d32/relative_error": 0.818,
}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    dims, bound_dims : tuple of int
        Dimensions d for the score-based methods and for the bounds.
    n : int
        Samples a point and step.
    rho_max : float
        The grid is -rho_max..rho_max.
    points, bound_points : int
        Grid points for the score-based methods and for the bounds.
    hidden, embedding, learning_rate, steps :
        Critic, and its training by Adam.
    decay : float
        Weight of the past in MINE's moving average.
    """

    seeds: int
    dims: tuple[int, ...] = (8, 16, 32)
    bound_dims: tuple[int, ...] = (8, 16, 32)
    n: int = 256
    rho_max: float = 0.8
    points: int = 32
    bound_points: int = 30
    hidden: int = 512
    embedding: int = 20
    learning_rate: float = 1e-4
    steps: int = 200
    decay: float = 0.9


PROFILES = {
    "quick": Config(seeds=5, bound_dims=(8,), bound_points=6, hidden=256),
    "full": Config(seeds=5),
}

Bound = Callable[[Float[Tensor, "g n n"], "Tensor | None"], "tuple[Float[Tensor, 'g'], Tensor | None]"]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Relative error and gradient curve of every method and dimension, for one seed."""
    grid = torch.linspace(-config.rho_max, config.rho_max, config.points)
    bound_grid = torch.linspace(-config.rho_max, config.rho_max, config.bound_points)
    bound_objectives: dict[str, Bound] = {
        "mine-dv": lambda critic, _: (bounds.donsker_varadhan(critic), None),
        "mine-ema": lambda critic, running: bounds.mine(critic, running, config.decay),
        "mine-f": lambda critic, _: (bounds.nwj(critic), None),
    }
    curves = {}
    for dim in config.dims:
        curves[f"mige/d{dim}"] = mige_gradient(dim, grid, config.n, stream(seed, "mige", dim), device)
        curves[f"exact/d{dim}"] = exact_score_gradient(dim, grid, config.n, stream(seed, "mige", dim), device)
    for dim in config.bound_dims:
        for method, bound in bound_objectives.items():
            curves[f"{method}/d{dim}"] = bound_gradient(
                bound, dim, bound_grid, config, stream(seed, method, dim), device
            )
    quantities = {}
    for name, curve in curves.items():
        rho = grid if name.startswith(("mige", "exact")) else bound_grid
        quantities[f"{name}/relative_error"] = relative_error(curve, CorrelatedGaussian(int(name.split("/d")[1]), rho))
    return quantities, {name: curve.numpy() for name, curve in curves.items()}


def relative_error(curve: Float[Tensor, "g"], task: CorrelatedGaussian) -> float:
    r"""Error of a gradient curve over the grid, :math:`\|g - g_{true}\|_2 / \|g_{true}\|_2`."""
    truth = task.mutual_information_gradient()
    return float((curve - truth).norm() / truth.norm())


def mige_gradient(
    dim: int, rho: Float[Tensor, "g"], n: int, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "g"]:
    """MIGE with the paper's SSGE, at every correlation of the grid."""
    rho = rho.to(device).requires_grad_()
    x, y = CorrelatedGaussian(dim, rho).sample(n, generator)
    (gradient,) = torch.autograd.grad(mutual_information_surrogate(x, y, SSGE()), rho)
    return gradient.cpu()


def exact_score_gradient(
    dim: int, rho: Float[Tensor, "g"], n: int, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "g"]:
    """The same with the true scores in place of the estimates: what remains is Monte-Carlo noise."""
    rho = rho.to(device).requires_grad_()
    task = CorrelatedGaussian(dim, rho)
    x, y = task.sample(n, generator)
    score = (task.score_joint(x, y)[1] - task.score_y(y)).detach()
    (gradient,) = torch.autograd.grad((score * y).sum(-1).mean(-1).sum(), rho)
    return gradient.cpu()


def bound_gradient(
    bound: Bound,
    dim: int,
    rho: Float[Tensor, "g"],
    config: Config,
    generator: torch.Generator,
    device: torch.device,
) -> Float[Tensor, "g"]:
    """Gradient of a variational bound in rho at the last training step, one critic a grid point.

    All critics of the grid are trained at once, as one stack of weights; each sees its own fresh batch at every step.
    """
    rho = rho.to(device).requires_grad_()
    task = CorrelatedGaussian(dim, rho)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        critics = [bounds.SeparableCritic(dim, dim, config.hidden, config.embedding) for _ in rho]
    weights, _ = torch.func.stack_module_state(critics)
    weights = {name: weight.detach().to(device).requires_grad_() for name, weight in weights.items()}
    evaluate = torch.vmap(lambda weights, x, y: torch.func.functional_call(critics[0], weights, (x, y)))
    optimiser = torch.optim.Adam(weights.values(), lr=config.learning_rate)
    running = None
    for step in range(config.steps):
        x, y = task.sample(config.n, generator)
        last = step == config.steps - 1
        value, running = bound(evaluate(weights, x, y if last else y.detach()), running)
        if last:
            return torch.autograd.grad(value.sum(), rho)[0].cpu()
        optimiser.zero_grad()
        (-value.sum()).backward()
        optimiser.step()
    raise ValueError(f"steps: expected at least 1, got {config.steps}")
