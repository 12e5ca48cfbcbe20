r"""The benchmark: how well each method estimates the gradient of the mutual information on tasks with known truth.

Every method sees the same n samples of a task of `migelib.tasks` and returns a gradient with respect to the task's
parameters: score-based methods through `mutual_information_surrogate`; trained peers by fitting a critic, or a
conditional, to these n samples and differentiating their estimate through the samples with the network held fixed. The
exact scores on the same samples give the floor. Where the truth of an entropy follows from that of the information, its
gradient is measured too, under the task's name with "entropy-" before it.
Explained in :doc:`/book/benchmark`.
"""

from __future__ import annotations

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
from .randomness import stream
from .training import Stack, adam, descend

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
Result = tuple[dict[str, float], dict[str, np.ndarray]]


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
        Stop as soon as the method `Config.reference` would have finished on the same samples, those of all seeds that
        are trained together.
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


def run_seeds(config: Config, shared: None, seeds: Sequence[int], device: torch.device) -> list[Result]:
    """Errors of every method in every cell, and the gradients themselves; no means over tasks."""
    results: list[Result] = [({}, {}) for _ in seeds]
    for (name, dim, n), with_peers in _jobs(config).items():
        task, setting = pair(name, dim), f"{name}-d{dim}-n{n}"
        truth, error = task.mutual_information_gradient(), task.mutual_information_gradient_error()
        cells = run_cell(config, seeds, name, dim, n, device, with_peers)
        for seed, cell, (quantities, curves) in zip(seeds, cells, results, strict=True):
            curves[f"truth/{name}-d{dim}"] = truth.numpy()
            quantities[f"truth/{name}-d{dim}/standard_error"] = float(error.norm() / truth.norm())
            measured = [_measured(cell, truth, setting)]
            if (dim, n) in config.cells and name in JOINT_ENTROPY + CODE_ENTROPY:
                sign = -1 if name in JOINT_ENTROPY else 1
                entropies = run_entropy_cell(config, seed, name, dim, n, device)
                measured.append(_measured(entropies, sign * truth, f"entropy-{setting}"))
            for found in measured:
                quantities |= found[0]
                curves |= found[1]
    return results


def _jobs(config: Config) -> dict[tuple[str, int, int], bool]:
    """Task, dimension and number of samples of every cell, and whether the peers are trained there."""
    jobs: dict[tuple[str, int, int], bool] = {}
    for names, cells, peers in (
        (config.tasks, config.cells, False),
        (config.large_tasks, config.large_cells, False),
        (config.peer_tasks, config.peer_cells, True),
    ):
        jobs |= {(name, dim, n): peers for name in names for dim, n in cells if _exists(name, dim)}
    return jobs


def _measured(cell: dict[str, Float[Tensor, "r k"]], truth: Tensor, setting: str) -> Result:
    """Errors and gradients of the methods of a cell."""
    quantities: dict[str, float] = {}
    floor = errors(cell["exact"], truth)["relative_error"]
    for method, gradients in cell.items():
        name = f"{method}/{setting}"
        quantities |= {f"{name}/{metric}": value for metric, value in errors(gradients, truth).items()}
        if method != "exact":
            quantities[f"{name}/floor_multiple"] = quantities[f"{name}/relative_error"] / floor
    return quantities, {f"{method}/{setting}": gradients.numpy() for method, gradients in cell.items()}


def run_cell(
    config: Config, seeds: Sequence[int], name: str, dim: int, n: int, device: torch.device, with_peers: bool
) -> list[dict[str, Float[Tensor, "r k"]]]:
    """Gradients of one task at one dimension and number of samples, for each seed: method -> one row a sample set.

    Sample set r is the same for all methods.
    """
    cells, seconds = [], {}
    for seed in seeds:
        gradients, reference_seconds = score_gradients(config, seed, name, dim, n, device)
        cells.append(gradients)
        if reference_seconds:  # else the reference rejects these samples
            seconds[seed] = float(np.median(reference_seconds))
    if with_peers:
        trained = trained_gradients(config, seeds, name, dim, n, device, seconds)
        cells = [gradients | of_peers for gradients, of_peers in zip(cells, trained, strict=True)]
    return [_stacked(gradients) for gradients in cells]


