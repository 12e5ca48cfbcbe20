"""Kernel scores from random features: sums over samples, and the kernel estimators that they stand for."""

import pytest
import torch

from migelib.kernels import rbf
from migelib.scores import Tikhonov, features
from migelib.scores.features import Features, solve


def points(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_they_are_those_of_the_kernel():
    u, width = points(2, 50, 3), torch.tensor([1.0, 2.5], dtype=torch.float64)
    phi = Features.draw(3, 20000, width).values(u)
    torch.testing.assert_close(phi @ phi.mT, rbf(u, u, width), atol=0.03, rtol=0)  # six of its 1 / sqrt(M)


def test_statistics_are_means_of_what_differentiation_gives():
    u, base = points(2, 40, 3), points(2, 40, 3, seed=1)
    drawn = Features.draw(3, 8, torch.tensor([1.0, 2.5], dtype=torch.float64))
    gram, target = drawn.statistics(u, base)
    phi = drawn.values(u)
    torch.testing.assert_close(gram, phi.mT @ phi / 40)
    jacobian = torch.autograd.functional.jacobian(lambda v: drawn.values(v).mean(1), u)  # [2, 8, 2, 40, 3]
    slopes = torch.stack([jacobian[i, :, i].sum(1) for i in range(2)])
    torch.testing.assert_close(target, slopes + phi.mT @ base / 40)


def test_the_score_is_that_of_tikhonov():
    u, base = points(300, 2), -points(300, 2)
    width = torch.tensor(1.5, dtype=torch.float64)
    drawn = Features.draw(2, 4000, width)
    found = drawn.score(u, solve(*drawn.statistics(u, base), 1e-3))
    expected = Tikhonov(ridge=1e-3, width=1.5).fit_residual(u, base)(u)
    assert (found - expected).norm() < 0.2 * expected.norm()  # 0.12: the kernel's error over the ridge


def test_chunks_change_nothing_and_halves_average(monkeypatch):
    u, base = points(2, 60, 3), points(2, 60, 3, seed=1)
    drawn = Features.draw(3, 16, torch.ones(2, dtype=torch.float64))
    whole = drawn.statistics(u, base)
    halves = [drawn.statistics(u[:, part], base[:, part]) for part in (slice(30), slice(30, 60))]
    coefficients = solve(*whole, torch.tensor([1e-2, 1e-3], dtype=torch.float64))
    score, divergence = drawn.score(u, coefficients), drawn.divergence(u, coefficients)
    monkeypatch.setattr(features, "ENTRIES", 100)
    for one, other, *parts in zip(whole, drawn.statistics(u, base), *halves, strict=True):
        torch.testing.assert_close(other, one)
        torch.testing.assert_close(sum(parts) / 2, one)
    torch.testing.assert_close(drawn.score(u, coefficients), score)
    torch.testing.assert_close(drawn.divergence(u, coefficients), divergence)


def test_divergence():
    u = points(5, 3)
    drawn = Features.draw(3, 16, torch.tensor(1.3, dtype=torch.float64))
    coefficients = points(16, 3, seed=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: drawn.score(v, coefficients).sum(0), u)  # [3, 5, 3]
    torch.testing.assert_close(drawn.divergence(u, coefficients), torch.einsum("dnd->n", jacobian))


def test_held_out_loss_is_that_of_a_fit_without_each_sample():
    u, base = points(2, 12, 2), points(2, 12, 2, seed=1)
    drawn = Features.draw(2, 9, torch.tensor([1.3, 0.7], dtype=torch.float64))
    expected = torch.zeros(2, dtype=torch.float64)
    for i in range(12):
        others = torch.arange(12) != i
        # The same sum of squares and the same ridge times 12: 11 / 12 of the means, ridge as it is.
        means = [11 / 12 * part for part in drawn.statistics(u[:, others], base[:, others])]
        coefficients = solve(*means, 0.1)
        left = u[:, i : i + 1]
        residual = drawn.score(left, coefficients)[:, 0]
        loss = residual.square().sum(-1) / 2 + (residual * base[:, i]).sum(-1)
        expected += (loss + drawn.divergence(left, coefficients)[:, 0]) / 12
    torch.testing.assert_close(drawn.held_out(u, base, 0.1), expected)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Features.draw(0, 3, torch.tensor(1.0)), "dim"),
        (lambda: Features.draw(2, 0, torch.tensor(1.0)), "count"),
        (lambda: solve(torch.eye(2), torch.eye(2), 0.0), "ridge"),
        (lambda: solve(torch.eye(2), torch.eye(2), torch.tensor(-1.0)), "ridge"),
    ],
)
def test_bad_input_raises(make, name):
    with pytest.raises(ValueError, match=name):
        make()
