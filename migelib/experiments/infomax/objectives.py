"""What an encoder is trained by: objects that hold the networks and numbers of all seeds, and return the loss of each.

An objective is made from (config, images, seeds, name); the name of the method labels its random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ... import critics
from ...kernels import median_distance
from ...scores import SSGE
from ...surrogates import mutual_information_surrogate
from ..data import Images
from ..networks import LayerFeatures
from ..randomness import Streams, seeded, stream
from ..training import Stack, cross_entropy, own_rows
from .networks import MapMaker, ShortcutCritic, leading, new_encoder, patch_projection, pixel_projection

if TYPE_CHECKING:
    from .config import Config


class Batch(NamedTuple):
    """What an objective sees of a step, a row for each seed."""

    index: Int[Tensor, "seeds n"]
    images: Float[Tensor, "seeds n c h w"]
    labels: Int[Tensor, "seeds n"]
    features: LayerFeatures
    noise: Streams


class Objective:
    """What all objectives have: parameters of their own, by default none, and diagnostics.

    Attributes
    ----------
    trains : bool
        Whether the encoder is trained at all.
    """

    trains = True

    def __call__(self, batch: Batch) -> Tensor:
        """Loss of each seed [seeds], or the sum of their surrogates."""
        raise NotImplementedError

    def parameters(self) -> list[Tensor]:
        """What is trained with the encoder."""
        return []

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers of each seed [seeds] that are logged during training, by name."""
        return {}


class Untrained(Objective):
    """The encoder as it is drawn. Its loss is there to time the steps of an encoder alone."""

    trains = False

    def __init__(self, config: Config, images: Images, seeds: Sequence[int], name: str) -> None:
        pass

    def __call__(self, batch: Batch) -> Float[Tensor, "seeds"]:
        """Mean square of Y."""
        return batch.features.y.square().mean((-2, -1))


class Mige(Objective):
    r"""MIGE with a fixed projection of the image as x and one score estimator: the paper's recipe by default.

    Where `balanced`, the code is standardised over the batch and carries noise, so that the information is finite; and
    x and the code are each divided by their median distance, so that neither drops out of the joint kernel.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        seeds: Sequence[int],
        name: str,
        projection: MapMaker = pixel_projection,
        balanced: bool = False,
        energy: float = 0.99,
    ) -> None:
        # Fixed, so computed once for all images.
        self.x = torch.stack([p(images.x_train) for p in _projections(projection, config, images, seeds, name)])
        self.balanced = balanced
        self.noise = config.noise
        self.estimator = SSGE(energy)

    def pair(self, batch: Batch) -> tuple[Float[Tensor, "seeds n p"], Float[Tensor, "seeds n q"]]:
        """The samples of x and z."""
        x, z = own_rows(self.x, batch.index), batch.features.y
        if not self.balanced:
            return x, z
        z = noisy(standardised(z), self.noise, batch.noise)
        return tuple(v / median_distance(v.detach())[:, None, None] for v in (x, z))

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        """Minus the surrogates of I(x; z), summed over the seeds."""
        return -mutual_information_surrogate(*self.pair(batch), self.estimator)

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers of eigenvalues that the joint and the marginal score keep."""
        x, z = self.pair(batch)
        joint, marginal = (self.estimator.fit(v).n_eigen for v in (torch.cat([x, z], -1), z))
        return {"kept_joint": joint, "kept_marginal": marginal}


