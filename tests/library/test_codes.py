"""Codes with a known conditional, against closed forms and slow oracles; a batch of codes against a loop."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from migelib import SSGE
from migelib.codes import (
    Centres,
    CodeMoments,
    GaussianCode,
    code_information_surrogate,
    information_bracket,
    mixture_information_surrogate,
    mixture_of_classes_surrogate,
    pairwise_information,
)

ONE = torch.ones(5, 1, 3)


@pytest.fixture
def code():
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(12, 3, generator=generator, dtype=torch.float64) + 5
    scale = 0.3 + torch.rand(12, 3, generator=generator, dtype=torch.float64)
    return GaussianCode(mean.requires_grad_(), scale.requires_grad_())


def conditionals(code):
    return [Independent(Normal(m, s), 1) for m, s in zip(code.mean, code.scale, strict=True)]


def gradient(surrogate, code):
    found = torch.autograd.grad(surrogate, (code.mean, code.scale), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(code.mean) if g is None else g for g in found]


def same_gradient(a, b, code):
    return all(torch.allclose(x, y, atol=1e-10) for x, y in zip(gradient(a, code), gradient(b, code), strict=True))


def test_entropy_rate_and_pairwise_divergence_are_those_of_torch(code):
    each = conditionals(code)
    prior = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
    assert torch.isclose(code.conditional_entropy(), torch.stack([q.entropy() for q in each]).mean())
    assert torch.isclose(code.rate(), torch.stack([kl_divergence(q, prior) for q in each]).mean())
    kl = torch.stack([torch.stack([kl_divergence(p, q) for q in each]) for p in each])
    assert torch.allclose(code.pairwise_kl(), kl, atol=1e-9)


def test_log_conditional_is_that_of_torch(code):
    points = code.sample(torch.Generator().manual_seed(1))[:7].detach()
    assert torch.allclose(code.log_conditional(points), torch.stack([q.log_prob(points) for q in conditionals(code)]))


@pytest.mark.parametrize("leave_out", [False, True])
def test_mixture_score_is_the_gradient_of_the_log_density(code, leave_out):
    points = code.sample(torch.Generator().manual_seed(1)).detach().requires_grad_()
    log_density = torch.stack([q.log_prob(points) for q in conditionals(code.detach())])
    if leave_out:
        log_density = torch.where(torch.eye(12, dtype=torch.bool), -torch.inf, log_density)
    (score,) = torch.autograd.grad(log_density.logsumexp(0).sum(), points)
    assert torch.allclose(code.mixture_score(points, leave_out), score)


def test_gaussian_surrogate_has_the_gradient_of_the_gaussian_information(code):
    centred = code.mean - code.mean.mean(0)
    covariance = centred.mT @ centred / len(code.mean) + torch.diag(code.scale.square().mean(0))
    information = 0.5 * torch.logdet(covariance) - code.scale.log().sum(-1).mean()
    assert torch.isclose(code.gaussian_information(), information)
    assert same_gradient(code.gaussian_surrogate(), information, code)


def test_gaussian_surrogate_is_the_expectation_over_the_noise(code):
    # The affine score at samples, with antithetic noise: odd terms cancel exactly, squares are 1 for noise of ±1.
    moments = CodeMoments.of(code)
    precision = torch.linalg.inv(moments.covariance())
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    samples = [code.mean + code.scale * sign for sign in signs]
    entropy = sum((((z - moments.mean) @ precision).detach() * z).sum(-1).mean() for z in samples) / len(samples)
    assert same_gradient(code.gaussian_surrogate(moments), entropy - code.conditional_entropy(), code)


def test_the_scale_does_not_drift_with_the_gaussian_but_does_with_ssge(code):
    z = code.sample(torch.Generator().manual_seed(1))
    drifts = []
    for surrogate in (code.gaussian_surrogate(), code_information_surrogate(code, z, SSGE())):
        by_mean, by_scale = gradient(surrogate, code)
        drifts.append(float((by_mean * code.mean.detach()).sum() + (by_scale * code.scale.detach()).sum()))
    assert abs(drifts[0]) < 1e-10
    assert drifts[1] < -0.1  # a shrunk score: the penalty is lowered by mere growth


def test_the_gaussian_keeps_its_digits_far_from_the_origin(code):
    near = GaussianCode(code.mean.detach().float(), code.scale.detach().float())
    far = GaussianCode((near.mean + 2**13).requires_grad_(), near.scale.clone().requires_grad_())
    near = GaussianCode((far.mean - 2**13).double().detach().requires_grad_(), near.scale.double().requires_grad_())
    torch.testing.assert_close(far.gaussian_information().double(), near.gaussian_information(), rtol=0, atol=1e-5)
    for found, expected in zip(
        gradient(far.gaussian_surrogate(), far), gradient(near.gaussian_surrogate(), near), strict=True
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_autocast_reaches_no_matrix_of_a_code(code):
    code = GaussianCode(code.mean.detach().float().requires_grad_(), code.scale.detach().float().requires_grad_())
    z = code.sample(torch.Generator().manual_seed(1)).detach()
    centres = Centres(CodeMoments.of(code).mean[None], torch.ones(1), CodeMoments.of(code))

    def values():
        return (
            code.gaussian_surrogate(),
            code.gaussian_information(),
            mixture_of_classes_surrogate(code, z, centres),
            pairwise_information(code),
            code.log_conditional(z).diagonal().mean(),
            code.mixture_score(z),
        )

    plain = values()
    with torch.autocast("cpu", torch.bfloat16):
        reached = values()
    torch.testing.assert_close(reached, plain, rtol=0, atol=0)
    for found, expected in zip(reached[:-1], plain[:-1], strict=True):
        torch.testing.assert_close(gradient(found, code), gradient(expected, code), rtol=0, atol=0)


def test_one_class_is_the_gaussian(code):
    moments = CodeMoments.of(code)
    deviations = CodeMoments.of(GaussianCode(code.mean - moments.mean, code.scale))
    one = Centres(moments.mean[None], torch.ones(1).double(), deviations)
    assert same_gradient(mixture_of_classes_surrogate(code, code.mean, one), code.gaussian_surrogate(), code)


def test_classes_have_the_score_of_their_mixture(code):
    means = torch.tensor([[3.0, 5.0, 5.0], [7.0, 5.0, 4.0]]).double()
    weights = torch.tensor([0.3, 0.7]).double()
    within = CodeMoments(
        torch.zeros(3).double(), 2 * torch.eye(3).double() + 0.5, torch.tensor([0.1, 0.2, 0.3]).double()
    )
    covariance = within.second + torch.diag(within.noise)
    mixture = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariance))
    points = code.mean.detach().clone().requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_prob(points).sum(), points)
    by_mean, _ = gradient(mixture_of_classes_surrogate(code, code.mean, Centres(means, weights, within)), code)
    assert torch.allclose(by_mean, -score / len(points))


def test_mixture_surrogate_vanishes_where_conditionals_do_not_overlap():
    mean = (100.0 * torch.arange(4)[:, None]).requires_grad_()
    code = GaussianCode(mean, torch.ones(4, 1).requires_grad_())
    z = code.sample(torch.Generator().manual_seed(0))
    assert all(float(g.abs().max()) < 1e-4 for g in gradient(mixture_information_surrogate(code, z), code))
    assert float(gradient(mixture_information_surrogate(code, z, leave_out=True), code)[0].abs().max()) > 1


def test_pairwise_information_is_zero_for_equal_and_log_n_for_distant_conditionals():
    scale = torch.ones(8, 2)
    assert float(pairwise_information(GaussianCode(torch.ones(8, 2), scale))) == pytest.approx(0, abs=1e-5)
    far = GaussianCode(100.0 * torch.arange(8)[:, None].expand(8, 2), scale)
    assert float(pairwise_information(far)) == pytest.approx(math.log(8), abs=1e-5)


def test_bracket_holds_the_information_of_a_linear_code():
    loading = torch.tensor([[2.0, 0.5], [0.0, 1.0]]).double()
    mean = torch.randn(3000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ loading.mT
    code = GaussianCode(mean, torch.ones_like(mean))
    information = 0.5 * float(torch.logdet(loading @ loading.mT + torch.eye(2)))
    low, high = (float(bound) for bound in information_bracket(code, torch.Generator().manual_seed(1)))
    # Spread of ln q(z | x) / q(z) over 3,000 samples: 0.03 nat; blocks of 1,024 are crossed.
    assert low < high
    assert low == pytest.approx(information, abs=0.08)
    assert high == pytest.approx(information, abs=0.08)
    lonely = GaussianCode(1000 * code.mean[:50], code.scale[:50])
    low, _ = information_bracket(lonely, torch.Generator().manual_seed(1))
    assert float(low) == pytest.approx(math.log(50), abs=1e-6)


def test_bracket_is_that_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(1500, 2, dtype=torch.float64, generator=generator)  # two blocks
    code = GaussianCode(mean, torch.full_like(mean, 0.1))
    matrix = code.log_conditional(code.sample(torch.Generator().manual_seed(1)))
    own, others = matrix.diagonal(), torch.where(torch.eye(1500, dtype=torch.bool), -torch.inf, matrix)
    low = (own - matrix.logsumexp(0) + math.log(1500)).mean()
    high = (own - others.logsumexp(0) + math.log(1499)).mean()
    torch.testing.assert_close(information_bracket(code, torch.Generator().manual_seed(1)), (low, high))


def a_batch():
    """Codes [2, 3, 8, 4], samples of them, and a mixture of two classes for each."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)

    code = GaussianCode(2 * numbers(8, 4) + 5, 0.3 + numbers(8, 4).abs())
    z = code.reparameterised(numbers(8, 4))
    within = CodeMoments.of(code.shifted(-code.mean.mean(-2, keepdim=True)))
    return code, z, Centres(5 + numbers(2, 4), numbers(2).softmax(-1), within)


