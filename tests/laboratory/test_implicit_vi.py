import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from migelib.experiments import implicit_vi
from migelib.experiments.randomness import stream
from migelib.kernels import median_distance
from migelib.scores import SSGE, DenoisingNetwork, Landweber, NuMethod, Stein, Tikhonov
from migelib.tasks.energies import (
    PLANE_ENERGIES,
    FunnelEnergy,
    LogisticRegression,
    PlaneEnergy,
    breast_cancer_posterior,
)

CPU = torch.device("cpu")


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
        return stats.norm.pdf(a) * stats.norm.pdf(b, scale=math.exp(a / 2))
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
    edges = np.linspace(-5, 5, 81)
    expected = np.diff(stats.norm.cdf(edges))  # the first coordinate is standard normal
    np.testing.assert_allclose(masses.sum(1), expected, atol=2e-4)
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


def test_funnel_samples_have_the_moments_of_the_funnel():
    funnel = FunnelEnergy(4)
    errors = implicit_vi.moment_errors(funnel.sample(400_000, generator()), funnel.moments())
    assert errors["mean_error"] < 0.01
    assert errors["sd_error"] < 0.02
    assert errors["gaussian_kl"] < 0.003


def test_logistic_regression_by_hand():
    features = torch.tensor([[1.0, 2.0], [-0.5, 1.0], [0.3, -1.0]], dtype=torch.float64)
    target = LogisticRegression(features, torch.tensor([1.0, -1.0, 1.0]), prior_scale=2.0)
    w = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    chances = [1 / (1 + math.exp(-(0.4 * a - 0.7 * b))) for a, b in features.tolist()]
    value = math.log(chances[0] * (1 - chances[1]) * chances[2]) - (0.4**2 + 0.7**2) / 8
    assert float(target.log_prob(w)) == pytest.approx(value)


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


def test_stack_of_samplers_is_one_perceptron_each():
    stack = implicit_vi.Stack((3, 5, 4, 2), 2, generator(), CPU)
    noise = torch.randn(2, 7, 3, generator=generator(1))
    for entry in range(2):
        layers = []
        for weight, bias in zip(stack.weights[::2], stack.weights[1::2], strict=True):
            layer = nn.Linear(*weight.shape[1:])
            layer.load_state_dict({"weight": weight[entry].detach().mT, "bias": bias[entry, 0].detach()})
            layers += [layer, nn.SiLU()]
        torch.testing.assert_close(stack(noise)[entry], nn.Sequential(*layers[:-1])(noise[entry]))


def test_stack_of_denoisers_is_one_network_each():
    drawn = generator(3)
    stack = implicit_vi.DenoiserStack(2, 3, 16, 2, 0.3, 1e-2, drawn, CPU)
    for _ in range(3):
        stack.step(torch.randn(3, 40, 2, generator=generator(1)))
    x, sigma = torch.randn(3, 9, 2, generator=generator(2)), torch.rand(3, 9, 1, generator=generator(4))
    for entry in range(3):
        network = DenoisingNetwork(2, 16, 2)
        network.load_state_dict({name: weight[entry].detach() for name, weight in stack.weights.items()})
        torch.testing.assert_close(stack.network(x, sigma)[entry], network(x[entry], sigma[entry]))


def test_denoiser_learns_the_score_of_two_gaussians():
    sampler, noise = generator(0), generator(1)
    stack = implicit_vi.DenoiserStack(1, 1, 32, 2, 0.1, 1e-2, noise, CPU)

    def draw(n):
        return (torch.randint(2, (1, n, 1), generator=sampler) * 4 - 2) + torch.randn(1, n, 1, generator=sampler)

    for _ in range(500):
        stack.step(draw(256))
    points = draw(2000)
    truth = 2 * torch.tanh(2 * points) - points
    error = (stack.fit(draw(2000))(points) - truth).norm() / truth.norm()
    assert error < 0.5  # 1 for a score of zero, 0.89 for that of the Gaussian with these moments