def score_gradients(
    config: Config, seed: int, name: str, dim: int, n: int, device: torch.device
) -> tuple[dict[str, list[Tensor]], list[float]]:
    """Gradients with the exact scores and by the score-based methods, and the seconds that the reference took."""
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
    return gradients, reference_seconds


def trained_gradients(
    config: Config, seeds: Sequence[int], name: str, dim: int, n: int, device: torch.device, seconds: dict[int, float]
) -> list[dict[str, list[Tensor]]]:
    """Gradients by the peers, trained for these seeds at once; `seconds` is the time of the reference by seed."""
    gradients: list[dict[str, list[Tensor]]] = [{} for _ in seeds]
    samplers = [_sampler(seed, name, dim, n, device)[0] for seed in seeds]
    timed = tuple(training for training in config.trainings if training.equal_time)
    for peer in config.peers:
        for training in config.trainings if peer in PEERS else (PeerTraining(), *timed):
            rows = [row for row, seed in enumerate(seeds) if seed in seconds or not training.equal_time]
            chosen = [seeds[row] for row in rows]
            limits = [seconds[seed] if training.equal_time else math.inf for seed in chosen]
            for repeat in range(config.peer_repeats if rows else 0):
                label = ("weights", peer, name, dim, n, repeat)
                problems = [samplers[row](repeat) for row in rows]
                if peer in PEERS:
                    found = peer_gradients(problems, PEERS[peer], config, training, chosen, label, sum(limits))
                else:
                    streams = [stream(seed, *label) for seed in chosen]
                    found = list(map(denoising_gradient, problems, streams, limits))
                for row, gradient in zip(rows, found, strict=True):
                    gradients[row].setdefault(peer + training.suffix, []).append(gradient)
    return gradients


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
    """AR-DAE: MIGE with `DenoisingScore`, its default number of training steps or as many as fit in `seconds`.

    An estimator of the library, which trains its networks inside `fit`: each seed's by themselves.
    """
    estimator = DenoisingScore(seed=generator.initial_seed())
    if math.isfinite(seconds):
        trial = replace(estimator, steps=10)
        started = time.perf_counter()
        trial.fit_pair(problem.x, problem.z)
        estimator = replace(estimator, steps=max(1, int(10 * seconds / (time.perf_counter() - started))))
    return score_gradient(problem, estimator)


def peer_gradients(
    problems: Sequence[Problem],
    peer: Peer,
    config: Config,
    training: PeerTraining,
    seeds: Sequence[int],
    label: tuple[object, ...],
    seconds: float = math.inf,
) -> Float[Tensor, "seeds k"]:
    """Train a peer on the samples, then differentiate its estimate through them with the network held fixed.

    There is one problem and one network a seed, its weights from the seed's stream of that label; all are trained at
    once. The networks see standardised coordinates, which changes no mutual information. Training ends as `training`
    says, or at the first step that the host finishes after `seconds`. The estimate is over all samples, held-out ones
    included. Where it is not finite, as MINE-f's may be on heavy tails, its gradient counts as zero: no gradient, a
    relative error of 1.
    """
    deadline = time.perf_counter() + seconds
    x, z = (_standardised(torch.stack(samples)) for samples in ([p.x for p in problems], [p.z for p in problems]))
    networks = Stack.build(lambda: peer.network(config, x.shape[-1], z.shape[-1]), seeds, *label, device=x.device)
    past = train_peer(peer, networks, x.detach(), z.detach(), config, training, deadline)
    estimate = peer.read(networks(x, z), past, config)
    gradients = torch.stack(torch.autograd.grad(estimate.sum(), [p.theta for p in problems])).flatten(1)
    return torch.where(gradients.isfinite().all(-1, keepdim=True), gradients, 0.0)


def _standardised(samples: Float[Tensor, "seeds n d"]) -> Float[Tensor, "seeds n d"]:
    fixed = samples.detach()
    return (samples - fixed.mean(-2, keepdim=True)) / fixed.std(-2, keepdim=True)


