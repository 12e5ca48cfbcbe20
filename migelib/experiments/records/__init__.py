"""Recorded results: what a run measured, with which settings, and how far a re-run may lie from it.

A record is a folder `<experiment>/<profile or study>` of three files: `meta.json` says how it was made; `values.csv`
has one line a quantity and one column a seed (mean, standard deviation and number of seeds, in records converted from
the first format); `curves.npz` has what figures need. Means, spreads and tolerances are computed on reading. The
published records lie beside this file, as package data. Runs of one's own go to `directory()`, which is read first.
"""

from __future__ import annotations

import difflib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

RULE = "two means of n seeds each differ by less, with probability 99.9 % (Student t)"
ROUNDING = 1e-5


class RecordMismatch(AssertionError):
    """A re-run differs from its record by more than the tolerance, or was made with other settings."""


@dataclass(frozen=True)
class Quantity:
    """One measured number.

    Attributes
    ----------
    mean, std : float
        Over the seeds; `std` with n - 1 in the denominator.
    n : int
        Number of seeds.
    unit : str
        "1" for a pure number, "%", "nat", ...
    floor : float
        Least tolerance, for quantities that move in steps, such as accuracies on a finite test set: seeds that happen
        to agree say nothing about another machine.
    values : tuple of float
        One value a seed; empty where only mean, std and n were recorded.
    """

    mean: float
    std: float
    n: int
    unit: str
    floor: float = 0.0
    values: tuple[float, ...] = ()

    @classmethod
    def from_seeds(cls, values: np.ndarray, unit: str, floor: float = 0.0) -> Quantity:
        """Summarise one value a seed."""
        mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
        return cls(mean, std, len(values), unit, floor, tuple(map(float, values)))

    @property
    def tolerance(self) -> float:
        r"""How far the mean of a re-run may lie from `mean`: :math:`t\, s \sqrt{2/n}`, `ROUNDING` or `floor`."""
        return max(self._spread(), self.floor)

    @property
    def rule(self) -> str:
        """Where the tolerance comes from."""
        return RULE if self._spread() >= self.floor else f"the least that this metric resolves: {self.floor:g}"

    def _spread(self) -> float:
        from scipy import stats  # here, so that runs need no SciPy

        tolerance = stats.t.ppf(0.9995, 2 * self.n - 2) * self.std * math.sqrt(2 / self.n)
        # What differs by less is rounding in single precision: some quantities are zero in exact arithmetic.
        return max(float(tolerance), ROUNDING * max(1.0, abs(self.mean)))

    def prediction_interval(self, level: float = 0.99) -> tuple[float, float]:
        """Interval that holds one further run with probability `level`, if runs are normally distributed."""
        from scipy import stats

        half = stats.t.ppf(0.5 + level / 2, self.n - 1) * self.std * math.sqrt(1 + 1 / self.n)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Record:
    """What one run of an experiment measured.

    Attributes
    ----------
    experiment, profile : str
        Its name, and that of the profile or study, such as "quick", "full" or "long"; "custom" for a config of one's
        own.
    config : dict
        All settings of the run.
    made_with : dict
        Device, seeds, versions, wall-clock seconds, date, commit and, where there is any, source of the data.
    quantities : dict of Quantity
        Named <method>/<setting>/<metric>.
    curves : dict of numpy arrays
        What figures need; the first axis of a measured curve counts seeds.
    """

    experiment: str
    profile: str
    config: dict[str, Any]
    made_with: dict[str, Any]
    quantities: dict[str, Quantity]
    curves: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Quantity:
        """Return the quantity of that name; raises KeyError that names the most similar ones."""
        try:
            return self.quantities[name]
        except KeyError:
            close = difflib.get_close_matches(name, self.quantities, n=5, cutoff=0)
            raise KeyError(
                f"{self.experiment}/{self.profile} has no {name!r} among its {len(self.quantities)} quantities; "
                f"the most similar are {', '.join(close)}"
            ) from None

    @property
    def origin(self) -> str:
        """One line that says how the record was made: profile, device, number of seeds and date."""
        made = self.made_with
        return f"{self.profile}, {made['device']}, {len(made['seeds'])} seeds, {made['date']}"


def directory() -> Path:
    """Folder of one's own runs: that named by the environment variable MIGELIB_RECORDS, or `migelib-records` here."""
    return Path(os.environ.get("MIGELIB_RECORDS") or "migelib-records")


