"""Transforms, combinators and the neural estimator."""

import pytest
import torch

from migelib import entropy_surrogate, mutual_information_surrogate
from migelib.scores import (
    SSGE,
    DenoisingScore,
    DenoisingState,
    GaussianScore,
    Residual,
    Selected,
    Tikhonov,
    Transformed,
    score_matching_loss,
)
from migelib.transforms import Composition, Gaussianise, Whitening


@pytest.fixture
def samples():
    noise = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.sinh(noise) @ torch.tensor([[2.0, 0.3, 0], [0, 1, 0.5], [0, 0, 0.5]], dtype=torch.float64) + 4


@pytest.mark.parametrize(
    "transform", [Whitening(), Gaussianise(), Gaussianise(0.3, 16), Composition([Gaussianise(), Whitening()])]
)
def test_transforms_match_automatic_differentiation(samples, transform):
    fitted = transform.fit(samples)
    point, vector = samples[7] + 0.05, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda p: fitted(p[None])[0])
    torch.testing.assert_close(fitted.pull_back(point[None], vector[None])[0], jacobian(point).mT @ vector)
    gradient = torch.func.grad(lambda p: torch.linalg.slogdet(jacobian(p)).logabsdet)(point)
    torch.testing.assert_close(fitted.log_det_gradient(point[None])[0], gradient)


def test_whitening_whitens(samples):
    white = Whitening().fit(samples)(samples)
    torch.testing.assert_close(white.mT @ white / 60, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("n", [50, 1000])
def test_gaussianise_is_increasing_and_gaussian(n):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).pow(3)
    fitted = Gaussianise().fit(x)
    u, slope, _ = fitted.evaluate(x)
    assert (slope > 0).all()
    assert (u.mean(0).abs() < 0.3).all()
    assert ((u.std(0) - 1).abs() < 0.3).all()
    far = torch.tensor([[-1e4, 1e4]])
    assert torch.isfinite(fitted(far)).all()
    assert fitted(far)[0, 0] < u.min()
    assert fitted(far)[0, 1] > u.max()


def test_gaussianise_is_nearly_affine_for_a_gaussian():
    x = 5 + 2 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    assert (Gaussianise().fit(x)(x) - (x - 5) / 2).square().mean() < 0.02


def test_transformed_gaussian_is_affine_invariant(samples):
    plain, mapped = GaussianScore().fit(samples), Transformed(Whitening(), GaussianScore()).fit(samples)
    torch.testing.assert_close(plain(samples), mapped(samples))


def test_residual_is_the_sum_of_its_parts(samples):
    score = Residual(GaussianScore(), SSGE()).fit(samples)
    base = GaussianScore().fit(samples)
    rest = SSGE().fit_residual(samples, base(samples))
    torch.testing.assert_close(score(samples), base(samples) + rest(samples))
    torch.testing.assert_close(score.divergence(samples), base.divergence(samples) + rest.divergence(samples))


def test_loss_of_the_exact_score():
    # E[|s|^2 / 2 + div s] = d / 2 - d for a standard Gaussian, and any other score has a larger loss.
    x = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = score_matching_loss(lambda p: -p, x)
    assert exact == pytest.approx(-1, abs=0.03)
    assert score_matching_loss(lambda p: -0.8 * p, x) > exact


def test_selected_chooses_per_entry():
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(300, 1, generator=generator)
    bimodal = torch.where(torch.rand(300, 1, generator=generator) < 0.5, -3.0, 3.0) + 0.5 * torch.randn(
        300, 1, generator=generator
    )
    candidates = [GaussianScore(), Residual(GaussianScore(), Tikhonov(1e-2, width=1.0))]
    batch = torch.stack([gaussian, bimodal])
    score = Selected(candidates).fit(batch)
    assert score.choice.tolist() == [0, 1]
    for i in range(2):
        torch.testing.assert_close(score(batch)[i], candidates[i].fit(batch[i])(batch[i]), rtol=1e-3, atol=1e-3)
    assert score.divergence(batch).shape == (2, 300)


def test_denoising_score_improves_on_its_start_and_is_reproducible():
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).sign() * 2
    x = x + 0.7 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    exact = (2 * torch.tanh(2 * x / 0.49) - x) / 0.49
    start = (-(x - x.mean()) / x.var() - exact).square().mean()
    estimator = DenoisingScore(steps=300, hidden=32, noise=0.2)
    score = estimator.fit(x)
    assert (score(x) - exact).square().mean() < 0.4 * start
    torch.testing.assert_close(estimator.fit(x)(x), score(x))


def test_denoising_state_goes_on_and_old_scores_stay():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    state = DenoisingState()
    estimator = DenoisingScore(steps=5, hidden=16, state=state)
    first = estimator.fit(x)
    before = first(x)
    second = estimator.fit(x)
    assert len(state.networks) == 1
    torch.testing.assert_close(first(x), before)
    assert not torch.equal(second(x), before)
    z = (x * 0.5).requires_grad_()
    mutual_information_surrogate(x, z, estimator).backward()
    assert {key[0] for key in state.networks} == {"single"}
    assert {key[0] for key in state.parts["x,z"].networks} == {"joint", "x", "z"}
    assert z.grad.isfinite().all()


def test_batch_equals_loop_for_combinators(samples):
    batch = torch.stack([samples, samples.flip(0) * 2 + 1])
    for estimator in (
        Residual(GaussianScore(), Tikhonov()),
        Transformed(Composition([Gaussianise(), Whitening()]), SSGE()),
        DenoisingScore(steps=2, hidden=8),
    ):
        batched = estimator.fit(batch)(batch)
        torch.testing.assert_close(batched[0], estimator.fit(batch[0])(batch[0]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Residual(GaussianScore(), GaussianScore()), TypeError),
        (lambda: Residual(GaussianScore, SSGE()), TypeError),
        (lambda: Transformed(SSGE, SSGE()), TypeError),
        (lambda: Selected([]), ValueError),
        (lambda: Selected([SSGE()], folds=1), ValueError),
        (lambda: Selected([SSGE()]).fit(torch.randn(4, 2)), ValueError),
        (lambda: Gaussianise(0.0), ValueError),
        (lambda: Gaussianise(centres=1), ValueError),
        (lambda: Composition([]), ValueError),
        (lambda: Whitening(0.0), ValueError),
        (lambda: DenoisingScore(steps=0), ValueError),
        (lambda: entropy_surrogate(torch.randn(5, 2), "nonsense"), ValueError),
    ],
)
def test_bad_input_raises(make, error):
    with pytest.raises(error, match="expected"):
        make()
