"""EGE and MIGE against closed forms."""

import math

import pytest
import torch

from migelib import (
    SSGE,
    GaussianScore,
    NoGradientWarning,
    Tikhonov,
    entropy_surrogate,
    mutual_information_surrogate,
)
from migelib.tasks import CorrelatedGaussian, JointGaussian, LinearGaussian


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_entropy_gradient_of_a_gaussians_scale(scale, device):
    """dH / d sigma = d / sigma. SSGE() at d = 2, n = 300 gave 0.965 +/- 0.017 of it over 40 other seeds."""
    ratios = []
    for seed in range(5):
        sigma = torch.tensor(scale, device=device, requires_grad=True)
        noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(seed)).to(device)
        (gradient,) = torch.autograd.grad(entropy_surrogate(sigma * noise, SSGE()), sigma)
        ratios.append(float(gradient) * scale / 2)
    # Four standard errors of the difference between a mean of five and of forty.
    assert sum(ratios) / 5 == pytest.approx(0.965, abs=4 * 0.017 * math.sqrt(1 / 5 + 1 / 40))


def test_gaussian_score_gives_the_exact_entropy_gradient_of_a_linear_sampler(generator):
    """Sampling errors cancel, see book/entropy-gradients: the only error is rounding."""
    loading = torch.randn(5, 5, dtype=torch.float64, generator=generator).requires_grad_()
    task = LinearGaussian(loading)
    surrogate = entropy_surrogate(task.sample(20, generator), GaussianScore())
    (gradient,) = torch.autograd.grad(surrogate, loading)
    torch.testing.assert_close(gradient, task.entropy_gradient())
    (closed_form,) = torch.autograd.grad(task.entropy(), loading)
    torch.testing.assert_close(gradient, closed_form)


@pytest.mark.parametrize("rho", [-0.6, 0.3, 0.6])
def test_mi_gradient_of_the_toy_task(rho, device):
    """dI / d rho = d rho / (1 - rho^2). Over 40 other seeds, d = 2, n = 300, the spread of one run was below 0.11 nats,
    and the bias below 0.07: five runs lie within four standard errors of that. A wrong sign and a dropped factor d
    fail (seen for each). A missing marginal term would not, since y's distribution does not depend on rho: the next
    test sees that."""
    gradients = []
    for seed in range(5):
        parameter = torch.tensor(rho, device=device, requires_grad=True)
        task = CorrelatedGaussian(2, parameter)
        x, y = task.sample(300, torch.Generator().manual_seed(seed))
        (gradient,) = torch.autograd.grad(mutual_information_surrogate(x, y, SSGE()), parameter)
        gradients.append(float(gradient))
    truth = 2 * rho / (1 - rho**2)
    assert sum(gradients) / 5 == pytest.approx(truth, abs=0.07 + 4 * 0.11 / math.sqrt(5))


def flat_gradient(output, inputs):
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(output, inputs)])


