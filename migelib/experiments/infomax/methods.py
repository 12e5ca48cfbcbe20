"""The methods: objectives that an encoder is trained by, and fixed maps of the image for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import bounds
from ..data import Images
from ..metrics import effective_rank
from ..randomness import stream
from .networks import MapMaker, patch_projection, pca, pca_of_patches, pixel_projection
from .objectives import GlobalCritic, Mige, MomentMige, Reconstruction, Supervised, Untrained
from .training import ObjectiveMaker, features, time_steps, train

if TYPE_CHECKING:
    from .config import Config


class Representation(NamedTuple):
    """What a method makes of the images, for all seeds.

    Attributes
    ----------
    layers : dict of (Tensor [seeds, n, d], Tensor [seeds, m, d])
        Features of the training and of the test images, by layer.
    quantities : dict of list of float
        Further results <layer>/<metric>, one a seed.
    curves : dict of array [seeds, ...]
        Diagnostics of training.
    """

    layers: dict[str, tuple[Tensor, Tensor]]
    quantities: dict[str, list[float]]
    curves: dict[str, np.ndarray]


@dataclass(frozen=True)
class Fixed:
    """A map of the image that no objective trains; it is reported as the layer Y."""

    make: MapMaker

    def represent(self, config: Config, images: Images, seeds: Sequence[int], name: str) -> Representation:
        """Features of all images."""
        maps = [self.make(config, images, stream(seed, name)) for seed in seeds]
        parts = [torch.stack([own(x) for own in maps]) for x in (images.x_train, images.x_test)]
        return Representation({"y": tuple(parts)}, {}, {})


@dataclass(frozen=True)
class Trained:
    """An encoder that is trained by an objective."""

    objective: ObjectiveMaker

    def represent(self, config: Config, images: Images, seeds: Sequence[int], name: str) -> Representation:
        """Train; features of all images, and how many directions Y has."""
        objective = self.objective(config, images, seeds, name)
        encoder, curves = train(config, objective, images, seeds, name)
        layers = features(encoder, images)
        if config.timed_steps and objective.trains:
            times = [time_steps(config, self.objective, images, seed, name) for seed in seeds]
            curves |= {label: np.stack([own[label] for own in times]) for label in times[0]}
        ranks = [effective_rank(own) for own in layers["y"][1]]
        return Representation(layers, {"y/effective_rank": ranks}, curves)


CRITIC_KINDS = {
    "prior": {"prior": True},
    "concatenated": {"concatenated": True},
    "concatenated-prior": {"concatenated": True, "prior": True},
    "map": {"projection": None},
    "patches": {"projection": patch_projection},
}
METHODS: dict[str, Trained | Fixed] = {
    "random": Trained(Untrained),
    "mige": Trained(Mige),
    **{
        f"mige-{size}d": Trained(partial(Mige, projection=partial(pixel_projection, size=size)))
        for size in (8, 64, 2048)
    },
    "mige-balanced": Trained(partial(Mige, balanced=True, energy=0.95)),
    "mige-patches": Trained(partial(Mige, projection=patch_projection)),
    "mige-moments": Trained(MomentMige),
    "mige-moments-pixels": Trained(partial(MomentMige, projection=pixel_projection)),
    "jsd": Trained(partial(GlobalCritic, bound=bounds.jsd)),
    **{f"jsd-{kind}": Trained(partial(GlobalCritic, bound=bounds.jsd, **o)) for kind, o in CRITIC_KINDS.items()},
    "infonce": Trained(partial(GlobalCritic, bound=bounds.infonce)),
    **{
        f"infonce-{kind}": Trained(partial(GlobalCritic, bound=bounds.infonce, **o)) for kind, o in CRITIC_KINDS.items()
    },
    "autoencoder": Trained(Reconstruction),
    "supervised": Trained(Supervised),
    "pca": Fixed(pca),
    "projection": Fixed(pixel_projection),
    "patches": Fixed(patch_projection),
    "patches-pca": Fixed(pca_of_patches),
}
