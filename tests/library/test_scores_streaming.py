"""`Streaming`: what it remembers, what it follows at once, and the states of a module."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from migelib import (
    SSGE,
    Adaptive,
    GaussianScore,
    NoDensityWarning,
    Streaming,
    entropy_surrogate,
    mutual_information_surrogate,
)
from migelib.scores.online import OnlineMoments, OnlineShapes, evaluate_shapes, lag


def pairs(seed, n=256, d=4, slope=1.0, **options):
    g = torch.Generator().manual_seed(seed)
    x, e = torch.randn(2, n, d, generator=g, **options)
    return x, slope * x + e


def learnt(batches=6, estimator=None, **options):
    streaming = Streaming() if estimator is None else estimator
    for seed in range(batches):
        parts = streaming.fit_pair(*pairs(seed, **options))
    return streaming, parts


def test_a_lag_holds_the_samples_wanted():
    assert lag(256, 128, 0.9) == 0
    assert 256 / (1 - lag(256, 1024, 0.9)) == pytest.approx(1024)
    assert lag(256, 1e9, 0.9) == 0.9


def test_moments_are_those_of_all_samples_by_their_weights():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 3, generator=g).double() + 100, 2 * torch.randn(80, 3, generator=g).double() + 100
    moments = OnlineMoments((), 3, a)
    moments.update(a, 0.5)
    moments.update(b, 0.5)
    weights = torch.cat([torch.full((50,), 0.5), torch.ones(80)]).double()
    both = torch.cat([a, b])
    torch.testing.assert_close(moments.mean, torch.einsum("n,nd->d", weights, both) / weights.sum())
    torch.testing.assert_close(moments.covariance, torch.cov(both.mT, correction=0, aweights=weights))


def test_a_map_makes_its_samples_gaussian_and_knows_its_derivatives():
    u = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()
    y = torch.sinh(u)
    y = (y - y.mean(0)) / y.std(0)
    shapes = OnlineShapes((), 1, y)
    shapes.update(y, 0.0)
    mapped, slope, curvature = evaluate_shapes(shapes.table, y)
    inner = u.abs() < 2.5
    assert (mapped - u)[inner].abs().max() < 0.15
    value = torch.func.vmap(torch.func.grad(lambda s: evaluate_shapes(shapes.table, s[None, None])[0].sum()))(y[:50, 0])
    torch.testing.assert_close(value, slope[:50, 0])
    value = torch.func.vmap(torch.func.grad(lambda s: evaluate_shapes(shapes.table, s[None, None])[1].sum()))(y[:50, 0])
    torch.testing.assert_close(value, curvature[:50, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 6])
def test_gaussian_pairs_have_the_score_of_the_batch_s_own_gaussian(dim):
    _, parts = learnt(estimator=Streaming(features=0), d=dim)
    x, z = pairs(5, d=dim)
    joint = GaussianScore().fit(torch.cat([x, z], -1))(torch.cat([x, z], -1))
    own = joint - torch.cat([GaussianScore().fit(v)(v) for v in (x, z)], -1)
    assert float((torch.cat(parts, -1) - own).norm() / own.norm()) < 1e-3


def test_what_one_batch_cannot_tell_is_learnt():
    """A sign that is common to all coordinates: marginals are Gaussian and nothing correlates."""

    def batch(seed, a=1.0, n=128, d=6):
        g = torch.Generator().manual_seed(seed)
        x, e = torch.randn(2, n, d, generator=g)
        sign = 2.0 * torch.randint(0, 2, (n, 1), generator=g) - 1
        return x, a * sign * x + e

    def gradient(estimator, seed):
        a = torch.tensor(1.0, requires_grad=True)
        mutual_information_surrogate(*batch(seed, a), estimator).backward()
        return float(a.grad)

    streaming = Streaming()
    late = [gradient(streaming, seed) for seed in range(24)][12:]
    single = [gradient(SSGE(), seed) for seed in range(12, 24)]
    x, z = batch(99, n=100_000)
    both = [torch.distributions.Normal(s * x, 1.0).log_prob(z).sum(-1) for s in (1, -1)]
    posterior = torch.stack(both).softmax(0)[0]
    # d I / d a by the exact scores: of the mixture of two signs, and of the marginal N(0, 2).
    joint = posterior[:, None] * (x - z) + (1 - posterior)[:, None] * (-x - z)
    own = torch.where((both[0] > both[1])[:, None], x, -x)
    truth = float(((joint + z / 2) * own).sum(-1).mean())
    late, single = (math.sqrt(sum((v - truth) ** 2 for v in values)) for values in (late, single))
    assert late < 0.5 * single


def test_scale_and_correlation_do_not_lag():
    """After the code has grown tenfold and its sign has turned, the next answer is that of a fresh start."""
    streaming, _ = learnt(batches=12, estimator=Streaming(features=0))
    x, z = pairs(50)
    moved = streaming.fit_pair(x, -10 * z)[1]
    fresh, _ = learnt(batches=1, estimator=Streaming(features=0))
    fresh.fit_pair(*pairs(7))
    torch.testing.assert_close(moved, -fresh.fit_pair(x, z)[1] / 10, rtol=0.05, atol=0.02)


def test_batch_axes_are_problems_of_their_own():
    one, two = Streaming(features=32), Streaming(features=32)
    both = Streaming(features=32)
    for seed in range(4):
        a, b = pairs(seed), pairs(seed + 100, slope=0.3)
        first, second = one.fit_pair(*a), two.fit_pair(*b)
        stacked = both.fit_pair(*(torch.stack(v) for v in zip(a, b, strict=True)))
    for i, alone in enumerate((first, second)):
        for part, own in zip(stacked, alone, strict=True):
            torch.testing.assert_close(part[i], own, rtol=1e-3, atol=1e-4)


def test_evaluation_does_not_update_and_needs_a_batch():
    streaming = Streaming().eval()
    with pytest.raises(RuntimeError, match="nothing learnt yet"):
        streaming.fit_pair(*pairs(0))
    streaming, _ = learnt(estimator=streaming.train())
    streaming.eval()
    before = copy.deepcopy(streaming.state_dict())
    first = streaming.fit_pair(*pairs(60))[1]
    assert torch.equal(first, streaming.fit_pair(*pairs(60))[1])
    for name, value in streaming.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, before[name])


def test_a_state_loads_into_a_new_instance_and_goes_on_alike():
    streaming, _ = learnt()
    entropy_surrogate(pairs(0)[1].requires_grad_(), streaming).backward()
    other = Streaming()
    other.load_state_dict(copy.deepcopy(streaming.state_dict()))
    for seed in (70, 71):
        for a, b in zip(streaming.fit_pair(*pairs(seed)), other.fit_pair(*pairs(seed)), strict=True):
            assert torch.equal(a, b)
    assert not list(streaming.parameters())


def test_reset_forgets():
    streaming, _ = learnt()
    streaming.reset()
    for a, b in zip(streaming.fit_pair(*pairs(3)), Streaming().fit_pair(*pairs(3)), strict=True):
        assert torch.equal(a, b)


def test_the_first_batch_is_answered_by_the_default():
    for a, b in zip(Streaming().fit_pair(*pairs(3)), Adaptive().fit_pair(*pairs(3)), strict=True):
        assert torch.equal(a, b)


def test_another_shape_is_refused_with_what_to_do():
    streaming, _ = learnt()
    with pytest.raises(ValueError, match="one Streaming\\(\\) for each term"):
        streaming.fit_pair(*pairs(0, d=3))


@pytest.mark.parametrize("n", [2, 3, 9, 64])
def test_batches_of_any_size(n):
    streaming, _ = learnt(batches=3, n=64)
    parts = streaming.fit_pair(*pairs(9, n=n))
    assert all(torch.isfinite(part).all() and part.shape == (n, 4) for part in parts)
    parts = learnt(batches=5, n=n)[1]
    assert all(torch.isfinite(part).all() for part in parts)


def test_a_code_with_atoms_is_left_to_the_default_with_its_warning():
    streaming, _ = learnt(batches=3)
    x, z = pairs(8)
    with pytest.warns(NoDensityWarning):
        parts = streaming.fit_pair(x, torch.relu(z))
    assert all(torch.isfinite(part).all() for part in parts)
    assert torch.isfinite(streaming.fit_pair(*pairs(9))[1]).all()


def test_a_nan_does_not_reach_the_state():
    streaming, _ = learnt(batches=3)
    before = copy.deepcopy(streaming.state_dict())
    x, z = pairs(8)
    z[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        streaming.fit_pair(x, z)
    for name, value in streaming.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, before[name])


def test_values_are_those_of_the_density():
    streaming, _ = learnt(batches=8, d=1)
    x, z = pairs(8, n=2000, d=1)
    assert float(streaming.log_ratio(x, z).mean()) == pytest.approx(0.5 * math.log(2), abs=0.1)
    entropy = Streaming()
    for seed in range(4):
        score = entropy.fit(pairs(seed, d=1)[0])
    at = torch.linspace(-2, 2, 9)[:, None]
    gradient = torch.func.grad(lambda u: score.log_density(u).sum())(at)
    assert float((gradient + at).abs().max()) < 0.5
    assert float(entropy.log_density_of(x).mean()) == pytest.approx(-0.5 * math.log(2 * math.pi * math.e), abs=0.1)


def test_codes_beyond_the_memory_have_the_values_of_the_default():
    x, z = pairs(0, n=8, d=60)
    streaming = Streaming()
    streaming.fit_pair(x, z)
    torch.testing.assert_close(streaming.log_ratio(x, z), Adaptive().log_ratio(x, z))
    streaming.reset()
    streaming.fit(torch.cat([x, z], -1))
    assert streaming.log_density_of(torch.cat([x, z], -1)).shape == (8,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_a_loaded_state_goes_where_the_samples_are():
    streaming, _ = learnt()
    other = Streaming().to("cuda")
    other.load_state_dict(streaming.state_dict())
    assert other.fit_pair(*(v.to("cuda") for v in pairs(9)))[1].is_cuda


@pytest.mark.parametrize(("name", "value"), [("decay", 1.0), ("decay", -0.1), ("components", 0), ("features", -1)])
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        Streaming(**{name: value})
