"""Posteriors: their encoders, and where the gradient of their divergence from the prior comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ...scores import ScoreEstimator
from ...surrogates import kl_surrogate
from ...tasks import gaussian_log_prob
from ..wae import ESTIMATORS
from .config import Config
from .networks import ExplicitEncoder, ImplicitEncoder


@dataclass(frozen=True)
class GaussianPosterior:
    """Gaussian posteriors, whose divergence from the prior has a closed form.

    Attributes
    ----------
    full : bool
        Whether the covariance is full.
    pace : int
        Steps, as a multiple of the configuration's.
    """

    full: bool = False
    pace: int = 1

    @property
    def kind(self) -> str:
        """Name of the stream of the initial weights: methods with the same networks start from the same."""
        return "vae-full" if self.full else "vae"

    def encoder(self, config: Config, pixels: int, code: int) -> ExplicitEncoder:
        """Make an encoder."""
        return ExplicitEncoder(pixels, config.hidden, code, self.full)

    def noise_shape(self, config: Config, code: int) -> tuple[int, int]:
        """Codes of each image in training, and the size of an encoder's noise."""
        return 1, code

    def divergence(self, z: Float[Tensor, "seeds b 1 d"], closed: Float[Tensor, "seeds b"]) -> Float[Tensor, ""]:
        """Mean divergence over the images, summed over the seeds."""
        return closed.mean(-1).sum()


@dataclass(frozen=True)
class ImplicitPosterior:
    """Posteriors without a density; the gradient of their divergence comes from an estimated score.

    Attributes
    ----------
    estimator : ScoreEstimator or None
        Of the score of an image's codes.
    """

    estimator: ScoreEstimator | None
    pace: ClassVar[int] = 1
    kind: ClassVar[str] = "implicit"

    def encoder(self, config: Config, pixels: int, code: int) -> ImplicitEncoder:
        """Make an encoder."""
        return ImplicitEncoder(pixels, config.hidden, code, config.posterior_noise)

    def noise_shape(self, config: Config, code: int) -> tuple[int, int]:
        """Codes of each image in training, and the size of an encoder's noise."""
        return config.posterior_samples, config.posterior_noise

    def divergence(self, z: Float[Tensor, "seeds b m d"], closed: Float[Tensor, "seeds b"]) -> Float[Tensor, ""]:
        """Surrogate of the mean divergence over the images, each a problem of its own, summed over the seeds."""
        return kl_surrogate(z, gaussian_log_prob, self.estimator) / z.shape[1]


Method = GaussianPosterior | ImplicitPosterior
METHODS: dict[str, Method] = {
    "vae": GaussianPosterior(),
    "vae-3x": GaussianPosterior(pace=3),
    "vae-full": GaussianPosterior(full=True),
    **{name: ImplicitPosterior(estimator) for name, estimator in ESTIMATORS.items()},
}
