"""What a memory does: true scores, the loop's information, and a Gaussian with moving moments."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from migelib import GaussianScore, mutual_information_surrogate
from migelib.experiments import memory

CPU = torch.device("cpu")
SMALL = memory.Config(
    seeds=2,
    families=("signs",),
    dims=(4,),
    n=64,
    batches=4,
    moved_dim=4,
    loop_dims=(2,),
    decays=(0.0, 0.9),
    reference=64,
    updates=(5, 5),
)


def log_ratio(density, pairs):
    """Log of q(x, z) / q(z), whose gradient in z is the difference of scores; sinh cancels but for that of z."""
    half = density.dim // 2
    u = pairs.asinh() if density.bent else pairs
    return density.mixture.log_density(u) - density.mixture.marginal(half, density.dim).log_density(u[:, half:])


@pytest.mark.parametrize("family", ["dense", "sinh", "clusters", "signs"])
def test_differences_of_scores_are_gradients(family, generator):
    density = memory.draw_density(family, 6, generator)
    pairs = density.sample(20, generator).requires_grad_()
    (gradient,) = torch.autograd.grad(log_ratio(density, pairs).sum(), pairs)
    torch.testing.assert_close(density.difference(pairs.detach()), gradient[:, 3:])


@pytest.mark.parametrize("family", ["dense", "sinh", "clusters", "signs"])
def test_samples_have_the_moments_of_their_density(family, generator):
    density = memory.draw_density(family, 4, generator)
    u = density.sample(200_000, generator)
    u = u.asinh() if density.bent else u
    means, scales = density.mixture.means, density.mixture.scales
    centred = means - means.mean(0)
    expected = scales.mean(0) + centred.mT @ centred / len(means)
    torch.testing.assert_close(u.mean(0), means.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(u.mT.cov(), expected, rtol=0.03, atol=0.03)


def test_signs_are_shared_by_the_coordinates(generator):
    """E x z is zero, and the products of two coordinates have the mean 0.8^2."""
    x, z = memory.draw_density("signs", 4, generator).sample(100_000, generator).chunk(2, -1)
    product = x * z
    torch.testing.assert_close(product.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=0.02)
    assert float(product.prod(-1).mean()) == pytest.approx(0.64, abs=0.03)


def test_an_unknown_family_is_refused(generator):
    with pytest.raises(ValueError, match="family"):
        memory.draw_density("cauchy", 4, generator)


def test_the_error_is_that_of_the_surrogate(generator):
    """A Gaussian fitted to Gaussian pairs: its difference of scores, and none if the truth is the estimate."""
    density = memory.draw_density("dense", 4, generator)
    ((pairs, truth),) = memory.drawn([density], 500, generator)
    score = GaussianScore()
    half = pairs.float()
    expected = score.fit(half)(half)[:, 2:] - score.fit(half[:, 2:])(half[:, 2:])
    error = float((expected - truth).norm() / truth.norm())
    assert memory.errors_of(score, [(pairs, truth)]) == pytest.approx([error], rel=1e-4)
    assert memory.errors_of(score, [(pairs, expected.double())]) == pytest.approx([0], abs=1e-4)


def test_a_gaussian_without_a_past_is_that_of_the_batch(generator):
    pairs = torch.randn(1, 100, 4, generator=generator, dtype=torch.float64).cumsum(-1)
    gaussian = memory.MovingGaussian(torch.zeros(1, dtype=torch.float64))
    gaussian.update(pairs.flip(0) + 7)
    gaussian.update(pairs)
    x, z = pairs[0].split(2, -1)
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mutual_information_surrogate(x, z, GaussianScore()), z)
    torch.testing.assert_close(gaussian.difference(pairs)[0], 100 * gradient, rtol=1e-3, atol=1e-3)


def test_a_past_counts_by_its_decay(generator):
    first, second = torch.randn(2, 1, 50, 4, generator=generator, dtype=torch.float64)
    gaussian = memory.MovingGaussian(torch.full((1,), 0.5, dtype=torch.float64))
    gaussian.update(first)
    gaussian.update(second)
    both = memory.MovingGaussian(torch.zeros(1, dtype=torch.float64))
    both.update(torch.cat([first, second, second], 1))
    torch.testing.assert_close(gaussian.difference(first), both.difference(first))


@pytest.mark.parametrize(("goal", "sign"), [("min", -1), ("max", 1)])
def test_an_optimised_information_moves_to_its_goal(goal, sign):
    paths = memory.optimised(replace(SMALL, loop_dims=(20,), updates=(30, 30), n=256), goal, 20, 0, CPU)
    assert list(paths) == ["decay-0", "decay-0.9", "reference"]
    for path in paths.values():
        assert path[0] == pytest.approx({"min": 10, "max": 0.5}[goal], rel=1e-4)
        assert (sign * np.diff(path) > 0).all()


def test_a_path_is_judged_by_its_end():
    path = np.array([60.0, 5, 4, 3, 2, 3, 2, 1, 1, 3])
    assert memory.judged(path, "min") == {"final": 2.0, "worst": 3.0}
    assert memory.judged(path[1:], "max") == {"updates": 9.0}
    assert memory.judged(path[::-1], "max") == {"updates": 9.0}
    assert memory.judged(path, "max") == {"updates": 0.0}


def test_quantities_of_a_seed():
    quantities, curves = memory.run_seed(SMALL, 0, CPU)
    metrics = {name.split("/")[-1] for name in quantities}
    assert metrics == set(memory.METRICS)
    assert np.isfinite(list(quantities.values())).all()
    errors = [curves[f"streaming/{setting}/relative_error"] for setting in ("signs-d4", "moved-d4")]
    assert [len(error) for error in errors] == [4, 4]
    assert quantities["streaming/signs-d4/relative_error"] == pytest.approx(errors[0][-2:].mean(), rel=1e-5)
