"""Where a run was made: device, versions, date, and the commit of the package's own checkout."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from .. import __version__

PACKAGE = Path(__file__).parents[1]


def made_with(device: torch.device) -> dict[str, Any]:
    """Device, versions, date and commit of a run that is made now."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "versions": {
            "python": platform.python_version(),
            "migelib": __version__,
            **{package: importlib.metadata.version(package) for package in ("torch", "numpy")},
        },
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What a record says whose units were made on different machines or days: all devices and commits, the last day."""
    together = dict(max(parts, key=lambda part: part["date"]))
    for key in ("device", "commit", "data"):
        if key in together:
            together[key] = ", ".join(dict.fromkeys(part[key] for part in parts))
    return together


def in_checkout() -> bool:
    """Whether the package was imported from a git checkout of its own, not from inside somebody else's."""
    return _git("ls-files", "--error-unmatch", "__init__.py") is not None


def commit() -> str:
    """Commit of the package's checkout, with -dirty for uncommitted changes of the package; else its version."""
    if not in_checkout():
        return f"migelib {__version__}"
    changed = _git("status", "--porcelain", "--", "*.py")
    return f"{_git('rev-parse', 'HEAD')}{'-dirty' if changed else ''}"


def _git(*arguments: str) -> str | None:
    """Output of git in the package's folder, or None where it fails."""
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
