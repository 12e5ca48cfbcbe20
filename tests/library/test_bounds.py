"""Bounds against their formulas written as sums."""

import math

import pytest
import torch

from migelib import bounds, critics


def pairs(critic):
    n = len(critic)
    joint = [critic[i, i] for i in range(n)]
    product = [critic[i, j] for i in range(n) for j in range(n) if i != j]
    return torch.stack(joint), torch.stack(product)


@pytest.fixture
def critic(generator):
    return torch.randn(6, 6, dtype=torch.float64, generator=generator).requires_grad_()


def test_donsker_varadhan(critic):
    joint, product = pairs(critic)
    torch.testing.assert_close(bounds.donsker_varadhan(critic), joint.mean() - product.exp().mean().log())


def test_nwj(critic):
    joint, product = pairs(critic)
    torch.testing.assert_close(bounds.nwj(critic), joint.mean() - (product - 1).exp().mean())


def test_mine_replaces_the_denominator_of_the_gradient(critic):
    joint, product = pairs(critic)
    past = torch.tensor(0.7, dtype=torch.float64)
    value, log_running = bounds.mine(critic, past.log(), decay=0.9)
    running = 0.9 * past + 0.1 * product.exp().mean()
    torch.testing.assert_close(log_running.exp(), running.detach())
    torch.testing.assert_close(value, bounds.donsker_varadhan(critic))
    (gradient,) = torch.autograd.grad(value, critic)
    (expected,) = torch.autograd.grad(joint.mean() - product.exp().mean() / running.detach(), critic)
    torch.testing.assert_close(gradient, expected)


def test_mine_starts_as_donsker_varadhan(critic):
    (first,) = torch.autograd.grad(bounds.mine(critic)[0], critic)
    (plain,) = torch.autograd.grad(bounds.donsker_varadhan(critic), critic)
    torch.testing.assert_close(first, plain)


def test_bounds_do_not_overflow():
    critic = torch.full((3, 3), 500.0)
    assert float(bounds.donsker_varadhan(critic)) == pytest.approx(0.0, abs=1e-3)
    assert float(bounds.mine(critic, torch.tensor(500.0))[0]) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("bound", [bounds.donsker_varadhan, bounds.nwj, lambda critic: bounds.mine(critic)[0]])
def test_batches(bound, generator):
    critics = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=generator)
    expected = torch.stack([bound(critic) for critic in critics.flatten(0, 1)]).view(2, 3)
    torch.testing.assert_close(bound(critics), expected)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (1, 1)])
@pytest.mark.parametrize("bound", [bounds.donsker_varadhan, bounds.nwj, bounds.mine])
def test_bad_critic(bound, shape):
    with pytest.raises(ValueError, match=r"critic.*\[\*batch, n, n\]"):
        bound(torch.zeros(shape))


@pytest.mark.parametrize("decay", [0.0, 1.0, math.nan])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="decay"):
        bounds.mine(torch.zeros(3, 3), decay=decay)


def test_separable_critic_evaluates_every_pair(generator):
    critic = critics.SeparableCritic(3, 2, hidden=8, embedding=4)
    x, z = torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)
    values = critic(x, z)
    for i in range(5):
        for j in range(5):
            torch.testing.assert_close(values[i, j], (critic.f(x[i]) * critic.g(z[j])).sum())
