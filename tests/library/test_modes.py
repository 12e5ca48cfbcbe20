"""Surrogates outside plain reverse mode: forward mode, `torch.func`, `torch.compile`, inference mode."""

import pytest
import torch
from torch.autograd import forward_ad

from migelib import (
    KDE,
    SSGE,
    Adaptive,
    DenoisingScore,
    GaussianScore,
    Landweber,
    NuMethod,
    RatioScore,
    Stein,
    Tikhonov,
    codes,
    conditional_entropy_surrogate,
    conditional_mutual_information_surrogate,
    entropy_surrogate,
    kl_surrogate,
    mutual_information_surrogate,
    total_correlation_surrogate,
)
from migelib.scores import DenoisingState, Residual, Selected, Transformed
from migelib.transforms import Gaussianise, Whitening

# Torch's own: its forward mode scripts functions, and its compiler looks at gradients that are not there.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

X, NOISE, GIVEN = torch.randn(3, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3
HERE = torch.tensor(1.3, dtype=torch.float64)


def samples(a):
    return a * X + a.sin() * NOISE


MEASURES = {
    "entropy": lambda a, e: entropy_surrogate(samples(a), e),
    "information": lambda a, e: mutual_information_surrogate(X, samples(a), e),
    "information, first": lambda a, e: mutual_information_surrogate(samples(a), X, e),
    "information of labels": lambda a, e: mutual_information_surrogate(LABELS, samples(a), e),
    "conditional entropy": lambda a, e: conditional_entropy_surrogate(samples(a), GIVEN, e),
    "conditional information": lambda a, e: conditional_mutual_information_surrogate(samples(a), X, GIVEN, e),
    "total correlation": lambda a, e: total_correlation_surrogate(samples(a), e),
    "divergence": lambda a, e: kl_surrogate(samples(a), lambda z: -z.square().sum(-1) / 2, e),
}
ESTIMATORS = {
    "adaptive": Adaptive(),
    "ssge": SSGE(),
    "stein": Stein(),
    "tikhonov": Tikhonov(),
    "curl-free": Tikhonov(curl_free=True),
    "nu-method": NuMethod(),
    "landweber": Landweber(),
    "kde": KDE(),
    "gaussian": GaussianScore(),
    "denoising": DenoisingScore(steps=2),
    "ratio": RatioScore(steps=2),
    "residual": Residual(GaussianScore(), SSGE(shrinkage=True)),
    "whitened": Transformed(Whitening(), SSGE()),
    "gaussianised": Transformed(Gaussianise(), SSGE()),
    "selected": Selected([SSGE(), Transformed(Whitening(), KDE())]),
}


def code_measure(name):
    """A measure of a code whose means and scales depend on a."""

    def measure(a):
        code = codes.GaussianCode(a * X, (a * NOISE).exp())
        z = code.mean + code.scale * GIVEN
        if name == "score":
            return codes.code_information_surrogate(code, z, SSGE())
        if name == "gaussian":
            return code.gaussian_surrogate()
        if name == "classes":
            moments = codes.CodeMoments.of(code)
            return codes.mixture_of_classes_surrogate(
                code, z, codes.Centres(X[:2], torch.full((2,), 0.5, dtype=torch.float64), moments)
            )
        if name == "pairwise":
            return codes.pairwise_information(code)
        return codes.mixture_information_surrogate(code, z, leave_out=name == "mixture of the others")

    return measure


CODES = ["score", "gaussian", "classes", "pairwise", "mixture", "mixture of the others"]
CASES = [
    *(
        pytest.param(lambda a, m=measure, e=estimator: m(a, ESTIMATORS[e]), id=f"{name}-{estimator}")
        for name, measure in MEASURES.items()
        for estimator in ("adaptive", "ssge")
    ),
    *(pytest.param(code_measure(name), id=f"code-{name}") for name in CODES),
]


def slope(function):
    a = HERE.clone().requires_grad_()
    return torch.autograd.grad(function(a), a)[0]


@pytest.mark.parametrize("measure", CASES)
def test_forward_mode_has_the_value_of_reverse_mode(measure):
    expected, one = slope(measure), torch.ones_like(HERE)
    torch.testing.assert_close(torch.func.jvp(measure, (HERE,), (one,))[1], expected)
    torch.testing.assert_close(torch.func.grad(measure)(HERE), expected)
    with forward_ad.dual_level():
        value = measure(forward_ad.make_dual(HERE, one))
        torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, expected)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_forward_mode_with_every_estimator(estimator):
    measure = MEASURES["information"]
    with forward_ad.dual_level():
        value = measure(forward_ad.make_dual(HERE, torch.ones_like(HERE)), estimator)
        torch.testing.assert_close(
            forward_ad.unpack_dual(value).tangent, slope(lambda a: measure(a, estimator)), rtol=1e-6, atol=1e-9
        )


