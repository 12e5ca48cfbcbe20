"""The surrogates beyond entropy and mutual information against closed forms; see also test_beyond.py."""

import math

import pytest
import torch

from migelib import (
    SSGE,
    DenoisingScore,
    GaussianScore,
    NoGradientWarning,
    conditional_entropy_surrogate,
    conditional_mutual_information_surrogate,
    kl_surrogate,
    total_correlation_surrogate,
)
from migelib.scores import DenoisingState
from migelib.tasks import gaussian_log_prob


class CountedGaussian:
    """GaussianScore that keeps the shapes of the samples it was fitted to."""

    def __init__(self):
        self.fits = []

    def fit(self, samples):
        self.fits.append(tuple(samples.shape))
        return GaussianScore().fit(samples)


class PairedGaussian(CountedGaussian):
    """That with a joint fit, so that the surrogates take the path of the default estimator."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def fit_pair(self, x, z):
        self.pairs.append((x.shape[-1], z.shape[-1]))
        joint = torch.cat([x, z], -1)
        difference = GaussianScore().fit(joint)(joint)
        marginal = torch.cat([GaussianScore().fit(v)(v) for v in (x, z)], -1)
        return (difference - marginal).split([x.shape[-1], z.shape[-1]], -1)


ESTIMATORS = [pytest.param(CountedGaussian, id="fit"), pytest.param(PairedGaussian, id="fit_pair")]


def log_det(*variables):
    """Half the log-determinant of the covariance of samples: their entropy, up to a constant, if they are Gaussian."""
    z = torch.cat(variables, -1)
    return 0.5 * torch.logdet((z - z.mean(-2, keepdim=True)).mT @ (z - z.mean(-2, keepdim=True)) / z.shape[-2])


def target(points):
    return -0.5 * (points - 1).square().sum(-1) / 3


SURROGATES = {
    "conditional entropy": (
        lambda x, z, w, e: conditional_entropy_surrogate(z, w, e),
        lambda x, z, w: log_det(z, w) - log_det(w),
    ),
    "conditional information": (
        conditional_mutual_information_surrogate,
        lambda x, z, w: log_det(x, w) + log_det(z, w) - log_det(x, z, w) - log_det(w),
    ),
    "total correlation": (
        lambda x, z, w, e: total_correlation_surrogate(torch.cat([x, z, w], -1), e),
        lambda x, z, w: sum(log_det(c) for c in torch.cat([x, z, w], -1).split(1, -1)) - log_det(x, z, w),
    ),
    "kl": (
        lambda x, z, w, e: kl_surrogate(z, target, e),
        lambda x, z, w: -log_det(z) - target(z).mean(),
    ),
}
CASES = [
    (measure, case)
    for measure, cases in {
        "conditional entropy": ("z", "w", "zw"),
        "conditional information": ("x", "z", "w", "xz", "xw", "zw", "xzw"),
        "total correlation": ("x", "zw", "xzw"),
        "kl": ("z",),
    }.items()
    for case in cases
]


def groups(case, generator, n=40, batch=()):
    """Correlated samples x, z, w of 2, 3 and 1 coordinates; those named in `case` require a gradient."""
    mixing = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    noise = torch.randn(*batch, n, 6, dtype=torch.float64, generator=generator)
    parts = dict(zip("xzw", (noise @ mixing).split([2, 3, 1], -1), strict=True))
    return [part.contiguous().requires_grad_(name in case) for name, part in parts.items()]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("measure", "case"), CASES)
def test_gaussian_scores_give_the_gradient_of_the_plug_in_value(measure, case, estimator, generator):
    """Both are the same function of the samples, whatever these are: the only difference is rounding."""
    surrogate, closed_form = SURROGATES[measure]
    variables = groups(case, generator)
    free = [v for v in variables if v.requires_grad]
    estimate = torch.autograd.grad(surrogate(*variables, estimator()), free)
    truth = torch.autograd.grad(closed_form(*variables), free)
    torch.testing.assert_close(estimate, truth)


@pytest.mark.parametrize("estimator", [None, SSGE()], ids=["default", "ssge"])
@pytest.mark.parametrize("measure", SURROGATES)
def test_a_batch_is_a_sum_of_its_entries(measure, estimator, generator):
    surrogate = SURROGATES[measure][0]
    variables = groups("xzw", generator, batch=(3,))
    together = torch.autograd.grad(surrogate(*variables, estimator), variables, allow_unused=True)
    for b in range(3):
        entry = [v[b].detach().requires_grad_() for v in variables]
        alone = torch.autograd.grad(surrogate(*entry, estimator), entry, allow_unused=True)
        for whole, part in zip(together, alone, strict=True):
            assert (whole is None) == (part is None)
            if part is not None:
                torch.testing.assert_close(whole[b], part)


@pytest.mark.parametrize(
    ("measure", "case", "fits", "pairs"),
    [
        ("conditional entropy", "z", [(40, 4)], [(3, 1)]),
        ("conditional entropy", "w", [(40, 4), (40, 1)], [(3, 1)]),
        ("conditional information", "z", [(40, 4), (40, 6)], [(2, 4)]),
        ("conditional information", "x", [(40, 3), (40, 6)], [(3, 3)]),
        ("conditional information", "w", [(40, 3), (40, 4), (40, 6), (40, 1)], [(2, 4), (2, 1)]),
        ("total correlation", "xzw", [(6, 40, 1), (40, 6)], [(3, 3), (1, 2), (1, 1), (1, 2), (1, 1)]),
        ("kl", "z", [(40, 3)], []),
    ],
)
def test_only_what_depends_on_the_parameters_is_computed(measure, case, fits, pairs, generator):
    variables = groups(case, generator)
    for estimator in (CountedGaussian(), PairedGaussian()):
        SURROGATES[measure][0](*variables, estimator).backward()
        assert [v.grad is not None for v in variables] == [v.requires_grad for v in variables]
        if isinstance(estimator, PairedGaussian):
            assert estimator.fits == {"conditional entropy": [(40, 3)] * (case == "z"), "kl": fits}.get(measure, [])
            assert sorted(estimator.pairs) == sorted(pairs)
        else:
            assert sorted(estimator.fits) == sorted(fits)


@pytest.mark.parametrize("measure", SURROGATES)
def test_without_a_gradient_nothing_is_fitted(measure, generator):
    estimator = CountedGaussian()
    with pytest.warns(NoGradientWarning):
        assert not SURROGATES[measure][0](*groups("", generator), estimator).requires_grad
    assert estimator.fits == []


def test_conditional_information_is_symmetric(generator):
    x, z, w = groups("xz", generator)
    one = torch.autograd.grad(conditional_mutual_information_surrogate(x, z, w, SSGE()), (x, z))
    other = torch.autograd.grad(conditional_mutual_information_surrogate(z, x, w, SSGE()), (x, z))
    torch.testing.assert_close(one, other)


def test_kl_ignores_the_constant_and_reaches_the_parameters_of_p(generator):
    z = torch.randn(50, 2, dtype=torch.float64, generator=generator).requires_grad_()
    mean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(kl_surrogate(z, lambda v: gaussian_log_prob(v - mean) + 7), (z, mean))
    (alone,) = torch.autograd.grad(kl_surrogate(z, lambda v: gaussian_log_prob(v - mean.detach())), z)
    torch.testing.assert_close(gradients[0], alone)
    torch.testing.assert_close(gradients[1], -z.detach().mean(0))


def test_kl_of_a_gaussians_scale(generator):
    r"""d KL / d sigma = d (sigma - 1 / sigma); with a Gaussian score all of the error is that of mean |eps|^2."""
    sigma = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(100, 3, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(kl_surrogate(sigma * noise, gaussian_log_prob, GaussianScore()), sigma)
    assert float(gradient) == pytest.approx(2 * float(noise.square().sum(-1).mean()) - 3 / 2)


GOOD = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
BAD = [
    pytest.param(GOOD[:4], ValueError, r"\(4, 2\)", id="length"),
    pytest.param(GOOD[None], ValueError, r"\(1, 5, 2\)", id="batch"),
    pytest.param(GOOD.double(), TypeError, "dtype", id="dtype"),
    pytest.param(torch.ones(5, 2), ValueError, "equal", id="all equal"),
    pytest.param(GOOD.long(), TypeError, "int64", id="integer"),
    pytest.param(GOOD * math.nan, ValueError, "NaN", id="NaN"),
    pytest.param(None, TypeError, "NoneType", id="None"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD)
def test_bad_arguments_are_named(bad, error, message):
    for name in ("z", "given"):
        with pytest.raises(error, match=rf"{name}.*{message}"):
            conditional_entropy_surrogate(**({"z": GOOD, "given": GOOD} | {name: bad}))
    for name in ("x", "z", "given"):
        with pytest.raises(error, match=rf"{name}.*{message}"):
            conditional_mutual_information_surrogate(**({"x": GOOD, "z": GOOD, "given": GOOD} | {name: bad}))


@pytest.mark.parametrize("surrogate", [total_correlation_surrogate, lambda z: kl_surrogate(z, gaussian_log_prob)])
@pytest.mark.parametrize(("bad", "error", "message"), BAD[3:])
def test_bad_samples_are_named(surrogate, bad, error, message):
    with pytest.raises(error, match=rf"z.*{message}"):
        surrogate(bad)


def test_total_correlation_needs_two_coordinates_that_vary():
    with pytest.raises(ValueError, match=r"z.*two coordinates.*\(5, 1\)"):
        total_correlation_surrogate(GOOD[:, :1])
    with pytest.raises(ValueError, match=r"z, a coordinate.*equal"):
        total_correlation_surrogate(torch.cat([GOOD, torch.ones(5, 1)], -1))


@pytest.mark.parametrize(
    ("log_prob", "error", "message"),
    [
        (None, TypeError, "log_prob.*function.*NoneType"),
        (lambda z: 0.0, TypeError, "log_prob.*return.*float"),
        (lambda z: z.sum(-1).long(), TypeError, "log_prob.*int64"),
        (lambda z: z, ValueError, r"log_prob.*\(5,\).*\(5, 2\)"),
        (lambda z: z.sum(), ValueError, r"log_prob.*\(5,\).*\(\)"),
        (lambda z: z.sum(-1, keepdim=True), ValueError, r"log_prob.*\(5, 1\)"),
        (lambda z: z.sum(-1).log(), ValueError, "log_prob.*finite"),
    ],
)
def test_bad_log_prob(log_prob, error, message):
    with pytest.raises(error, match=message):
        kl_surrogate(GOOD, log_prob)


@pytest.mark.parametrize("measure", SURROGATES)
def test_unknown_estimator(measure):
    with pytest.raises(ValueError, match=r"estimator.*'best'"):
        SURROGATES[measure][0](GOOD, GOOD, GOOD, "best")


def test_each_information_of_a_total_correlation_keeps_networks_of_its_own():
    state = DenoisingState()
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    total_correlation_surrogate(z, DenoisingScore(steps=1, state=state))
    assert sum(len(part.networks) for part in (state, *state.parts.values())) == 9  # three informations of three each
