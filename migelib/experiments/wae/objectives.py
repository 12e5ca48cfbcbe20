"""What pushes the codes to their prior: an entropy gradient, maximum mean discrepancies, a discriminator.

A method starts a penalty for all seeds, a function of their codes and of the stream that it draws from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...critics import mlp
from ...scores import SSGE, GaussianScore, ScoreEstimator
from ...surrogates import kl_surrogate
from ...tasks import gaussian_log_prob
from ..metrics import KERNELS, mean_kernel
from ..randomness import Streams
from ..training import Stack, adam, descend
from .config import Config
from .networks import DeterministicEncoding, Encoding, GaussianEncoding

# How the score of the codes is estimated. "gaussian" leaves their mean and covariance only: an ablation.
ESTIMATORS: dict[str, ScoreEstimator | None] = {
    "ege": SSGE(energy=0.999, shrinkage=True),
    "ssge-paper": SSGE(),
    "gaussian": GaussianScore(),
    "adaptive": None,
}

# Codes [seeds, n, d] and streams of noise to the penalty, a sum over the seeds.
Penalty = Callable[[Float[Tensor, "seeds n d"], Streams], Float[Tensor, ""]]


@dataclass(frozen=True)
class Unpenalised:
    """No penalty on the aggregate posterior; a Gaussian encoder has its own divergence."""

    encoding: Encoding

    def start(self, config: Config, code: int, seeds: Sequence[int], device: torch.device) -> Penalty:
        """Return the penalty of these seeds."""
        return lambda z, noise: z.new_zeros(())


@dataclass(frozen=True)
class Divergence:
    """KL(q(z) || p), whose gradient an estimator of the score of q gives."""

    estimator: ScoreEstimator | None
    encoding: ClassVar[Encoding] = DeterministicEncoding()

    def start(self, config: Config, code: int, seeds: Sequence[int], device: torch.device) -> Penalty:
        """Return the penalty of these seeds."""
        return lambda z, noise: kl_surrogate(z, gaussian_log_prob, self.estimator)


@dataclass(frozen=True)
class Discrepancy:
    """WAE-MMD: the squared maximum mean discrepancy of codes and prior, without the term of the prior alone."""

    kernel: Callable[[Tensor, int], Tensor]
    encoding: ClassVar[Encoding] = DeterministicEncoding()

    def start(self, config: Config, code: int, seeds: Sequence[int], device: torch.device) -> Penalty:
        """Return the penalty of these seeds."""

        def penalty(z: Float[Tensor, "seeds n d"], noise: Streams) -> Float[Tensor, ""]:
            prior = noise.normal(config.prior_draws * z.shape[1], code)
            return (mean_kernel(z, z, self.kernel) - 2 * mean_kernel(z, prior, self.kernel)).sum()

        return penalty


@dataclass(frozen=True)
class Adversarial:
    """WAE-GAN: a discriminator is trained beside the autoencoder."""

    encoding: ClassVar[Encoding] = DeterministicEncoding()

    def start(self, config: Config, code: int, seeds: Sequence[int], device: torch.device) -> Penalty:
        """Return the penalty of these seeds."""
        return AdversarialPenalty(config, code, seeds, device)


class AdversarialPenalty:
    """Networks trained to tell codes from the prior, and the codes' non-saturating loss."""

    def __init__(self, config: Config, code: int, seeds: Sequence[int], device: torch.device) -> None:
        sizes = [code, config.hidden, config.hidden, 1]
        self.network = Stack.build(lambda: mlp(sizes), seeds, "discriminator", code, device=device)
        self.optimiser = adam(self.network.parameters(), config.discriminator_rate, beta=0.5)

    def __call__(self, z: Float[Tensor, "seeds n d"], noise: Streams) -> Float[Tensor, ""]:
        """One step of the discriminator, then the penalty under it."""
        prior = noise.normal(*z.shape[1:])
        loss = functional.softplus(self.network(z.detach())) + functional.softplus(-self.network(prior))
        descend(self.optimiser, loss.mean((-2, -1)))
        with self.network.frozen():
            return functional.softplus(-self.network(z)).mean((-2, -1)).sum()


Method = Unpenalised | Divergence | Discrepancy | Adversarial

METHODS: dict[str, Method] = {
    "none": Unpenalised(DeterministicEncoding()),
    "vae": Unpenalised(GaussianEncoding()),
    **{name: Divergence(estimator) for name, estimator in ESTIMATORS.items()},
    **{f"wae-mmd-{name}": Discrepancy(kernel) for name, kernel in KERNELS.items()},
    "wae-gan": Adversarial(),
}
