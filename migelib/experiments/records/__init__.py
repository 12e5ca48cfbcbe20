"""Recorded results: what a run measured, with which settings, and how far a re-run may lie from it.

A record is a pair of files, `<experiment>.<profile>.json` for the quantities and `<experiment>.<profile>.npz` for the
curves that figures need. They lie in this folder, as package data, or in the folder that the environment variable
``MIGELIB_RECORDS`` names. Only `migelib.experiments.run` writes them.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

RULE = "two means of n seeds each differ by less, with probability 99.9 % (Student t)"
ROUNDING = 1e-5


class RecordMismatch(AssertionError):
    """A re-run differs from its record by more than the recorded tolerance, or was made with other settings."""


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
    tolerance : float
        How far the mean of a re-run with n seeds may lie from `mean`.
    rule : str
        Where the tolerance comes from.
    """

    mean: float
    std: float
    n: int
    unit: str
    tolerance: float
    rule: str

    @classmethod
    def from_seeds(cls, values: np.ndarray, unit: str, floor: float = 0.0) -> Quantity:
        r"""Summarise one value a seed; the tolerance is :math:`t\, s \sqrt{2/n}`, but at least `ROUNDING` and `floor`.

        A floor is for quantities that move in steps, such as accuracies on a finite test set: seeds that happen to
        agree say nothing about another machine.
        """
        n = len(values)
        std = float(np.std(values, ddof=1))
        tolerance = stats.t.ppf(0.9995, 2 * n - 2) * std * math.sqrt(2 / n)
        # What differs by less is rounding in single precision: some quantities are zero in exact arithmetic.
        tolerance = max(float(tolerance), ROUNDING * max(1.0, abs(float(np.mean(values)))))
        rule = RULE if tolerance >= floor else f"the least that this metric resolves: {floor:g}"
        return cls(float(np.mean(values)), std, n, unit, max(tolerance, floor), rule)

    def prediction_interval(self, level: float = 0.99) -> tuple[float, float]:
        """Interval that holds one further run with probability `level`, if runs are normally distributed."""
        half = stats.t.ppf(0.5 + level / 2, self.n - 1) * self.std * math.sqrt(1 + 1 / self.n)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Record:
    """What one run of an experiment measured.

    Attributes
    ----------
    experiment, profile : str
        Its name, and that of a profile that is recorded, such as "quick", "cpu" or "full".
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
                f"{self.experiment}.{self.profile} has no {name!r} among its {len(self.quantities)} quantities; "
                f"the most similar are {', '.join(close)}"
            ) from None

    @property
    def origin(self) -> str:
        """One line that says how the record was made: profile, device, number of seeds and date."""
        made = self.made_with
        return f"{self.profile}, {made['device']}, {len(made['seeds'])} seeds, {made['date']}"


def directory() -> Path:
    """Folder in which records are looked up and written."""
    return Path(os.environ.get("MIGELIB_RECORDS") or Path(__file__).parent)


def available() -> list[tuple[str, str]]:
    """Names and profiles of all records there are, sorted."""
    return sorted(tuple(path.stem.split(".")) for path in directory().glob("*.*.json"))


def load(experiment: str, profile: str) -> Record:
    """Load a record.

    Raises
    ------
    FileNotFoundError
        If that experiment has not been recorded at that profile.
    """
    path = directory() / f"{experiment}.{profile}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no record of {experiment!r} at profile {profile!r}; recorded are "
            f"{', '.join('.'.join(pair) for pair in available()) or 'none'}; "
            f"make one by: python -m migelib run {experiment} --profile {profile}"
        )
    content = json.loads(path.read_text())
    quantities = {name: Quantity(**values) for name, values in content.pop("quantities").items()}
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as curves:
        return Record(**content, quantities=quantities, curves=dict(curves))


def save(record: Record) -> Path:
    """Write a record, replacing an earlier one only when both files are complete; returns the JSON file's path.

    Raises
    ------
    ValueError
        If a quantity is NaN or infinite; nothing is written then.
    """
    bad = [name for name, quantity in record.quantities.items() if not math.isfinite(quantity.mean)]
    if bad:
        raise ValueError(f"record: expected finite quantities, got NaN or infinity for {', '.join(sorted(bad))}")
    path = directory() / f"{record.experiment}.{record.profile}.json"
    content = {
        "experiment": record.experiment,
        "profile": record.profile,
        "config": record.config,
        "made_with": record.made_with,
        "quantities": {name: asdict(quantity) for name, quantity in sorted(record.quantities.items())},
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **record.curves))
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
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


def check(measured: Record, prefix: str = "") -> None:
    """Compare a run with the record of the same experiment and profile; print a table and raise when a value is off.

    The table shows recorded values and tolerances only, so that it reads the same on every machine.

    Parameters
    ----------
    measured : Record
        A fresh run.
    prefix : str
        Compare only the quantities whose name starts with this.

    Raises
    ------
    FileNotFoundError
        If there is no such record.
    RecordMismatch
        If the settings differ, a quantity is missing on either side, or one is off by more than its tolerance.
    """
    recorded = load(measured.experiment, measured.profile)
    problems = []
    if json.loads(json.dumps(measured.config)) != recorded.config:
        problems.append(f"settings {measured.config} differ from the recorded {recorded.config}; record the run again")
    names = {name for name in {*recorded.quantities, *measured.quantities} if name.startswith(prefix)}
    if not names:
        problems.append(f"no quantity starts with {prefix!r}")
    rows = []
    for name in sorted(names):
        if name not in recorded.quantities or name not in measured.quantities:
            problems.append(f"{name} is only {'recorded' if name in recorded.quantities else 'measured'}")
            continue
        want, got = recorded[name], measured[name]
        within = abs(got.mean - want.mean) <= want.tolerance  # False for NaN
        rows.append((name, f"{want.mean:.4g}", f"{want.tolerance:.2g}", want.unit, "within" if within else "OFF"))
        if not within:
            problems.append(f"{name}: measured {got.mean:.6g}, recorded {want.mean:.6g} +/- {want.tolerance:.2g}")
    print(_text_table(("quantity", "recorded", "tolerance", "unit", "re-run"), rows))
    if problems:
        raise RecordMismatch(f"{recorded.experiment}.{recorded.profile}:\n  " + "\n  ".join(problems))


class MarkdownTable(str):
    """Text of a Markdown table that notebooks render."""

    def _repr_markdown_(self) -> str:
        return str(self)


def compare(
    names: Mapping[str, str], columns: Mapping[str, Record | None], digits: int = 3, **others: Mapping[str, str]
) -> MarkdownTable:
    """Table of quantities from several runs side by side, each as mean ± standard deviation.

    Parameters
    ----------
    names : mapping
        Quantity -> row label.
    columns : mapping
        Column title -> run; None for a run not made yet.
    digits : int
        Significant digits.
    **others
        Further columns, title (underscores become spaces) -> {quantity: text}.

    Returns
    -------
    MarkdownTable
        The second header line says of each run where and when it was made.
    """

    def cell(run: Record | None, name: str) -> str:
        if run is None or name not in run.quantities:
            return "–"
        return f"{run[name].mean:.{digits}g} ± {run[name].std:.2g}"

    header = ["", *(title.replace("_", " ") for title in others)]
    header += [f"{title} ({run.origin if run else 'not run yet'})" for title, run in columns.items()]
    rows = [header, ["---"] * len(header)]
    for name, label in names.items():
        rows.append(
            [label, *(column.get(name, "–") for column in others.values()), *(cell(r, name) for r in columns.values())]
        )
    return MarkdownTable("\n".join("| " + " | ".join(row) + " |" for row in rows))


def _text_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)
