"""`reference=`: further samples that only the score is fitted to."""

import math

import pytest
import torch
from torch.autograd import forward_ad

from migelib import (
    SSGE,
    Adaptive,
    DenoisingScore,
    GaussianScore,
    NoGradientWarning,
    RatioScore,
    codes,
    conditional_entropy_surrogate,
    conditional_mutual_information_surrogate,
    entropy_surrogate,
    kl_surrogate,
    mutual_information_surrogate,
    total_correlation_surrogate,
)
from migelib.tasks import CorrelatedGaussian


def log_prob(z):
    return -z.square().sum(-1) / 2


def take(variables, reference, *indices):
    """Some of the variables, and the same of the reference."""
    return *(variables[i] for i in indices), None if reference is None else tuple(reference[i] for i in indices)


def entropy(variables, e, reference):
    z, r = take(variables, reference, 1)
    return entropy_surrogate(z, e, reference=r and r[0])


def information(variables, e, reference):
    x, z, r = take(variables, reference, 0, 1)
    return mutual_information_surrogate(x, z, e, reference=r)


def conditional_entropy(variables, e, reference):
    z, given, r = take(variables, reference, 1, 2)
    return conditional_entropy_surrogate(z, given, e, reference=r)


def conditional_information(variables, e, reference):
    return conditional_mutual_information_surrogate(*variables, e, reference=reference)


def total_correlation(variables, e, reference):
    return total_correlation_surrogate(
        torch.cat(variables, -1), e, reference=None if reference is None else torch.cat(reference, -1)
    )


def divergence(variables, e, reference):
    z, r = take(variables, reference, 1)
    return kl_surrogate(z, log_prob, e, reference=r and r[0])


MEASURES = [entropy, information, conditional_entropy, conditional_information, total_correlation, divergence]
ESTIMATORS = {
    "gaussian": GaussianScore(),
    "ssge": SSGE(),
    "adaptive": Adaptive(),
    "denoising": DenoisingScore(steps=2),
    "ratio": RatioScore(steps=2),
}


def variables(n, seed, *batch):
    """x, a tanh code z of it and a noisy copy w of z: dependent, and not Gaussian."""
    a, b, c = torch.randn(3, *batch, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = torch.tanh(a) + 0.5 * b
    return a, z, z + c


def gradients(measure, estimator, own, reference):
    own = [v.clone().requires_grad_() for v in own]
    found = torch.autograd.grad(measure(own, estimator, reference), own, allow_unused=True)
    return [g for g in found if g is not None]


def test_the_gaussian_score_has_the_moments_of_both():
    (_, z, _), (_, z_ref, _) = variables(30, 0), variables(50, 1)
    (gradient,) = gradients(entropy, GaussianScore(), (z, z, z), (z_ref,) * 3)
    both = torch.cat([z, z_ref])
    covariance = torch.cov(both.mT, correction=0)
    torch.testing.assert_close(gradient, torch.linalg.solve(covariance, (z - both.mean(0)).mT).mT / 30)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("measure", MEASURES)
def test_the_score_is_that_of_both_and_the_mean_that_of_the_batch(measure, estimator):
    own, reference = variables(40, 0), variables(60, 1)
    both = [torch.cat(parts) for parts in zip(own, reference, strict=True)]
    for gradient, whole in zip(
        gradients(measure, estimator, own, reference), gradients(measure, estimator, both, None), strict=True
    ):
        torch.testing.assert_close(40 * gradient, 100 * whole[:40], rtol=1e-6, atol=1e-9)
        assert float(gradient.norm()) > 0


@pytest.mark.parametrize("estimator", [SSGE(), Adaptive()])
@pytest.mark.parametrize("measure", MEASURES)
def test_batch_axes(measure, estimator):
    own, reference = variables(30, 0, 2, 3), variables(20, 1, 2, 3)
    together = gradients(measure, estimator, own, reference)
    alone = gradients(measure, estimator, [v[1, 2] for v in own], [v[1, 2] for v in reference])
    for whole, part in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1, 2], part, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_reference_gets_no_gradient(measure):
    own, reference = variables(30, 0), tuple(v.requires_grad_() for v in variables(20, 1))
    with pytest.warns(NoGradientWarning):
        assert not measure(own, SSGE(), reference).requires_grad
    gradients(measure, SSGE(), own, reference)
    assert all(v.grad is None for v in reference)


