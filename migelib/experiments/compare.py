"""Comparing what was measured: one rule for "better", and tables of quantities side by side.

A method is called better than another only where the 95 % confidence interval of their mean difference over the seeds
excludes zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .records import MarkdownTable, Quantity, Record

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean difference a - b with its 95 % confidence interval.

    Attributes
    ----------
    mean, low, high : float
        The difference, and the ends of the interval.
    n : int
        Number of pairs, or of the smaller group where they are not paired.
    paired : bool
        Whether a and b were compared seed by seed.
    """

    mean: float
    low: float
    high: float
    n: int
    paired: bool

    @property
    def better(self) -> bool:
        """Whether the interval excludes zero, so that the better of the two may be called so."""
        return self.low > 0 or self.high < 0

    @property
    def marked(self) -> str:
        """The text in Markdown, bold where the interval excludes zero."""
        return f"**{self}**" if self.better else str(self)

    def __str__(self) -> str:
        """Such as "-0.11 [-0.15, -0.07]": digits by the interval's width, so many that no end reads zero falsely."""
        half = (self.high - self.low) / 2
        digits = max(0, math.ceil(-math.log10(half / 3))) if half > 0 else 3  # half the width is three units or more
        while self.better and digits < 12 and not min(abs(round(end, digits)) for end in (self.low, self.high)):
            digits += 1
        mean, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def difference(a: Quantity | Sequence[float], b: Quantity | Sequence[float]) -> Difference:
    """Mean of a minus that of b, with its 95 % confidence interval by Student's t.

    Paired, seed by seed, where both have as many values. Else by Welch's approximation, as for records that were
    converted from the first format and keep mean, standard deviation and number of seeds only.

    Parameters
    ----------
    a, b : Quantity, or sequence of float
        The values of two methods, one a seed.

    Returns
    -------
    Difference

    Raises
    ------
    ValueError
        If one has fewer than two values.

    Examples
    --------
    >>> print(difference([1.0, 1.2, 1.1], [2.0, 2.1, 2.2]))
    -1.00 [-1.25, -0.75]
    """
    from scipy import stats  # here, so that runs need no SciPy

    counts = [x.n if isinstance(x, Quantity) else len(x) for x in (a, b)]
    if min(counts) < 2:
        raise ValueError(f"difference: expected at least two values of each, got {counts[0]} and {counts[1]}")
    a, b = (x if isinstance(x, Quantity) else Quantity.from_seeds(np.asarray(x, dtype=float), "1") for x in (a, b))
    mean = a.mean - b.mean
    paired = bool(a.values and b.values) and a.n == b.n
    if paired:
        error, freedom = float(np.std(np.subtract(a.values, b.values), ddof=1)) / math.sqrt(a.n), a.n - 1
    else:
        first, second = a.std**2 / a.n, b.std**2 / b.n
        error, scale = math.sqrt(first + second), first**2 / (a.n - 1) + second**2 / (b.n - 1)
        freedom = (first + second) ** 2 / scale if scale > 0 else 1
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * error
    return Difference(mean, mean - half, mean + half, min(a.n, b.n), paired)


def differences(rows: Mapping[str, Mapping[str, Sequence | None]]) -> MarkdownTable:
    """Table of differences with their 95 % intervals; a last line says how many comparisons it makes.

    Parameters
    ----------
    rows : mapping
        Row label -> {column title: (a, b)}, of which the difference a - b is shown, bold where the interval excludes
        zero; a dash for None, and where a row lacks a column.
    """
    titles = list(dict.fromkeys(title for row in rows.values() for title in row))
    lines = [["", *titles], ["---"] * (1 + len(titles))]
    for label, row in rows.items():
        lines.append([label, *(difference(*row[title]).marked if row.get(title) else "–" for title in titles)])
    comparisons = sum(pair is not None for row in rows.values() for pair in row.values())
    return MarkdownTable(f"{markdown(lines)}\n\n{note(comparisons)}")


def note(comparisons: int) -> str:
    """What stands below a table of so many differences."""
    return f"{comparisons} mean differences with their 95 % intervals; bold where the interval excludes zero."


def table(
    names: Mapping[str, str], columns: Mapping[str, Record | None], digits: int = 3, **others: Mapping[str, str]
) -> MarkdownTable:
    """Table of quantities from several runs side by side, each as mean ± standard deviation.

    Parameters
    ----------
    names : mapping
        Quantity -> row label.
    columns : mapping
        Column title -> run; a run not made yet, None, has no column.
    digits : int
        Significant digits.
    **others
        Further columns, title (underscores become spaces) -> {quantity: text}.

    Returns
    -------
    MarkdownTable
        The second header line says of each run where and when it was made.
    """
    made = {title: run for title, run in columns.items() if run is not None}

    def cell(run: Record, name: str) -> str:
        if name not in run.quantities:
            return "–"
        return f"{run[name].mean:.{digits}g} ± {run[name].std:.2g}"

    header = ["", *(title.replace("_", " ") for title in others)]
    header += [f"{title} ({run.origin})" for title, run in made.items()]
    rows = [header, ["---"] * len(header)]
    for name, label in names.items():
        rows.append(
            [label, *(column.get(name, "–") for column in others.values()), *(cell(run, name) for run in made.values())]
        )
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> MarkdownTable:
    """Rows of cells as a Markdown table; the first is the header, the second the rule below it."""
    return MarkdownTable("\n".join("| " + " | ".join(row) + " |" for row in rows))
