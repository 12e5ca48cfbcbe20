"""Integer labels as one variable of an information, or as what is given."""

import pytest
import torch

from migelib import (
    KDE,
    SSGE,
    Adaptive,
    DenoisingScore,
    GaussianScore,
    NoDensityWarning,
    Transformed,
    conditional_entropy_surrogate,
    conditional_mutual_information_surrogate,
    mutual_information_surrogate,
)
from migelib.scores import AdaptiveScore
from migelib.transforms import Whitening

ESTIMATORS = {
    "adaptive": Adaptive(),
    "gaussian": GaussianScore(),
    "ssge": SSGE(),
    "kde": KDE(),
    "whitened": Transformed(Whitening(), SSGE()),
    "denoising": DenoisingScore(steps=2),
}
# Class models take the default's scores from its density.
GOOD = ["gaussian", "ssge", *(["adaptive"] if hasattr(AdaptiveScore, "log_density") else [])]
CHEAP = ["gaussian", "ssge", "kde"]


def classes(count, n, d, seed, *batch, separation=1.0):
    """Labels, their classes' means at each sample, and noise."""
    generator = torch.Generator().manual_seed(seed)
    means = separation * torch.randn(count, d, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, count, (*batch, n), generator=generator)
    return labels, means[labels], torch.randn(*batch, n, d, dtype=torch.float64, generator=generator)


def gradient(measure, z):
    z = z.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(measure(z), z)
    return found


def information(labels, estimator, reference=None):
    return lambda z: mutual_information_surrogate(labels, z, estimator, reference=reference)


@pytest.mark.parametrize("name", ["adaptive", "gaussian", "ssge", "whitened"])
def test_two_classes(name):
    """z = a (2 y - 1) + noise: dI / da = 0.447 at a = 1 by quadrature, 0.064 is the noise with the exact scores."""
    slopes = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        labels, noise = torch.randint(0, 2, (256,), generator=generator), torch.randn(256, 1, generator=generator)
        a = torch.tensor(1.0, requires_grad=True)
        mutual_information_surrogate(labels, a * (2 * labels[:, None] - 1) + noise, ESTIMATORS[name]).backward()
        slopes.append(float(a.grad))
    assert sum(slopes) / 4 == pytest.approx(0.447, abs=4 * 0.064 / 2)


def exact_difference(labels, means, z):
    """Score given the label less that without, of classes with unit covariance."""
    centres = torch.stack([means[labels == c][0] for c in range(int(labels.max()) + 1)])
    log_density = -(z[:, None] - centres).square().sum(-1) / 2 + labels.bincount().log()
    return means - log_density.softmax(-1) @ centres


@pytest.mark.parametrize("name", GOOD)
def test_ten_classes_of_few_samples_each(name):
    """256 samples in four dimensions: the gradient in the classes' means and the noise's loading."""
    errors, floors = [], []
    for seed in range(4):
        labels, means, noise = classes(10, 256, 4, seed)
        z = means + noise
        large = classes(10, 50_000, 4, 1000)
        basis = [torch.nn.functional.one_hot(y, 10).double() for y in (labels, large[0])]
        truth = torch.cat([b.mT @ exact_difference(y, m, m + e) / len(y) for (y, m, e), b in ((large, basis[1]),)])
        estimate = basis[0].mT @ gradient(information(labels, ESTIMATORS[name]), z)
        floor = basis[0].mT @ exact_difference(labels, means, z) / 256
        errors.append(float((estimate - truth).norm() / truth.norm()))
        floors.append(float((floor - truth).norm() / truth.norm()))
    assert sum(errors) < 1.25 * sum(floors)


@pytest.mark.parametrize("name", GOOD)
def test_independent_labels_leave_a_small_gradient(name):
    """It was half as large again with every class fitted on its own, the marginal too (seen)."""
    sizes = []
    for seed in range(4):
        labels, _, noise = classes(10, 256, 4, seed)
        own = -torch.cat([GaussianScore().fit(noise[labels == c])(noise[labels == c]) for c in range(10)])
        found = gradient(information(labels, ESTIMATORS[name]), noise)
        sizes.append(float(found.norm() * 256 / own.norm()))
    assert sum(sizes) / 4 < 0.45


