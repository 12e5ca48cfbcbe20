"""The figures of the book that a reader operates: what is computed for every setting of their sliders.

Each function returns an `interactive.LiveFigure`; the chapters show them in one line.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..scores import SSGE, Tikhonov
from .collapse import centres, energy
from .interactive import INK, Layer, LiveFigure, Panel, Slider
from .plotting import colour
from .randomness import stream
from .records import Record

LEGEND = {"exact": "exact scores", "mige": "MIGE (SSGE)", "mine-dv": "Donsker–Varadhan", "mine-f": "MINE-f"}


def two_clusters(points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """The true score of two equal Gaussians of spread 0.5 at (-1, 0) and (1, 0)."""
    side = torch.tanh(points[:, :1] / 0.5**2)  # how much more probable the right one is
    return (torch.cat([side, torch.zeros_like(side)], dim=-1) - points) / 0.5**2


def score_field(
    n: int = 200,
    factors: Sequence[float] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0),
    energies: Sequence[float] = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999),
    seed: int = 0,
) -> LiveFigure:
    """SSGE's score field of two clusters, for multiples of the median width and shares of the trace that are kept.

    Parameters
    ----------
    n : int
        Samples, half of them from each cluster.
    factors, energies : sequence of float
        Values of the sliders: `median_factor` and `energy` of `SSGE`.
    seed : int
        Of the samples.
    """
    generator = stream(seed, "score field")
    sides = torch.tensor([1.0, -1.0]).repeat((n + 1) // 2)[:n, None]
    samples = torch.cat([sides, torch.zeros(n, 1)], dim=-1) + 0.5 * torch.randn(n, 2, generator=generator)
    grid = torch.cartesian_prod(torch.linspace(-2.25, 2.25, 13), torch.linspace(-1.5, 1.5, 9))
    truth = two_clusters(samples)
    arrows, notes = [], []
    for factor in factors:
        for share in energies:
            score = SSGE(energy=share, median_factor=factor).fit(samples)
            error = float((score(samples) - truth).norm() / truth.norm())
            arrows.append(0.06 * score(grid))
            notes.append(f"{int(score.n_eigen)} eigenfunctions kept; relative error at the samples {error:.2f}")
    steps = torch.stack(arrows).reshape(len(factors), len(energies), len(grid), 2).numpy()
    at = {"x": grid[:, 0].numpy(), "y": grid[:, 1].numpy()}
    exact = (0.06 * two_clusters(grid)).numpy()
    cloud = Layer("dots", {"x": samples[:, 0].numpy(), "y": samples[:, 1].numpy()}, color="0.65", size=3)
    panels = [
        Panel([cloud, Layer("arrows", at | {"u": u, "v": v}, color=color, size=1.5)], (-2.7, 2.7), (-2, 2), title)
        for title, color, u, v in (
            ("estimate", colour("ssge"), steps[..., 0], steps[..., 1]),
            ("truth", INK, exact[:, 0], exact[:, 1]),
        )
    ]
    sliders = [
        Slider("kernel width, in median distances", [f"{factor:g}" for factor in factors], factors.index(1.0)),
        Slider("share of the trace kept", [f"{share:g}" for share in energies], energies.index(0.99)),
    ]
    alt = (
        "Two panels of arrows over a cloud of samples in two clusters: the score that SSGE estimates at its usual "
        "setting, and the true score. Both point to the two clusters; the estimate is weaker at the edges of the cloud."
    )
    return LiveFigure("score-field", panels, sliders, alt, notes)


def flow_of_samples(
    betas: Sequence[float] = (0.0, 0.1, 0.3, 1.0, 3.0),
    moments: int = 31,
    n: int = 120,
    step: float = 0.03,
    steps_between: int = 4,
    seed: int = 0,
) -> LiveFigure:
    """Samples that move downhill in an energy of eight wells, and away from each other by the entropy's gradient.

    Every sample moves by -grad E(z) - beta * s(z), with s the estimated score of all samples where they are now.

    Parameters
    ----------
    betas : sequence of float
        Weights of the entropy.
    moments, steps_between : int
        Pictures, and steps from one to the next.
    n : int
        Samples.
    step : float
        Length of a step, as a multiple of the velocity.
    seed : int
        Of the samples at the start.
    """
    first = 0.5 * torch.randn(n, 2, generator=stream(seed, "flow"))
    paths = []
    for beta in betas:
        z = first.clone()
        for moment in range(moments):
            for _ in range(steps_between if moment else 0):
                z = z + step * velocity(z, beta)
            paths.append(z)
    path = torch.stack(paths).reshape(len(betas), moments, n, 2).numpy()
    wells = centres().numpy()
    panel = Panel(
        [
            Layer("dots", {"x": path[..., 0], "y": path[..., 1]}, "samples", colour("tikhonov"), size=5),
            Layer("dots", {"x": wells[:, 0], "y": wells[:, 1]}, "wells", INK, size=5),
        ],
        (-4, 4),
        (-3.2, 3.2),
    )
    sliders = [
        Slider("weight of the entropy", [f"{beta:g}" for beta in betas], betas.index(1.0)),
        Slider("step", [str(moment * steps_between) for moment in range(moments)], moments - 1, plays=True),
    ]
    alt = (
        "A cloud of samples around a ring of eight wells: with the entropy at weight one it has flowed from the middle "
        "into all eight and fills each of them."
    )
    return LiveFigure("flow-of-samples", [panel], sliders, alt)


def velocity(z: Float[Tensor, "n 2"], beta: float) -> Float[Tensor, "n 2"]:
    """Where the samples move: downhill in the energy, and against their own score, at most four a unit of time."""
    at = z.clone().requires_grad_()
    (uphill,) = torch.autograd.grad(energy(at).sum(), at)
    moves = -uphill
    if beta > 0:
        moves = moves - beta * Tikhonov(ridge=1e-3, median_factor=0.25).fit(z)(z)
    return moves * (4 / moves.norm(dim=-1, keepdim=True)).clamp(max=1)


def toy_estimates(record: Record) -> LiveFigure:
    """Estimated gradients of the information of correlated Gaussians, from a record of the experiment `toy`.

    Left, the gradient divided by the dimension, over the correlation, for one dimension; right, estimate over truth in
    all dimensions for one correlation. Means over seeds.

    Parameters
    ----------
    record : Record
        Of `toy`, with curves of MIGE and of the bounds in each of its dimensions.
    """
    dims = record.config["dims"]
    means = {
        method: np.stack([record.curves[f"{method}/d{dim}/gradient"].mean(0) / dim for dim in dims])
        for method in LEGEND
    }
    grids = {method: _correlations(record, values.shape[-1]) for method, values in means.items()}
    chosen = grids["mige"][grids["mige"] > 0.1]
    curves, ratios = [], []
    for method, label in LEGEND.items():
        color = INK if method == "exact" else colour(method)
        values = np.broadcast_to(means[method][:, None], (len(dims), len(chosen), means[method].shape[-1]))
        curves.append(Layer("line", {"x": grids[method], "y": values}, label, color))
        at_chosen = np.stack([np.interp(chosen, grids[method], curve) for curve in means[method]], axis=-1)
        ratio = np.broadcast_to(at_chosen / information_slope(chosen)[:, None], (len(dims), *at_chosen.shape))
        ratios.append(Layer("line", {"x": np.asarray(dims), "y": ratio}, color=color))
        ratios.append(Layer("dots", {"x": np.asarray(dims), "y": ratio}, color=color, size=6))
    fine = np.linspace(*_correlations(record, 2), 81)
    edge = np.array([-1e3, 1e3])
    marker = np.broadcast_to(chosen[None, :, None], (len(dims), len(chosen), 2))
    top = 1.1 * float(information_slope(fine).max())
    panels = [
        Panel(
            [
                Layer("line", {"x": marker, "y": edge}, color="0.7", size=1),
                Layer("line", {"x": fine, "y": information_slope(fine)}, "truth", INK, dashed=True),
                *curves,
            ],
            (-0.85, 0.85),
            (-top, top),
            "gradient of the information / d, in nats",
            "correlation ρ",
            legend="upper left",
        ),
        Panel(
            [Layer("line", {"x": np.array([0.0, 40.0]), "y": np.ones(2)}, color=INK, dashed=True), *ratios],
            (6, 34),
            (0, 1.35),
            "estimate / truth at this ρ",
            "dimension d",
        ),
    ]
    middle = int(np.abs(chosen - 0.5).argmin())
    sliders = [
        Slider("dimension d", [str(dim) for dim in dims], len(dims) - 1),
        Slider("correlation ρ", [f"{rho:.2f}" for rho in chosen], middle),
    ]
    alt = (
        "Left: the gradient of the information against the correlation in 32 dimensions; exact scores follow the "
        "truth, MIGE is somewhat and the bounds are far below it. Right: estimate over truth at a correlation of one "
        "half; exact scores stay at one in 8, 16 and 32 dimensions, MIGE falls slowly and the bounds steeply."
    )
    return LiveFigure("toy-estimates", panels, sliders, alt)


def information_slope(rho: np.ndarray) -> np.ndarray:
    """Derivative in rho of the information of one correlated pair, -log(1 - rho^2) / 2."""
    return rho / (1 - rho**2)


def _correlations(record: Record, points: int) -> np.ndarray:
    return np.linspace(-record.config["rho_max"], record.config["rho_max"], points)


def memory_of_scores(
    decays: Sequence[float] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99),
    drifts: Sequence[float] = (0.0, 0.001, 0.003, 0.01, 0.03),
    dim: int = 16,
    n: int = 64,
    steps: int = 300,
    repeats: int = 4,
    seed: int = 0,
) -> LiveFigure:
    r"""What a Gaussian score with a memory loses by noise and by lag, while the samples' scale drifts.

    The covariance is an average over batches that forgets, :math:`C_t \propto \sum_k \lambda^k S_{t-k}` with S the
    second moments of a batch. The samples' scale grows by the drift in every step, and shrinks in the second half.

    Parameters
    ----------
    decays, drifts : sequence of float
        Values of the sliders: the decay lambda, 0 for no memory, and the growth a step.
    dim, n : int
        Coordinates, and samples a batch.
    steps, repeats : int
        Of the drift, and runs that the errors are averaged over.
    seed : int
        Of the samples.
    """
    noise = torch.randn(steps, repeats, n, dim, generator=stream(seed, "memory"))
    moments = noise.mT @ noise / n
    up = torch.arange(steps).clamp(max=steps // 2)
    height = up - (torch.arange(steps) - steps // 2).clamp(min=0)
    errors = torch.stack(
        [remembered_error(moments, torch.exp(drift * height), decay) for decay in decays for drift in drifts]
    )
    errors = errors.reshape(len(decays), len(drifts), steps).numpy()
    late = errors[..., steps // 4 :].mean(-1)
    effective = [n * (1 + decay) / (1 - decay) for decay in decays]
    theory = np.sqrt((dim + 1) / np.array(effective))
    batches = 1 / (1 - np.array(decays))  # what the memory averages over
    shape = (len(decays), len(drifts))
    over_decays = np.broadcast_to(late.T[None], (*shape, len(decays)))
    dot = {"x": np.broadcast_to(batches[:, None, None], (*shape, 1)), "y": late[..., None]}
    alone = np.broadcast_to(errors[:1], errors.shape)
    panels = [
        Panel(
            [
                Layer("line", {"x": np.arange(steps), "y": alone}, "this batch alone", "0.6", size=1),
                Layer("line", {"x": np.arange(steps), "y": errors}, "with the memory", colour("streaming")),
            ],
            (0, steps),
            (0, 1.5),
            "relative error of the score",
            "step",
        ),
        Panel(
            [
                Layer("line", {"x": batches, "y": theory}, "noise alone", INK, dashed=True),
                Layer("line", {"x": batches, "y": over_decays}, "noise and lag", colour("streaming")),
                Layer("dots", dot, color=colour("streaming"), size=9),
            ],
            (0.9, 120),
            (0, 1.2),
            "mean error",
            "batches in the memory, 1 / (1 - decay)",
            log_x=True,
        ),
    ]
    sliders = [
        Slider("decay", [f"{decay:g}" for decay in decays], decays.index(0.9)),
        Slider("drift a step, in %", [f"{100 * drift:g}" for drift in drifts], drifts.index(0.003)),
    ]
    best = [[decays[i] for i in late.argmin(0)] for _ in decays]
    notes = [
        f"mean error {late[i, j]:.2f}; the least at this drift, {late[:, j].min():.2f}, is at decay {best[i][j]:g}"
        for i in range(len(decays))
        for j in range(len(drifts))
    ]
    alt = (
        "Left: the error of a score over the steps of a drift, with a memory of ten batches, far below that of one "
        "fitted to each batch alone. Right: the mean error against the length of the memory falls along the dashed "
        "line of the noise, then rises where the memory lags behind."
    )
    return LiveFigure("memory-of-scores", panels, sliders, alt, notes)


def remembered_error(
    moments: Float[Tensor, "steps repeats d d"], scales: Float[Tensor, "steps"], decay: float
) -> Float[Tensor, "steps"]:
    """Relative error, at fresh samples, of the Gaussian score whose covariance is the decaying average of the moments.

    The samples are ``scales[t]`` times standard normal ones, whose second moments are given.
    """
    total, weight = torch.zeros_like(moments[0]), 0.0
    eye = torch.eye(moments.shape[-1])
    errors = []
    for moment, scale in zip(moments, scales, strict=True):
        total, weight = decay * total + scale**2 * moment, decay * weight + 1
        # of s(z) = -C^-1 z against -z / scale^2, for z of covariance scale^2
        difference = scale**2 * torch.linalg.inv(total / weight) - eye
        errors.append((difference.square().sum((-2, -1)) / len(eye)).mean().sqrt())
    return torch.stack(errors)
