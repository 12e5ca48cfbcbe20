"""Kernel estimators against explicit n x n x d tensors, dense linear algebra and automatic differentiation."""

from dataclasses import replace

import pytest
import torch

from migelib import kernels
from migelib.kernels import VectorKernel, median_distance, rbf
from migelib.scores import KDE, SSGE, GaussianScore, Landweber, NuMethod, Stein, Tikhonov, score_divergence
from migelib.scores.ssge import _eigh

ESTIMATORS = [
    SSGE(),
    Stein(),
    Tikhonov(),
    Tikhonov(kernel="imq"),
    Tikhonov(curl_free=True, tolerance=1e-12),
    Tikhonov(kernel="imq", curl_free=True, tolerance=1e-12),
    Landweber(steps=30),
    Landweber(steps=30, kernel="imq", curl_free=True),
    NuMethod(),
    NuMethod(curl_free=True),
    KDE(),
    GaussianScore(),
    GaussianScore("ledoit-wolf"),
]
IDS = [repr(e) for e in ESTIMATORS]
SPECTRAL = [SSGE(), Stein(), Tikhonov(), Tikhonov(curl_free=True, tolerance=1e-12), Landweber(steps=30), NuMethod()]


@pytest.fixture
def samples():
    return torch.randn(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.5 + 3


def radial(kernel, width):
    if kernel == "rbf":
        return lambda a, b: torch.exp(-(a - b).square().sum() / (2 * width**2))
    return lambda a, b: (1 + (a - b).square().sum() / width**2) ** -0.5


def dense(samples, kernel, curl_free):
    """The kernel matrix [n, n, d, d] and the Stein vectors [n, d], by automatic differentiation of every entry."""
    width, dim = median_distance(samples), samples.shape[-1]
    f = radial(kernel, width)
    hessian = torch.func.jacrev(torch.func.jacrev(f))

    def matrix(a, b):
        return -(width**2) * hessian(a, b) if curl_free else f(a, b) * torch.eye(dim, dtype=samples.dtype)

    jacobian = torch.func.jacrev(matrix)  # [row, column, coordinate of the first argument]
    over = lambda g: torch.vmap(lambda a: torch.vmap(lambda b: g(a, b))(samples))(samples)  # noqa: E731
    return over(matrix), over(lambda a, b: torch.einsum("iji->j", jacobian(a, b))).mean(0)


@pytest.mark.parametrize("curl_free", [False, True])
@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_products_match_explicit_tensors(samples, kernel, curl_free):
    matrix, stein = dense(samples, kernel, curl_free)
    fast = VectorKernel(samples, samples, median_distance(samples), kernel, curl_free)
    c = torch.randn(samples.shape, dtype=samples.dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast.apply(c), torch.einsum("ijab,jb->ia", matrix, c))
    torch.testing.assert_close(fast.stein(), stein)


@pytest.mark.parametrize("curl_free", [False, True])
@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_filters_match_dense_spectra(samples, kernel, curl_free):
    matrix, stein = dense(samples, kernel, curl_free)
    n, dim = samples.shape
    flat = matrix.permute(0, 2, 1, 3).reshape(n * dim, n * dim) / n
    values, vectors = torch.linalg.eigh(flat)

    def filtered(gain):
        return -(vectors @ (gain * (vectors.mT @ stein.reshape(-1)))).reshape(n, dim)

    settings = {"kernel": kernel, "curl_free": curl_free}
    tikhonov = Tikhonov(1e-2, tolerance=1e-12, **settings).fit(samples)(samples)
    torch.testing.assert_close(tikhonov, filtered(1 / (values + 1e-2)), rtol=1e-6, atol=1e-8)
    landweber = Landweber(25, **settings).fit(samples)(samples)
    torch.testing.assert_close(landweber, filtered((1 - (1 - values) ** 25) / values), rtol=1e-6, atol=1e-8)


def test_curl_free_estimates_are_gradients(samples):
    score = Tikhonov(1e-2, curl_free=True, tolerance=1e-12).fit(samples)
    jacobian = torch.func.jacrev(lambda p: score(p[None])[0])(samples[0] + 0.1)
    torch.testing.assert_close(jacobian, jacobian.mT)


def test_stein_is_tikhonov_at_the_samples(samples):
    torch.testing.assert_close(Stein(1e-2).fit(samples)(samples), Tikhonov(1e-2).fit(samples)(samples))


@pytest.mark.parametrize("nu", [1.0, 2.5])
def test_nu_method_is_its_recursion_on_values(samples, nu):
    matrix, stein = dense(samples, "rbf", False)
    operator = matrix[..., 0, 0] / len(samples)
    before, now = torch.zeros_like(stein), torch.zeros_like(stein)
    for t in range(1, 13):  # [Engl, Hanke & Neubauer, 1996, sec. 6.3]
        mu = (t - 1) * (2 * t - 3) * (2 * t + 2 * nu - 1)
        mu = mu / ((t + 2 * nu - 1) * (2 * t + 4 * nu - 1) * (2 * t + 2 * nu - 3)) if t > 1 else 0
        omega = 4 * (2 * t + 2 * nu - 1) * (t + nu - 1) / ((t + 2 * nu - 1) * (2 * t + 4 * nu - 1))
        before, now = now, now + mu * (now - before) - omega * (stein + operator @ now)
    torch.testing.assert_close(NuMethod(12, nu).fit(samples)(samples), now)
    # Twelve steps act like a ridge of the order of 1 / 144.
    assert (now - Tikhonov(1 / 144).fit(samples)(samples)).norm() < 0.5 * now.norm()


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=IDS)
def test_divergence_matches_automatic_differentiation(samples, estimator):
    score = estimator.fit(samples)
    points = samples[:5] + 0.2
    expected = score_divergence(lambda p: score(p), points)  # a lambda has no closed form
    torch.testing.assert_close(score.divergence(points), expected)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_loop(estimator, dtype):
    batch = torch.randn(2, 2, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    batched, points = estimator.fit(batch), batch[..., :4, :] * 0.5
    assert batched(points).dtype == dtype
    if dtype == torch.float64:
        for i in range(2):
            for j in range(2):
                single = estimator.fit(batch[i, j])(points[i, j])
                torch.testing.assert_close(batched(points)[i, j], single, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "estimator", [Stein(1e-2), Tikhonov(1e-2), Tikhonov(1e-2, curl_free=True), Landweber(), NuMethod()]
)
def test_gaussian_score_is_recovered(estimator):
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    error = (estimator.fit(x)(x) + x).square().mean().sqrt()
    assert error < 0.45  # a wrong sign gives 2, no estimate at all 1


def test_residual_of_the_exact_score_is_small():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    for estimator in (SSGE(), Tikhonov(1e-2), Tikhonov(1e-2, curl_free=True), Landweber()):
        left = estimator.fit_residual(x, -x)(x).square().mean()
        plain = (estimator.fit(x)(x) + x).square().mean()
        assert left < 1.2 * plain
        assert left < 0.15


def test_large_curl_free_problem_fits_in_memory():
    x = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(Tikhonov(1e-1, curl_free=True).fit(x)(x)).all()


def test_ledoit_wolf_with_fewer_samples_than_coordinates():
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="invertible"):
        GaussianScore().fit(x)
    assert (GaussianScore("ledoit-wolf").fit(x)(x) + x).square().mean() < 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stein(0.0),
        lambda: Tikhonov(-1.0),
        lambda: Tikhonov(kernel="linear"),
        lambda: Tikhonov(width=0.0),
        lambda: Landweber(0),
        lambda: NuMethod(nu=0.0),
        lambda: KDE(-1.0),
        lambda: GaussianScore(2.0),
        lambda: GaussianScore("oas"),
        lambda: Stein().fit(torch.ones(1, 2)),
        lambda: Tikhonov().fit(torch.full((5, 2), torch.nan)),
        lambda: Tikhonov().fit_residual(torch.randn(5, 2), torch.randn(5, 1)),
    ],
)
def test_bad_input_raises(make):
    with pytest.raises(ValueError, match="expected"):
        make()