def train_peer(
    peer: Peer,
    networks: Stack,
    x: Float[Tensor, "seeds n p"],
    z: Float[Tensor, "seeds n q"],
    config: Config,
    training: PeerTraining,
    deadline: float = math.inf,
) -> Float[Tensor, "seeds"] | None:
    """Train the networks of a peer until `time.perf_counter` passes the deadline; return its moving average."""
    optimiser = adam(networks.parameters(), training.learning_rate)
    held_out, past = round(training.held_out * x.shape[-2]), None
    best = BestWeights(networks)
    for step in range(training.steps):
        value, past = peer.objective(networks(x[:, held_out:], z[:, held_out:]), past, config)
        descend(optimiser, -value)
        late = time.perf_counter() > deadline
        if held_out and (step % 5 == 4 or late or step == training.steps - 1):
            with torch.no_grad():  # held-out samples leave the moving average as it is
                value, _ = peer.objective(networks(x[:, :held_out], z[:, :held_out]), past, config)
            best.update(value)
        if late:
            break
    if held_out:
        best.restore()
    return past


class BestWeights:
    """The weights of each seed at the largest value so far; they stay on the device, and no value is read back.

    Parameters
    ----------
    networks : Stack
        The networks that are trained.
    """

    def __init__(self, networks: Stack) -> None:
        self._weights = networks.parameters()
        self._kept = [weights.detach().clone() for weights in self._weights]
        self._value = self._kept[0].new_full((len(networks),), -math.inf)

    def update(self, value: Float[Tensor, "seeds"]) -> None:
        """Keep the present weights of the seeds whose value is larger than all before, or that had no number yet."""
        better = (value > self._value) | (self._value == -math.inf)
        self._value = torch.where(value > self._value, value, self._value)
        for kept, weights in zip(self._kept, self._weights, strict=True):
            kept.copy_(torch.where(better.view(-1, *[1] * (kept.ndim - 1)), weights.detach(), kept))

    def restore(self) -> None:
        """Put the kept weights back into the networks."""
        with torch.no_grad():
            for kept, weights in zip(self._kept, self._weights, strict=True):
                weights.copy_(kept)


class Peer(NamedTuple):
    """A network that maps samples to an (n, n) matrix, and what is made of the matrices of all seeds [seeds, n, n].

    `objective` has values [seeds], to be maximised, and the moving average for the next step, None without one;
    `estimate` is that of the information, the objective unless another is given.
    """

    network: Callable[[Config, int, int], nn.Module]
    objective: Callable[[Tensor, Tensor | None, Config], tuple[Tensor, Tensor | None]]
    estimate: Callable[[Tensor, Config], Tensor] | None = None

    def read(self, matrix: Float[Tensor, "seeds n n"], past: Tensor | None, config: Config) -> Float[Tensor, "seeds"]:
        """Estimate of the information."""
        return self.objective(matrix, past, config)[0] if self.estimate is None else self.estimate(matrix, config)


def _critic(config: Config, x_dim: int, z_dim: int) -> nn.Module:
    return critics.SeparableCritic(x_dim, z_dim, config.hidden, config.embedding)


def _conditional(config: Config, x_dim: int, z_dim: int) -> nn.Module:
    return critics.GaussianConditional(x_dim, z_dim, config.hidden)


def _joint_mean(matrix: Float[Tensor, "seeds n n"]) -> Float[Tensor, "seeds"]:
    return matrix.diagonal(dim1=-2, dim2=-1).mean(-1)


def _peer(
    objective: Callable[[Tensor], Tensor],
    estimate: Callable[[Tensor, Config], Tensor] | None = None,
    network: Callable[[Config, int, int], nn.Module] = _critic,
) -> Peer:
    """Peer without a moving average."""
    return Peer(network, lambda matrix, past, config: (objective(matrix), None), estimate)


# JSD trains a critic whose maximum is the log-ratio, so the gradient is that of its mean over the joint pairs; SMILE's
# critic is the same one, as its authors train it. CLUB's conditional is fitted by maximum likelihood.
PEERS: dict[str, Peer] = {
    "mine-ema": Peer(_critic, lambda critic, past, config: bounds.mine(critic, past, config.decay)),
    "mine-dv": _peer(bounds.donsker_varadhan),
    "mine-f": _peer(bounds.nwj),
    "infonce": _peer(bounds.infonce),
    "jsd": _peer(bounds.jsd, lambda critic, config: _joint_mean(critic)),
    "smile": _peer(bounds.jsd, lambda critic, config: bounds.smile(critic, config.tau)),
    "club": _peer(_joint_mean, lambda log_conditional, config: bounds.club(log_conditional), _conditional),
}


def _exists(name: str, dim: int) -> bool:
    try:
        pair(name, dim)
    except ValueError:
        return False
    return True
