"""Training of the encoders of all seeds, what is logged and timed meanwhile, and their features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data import Images
from ..metrics import clock, effective_rank
from ..randomness import Streams, stream
from ..training import Stack, adam, descend
from .networks import new_encoder
from .objectives import Batch, Objective, Untrained

if TYPE_CHECKING:
    from .config import Config

LAYERS = ("conv", "fc", "y")
ObjectiveMaker = Callable[["Config", Images, Sequence[int], str], Objective]


class Trainer:
    """The encoders of all seeds, an objective and their optimiser; `step` takes one step.

    Parameters
    ----------
    config : Config
    objective : Objective
    images : Images
    seeds : sequence of int
        All methods start from the encoder of a seed, and see the same batches.
    name : str
        Of the method.
    """

    def __init__(self, config: Config, objective: Objective, images: Images, seeds: Sequence[int], name: str) -> None:
        device = images.x_train.device
        self.images = images
        self.objective = objective
        self.noise = Streams(seeds, "noise", name, device=device)
        self.encoder = Stack.build(lambda: new_encoder(config, images), seeds, "encoder", device=device)
        self.optimiser = adam([*self.encoder.parameters(), *objective.parameters()], config.rate(name))

    def step(self, index: Int[Tensor, "seeds b"]) -> Batch:
        """One step on the images of that index; the gradients are left for inspection."""
        batch = self.batch(index)
        descend(self.optimiser, self.objective(batch))
        return batch

    def batch(self, index: Int[Tensor, "seeds b"]) -> Batch:
        """The images of that index, and their features."""
        images = self.images.x_train[index]
        return Batch(index, images, self.images.y_train[index], self.encoder(images), self.noise)


def train(
    config: Config, objective: Objective, images: Images, seeds: Sequence[int], name: str
) -> tuple[Stack, dict[str, Float[np.ndarray, "seeds points"]]]:
    """Train the encoders of all seeds.

    Returns
    -------
    Stack
        The encoders, in evaluation mode.
    dict
        Diagnostics at `config.log_points` steps of training: "step"; of the batch's Y, "effective_rank" and "scale",
        the root mean variance of its coordinates; "gradient_norm", of the encoder's parameters; and what the objective
        has to say.
    """
    trainer = Trainer(config, objective, images, seeds, name)
    n = len(images.x_train)
    order = Streams(seeds, "batches", device=images.x_train.device)
    if not objective.trains:  # a few batches for the running means of batch normalisation
        for index in order.permutation(n)[:, : 20 * config.batch].split(config.batch, -1):
            with torch.no_grad():
                trainer.batch(index)
        return trainer.encoder.eval(), {}
    total = config.epochs * (n // config.batch)
    logged = {round(i) for i in np.linspace(0, total - 1, min(config.log_points, total))}
    history = defaultdict(list)
    for step, index in enumerate(order.batches(n, config.batch, total)):
        batch = trainer.step(index)
        if step in logged:
            for label, values in ({"step": [step] * len(seeds)} | diagnostics(trainer, batch)).items():
                history[label].append(values)
    return trainer.encoder.eval(), {label: np.array(rows, np.float32).T for label, rows in history.items()}


@torch.no_grad()
def diagnostics(trainer: Trainer, batch: Batch) -> dict[str, list[float]]:
    """What `train` logs after a step, a number for each seed."""
    y = batch.features.y
    gradients = [w.grad.flatten(1).norm(dim=1) for w in trainer.encoder.parameters()]
    return {
        "effective_rank": [effective_rank(own) for own in y],
        "scale": y.var(1).mean(-1).sqrt().tolist(),
        "gradient_norm": torch.stack(gradients).norm(dim=0).tolist(),
    } | {label: values.tolist() for label, values in trainer.objective.diagnostics(batch).items()}


def time_steps(
    config: Config, objective: ObjectiveMaker, images: Images, seed: int, name: str
) -> dict[str, Float[np.ndarray, "steps"]]:
    """Milliseconds of `config.timed_steps` training steps of one seed.

    Returns
    -------
    dict
        "step_ms" of the method, and "encoder_step_ms" of an encoder alone, whose steps are between the others.
    """
    device = images.x_train.device
    trainers = {
        label: Trainer(config, make(config, images, [seed], name), images, [seed], name)
        for label, make in (("encoder_step_ms", Untrained), ("step_ms", objective))
    }
    times = defaultdict(list)
    for step in range(config.timed_steps + 2):
        order = torch.randperm(len(images.x_train), generator=stream(seed, "time", step))
        index = order[None, : config.batch].to(device)
        for label, trainer in trainers.items():
            started = clock(device)
            trainer.step(index)
            times[label].append(1e3 * (clock(device) - started))
    return {label: np.array(values[2:], np.float32) for label, values in times.items()}  # the first warm up


@torch.no_grad()
def features(encoder: Stack, images: Images) -> dict[str, tuple[Tensor, Tensor]]:
    """Frozen features of the training and the test images [seeds, n, d], by layer, flattened."""

    def evaluate(x: Tensor) -> list[Tensor]:
        parts = [encoder(rows.expand(len(encoder), *rows.shape)) for rows in x.split(500)]
        return [torch.cat([getattr(part, layer).flatten(2) for part in parts], 1) for layer in LAYERS]

    return dict(zip(LAYERS, zip(evaluate(images.x_train), evaluate(images.x_test), strict=True), strict=True))
