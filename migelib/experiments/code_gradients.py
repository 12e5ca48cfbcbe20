r"""Gradients of the information I(x; z) of linear-Gaussian codes, where it is known, by every estimate of it.

Explained in :doc:`/book/bottleneck`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import bounds
from ..codes import (
    CodeMoments,
    GaussianCode,
    code_information_surrogate,
    mixture_information_surrogate,
    pairwise_information,
)
from ..scores import SSGE, GaussianScore, Residual, ScoreEstimator, Transformed
from ..surrogates import mutual_information_surrogate
from ..transforms import Whitening
from .metrics import flat_gradient
from .randomness import stream

METRICS = {"relative_error": "1", "averaged_error": "1", "cosine": "1", "scale_drift": "1"}


@dataclass(frozen=True)
class LinearCode:
    r"""Code :math:`z = W x + \sigma \epsilon` of standard Gaussian x, whose information has a closed form.

    Parameters
    ----------
    loading : Tensor [k, p]
        W.
    log_scale : Tensor [k]
        :math:`\ln \sigma`.
    """

    loading: Float[Tensor, "k p"]
    log_scale: Float[Tensor, "k"]

    @classmethod
    def random(cls, size: int, generator: torch.Generator) -> LinearCode:
        """A loading p = k with random singular vectors and squared singular values 30 j^-1.5, and noise of scale 1."""
        left, right = torch.linalg.qr(torch.randn(2, size, size, dtype=torch.float64, generator=generator))[0]
        signal = 30.0 * torch.arange(1, size + 1, dtype=torch.float64) ** -1.5
        return cls((left * signal.sqrt()) @ right, torch.zeros(size, dtype=torch.float64))

    def trainable(self, device: torch.device) -> LinearCode:
        """A copy on the device whose parameters require a gradient."""
        return LinearCode(self.loading.to(device).requires_grad_(), self.log_scale.to(device).requires_grad_())

    def covariance(self) -> Float[Tensor, "k k"]:
        """Of z."""
        return self.loading @ self.loading.mT + torch.diag((2 * self.log_scale).exp())

    def moments(self) -> CodeMoments:
        """True moments of z, held fixed."""
        loading, scale = self.loading.detach(), self.log_scale.detach().exp()
        return CodeMoments(torch.zeros_like(scale), loading @ loading.mT, scale.square())

    def information(self) -> Float[Tensor, ""]:
        """I(x; z), in nats, differentiable."""
        return 0.5 * torch.linalg.slogdet(self.covariance()).logabsdet - self.log_scale.sum()

    def encode(self, x: Float[Tensor, "n p"]) -> GaussianCode:
        """The conditionals at inputs."""
        return GaussianCode(x @ self.loading.mT, self.log_scale.exp().expand(len(x), -1))


class CodeBatch(NamedTuple):
    """What an estimate may look at: n inputs with their conditionals and codes; and these and those of past batches."""

    task: LinearCode
    x: Float[Tensor, "n p"]
    code: GaussianCode
    z: Float[Tensor, "n k"]
    every_code: GaussianCode
    every_z: Float[Tensor, "m k"]

    @classmethod
    def draw(cls, task: LinearCode, n: int, past: int, generator: torch.Generator) -> CodeBatch:
        """A batch of n, and `past` further ones."""
        x = torch.randn(n * (past + 1), task.loading.shape[1], generator=generator, dtype=torch.float64)
        x = x.to(task.loading.device)
        every_code = task.encode(x)
        every_z = every_code.sample(generator)
        code = GaussianCode(every_code.mean[:n], every_code.scale[:n])
        return cls(task, x[:n], code, every_z[:n], every_code, every_z)


# --- the estimates: from a batch to a scalar that has the gradient --------------------------------------------------


def _with_score(batch: CodeBatch, score: Tensor) -> Tensor:
    return -(score.detach() * batch.z).sum(-1).mean() - batch.code.conditional_entropy()


def _true_score(batch: CodeBatch) -> Tensor:
    return -torch.linalg.solve(batch.task.covariance().detach(), batch.z.detach().mT).mT


def _own_score(batch: CodeBatch) -> Tensor:
    return (batch.code.mean - batch.z).detach() / batch.code.scale.detach().square()


def _along_the_sample(batch: CodeBatch, score: Tensor) -> Tensor:
    return ((_own_score(batch) - score) * batch.z).sum(-1).mean()


def _marginal(estimator: ScoreEstimator | None) -> Callable[[CodeBatch], Tensor]:
    return lambda batch: code_information_surrogate(batch.code, batch.z, estimator)


METHODS: dict[str, Callable[[CodeBatch], Float[Tensor, ""]]] = {
    "exact-joint": lambda batch: _along_the_sample(batch, _true_score(batch)),
    "exact-marginal": lambda batch: _with_score(batch, _true_score(batch)),
    "exact-averaged": lambda batch: batch.code.gaussian_surrogate(batch.task.moments()),
    "mige": lambda batch: mutual_information_surrogate(batch.x, batch.z, SSGE()),
    "mige-marginal": _marginal(SSGE()),
    "mige-whitened": _marginal(Transformed(Whitening(0.03), SSGE())),
    "mige-shrunk-gaussian": _marginal(GaussianScore("ledoit-wolf")),
    "mige-residual": _marginal(Residual(GaussianScore("ledoit-wolf"), SSGE(shrinkage=True))),
    "mige-default": _marginal(None),
    "mige-memory": lambda batch: _with_score(batch, SSGE().fit(batch.every_z.detach())(batch.z.detach())),
    "mige-mixture": lambda batch: mixture_information_surrogate(batch.code, batch.z),
    "mige-leave-out": lambda batch: mixture_information_surrogate(batch.code, batch.z, leave_out=True),
    "mige-mixture-memory": lambda batch: _along_the_sample(batch, batch.every_code.mixture_score(batch.z)),
    "mige-gaussian-batch": lambda batch: batch.code.gaussian_surrogate(),
    "mige-gaussian": lambda batch: batch.code.gaussian_surrogate(CodeMoments.of(batch.every_code)),
    "nib": lambda batch: pairwise_information(batch.code),
    "club": lambda batch: bounds.club(batch.code.log_conditional(batch.z)),
    "vib": lambda batch: batch.code.rate(),
}


# --- the experiment --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    methods : tuple of str
        Some of `METHODS`.
    codes : tuple of int
        Coordinates of the codes.
    n, batches, past : int
        Samples of a batch, batches, and past batches that the methods with a memory keep.
    """

    seeds: int
    methods: tuple[str, ...] = tuple(METHODS)
    codes: tuple[int, ...] = (16, 64, 256)
    n: int = 100
    batches: int = 16
    past: int = 9