@pytest.mark.parametrize("name", CHEAP)
def test_far_classes_have_no_gradient_left(name):
    labels, means, noise = classes(3, 60, 2, 0, separation=50.0)
    assert float(gradient(information(labels, ESTIMATORS[name]), means + noise).norm()) < 1e-6


@pytest.mark.parametrize(("count", "n"), [(2, 4000), (6, 360)], ids=["large", "small"])
def test_classes_of_different_spreads(count, n):
    """z = s_y noise: in the deviations of the narrowest and the widest class the gradient is that with exact scores."""
    shares = []
    for seed in range(4):
        labels, _, noise = classes(count, n, 3, seed)
        deviations = 0.5 + torch.arange(count).double() / 2
        z = deviations[labels][:, None] * noise
        log_density = -z.square().sum(-1, keepdim=True) / 2 / deviations**2 - 3 * deviations.log()
        exact = (log_density.softmax(-1) @ deviations[:, None] ** -2 - 1 / deviations[labels][:, None] ** 2) * z / n
        found = gradient(information(labels, GaussianScore()), z)
        shares.append([float((v * noise)[labels == c].sum()) for v in (found, exact) for c in (0, count - 1)])
    narrow, wide, exactly_narrow, exactly_wide = torch.tensor(shares).mean(0).tolist()
    assert narrow == pytest.approx(exactly_narrow, rel=0.2)
    assert wide == pytest.approx(exactly_wide, rel=0.2)


def test_a_large_class_may_have_a_shape_of_its_own():
    """Class 0 has two humps, class 1 is Gaussian with the same moments: only shapes tell them apart."""

    def slopes(n, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 2, (n,), generator=generator)
        noise = torch.randn(n, 1, dtype=torch.float64, generator=generator)
        sign = 2.0 * torch.randint(0, 2, (n, 1), generator=generator) - 1
        z = torch.where(labels[:, None] == 0, 0.95 * sign + 0.31 * noise, noise)
        moved = torch.where(labels[:, None] == 0, sign, 0)
        return float((gradient(information(labels, KDE()), z) * moved).sum())

    # 0.254 by quadrature; a kernel density of this width is blurred, and one shape for both classes gives 0.1 (seen).
    assert sum(slopes(1000, seed) for seed in range(3)) / 3 == pytest.approx(0.254, rel=0.25)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batch_axes_and_classes_that_only_some_entries_have(name):
    labels, means, noise = classes(4, 40, 2, 0, 2, 2)
    labels[0, 0] = 7  # a single class
    labels[0, 1, :20], labels[0, 1, 20:] = -3, 2
    z = means + noise
    whole = gradient(information(labels, ESTIMATORS[name]), z)
    assert float(whole[0, 0].norm()) < 1e-9
    for entry in ((0, 1), (1, 0), (1, 1)):
        alone = gradient(information(labels[entry], ESTIMATORS[name]), z[entry])
        assert float(alone.norm()) > 0
        if name != "denoising":  # a network's noise depends on what was trained before
            torch.testing.assert_close(whole[entry], alone, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore", category=NoDensityWarning)
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(torch.arange(30) % 15, id="two each"),
        pytest.param(torch.tensor([0] * 28 + [1, 2]), id="two singles"),
        pytest.param(torch.tensor([0] * 15 + list(range(1, 16))), id="half singles"),
        pytest.param(torch.arange(30), id="all singles"),
        pytest.param(torch.zeros(30, dtype=torch.int8), id="one class"),
        pytest.param(torch.arange(30) < 10, id="bool"),
        pytest.param(torch.tensor([2**62] * 15 + [-(2**62)] * 15), id="large values"),
    ],
)
def test_small_classes(name, labels):
    _, _, z = classes(1, 30, 2, 0)
    found = gradient(information(labels, ESTIMATORS[name]), z)
    assert torch.isfinite(found).all()
    alone = labels.int().bincount()[labels.int()] == 1 if int(labels.max()) < 2**31 else torch.zeros(30, dtype=bool)
    assert float(found[alone].norm()) == 0
    if bool(alone.all()) or len(labels.unique()) == 1:
        assert float(found.norm()) < 1e-9
    given = gradient(lambda v: conditional_entropy_surrogate(v, labels, ESTIMATORS[name]), z)
    assert torch.isfinite(given).all()


