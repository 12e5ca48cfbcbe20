r"""The benchmark: how well each method estimates the gradient of the mutual information on tasks with known truth.

Every method sees the same n samples of a task of `migelib.tasks` and returns a gradient with respect to the task's
parameters: score-based methods through `mutual_information_surrogate`; trained peers by fitting a critic, or a
conditional, to these n samples and differentiating their estimate through the samples with the network held fixed. The
exact scores on the same samples give the floor. Where the truth of an entropy follows from that of the information, its
gradient is measured too, under the task's name with "entropy-" before it.
Explained in :doc:`/book/benchmark`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import bounds, critics
from ..scores import SSGE, DenoisingScore, GaussianScore, ScoreEstimator
from ..surrogates import entropy_surrogate, mutual_information_surrogate
from ..tasks import PAIRS, PairTask, cast, exact_score_surrogate, pair
from .randomness import seeded, stream

METRICS = {
    "relative_error": "1",
    "bias": "1",
    "spread": "1",
    "cosine": "1",
    "floor_multiple": "1",
    "standard_error": "1",
}

# The score-based methods. One that rejects the samples of a cell with ValueError has no result there, as the Gaussian
# score with n <= p + q. None is the default of the surrogates.
METHODS: dict[str, ScoreEstimator | None] = {"ssge-paper": SSGE(), "gaussian": GaussianScore(), "default": None}

# Entropies with a known gradient. Where no marginal depends on theta, that of H(x, z) = H(x) + H(z) - I(x; z) is minus
# that of the information; where z = f(x) + noise of a fixed law, that of H(z) = I(x; z) + H(z | x) equals it.
# (So it is for `uniform` and `half-cube`, but the exact scores of their joint densities have poles.)
JOINT_ENTROPY = (
    *("toy", "gauss-diagonal", "asinh", "skew", "bimodal", "wiggle", "spiral"),
    *("student", "student-asinh"),
)
CODE_ENTROPY = ("gauss-bottleneck", "gauss-low-rank", "gauss-low-noise", "mlp", "mlp-blocks")

Cells = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PeerTraining:
    """How the peers are trained by Adam; one step is one pass over all samples.

    Attributes
    ----------
    suffix : str
        Appended to the peers' names.
    learning_rate, steps :
        Adam's step size and the largest number of steps.
    held_out : float
        Share of the samples that takes no part in the training: of the weights on the way those are kept that do best
        there. 0 for the weights of the last step.
    equal_time : bool
        Stop as soon as the method `Config.reference` would have finished on the same samples.
    """

    suffix: str = ""
    learning_rate: float = 1e-4
    steps: int = 200
    held_out: float = 0.0
    equal_time: bool = False


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions of everything.
    tasks, large_tasks, peer_tasks : tuple of str
        Tasks for the score-based methods in `cells`, entropies included, and in `large_cells`; and for the peers.
    cells, large_cells, peer_cells : tuple of (int, int)
        Pairs of a dimension and a number of samples.
    methods, peers : tuple of str
        Names of `METHODS` and of `PEERS`; "ar-dae" is `DenoisingScore`.
    trainings : tuple of PeerTraining
        Every peer is trained in each of these ways: as in the MIGE paper's code, stopped early, for equal time. AR-DAE
        is trained in its own way, and for equal time where one of these is.
    reference : str
        The method whose wall time limits a training for equal time.
    repeats, floor_repeats : int
        Sample sets of 256 a seed for the methods and for the exact scores; in inverse proportion fewer of larger sets,
        and a quarter of them for `toy`, which is a problem at each correlation of a grid.
    peer_repeats : int
        Sample sets a seed for the peers.
    hidden, embedding : int
        Sizes of the peers' networks.
    decay, tau : float
        MINE's moving average and SMILE's clip.
    """

    seeds: int
    tasks: tuple[str, ...] = tuple(PAIRS)
    large_tasks: tuple[str, ...] = ()
    peer_tasks: tuple[str, ...] = tuple(name for name in PAIRS if name != "toy")
    cells: Cells = ((8, 256),)
    large_cells: Cells = ()
    peer_cells: Cells = ((8, 256),)
    methods: tuple[str, ...] = tuple(METHODS)
    peers: tuple[str, ...] = ("mine-ema", "mine-f", "infonce", "jsd", "smile", "club", "ar-dae")
    trainings: tuple[PeerTraining, ...] = (
        PeerTraining(),
        PeerTraining("-held-out", learning_rate=5e-4, steps=300, held_out=0.25),
        PeerTraining("-equal-time", learning_rate=1e-3, equal_time=True),
    )
    reference: str = "default"
    repeats: int = 8
    floor_repeats: int = 32
    peer_repeats: int = 1
    hidden: int = 256
    embedding: int = 20
    decay: float = 0.9
    tau: float = 5.0

    def __post_init__(self) -> None:
        if any(training.equal_time for training in self.trainings) and self.reference not in self.methods:
            raise ValueError(f"reference: expected one of {', '.join(self.methods)}, got {self.reference!r}")


