r"""The toy experiment: the gradient of the mutual information of correlated Gaussians over a grid of correlations.

Figure 1 of the MIGE paper [Wen et al., ICLR 2020] with the settings of its published code, and what that figure lacks:
MINE with a working bias correction, and the exact scores, whose error is the Monte-Carlo floor.
Explained in :doc:`/book/toy-gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import bounds, critics
from ..scores import SSGE
from ..surrogates import mutual_information_surrogate
from ..tasks import CorrelatedGaussian, exact_score_surrogate
from .randomness import seeded, stream
from .training import Stack, adam, descend

METRICS = {"relative_error": "1", "value_relative_error": "1", "denominator_ratio": "1"}

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
    "quick": Config(seeds=8, bound_dims=(8,), bound_points=4, hidden=192),
    "full": Config(seeds=5),
}
STUDIES: dict[str, Config] = {}

Result = tuple[dict[str, float], dict[str, np.ndarray]]
Bound = Callable[[Float[Tensor, "g n n"], "Tensor | None"], "tuple[Float[Tensor, 'g'], Tensor | None]"]


def units(config: Config) -> list[Config]:
    """The score-based methods, and the bounds of each dimension."""
    bounds_of = [replace(config, dims=(), bound_dims=(dim,)) for dim in config.bound_dims]
    return [replace(config, bound_dims=()), *bounds_of]


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(config: Config, shared: None, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Errors and curves of every method and dimension.

    The quantities are the relative errors of the gradient and, for the bounds, of the value; and for MINE the ratio of
    the batch's mean of exp(T) to the moving average that replaces it, as a mean over training and grid. The curves are
    named <method>/d<dim>/gradient and <method>/d<dim>/value.
    """
    results = [score_errors(config, seed, device) for seed in seeds]
    for (quantities, curves), found in zip(results, bound_errors(config, seeds, device), strict=True):
        quantities |= found[0]
        curves |= found[1]
    return results


def score_errors(config: Config, seed: int, device: torch.device) -> Result:
    """Errors and curves of the methods with scores, for one seed."""
    grid = torch.linspace(-config.rho_max, config.rho_max, config.points)
    quantities, curves = {}, {}
    for dim in config.dims:
        truth = CorrelatedGaussian(dim, grid).mutual_information_gradient()
        for method, estimate in (("mige", mige_gradient), ("exact", exact_score_gradient)):
            gradient = estimate(dim, grid, config.n, stream(seed, "mige", dim), device)
            quantities[f"{method}/d{dim}/relative_error"] = relative_error(gradient, truth)
            curves[f"{method}/d{dim}/gradient"] = gradient.numpy()
    return quantities, curves


def bound_errors(config: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Errors and curves of the bounds, whose critics are trained for these seeds at once."""
    grid = torch.linspace(-config.rho_max, config.rho_max, config.bound_points)
    objectives: dict[str, Bound] = {
        "mine-dv": lambda critic, _: (bounds.donsker_varadhan(critic), None),
        "mine-ema": lambda critic, running: bounds.mine(critic, running, config.decay),
        "mine-f": lambda critic, _: (bounds.nwj(critic), None),
    }
    results: list[Result] = [({}, {}) for _ in seeds]
    for dim in config.bound_dims:
        task = CorrelatedGaussian(dim, grid)
        for method, bound in objectives.items():
            name, trained = f"{method}/d{dim}", train_bound(bound, dim, grid, config, seeds, (method, dim), device)
            for (quantities, curves), gradient, value, ratio in zip(results, *trained, strict=True):
                quantities[f"{name}/relative_error"] = relative_error(gradient, task.mutual_information_gradient())
                quantities[f"{name}/value_relative_error"] = relative_error(value, task.mutual_information().detach())
                if method == "mine-ema":
                    quantities[f"{name}/denominator_ratio"] = float(ratio.mean())
                curves |= {f"{name}/gradient": gradient.numpy(), f"{name}/value": value.numpy()}
    return results


def relative_error(curve: Float[Tensor, "g"], truth: Float[Tensor, "g"]) -> float:
    r"""Error of a curve over the grid, :math:`\|g - g_{true}\|_2 / \|g_{true}\|_2`."""
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
    """MIGE with the true scores in place of estimates: what remains is Monte-Carlo noise."""
    rho = rho.to(device).requires_grad_()
    task = CorrelatedGaussian(dim, rho)
    x, y = task.sample(n, generator)
    (gradient,) = torch.autograd.grad(exact_score_surrogate(task, x, y), rho)
    return gradient.cpu()


def train_bound(
    bound: Bound,
    dim: int,
    rho: Float[Tensor, "g"],
    config: Config,
    seeds: Sequence[int],
    label: tuple[object, ...],
    device: torch.device,
) -> tuple[Float[Tensor, "seeds g"], Float[Tensor, "seeds g"], Float[Tensor, "seeds g"]]:
    """Train a variational bound at every correlation of the grid.

    All critics of the seeds and the grid are trained at once; each sees its own fresh batch at every step.

    Returns
    -------
    gradient, value : Tensor [seeds, g]
        Gradient of the bound in rho, and the bound, on the batch of the last step.
    ratio : Tensor [seeds, g]
        Mean over all steps of a batch's mean of exp(T) over its moving average; one for bounds without one.
    """
    grids = rho.to(device).repeat(len(seeds), 1).requires_grad_()
    tasks = [CorrelatedGaussian(dim, own) for own in grids]
    generators = [stream(seed, *label, device=device) for seed in seeds]
    networks = [network for generator in generators for network in _critics(dim, len(rho), config, generator)]
    stack = Stack([network.to(device) for network in networks])
    optimiser = adam(stack.parameters(), config.learning_rate)
    running, ratios = None, []
    for step in range(config.steps):
        drawn = [task.sample(config.n, generator) for task, generator in zip(tasks, generators, strict=True)]
        x, y = (torch.cat(part) for part in zip(*drawn, strict=True))
        last = step == config.steps - 1
        critic = stack(x, y if last else y.detach())
        value, running = bound(critic, running)
        log_mean = bounds.log_mean_exp_product(critic).detach()
        ratios.append(torch.exp(log_mean - (log_mean if running is None else running)))
        if not last:
            descend(optimiser, -value)
    (gradient,) = torch.autograd.grad(value.sum(), grids)
    value, ratio = (part.unflatten(0, gradient.shape) for part in (value.detach(), torch.stack(ratios).mean(0)))
    return gradient.cpu(), value.cpu(), ratio.cpu()


def _critics(dim: int, count: int, config: Config, generator: torch.Generator) -> list[nn.Module]:
    """Critics of one seed, one for each correlation."""
    return seeded(
        lambda: [critics.SeparableCritic(dim, dim, config.hidden, config.embedding) for _ in range(count)],
        generator.initial_seed(),
    )