PROFILES = {
    "quick": Config(seeds=5, codes=(16, 64), batches=4),
    "cpu": Config(seeds=5, batches=3),
    "full": Config(seeds=5),
}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> None:
    """Prepare nothing: the codes are drawn anew for every seed."""


def run_seeds(
    config: Config, shared: None, seeds: list[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Errors of every method's gradient for every size of the code, for each of the seeds."""
    return [(_errors(config, seed, device), {}) for seed in seeds]


def _errors(config: Config, seed: int, device: torch.device) -> dict[str, float]:
    quantities = {}
    for size in config.codes:
        task = LinearCode.random(size, stream(seed, "linear", size)).trainable(device)
        for method in config.methods:
            gradients = [
                gradient(task, METHODS[method], config, stream(seed, "batch", size, batch))
                for batch in range(config.batches)
            ]
            measured = errors(task, torch.stack(gradients))
            quantities |= {f"{method}/k{size}/{metric}": value for metric, value in measured.items()}
    return quantities


def gradient(
    task: LinearCode, surrogate: Callable[[CodeBatch], Tensor], config: Config, generator: torch.Generator
) -> Float[Tensor, "p"]:
    r"""Gradient of one batch's estimate with respect to W and :math:`\ln\sigma`."""
    batch = CodeBatch.draw(task, config.n, config.past, generator)
    return flat_gradient(surrogate(batch), (task.loading, task.log_scale))


def errors(task: LinearCode, gradients: Float[Tensor, "batches p"]) -> dict[str, float]:
    r"""Errors of the batches' gradients.

    The relative error is the root mean square over the batches, that of their average says what averaging leaves, and
    the drift is the derivative along :math:`z \to c z`, a coordinate, which is zero: I(x; z) does not depend on c.
    """
    truth = flat_gradient(task.information(), (task.loading, task.log_scale))
    direction = torch.cat([task.loading.detach().flatten(), torch.ones_like(task.log_scale)])  # d z / d ln c
    squares = (gradients - truth).square().sum(-1) / truth.square().sum()
    return {
        "relative_error": math.sqrt(float(squares.mean())),
        "averaged_error": float((gradients.mean(0) - truth).norm() / truth.norm()),
        "cosine": float(torch.cosine_similarity(gradients, truth, dim=-1).mean()),
        "scale_drift": float((gradients @ direction).mean()) / len(task.log_scale),
    }
