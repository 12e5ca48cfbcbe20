"""Energies against their formulas, quadrature and sampling; and the kernel width that score estimators of them need."""

import math

import pytest
import torch

from migelib.kernels import median_distance
from migelib.scores import SSGE, Landweber, NuMethod, Stein, Tikhonov
from migelib.tasks.energies import PLANE_ENERGIES, FunnelEnergy, LogisticRegression, PlaneEnergy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gauss(x, sd):
    return math.exp(-0.5 * (x / sd) ** 2)


def density(name, a, b):
    """Unnormalised densities at one point, as the paper and the docstrings write them, without any wall."""
    wave, radius = math.sin(2 * math.pi * a / 4), math.hypot(a, b)
    if name == "ring":
        return gauss(radius - 2, 0.25)
    if name == "eight-gaussians":
        corners = [(2 * math.cos(k * math.pi / 4), 2 * math.sin(k * math.pi / 4)) for k in range(8)]
        return sum(gauss(a - p, 0.3) * gauss(b - q, 0.3) for p, q in corners)
    if name == "banana":
        return gauss(a, 1) * gauss(b - (a**2 - 1), 0.5)
    if name == "funnel":
        return gauss(a, 1) * gauss(b, math.exp(a / 2)) / math.exp(a / 2)
    if name == "u1":
        return gauss(radius - 2, 0.4) * (gauss(a - 2, 0.6) + gauss(a + 2, 0.6))
    if name == "u2":
        return gauss(b - wave, 0.4)
    if name == "u3":
        return gauss(b - wave, 0.35) + gauss(b - wave + 3 * gauss(a - 1, 0.6), 0.35)
    return gauss(b - wave, 0.4) + gauss(b - wave + 3 / (1 + math.exp(-(a - 1) / 0.3)), 0.35)


@pytest.mark.parametrize("name", PLANE_ENERGIES)
def test_energy_is_the_formula_up_to_a_constant(name):
    points = 4 * torch.rand(50, 2, generator=generator(), dtype=torch.float64) - 2
    expected = torch.tensor([math.log(density(name, *point)) for point in points.tolist()], dtype=torch.float64)
    constant = PLANE_ENERGIES[name].log_prob(points) - expected
    assert constant.std() < 1e-9


@pytest.mark.parametrize("name", ["u2", "u3", "u4"])
def test_the_wall_is_soft_and_stands_at_four(name):
    energy = PLANE_ENERGIES[name]
    inside, outside = torch.tensor([[3.9, 0.0], [4.1, 0.0]], dtype=torch.float64)
    drop = energy.log_prob(inside) - energy.log_prob(outside)
    plain = math.log(density(name, 3.9, 0.0) / density(name, 4.1, 0.0))
    assert float(drop) - plain == pytest.approx(0.5, abs=1e-9)  # one standard deviation, 0.1, beyond it


@pytest.mark.parametrize("target", [*PLANE_ENERGIES.values(), FunnelEnergy(5)], ids=lambda target: target.name)
def test_score_is_the_gradient(target):
    point = torch.randn(3, target.dim, generator=generator(), dtype=torch.float64)
    step = 1e-5 * torch.eye(target.dim, dtype=torch.float64)
    slope = (target.log_prob(point[:, None] + step) - target.log_prob(point[:, None] - step)) / 2e-5
    torch.testing.assert_close(target.score(point), slope, rtol=1e-5, atol=1e-5)


def test_cells_against_quadrature_and_histogram_against_a_loop():
    funnel = PLANE_ENERGIES["funnel"]
    masses = funnel.log_masses(80).exp()
    edges = torch.linspace(-5, 5, 81, dtype=torch.float64)
    expected = torch.special.ndtr(edges).diff()  # the first coordinate is standard normal
    torch.testing.assert_close(masses.sum(1), expected, atol=2e-4, rtol=0)
    samples = torch.tensor([[-9.0, 0.0], [0.01, 0.01], [0.02, 0.02], [4.99, 50.0]])
    q = funnel.histogram(samples, 80)
    assert q[0, 40] == 0.25  # beyond the edge: the nearest cell
    assert q[40, 40] == 0.5
    assert q[79, 79] == 0.25
    log_p = funnel.log_masses(80)
    shares = {(0, 40): 0.25, (40, 40): 0.5, (79, 79): 0.25}
    kl = sum(share * (math.log(share) - float(log_p[cell])) for cell, share in shares.items())
    tv = 0.5 * sum(abs(float(a - b)) for a, b in zip(q.flatten(), masses.flatten(), strict=True))
    assert funnel.divergences(samples, 80) == pytest.approx((kl, tv))


def test_divergence_of_gaussians_has_its_closed_form():
    narrow = PlaneEnergy("gauss", lambda z: -z.square().sum(-1) / 2, ((-6.0, 6.0), (-6.0, 6.0)))
    samples = 0.7 * torch.randn(400_000, 2, generator=generator()) + 0.5
    truth = 0.49 + 0.25 - 1 - math.log(0.49)  # both coordinates
    assert narrow.divergences(samples, 100)[0] == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize("energy", PLANE_ENERGIES.values(), ids=lambda energy: energy.name)
def test_exact_samples_reach_the_floor(energy):
    kl, tv = energy.divergences(energy.sample(50_000, generator()), 40)
    assert kl < 0.02
    assert tv < 0.06


def test_banana_samples_have_the_moments_of_the_banana():
    samples = PLANE_ENERGIES["banana"].sample(100_000, generator())
    assert samples.mean(0).tolist() == pytest.approx([0, 0], abs=0.03)
    assert samples.var(0).tolist() == pytest.approx([1, 2.25], rel=0.04)


def test_logistic_regression_by_hand():
    features = torch.tensor([[1.0, 2.0], [-0.5, 1.0], [0.3, -1.0]], dtype=torch.float64)
    target = LogisticRegression(features, torch.tensor([1.0, -1.0, 1.0]), prior_scale=2.0)
    w = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    chances = [1 / (1 + math.exp(-(0.4 * a - 0.7 * b))) for a, b in features.tolist()]
    value = math.log(chances[0] * (1 - chances[1]) * chances[2]) - (0.4**2 + 0.7**2) / 8
    assert float(target.log_prob(w)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FunnelEnergy(1), "dim"),
        (lambda: LogisticRegression(torch.zeros(3, 2), torch.ones(2)), "features and signs"),
        (lambda: LogisticRegression(torch.zeros(3, 2), torch.zeros(3)), r"\+1 or -1"),
        (lambda: LogisticRegression(torch.zeros(3, 2), torch.ones(3), 0.0), "prior_scale"),
        (lambda: PLANE_ENERGIES["ring"].divergences(torch.zeros(3, 3)), "samples"),
        (lambda: PLANE_ENERGIES["ring"].log_masses(1), "cells"),
        (lambda: SSGE(median_factor=0.0), "median_factor"),
        (lambda: Stein(median_factor=-1.0), "median_factor"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", [SSGE, Stein, Tikhonov, Landweber, NuMethod])
def test_factor_of_the_median_width(kind):
    samples = torch.randn(60, 2, generator=generator(), dtype=torch.float64)
    width = 0.5 * float(median_distance(samples))
    by_factor, by_width = kind(median_factor=0.5).fit(samples), kind(width=width).fit(samples)
    torch.testing.assert_close(by_factor(samples), by_width(samples))
    assert not torch.allclose(by_factor(samples), kind().fit(samples)(samples), rtol=0.01)