class Remembering:
    """An estimator with a memory, which keeps what each role was fitted to."""

    def __init__(self):
        self.parts, self.samples = {}, []

    def part(self, role):
        return self.parts.setdefault(role, Remembering())

    def fit(self, samples):
        self.samples.append(samples)
        return GaussianScore().fit(samples)


def test_the_shape_is_not_fitted_to_samples_alone_in_their_class():
    """Their deviation is zero; others stand in."""
    estimator = Remembering()
    z = classes(1, 30, 2, 0)[2].requires_grad_()
    labels = torch.tensor([0] * 15 + list(range(1, 16)))
    mutual_information_surrogate(labels, z, estimator)
    (fitted,) = estimator.parts["z|x"].samples
    assert fitted.shape == (30, 2)
    assert float(fitted.norm(dim=-1).min()) > 0
    torch.testing.assert_close(fitted[:15], fitted[15:])


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_scale(unit):
    labels, means, noise = classes(3, 60, 2, 0)
    z = (means + noise).float()
    for name in ("gaussian", "ssge"):
        plain = gradient(information(labels, ESTIMATORS[name]), z)
        scaled = gradient(information(labels, ESTIMATORS[name]), z * unit) * unit
        torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CHEAP)
def test_more_coordinates_than_samples_in_a_class(name):
    labels, means, noise = classes(10, 64, 40, 0, separation=0.2)
    assert torch.isfinite(gradient(information(labels, ESTIMATORS[name]), means + noise)).all()


def test_more_coordinates_than_samples():
    labels, means, noise = classes(4, 40, 60, 0, separation=0.2)
    for estimator in (GaussianScore("ledoit-wolf"), SSGE()):
        found = gradient(information(labels, estimator), means + noise)
        assert torch.isfinite(found).all()
        assert float(found.norm()) > 0


@pytest.mark.parametrize("name", CHEAP)
def test_the_order_of_the_arguments_and_the_values_of_labels_do_not_matter(name):
    labels, means, noise = classes(3, 60, 2, 0)
    e, z = ESTIMATORS[name], means + noise
    first = gradient(information(labels, e), z)
    torch.testing.assert_close(gradient(lambda v: mutual_information_surrogate(v, labels, e), z), first)
    torch.testing.assert_close(gradient(information(10 - 5 * labels, e), z), first)
    torch.testing.assert_close(gradient(information(labels.to(torch.uint8), e), z), first)


@pytest.mark.parametrize("name", CHEAP)
def test_reference(name):
    labels, means, noise = classes(3, 40, 2, 0)
    more, more_means, more_noise = classes(3, 60, 2, 1)
    e, z, z_ref = ESTIMATORS[name], means + noise, more_means + more_noise
    found = gradient(information(labels, e, (more, z_ref)), z)
    both = gradient(information(torch.cat([labels, more]), e), torch.cat([z, z_ref]))
    torch.testing.assert_close(40 * found, 100 * both[:40])


def entropies(z, labels, e):
    """-H(z | y), each class by the Gaussian of its own shrunk covariance: what Gaussian classes have in closed form."""
    return conditional_entropy_surrogate(z, labels, e)


def test_conditional_entropy_of_large_classes_is_that_of_their_gaussians():
    labels, means, noise = classes(2, 4000, 2, 0)
    z = means + (1 + labels.double()[:, None]) * noise

    def closed_form(v):
        parts = [v[labels == c] for c in (0, 1)]
        return sum(len(p) / 4000 * torch.logdet(torch.cov(p.mT, correction=0)) / 2 for p in parts)

    found = gradient(lambda v: conditional_entropy_surrogate(v, labels, GaussianScore()), z)
    torch.testing.assert_close(found, gradient(closed_form, z), rtol=0.01, atol=1e-6)


