"""What `python -m migelib` does: list, run and check."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import traceback
from pathlib import Path

from . import records, runner

SHOWN = 20  # quantities in the table of a run


def show(options: argparse.Namespace) -> int:
    """Print every profile and study with what is recorded of it."""
    rows = [["experiment", "profile or study", "recorded", "took", ""]]
    for name in runner.NAMES:
        rows += [[name, scale, *_recorded(name, scale)] for scale in runner.scales(runner.get(name))]
    print(records.text_table(rows))
    print(f"\nyours are in {records.directory()}, published ones in {records.published()}")
    return 0


def _recorded(name: str, scale: str) -> list[str]:
    """Device, seeds and date of a record, how long it took, and whose it is."""
    try:
        path = records.find(name, scale)
        meta = records.read_meta(path)
    except FileNotFoundError:
        return ["no", "", ""]
    except ValueError as error:
        return [str(error), "", ""]
    whose = "published" if path.is_relative_to(records.published()) else "yours"
    return [f"{meta['device']}, {len(meta['seeds'])} seeds, {meta['date']}", _duration(meta["wall_s"]), whose]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def run(options: argparse.Namespace) -> int:
    """Run one experiment, or all that lack a record."""
    try:
        return _run_missing(options) if options.missing else _run_one(options)
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished units are kept, go on by: {_resumed(options)}", file=sys.stderr)
        return 130


def _run_one(options: argparse.Namespace) -> int:
    if options.experiment is None:
        raise ValueError(f"experiment: expected a name or --missing; names are {', '.join(runner.NAMES)}")
    try:
        _record(options, options.experiment, options.time_limit)
    except runner.Unfinished as stop:
        print(f"{stop}; go on by: {_resumed(options)}")
    return 0


def _run_missing(options: argparse.Namespace) -> int:
    """Run what has no record, in the order of `runner.MISSING_ORDER`; one that fails does not keep the others."""
    if options.experiment or options.study:
        raise ValueError("missing: expected no experiment and no study beside --missing")
    output = Path(options.output) if options.output else records.directory()
    records.check_writable(output)
    deadline = None if options.time_limit is None else time.monotonic() + options.time_limit
    failed, names = [], runner.missing(options.profile, output)
    options.resume = True
    for name in names:
        try:
            _record(options, name, None if deadline is None else max(0.0, deadline - time.monotonic()))
        except runner.Unfinished as stop:
            later = names[names.index(name) + 1 :]
            print(f"{stop}; then {', '.join(later) or 'nothing else'}; go on by: {_resumed(options)}")
            break
        except BrokenPipeError:
            raise
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if not names:
        print(f"no experiment lacks a record of the profile {options.profile}")
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _record(options: argparse.Namespace, name: str, time_limit: float | None) -> None:
    path = runner.record(
        name,
        options.profile,
        study=options.study,
        device=options.device,
        seeds=options.seeds,
        resume=options.resume,
        time_limit=time_limit,
        output=options.output,
        publish=options.publish,
        progress=True,
    )
    made = records.load(name, path.name, path.parents[1])
    print(f"wrote {path} ({made.origin}, {_duration(made.made_with['wall_s'])})")
    rows = [[key, f"{q.mean:.4g}", f"{q.std:.2g}", q.unit] for key, q in made.quantities.items()]
    print(records.text_table([["quantity", "mean", "std", "unit"], *rows[:SHOWN]]))
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN} more in {path / 'values.csv'}")


def _resumed(options: argparse.Namespace) -> str:
    """Command that goes on where this one stopped."""
    words = ["python", "-m", "migelib", "run"]
    words += ["--missing"] if options.missing else [options.experiment]
    words += ["--study", options.study] if options.study else ["--profile", options.profile]
    given = {"seeds": options.seeds, "time-limit": options.time_limit, "output": options.output}
    for option, value in given.items():
        words += [] if value is None else [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += [] if options.device == "auto" else ["--device", options.device]
    words += ["--publish"] if options.publish else []
    return shlex.join([*words, *([] if options.missing else ["--resume"])])


def check(options: argparse.Namespace) -> int:
    """Run quick profiles again and compare them with the published records; one that fails does not keep the others."""
    published = [name for name, profile in records.available(records.published()) if profile == "quick"]
    names = options.experiment or published
    for name in names:
        runner.get(name)  # unknown names are found before the first run
    failed = []
    for name in names:
        try:
            recorded = records.load(name, "quick", records.published())
            print(f"{name}, recorded: {recorded.origin}")
            seeds = len(recorded.made_with["seeds"])
            measured = runner.run(name, "quick", device=options.device, seeds=seeds, progress=True)
            records.check(measured, show_measured=True)
        except BrokenPipeError:
            raise
        except Exception as error:
            print(f"FAILED {name}: {error}", file=sys.stderr)
            failed.append(name)
    others = f"; FAILED: {', '.join(failed)}" if failed else ""
    print(f"{len(names) - len(failed)} of {len(names)} experiments agree with their records{others}")
    return 1 if failed else 0
