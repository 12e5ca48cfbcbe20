"""Training the bottleneck for all seeds at once, the choice of weights, and the experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..data import load, load_images
from ..randomness import Streams, stream
from ..training import adam, cross_entropy, descend
from .config import Config
from .measures import measure, measure_plane, predict, prediction
from .networks import Model, sample
from .objectives import METHODS, Minibatch, Penalty, Regulariser

SETTING = "mnist"


@dataclass
class RegularisedLoss:
    """Cross-entropy plus a weight times a penalty, summed over the seeds.

    Attributes
    ----------
    weight, smoothing : float
        Of the penalty, and of the uniform law in the labels.
    penalty : Penalty, optional
        With its state, such as moments of past codes.
    """

    weight: float
    smoothing: float
    penalty: Penalty | None

    def parameters(self) -> list[Tensor]:
        """What the optimiser trains along with the network."""
        return [] if self.penalty is None else self.penalty.parameters()

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """The loss of a batch."""
        loss = cross_entropy(batch.logits, batch.y, self.smoothing).sum()
        return loss if self.penalty is None else loss + self.weight * self.penalty(batch)


def train(
    method: Regulariser,
    weight: float,
    x: Float[Tensor, "m p"],
    y: Int64[Tensor, "m"],
    rows: Int64[Tensor, "seeds n"],
    config: Config,
    seeds: Sequence[int],
) -> Model:
    """Train the networks of all seeds, each on its rows of the images.

    All methods of one seed share the initial weights where they fit, and the images' order.
    """
    noise, order = (Streams(seeds, label, device=x.device) for label in ("train", "order"))
    model, objective = start(method, weight, x.shape[1], config, noise, Streams(seeds, "penalty", device=x.device))
    weights = model.parameters()
    optimiser = adam([*weights, *objective.parameters()], config.learning_rate, config.adam_beta)
    average, count, n = [w.detach().clone() for w in weights], 0, rows.shape[1]
    for epoch in range(config.epochs):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * config.rate_factor ** (epoch // config.rate_every)
        for index in order.permutation(n)[:, : n // config.batch * config.batch].split(config.batch, dim=1):
            own = rows.gather(1, index)
            step(model, objective, optimiser, x[own], y[own], noise, config)
            count += 1
            with torch.no_grad():  # the average forgets faster in the first steps
                torch._foreach_lerp_(average, weights, max(1 - config.decay, 1 / (1 + count / 3)))
    with torch.no_grad():
        torch._foreach_copy_(weights, average)
    if config.hidden_noise:
        model.set_statistics(x[rows])
    model.encoder.eval()
    return model


def start(
    method: Regulariser, weight: float, pixels: int, config: Config, noise: Streams, other: Streams
) -> tuple[Model, RegularisedLoss]:
    """Networks with new weights, and what they are to minimise; `other` is for what the penalty draws."""
    model = Model.build(
        method.encoder,
        pixels,
        config.hidden,
        config.code,
        noise,
        config.hidden_noise,
        dropout=weight if method.dropout else 0.0,
    )
    penalty = None if method.penalty is None else method.penalty(pixels, config.code, other)
    return model, RegularisedLoss(weight, weight if method.smoothing else 0.0, penalty)


def step(
    model: Model,
    objective: RegularisedLoss,
    optimiser: torch.optim.Optimizer,
    images: Float[Tensor, "seeds n p"],
    labels: Int64[Tensor, "seeds n"],
    noise: Streams,
    config: Config,
) -> None:
    """One step of every seed's networks on a batch of its own."""
    n, pixels = images.shape[1:]
    if config.image_noise:
        images = images + config.image_noise * noise.normal(n, pixels)
    drawn = model.noise(n, noise, training=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bfloat16):
        encoded = model.encode(images, drawn)
    z = sample(encoded, noise)
    code = None if z is encoded else encoded
    descend(optimiser, objective(Minibatch(images, labels, code, z, model.decoder(z))))