def test_log_determinant_of_the_flow():
    torch.manual_seed(0)
    flow = implicit_vi.SplineFlow(3).double()
    noise = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    log_det = flow(noise)[1].detach()
    for point, value in zip(noise, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], point)
        assert float(value) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-8)


def test_gaussian_divergence_of_moments():
    moments = FunnelEnergy(2).moments()
    samples = torch.randn(200_000, 2, generator=generator(), dtype=torch.float64) * 0.5 + torch.tensor([0.3, 0.0])
    found = implicit_vi.moment_errors(samples, moments)
    variance = math.sqrt(math.e)
    kl = 0.5 * (0.25 + 0.09 + 0.25 / variance - 2 - math.log(0.25 * 0.25 / variance))
    assert found["gaussian_kl"] == pytest.approx(kl, abs=0.01)
    assert found["mean_error"] == pytest.approx(0.3 / math.sqrt(2), abs=0.005)
    ratios = [0.5 - 1, 0.5 / math.sqrt(variance) - 1]
    assert found["sd_error"] == pytest.approx(math.sqrt(np.mean(np.square(ratios))), abs=0.005)
    assert math.isfinite(implicit_vi.moment_errors(torch.zeros(10, 2), moments)["gaussian_kl"])


def test_discrepancy_against_a_double_loop():
    x, y = torch.randn(6, 2, generator=generator(0)), torch.randn(5, 2, generator=generator(1)) + 1
    width = float(median_distance(y))

    def mean(a, b):
        return np.mean([math.exp(-float((p - q).square().sum()) / (2 * width**2)) for p in a for q in b])

    expected = math.sqrt(mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert implicit_vi.maximum_mean_discrepancy(x, y) == pytest.approx(expected, rel=1e-4)
    assert implicit_vi.maximum_mean_discrepancy(y, y) < 1e-3


SMALL = dataclasses.replace(implicit_vi.PROFILES["quick"], steps=150, n=128, targets=("banana",))


def test_the_energy_is_tempered_at_first_only():
    log_prob = implicit_vi.tempering(lambda z: z.sum(-1), 0.0, SMALL)
    assert float(log_prob(torch.ones(1, 1, 2))) == pytest.approx(2 * SMALL.first_temper)
    assert float(implicit_vi.tempering(lambda z: z.sum(-1), 0.9, SMALL)(torch.ones(1, 1, 2))) == 2


def test_the_entropy_term_keeps_the_sampler_from_collapse():
    banana = PLANE_ENERGIES["banana"]
    kl = {}
    for name, method in implicit_vi.methods(SMALL, plane=True).items():
        sizes = (SMALL.noise_dim, *SMALL.hidden, 2)
        sampler, _ = implicit_vi.train_sampler([banana], method, sizes, SMALL.steps, SMALL, stream(7, name), CPU)
        samples = sampler(torch.randn(1, 20_000, SMALL.noise_dim, generator=generator())).detach()[0]
        kl[name] = banana.divergences(samples, 40)[0]
    assert kl["ege"] < 0.3
    assert kl["ege"] < kl["ssge-paper"] < kl["none"]


def test_the_flow_is_trained():
    config = dataclasses.replace(SMALL, learning_rate=1e-2)
    banana = PLANE_ENERGIES["banana"]
    flow = implicit_vi.train_flow([banana], 60, config, generator(), CPU)
    assert banana.divergences(flow.sample(20_000, generator())[0], 40)[0] < 0.5


def test_every_method_has_its_steps():
    config = implicit_vi.PROFILES["cpu"]
    plane, high = (implicit_vi.methods(config, plane) for plane in (True, False))
    assert plane["ar-dae-5-equal-time"].step_factor == config.equal_time[1]
    assert "ar-dae-2-equal-time" not in high
    assert {*high} <= {*plane}