PROFILES = {
    "quick": Config(
        seeds=5,
        tasks=("toy", "gauss-bottleneck", "half-cube", "student", "mixture-signs", "mlp-blocks"),
        peer_tasks=("half-cube",),
        cells=((16, 256),),
        repeats=2,
        peers=("infonce", "club"),
        trainings=(PeerTraining(), PeerTraining("-held-out", learning_rate=1e-3, steps=60, held_out=0.25)),
    ),
    # What an hour on one CPU core allows.
    "cpu": Config(
        seeds=5,
        cells=(*((dim, 256) for dim in (1, 2, 8, 16, 32, 128)), (2, 64), (16, 64)),
        large_tasks=("gauss-diagonal", "half-cube", "mlp-blocks"),
        large_cells=((16, 1024), (16, 4096)),
        trainings=(
            PeerTraining("-held-out", learning_rate=5e-4, steps=300, held_out=0.25),
            PeerTraining("-equal-time", learning_rate=1e-3, equal_time=True),
        ),
        repeats=3,
        floor_repeats=12,
    ),
    "full": Config(
        seeds=5,
        cells=(
            *((dim, 256) for dim in (1, 2, 8, 16, 32, 128)),
            *((dim, n) for n in (64, 1024) for dim in (2, 16, 128)),
        ),
        large_tasks=("gauss-diagonal", "half-cube", "spiral", "student", "mixture-clusters", "mlp-blocks"),
        large_cells=((16, 4096),),
        peer_cells=((2, 256), (8, 256), (32, 256)),
    ),
}
STUDIES: dict[str, Config] = {}


def units(config: Config) -> list[Config]:
    """The score-based methods on each task, and the peers on each task and cell."""
    parts = []
    for name in dict.fromkeys(config.tasks + config.large_tasks):
        with_peers = config.peer_cells if name in config.peer_tasks else ()
        cells = tuple(cell for cell in config.cells if cell not in with_peers)
        own = {field: (name,) * (name in getattr(config, field)) for field in ("tasks", "large_tasks")}
        parts.append(replace(config, **own, cells=cells, peer_tasks=()))
    for name in config.peer_tasks:
        for cell in config.peer_cells:
            if _exists(name, cell[0]):
                # Of the other cells only whether entropies are measured in this one remains.
                cells = (cell,) * (cell in config.cells)
                parts.append(
                    replace(config, tasks=(), large_tasks=(), cells=cells, peer_tasks=(name,), peer_cells=(cell,))
                )
    return parts


def summarise(config: Config, quantities: Mapping[str, float]) -> dict[str, float]:
    """Geometric means of each method's errors and floor multiples over its cells of n samples, named all-n<n>.

    Those of the information only: where Stein's identity is exact on the samples, errors of an entropy are rounding.
    Methods that have different cells, as the peers, or one that rejects some samples, do not compare by these.
    """
    groups: dict[str, list[float]] = {}
    for name, value in quantities.items():
        method, setting, metric = name.split("/")
        if metric in ("relative_error", "floor_multiple") and not setting.startswith("entropy-"):
            groups.setdefault(f"{method}/all-n{setting.rsplit('-n', 1)[1]}/{metric}", []).append(value)
    return {name: math.exp(sum(map(math.log, values)) / len(values)) for name, values in groups.items()}


def prepare(config: Config, device: torch.device) -> None:
    """Nothing is shared by the seeds."""