def entry(value, at):
    """One entry of the batch of whatever has tensors."""
    if isinstance(value, torch.Tensor):
        return value[at].detach().clone()
    return type(value)(**{name: entry(part, at) for name, part in vars(value).items()})


def a_graph(code):
    return GaussianCode(code.mean.detach().requires_grad_(), code.scale.detach().requires_grad_())


MEASURES = {
    "conditional_entropy": lambda code, z, _: code.conditional_entropy(),
    "rate": lambda code, z, _: code.rate(),
    "log_conditional": lambda code, z, _: code.log_conditional(z),
    "pairwise_kl": lambda code, z, _: code.pairwise_kl(),
    "mixture_score": lambda code, z, _: code.mixture_score(z),
    "mixture_score, leave out": lambda code, z, _: code.mixture_score(z, leave_out=True),
    "gaussian_information": lambda code, z, _: code.gaussian_information(),
    "pairwise_information": lambda code, z, _: pairwise_information(code),
    "reparameterised": lambda code, z, _: code.reparameterised(z),
    "shifted": lambda code, z, _: code.shifted(z).mean,
    "moments": lambda code, z, _: CodeMoments.of(code).covariance(),
    "updated": lambda code, z, centres: CodeMoments.of(code).updated(centres.within, 0.7).covariance(),
    # 32 numbers a code, a multiple of torch's block of 16: the generator draws the same ones at once and in turn.
    "sample": lambda code, z, _: code.sample(torch.Generator().manual_seed(1)),
    "bracket": lambda code, z, _: torch.stack(information_bracket(code, torch.Generator().manual_seed(1)), -1),
}
DRAWN = ("sample", "bracket")


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_of_a_batch_is_that_of_every_code(measure):
    code, z, centres = a_batch()
    if measure in DRAWN:  # one generator for all: only its first code has the numbers of a code alone
        together, places = MEASURES[measure](code, z, centres), [(0, 0)]
    else:
        together, places = MEASURES[measure](code, z, centres), [(i, j) for i in range(2) for j in range(3)]
    assert together.shape[:2] == (2, 3)
    for at in places:
        alone = MEASURES[measure](*(entry(value, at) for value in (code, z, centres)))
        torch.testing.assert_close(together[at], alone)


