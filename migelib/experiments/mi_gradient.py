r"""MIGE against closed forms, for every case of which argument depends on the parameters.

Explained in :doc:`/book/05_mutual_information_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..scores import SSGE, GaussianScore
from ..surrogates import entropy_surrogate, mutual_information_surrogate
from ..tasks import JointGaussian
from . import stream

UNITS = {"relative_error": "1", "cosine": "1"}

Surrogate = Callable[[Float[Tensor, "n p"], Float[Tensor, "n q"]], Float[Tensor, ""]]

SURROGATES: dict[str, Surrogate] = {
    "ssge": lambda x, z: mutual_information_surrogate(x, z, SSGE()),
    "gaussian": lambda x, z: mutual_information_surrogate(x, z, GaussianScore()),
}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    x_dim, z_dim : int
        Numbers of coordinates p and q of x and z; the source u has p coordinates too.
    noise : float
        Standard deviation of the noise of x and of z, beside a signal of about unit variance.
    n : int
        Samples a gradient.
    repeats : int
        Gradients that one seed averages the errors of.
    noise_levels : tuple of float
        Noise of z along the curve towards a noise-free encoder, where x has none.
    """

    seeds: int
    x_dim: int = 6
    z_dim: int = 3
    noise: float = 0.5
    n: int = 256
    repeats: int = 4
    noise_levels: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01)


PROFILES = {"quick": Config(seeds=5), "full": Config(seeds=10, repeats=64)}


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Relative error and cosine of the gradients of every case and estimator, for one seed."""
    quantities = {}
    for case in ("only-z", "only-x", "both"):
        task, parameters = linear_pair(config, config.noise, config.noise, seed, device)
        parameters = {"only-z": parameters[1:], "only-x": parameters[:1], "both": parameters}[case]
        truth = flat_gradient(task.mutual_information(), parameters)
        for method, surrogate in {"exact": exact_score_surrogate(task), **SURROGATES}.items():
            error, cosine = _errors(task, parameters, truth, surrogate, config, seed)
            quantities[f"{method}/{case}/relative_error"] = error
            quantities[f"{method}/{case}/cosine"] = cosine

    # Without noise the information is infinite, and its gradient is that of H(z) alone.
    task, parameters = linear_pair(config, 0.0, 0.0, seed, device)
    truth = flat_gradient(task.entropies()[1], parameters[1:])
    for method, surrogate in {
        "ssge": SURROGATES["ssge"],
        "entropy-ssge": lambda x, z: entropy_surrogate(z, SSGE()),
        "entropy-gaussian": lambda x, z: entropy_surrogate(z, GaussianScore()),
    }.items():
        error, cosine = _errors(task, parameters[1:], truth, surrogate, config, seed)
        quantities[f"{method}/noise-free/relative_error"] = error
        quantities[f"{method}/noise-free/cosine"] = cosine

    curves = {f"{method}/{metric}": [] for method in ("exact", *SURROGATES) for metric in UNITS}
    for noise in config.noise_levels:
        task, parameters = linear_pair(config, 0.0, noise, seed, device)
        truth = flat_gradient(task.mutual_information(), parameters[1:])
        for method, surrogate in {"exact": exact_score_surrogate(task), **SURROGATES}.items():
            error, cosine = _errors(task, parameters[1:], truth, surrogate, config, seed)
            curves[f"{method}/relative_error"].append(error)
            curves[f"{method}/cosine"].append(cosine)
    return quantities, {name: np.array(curve) for name, curve in curves.items()}


def linear_pair(
    config: Config, x_noise: float, z_noise: float, seed: int, device: torch.device
) -> tuple[JointGaussian, list[Tensor]]:
    r"""Two noisy linear views of one source, :math:`x = B u + \tau_x \xi` and :math:`z = A u + \tau_z \eta`.

    Returns
    -------
    task : JointGaussian
        Of the pair, with :math:`\epsilon = (u, \xi, \eta)`, the matrices drawn anew for every seed. All is in double
        precision: without noise the joint covariance is singular, and close to that it is badly conditioned.
    parameters : list of Tensor
        B [p, p] and A [q, p], which require a gradient.
    """
    p, q = config.x_dim, config.z_dim
    options = {"dtype": torch.float64, "device": device}
    generator = stream(seed, "linear pair")
    b = torch.eye(p, dtype=torch.float64) + 0.3 * torch.randn(p, p, dtype=torch.float64, generator=generator)
    a = torch.randn(q, p, dtype=torch.float64, generator=generator) / p**0.5
    b, a = b.to(device).requires_grad_(), a.to(device).requires_grad_()
    x_loading = torch.cat([b, x_noise * torch.eye(p, **options), torch.zeros(p, q, **options)], dim=1)
    z_loading = torch.cat([a, torch.zeros(q, p, **options), z_noise * torch.eye(q, **options)], dim=1)
    return JointGaussian(x_loading, z_loading), [b, a]


def flat_gradient(value: Float[Tensor, ""], parameters: list[Tensor]) -> Float[Tensor, "p"]:
    """Gradient of `value` in all parameters, as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])


def exact_score_surrogate(task: JointGaussian) -> Surrogate:
    """Return the MIGE surrogate with the task's true scores: its gradient has Monte-Carlo noise and no other error."""

    def surrogate(x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> Float[Tensor, ""]:
        joint_x, joint_z, marginal_x, marginal_z = task.scores(x.detach(), z.detach())
        return (((joint_x - marginal_x) * x).sum(-1) + ((joint_z - marginal_z) * z).sum(-1)).mean()

    return surrogate


def _errors(
    task: JointGaussian,
    parameters: list[Tensor],
    truth: Float[Tensor, "p"],
    surrogate: Surrogate,
    config: Config,
    seed: int,
) -> tuple[float, float]:
    """Relative error of a surrogate's gradient and its cosine with the truth, as means over the repeats."""
    values = []
    for repeat in range(config.repeats):
        x, z = task.sample(config.n, stream(seed, "samples", repeat))
        gradient = flat_gradient(surrogate(x, z), parameters)
        cosine = torch.nn.functional.cosine_similarity(gradient, truth, dim=0)
        values.append([(gradient - truth).norm() / truth.norm(), cosine])
    error, cosine = torch.tensor(values).mean(0).tolist()
    return error, cosine
