"""The samplers beyond the plane: their measures against closed forms, their methods, and host reads of a step."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from dispatch import host_reads

from migelib.experiments import sampler_high, samplers
from migelib.experiments.metrics import maximum_mean_discrepancy
from migelib.experiments.randomness import Streams
from migelib.experiments.sampler_high import PROFILES, moment_errors
from migelib.kernels import median_distance
from migelib.surrogates import kl_surrogate
from migelib.tasks.energies import FunnelEnergy, breast_cancer_posterior

CPU = torch.device("cpu")
# Hidden units are more than the coordinates, since otherwise the samples would lie in a plane.
TINY = dataclasses.replace(PROFILES["cpu"], seeds=2, steps=2, n=48, hidden=(40,), flow_steps=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_funnel_samples_have_the_moments_of_the_funnel():
    funnel = FunnelEnergy(4)
    errors = moment_errors(funnel.sample(400_000, generator()), funnel.moments())
    assert errors["mean_error"] < 0.01
    assert errors["sd_error"] < 0.02
    assert errors["gaussian_kl"] < 0.003


def test_recorded_moments_agree_with_importance_sampling():
    posterior, reference = breast_cancer_posterior()
    assert posterior.dim == 31
    mode = reference.mean.clone().requires_grad_()
    for _ in range(20):  # Newton's method, in float64
        (slope,) = torch.autograd.grad(posterior.log_prob(mode), mode, create_graph=True)
        hessian = torch.stack([torch.autograd.grad(s, mode, retain_graph=True)[0] for s in slope])
        mode = (mode - torch.linalg.solve(hessian, slope)).detach().requires_grad_()
    factor = torch.linalg.cholesky(torch.linalg.inv(-hessian.detach()))
    n, df = 40_000, 20.0
    normal = torch.randn(n, 31, generator=generator(), dtype=torch.float64)
    chi = torch._standard_gamma(torch.full((n, 1), df / 2, dtype=torch.float64), generator=generator(1)) * 2 / df
    white = normal / chi.sqrt()
    points = mode.detach() + white @ factor.mT
    log_weights = posterior.log_prob(points).detach() + (df + 31) / 2 * torch.log1p(white.square().sum(-1) / df)
    weights = torch.softmax(log_weights, 0)
    assert 1 / weights.square().sum() > 1000  # effective sample size
    mean = weights @ points
    sd = (weights @ (points - mean).square()).sqrt()
    scale = reference.covariance.diagonal().sqrt()
    assert ((mean - reference.mean) / scale).abs().max() < 0.15
    assert (sd / scale - 1).abs().max() < 0.1


def test_gaussian_divergence_of_moments():
    moments = FunnelEnergy(2).moments()
    samples = torch.randn(200_000, 2, generator=generator(), dtype=torch.float64) * 0.5 + torch.tensor([0.3, 0.0])
    found = moment_errors(samples, moments)
    variance = math.sqrt(math.e)
    kl = 0.5 * (0.25 + 0.09 + 0.25 / variance - 2 - math.log(0.25 * 0.25 / variance))
    assert found["gaussian_kl"] == pytest.approx(kl, abs=0.01)
    assert found["mean_error"] == pytest.approx(0.3 / math.sqrt(2), abs=0.005)
    ratios = [0.5 - 1, 0.5 / math.sqrt(variance) - 1]
    assert found["sd_error"] == pytest.approx(math.sqrt(np.mean(np.square(ratios))), abs=0.005)
    assert math.isfinite(moment_errors(torch.zeros(10, 2), moments)["gaussian_kl"])


def test_discrepancy_against_a_double_loop():
    x, y = torch.randn(6, 2, generator=generator(0)), torch.randn(5, 2, generator=generator(1)) + 1
    width = float(median_distance(y))

    def mean(a, b):
        return np.mean([math.exp(-float((p - q).square().sum()) / (2 * width**2)) for p in a for q in b])

    expected = math.sqrt(mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert maximum_mean_discrepancy(x, y) == pytest.approx(expected, rel=1e-4)
    assert maximum_mean_discrepancy(y, y) < 1e-3


def test_every_part_has_the_results_of_the_whole(monkeypatch):
    monkeypatch.setattr(sampler_high, "EVALUATION", 1000)
    monkeypatch.setattr(sampler_high, "COMPARED", 200)
    shared = sampler_high.prepare(TINY, CPU)
    config = dataclasses.replace(TINY, methods=("exact", "none", "ar-dae-2", "flow"))
    whole = sampler_high.run_seeds(config, shared, [0], CPU)[0][0]
    quantities = {}
    for name in config.methods:
        part = sampler_high.run_seeds(dataclasses.replace(config, methods=(name,)), shared, [0], CPU)[0][0]
        assert all(quantity.split("/")[0] == name for quantity in part)
        assert {quantity.split("/")[-1] for quantity in part} == {*sampler_high.METRICS}
        quantities |= part
    assert quantities == whole
    assert "exact/logistic/gaussian_kl" not in whole  # it has no exact samples
    assert "mmd" not in {quantity.split("/")[-1] for quantity in whole if "logistic" in quantity}


def test_every_profile_is_hashable_and_knows_its_methods():
    for config in PROFILES.values():
        assert len({config, dataclasses.replace(config)}) == 1
        assert {*config.methods} <= {*sampler_high.methods(config)}
    assert "ar-dae-2-equal-time" not in sampler_high.methods(PROFILES["cpu"])  # its factor is 0
    assert sampler_high.methods(PROFILES["cpu"])["ar-dae-5-equal-time"].sampler.step_factor == 6
    with pytest.raises(ValueError, match=r"methods: unknown ar-dae-2-equal-time.*ssge-paper"):
        dataclasses.replace(PROFILES["cpu"], methods=("ar-dae-2-equal-time",))
    with pytest.raises(ValueError, match="targets: unknown ring"):
        dataclasses.replace(PROFILES["cpu"], targets=("ring",))


@pytest.mark.parametrize("target", TINY.targets)
def test_training_reads_no_more_than_its_surrogate(target, monkeypatch):
    """The default estimator decides on the host; the training around it adds nothing to that."""
    own = []

    def counted(*arguments):
        result = []
        own.append(host_reads(lambda: result.append(kl_surrogate(*arguments))))
        return result[0]

    monkeypatch.setattr(samplers, "kl_surrogate", counted)
    energy = sampler_high.PROBLEMS[target](CPU).target
    method = sampler_high.methods(TINY)["ege"].sampler
    total = host_reads(lambda: method.train([energy], energy.dim, TINY, Streams([0, 1], "reads")))
    assert len(own) == TINY.steps
    assert total == sum(own, Counter())


@pytest.mark.usefixtures("double")
def test_seeds_together_are_the_seeds_alone():
    energy = FunnelEnergy()
    together, *alone = (
        sampler_high.methods(TINY)["ege"]
        .sampler.train([energy], energy.dim, TINY, Streams(seeds, "ege"))
        .draw(50, Streams(seeds, "test"))
        for seeds in ([0, 3], [0], [3])
    )
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-8)
    assert (together[0] - together[1]).abs().mean() > 0.01