def published() -> Path:
    """Folder of the records that the book quotes, part of the package."""
    return Path(__file__).parent


def available(*folders: Path) -> list[tuple[str, str]]:
    """Experiment and profile or study of all records in these folders, sorted; by default one's own and published."""
    found = (path for folder in folders or (directory(), published()) for path in folder.glob("*/*/meta.json"))
    return sorted({path.parts[-3:-1] for path in found})


def find(experiment: str, profile: str, *folders: Path) -> Path:
    """Folder of a record: the first of these that has it, by default one's own, then published.

    Raises
    ------
    FileNotFoundError
        If none has it; the message lists what there is.
    """
    folders = folders or (directory(), published())
    for folder in folders:
        if (folder / experiment / profile / "meta.json").exists():
            return folder / experiment / profile
    recorded = [pair[1] for pair in available(*folders) if pair[0] == experiment]
    raise FileNotFoundError(
        f"no record of {experiment!r} at {profile!r} in {' or '.join(map(str, folders))}; recorded are "
        f"{', '.join(recorded) or 'none'}; make one by: python -m migelib run {experiment}, with its profile or study"
    )


def load(experiment: str, profile: str, *folders: Path) -> Record:
    """Load a record from the first of these folders that has it, by default one's own, then published.

    Parameters
    ----------
    experiment : str
        Its name, such as "toy".
    profile : str
        Name of a profile or study.
    *folders : Path
        Where to look.

    Raises
    ------
    FileNotFoundError
        If that experiment has not been recorded so.
    ValueError
        If a file of the record is damaged; the message names it.
    """
    path = find(experiment, profile, *folders)
    meta = read_meta(path)
    with _naming(path / "values.csv"):
        quantities = _quantities((path / "values.csv").read_text(), meta["metrics"], len(meta["seeds"]))
    with _naming(path / "curves.npz"):
        curves = read_arrays(path / "curves.npz")
    made_with = {key: value for key, value in meta.items() if key not in ("experiment", "profile", "config", "metrics")}
    return Record(experiment, profile, meta["config"], made_with, quantities, curves)


def read_meta(path: Path) -> dict[str, Any]:
    """Read how a record was made: its `meta.json`; raises ValueError that names a damaged file."""
    with _naming(path / "meta.json"):
        meta = json.loads((path / "meta.json").read_text())
        missing = {"config", "metrics", "device", "seeds", "date"} - meta.keys()
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
    return meta


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file; a damaged one is closed too, which NumPy alone would not do."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _quantities(text: str, metrics: dict[str, dict[str, Any]], seeds: int) -> dict[str, Quantity]:
    """Quantities of a `values.csv`."""
    if not text.endswith("\n"):
        raise ValueError("its last line is cut off")
    # By way of strings, because pandas' own parser is not exact in all versions.
    table = pd.read_csv(io.StringIO(text), index_col="quantity", dtype=str).astype(float)
    summarised = list(table.columns) == ["mean", "std", "n"]
    if not (summarised or table.shape[1] == seeds) or not np.isfinite(table.to_numpy()).all():
        raise ValueError(f"expected {seeds} finite values a line, or mean, std and n")
    quantities = {}
    for name, values in zip(table.index, table.to_numpy(), strict=True):
        unit, floor = (metrics[name.split("/")[-1]][key] for key in ("unit", "floor"))
        if summarised:
            quantities[name] = Quantity(float(values[0]), float(values[1]), int(values[2]), unit, floor)
        else:
            quantities[name] = Quantity.from_seeds(values, unit, floor)
    return quantities


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise what a damaged file leads to as a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # parsers have many ways to fail on one
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged ({reason}); restore it, or delete {path.parent} and run again") from error


