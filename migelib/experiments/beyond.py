r"""Four further measures against closed forms: conditional entropy, conditional MI, total correlation, KL divergence.

Explained in :doc:`/book/beyond`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..scores import SSGE, GaussianScore, ScoreEstimator
from ..surrogates import (
    conditional_entropy_surrogate,
    conditional_mutual_information_surrogate,
    kl_surrogate,
    total_correlation_surrogate,
)
from ..tasks import SinhArcsinhMap, gaussian_log_prob
from .metrics import flat_gradient
from .randomness import stream

METRICS = {"relative_error": "1", "cosine": "1"}

ESTIMATORS: dict[str, ScoreEstimator | None] = {"ssge": SSGE(), "default": None, "gaussian": GaussianScore()}
LATER_CUT = {"ssge-later-cut": SSGE(energy=0.999)}  # along the curve of the condition number only
MEASURES = ("conditional-entropy", "conditional-information", "total-correlation", "kl")
LAWS = ("gaussian", "transformed")


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    dim : int
        Coordinates of each of x, z and w.
    n : int
        Samples a gradient.
    repeats : int
        Loadings, drawn anew for each gradient, that one seed averages the errors of.
    condition : float
        Condition number of the loadings.
    conditions : tuple of float
        Condition numbers along the curve of the Gaussian conditional information.
    skew, tail : float
        Of the map that makes the transformed law.
    landing_dim, landing_n, landing_repeats : int
        Coordinates, samples a gradient and gradients of the curve of the KL gradient near the optimum.
    landing_scales : tuple of float
        Standard deviations of q along that curve, where p has 1.
    """

    seeds: int
    dim: int = 2
    n: int = 256
    repeats: int = 1
    condition: float = 4.0
    conditions: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0)
    skew: float = 0.5
    tail: float = 1.3
    landing_dim: int = 4
    landing_n: int = 256
    landing_repeats: int = 4
    landing_scales: tuple[float, ...] = (0.7, 0.9, 0.97, 0.99, 1.0, 1.01, 1.03, 1.1, 1.4)


