"""Command line: ``python -m migelib list | run | check``."""

from __future__ import annotations

import argparse
import sys

from . import experiments, records


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 1 where a check failed and 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m migelib", description="Run and check the experiments of the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments, their profiles, what is recorded")
    run = commands.add_parser("run", help="run an experiment and write its record")
    run.add_argument("experiment")
    run.add_argument("--profile", default="quick", help="one of those that list names (default: quick)")
    run.add_argument("--seeds", type=int, help="number of seeds (default: the profile's)")
    run.add_argument("--resume", action="store_true", help="keep finished seeds on disk and go on from there")
    check = commands.add_parser("check", help="re-run at the quick profile and compare with the record")
    check.add_argument("experiment", nargs="*", help="default: every experiment that has a quick record")
    for command in (run, check):
        command.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    options = parser.parse_args(arguments)
    try:
        return {"list": _list, "run": _run, "check": _check}[options.command](options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _list(options: argparse.Namespace) -> int:
    print(f"records in {records.directory()}")
    for name in experiments.NAMES:
        for profile in experiments.get(name).PROFILES:
            recorded = (name, profile) in records.available()
            print(f"{name:24} {profile:10} {records.load(name, profile).origin if recorded else 'not recorded'}")
    return 0


def _run(options: argparse.Namespace) -> int:
    path = experiments.record(
        options.experiment,
        options.profile,
        device=options.device,
        seeds=options.seeds,
        resume=options.resume,
        progress=True,
    )
    print(f"wrote {path}")
    return 0


def _check(options: argparse.Namespace) -> int:
    names = options.experiment or [name for name, profile in records.available() if profile == "quick"]
    if not names:
        print("no quick record to check against", file=sys.stderr)
        return 1
    for name in names:
        experiments.get(name)
        recorded = records.load(name, "quick")
        seeds = len(recorded.made_with["seeds"])
        print(f"{name}, recorded: {recorded.origin}")
        try:
            records.check(experiments.run(name, "quick", device=options.device, seeds=seeds, progress=True))
        except records.RecordMismatch as mismatch:
            print(f"FAILED {mismatch}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
