"""Command line: ``python -m migelib list | run | check``."""

from __future__ import annotations

import argparse
import os
import sys

from . import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 1 where something failed and 2 for bad arguments."""
    options = _parser().parse_args(arguments)
    try:
        from .experiments import cli  # here, so that --version needs torch alone

        status = {"list": cli.show, "run": cli.run, "check": cli.check}[options.command](options)
        sys.stdout.flush()  # so that a closed pipe is noticed here
        return status
    except BrokenPipeError:  # as in `python -m migelib list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to be flushed at exit
        return 141
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "migelib":
            raise
        print(f"error: no package {error.name!r}; install it by: pip install 'migelib[experiments]'", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m migelib", description="Run and check the experiments of the book.")
    parser.add_argument("--version", action="version", version=f"migelib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments, their profiles and studies, what is recorded, how long it took")
    run = commands.add_parser("run", help="run an experiment and write its record")
    run.add_argument("experiment", nargs="?", help="one of those that list names")
    run.add_argument("--missing", action="store_true", help="every experiment that lacks a record of the profile")
    scale = run.add_mutually_exclusive_group()
    scale.add_argument("--profile", default="quick", help="quick, full or cpu (default: quick)")
    scale.add_argument("--study", help="an ablation or a longer run, in place of a profile")
    run.add_argument("--seeds", type=int, help="number of seeds (default: the profile's)")
    run.add_argument("--resume", action="store_true", help="go on from the finished units of an interrupted run")
    run.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop in time; implies --resume")
    run.add_argument("--output", metavar="FOLDER", help="default: $MIGELIB_RECORDS, else ./migelib-records")
    run.add_argument("--publish", action="store_true", help="write the record that the book quotes (in a checkout)")
    check = commands.add_parser("check", help="re-run at the quick profile and compare with the published record")
    check.add_argument("experiment", nargs="*", help="default: every experiment that has a published quick record")
    for command in (run, check):
        command.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
