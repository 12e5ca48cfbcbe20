r"""Wasserstein autoencoders, whose codes are pushed to a Gaussian: reconstruction against distance from that prior.

The aggregate posterior of a Wasserstein autoencoder [Tolstikhin et al., ICLR 2018] is matched to the prior by the
gradient of :math:`\mathrm{KL}(q(z) \,\|\, p)`, with an estimated score [Wen et al., Knowledge-Based Systems 224,
2021], beside maximum mean discrepancies, a discriminator, and a variational autoencoder [Kingma & Welling, ICLR 2014].
Each has weights, and so a frontier. Explained in :doc:`/book/autoencoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ..data import Images, load, load_vectors
from ..metrics import clock
from ..randomness import Streams
from .config import PROFILES, STUDIES, Config, Frontier
from .evaluation import Ruler, dominated, evaluate
from .objectives import ESTIMATORS, METHODS
from .training import train

__all__ = [
    "ESTIMATORS",
    "METHODS",
    "METRICS",
    "PROFILES",
    "STUDIES",
    "Config",
    "Frontier",
    "Ruler",
    "Shared",
    "data_source",
    "dominated",
    "evaluate",
    "prepare",
    "run_seeds",
    "train",
]

METRICS = {
    "reconstruction": "nat",
    "energy_distance": "1",
    "mmd_squared": "1",
    "frechet": "1",
    "accuracy": "%",
}
Result = tuple[dict[str, float], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Shared:
    """The images, and the classifiers that measure samples, one for every seed of the run."""

    images: Images
    ruler: Ruler


def data_source(config: Config) -> str:
    """Where the images come from."""
    return load(config.data).source


def prepare(config: Config, device: torch.device) -> Shared:
    """Load the images, and train the classifiers of all seeds."""
    return _prepared(config.data, config.images, config.test_images, config.classifier_epochs, config.seeds, device)


@lru_cache(maxsize=1)  # the same for every method, and so for all parts of a run
def _prepared(data: str, images: int, test_images: int, epochs: int, seeds: int, device: torch.device) -> Shared:
    loaded = load_vectors(data, images, test_images, device)
    return Shared(loaded, Ruler.train(loaded, epochs, range(seeds), device))


def run_seeds(config: Config, shared: Shared, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Every method of the configuration with all its weights in all settings.

    Quantities are named <method>/d<code>-b<batch>-e<epochs>-w<weight>/<metric>; those of the classifier come with every
    method. The curves are codes, samples and labels for figures, and <...>/training_s, the seconds of every training by
    `clock`, an equal share of them for each of the seeds that were trained together.
    """
    ruler = shared.ruler.of(seeds)
    labels = shared.images.y_test[:1000].to(torch.uint8).cpu().numpy()
    results: list[Result] = [
        ({"classifier/test/accuracy": accuracy, "train-images/test/frechet": floor}, {"labels": labels})
        for accuracy, floor in zip(ruler.accuracy, ruler.floor, strict=True)
    ]
    for frontier in config.frontiers:
        for method, weights in frontier.weights:
            for weight in weights if method in config.methods else ():
                found = _run_one(method, weight, frontier, config, shared.images, ruler, seeds, device)
                for (quantities, curves), (more_quantities, more_curves) in zip(results, found, strict=True):
                    quantities |= more_quantities
                    curves |= more_curves
    return results


def _run_one(
    method: str,
    weight: float,
    frontier: Frontier,
    config: Config,
    images: Images,
    ruler: Ruler,
    seeds: Sequence[int],
    device: torch.device,
) -> list[Result]:
    """Train and measure one method with one weight."""
    name = f"{method}/{frontier.setting}-w{weight:g}"
    started = clock(device)
    model = train(method, weight, frontier, config, images.x_train, seeds, device)
    seconds = np.float32((clock(device) - started) / len(seeds))
    noise = Streams(seeds, "evaluate", frontier.code, device=device)
    metrics, codes, samples = evaluate(model, images, ruler, noise)
    kept = (method, weight) in config.kept
    results = []
    for row in range(len(seeds)):
        curves = {f"{name}/training_s": seconds}
        if kept and frontier.code == 2:
            curves[f"{name}/codes"] = codes[row, :1000].cpu().numpy().astype(np.float16)
        elif kept and frontier == config.frontiers[0]:
            curves[f"{name}/samples"] = (255 * samples[row, :10]).to(torch.uint8).cpu().numpy()
        results.append(({f"{name}/{metric}": values[row] for metric, values in metrics.items()}, curves))
    return results
