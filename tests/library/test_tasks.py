"""Ground truths are proved here by automatic differentiation, quadrature and large samples."""

import math

import pytest
import torch
from torch import distributions as td

from migelib import bounds
from migelib.tasks import (
    CorrelatedGaussian,
    Gaussian,
    GaussianMixture,
    JointGaussian,
    LinearGaussian,
    SinhArcsinh,
    StudentT,
)

DOUBLE = torch.float64
COVARIANCE = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=DOUBLE)
MEAN = torch.tensor([0.3, -1.0], dtype=DOUBLE)
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0]], dtype=DOUBLE)


def mixture_log_prob(x):
    components = td.Independent(td.Normal(MEANS, torch.full_like(MEANS, 0.8)), 1)
    return td.MixtureSameFamily(td.Categorical(torch.ones(3, dtype=DOUBLE)), components).log_prob(x)


def student_log_prob(x):
    return -(4.0 + 2) / 2 * torch.log1p(x.square().sum(-1) / 4.0)


def sinh_arcsinh_log_prob(x):
    noise = torch.sinh((torch.asinh(x) - 0.5) / 1.3)
    noise_slope = torch.cosh((torch.asinh(x) - 0.5) / 1.3) / 1.3 / (1 + x.square()).sqrt()
    return (-noise.square() / 2 + noise_slope.log()).sum(-1)


SINH = SinhArcsinh(2, torch.tensor(0.5, dtype=DOUBLE), torch.tensor(1.3, dtype=DOUBLE))
LOADING = torch.tensor([[1.0, 0.2], [-0.5, 0.7]], dtype=DOUBLE)
SCORES = [
    pytest.param(Gaussian(MEAN, COVARIANCE), td.MultivariateNormal(MEAN, COVARIANCE).log_prob, id="gaussian"),
    pytest.param(GaussianMixture(MEANS, 0.8), mixture_log_prob, id="mixture"),
    pytest.param(StudentT(2, 4.0), student_log_prob, id="student-t"),
    pytest.param(SINH, sinh_arcsinh_log_prob, id="sinh-arcsinh"),
    pytest.param(
        LinearGaussian(LOADING),
        td.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), LOADING @ LOADING.T).log_prob,
        id="linear",
    ),
]


@pytest.mark.parametrize(("density", "log_prob"), SCORES)
def test_score_is_the_gradient_of_the_log_density(density, log_prob, generator):
    points = (3 * torch.randn(20, 2, dtype=DOUBLE, generator=generator)).requires_grad_()
    (expected,) = torch.autograd.grad(log_prob(points).sum(), points)
    torch.testing.assert_close(density.score(points.detach()), expected)


@pytest.mark.parametrize(("density", "log_prob"), SCORES)
def test_samples_follow_the_score(density, log_prob, generator):
    """Stein's identity, E[s f] = -E[grad f] for f(z) = sin z, within five standard errors."""
    z = density.sample(20_000, generator).double()
    terms = density.score(z) * torch.sin(z) + torch.cos(z)
    assert (terms.mean(0).abs() < 5 * terms.std(0) / math.sqrt(len(z))).all()


def test_entropy_of_sinh_arcsinh(generator):
    z = SINH.sample(200_000, generator)
    normaliser = math.log(2 * math.pi)
    values = normaliser - sinh_arcsinh_log_prob(z)
    assert float(SINH.entropy()) == pytest.approx(
        float(values.mean()), abs=5 * float(values.std()) / math.sqrt(200_000)
    )


def test_entropy_gradient_of_sinh_arcsinh():
    step, (skew, tail) = 1e-5, (0.5, 1.3)

    def entropy(skew, tail):
        return float(SinhArcsinh(2, torch.tensor(skew, dtype=DOUBLE), torch.tensor(tail, dtype=DOUBLE)).entropy())

    differences = [
        (entropy(skew + step, tail) - entropy(skew - step, tail)) / (2 * step),
        (entropy(skew, tail + step) - entropy(skew, tail - step)) / (2 * step),
    ]
    torch.testing.assert_close(SINH.entropy_gradient(), torch.tensor(differences, dtype=DOUBLE), rtol=1e-6, atol=1e-8)


RHO = torch.tensor([-0.7, 0.2, 0.5], dtype=DOUBLE)


def test_correlated_gaussian_truths():
    rho = RHO.clone().requires_grad_()
    task = CorrelatedGaussian(3, rho)
    information = task.mutual_information()
    for r, value in zip(RHO, information.detach(), strict=True):
        eye = torch.eye(3, dtype=DOUBLE)
        joint = torch.cat([torch.cat([eye, r * eye], 1), torch.cat([r * eye, eye], 1)])
        assert float(value) == pytest.approx(-0.5 * float(torch.linalg.slogdet(joint).logabsdet))
    (gradient,) = torch.autograd.grad(information.sum(), rho)
    torch.testing.assert_close(task.mutual_information_gradient(), gradient)


