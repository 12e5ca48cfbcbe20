r"""Every score estimator on the same samples: the error of the score, and that of the information gradient it gives.

Entropy gradients of linear maps of Gaussian, heavy-tailed and clustered noise, whose truth is closed-form whatever the
noise, and the toy task's information gradient. Explained in :doc:`/book/score-estimators`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import median_distance, rbf
from ..scores import KDE, SSGE, DenoisingScore, GaussianScore, Landweber, NuMethod, ScoreEstimator, Stein, Tikhonov
from ..scores.kernel import nu_coefficients
from ..surrogates import mutual_information_surrogate
from ..tasks import CorrelatedGaussian, Gaussian, GaussianMixture, LinearMap, StudentT, exact_score_surrogate
from .randomness import stream
from .records import MarkdownTable, Record

METRICS = {"score_error": "1", "fresh_error": "1", "gradient_error": "1", "rank_correlation": "1"}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    families : tuple of str
        Laws of the noise (see `task`).
    dims, toy_dims : tuple of int
        Dimensions of z, and of each variable of the toy task.
    n, fresh : int
        Samples of a fit, and fresh points at which it is tested.
    rho : tuple of float
        Correlations of the toy task.
    ridges : tuple of float
        Strengths of the regularisation on the curves.
    slow : bool
        Include the estimators that take longest: Landweber with the curl-free kernel, and Stein, which equals
        Tikhonov at the samples.
    denoising_dims : tuple of int
        Dimensions of z in which the neural estimator is trained too.
    """

    seeds: int
    families: tuple[str, ...] = ("gaussian", "student", "mixture")
    dims: tuple[int, ...] = (2, 8, 32)
    toy_dims: tuple[int, ...] = (8,)
    n: int = 256
    fresh: int = 500
    rho: tuple[float, ...] = (0.5,)
    ridges: tuple[float, ...] = ()
    slow: bool = False
    denoising_dims: tuple[int, ...] = ()


PROFILES = {
    "quick": Config(seeds=10),
    "full": Config(
        seeds=10,
        toy_dims=(2, 8, 32),
        fresh=2000,
        rho=(0.2, 0.5, 0.8),
        ridges=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        slow=True,
        denoising_dims=(8,),
    ),
}
STUDIES: dict[str, Config] = {}


def estimators(slow: bool, denoising: bool = False) -> dict[str, ScoreEstimator]:
    """Return the estimators, each with its default settings."""
    found: dict[str, ScoreEstimator] = {
        "ssge": SSGE(),
        "tikhonov": Tikhonov(),
        "tikhonov-curl": Tikhonov(curl_free=True),
        "nu": NuMethod(),
        "nu-curl": NuMethod(curl_free=True),
        "nu-curl-imq": NuMethod(curl_free=True, kernel="imq"),
        "landweber": Landweber(),
        "kde": KDE(),
        "gaussian": GaussianScore("ledoit-wolf"),
    }
    if slow:
        found |= {"stein": Stein(), "landweber-curl": Landweber(curl_free=True)}
    return found | ({"denoising": DenoisingScore()} if denoising else {})


def at_ridge(ridge: float, samples: Float[Tensor, "n d"]) -> dict[str, ScoreEstimator]:
    r"""Return the spectral estimators with filters that cut near an eigenvalue :math:`\lambda` of the kernel operator.

    That is: the ridge :math:`\lambda`; :math:`1 / \lambda` steps of Landweber and :math:`1 / \sqrt\lambda` of the
    nu-method; for SSGE the eigenvalues of :math:`K / n` above :math:`\lambda`, at least one.
    """
    accelerated, steps = round(ridge**-0.5), round(1 / ridge)
    eigenvalues = torch.linalg.eigvalsh(rbf(samples, samples, median_distance(samples))) / len(samples)
    return {
        "ssge": SSGE(n_eigen=max(1, int((eigenvalues >= ridge).sum()))),
        "tikhonov": Tikhonov(ridge),
        "tikhonov-curl": Tikhonov(ridge, curl_free=True),
        "nu": NuMethod(accelerated),
        "nu-curl": NuMethod(accelerated, curl_free=True),
        "landweber": Landweber(steps),
    }


