"""The run: images, the representation of every method, and the classifiers that judge it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ... import critics
from .. import data
from ..randomness import Streams, stream
from ..training import Stack, own_rows, train_classifier
from .methods import METHODS

if TYPE_CHECKING:
    from .config import Config


def data_source(config: Config) -> str:
    """Where the images came from."""
    return data.load(config.dataset).source


def prepare(config: Config, device: torch.device) -> data.Images:
    """The images: the same ones for every seed and method, standardised by the training images' channels."""
    dataset = data.load(config.dataset)
    chosen = [
        _choose("train", config.train, len(dataset.y_train), config.dataset),
        _choose("test", config.test, len(dataset.y_test), config.dataset),
    ]
    x_train, y_train, x_test, y_test = data.load_images(config.dataset, device, *chosen)
    if config.size is not None and config.size != x_train.shape[-1]:
        x_train, x_test = (nn.functional.adaptive_avg_pool2d(x, config.size) for x in (x_train, x_test))
    mean = x_train.mean((0, 2, 3), keepdim=True)
    std = x_train.std((0, 2, 3), keepdim=True)
    x_train, x_test = (((x - mean) / std).contiguous(memory_format=torch.channels_last) for x in (x_train, x_test))
    return data.Images(x_train, y_train, x_test, y_test)


def _choose(name: str, count: int | None, available: int, dataset: str) -> Int[Tensor, "count"] | slice:
    if count is None:
        return slice(None)
    if count > available:
        raise ValueError(f"{name}: {dataset} has {available} images only, got {count}")
    return torch.randperm(available, generator=stream(0, "images", name))[:count]


def run_seeds(
    config: Config, shared: data.Images, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Accuracies of every method and layer, for each seed; all seeds are trained at once.

    The quantities are <method>/<layer>/test_accuracy, with the one-hidden-layer classifier, <method>/<layer>/
    probe_accuracy, with the linear one, and the effective rank of Y over the test images. The curves are the
    diagnostics of `train`, named <method>/<diagnostic>, and the times of `time_steps`.
    """
    results = [({}, {}) for _ in seeds]
    for name in config.methods:
        layers, further, curves = METHODS[name].represent(config, shared, seeds, name)
        measured = dict(further)
        for layer, (train_features, test_features) in layers.items():
            pairs = (train_features, shared.y_train), (test_features, shared.y_test)
            for metric, hidden in (("test_accuracy", config.classifier_hidden), ("probe_accuracy", None)):
                measured[f"{layer}/{metric}"] = classifier_accuracies(
                    config, *pairs, hidden, seeds, "classifier", layer, metric
                )
        for row, (quantities, own_curves) in enumerate(results):
            quantities |= {f"{name}/{label}": values[row] for label, values in measured.items()}
            own_curves |= {f"{name}/{label}": values[row] for label, values in curves.items()}
    return results


def classifier_accuracies(
    config: Config,
    train: tuple[Float[Tensor, "seeds n d"], Int[Tensor, "n"]],
    test: tuple[Float[Tensor, "seeds m d"], Int[Tensor, "m"]],
    hidden: int | None,
    seeds: Sequence[int],
    *label: object,
) -> list[float]:
    """Test accuracies in per cent of classifiers of standardised features, with one hidden layer or none.

    Parameters
    ----------
    config : Config
    train, test : tuple
        Features of each seed, and the classes.
    hidden : int, optional
        Units of the hidden layer; None for a linear classifier.
    seeds : sequence of int
    *label
        Of the random numbers: initial weights and batches.

    Returns
    -------
    list of float
        One a seed.
    """
    (x, labels), (x_test, labels_test) = train, test
    std, mean = torch.std_mean(x, 1, keepdim=True)
    std = torch.where(std > 0, std, torch.ones_like(std))  # of units that never fire
    x, x_test = (x - mean) / std, (x_test - mean) / std
    n, device = x.shape[1], x.device
    sizes = [x.shape[2], *([hidden] if hidden else []), int(labels.max()) + 1]
    classifier = Stack.build(lambda: critics.mlp(sizes), seeds, *label, device=device)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=config.classifier_rate, weight_decay=1e-3, fused=True)
    size = min(config.classifier_batch, n)
    total = config.classifier_epochs * (n // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / total)
    indices = Streams(seeds, *label, device=device).batches(n, size, total)
    train_classifier(classifier, lambda index: (own_rows(x, index), labels[index]), indices, optimiser, schedule)
    with torch.no_grad():
        correct = classifier(x_test).argmax(-1) == labels_test
    return (100 * correct.double().mean(-1)).tolist()
