r"""What one gradient of an information costs: processor time and peak memory against samples and dimensions.

Explained in :doc:`/book/cost`.

Times and bytes are curves of a record, ``<method>/n<n>-d<d>/seconds`` and ``.../bytes``, and nothing compares them with
another machine's. The quantities are decades above or below `SSGE()`, measured in turns on the same samples: those
of memory hardly depend on the machine, those of time by its libraries and caches. A record of a processor says nothing
of a GPU, where small matrices wait for the launch of their kernels.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..scores import (
    KDE,
    SSGE,
    Adaptive,
    GaussianScore,
    Landweber,
    NuMethod,
    ScoreEstimator,
    ScoreFunction,
    Stein,
    Streaming,
    Tikhonov,
)
from ..surrogates import mutual_information_surrogate
from .randomness import seeded, stream
from .records import Record

METRICS = {"time": "decade", "memory": "decade"}
# Another library of linear algebra may change a ratio of times severalfold, and its workspaces one of memories.
FLOORS = {"time": 1.0, "memory": 0.3}


@dataclass(frozen=True)
class ThreeIndexSSGE:
    r"""`SSGE()` as it is often published, from the tensor [n, n, d] of the kernel's gradients.

    It computes the same score [Shi, Sun & Zhu, ICML 2018, eqs. 12-15]: differences of all pairs, their kernel, and
    :math:`\nabla_{x_i} k(x_i, x_j)`, each an array of its own.

    Parameters
    ----------
    energy : float
        As of `SSGE`.
    """

    energy: float = 0.99

    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "n d"]) -> ScoreFunction:
        """The score of samples [n, d], a function of points [m, d]."""
        n = len(samples)
        differences = samples[:, None] - samples  # [n, n, d]
        distances = differences.square().sum(-1).sqrt()
        width = distances.flatten().kthvalue(n * n // 2 + 1).values
        gram = self._kernel(differences, width)
        gradients = -differences / width**2 * gram[..., None]  # [n, n, d]
        eigenvalues, vectors = torch.linalg.eigh(gram)
        below = eigenvalues.cumsum(0) - eigenvalues
        keep = below > (1 - self.energy) * eigenvalues.sum()
        eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
        coefficients = -(n**0.5) * vectors.mT @ gradients.mean(0) / eigenvalues[:, None]

        def score(points: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
            kernel = self._kernel(points[:, None] - samples, width)
            return n**0.5 * kernel @ (vectors / eigenvalues) @ coefficients

        return score

    @staticmethod
    def _kernel(differences: Float[Tensor, "m n d"], width: Float[Tensor, ""]) -> Float[Tensor, "m n"]:
        return (-differences.square().sum(-1) / (2 * width**2)).exp()


# --- the steps that are measured ------------------------------------------------------------------------------------

Step = Callable[[Tensor, Tensor], None]
SEPARATION = 4.0  # of the clusters from the origin, in standard deviations of each coordinate


def pair(
    n: int, dim: int, generator: torch.Generator, separation: float = SEPARATION
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Samples of two variables in two clusters; with separation 0 they are Gaussian, of correlation 0.6."""
    x = torch.randn(n, dim, generator=generator)
    z = 0.6 * x + 0.8 * torch.randn(n, dim, generator=generator)
    sign = separation * torch.randn(n, 1, generator=generator).sign()
    return x + sign, z + 0.3 * sign


def gradient_step(estimator: ScoreEstimator) -> Step:
    """A step that takes the gradient of I(x; z) in z, where x is data."""
    return lambda x, z: mutual_information_surrogate(x, z.requires_grad_(), estimator).backward()


def encoder_step(n: int, dim: int, device: torch.device, seed: int) -> Step:
    """A step that takes the forward and the backward pass of a small encoder of n images, for comparison."""

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, dim))

    encoder = seeded(network, seed).to(device)
    images = torch.rand(n, 784, generator=stream(seed, "images", n)).to(device)
    return lambda x, z: encoder(images).square().mean().backward()


ESTIMATORS: dict[str, Callable[[], ScoreEstimator]] = {
    "ssge": SSGE,
    "three-index": ThreeIndexSSGE,
    "stein": Stein,
    "tikhonov": Tikhonov,
    "nu": NuMethod,
    "landweber": Landweber,
    "kde": KDE,
    "gaussian": lambda: GaussianScore("ledoit-wolf"),  # without shrinkage it needs more samples than coordinates
    "adaptive": Adaptive,
    "adaptive-gaussian": Adaptive,  # on Gaussian samples, which need no mixture
    "streaming": Streaming,
}
METHODS = (*ESTIMATORS, "encoder")
LABELS = {
    "ssge": "SSGE",
    "three-index": "SSGE, three indices",
    "stein": "Stein",
    "tikhonov": "Tikhonov",
    "nu": r"$\nu$-method",
    "landweber": "Landweber",
    "kde": "KDE",
    "gaussian": "one Gaussian",
    "adaptive": "the default, clusters",
    "adaptive-gaussian": "the default, Gaussian data",
    "streaming": "Streaming",
    "encoder": "encoder's own step",
}


