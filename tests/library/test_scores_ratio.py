"""Scores from a classifier's log ratio, against closed forms."""

import pytest
import torch

from migelib import RatioScore, mutual_information_surrogate, total_correlation_surrogate
from migelib.scores import RatioState
from migelib.scores.ratio import classification_loss, draw_log_scale
from migelib.tasks import CorrelatedGaussian, exact_score_surrogate


def relative_error(found, truth):
    return float((found - truth).norm() / truth.norm())


def test_score_of_two_humps():
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).sign() * 2
    x = x + 0.7 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    exact = (2 * torch.tanh(2 * x / 0.49) - x) / 0.49
    gaussian = -(x - x.mean()) / x.var()
    estimator = RatioScore(steps=300, hidden=32, learning_rate=1e-2)
    score = estimator.fit(x)
    assert relative_error(score(x), exact) < 0.5 * relative_error(gaussian, exact)  # 0.37 of it
    torch.testing.assert_close(estimator.fit(x)(x), score(x))


def test_pair_scores_of_gaussians():
    rho = 0.8
    x, z = CorrelatedGaussian(2, torch.tensor(rho)).sample(4000, torch.Generator().manual_seed(0))
    found = RatioScore(steps=400, hidden=64, learning_rate=3e-3).fit_pair(x, z)
    joint = torch.tensor([[1, rho], [rho, 1]]).inverse()
    truth = (-joint[0, 0] * x - joint[0, 1] * z + x, -joint[1, 0] * x - joint[1, 1] * z + z)
    for part, exact in zip(found, truth, strict=True):
        assert relative_error(part, exact) < 0.3  # 0.15; minus this score, or the joint one alone, has 2 and 0.7


def noisy_channel_slope(spread, noise=0.5, n=4000):
    """Estimate of dI(x; z)/d noise for z = x + noise w, both spread where only z needs a gradient."""
    x, w = torch.randn(2, n, 1, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(noise, requires_grad=True)
    estimator = RatioScore(steps=400, hidden=64, learning_rate=3e-3, spread=spread)
    mutual_information_surrogate(x, x + scale * w, estimator).backward()
    return float(scale.grad)


@pytest.mark.parametrize("level", [None, 1.0])
def test_spread_information_has_its_own_gradient(level):
    noise = 0.5
    # I = 1/2 ln(1 + 1 / (t^2 + s^2)), where the noise of s = level standard deviations of z, sqrt(1 + t^2), is fixed.
    s2 = 0 if level is None else level**2 * (1 + noise**2)
    total = noise**2 + s2
    truth = -noise / (total * (1 + total))
    spread = None if level is None else (0.999 * level, 1.001 * level)
    # -1.60 and -0.133; over three seeds the estimates are within 6 % and 24 % of these.
    assert noisy_channel_slope(spread, noise) == pytest.approx(truth, rel=0.3)


def test_spread_gives_a_gradient_to_a_code_without_noise():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    z = (2 * x).requires_grad_()
    mutual_information_surrogate(x, z, RatioScore(steps=50, hidden=32, spread=(0.1, 1.0))).backward()
    assert z.grad.isfinite().all()
    assert float((z.grad * z.detach()).sum()) > 0  # the information grows with the signal


def test_noise_levels_are_log_uniform():
    found = draw_log_scale((0.01, 1.0), 4000, torch.zeros(1), torch.Generator().manual_seed(0))
    low, high = torch.log(torch.tensor([0.01, 1.0]))
    assert found.shape == (4000, 1)
    assert low <= found.min() < low + 0.01
    assert high - 0.01 < found.max() <= high
    assert float(found.mean()) == pytest.approx(float((low + high) / 2), abs=0.1)


def test_classification_loss_is_least_at_the_log_ratio():
    task = CorrelatedGaussian(2, torch.tensor(0.6, dtype=torch.float64))
    x, z = task.sample(4000, torch.Generator().manual_seed(0))

    def log_ratio(x, z):
        return task.density_ratio(x, z).diagonal()

    joint, product = log_ratio(x, z), log_ratio(x, z.roll(1, 0))
    best = classification_loss(joint, product)
    for scale, shift in ((0.8, 0), (1.25, 0), (1, 0.3), (1, -0.3)):
        assert classification_loss(scale * joint + shift, scale * product + shift) > best


def test_state_goes_on_and_old_scores_stay():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    state = RatioState()
    estimator = RatioScore(steps=5, hidden=16, state=state)
    first = estimator.fit(x)
    before = first(x)
    second = estimator.fit(x)
    torch.testing.assert_close(first(x), before, rtol=0, atol=0)
    assert not torch.equal(second(x), before)
    earlier = estimator.fit_pair(x, x**3)[1]
    assert not torch.equal(estimator.fit_pair(x, x**3)[1], earlier)
    assert set(state.networks) == {("single", 2, 0), ("pair", 2, 2, 0)}


def test_warm_state_follows_a_moving_pair():
    state, generator = RatioState(), torch.Generator().manual_seed(0)
    errors = []
    for step in range(300):
        rho = torch.tensor(0.5 + 0.001 * step, requires_grad=True)
        task = CorrelatedGaussian(2, rho)
        x, z = task.sample(256, generator)
        estimator = RatioScore(steps=5, hidden=32, state=state)
        (found,) = torch.autograd.grad(mutual_information_surrogate(x, z, estimator), rho, retain_graph=True)
        (exact,) = torch.autograd.grad(exact_score_surrogate(task, x, z), rho)
        errors.append(abs(float(found / exact) - 1))
    assert sum(errors[-50:]) / 50 < 0.25 < errors[0]


def test_informations_of_a_total_correlation_have_a_network_each():
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    state = RatioState()
    total_correlation_surrogate(z, RatioScore(steps=1, hidden=8, state=state))
    assert len(state.parts) == 2
    assert all(isinstance(part, RatioState) for part in state.parts.values())


def test_batch_equals_loop_and_global_generator_is_left_alone(generator):
    x, z = torch.randn(2, 2, 60, 2, generator=generator)
    estimator = RatioScore(steps=2, hidden=8)
    before = torch.random.get_rng_state()
    batched = estimator.fit(x)(x)
    pair = RatioScore(steps=2, hidden=8, batch=30, spread=(0.1, 1.0)).fit_pair(x, z)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(batched[0], estimator.fit(x[0])(x[0]), rtol=1e-5, atol=1e-6)
    assert [part.shape for part in pair] == [x.shape, z.shape]


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"hidden": 0}, {"batch": 0}, {"learning_rate": 0.0}]
    + [{"spread": spread} for spread in ((1.0, 0.1), (0.0, 1.0), (0.1,), 0.5, ("a", "b"), [0.1, 1.0])],
)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected"):
        RatioScore(**settings)
