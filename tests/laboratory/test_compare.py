"""The one rule for "better", against intervals computed by hand and by SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from migelib.experiments import compare, records
from migelib.experiments.records import Quantity


def quantity(values):
    return Quantity.from_seeds(np.array(values), "1")


def summary(values):
    """As in a record that was converted from the first format."""
    q = quantity(values)
    return Quantity(q.mean, q.std, q.n, q.unit)


def test_seeds_that_pair_are_compared_pair_by_pair():
    a, b = [1.0, 5.0, 9.0, 2.0], [1.5, 5.4, 9.6, 2.7]
    found = compare.difference(quantity(a), quantity(b))
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.mean, found.n, found.paired, found.better) == (pytest.approx(-0.55), 4, True, True)
    assert compare.difference(a, b) == found


@pytest.mark.parametrize("b", [[1.5, 5.4, 9.6, 2.7, 4.0], [1.5, 5.4, 9.6, 2.7]])
def test_what_does_not_pair_is_compared_by_welch(b):
    a = [1.0, 5.0, 9.0, 2.0]
    second = quantity(b) if len(b) != len(a) else summary(b)
    found = compare.difference(quantity(a), second)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert not found.paired
    assert not found.better


def test_equal_differences_have_an_interval_of_one_point():
    assert compare.difference([1.0, 2.0], [1.0, 2.0]) == compare.Difference(0, 0, 0, 2, True)
    assert compare.difference([2.0, 3.0], [1.0, 2.0]).better
    assert not compare.difference(summary([1.0, 1.0]), summary([1.0, 1.0])).better


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match=r"at least two values.*1 and 2"):
        compare.difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (compare.Difference(-0.11, -0.15, -0.07, 5, True), "-0.11 [-0.15, -0.07]"),
        (compare.Difference(2.04, 0.04, 4.04, 5, True), "2.04 [0.04, 4.04]"),  # an end above zero does not read 0
        (compare.Difference(12.0, -30.0, 54.0, 5, True), "12 [-30, 54]"),
        (compare.Difference(-0.04, -1.3, 1.22, 5, True), "0.0 [-1.3, 1.2]"),  # two digits where one would say little
        (compare.Difference(1.0, 1.0, 1.0, 2, True), "1.000 [1.000, 1.000]"),
    ],
)
def test_text(found, text):
    assert str(found) == text


def test_table_says_how_many_comparisons_it_makes():
    pair = quantity([1.0, 2.0, 3.0]), quantity([2.0, 3.1, 4.0])
    rows = {"n": {"x": None, "y": pair}, "a": {"x": pair, "y": pair}, "b": {"y": (quantity([1.0, 2.0]),) * 2}}
    lines = compare.differences(rows).splitlines()
    assert lines[0] == "|  | x | y |"
    assert lines.pop(2) == f"| n | – | **{compare.difference(*pair)}** |"
    assert lines[2] == f"| a | **{compare.difference(*pair)}** | **{compare.difference(*pair)}** |"
    assert lines[3].startswith("| b | – | 0.000 [")
    assert lines[-1].startswith("4 mean differences")


def test_coverage():
    """Of many pairs of equal means, one in twenty seems to differ."""
    rng = np.random.default_rng(0)
    misses = [compare.difference(rng.normal(size=5), rng.normal(size=5)).better for _ in range(2000)]
    assert np.mean(misses) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 2000))


def test_runs_side_by_side():
    made = {"device": "CPU", "seeds": [0, 1], "date": "2026-01-01"}
    run = records.Record("x", "full", {}, made, {"m/s/error": quantity([1.0, 2.0])})
    table = compare.table(
        {"m/s/error": "m", "n/s/error": "n"}, {"Full": run, "Other": None}, Old_one={"m/s/error": "7"}
    )
    assert table.splitlines() == [
        "|  | Old one | Full (full, CPU, 2 seeds, 2026-01-01) |",
        "| --- | --- | --- |",
        "| m | 7 | 1.5 ± 0.71 |",
        "| n | – | – |",
    ]