# --- the experiment --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """What all seeds share.

    Attributes
    ----------
    x, y, x_test, y_test : Tensor
        Training and test images as vectors in -1..1, with labels; the last training images are for validation.
    weights : dict
        Regulariser -> weight.
    tuned : dict
        tuning/<method>/validation_error [weights of the grid, runs], of every method whose weight was not given.
    """

    x: Float[Tensor, "m p"]
    y: Int64[Tensor, "m"]
    x_test: Float[Tensor, "n p"]
    y_test: Int64[Tensor, "n"]
    weights: dict[str, float]
    tuned: dict[str, np.ndarray]


def data_source(config: Config) -> str:
    """Where the images come from, in a few words."""
    return load(config.data).source


def prepare(config: Config, device: torch.device, tuned: dict[str, np.ndarray] | None = None) -> Shared:
    """Load the images, and find the weight of every method that has none.

    It is that of least mean validation error. The images are training images of which the last are held out; the
    seeds are none of the reported ones.

    Parameters
    ----------
    config : Config
        The settings.
    device : torch.device
        Where to train.
    tuned : dict, optional
        `Shared.tuned` of an earlier call, which is not made again.
    """
    shared = Shared(*_images(config.data, device), {}, {})
    given, known = dict(config.weights), tuned or {}
    for name in config.methods:
        method = METHODS[name]
        if name in given or not method.needs_weight:
            shared.weights[name] = given.get(name, 0.0)
            continue
        curve = f"tuning/{name}/validation_error"
        errors = known[curve] if curve in known else _validation_errors(method, config, shared)
        shared.weights[name] = method.grid[int(errors.mean(1).argmin())]
        shared.tuned[curve] = errors
    return shared


def run_seeds(
    config: Config, shared: Shared, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Every method at its weight, and the information plane, for each of the seeds.

    The curves are tuning/<method>/validation_error over the grid (the same for every seed), <method>/<metric> of each
    seed, for paired tests, and plane/<method>/<metric> over the plane's weights.
    """
    results: list[tuple[dict, dict]] = [({}, dict(shared.tuned)) for _ in seeds]
    rows = _draw(config.train, len(shared.x), seeds, device)
    for name in config.methods:
        weight = shared.weights[name]
        model = train(METHODS[name], weight, shared.x, shared.y, rows, config, seeds)
        measured = measure(model, shared.x_test, shared.y_test, config, seeds)
        for (quantities, curves), metrics in zip(results, measured, strict=True):
            quantities |= {f"{name}/{SETTING}/{metric}": value for metric, value in metrics.items()}
            quantities[f"{name}/{SETTING}/weight"] = weight
            curves |= {f"{name}/{metric}": np.float32(value) for metric, value in metrics.items()}
    for name in config.plane:
        for (_, curves), metrics in zip(results, _plane(METHODS[name], config, shared, seeds), strict=True):
            curves |= {f"plane/{name}/{metric}": values for metric, values in metrics.items()}
    return results


def _plane(
    method: Regulariser, config: Config, shared: Shared, seeds: Sequence[int]
) -> list[dict[str, Float[np.ndarray, "weights"]]]:
    """Metrics over the plane's weights, at the smaller scale, for each seed."""
    rows = _draw(config.small.train, len(shared.x), seeds, shared.x.device)
    points = []
    for weight in config.plane_weights:
        model = train(method, weight, shared.x, shared.y, rows, config.small, seeds)
        points.append(measure_plane(model, shared.x_test, shared.y_test, config, seeds))
    return [
        {metric: np.array([point[metric] for point in own], np.float32) for metric in own[0]}
        for own in zip(*points, strict=True)
    ]


def _validation_errors(method: Regulariser, config: Config, shared: Shared) -> Float[np.ndarray, "grid runs"]:
    seeds = range(1000, 1000 + config.tuning_seeds)
    pool = len(shared.x) - config.validation
    rows = _draw(config.small.train, pool, seeds, shared.x.device)
    errors = []
    for weight in method.grid:
        model = train(method, weight, shared.x, shared.y, rows, config.small, seeds)
        streams = Streams(seeds, "validation", device=shared.x.device)
        log_probs = predict(model, shared.x[pool:], config.samples, streams)
        errors.append([prediction(own, shared.y[pool:])["test_error"] for own in log_probs])
    return np.array(errors, np.float32)


def _images(name: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order = torch.randperm(len(load(name).y_train), generator=stream(0, "split"))
    x, y, x_test, y_test = load_images(name, device, order)
    return 2 * x.flatten(1) - 1, y, 2 * x_test.flatten(1) - 1, y_test


def _draw(n: int, pool: int, seeds: Sequence[int], device: torch.device) -> Int64[Tensor, "seeds n"]:
    """Rows of n of the first `pool` images for each seed."""
    if n > pool:
        raise ValueError(f"train: expected at most {pool} images, got {n}")
    return Streams(seeds, "images").permutation(pool)[:, :n].to(device)
