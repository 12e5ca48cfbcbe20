"""The experiment of the chapter on score estimators: its filters are the estimators', its errors what they say."""

import numpy as np
import pytest
import torch

from migelib.experiments import records, score_estimators
from migelib.kernels import VectorKernel, median_distance, rbf


@pytest.fixture(scope="module")
def drawn():
    generator = torch.Generator().manual_seed(0)
    density = score_estimators.task("student", 3, generator)
    return density, density.sample(50, generator)


@pytest.mark.parametrize("ridge", [0.1, 0.01])
def test_filters_are_those_of_the_estimators(drawn, ridge):
    _, samples = drawn
    width = median_distance(samples)
    values, vectors = torch.linalg.eigh(rbf(samples, samples, width) / len(samples))
    seen = values > 1e-6  # below, the estimators' own floors for rounding act
    values, vectors = values[seen], vectors[:, seen]
    projected = vectors.mT @ VectorKernel(samples, samples, width, "rbf", False).stein()
    for name, gain in score_estimators.filters(values, ridge).items():
        estimate = score_estimators.at_ridge(ridge, samples)[name].fit(samples)(samples)
        torch.testing.assert_close(vectors.mT @ estimate, -gain[:, None] * projected, rtol=1e-6, atol=1e-6)


def test_gradient_error_is_that_of_the_surrogate(drawn):
    density, samples = drawn
    loading = density.loading.clone().requires_grad_()
    noise = torch.linalg.solve(density.loading, samples.mT).mT
    surrogate = -(density.score(samples) * (noise @ loading.mT)).sum(-1).mean()
    (gradient,) = torch.autograd.grad(surrogate, loading)
    truth = density.entropy_gradient()
    expected = float((gradient - truth).norm() / truth.norm())
    measured = score_estimators.errors(density.score, density, samples, samples)
    assert measured["gradient_error"] == pytest.approx(expected, rel=1e-9)
    assert measured["score_error"] == measured["fresh_error"] == 0


def test_table_marks_the_best_estimate():
    values = {"exact": 0.1, "a": 0.301, "b": 0.302, "c": 0.4}
    names = {method: f"{method}/t-d2/score_error" for method in values}
    quantities = {names[m]: records.Quantity.from_seeds(np.array([v, v]), "1") for m, v in values.items()}
    quantities["c/u-d2/score_error"] = quantities[names["c"]]
    record = records.Record("x", "full", {}, {}, quantities)
    lines = score_estimators.table(record, {"t": "t-d2/score_error", "u": "u-d2/score_error"}).splitlines()
    assert lines[2:] == [
        "| exact | 0.10 | – |",
        "| a | **0.30** | – |",
        "| b | **0.30** | – |",
        "| c | 0.40 | **0.40** |",
    ]


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family"):
        score_estimators.task("cauchy", 2, torch.Generator())