class MomentMige(Objective):
    r"""MIGE with Gaussian scores whose moments are moving averages over batches.

    x is the leading principal components of a projection, with noise that hides those of small variance; the code is
    standardised over the batch and carries noise. Both scores are linear, :math:`-\Sigma^{-1} (u - \mu)`.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        seeds: Sequence[int],
        name: str,
        projection: MapMaker = patch_projection,
    ) -> None:
        projections = _projections(projection, config, images, seeds, name)
        components = [leading(p(images.x_train), config.components) for p in projections]
        self.x, variances = (torch.stack(part) for part in zip(*components, strict=True))
        resolved = min(config.resolved, variances.shape[-1]) - 1
        self.x_noise = variances[:, resolved, None, None].sqrt()
        self.noise = config.noise
        self.moments = MovingMoments(config.decay)

    def pair(self, batch: Batch) -> tuple[Float[Tensor, "seeds n p"], Float[Tensor, "seeds n q"]]:
        """The samples of x and z."""
        x = noisy(own_rows(self.x, batch.index), self.x_noise, batch.noise)
        return x, noisy(standardised(batch.features.y), self.noise, batch.noise)

    def __call__(self, batch: Batch) -> Float[Tensor, "seeds"]:
        """Minus a surrogate of I(x; z), in its dependence on z."""
        x, z = self.pair(batch)
        both, start = torch.cat([x, z], -1), x.shape[-1]
        self.moments.update(both)
        joint = self.moments.score(both)[..., start:]
        marginal = self.moments.score(z, start)
        return ((marginal - joint) * z).sum(-1).mean(-1)


class MovingMoments:
    """Moving averages of the mean and the second moments of batches, in double precision, and the Gaussian's score.

    Parameters
    ----------
    decay : float
        Weight of the past, in [0, 1).

    Raises
    ------
    ValueError
        If `decay` is not in its range.
    """

    ridge = 1e-3  # share of the variances, for the first batches

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay!r}")
        self.decay = decay
        self.weight = 0.0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def update(self, samples: Float[Tensor, "*seeds n d"]) -> None:
        """Take a batch in."""
        samples = samples.detach().double()
        new = 1 - self.decay
        self.weight = self.decay * self.weight + new
        self.first = self.decay * self.first + new * samples.mean(-2)
        self.second = self.decay * self.second + new * (samples.mT @ samples) / samples.shape[-2]

    def moments(self) -> tuple[Float[Tensor, "*seeds d"], Float[Tensor, "*seeds d d"]]:
        """Mean and covariance."""
        mean = self.first / self.weight
        covariance = self.second / self.weight - mean[..., :, None] * mean[..., None, :]
        return mean, covariance + self.ridge * torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))

    def score(self, samples: Float[Tensor, "*seeds n d"], start: int = 0) -> Float[Tensor, "*seeds n d"]:
        """Score of the Gaussian of the coordinates from `start` on, at samples of these coordinates."""
        mean, covariance = self.moments()
        centred = samples.detach().double() - mean[..., None, start:]
        # Without the check for a singular matrix, which waits for the device; the ridge sees to that.
        solution, _ = torch.linalg.solve_ex(covariance[..., start:, start:], centred.mT)
        return -solution.mT.to(samples.dtype)


class GlobalCritic(Objective):
    """DIM(G): a critic of the image and Y, trained with the encoder; with or without prior matching.

    The critic's x is the projected image, as in `Mige`; without a projection it is the encoder's own last
    convolutional map, as in Deep InfoMax.

    Prior matching trains a discriminator between the logistic function of Y and uniform noise; the encoder gets its
    gradient reversed.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        seeds: Sequence[int],
        name: str,
        bound: Callable[[Tensor], Tensor],
        concatenated: bool = False,
        prior: bool = False,
        projection: MapMaker | None = pixel_projection,
    ) -> None:
        self.x = None
        if projection is not None:
            self.x = torch.stack([p(images.x_train) for p in _projections(projection, config, images, seeds, name)])
        self.bound = bound
        self.weight = config.prior_weight

        def networks() -> list[nn.Module]:
            x_dim = new_encoder(config, images).conv_dim if self.x is None else self.x.shape[-1]
            if concatenated:
                critic = critics.ConcatenatedCritic(x_dim, config.code, config.critic_hidden)
            else:
                critic = ShortcutCritic(x_dim, config.code, config.critic_hidden, config.embedding)
            return [critic, critics.mlp([config.code, 200, 1])] if prior else [critic]

        drawn = [seeded(networks, stream(seed, "objective", name).initial_seed()) for seed in seeds]
        device = images.x_train.device
        self.networks = [Stack([network.to(device) for network in same]) for same in zip(*drawn, strict=True)]
        self.critic = self.networks[0]
        self.prior = self.networks[1] if prior else None

    def parameters(self) -> list[Tensor]:
        """Those of the critic, and of the discriminator where there is one."""
        return [weight for network in self.networks for weight in network.parameters()]

    def __call__(self, batch: Batch) -> Float[Tensor, "seeds"]:
        """Minus the bound, plus the discriminator's loss where there is one."""
        y = batch.features.y
        x = batch.features.conv.flatten(2) if self.x is None else own_rows(self.x, batch.index)
        loss = -self.bound(self.critic(x, y))
        if self.prior is not None:
            code = torch.sigmoid(y)
            code = code.detach() * 2 - code  # value of the code, minus its gradient
            uniform = batch.noise.uniform(*y.shape[1:])
            errors = functional.softplus(self.prior(code)) + functional.softplus(-self.prior(uniform))
            loss = loss + self.weight * errors.mean((-2, -1))
        return loss


class Reconstruction(Objective):
    """Mean squared error of the image that a two-layer network decodes from Y."""

    def __init__(self, config: Config, images: Images, seeds: Sequence[int], name: str) -> None:
        sizes = [config.code, config.hidden, images.x_train[0].numel()]
        self.decoder = Stack.build(lambda: critics.mlp(sizes), seeds, "objective", name, device=images.x_train.device)

    def parameters(self) -> list[Tensor]:
        """Those of the decoder."""
        return self.decoder.parameters()

    def __call__(self, batch: Batch) -> Float[Tensor, "seeds"]:
        """Error per pixel."""
        return (self.decoder(batch.features.y) - batch.images.flatten(2)).square().mean((-2, -1))


class Supervised(Objective):
    """Cross-entropy of a linear classifier of Y: what the encoder can do when it is told the classes."""

    def __init__(self, config: Config, images: Images, seeds: Sequence[int], name: str) -> None:
        classes = int(images.y_train.max()) + 1
        self.head = Stack.build(
            lambda: nn.Linear(config.code, classes), seeds, "objective", name, device=images.x_train.device
        )

    def parameters(self) -> list[Tensor]:
        """Those of the classifier."""
        return self.head.parameters()

    def __call__(self, batch: Batch) -> Float[Tensor, "seeds"]:
        """Cross-entropy in nats."""
        return cross_entropy(self.head(batch.features.y), batch.labels)


def standardised(z: Float[Tensor, "seeds n d"]) -> Float[Tensor, "seeds n d"]:
    """Batch normalisation without a scale and a shift, over the samples of each seed."""
    variance, mean = torch.var_mean(z, -2, keepdim=True, correction=0)
    return (z - mean) * (variance + 1e-5).rsqrt()


def noisy(z: Float[Tensor, "seeds n d"], scale: float | Tensor, noise: Streams) -> Float[Tensor, "seeds n d"]:
    """Samples plus normal noise of a standard deviation."""
    return z + scale * noise.normal(*z.shape[1:])


def _projections(projection: MapMaker, config: Config, images: Images, seeds: Sequence[int], name: str) -> list:
    return [projection(config, images, stream(seed, "objective", name)) for seed in seeds]
