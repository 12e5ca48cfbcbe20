"""Finished units of a run on disk, so that an interrupted run goes on, on another machine too.

A unit is some seeds of one part of an experiment. Each file holds the settings that it was made with: one of other
settings is not used, and a damaged one is named in a warning and made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from . import records

Result = tuple[dict[str, float], dict[str, np.ndarray]]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Unit:
    """A finished unit.

    Attributes
    ----------
    results : list of (dict, dict)
        Quantities and curves, one pair a seed.
    seconds : float
        Wall-clock time, preparation included where it was done for this unit.
    made_with : dict
        Device, versions, date, commit and source of the data.
    """

    results: list[Result]
    seconds: float
    made_with: dict[str, Any]


class Folder:
    """The units of one run of an experiment.

    Parameters
    ----------
    path : Path, optional
        Where they lie; None keeps nothing.
    device : torch.device
        Numbers of a CPU and of CUDA are not mixed.
    """

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self.path = path
        self.device = device

    def load(self, part: Any, seeds: Sequence[int]) -> Unit | None:
        """Finished unit of a part (a Config) and seeds, or None."""

        def decode(arrays: dict[str, np.ndarray]) -> Unit:
            results: list[Result] = [({}, {}) for _ in seeds]
            for full_name, array in arrays.items():
                kind, _, name = full_name.partition(":")
                for row, (quantities, curves) in enumerate(results):
                    if kind == "quantity":
                        quantities[name] = float(array[row])
                    elif kind == f"curve-{row}":
                        curves[name] = array
            return Unit(results, float(arrays["seconds"]), json.loads(str(arrays["made_with"])))

        return self._read(part, _numbers(seeds), decode)

    def save(self, part: Any, seeds: Sequence[int], unit: Unit) -> None:
        """Keep a finished unit."""
        names = unit.results[0][0]
        arrays = {f"quantity:{name}": np.array([quantities[name] for quantities, _ in unit.results]) for name in names}
        for row, (_, curves) in enumerate(unit.results):
            arrays |= {f"curve-{row}:{name}": curve for name, curve in curves.items()}
        made = {"seconds": np.array(unit.seconds), "made_with": np.array(json.dumps(unit.made_with))}
        self._write(part, _numbers(seeds), arrays | made)

    def load_tuned(self, part: Any) -> dict[str, np.ndarray] | None:
        """Tuned settings of a part, or None."""
        return self._read(
            part, "tuned", lambda arrays: {name.removeprefix("tuned:"): array for name, array in arrays.items()}
        )

    def save_tuned(self, part: Any, tuned: dict[str, np.ndarray]) -> None:
        """Keep the tuned settings of a part."""
        self._write(part, "tuned", {f"tuned:{name}": np.asarray(array) for name, array in tuned.items()})

    def clear(self) -> None:
        """Delete all units, and the folders that this leaves empty."""
        if self.path is None or not self.path.exists():
            return
        shutil.rmtree(self.path)
        for parent in self.path.parents[:2]:
            if not any(parent.iterdir()):
                parent.rmdir()

    def _key(self, part: Any) -> str:
        return json.dumps({"config": asdict(part) | {"seeds": None}, "device": self.device.type})

    def _file(self, part: Any, what: str) -> Path:
        digest = hashlib.sha256(self._key(part).encode()).hexdigest()[:12]
        methods = getattr(part, "methods", ())
        return self.path / f"{methods[0] if len(methods) == 1 else 'all'}.{digest}.{what}.npz"

    def _write(self, part: Any, what: str, arrays: dict[str, np.ndarray]) -> None:
        if self.path is not None:
            arrays = arrays | {"key": np.array(self._key(part))}
            records.write_atomically(self._file(part, what), lambda file: np.savez_compressed(file, **arrays))

    def _read(self, part: Any, what: str, decode: Callable[[dict[str, np.ndarray]], Read]) -> Read | None:
        """What a file holds, or None where it is missing, damaged or of other settings."""
        if self.path is None or not self._file(part, what).exists():
            return None
        path = self._file(part, what)
        try:
            arrays = records.read_arrays(path)
            return decode(arrays) if str(arrays.pop("key")) == self._key(part) else None
        except Exception as error:  # NumPy has many ways to fail on one
            warnings.warn(f"{path} is damaged and is made again ({type(error).__name__}: {error})", stacklevel=2)
            return None


def _numbers(seeds: Sequence[int]) -> str:
    return f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
