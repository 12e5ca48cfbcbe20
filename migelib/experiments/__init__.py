"""The experiments of the book, one module a chapter, and the function that runs them.

An experiment module has a frozen dataclass `Config` of settings with a field `seeds`; `PROFILES`, its presets "quick",
"full" and, where that needs a GPU, "cpu" (and longer or other runs of a part of it, such as "cpu-large"); `UNITS`, the
unit of each metric; and `run_seed(config, seed, device)`, which returns the measured quantities and curves of one seed.
One that uses a data set has `data_source(config)` as well, which says in a few words where the data came from, for the
record. One whose metrics move in steps may have `FLOORS`, the least tolerance of such a metric.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import json
import pkgutil
import platform
import subprocess
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import records

NAMES: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def get(name: str) -> ModuleType:
    """Return the module of an experiment; raises ValueError that lists the names there are."""
    if name not in NAMES:
        raise ValueError(f"experiment: unknown name {name!r}, expected one of {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{name}")


def stream(seed: int, *label: object) -> torch.Generator:
    """Return a CPU generator for one part of an experiment: independent for every seed and label, on any device."""
    entropy = (seed, zlib.crc32(repr(label).encode()))
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)  # of a Python int: NumPy 1 cannot shift a uint64 by one


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """Return what `build` makes, such as a network, with torch's global generator seeded, and then put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def clock(device: torch.device) -> float:
    """Return seconds for differences: what the process computed on a CPU, so that others do not count, or wall time."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def run(
    name: str,
    profile: str = "quick",
    *,
    device: str = "auto",
    seeds: int | None = None,
    resume: bool = False,
    progress: bool = False,
) -> records.Record:
    """Run an experiment; what it measured is returned, not written (see `record`).

    Parameters
    ----------
    name : str
        One of `NAMES`.
    profile : str
        One of the experiment's `PROFILES`, such as "quick", "full" or "cpu"; `python -m migelib list` names them.
    device : str
        "cpu", "cuda", or "auto": CUDA where there is one.
    seeds : int, optional
        Number of seeds, at least 2, instead of the profile's.
    resume : bool
        Keep the result of every finished seed on disk, and start from those of an interrupted run with these settings.
    progress : bool
        Show a progress bar over the seeds.

    Raises
    ------
    ValueError
        If the name, the profile, the device or the number of seeds is not one of those.
    """
    experiment = get(name)
    if profile not in experiment.PROFILES:
        raise ValueError(f"profile: unknown name {profile!r}, expected one of {', '.join(experiment.PROFILES)}")
    config = experiment.PROFILES[profile]
    if seeds is not None:
        if seeds < 2:
            raise ValueError(f"seeds: expected at least 2, for a spread, got {seeds}")
        config = replace(config, seeds=seeds)
    where = _device(device)
    settings = json.loads(json.dumps(asdict(config)))
    key = json.dumps({"config": settings | {"seeds": None}, "device": where.type})

    made_with = _made_with(where, config.seeds)
    if hasattr(experiment, "data_source"):
        made_with["data"] = experiment.data_source(config)
    results, started, earlier = [], time.perf_counter(), 0.0
    for seed in tqdm(range(config.seeds), desc=f"{name}.{profile}", unit="seed", disable=not progress):
        path = _partial_path(name, profile, seed)
        result = _load_partial(path, key) if resume else None
        if result is None:
            seed_started = time.perf_counter()
            quantities, curves = experiment.run_seed(config, seed, where)
            result = {"quantities": quantities, "curves": curves, "wall_s": time.perf_counter() - seed_started}
            if resume:
                _save_partial(path, key, result)
        else:
            earlier += result["wall_s"]
        results.append(result)
    made_with["wall_s"] = round(earlier + time.perf_counter() - started, 1)

    floors = getattr(experiment, "FLOORS", {})
    quantities = {}
    for quantity in results[0]["quantities"]:
        metric = quantity.split("/")[-1]
        values = np.array([result["quantities"][quantity] for result in results])
        quantities[quantity] = records.Quantity.from_seeds(values, experiment.UNITS[metric], floors.get(metric, 0.0))
    curves = {curve: np.stack([result["curves"][curve] for result in results]) for curve in results[0]["curves"]}
    return records.Record(name, profile, settings, made_with, quantities, curves)


def record(name: str, profile: str, **options: object) -> Path:
    """Run an experiment with the options of `run` and write its record; an earlier one stays if the run fails."""
    path = records.save(run(name, profile, **options))
    for partial in path.parent.glob(f"partial/{name}.{profile}.*.npz"):
        partial.unlink()
    return path


def _device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch finds no CUDA device; use auto or cpu")
    return torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))


def _made_with(device: torch.device, seeds: int) -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "seeds": list(range(seeds)),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("migelib", "torch", "numpy")},
        },
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
    }


def _commit() -> str:
    """Commit of the checkout that the package was imported from, with -dirty for uncommitted changes of the package."""
    package = Path(__file__).parents[1]
    try:
        git = ["git", "-C", str(package)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "*.py"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changed else "")


def _partial_path(name: str, profile: str, seed: int) -> Path:
    return records.directory() / "partial" / f"{name}.{profile}.{seed}.npz"


def _save_partial(path: Path, key: str, result: dict) -> None:
    arrays = {"key": np.array(key), "wall_s": np.array(result["wall_s"])}
    for kind in ("quantities", "curves"):
        arrays |= {f"{kind}:{name}": np.asarray(value) for name, value in result[kind].items()}
    records.write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def _load_partial(path: Path, key: str) -> dict | None:
    """Result of a finished seed, or None if there is none with these settings."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as saved:
        if str(saved["key"]) != key:
            return None
        result: dict = {"quantities": {}, "curves": {}, "wall_s": float(saved["wall_s"])}
        for full_name in saved.files:
            kind, _, name = full_name.partition(":")
            if name:
                result[kind][name] = float(saved[full_name]) if kind == "quantities" else saved[full_name]
    return result