def linear_pair(generator):
    """Two noisy views of one source; parameters b (in x) and a (in z)."""
    b = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    a = torch.randn(2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    eye3, eye2 = torch.eye(3, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    x_loading = torch.cat([b, eye3, torch.zeros(3, 2, dtype=torch.float64)], 1)
    z_loading = torch.cat([a, torch.zeros(2, 3, dtype=torch.float64), eye2], 1)
    return JointGaussian(x_loading, z_loading), b, a


@pytest.mark.parametrize("case", ["only z", "only x", "both"])
def test_mi_gradient_in_every_case(case, generator):
    task, b, a = linear_pair(generator)
    parameters = {"only z": [a], "only x": [b], "both": [b, a]}[case]
    truth = flat_gradient(task.mutual_information(), parameters)
    errors = []
    for n in (1000, 100_000):
        x, z = task.sample(n, generator)
        x, z = (x.detach() if case == "only z" else x), (z.detach() if case == "only x" else z)
        estimate = flat_gradient(mutual_information_surrogate(x, z, GaussianScore()), parameters)
        errors.append(float((estimate - truth).norm() / truth.norm()))
    # 100 times the samples: a tenth of the error. Over 20 seeds it was 0.014 +/- 0.008 at n = 100,000.
    assert errors[1] < 0.014 + 4 * 0.008
    assert errors[1] < errors[0]


def test_only_arguments_that_require_a_gradient_get_one(generator):
    x = torch.randn(50, 2, generator=generator)
    z = (x + torch.randn(50, 2, generator=generator)).requires_grad_()
    mutual_information_surrogate(x, z).backward()
    assert x.grad is None
    assert z.grad is not None
    with pytest.warns(NoGradientWarning):
        assert not mutual_information_surrogate(x, z.detach()).requires_grad


def test_mutual_information_is_symmetric(generator):
    x, z = torch.randn(2, 60, 3, dtype=torch.float64, generator=generator).requires_grad_()
    (one,) = torch.autograd.grad(mutual_information_surrogate(x, z.detach()), x)
    (other,) = torch.autograd.grad(mutual_information_surrogate(z.detach(), x), x)
    torch.testing.assert_close(one, other)


def test_a_batch_is_a_sum_of_its_entries(generator):
    x, z = torch.randn(2, 3, 40, 2, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    z.requires_grad_()
    together = torch.autograd.grad(mutual_information_surrogate(x, z) + entropy_surrogate(z), (x, z))
    for b in range(3):
        x_b, z_b = x[b].detach().requires_grad_(), z[b].detach().requires_grad_()
        alone = torch.autograd.grad(mutual_information_surrogate(x_b, z_b) + entropy_surrogate(z_b), (x_b, z_b))
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[b], part)


def test_the_score_is_held_fixed(generator):
    """The gradient is -score / n, with no term from the score's own dependence on z."""
    z = torch.randn(30, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    (gradient,) = torch.autograd.grad(entropy_surrogate(z, SSGE()), z)
    torch.testing.assert_close(gradient, -SSGE().fit(z)(z.detach()) / 30)


def test_estimators_by_name(generator):
    z = torch.randn(30, 2, generator=generator, requires_grad=True)
    by_name, own = (torch.autograd.grad(entropy_surrogate(z, e), z)[0] for e in ("gaussian", GaussianScore()))
    assert torch.equal(by_name, own)


PAIRS = [
    pytest.param(torch.randn(5, 2), torch.randn(6, 2), ValueError, r"x and z.*\(5, 2\).*\(6, 2\)", id="length"),
    pytest.param(torch.randn(5, 2), torch.randn(1, 5, 2), ValueError, r"x and z.*\(1, 5, 2\)", id="batch"),
    pytest.param(torch.randn(5, 2), torch.randn(1, 2), ValueError, r"z.*at least two.*\(1, 2\)", id="no broadcast"),
    pytest.param(torch.randn(5, 2), torch.randn(5, 2).double(), TypeError, r"x and z.*dtype", id="dtype"),
    pytest.param(torch.ones(5, 2), torch.randn(5, 2), ValueError, r"x.*equal", id="x all equal"),
    pytest.param(torch.randn(5, 2), torch.ones(5, 2), ValueError, r"z.*equal", id="z all equal"),
    pytest.param(torch.ones(5, 2).long(), torch.randn(5, 2), TypeError, r"x.*int64", id="integer x"),
    pytest.param(torch.randn(5, 2), torch.full((5, 2), math.nan), ValueError, r"z.*NaN", id="NaN in z"),
    pytest.param(torch.randn(5, 2), None, TypeError, r"z.*NoneType", id="None"),
]


@pytest.mark.parametrize(("x", "z", "error", "message"), PAIRS)
def test_bad_pairs(x, z, error, message):
    with pytest.raises(error, match=message):
        mutual_information_surrogate(x, z)


def test_different_devices_are_refused():
    from migelib.validation import check_pair

    class Elsewhere(torch.Tensor):  # stands for a CUDA tensor, which cannot be made on every machine
        device = torch.device("cuda")

    elsewhere = torch.randn(5, 2).as_subclass(Elsewhere)
    with pytest.raises(ValueError, match=r"x and z.*device.*cpu.*cuda"):
        check_pair(torch.randn(5, 2), elsewhere)


@pytest.mark.parametrize("surrogate", [entropy_surrogate, lambda z, e: mutual_information_surrogate(z, z, e)])
def test_unknown_estimator(surrogate):
    with pytest.raises(ValueError, match=r"estimator.*'best'"):
        surrogate(torch.randn(5, 2), "best")


@pytest.mark.parametrize("estimator", [SSGE(), Tikhonov(), None])
def test_autocast_does_not_reach_the_estimators(estimator):
    x, z = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(0))

    def gradients():
        moved = (x + z).requires_grad_()
        surrogate = entropy_surrogate(moved, estimator) + mutual_information_surrogate(x, moved, estimator)
        return torch.autograd.grad(surrogate, moved)[0]

    plain = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gradients(), plain, rtol=0, atol=0)
