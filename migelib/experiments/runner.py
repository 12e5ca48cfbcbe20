"""Runs the experiments, unit by unit, and puts their records together."""

from __future__ import annotations

import difflib
import importlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import partials, provenance, records

# In the order of the book.
NAMES: tuple[str, ...] = (
    *("bound-variance", "entropy-gradient", "score-quality", "mi-gradient", "toy", "score-estimators", "coordinates"),
    *("memory", "cost", "accuracy", "optimise", "channels", "beyond", "infomax", "code-gradients", "bottleneck"),
    *("sampler-plane", "sampler-high", "gan-plane", "gan-stacked", "wae", "implicit-posterior", "collapse"),
)

# What the book lacks most comes first.
MISSING_ORDER: tuple[str, ...] = (
    *("infomax", "bottleneck", "wae", "gan-stacked", "sampler-plane", "sampler-high", "implicit-posterior"),
    *("gan-plane", "accuracy", "optimise", "channels", "code-gradients", "toy", "score-estimators", "bound-variance"),
    *("mi-gradient", "beyond", "coordinates", "memory", "cost", "score-quality", "entropy-gradient", "collapse"),
)


class Unfinished(RuntimeError):
    """A run stopped at its time limit; its finished units are on disk."""


def get(name: str) -> ModuleType:
    """Return the module of an experiment; raises ValueError that lists the names there are."""
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"experiment: unknown name {name!r}, expected one of {', '.join(NAMES)}{hint}")
    return importlib.import_module(f"{__package__}.{name.replace('-', '_')}")


def scales(experiment: ModuleType) -> dict[str, Any]:
    """The profiles and studies of an experiment, by name."""
    return experiment.PROFILES | experiment.STUDIES