def run_seeds(
    config: Config, shared: None, seeds: Sequence[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Errors of every method in every cell, and the gradients themselves."""
    return [run_seed(config, seed, device) for seed in seeds]


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Errors of every method in every cell, and the gradients themselves, for one seed; no means over tasks."""
    jobs: dict[tuple[str, int, int], bool] = {}  # task, dimension, number of samples -> with peers?
    for names, cells, peers in (
        (config.tasks, config.cells, False),
        (config.large_tasks, config.large_cells, False),
        (config.peer_tasks, config.peer_cells, True),
    ):
        jobs |= {(name, dim, n): peers for name in names for dim, n in cells if _exists(name, dim)}
    quantities: dict[str, float] = {}
    curves: dict[str, np.ndarray] = {}
    for (name, dim, n), with_peers in jobs.items():
        task = pair(name, dim)
        truth, error = task.mutual_information_gradient(), task.mutual_information_gradient_error()
        curves[f"truth/{name}-d{dim}"] = truth.numpy()
        quantities[f"truth/{name}-d{dim}/standard_error"] = float(error.norm() / truth.norm())
        measures = {"": (run_cell(config, seed, name, dim, n, device, with_peers), truth)}
        if (dim, n) in config.cells and name in JOINT_ENTROPY + CODE_ENTROPY:
            sign = -1 if name in JOINT_ENTROPY else 1
            measures["entropy-"] = run_entropy_cell(config, seed, name, dim, n, device), sign * truth
        for prefix, (cell, target) in measures.items():
            floor = errors(cell["exact"], target)["relative_error"]
            for method, gradients in cell.items():
                setting = f"{method}/{prefix}{name}-d{dim}-n{n}"
                curves[setting] = gradients.numpy()
                quantities |= {f"{setting}/{metric}": value for metric, value in errors(gradients, target).items()}
                if method != "exact":
                    quantities[f"{setting}/floor_multiple"] = quantities[f"{setting}/relative_error"] / floor
    return quantities, curves


def run_cell(
    config: Config, seed: int, name: str, dim: int, n: int, device: torch.device, with_peers: bool
) -> dict[str, Float[Tensor, "r k"]]:
    """Gradients of one task at one dimension and number of samples: method -> one row a sample set.

    Sample set r is the same for all methods.
    """
    sampled, share = _sampler(seed, name, dim, n, device)
    gradients = {
        "exact": [exact_score_gradient(sampled(repeat)) for repeat in range(max(4, share(config.floor_repeats)))]
    }
    reference_seconds = []
    for method in config.methods:
        try:
            for repeat in range(share(config.repeats)):
                problem, started = sampled(repeat), time.perf_counter()
                gradients.setdefault(method, []).append(score_gradient(problem, METHODS[method]))
                if method == config.reference:
                    reference_seconds.append(time.perf_counter() - started)
        except ValueError:
            gradients.pop(method, None)
    for peer in config.peers if with_peers else ():
        for repeat in range(config.peer_repeats):
            weights = stream(seed, "weights", peer, name, dim, n, repeat)
            timed = tuple(training for training in config.trainings if training.equal_time)
            for training in (PeerTraining(), *timed) if peer == "ar-dae" else config.trainings:
                if training.equal_time and not reference_seconds:
                    continue  # the reference rejects these samples
                seconds = float(np.median(reference_seconds)) if training.equal_time else math.inf
                if peer == "ar-dae":
                    gradient = denoising_gradient(sampled(repeat), weights, seconds)
                else:
                    gradient = peer_gradient(sampled(repeat), PEERS[peer], config, training, weights, seconds)
                gradients.setdefault(peer + training.suffix, []).append(gradient)
    return _stacked(gradients)


def run_entropy_cell(
    config: Config, seed: int, name: str, dim: int, n: int, device: torch.device
) -> dict[str, Float[Tensor, "r k"]]:
    """Gradients of the entropy of (x, z) or of z by the score-based methods: method -> one row a sample set.

    The sample sets are those of `run_cell`.
    """
    sampled, share = _sampler(seed, name, dim, n, device)
    joint = name in JOINT_ENTROPY
    floor_repeats = max(4, share(config.floor_repeats))
    gradients = {"exact": [exact_entropy_gradient(sampled(repeat), joint) for repeat in range(floor_repeats)]}
    for method in config.methods:
        try:
            for repeat in range(share(config.repeats)):
                gradients.setdefault(method, []).append(entropy_gradient(sampled(repeat), joint, METHODS[method]))
        except ValueError:
            gradients.pop(method, None)
    return _stacked(gradients)


def _sampler(
    seed: int, name: str, dim: int, n: int, device: torch.device
) -> tuple[Callable[[int], Problem], Callable[[int], int]]:
    """Function that draws sample set r of a task, and one from a number of sets of 256 to that of sets of n."""
    task = cast(pair(name, dim), device=device)

    def sampled(repeat: int) -> Problem:
        return draw(task, n, stream(seed, "samples", name, dim, n, repeat))

    def share(count: int) -> int:
        return max(1, round(count * min(1.0, 256 / n) / (4 if name == "toy" else 1)))

    return sampled, share


def _stacked(gradients: dict[str, list[Tensor]]) -> dict[str, Float[Tensor, "r k"]]:
    return {method: torch.stack(rows).flatten(1).cpu() for method, rows in gradients.items()}


def errors(gradients: Float[Tensor, "r k"], truth: Float[Tensor, "k"]) -> dict[str, float]:
    r"""Errors of estimates :math:`\hat g_r` of a gradient g, relative to its norm, and their cosine with it.

    Returns
    -------
    dict
        ``relative_error`` :math:`\sqrt{E \|\hat g - g\|^2} / \|g\|`; ``cosine``, the mean one; and for two estimates or
        more its parts ``bias`` :math:`\|E \hat g - g\| / \|g\|` and
        ``spread`` :math:`\sqrt{E \|\hat g - E \hat g\|^2} / \|g\|`. The squares of error and spread are unbiased; that
        of the bias is their difference, or 0 where that is negative.
    """
    truth, gradients = truth.flatten().double(), gradients.double()  # errors of diverging critics overflow float32
    square = float((gradients - truth).square().sum(-1).mean() / truth.square().sum())
    summary = {
        "relative_error": math.sqrt(square),
        "cosine": float(torch.cosine_similarity(gradients, truth.expand_as(gradients), dim=-1).mean()),
    }
    if len(gradients) > 1:
        variance = float(gradients.var(0).sum() / truth.square().sum())
        summary |= {"bias": math.sqrt(max(0.0, square - variance)), "spread": math.sqrt(variance)}
    return summary


# --- estimates -------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Samples of a task, differentiable in the parameters `theta`."""

    task: PairTask
    theta: Float[Tensor, "*k"]
    x: Float[Tensor, "*batch n p"]
    z: Float[Tensor, "*batch n q"]


def draw(task: PairTask, n: int, generator: torch.Generator) -> Problem:
    """Draw n samples."""
    theta = task.theta.detach().clone().requires_grad_()
    return Problem(task, theta, *task.at(theta).sample(n, generator))


def exact_score_gradient(problem: Problem) -> Float[Tensor, "*k"]:
    """The estimate with the exact scores: what remains is Monte-Carlo noise."""
    surrogate = exact_score_surrogate(problem.task, problem.x, problem.z)
    return torch.autograd.grad(surrogate, problem.theta)[0]


def score_gradient(problem: Problem, estimator: ScoreEstimator | None) -> Float[Tensor, "*k"]:
    """MIGE with a score estimator."""
    surrogate = mutual_information_surrogate(problem.x, problem.z, estimator)
    return torch.autograd.grad(surrogate, problem.theta)[0]


def exact_entropy_gradient(problem: Problem, joint: bool) -> Float[Tensor, "*k"]:
    """EGE of H(x, z), or of H(z), with the exact score."""
    scores = problem.task.scores(problem.x.detach(), problem.z.detach())
    surrogate = -((scores.joint_z if joint else scores.z) * problem.z).sum(-1).mean(-1).sum()
    if joint and problem.x.requires_grad:
        surrogate = surrogate - (scores.joint_x * problem.x).sum(-1).mean(-1).sum()
    return torch.autograd.grad(surrogate, problem.theta)[0]


def entropy_gradient(problem: Problem, joint: bool, estimator: ScoreEstimator | None) -> Float[Tensor, "*k"]:
    """EGE of H(x, z), or of H(z), with a score estimator."""
    variable = torch.cat([problem.x, problem.z], dim=-1) if joint else problem.z
    return torch.autograd.grad(entropy_surrogate(variable, estimator), problem.theta)[0]


def denoising_gradient(problem: Problem, generator: torch.Generator, seconds: float = math.inf) -> Float[Tensor, "*k"]:
    """AR-DAE: MIGE with `DenoisingScore`, its default number of training steps or as many as fit in `seconds`."""
    estimator = DenoisingScore(seed=generator.initial_seed())
    if math.isfinite(seconds):
        trial = replace(estimator, steps=10)
        started = time.perf_counter()
        trial.fit_pair(problem.x, problem.z)
        estimator = replace(estimator, steps=max(1, int(10 * seconds / (time.perf_counter() - started))))
    return score_gradient(problem, estimator)


def peer_gradient(
    problem: Problem,
    peer: Callable[[Config, int, int], Peer],
    config: Config,
    training: PeerTraining,
    generator: torch.Generator,
    seconds: float = math.inf,
) -> Float[Tensor, "k"]:
    """Train a peer on the samples, then differentiate its estimate through them with the network held fixed.

    The network sees standardised coordinates, which changes no mutual information. Training ends as `training` says,
    or at the first step that ends after `seconds`. The estimate is over all samples, held-out ones included. Where it
    is not finite, as MINE-f's may be on heavy tails, its gradient counts as zero: no gradient, a relative error of 1.
    """
    started = time.perf_counter()
    x, z = ((samples - samples.detach().mean(0)) / samples.detach().std(0) for samples in (problem.x, problem.z))
    fixed_x, fixed_z = x.detach(), z.detach()
    trained = seeded(lambda: peer(config, x.shape[-1], z.shape[-1]), generator.initial_seed())
    trained.network.to(x.device)
    optimiser = torch.optim.Adam(trained.network.parameters(), lr=training.learning_rate)
    held_out = round(training.held_out * len(x))
    kept, least = None, math.inf
    for step in range(training.steps):
        optimiser.zero_grad()
        trained.loss(trained.network, fixed_x[held_out:], fixed_z[held_out:]).backward()
        optimiser.step()
        late = time.perf_counter() - started > seconds
        if held_out and (step % 5 == 4 or late or step == training.steps - 1):
            with torch.no_grad():
                loss = float(trained.loss(trained.network, fixed_x[:held_out], fixed_z[:held_out]))
            if loss < least:
                kept, least = copy.deepcopy(trained.network.state_dict()), loss
        if late:
            break
    if kept is not None:
        trained.network.load_state_dict(kept)
    gradient = torch.autograd.grad(trained.estimate(trained.network(x, z)), problem.theta)[0]
    return gradient if bool(gradient.isfinite().all()) else torch.zeros_like(gradient)


class Peer(NamedTuple):
    """A network that maps samples to an (n, n) matrix, its training loss and its estimate of the information."""

    network: nn.Module
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    estimate: Callable[[Tensor], Tensor]


def _critic(config: Config, x_dim: int, z_dim: int) -> nn.Module:
    return critics.SeparableCritic(x_dim, z_dim, config.hidden, config.embedding)


def _by_bound(
    objective: Callable[[Tensor], Tensor], estimate: Callable[[Tensor, Config], Tensor] | None = None
) -> Callable[[Config, int, int], Peer]:
    """Critic trained by an objective of its matrix; the estimate is the objective unless another is given."""

    def build(config: Config, x_dim: int, z_dim: int) -> Peer:
        def read(critic: Tensor) -> Tensor:
            return objective(critic) if estimate is None else estimate(critic, config)

        return Peer(_critic(config, x_dim, z_dim), lambda network, x, z: -objective(network(x, z)), read)

    return build


def _mine(config: Config, x_dim: int, z_dim: int) -> Peer:
    running: list[Tensor | None] = [None]

    def loss(network: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        value, mean = bounds.mine(network(x, z), running[0], config.decay)
        if torch.is_grad_enabled():  # held-out samples leave the moving average as it is
            running[0] = mean
        return -value

    return Peer(_critic(config, x_dim, z_dim), loss, lambda critic: bounds.mine(critic, running[0], config.decay)[0])


def _club(config: Config, x_dim: int, z_dim: int) -> Peer:
    conditional = critics.GaussianConditional(x_dim, z_dim, config.hidden)
    return Peer(conditional, lambda network, x, z: -network.log_prob(x, z).mean(), bounds.club)


# JSD trains a critic whose maximum is the log-ratio, so the gradient is that of its mean over the joint pairs; SMILE's
# critic is the same one, as its authors train it.
PEERS: dict[str, Callable[[Config, int, int], Peer]] = {
    "mine-ema": _mine,
    "mine-dv": _by_bound(bounds.donsker_varadhan),
    "mine-f": _by_bound(bounds.nwj),
    "infonce": _by_bound(bounds.infonce),
    "jsd": _by_bound(bounds.jsd, lambda critic, config: critic.diagonal().mean()),
    "smile": _by_bound(bounds.jsd, lambda critic, config: bounds.smile(critic, config.tau)),
    "club": _club,
}


def _exists(name: str, dim: int) -> bool:
    try:
        pair(name, dim)
    except ValueError:
        return False
    return True