def test_a_reference_lowers_the_error_of_the_information_gradient():
    """Correlated Gaussians, rho = 0.6, in 8 + 8 dimensions, 64 samples: the score is SSGE's largest error there."""

    def error(seed, m):
        rho = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        task, generator = CorrelatedGaussian(8, rho), torch.Generator().manual_seed(seed)
        x, y = task.sample(64, generator)
        with torch.no_grad():
            reference = task.sample(m, generator) if m else None
        surrogate = mutual_information_surrogate(x, y, SSGE(), reference=reference)
        return abs(float(torch.autograd.grad(surrogate, rho)[0]) / (8 * 0.6 / (1 - 0.6**2)) - 1)

    gains = torch.tensor([error(seed, 0) - error(seed, 512) for seed in range(10)])
    assert gains.mean() > 2.26 * gains.std() / math.sqrt(10)  # 95 %, Student's t with nine degrees of freedom


def test_codes_take_a_reference():
    mean, noise, z_ref = variables(30, 0)[0], variables(30, 1)[0], variables(50, 2)[1]
    code = codes.GaussianCode(mean.requires_grad_(), torch.full_like(mean, 0.5))
    z = code.reparameterised(noise)
    surrogate = codes.code_information_surrogate(code, z, SSGE(), reference=z_ref)
    expected = entropy_surrogate(z, SSGE(), reference=z_ref)
    torch.testing.assert_close(*(torch.autograd.grad(s, mean, retain_graph=True)[0] for s in (surrogate, expected)))


# Torch's own: its forward mode scripts functions, and its compiler looks at gradients that are not there.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("estimator", [SSGE(), Adaptive()])
@pytest.mark.parametrize("measure", MEASURES)
def test_outside_plain_reverse_mode(measure, estimator):
    own, reference = variables(40, 0), variables(30, 1)
    here, one = torch.tensor(1.3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)

    def surrogate(a, model=lambda a, v: (v[0], a * v[0] + a.sin() * v[1], v[2])):
        return measure(model(a, own), estimator, tuple(model(a, reference)))  # the reference is held fixed all the same

    def slope(function):
        a = here.clone().requires_grad_()
        return torch.autograd.grad(function(a), a)[0]

    expected = slope(surrogate)
    torch.testing.assert_close(torch.func.jvp(surrogate, (here,), (one,))[1], expected)
    torch.testing.assert_close(torch.func.grad(surrogate)(here), expected)
    with forward_ad.dual_level():
        value = surrogate(forward_ad.make_dual(here, one))
        torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, expected)
    torch.compiler.reset()
    torch.testing.assert_close(slope(torch.compile(surrogate, backend="eager")), expected)
    with torch.inference_mode():
        value, made_here = surrogate(here.clone()).clone(), tuple(v.clone() for v in reference)
    assert float(value) == 0
    for one_way, other in zip(
        gradients(measure, estimator, own, made_here), gradients(measure, estimator, own, reference), strict=True
    ):
        torch.testing.assert_close(one_way, other)


Z, PAIR = torch.randn(5, 2), (torch.randn(5, 2), torch.randn(5, 3))
BAD = [
    pytest.param((Z,), torch.randn(7, 3), ValueError, r"reference for z.*\[m, 2\].*\(7, 3\)", id="coordinates"),
    pytest.param((Z,), torch.randn(1, 7, 2), ValueError, r"reference for z.*\(1, 7, 2\)", id="batch axes"),
    pytest.param((Z,), torch.randn(7, 2).double(), TypeError, r"reference for z.*float32.*float64", id="dtype"),
    pytest.param((Z,), torch.full((7, 2), math.nan), ValueError, r"reference for z.*NaN", id="NaN"),
    pytest.param((Z,), 7, TypeError, r"reference for z.*torch.Tensor.*int", id="no tensor"),
    pytest.param((Z,), (Z, Z), TypeError, r"reference.*samples of \(z\).*tuple", id="two for one"),
    pytest.param(PAIR, Z, TypeError, r"reference.*samples of \(x, z\).*2 tensors.*Tensor", id="one for two"),
    pytest.param(PAIR, (Z, None), TypeError, r"reference for z.*NoneType", id="half"),
    pytest.param(PAIR, PAIR[::-1], ValueError, r"reference for x.*\[m, 2\].*\(5, 3\)", id="order"),
    pytest.param(PAIR, (Z, PAIR[1][:4]), ValueError, r"reference.*as many.*\(5, 2\), \(4, 3\)", id="numbers"),
]


@pytest.mark.parametrize(("own", "reference", "error", "message"), BAD)
def test_bad_references(own, reference, error, message):
    surrogate = entropy_surrogate if len(own) == 1 else mutual_information_surrogate
    with pytest.raises(error, match=message):
        surrogate(*own, reference=reference)


def test_a_reference_on_another_device_is_refused():
    class Elsewhere(torch.Tensor):  # stands for a CUDA tensor, which cannot be made on every machine
        device = torch.device("cuda")

    with pytest.raises(ValueError, match=r"reference for z.*device.*cuda.*cpu"):
        entropy_surrogate(Z, reference=torch.randn(7, 2).as_subclass(Elsewhere))
