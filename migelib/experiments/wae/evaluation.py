"""What is measured on trained autoencoders: reconstruction, distance of the codes from the prior, samples."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..compare import difference
from ..data import Images
from ..metrics import energy_kernel, frechet_distance, mmd_squared, multiquadric_kernel
from ..networks import digit_classifier
from ..randomness import Streams
from ..records import Quantity, Record
from ..training import Stack, adam, reconstruction_loss, train_classifier
from .networks import Autoencoder

PAIRS = 2000  # codes whose distances from each other are taken


@dataclass(frozen=True)
class Ruler:
    """A classifier's features of the test images, one a seed: the scale on which samples are measured.

    Attributes
    ----------
    features : Stack
        From images [seeds, n, p] to features [seeds, n, f].
    mean, covariance : Tensor [seeds, f] and [seeds, f, f]
        Of the test images' features.
    accuracy : tuple of float
        Of the classifier on the test images, in per cent.
    floor : tuple of float
        Distance of as many training images from the test images.
    """

    features: Stack
    mean: Float[Tensor, "seeds f"]
    covariance: Float[Tensor, "seeds f f"]
    accuracy: tuple[float, ...]
    floor: tuple[float, ...] = ()

    @classmethod
    def train(cls, images: Images, epochs: int, seeds: Sequence[int], device: torch.device) -> Ruler:
        """Train the classifiers on the training images."""
        n, pixels = images.x_train.shape
        classifier = Stack.build(partial(_classifier, math.isqrt(pixels)), seeds, "classifier", device=device)
        indices = Streams(seeds, "classifier", device=device).batches(n, 128, epochs * (n // 128))
        optimiser = adam(classifier.parameters(), 2e-3)
        train_classifier(classifier, lambda index: (images.x_train[index], images.y_train[index]), indices, optimiser)
        with torch.no_grad():
            values = _in_parts(classifier.part("features"), images.x_test.expand(len(seeds), -1, -1))
            right = classifier.part("logits")(values).argmax(-1) == images.y_test
        covariance = torch.stack([features.T.cov() for features in values])
        accuracy = (100 * right.float().mean(-1)).tolist()
        ruler = cls(classifier.part("features"), values.mean(1), covariance, tuple(accuracy))
        few = images.x_train[: len(images.x_test)]
        return replace(ruler, floor=tuple(ruler.distances(few.expand(len(seeds), -1, -1))))

    def of(self, seeds: Sequence[int]) -> Ruler:
        """Return that of some seeds, by their rows."""
        at = list(seeds)
        accuracy, floor = (tuple(values[seed] for seed in seeds) for values in (self.accuracy, self.floor))
        return Ruler(self.features.rows(at), self.mean[at], self.covariance[at], accuracy, floor)

    @torch.no_grad()
    def distances(self, samples: Float[Tensor, "seeds n p"]) -> list[float]:
        """Frechet distance of the features of samples and test images, over the latter's total variance."""
        values = _in_parts(self.features, samples)
        return [
            float(frechet_distance(x.mean(0), x.T.cov(), mean, covariance) / covariance.double().trace())
            for x, mean, covariance in zip(values, self.mean, self.covariance, strict=True)
        ]


def _classifier(side: int) -> nn.Sequential:
    network = digit_classifier(side)
    return nn.Sequential(OrderedDict(features=network[:-1], logits=network[-1]))


def _in_parts(network: Stack, x: Float[Tensor, "seeds n p"]) -> Float[Tensor, "seeds n f"]:
    return torch.cat([network(part) for part in x.split(500, dim=1)], dim=1)  # many images at once are slower


@torch.no_grad()
def evaluate(
    model: Autoencoder, images: Images, ruler: Ruler, noise: Streams
) -> tuple[dict[str, list[float]], Float[Tensor, "seeds n d"], Float[Tensor, "seeds n p"]]:
    """Metrics of every seed on the test images, their codes, and samples of the decoder at draws of the prior."""
    x = images.x_test.expand(len(noise), -1, -1)
    z, _ = model.encode(x, noise)
    prior = noise.normal(*z.shape[1:])
    samples = torch.sigmoid(model.decode(prior))
    few, others = z[:, :PAIRS], prior[:, :PAIRS]
    metrics = {
        "reconstruction": reconstruction_loss(model.decode(z), x).mean(-1).tolist(),
        "energy_distance": mmd_squared(few, others, energy_kernel).tolist(),
        "mmd_squared": mmd_squared(few, others, multiquadric_kernel).tolist(),
        "frechet": ruler.distances(samples),
    }
    return metrics, z, samples


def dominated(run: Record, setting: str, peer: str, method: str) -> dict[float, bool]:
    """For each weight of the peer, whether some weight of the method is better in reconstruction and energy distance.

    Better means lower, by `compare.difference`: the 95 % interval of the difference excludes zero.

    Raises
    ------
    ValueError
        If there is no point of the peer or of the method in that setting, such as "d8-b128-e6".
    """
    mine, others = (_points(run, setting, name) for name in (method, peer))
    return {weight: any(_better(point, other) for point in mine.values()) for weight, other in others.items()}


Point = tuple[Quantity, Quantity]  # reconstruction and energy distance


def _points(run: Record, setting: str, method: str) -> dict[float, Point]:
    found = {}
    for quantity in run.quantities:
        start, _, metric = quantity.rpartition("/")
        if metric == "reconstruction" and start.startswith(f"{method}/{setting}-w"):
            found[float(start.rpartition("-w")[2])] = run[f"{start}/reconstruction"], run[f"{start}/energy_distance"]
    if not found:
        raise ValueError(f"{run.experiment}.{run.profile}: no point of {method!r} in {setting!r}")
    return dict(sorted(found.items()))


def _better(point: Point, other: Point) -> bool:
    return all(difference(a, b).high < 0 for a, b in zip(point, other, strict=True))
