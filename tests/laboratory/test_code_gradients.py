"""The gradients of linear-Gaussian codes, and what their records claim."""

import math
from dataclasses import replace

import pytest
import torch

from migelib.experiments import code_gradients, records
from migelib.experiments.code_gradients import CodeBatch, LinearCode

CPU = torch.device("cpu")
SMALL = replace(code_gradients.PROFILES["quick"], codes=(4,), n=20, batches=2, past=2)


def test_true_scores_average_to_the_gradient_of_the_information():
    code = LinearCode(torch.tensor([[1.5, 0.2], [0.1, 0.7]]).double(), torch.tensor([0.1, -0.2]).double())
    task = code.trainable(CPU)
    truth = torch.autograd.grad(task.information(), (task.loading, task.log_scale))
    batch = CodeBatch.draw(task, 200_000, 0, torch.Generator().manual_seed(0))
    for method in ("exact-joint", "exact-marginal", "exact-averaged", "mige-gaussian-batch"):
        found = torch.autograd.grad(
            code_gradients.METHODS[method](batch),
            (task.loading, task.log_scale),
            retain_graph=True,
            allow_unused=True,
        )
        for estimate, true in zip(found, truth, strict=True):
            assert torch.allclose(torch.zeros_like(true) if estimate is None else estimate, true, atol=0.02)


def test_errors_of_the_truth_and_of_twice_the_truth():
    task = LinearCode.random(3, torch.Generator().manual_seed(0)).trainable(CPU)
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(task.information(), (task.loading, task.log_scale))])
    exact = code_gradients.errors(task, truth.repeat(2, 1))
    assert exact == pytest.approx(
        {"relative_error": 0, "averaged_error": 0, "cosine": 1, "scale_drift": 0}, abs=1e-12
    )  # the information does not depend on the scale of the code
    twice = code_gradients.errors(task, torch.stack([2 * truth, 0 * truth]))
    assert (twice["relative_error"], twice["averaged_error"], twice["cosine"]) == pytest.approx((1, 0, 0.5))


def test_a_method_and_a_seed_alone_measure_what_they_measure_beside_others():
    (first, _), (second, _) = code_gradients.run_seeds(SMALL, None, [3, 4], CPU)
    assert first != second
    assert all(math.isfinite(value) for value in first.values())
    for method in ("mige", "mige-gaussian"):
        ((alone, _),) = code_gradients.run_seeds(replace(SMALL, methods=(method,)), None, [4], CPU)
        assert alone == {name: value for name, value in second.items() if name.split("/")[0] == method}
    assert {name.split("/")[-1] for name in first} == set(code_gradients.METRICS)


def test_every_config_is_hashable_and_names_known_methods():
    for config in code_gradients.PROFILES.values():
        assert hash(config) == hash(replace(config))
        assert set(config.methods) <= set(code_gradients.METHODS)


@pytest.mark.parametrize("signal", [0.25, 1.0, 9.0])
def test_variances_with_the_conditional_sampled_and_known(signal):
    # One coordinate, noise of variance one: see the chapter's lemma.
    generator = torch.Generator().manual_seed(0)
    m = signal**0.5 * torch.randn(200_000, generator=generator)
    noise = torch.randn(200_000, generator=generator)
    known = (m + noise) / (1 + signal)
    assert float(known.var() / (known - noise).var()) == pytest.approx(1 / signal, rel=0.02)
    assert float((m / (1 + signal)).var()) == pytest.approx(signal / (1 + signal) ** 2, rel=0.02)


@pytest.mark.parametrize("profile", ["quick", "cpu"])
def test_recorded_gradients_say_what_the_chapter_says(profile):
    record = records.load("code-gradients", profile)
    largest = f"k{max(record.config['codes'])}"
    ssge, gauss = (record[f"{method}/{largest}/scale_drift"] for method in ("mige-marginal", "mige-gaussian"))
    assert ssge.mean + 5 * ssge.std < -0.3
    assert abs(gauss.mean) < 0.01
    cosine = {
        m: record[f"{m}/{largest}/cosine"] for m in ("exact-joint", "exact-marginal", "exact-averaged", "mige-gaussian")
    }
    assert cosine["exact-marginal"].mean < cosine["exact-joint"].mean < cosine["exact-averaged"].mean
    assert cosine["mige-gaussian"].mean == pytest.approx(cosine["exact-averaged"].mean, abs=0.02)
    assert record["exact-marginal/k16/cosine"].mean > record["exact-joint/k16/cosine"].mean
    assert record[f"nib/{largest}/relative_error"].mean == pytest.approx(1, abs=1e-3)
    assert record[f"mige/{largest}/cosine"].mean < 0.15