@pytest.fixture
def gram_matrices(monkeypatch):
    """Shapes of the Gram matrices that are built."""
    built, original = [], kernels.expanded_squares

    def count(x, y):
        built.append((x.shape[-2], y.shape[-2]))
        return original(x, y)

    monkeypatch.setattr(kernels, "expanded_squares", count)
    return built


@pytest.mark.parametrize("estimator", SPECTRAL)
def test_at_its_samples_a_score_needs_no_second_gram_matrix(samples, estimator, gram_matrices):
    score = estimator.fit(samples)
    score(samples)
    assert gram_matrices == [(24, 24)]
    with torch.no_grad():
        samples += 1  # no longer what the score was fitted to
    score(samples)
    assert len(gram_matrices) > 1
    score(samples[1:])
    assert gram_matrices[-1] == (23, 24)


@pytest.mark.parametrize("fit", ["plain", "residual"])
@pytest.mark.parametrize("estimator", SPECTRAL)
def test_values_at_the_samples_are_those_of_new_points(samples, estimator, fit):
    score = estimator.fit(samples) if fit == "plain" else estimator.fit_residual(samples, 3 - samples)
    for points in (samples, samples.flip(0)):
        torch.testing.assert_close(score(points), score(torch.cat([points, points[:1]]))[:-1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in forward mode
@pytest.mark.parametrize("estimator", SPECTRAL)
def test_a_score_has_its_derivatives_at_its_samples(samples, estimator):
    score = estimator.fit(samples)
    expected = score.divergence(samples)
    torch.testing.assert_close(score_divergence(lambda p: score(p), samples), expected)

    def one(row, point):
        return score(torch.cat([samples[:row], point[None], samples[row + 1 :]]))[row]

    for derivative in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(derivative(one, 1)(3, samples[3]).trace(), expected[3])
    torch.testing.assert_close(score.divergence(samples), expected)  # what torch.func left in the score is of use


@pytest.mark.parametrize("estimator", SPECTRAL)
def test_what_a_score_returned_may_be_changed_in_place(samples, estimator):
    score = estimator.fit(samples)
    before = score(samples).clone()
    score(samples).zero_()
    torch.testing.assert_close(score(samples), before)


@pytest.mark.parametrize("estimator", SPECTRAL)
def test_a_score_with_other_coefficients_forgets_its_values(samples, estimator):
    score = estimator.fit(samples)
    if not isinstance(estimator, Stein):  # whose values are what it is
        other = replace(score, coefficients=2 * score.coefficients)
        assert not torch.allclose(other(samples), score(samples))


def test_stein_needs_no_eigenvectors_at_its_samples(samples, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(torch.linalg, "eigh")
        score = Stein().fit(samples)
        score(samples)
        with pytest.raises(AttributeError, match="eigh"):
            score(samples[1:])
    score(samples[1:])


@pytest.mark.parametrize(("n", "d"), [(512, 32), (1024, 256)])
def test_ssge_keeps_as_many_eigenvalues_in_single_precision(n, d):
    """Of the second it kept 855 instead of 874, and 3 % of the score were rounding."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    single, double = SSGE().fit(x), SSGE().fit(x.double())
    assert single.n_eigen == double.n_eigen
    assert (single(x) - double(x.double())).norm() < 1e-3 * double(x.double()).norm()


GRAMS = {  # what the first eigenvalue is to the others
    "far above": lambda x: rbf(x, x, median_distance(x)),
    "equal to the second": lambda x: torch.block_diag(*2 * [rbf(x, x, median_distance(x))]),
    "just above the second": lambda x: torch.block_diag(*(rbf(y, y, torch.tensor(8.0)) for y in (x, x[1:]))),
    "all but alone": lambda x: rbf(x, x, 300 * median_distance(x)),
    "alone": lambda x: torch.ones(200, 200),
    "half more than the only other": lambda x: torch.block_diag(torch.ones(120, 120), torch.ones(80, 80)),
    "far above the only other": lambda x: torch.block_diag(torch.ones(190, 190), torch.ones(10, 10)),
    "one of many": lambda x: rbf(x, x, median_distance(x) / 100),
    "one of many equal ones": lambda x: torch.eye(200),
}


@pytest.mark.parametrize("gram", GRAMS.values(), ids=GRAMS)
def test_lowering_the_first_eigenvalue_leaves_the_decomposition(gram):
    matrix = gram(torch.randn(200, 32, generator=torch.Generator().manual_seed(0)))
    values, vectors, rounding = _eigh(matrix)
    exact = torch.linalg.eigvalsh(matrix.double())
    assert (values - exact).abs().max() < 1e-5 * exact[-1]
    assert (vectors * values @ vectors.mT - matrix).abs().max() < 1e-5 * exact[-1]
    assert rounding < 1e-4 * exact[-1]