def test_transforms_under_which_no_score_can_be_fitted_raise():
    def entropy(a):
        return entropy_surrogate(samples(a), SSGE())

    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(torch.func.grad(entropy))(HERE.expand(2))
    for trained in (DenoisingScore(steps=1), RatioScore(steps=1)):
        with pytest.raises(RuntimeError, match=rf"{type(trained).__name__}.*torch\.func.*torch\.autograd"):
            torch.func.grad(lambda a, e=trained: entropy_surrogate(samples(a), e))(HERE)


# Each compilation takes a second: every estimator with one backend, every measure with the other.
COMPILED = [
    *(
        pytest.param(lambda a, e=e: mutual_information_surrogate(X, samples(a), e), "eager", id=name)
        for name, e in ESTIMATORS.items()
    ),
    *(
        pytest.param(lambda a, m=measure: m(a, Stein()), "aot_eager", id=f"{name}-aot")
        for name, measure in MEASURES.items()
    ),
    *(pytest.param(code_measure(name), "aot_eager", id=f"code-{name}-aot") for name in CODES),
]


@pytest.mark.parametrize(("measure", "backend"), COMPILED)
def test_compiled_losses_have_the_same_gradient(measure, backend):
    def loss(a):
        return a.sin() + 2 * measure(a)

    torch.compiler.reset()
    torch.testing.assert_close(slope(torch.compile(loss, backend=backend)), slope(loss))


def test_compilation_leaves_the_fit_out_of_the_graph():
    operations = []

    def record(graph, inputs):
        operations.extend(node.name for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    torch.compiler.reset()
    slope(torch.compile(lambda a: a.sin() + 2 * entropy_surrogate(a * X, SSGE()), backend=record))
    assert len(operations) == 4  # two products, a sine and a sum


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("estimator", ["adaptive", "ssge", "denoising", "selected"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_where_no_gradient_is_recorded_nothing_is_fitted(measure, estimator, mode, monkeypatch):
    estimator = ESTIMATORS[estimator]

    def forbidden(*_):
        raise AssertionError("fitted")

    for name in ("fit", "fit_pair"):
        if hasattr(estimator, name):
            monkeypatch.setattr(type(estimator), name, forbidden)
    with mode():
        assert float(measure(HERE.clone().requires_grad_(), estimator)) == 0


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_scores_fitted_in_inference_mode(estimator):
    expected = estimator.fit(X)(X)
    with torch.inference_mode():
        score = estimator.fit(X.clone())
        inside = score(X.clone())
    torch.testing.assert_close(inside.clone(), expected)
    torch.testing.assert_close(score(X), expected)


def test_a_network_goes_on_training_after_inference_mode():
    states = [DenoisingState() for _ in range(2)]
    for state, mode in zip(states, (torch.inference_mode, torch.no_grad), strict=True):
        with mode():
            DenoisingScore(steps=2, state=state).fit(X.clone())
    values = [DenoisingScore(steps=2, state=state).fit(X)(X) for state in states]
    torch.testing.assert_close(*values)
