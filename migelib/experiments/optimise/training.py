"""Runs of a method on a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..metrics import clock
from ..training import adam, descend
from .config import TARGET, WINDOW, Config, units
from .methods import METHODS
from .task import Pair, information, initial

Result = tuple[dict[str, float], dict[str, np.ndarray]]


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the cells."""


def run_seeds(config: Config, shared: None, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Outcome of every method in every cell."""
    results: list[Result] = [({}, {}) for _ in seeds]
    for cell in units(config):
        name = f"{cell.methods[0]}/{cell.goals[0]}-{cell.families[0]}-d{cell.dims[0]}-{cell.parameters[0]}"
        for (quantities, curves), outcome in zip(results, optimised(cell, seeds, device), strict=True):
            quantities |= {f"{name}/{metric}": value for metric, value in outcome.quantities(cell).items()}
            curves[f"{name}/information"] = outcome.information[:: max(1, cell.budget // 100)]
    return results


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes
    ----------
    information : array [updates + 1]
        Before the first update and after each, in nats; where the run has stopped it stays as it was.
    updates : int
        Updates made.
    failed : bool
        Whether a parameter was not finite, or the method refused a batch; the last finite ones then count.
    ms : float
        CPU time of an update, in milliseconds; on CUDA wall time.
    """

    information: np.ndarray
    updates: int
    failed: bool
    ms: float

    def quantities(self, config: Config) -> dict[str, float]:
        """Values of `METRICS`."""
        (goal,) = config.goals
        judged = self.information[-max(1, config.budget // WINDOW) :] if goal == "min" else self.information[-1:]
        reached = judged.max() < TARGET["min"] if goal == "min" else judged.min() >= TARGET["max"]
        return {
            "attained": float(reached and not self.failed),
            "final": float(judged.mean()),
            "failures": float(self.failed),
            "updates": float(self.updates),
            "ms": self.ms,
        }


REFUSALS = (ArithmeticError, ValueError, torch.linalg.LinAlgError)


def optimised(config: Config, seeds: Sequence[int], device: torch.device) -> list[Outcome]:
    """Optimise the information of one cell by one method."""
    try:
        return _optimised(config, seeds, device)
    except REFUSALS:  # one seed's batch; the others go on
        return [_optimised(config, [seed], device)[0] for seed in seeds]


def _optimised(config: Config, seeds: Sequence[int], device: torch.device) -> list[Outcome]:
    (goal,), (parameters,), (dim,), (name,) = config.goals, config.parameters, config.dims, config.methods
    pair, method = Pair(config, seeds, device), METHODS[name](config, seeds, device)
    theta = initial(goal, parameters, dim).to(device).repeat(len(seeds), 1).requires_grad_()
    optimiser, sign = adam([theta], config.learning_rate), 1 if goal == "min" else -1
    active = torch.ones(len(seeds), dtype=torch.bool, device=device)
    failed, updates = torch.zeros_like(active), torch.zeros(len(seeds), dtype=torch.long, device=device)
    history = [information(theta.detach(), dim)]
    started = clock(device)
    for step in range(config.budget):
        if step % 20 == 0 and not bool(active.any()):  # not every time: it waits for the device
            break
        updates += active
        before = theta.detach().clone()
        try:
            method.learn(lambda: pair.sample(theta.detach()))
            descend(optimiser, sign * method.surrogate(pair.sample(theta)))
        except REFUSALS:
            if len(seeds) > 1:
                raise
            theta.detach().fill_(torch.nan)
        finite = theta.detach().isfinite().all(-1)
        failed |= active & ~finite
        active &= finite
        theta.detach().copy_(torch.where(active[:, None], theta.detach(), before))
        history.append(information(theta.detach(), dim))
        if goal == "max":
            active &= history[-1] < TARGET["max"]
    ms = 1000 * (clock(device) - started) / (len(history) - 1) / len(seeds)
    history += history[-1:] * (config.budget + 1 - len(history))
    curves = torch.stack(history, dim=-1).cpu().numpy()
    return [Outcome(*row, ms) for row in zip(curves, updates.tolist(), failed.tolist(), strict=True)]