def test_what_labels_leave_open_is_the_sum_of_both():
    """H(z) = H(z | y) + I(y; z), with the marginal of the class model; so for two labels the chain rule holds."""
    labels, means, noise = classes(3, 90, 2, 0)
    z, more = means + noise, torch.arange(90) % 2
    e = GaussianScore()
    joint = 2 * labels + more
    whole = gradient(information(joint, e), z)
    given = gradient(lambda v: conditional_mutual_information_surrogate(more, v, labels, e), z)
    entropy_given = gradient(lambda v: conditional_entropy_surrogate(v, joint, e), z)
    assert float(given.norm()) > 0
    # Both difference have the same conditional score, and marginals of one model: z, and z given the outer label.
    assert float((whole - given).norm()) > 0
    assert torch.isfinite(entropy_given).all()
    single = gradient(lambda v: conditional_mutual_information_surrogate(more, v, torch.zeros(90).long(), e), z)
    torch.testing.assert_close(single, gradient(information(more, e), z))


def test_conditional_information_given_labels_that_reverse_the_sign():
    """x and z correlate by +-r in two classes: I(x; z) is near zero, I(x; z | y) has slope r / (1 - r^2)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (2000,), generator=generator)
    x, e = torch.randn(2, 2000, 1, dtype=torch.float64, generator=generator)
    for estimator, allowed in ((GaussianScore(), 0.05), (SSGE(), 0.3)):
        r = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        z = r * (2 * labels[:, None] - 1) * x + (1 - r**2).sqrt() * e
        conditional_mutual_information_surrogate(x, z, labels, estimator).backward()
        assert float(r.grad) == pytest.approx(0.6 / (1 - 0.36), rel=allowed)


def test_conditional_information_of_labels_given_a_variable():
    """z = y + w + noise: given w it is y + noise, 0.447 / 2 a unit of the classes' distance 2 a; the rest is noise."""
    slopes = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 2, (512,), generator=generator)
        w, e = torch.randn(2, 512, 1, dtype=torch.float64, generator=generator)
        a = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        z = a * (2 * labels[:, None] - 1) + w + e
        conditional_mutual_information_surrogate(labels, z, w, GaussianScore()).backward()
        slopes.append(float(a.grad))
    assert sum(slopes) / 4 == pytest.approx(0.447, abs=4 * 0.064 / 2)


Z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
Y = torch.tensor([0, 0, 0, 1, 1, 1])
BAD = [
    pytest.param(lambda: mutual_information_surrogate(Y, Y), TypeError, "x and z.*labels in both", id="two"),
    pytest.param(lambda: conditional_mutual_information_surrogate(Y, Y, Z), TypeError, "labels in both", id="two of 3"),
    pytest.param(lambda: mutual_information_surrogate(Y[:5], Z), TypeError, r"x.*int64.*\(5,\)", id="length"),
    pytest.param(lambda: mutual_information_surrogate(Y[:, None], Z), TypeError, r"x.*squeeze\(-1\)", id="column"),
    pytest.param(lambda: mutual_information_surrogate(Z, Y[None]), TypeError, r"z.*\(1, 6\)", id="batch"),
    pytest.param(lambda: conditional_entropy_surrogate(Y, Z), TypeError, "z.*int64", id="entropy of labels"),
    pytest.param(lambda: conditional_entropy_surrogate(Z, Y[:5]), TypeError, r"given.*\(5,\)", id="given"),
    pytest.param(
        lambda: mutual_information_surrogate(Y, Z, reference=(Z.detach(), Z.detach())),
        TypeError, "reference for x.*integer labels.*float32", id="reference kind",
    ),
    pytest.param(
        lambda: mutual_information_surrogate(Y, Z, reference=(Y[:4], Z.detach())), ValueError, "as many", id="reference"
    ),
    pytest.param(
        lambda: mutual_information_surrogate(Y, torch.where(Y[:, None] == 0, 0.1, 0.7 + 0 * Z.double()), SSGE()),
        ValueError, "within its classes.*equal", id="no noise",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_labels(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_roles_of_an_estimator_with_a_memory():
    labels, means, noise = classes(2, 400, 2, 0)
    x, z = noise.flip(-1), (means + noise).requires_grad_()
    estimator = Remembering()
    mutual_information_surrogate(labels, z, estimator)
    conditional_mutual_information_surrogate(x, z, labels, estimator)
    conditional_mutual_information_surrogate(labels, z, x, estimator)
    assert {role: [tuple(v.shape) for v in part.samples] for role, part in estimator.parts.items()} == {
        "z|x": [(400, 2)],
        "z|given": [(400, 2)],
        "x,z|given": [(400, 4)],
        "z,given|x": [(400, 4)],
    }
    assert estimator.samples == []