SURROGATES = {
    "gaussian": lambda code, z, _: code.gaussian_surrogate(),
    "gaussian, moments given": lambda code, z, centres: code.gaussian_surrogate(centres.within),
    "code_information": lambda code, z, _: code_information_surrogate(code, code.reparameterised(z), SSGE()),
    "mixture_information": lambda code, z, _: mixture_information_surrogate(code, code.reparameterised(z)),
    "classes": mixture_of_classes_surrogate,
}


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_surrogate_of_a_batch_has_the_gradient_of_every_code(surrogate):
    code, z, centres = a_batch()
    code = a_graph(code)
    together = gradient(SURROGATES[surrogate](code, z, centres), code)
    for at in [(i, j) for i in range(2) for j in range(3)]:
        alone = a_graph(entry(code, at))
        expected = gradient(SURROGATES[surrogate](alone, entry(z, at), entry(centres, at)), alone)
        torch.testing.assert_close([g[at] for g in together], expected)


def test_a_gaussian_without_a_density_has_no_gradient_and_leaves_the_others_alone():
    code, _, _ = a_batch()
    flat = CodeMoments(code.mean[0, 0, 0], torch.zeros(4, 4).double(), torch.zeros(4).double())
    mine = CodeMoments.of(code)
    second = mine.second.clone()
    second[1, 1] = flat.second
    code = a_graph(code)
    by_mean, _ = gradient(code.gaussian_surrogate(CodeMoments(mine.mean, second, mine.noise)), code)
    assert by_mean[1, 1].isnan().all()
    assert int(by_mean.isnan().sum()) == by_mean[1, 1].numel()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianCode(torch.zeros(2, 3), torch.ones(3, 2)), "one shape"),
        (lambda: GaussianCode(torch.zeros(3), torch.ones(3)), r"\[\*batch, n, d\], got \(3,\)"),
        (lambda: GaussianCode(torch.zeros(2, 3), torch.zeros(2, 3)), "positive"),
        (
            lambda: GaussianCode(torch.zeros(5, 1, 3), torch.ones(5, 1, 3)).mixture_score(torch.zeros(5, 1, 3), True),
            "two",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("mean", "scale", "message"),
    [
        (torch.zeros(2, 3).half(), torch.ones(2, 3).half(), r"mean: expected .* float32 or float64, got torch.float16"),
        (torch.zeros(2, 3), torch.ones(2, 3).double(), "mean and scale: expected one dtype"),
        (torch.zeros(2, 3), 1.0, "scale: expected a torch.Tensor .* got float"),
    ],
)
def test_a_code_of_another_dtype_is_named(mean, scale, message):
    with pytest.raises(TypeError, match=message):
        GaussianCode(mean, scale)
