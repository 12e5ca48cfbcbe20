"""Plug-in values, and the log densities that they are the means of."""

import math

import pytest
import torch

from migelib import (
    KDE,
    SSGE,
    Adaptive,
    DenoisingScore,
    GaussianScore,
    Residual,
    Selected,
    Transformed,
    entropy,
    mutual_information,
)
from migelib.tasks import CorrelatedGaussian
from migelib.transforms import Composition, Gaussianise, Whitening

DENSITIES = {
    "gaussian": GaussianScore(),
    "shrunk": GaussianScore("ledoit-wolf"),
    "kde": KDE(),
    "whitened": Transformed(Whitening(), KDE()),
    "gaussianised": Transformed(Composition([Gaussianise(), Whitening()]), GaussianScore()),
    "selected": Selected([GaussianScore(), KDE()]),
    "adaptive": Adaptive(),
}


def samples(n=60, d=2, batch=(), seed=0):
    """Skewed and correlated."""
    noise = torch.randn(*batch, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.sinh(noise) + noise.flip(-1)


@pytest.mark.parametrize("estimator", [e for name, e in DENSITIES.items() if name != "adaptive"], ids=str)
def test_the_score_is_the_gradient_of_the_log_density(estimator):
    """That of the default has a residual besides, and corrections."""
    score = estimator.fit(samples())
    points = samples(seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(score.log_density(points).sum(), points)
    torch.testing.assert_close(gradient, score(points.detach()))


@pytest.mark.parametrize("estimator", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_a_density_integrates_to_one(estimator, unit):
    score = estimator.fit(samples(d=1) * unit)
    points = torch.linspace(-60, 60, 200_001, dtype=torch.float64)[:, None] * unit
    total = score.log_density(points).exp().sum() * (points[1, 0] - points[0, 0])
    assert float(total.detach()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("estimator", DENSITIES.values(), ids=DENSITIES)
def test_a_log_density_is_differentiable_in_its_points(estimator):
    """Class models take their scores from it."""
    points = samples(seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(estimator.fit(samples()).log_density(points).sum(), points)
    assert float(gradient.norm()) > 1


def test_the_bias_of_a_gaussians_entropy_is_the_known_one():
    n, d, seeds = 50, 3, 400
    z = torch.randn(seeds, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = entropy(z, GaussianScore())
    half_log_det = sum(
        float(torch.digamma(torch.tensor((n - i) / 2, dtype=torch.float64))) + math.log(2 / n) for i in range(1, d + 1)
    )
    truth = d / 2 * math.log(2 * math.pi * math.e) + half_log_det / 2
    # Its first order is what the docstring says, and five times the standard error of the mean.
    assert half_log_det / 2 == pytest.approx(-d * (d + 3) / 4 / n, rel=0.05)
    assert float(values.mean()) == pytest.approx(truth, abs=5 * float(values.std()) / seeds**0.5)


@pytest.mark.parametrize("estimator", [GaussianScore(), Transformed(Whitening(), GaussianScore()), None])
def test_values_of_gaussians_near_the_truth(estimator):
    if estimator is None and "adaptive" not in DENSITIES:
        pytest.skip("the default has no density yet")
    generator = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[4.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    root = torch.linalg.cholesky(covariance)
    z = torch.randn(4000, 2, dtype=torch.float64, generator=generator) @ root.mT
    assert float(entropy(z, estimator)) == pytest.approx(math.log(2 * math.pi * math.e) + math.log(3) / 2, abs=0.06)
    task = CorrelatedGaussian(2, torch.tensor(0.6, dtype=torch.float64))
    value = mutual_information(*task.sample(4000, generator), estimator)
    assert float(value) == pytest.approx(float(task.mutual_information()), abs=0.06)


@pytest.mark.parametrize("estimator", [*DENSITIES])
def test_one_value_a_batch_entry(estimator):
    e = DENSITIES[estimator]
    z, x = samples(batch=(2, 3)), samples(batch=(2, 3), seed=1)
    labels = (x[..., 0] > 0).long()
    for measure in (
        lambda v: entropy(v[0], e),
        lambda v: mutual_information(*v[:2], e),
        lambda v: mutual_information(v[2], v[0], e),
        lambda v: mutual_information(v[0], v[2], e),
    ):
        whole = measure((z, x, labels))
        assert whole.shape == (2, 3)
        assert whole.dtype == torch.float64
        alone = measure((z[1, 2], x[1, 2], labels[1, 2]))
        assert alone.shape == ()
        torch.testing.assert_close(alone, whole[1, 2])


def test_values_have_no_gradient_and_fit_outside_autocast_and_inference_mode():
    z = samples().requires_grad_()
    value = entropy(z, KDE())
    assert not value.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert entropy(z, KDE()) == value
    with torch.inference_mode():
        assert entropy(z, KDE()) == value
    assert entropy(z.float(), KDE()).dtype == torch.float32


@pytest.mark.parametrize(
    "estimator",
    [SSGE(), DenoisingScore(steps=1), Residual(GaussianScore(), SSGE()), Transformed(Whitening(), SSGE()), "stein",
     Selected([SSGE()])],
)  # fmt: skip
def test_estimators_without_a_density_say_so(estimator):
    z, x = samples(), samples(seed=1)
    for measure in (
        lambda: entropy(z, estimator),
        lambda: mutual_information(x, z, estimator),
        lambda: mutual_information((x[:, 0] > 0).long(), z, estimator),
    ):
        with pytest.raises(TypeError, match=r"estimator.*density.*Adaptive.*GaussianScore.*KDE"):
            measure()


class Remembering:
    """An estimator with a memory, as `Streaming` is: one part a role, a density that is asked without an update."""

    def __init__(self):
        self.parts, self.fits, self.score = {}, 0, None

    def part(self, role):
        return self.parts.setdefault(role, Remembering())

    def fit(self, samples):
        self.fits += 1
        self.score = GaussianScore().fit(samples)
        return self.score

    def log_density_of(self, z):
        return self.score.log_density(z)


def test_a_memory_answers_without_an_update():
    estimator, z, x = Remembering(), samples(), samples(seed=1)
    estimator.part("z").fit(z)
    torch.testing.assert_close(entropy(3 * z, estimator), -estimator.parts["z"].score.log_density(3 * z).mean())
    estimator.part("x").fit(x)
    estimator.part("x,z").fit(torch.cat([x, z], -1))
    torch.testing.assert_close(mutual_information(x, z, estimator), mutual_information(x, z, GaussianScore()))
    assert [part.fits for part in estimator.parts.values()] == [1, 1, 1]


def test_a_log_ratio_is_used_where_there_is_one():
    class Pair(Remembering):
        def log_ratio(self, x, z):
            return x[..., 0] * z[..., 1]

    z, x = samples(), samples(seed=1)
    estimator = Pair()
    estimator.parts["x,z"] = Pair()
    torch.testing.assert_close(mutual_information(x, z, estimator), (x[:, 0] * z[:, 1]).mean())


def test_information_with_labels_of_two_gaussians():
    """z = +-1 + noise: the truth is 0.3368 nats (quadrature), its samples' noise 0.6 / sqrt(n)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (20_000,), generator=generator)
    z = 2.0 * labels[:, None] - 1 + torch.randn(20_000, 1, generator=generator)
    assert float(mutual_information(labels, z, GaussianScore())) == pytest.approx(0.3368, abs=0.015)
    assert float(mutual_information(labels, 100 * (2.0 * labels[:, None] - 1) + z, GaussianScore())) == pytest.approx(
        math.log(2), abs=1e-3
    )
    assert float(mutual_information(torch.zeros_like(labels), z, GaussianScore())) == 0


BAD = [
    pytest.param((torch.ones(5, 2),), ValueError, "z.*equal", id="equal"),
    pytest.param((torch.randn(5, 2).long(),), TypeError, "z.*int64", id="integers"),
    pytest.param((torch.randn(5, 2), torch.randn(4, 2)), ValueError, "x and z", id="length"),
    pytest.param((torch.arange(5), torch.arange(5)), TypeError, "x and z.*labels in both", id="two discrete"),
    pytest.param((torch.arange(4), torch.randn(5, 2)), TypeError, r"x.*int64.*\(4,\)", id="labels"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        (entropy if len(arguments) == 1 else mutual_information)(*arguments, GaussianScore())