def filters(eigenvalues: Float[Tensor, "m"], ridge: float, nu: float = 1.0) -> dict[str, Float[Tensor, "m"]]:
    r"""Filters :math:`g(\ell)` of the estimators at `at_ridge`'s strengths: the score is :math:`-g(\hat L) \hat\zeta`.

    Parameters
    ----------
    eigenvalues : Tensor [m]
        :math:`\ell` in (0, 1].
    ridge : float
        :math:`\lambda`.
    nu : float
        Qualification of the nu-method.

    Returns
    -------
    dict of Tensor [m]
        By the name of the estimator.
    """
    current, previous = torch.zeros_like(eigenvalues), torch.zeros_like(eigenvalues)
    for t in range(1, round(ridge**-0.5) + 1):
        momentum, step = nu_coefficients(t, nu)
        new = current + momentum * (current - previous) + step * (1 - eigenvalues * current)
        previous, current = current, new
    return {
        "ssge": torch.where(eigenvalues >= ridge, 1 / eigenvalues, 0),
        "tikhonov": 1 / (eigenvalues + ridge),
        "landweber": (1 - (1 - eigenvalues) ** round(1 / ridge)) / eigenvalues,
        "nu": current,
    }


def task(family: str, dim: int, generator: torch.Generator) -> LinearMap:
    r"""Linear map of noise, :math:`z = A u`, with :math:`A = I + E / 2` and :math:`E_{ij} \sim N(0, 1 / d)`.

    Parameters
    ----------
    family : str
        Law of the noise: "gaussian", standard; "student", a Student-t with 5 degrees of freedom; "mixture", two
        isotropic Gaussians of standard deviation 0.5 whose means are 2 and -2 in the first coordinate.
    dim : int
        Dimension d.
    generator : torch.Generator
        Of E.

    Raises
    ------
    ValueError
        If there is no such family.
    """
    first = torch.zeros(dim, dtype=torch.float64)
    if family == "gaussian":
        noise = Gaussian(first, torch.eye(dim, dtype=torch.float64))
    elif family == "student":
        noise = StudentT(dim, 5.0)
    elif family == "mixture":
        first[0] = 2
        noise = GaussianMixture(torch.stack([-first, first]), 0.5)
    else:
        raise ValueError(f"family: unknown name {family!r}, expected gaussian, student or mixture")
    perturbation = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return LinearMap(noise, torch.eye(dim, dtype=torch.float64) + perturbation / 2)


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(
    config: Config, shared: None, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Errors of every estimator on every task, and the curves against the strength."""
    return [run_seed(config, seed, device) for seed in seeds]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Errors of every estimator on every task, and the curves against the strength, for one seed."""
    from scipy import stats  # here, so that the module imports without SciPy

    quantities: dict[str, float] = {}
    curves: dict[str, np.ndarray] = {}
    for family in config.families:
        for dim in config.dims:
            setting = f"{family}-d{dim}"
            generator = stream(seed, setting)
            density = task(family, dim, generator)
            points = density.sample(config.n + config.fresh, generator)
            samples, fresh = points[: config.n], points[config.n :]
            rows = {"exact": errors(density.score, density, samples, fresh)}
            for method, estimator in estimators(config.slow, dim in config.denoising_dims).items():
                rows[method] = errors(_fitted(estimator, samples, device), density, samples, fresh)
            for method, row in rows.items():
                quantities |= {f"{method}/{setting}/{metric}": value for metric, value in row.items()}
            del rows["exact"]  # the truth
            rows.pop("stein", None)  # Tikhonov once more, at the samples
            ranked = ([row[metric] for row in rows.values()] for metric in ("score_error", "gradient_error"))
            quantities[f"all/{setting}/rank_correlation"] = float(stats.spearmanr(*ranked).statistic)
            for ridge in config.ridges:
                for method, estimator in at_ridge(ridge, samples).items():
                    if method == "landweber" and estimator.steps > 1000:
                        row = dict.fromkeys(rows["ssge"], np.nan)
                    else:
                        row = errors(_fitted(estimator, samples, device), density, samples, fresh)
                    for metric, value in row.items():
                        curves.setdefault(f"{method}/{setting}/{metric}", []).append(value)
    for dim in config.toy_dims:
        for method, value in _toy(config, dim, stream(seed, "toy", dim), device).items():
            quantities[f"{method}/toy-d{dim}/gradient_error"] = value
    return quantities, {name: np.array(curve, dtype=np.float32) for name, curve in curves.items()}


def table(record: Record, columns: dict[str, str]) -> MarkdownTable:
    """Table of means over the seeds, a row for each estimator.

    The best entry of a column is bold, with all that read the same; the exact score's row is not ranked.

    Parameters
    ----------
    record : Record
        A run of this experiment.
    columns : dict
        Column title -> <setting>/<metric>.
    """
    methods = {name.split("/", 1)[0] for name in record.quantities if name.split("/", 1)[1] in columns.values()}
    methods = sorted(methods, key=lambda method: (method != "exact", method))
    rows = [["", *columns], ["---"] * (len(columns) + 1), *([method] for method in methods)]
    for column in columns.values():
        names = {method: f"{method}/{column}" for method in methods}
        texts = {method: f"{record[name].mean:.2f}" for method, name in names.items() if name in record.quantities}
        best = min((text for method, text in texts.items() if method != "exact"), key=float)
        for row, method in zip(rows[2:], methods, strict=True):
            text = texts.get(method, "–")
            row.append(f"**{text}**" if text == best and method != "exact" else text)
    return MarkdownTable("\n".join("| " + " | ".join(row) + " |" for row in rows))


def errors(score, density: LinearMap, samples: Float[Tensor, "n d"], fresh: Float[Tensor, "m d"]) -> dict[str, float]:
    r"""Relative errors of a score function.

    Returns
    -------
    dict
        "score_error" at the samples and "fresh_error" at fresh points, the root of
        :math:`\sum_i \|\hat s_i - s_i\|^2 / \sum_i \|s_i\|^2`; "gradient_error", the relative Frobenius error of
        :math:`-\frac1n \sum_i \hat s(z_i) u_i^\top`, the estimate of :math:`\nabla_A H(z) = A^{-\top}`.
    """
    estimate = score(samples)
    noise = torch.linalg.solve(density.loading, samples.mT).mT
    return {
        "score_error": _relative(estimate, density.score(samples)),
        "fresh_error": _relative(score(fresh), density.score(fresh)),
        "gradient_error": _relative(-estimate.mT @ noise / len(samples), density.entropy_gradient()),
    }


def _relative(estimate: Tensor, truth: Tensor) -> float:
    return float((estimate - truth).norm() / truth.norm())


def _fitted(estimator: ScoreEstimator, samples: Tensor, device: torch.device):
    score = estimator.fit(samples.to(device))
    return lambda points: score(points.to(device)).detach().cpu()


def _toy(config: Config, dim: int, generator: torch.Generator, device: torch.device) -> dict[str, float]:
    """Relative error of the information gradient over the grid of correlations, by estimator."""
    rho = torch.tensor(config.rho, dtype=torch.float64, device=device).requires_grad_()
    toy = CorrelatedGaussian(dim, rho)
    x, y = toy.sample(config.n, generator)
    surrogates = {"exact": exact_score_surrogate(toy, x, y)}
    for method, estimator in estimators(config.slow).items():
        surrogates[method] = mutual_information_surrogate(x, y, estimator)
    truth = toy.mutual_information_gradient()
    return {
        method: _relative(torch.autograd.grad(surrogate, rho, retain_graph=True)[0], truth)
        for method, surrogate in surrogates.items()
    }
