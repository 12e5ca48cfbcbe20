r"""Variational autoencoders whose posterior of each image is implicit: noise at the encoder's input, and no density.

The evidence bound of a variational autoencoder [Kingma & Welling, ICLR 2014] has the divergence
:math:`\mathrm{KL}(q(z \mid x) \,\|\, p)` of each image's codes from the prior. An implicit encoder trains on its
gradient, with a score estimated from several codes of the image [Wen et al., Knowledge-Based Systems 224, 2021];
beside it stand Gaussian encoders, which have it in closed form. Explained in :doc:`/book/autoencoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data import load, load_vectors
from ..metrics import clock
from ..randomness import stream
from .config import PROFILES, STUDIES, Config
from .evaluation import evaluate
from .objectives import METHODS
from .training import train

__all__ = [
    "METHODS",
    "METRICS",
    "PROFILES",
    "STUDIES",
    "Config",
    "Shared",
    "data_source",
    "evaluate",
    "prepare",
    "run_seeds",
    "train",
]

METRICS = {
    "reconstruction": "nat",
    "log_likelihood": "nat",
    "grid_log_likelihood": "nat",
    "posterior_distance": "1",
}


@dataclass(frozen=True)
class Shared:
    """Training images as rows of grey values, and binary test images."""

    train: Float[Tensor, "n p"]
    test: Float[Tensor, "b p"]


Result = tuple[dict[str, float], dict[str, np.ndarray]]


def data_source(config: Config) -> str:
    """Where the images come from."""
    return load(config.data).source


def prepare(config: Config, device: torch.device) -> Shared:
    """Load the images, and binarise those whose likelihood is bounded, the same for all seeds."""
    images = load_vectors(config.data, config.images, config.test_images, device)
    return Shared(images.x_train, binarised(images.x_test[: config.likelihood_images]))


def binarised(x: Float[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    """Images whose pixels are one with the probability of their grey value, else zero."""
    return (torch.rand(x.shape, generator=stream(0, "binarise")).to(x) < x).to(x)


def run_seeds(config: Config, shared: Shared, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Every method of the configuration with all sizes of the code.

    Quantities are named <method>/posterior-d<code>/<metric>. The curves are codes of a few images for figures, and
    <...>/training_s, the seconds of every training by `clock`, an equal share of them for each of the seeds that were
    trained together.
    """
    results: list[Result] = [({}, {}) for _ in seeds]
    for code in config.posterior_codes:
        for method in config.methods:
            started = clock(device)
            model = train(method, code, config, shared.train, seeds, device)
            seconds = np.float32((clock(device) - started) / len(seeds))
            metrics, few = evaluate(model, METHODS[method], code, config, shared.test, seeds, device)
            start = f"{method}/posterior-d{code}"
            for row, (quantities, curves) in enumerate(results):
                quantities |= {f"{start}/{metric}": values[row] for metric, values in metrics.items()}
                curves[f"{start}/training_s"] = seconds
                curves |= {f"{start}/{name}": x[row].cpu().numpy().astype(np.float16) for name, x in few.items()}
    return results