PROFILES = {
    "quick": Config(seeds=10, conditions=(3.0, 24.0), landing_scales=(0.7, 0.97, 1.0, 1.03, 1.4)),
    "full": Config(seeds=10, repeats=6, landing_repeats=16),
}
STUDIES: dict[str, Config] = {}


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(
    config: Config, shared: None, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Relative error and cosine of the gradients of every measure, law and method."""
    return [run_seed(config, seed, device) for seed in seeds]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Relative error and cosine of the gradients of every measure, law and method, for one seed."""
    values = defaultdict(list)
    for repeat in range(config.repeats):
        for law in LAWS:
            shape = SinhArcsinhMap(config.skew, config.tail) if law == "transformed" else None
            task, noise = _draw(config, config.condition, shape, stream(seed, "groups", repeat), device)
            for measure in MEASURES:
                for method, (error, cosine) in _errors(task, measure, noise, ESTIMATORS).items():
                    values[f"{method}/{measure}-{law}/relative_error"].append(error)
                    values[f"{method}/{measure}-{law}/cosine"].append(cosine)
    quantities = {name: float(np.mean(value)) for name, value in values.items()}

    curves = defaultdict(list)
    for condition in config.conditions:
        errors = defaultdict(list)
        for repeat in range(config.repeats):
            task, noise = _draw(config, condition, None, stream(seed, "condition", repeat), device)
            measured = _errors(task, "conditional-information", noise, ESTIMATORS | LATER_CUT)
            for method, (error, _) in measured.items():
                errors[method].append(error)
        for method, error in errors.items():
            curves[f"{method}/condition"].append(np.mean(error))
    return quantities, {name: np.array(curve) for name, curve in curves.items()} | _landing(config, seed, device)


def _draw(
    config: Config, condition: float, shape: SinhArcsinhMap | None, generator: torch.Generator, device: torch.device
) -> tuple[Groups, Float[Tensor, "n m"]]:
    """Groups whose loading has random singular vectors and the condition number asked for, and noise for samples."""
    size = 3 * config.dim
    left, right = torch.linalg.qr(torch.randn(2, size, size, dtype=torch.float64, generator=generator))[0]
    spread = torch.logspace(-0.5, 0.5, size, base=condition, dtype=torch.float64)
    loading = ((left * spread) @ right).float().to(device).requires_grad_()
    noise = torch.randn(config.n, size, generator=generator).to(device)
    return Groups(loading, shape), noise


def _errors(
    task: Groups, measure: str, noise: Float[Tensor, "n m"], estimators: dict[str, ScoreEstimator | None]
) -> dict[str, tuple[float, float]]:
    """Relative error and cosine of the gradient with respect to the loading, by method."""
    truth = flat_gradient(task.value(measure), [task.loading])
    surrogates = {"exact": task.exact_surrogate(measure, noise)}
    surrogates |= {name: task.surrogate(measure, noise, estimator) for name, estimator in estimators.items()}
    errors = {}
    for method, surrogate in surrogates.items():
        gradient = flat_gradient(surrogate, [task.loading])
        error = (gradient - truth).norm() / truth.norm()
        errors[method] = (float(error), float(torch.cosine_similarity(gradient, truth, dim=0)))
    return errors


@dataclass(frozen=True)
class Groups:
    r"""Three groups x, z, w of correlated Gaussian coordinates, :math:`u = A \epsilon`, each perhaps mapped by f.

    A map of each coordinate leaves the conditional and the total information as they are, and changes the entropy of z
    by an expectation in one dimension; so does the divergence. All gradients with respect to A are therefore known.

    Parameters
    ----------
    loading : Tensor [3 d, 3 d]
        :math:`A`, invertible; its rows are those of x, z and w in turn.
    shape : SinhArcsinhMap, optional
        f, by default the identity. For the conditional entropy it acts on w only, which changes nothing.
    """

    loading: Float[Tensor, "m m"]
    shape: SinhArcsinhMap | None = None

    def value(self, measure: str) -> Float[Tensor, ""]:
        """The measure, in nats and up to a constant, differentiable in the loading; computed in float64."""
        a = self.loading.double()
        value = sum(
            sign * 0.5 * torch.linalg.slogdet(a[rows] @ a[rows].mT).logabsdet for sign, rows in self._terms(measure)
        )
        if measure != "kl":
            return value
        nodes, weights = np.polynomial.hermite_e.hermegauss(200)
        points = torch.as_tensor(nodes).to(a)[:, None] * a.norm(dim=-1)
        return value - torch.as_tensor(weights / weights.sum()).to(a) @ self._log_ratio(points)

    def surrogate(
        self, measure: str, noise: Float[Tensor, "n m"], estimator: ScoreEstimator | None
    ) -> Float[Tensor, ""]:
        """The package's surrogate of the measure, at samples made of the noise."""
        u = noise @ self.loading.mT
        mapped = u if self.shape is None else self.shape.forward(u)
        x, z, w = mapped.tensor_split(3, dim=-1)
        if measure == "conditional-entropy":
            return conditional_entropy_surrogate(u.tensor_split(3, dim=-1)[1], w, estimator)
        if measure == "conditional-information":
            return conditional_mutual_information_surrogate(x, z, w, estimator)
        if measure == "total-correlation":
            return total_correlation_surrogate(mapped, estimator)
        return kl_surrogate(mapped, self.target, estimator)

    @property
    def target(self) -> Callable[[Float[Tensor, "*batch d"]], Float[Tensor, "*batch"]]:
        """Log density of the divergence's p, unnormalised: a standard Gaussian, or logistic where q is transformed."""
        return gaussian_log_prob if self.shape is None else logistic_log_prob

    def exact_surrogate(self, measure: str, noise: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
        """The surrogate with true scores. A map's derivatives cancel, except in the divergence."""
        u = noise @ self.loading.mT
        surrogate = u.new_zeros(())
        for sign, rows in self._terms(measure):
            a = self.loading.detach()[rows]
            score = -torch.cholesky_solve(u.detach()[:, rows].mT, torch.linalg.cholesky(a @ a.mT)).mT
            surrogate = surrogate - sign * (score * u[:, rows]).sum(-1).mean()
        return surrogate - self._log_ratio(u).mean() if measure == "kl" else surrogate

    def _terms(self, measure: str) -> list[tuple[int, list[int]]]:
        """The entropies that the measure consists of: signs and coordinates."""
        x, z, w = (part.tolist() for part in torch.arange(len(self.loading)).tensor_split(3))
        return {
            "conditional-entropy": [(1, z + w), (-1, w)],
            "conditional-information": [(1, x + w), (1, z + w), (-1, x + z + w), (-1, w)],
            "total-correlation": [*((1, [i]) for i in x + z + w), (-1, x + z + w)],
            "kl": [(-1, x + z + w)],
        }[measure]

    def _log_ratio(self, u: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
        """Log density of p at f(u) and of the map's volume: what the divergence has beside the entropy of u."""
        if self.shape is None:
            return self.target(u)
        return self.target(self.shape.forward(u)) + self.shape.derivatives(u)[0].log().sum(-1)


def logistic_log_prob(points: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Log density of independent standard logistic variables."""
    return (-points - 2 * torch.nn.functional.softplus(-points)).sum(-1)


def _landing(config: Config, seed: int, device: torch.device) -> dict[str, np.ndarray]:
    r"""Root mean square error of the derivative by sigma of :math:`\mathrm{KL}(N(0, \sigma^2 I) \,\|\, N(0, I))`."""
    dim, n, repeats = config.landing_dim, config.landing_n, config.landing_repeats
    scales = torch.tensor(config.landing_scales, dtype=torch.float64, device=device)
    truth = dim * (scales - 1 / scales)
    sigma = scales.expand(repeats, -1).clone().requires_grad_()
    noise = torch.randn(repeats, 1, n, dim, dtype=torch.float64, generator=stream(seed, "landing")).to(device)
    z = sigma[..., None, None] * noise
    score = -z.detach() / scales[:, None, None].square()
    estimates = {"exact": (score * z).sum(-1).mean(-1).sum() - gaussian_log_prob(z).mean(-1).sum()}
    estimates |= {name: kl_surrogate(z, gaussian_log_prob, estimator) for name, estimator in ESTIMATORS.items()}
    curves = {}
    for method, surrogate in estimates.items():
        (gradient,) = torch.autograd.grad(surrogate, sigma, retain_graph=True)
        curves[f"{method}/landing"] = (gradient - truth).square().mean(0).sqrt().cpu().numpy()
    return curves