def run(
    name: str,
    profile: str = "quick",
    *,
    study: str | None = None,
    config: Any = None,
    device: str = "auto",
    seeds: int | None = None,
    resume: bool = False,
    time_limit: float | None = None,
    output: Path | str | None = None,
    publish: bool = False,
    progress: bool = False,
) -> records.Record:
    """Run an experiment and return what it measured.

    By default nothing is written. With `output`, `resume` or `time_limit` every finished unit (one part of the
    experiment, such as a method, for some seeds) is kept on disk, until the record is written in their place.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    profile : str
        One of the experiment's `PROFILES`, such as "quick", "full" or "cpu"; `python -m migelib list` names them.
    study : str, optional
        One of the experiment's `STUDIES`, in place of a profile.
    config : dataclass, optional
        Settings of one's own, an instance of the experiment's `Config`, in place of a profile. The record's profile is
        then "custom".
    device : str
        "cpu", "cuda", or "auto": CUDA where there is one.
    seeds : int, optional
        Number of seeds, at least 2, instead of the profile's.
    resume : bool
        Go on from the finished units of an earlier run with these settings. Without it they are deleted.
    time_limit : float, optional
        Stop before a unit that would not fit into this many seconds. Implies `resume`.
    output : Path, optional
        Folder of finished units and of the record; where one is needed, `records.directory()` by default.
    publish : bool
        Write the record among the package's published ones, which is for maintainers, in a git checkout.
    progress : bool
        Show a progress bar over the units.

    Raises
    ------
    ValueError
        If the name, the profile, the study, the config, the device or the number of seeds is not one of those, or if
        nothing can be written to the output, or published here.
    Unfinished
        If the time limit came first.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    job = _job(name, profile, study, config, device, seeds)
    resume = resume or time_limit is not None
    if output is None and not (resume or publish):
        return _assembled(job, list(_finished_units(job, partials.Folder(None, job.device), deadline, progress)))
    output, destination = _folders(output, publish)
    kept = partials.Folder(output / "partials" / job.name / job.profile, job.device)
    if not resume:
        kept.clear()
    measured = _assembled(job, list(_finished_units(job, kept, deadline, progress)))
    records.save(measured, destination)
    kept.clear()
    return measured


def record(
    name: str, profile: str = "quick", *, output: Path | str | None = None, publish: bool = False, **options: Any
) -> Path:
    """Run an experiment with the options of `run` and write its record; returns the record's folder.

    An earlier record stays until this one is complete.
    """
    output, destination = _folders(output, publish)
    measured = run(name, profile, output=output, publish=publish, **options)
    return destination / measured.experiment / measured.profile


def _folders(output: Path | str | None, publish: bool) -> tuple[Path, Path]:
    """Folders of the finished units and of the record, after a check that they can be written."""
    output = records.directory() if output is None else Path(output)
    if publish and not provenance.in_checkout():
        raise ValueError(
            "publish: this migelib was not imported from a git checkout of its own; leave out --publish, "
            f"and the record goes to {output}"
        )
    destination = records.published() if publish else output
    for folder in (output, destination):
        records.check_writable(folder)
    return output, destination


def missing(profile: str, output: Path | None = None) -> list[str]:
    """Experiments that have this profile and no record of it, published or in `output`, most wanted first."""
    recorded = records.available(records.directory() if output is None else output, records.published())
    return [name for name in MISSING_ORDER if profile in get(name).PROFILES and (name, profile) not in recorded]


@dataclass(frozen=True)
class Job:
    """What is asked for: an experiment, its settings, and where it runs."""

    name: str
    profile: str
    experiment: ModuleType
    config: Any
    device: torch.device

    @property
    def parts(self) -> list[Any]:
        """Configs of the parts that are run one after the other."""
        if hasattr(self.experiment, "units"):
            return self.experiment.units(self.config)
        methods = getattr(self.config, "methods", ())
        return [replace(self.config, methods=(method,)) for method in methods] or [self.config]

    @property
    def seed_groups(self) -> list[range]:
        """Seeds that are run together: all on CUDA, where they are trained at once; else each alone."""
        seeds = range(self.config.seeds)
        return [seeds] if self.device.type == "cuda" else [seeds[i : i + 1] for i in seeds]


def _job(name: str, profile: str, study: str | None, config: Any, device: str, seeds: int | None) -> Job:
    experiment = get(name)
    if study is not None:
        kind, chosen, choices = "study", study, experiment.STUDIES
    else:
        kind, chosen, choices = "profile", profile, experiment.PROFILES
    if config is not None:
        if not isinstance(config, experiment.Config):
            raise ValueError(f"config: expected a {experiment.__name__}.Config, got {type(config).__name__}")
        chosen = "custom"
    elif chosen in choices:
        config = choices[chosen]
    else:
        other = experiment.PROFILES if kind == "study" else experiment.STUDIES
        hint = f"; it is a {'profile' if kind == 'study' else 'study'}" if chosen in other else ""
        raise ValueError(f"{kind}: unknown name {chosen!r}, expected one of {', '.join(choices) or 'none'}{hint}")
    config = config if seeds is None else replace(config, seeds=seeds)
    if config.seeds < 2:
        raise ValueError(f"seeds: expected at least 2, for a spread, got {config.seeds}")
    return Job(name, chosen, experiment, config, _device(device))


def _device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch finds no CUDA device; use auto or cpu")
    return torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))


def _finished_units(
    job: Job, kept: partials.Folder, deadline: float | None, progress: bool
) -> Iterator[tuple[Sequence[int], partials.Unit]]:
    """Every unit of a job with its seeds: those on disk first, then the others, each kept as soon as it is made."""
    todo, longest = [], 0.0
    total = len(job.parts) * len(job.seed_groups)
    with tqdm(total=total, desc=f"{job.name} {job.profile}", unit="unit", disable=not progress) as bar:
        for part in job.parts:
            for seeds in job.seed_groups:
                unit = kept.load(part, seeds)
                if unit is None:
                    todo.append((part, seeds))
                    continue
                longest = max(longest, unit.seconds)
                bar.update()
                yield seeds, unit
        made_with = _made_with(job)
        prepared = None  # the part whose data and settings are in memory
        for done, (part, seeds) in enumerate(todo):
            if deadline is not None and time.monotonic() + longest >= deadline:
                raise Unfinished(f"{job.name} {job.profile}: {len(todo) - done} of {total} units left")
            started = time.perf_counter()
            if part != prepared:
                shared, prepared = _prepared(job, part, kept), part
            results = job.experiment.run_seeds(part, shared, list(seeds), job.device)
            unit = partials.Unit(results, time.perf_counter() - started, made_with)
            kept.save(part, seeds, unit)
            longest = max(longest, unit.seconds)
            bar.update()
            yield seeds, unit


def _prepared(job: Job, part: Any, kept: partials.Folder) -> Any:
    """Data and tuned settings of a part; what was tuned is kept, and not tuned again."""
    tuned = kept.load_tuned(part)
    if tuned is not None:
        return job.experiment.prepare(part, job.device, tuned=tuned)
    shared = job.experiment.prepare(part, job.device)
    if getattr(shared, "tuned", None) is not None:
        kept.save_tuned(part, shared.tuned)
    return shared


def _made_with(job: Job) -> dict[str, Any]:
    made = provenance.made_with(job.device)
    if hasattr(job.experiment, "data_source"):
        made["data"] = job.experiment.data_source(job.config)
    return made


def _assembled(job: Job, units: list[tuple[Sequence[int], partials.Unit]]) -> records.Record:
    """Record of all units of a job."""
    results: list[partials.Result] = [({}, {}) for _ in range(job.config.seeds)]
    for seeds, unit in units:
        for seed, (quantities, curves) in zip(seeds, unit.results, strict=True):
            results[seed][0].update(quantities)
            results[seed][1].update(curves)
    if hasattr(job.experiment, "summarise"):
        for quantities, _ in results:
            quantities.update(job.experiment.summarise(job.config, quantities))
    floors = getattr(job.experiment, "FLOORS", {})
    summary = {}
    for name in results[0][0]:
        metric = name.split("/")[-1]
        values = np.array([quantities[name] for quantities, _ in results])
        summary[name] = records.Quantity.from_seeds(values, job.experiment.METRICS[metric], floors.get(metric, 0.0))
    curves = {name: np.stack([curves[name] for _, curves in results]) for name in results[0][1]}
    made_with = provenance.merged([unit.made_with for _, unit in units])
    made_with |= {
        "seeds": list(range(job.config.seeds)),
        "wall_s": round(sum(unit.seconds for _, unit in units), 1),
    }
    settings = json.loads(json.dumps(asdict(job.config)))
    return records.Record(job.name, job.profile, settings, made_with, summary, curves)