def save(record: Record, folder: Path | None = None) -> Path:
    """Write a record, replacing an earlier one only when all is written; returns its folder.

    Parameters
    ----------
    record : Record
        With values of every seed.
    folder : Path, optional
        Where the record's folder is made, by default in `directory()`.

    Raises
    ------
    ValueError
        If a quantity is NaN or infinite; nothing is written then.
    """
    bad = [name for name, quantity in record.quantities.items() if not math.isfinite(quantity.mean)]
    if bad:
        raise ValueError(f"record: expected finite quantities, got NaN or infinity for {', '.join(sorted(bad))}")
    folder = directory() if folder is None else folder
    metrics = {
        name.split("/")[-1]: {"unit": quantity.unit, "floor": quantity.floor}
        for name, quantity in sorted(record.quantities.items())
    }
    head = {"experiment": record.experiment, "profile": record.profile, "config": record.config, "metrics": metrics}
    text = json.dumps(head | record.made_with, indent=1, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        new = Path(temporary) / "record"
        new.mkdir()
        (new / "meta.json").write_text(text)
        _table(record).to_csv(new / "values.csv", lineterminator="\n")
        np.savez_compressed(new / "curves.npz", **record.curves)
        return _replace(folder / record.experiment / record.profile, new, Path(temporary) / "earlier")


def _table(record: Record) -> pd.DataFrame:
    """Values of the quantities, one line each."""
    names = sorted(record.quantities)
    if all(record.quantities[name].values for name in names):
        rows, columns = [record.quantities[name].values for name in names], record.made_with["seeds"]
    else:
        rows = [(q.mean, q.std, q.n) for q in map(record.quantities.__getitem__, names)]
        columns = ["mean", "std", "n"]
    table = pd.DataFrame(rows, index=pd.Index(names, name="quantity"), columns=columns)
    return table if "n" not in columns else table.astype({"n": int})


def _replace(path: Path, new: Path, earlier: Path) -> Path:
    """Put the folder `new` at `path`; what was there goes to `earlier`."""
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(earlier)
    new.rename(path)
    return path


def check_writable(folder: Path) -> None:
    """Raise ValueError that names the folder where no record can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".test-"):
            pass
    except OSError as error:
        raise ValueError(
            f"output: cannot write to {folder} ({error.strerror}); "
            "name another folder by --output or by the environment variable MIGELIB_RECORDS"
        ) from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write` on a temporary binary file beside `path`, then rename it; on failure `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            write(file)
        except BaseException:
            temporary.unlink()
            raise
    temporary.chmod(0o644)
    temporary.replace(path)


def check(measured: Record, prefix: str = "", *, show_measured: bool = False) -> None:
    """Compare a run with the published record of its experiment and profile; print a table, raise when a value is off.

    Parameters
    ----------
    measured : Record
        A fresh run.
    prefix : str
        Compare only the quantities whose name starts with this.
    show_measured : bool
        Show measured values too. Without them the table reads the same on every machine.

    Raises
    ------
    FileNotFoundError
        If there is no such record.
    RecordMismatch
        If the settings differ, a quantity is missing on either side, or one is off by more than its tolerance.
    """
    recorded = load(measured.experiment, measured.profile, published())
    problems = []
    if json.loads(json.dumps(measured.config)) != recorded.config:
        problems.append(f"settings {measured.config} differ from the recorded {recorded.config}; record the run again")
    names = sorted(name for name in {*recorded.quantities, *measured.quantities} if name.startswith(prefix))
    if not names:
        problems.append(f"no quantity starts with {prefix!r}")
    rows = []
    for name in names:
        if name not in recorded.quantities or name not in measured.quantities:
            problems.append(f"{name} is only {'recorded' if name in recorded.quantities else 'measured'}")
            continue
        want, got = recorded[name], measured[name]
        within = abs(got.mean - want.mean) <= want.tolerance  # False for NaN
        shown = [f"{got.mean:.4g}"] if show_measured else []
        rows.append(
            [name, f"{want.mean:.4g}", f"{want.tolerance:.2g}", want.unit, *shown, "within" if within else "OFF"]
        )
        if not within:
            problems.append(f"{name}: measured {got.mean:.6g}, recorded {want.mean:.6g} +/- {want.tolerance:.2g}")
    shown = ["measured"] if show_measured else []
    print(text_table([["quantity", "recorded", "tolerance", "unit", *shown, "re-run"], *rows]))
    if problems:
        raise RecordMismatch(f"{recorded.experiment}/{recorded.profile}:\n  " + "\n  ".join(problems))


class MarkdownTable(str):
    """Text of a Markdown table that notebooks render."""

    def _repr_markdown_(self) -> str:
        return str(self)


def text_table(rows: list[list[str]]) -> str:
    """Rows of texts as lines with aligned columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