def test_correlated_gaussian_scores_and_density_ratio(generator):
    task = CorrelatedGaussian(3, RHO)
    x, y = task.sample(5, generator)
    x, y = x.requires_grad_(), y.requires_grad_()
    r = RHO[:, None, None]
    joint_log_prob = -(x.square() - 2 * r * x * y + y.square()).sum(-1, keepdim=True) / (2 * (1 - r.square()))
    expected = torch.autograd.grad(joint_log_prob.sum(), (x, y))
    for part, value in zip(task.score_joint(x.detach(), y.detach()), expected, strict=True):
        torch.testing.assert_close(part, value)
    torch.testing.assert_close(task.score_y(y), -y)
    constant = -3 / 2 * torch.log1p(-RHO.square())[:, None]
    marginals = -(x.square() + y.square()).sum(-1) / 2
    ratio = joint_log_prob.squeeze(-1) - marginals + constant
    torch.testing.assert_close(task.density_ratio(x, y).diagonal(dim1=-2, dim2=-1), ratio)
    # Rows pair x_i with every y_j, not the other way round.
    one = task.density_ratio(x[:, :1], y[:, 2:3]).squeeze()
    torch.testing.assert_close(task.density_ratio(x, y)[:, 0, 2], one)


def test_bounds_are_tight_at_the_density_ratio(generator):
    task = CorrelatedGaussian(2, torch.tensor(0.5, dtype=DOUBLE))
    x, y = task.sample(3000, generator)
    critic = task.density_ratio(x, y)
    # At this correlation, 3,000 samples, 20 seeds gave a spread of 0.014 nats for both.
    assert float(bounds.donsker_varadhan(critic)) == pytest.approx(float(task.mutual_information()), abs=5 * 0.014)
    assert float(bounds.nwj(critic + 1)) == pytest.approx(float(task.mutual_information()), abs=5 * 0.014)


def test_exact_scores_give_an_unbiased_gradient():
    """The mean over 200 batches lies within four standard errors of the truth, at every correlation."""
    rho = RHO.clone().requires_grad_()
    task = CorrelatedGaussian(3, rho)
    gradients = []
    for seed in range(200):
        x, y = task.sample(100, torch.Generator().manual_seed(seed))
        score = (task.score_joint(x, y)[1] - task.score_y(y)).detach()
        gradients.append(torch.autograd.grad((score * y).sum(-1).mean(-1).sum(), rho)[0])
    gradients = torch.stack(gradients)
    error = gradients.mean(0) - task.mutual_information_gradient()
    assert (error.abs() < 4 * gradients.std(0) / math.sqrt(200)).all()


@pytest.mark.parametrize("rho", [1.0, -1.5, math.nan, torch.tensor([0.1, 2.0])])
def test_correlation_outside_its_range(rho):
    with pytest.raises(ValueError, match="rho"):
        CorrelatedGaussian(2, rho)


def test_dim_below_one():
    with pytest.raises(ValueError, match="dim"):
        CorrelatedGaussian(0, 0.5)


def test_joint_gaussian_contains_the_toy_task(generator):
    eye, zero = torch.eye(2, dtype=DOUBLE), torch.zeros(2, 2, dtype=DOUBLE)
    task = JointGaussian(torch.cat([eye, zero], 1), torch.cat([0.6 * eye, 0.8 * eye], 1))
    toy = CorrelatedGaussian(2, torch.tensor(0.6, dtype=DOUBLE))
    assert float(task.mutual_information()) == pytest.approx(float(toy.mutual_information()))
    x, z = task.sample(7, generator)
    joint_x, joint_z, marginal_x, marginal_z = task.scores(x, z)
    for part, expected in zip((joint_x, joint_z), toy.score_joint(x, z), strict=True):
        torch.testing.assert_close(part, expected)
    torch.testing.assert_close(marginal_x, -x)
    torch.testing.assert_close(marginal_z, -z)


def test_samples_do_not_depend_on_the_device(device):
    here = CorrelatedGaussian(2, torch.tensor(0.5)).sample(10, torch.Generator().manual_seed(0))
    there = CorrelatedGaussian(2, torch.tensor(0.5, device=device)).sample(10, torch.Generator().manual_seed(0))
    for a, b in zip(here, there, strict=True):
        assert b.device.type == device.type
        torch.testing.assert_close(a, b.cpu())