# --- the experiment -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions, each with samples of its own.
    sizes : tuple of (int, int)
        Samples n, and dimensions d of each of the two variables.
    methods : tuple of str
        Some of `METHODS`, with "ssge". They are measured in turns and so are no parts of a run.
    batches : int
        Batches that `Streaming` has learnt from when it is measured.
    repeats : int
        Most timed calls, whose median counts.
    seconds : float
        No further timed call of a method after so much processor time.
    entries : int
        Largest tensor [n, n, 2 d] that the plain implementation is asked for.
    """

    seeds: int
    sizes: tuple[tuple[int, int], ...]
    methods: tuple[str, ...] = METHODS
    batches: int = 3
    repeats: int = 5
    seconds: float = 0.5
    entries: int = 2**28

    def methods_at(self, n: int, dim: int) -> tuple[str, ...]:
        """Those that this size allows."""
        return tuple(name for name in self.methods if name != "three-index" or 2 * n * n * dim <= self.entries)


def cross(ns: tuple[int, ...], dim: int, n: int, dims: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Sizes with n varied at one dimension, and the dimension at one n."""
    return tuple(dict.fromkeys([*((each, dim) for each in ns), *((n, each) for each in dims)]))


PROFILES = {
    "quick": Config(seeds=3, sizes=cross((64, 128, 256, 512), 16, 256, (64,)), repeats=3, seconds=0.2),
    "cpu": Config(seeds=3, sizes=cross((64, 128, 256, 512, 1024, 2048, 4096), 16, 256, (4, 16, 64, 256)), repeats=3),
    "full": Config(seeds=5, sizes=cross((64, 128, 256, 512, 1024, 2048, 4096, 8192), 16, 256, (4, 16, 64, 256))),
}
STUDIES: dict[str, Config] = {}


def units(config: Config) -> list[Config]:
    """A part for each size: what is compared is measured in the same minutes."""
    return [replace(config, sizes=(size,)) for size in config.sizes]


def prepare(config: Config, device: torch.device) -> None:
    """Prepare nothing: samples are drawn anew for every seed."""


def run_seeds(
    config: Config, shared: None, seeds: list[int], device: torch.device
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Cost of every method at every size, for each of the seeds, on one thread."""
    with one_thread():
        return [_costs(config, seed, device) for seed in seeds]


def _costs(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    quantities, curves = {}, {}
    for n, dim in config.sizes:
        measured = measure(config, n, dim, seed, device)
        for name, (seconds, size) in measured.items():
            setting = f"{name}/n{n}-d{dim}"
            curves |= {f"{setting}/seconds": np.array(seconds), f"{setting}/bytes": np.array(size)}
            if name != "ssge":
                own = measured["ssge"]
                quantities[f"{setting}/time"] = math.log10(seconds / own[0])
                quantities[f"{setting}/memory"] = math.log10(size / own[1])
    return quantities, curves


def measure(config: Config, n: int, dim: int, seed: int, device: torch.device) -> dict[str, tuple[float, int]]:
    """Median seconds and peak bytes of each method's step at one size; the timed calls of all methods take turns."""
    names = config.methods_at(n, dim)

    def samples(name: str, batch: int) -> tuple[Tensor, Tensor]:
        separation = 0.0 if name.endswith("gaussian") else SEPARATION
        x, z = pair(n, dim, stream(seed, "pair", n, dim, batch), separation)
        return x.to(device), z.to(device)

    steps = {name: encoder_step(n, dim, device, seed) for name in names if name == "encoder"}
    steps |= {name: gradient_step(ESTIMATORS[name]()) for name in names if name in ESTIMATORS}
    for batch in range(config.batches if "streaming" in names else 0):
        steps["streaming"](*samples("streaming", batch))
    # Memory first: these calls warm up caches and libraries too.
    memory = {name: peak_bytes(steps[name], samples(name, config.batches), device) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for batch in range(config.batches + 1, config.batches + 1 + config.repeats):
        for name in names:
            if sum(times[name]) < config.seconds:
                times[name].append(seconds_of(steps[name], samples(name, batch), device))
    return {name: (statistics.median(times[name]), memory[name]) for name in names}


# --- the instruments ------------------------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: processor time then is that of the work, not of threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seconds_of(step: Step, samples: tuple[Tensor, Tensor], device: torch.device) -> float:
    """Processor time of a step, which other programs of a busy machine hardly change; on CUDA that of its events."""
    if device.type != "cuda":
        started = time.process_time()
        step(*samples)
        return time.process_time() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step(*samples)
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def peak_bytes(step: Step, samples: tuple[Tensor, Tensor], device: torch.device) -> int:
    """Most bytes of tensors and workspaces that a step holds at once, beyond what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(*samples)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with silent(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step(*samples)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    # Each allocation and release is an event with its signed size.
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return int(np.cumsum([size for _, size in changes]).max())


@contextmanager
def silent() -> Iterator[None]:
    """Discard what libraries write to the process's standard error, as torch's profiler does for each use."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# --- what the chapter shows -----------------------------------------------------------------------------------------


def cost(record: Record, name: str, n: int, dim: int, what: str = "seconds") -> float:
    """Median over the seeds of a method's "seconds" or "bytes" at a size; NaN where it was not measured."""
    return float(np.median(record.curves.get(f"{name}/n{n}-d{dim}/{what}", np.nan)))


def growth(record: Record, name: str, low: tuple[int, int], high: tuple[int, int], what: str = "seconds") -> float:
    """Exponent of the growth of a method's cost between two sizes, in the number that differs."""
    ratio = cost(record, name, *high, what) / cost(record, name, *low, what)
    return math.log(ratio) / math.log(high[0] * high[1] / (low[0] * low[1]))
