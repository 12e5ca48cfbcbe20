"""Optimised informations: their truth, the methods' gradients, and what counts as a failure."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from migelib.experiments import optimise
from migelib.experiments.optimise import METHODS, GradientMethod, Outcome, Pair, information, initial, optimised

CPU = torch.device("cpu")
CELL = optimise.Config(
    seeds=2,
    methods=("gaussian",),
    goals=("min",),
    families=("gaussian",),
    dims=(3,),
    parameters=("shared",),
    updates=(5, 5),
    batch=64,
    hidden=8,
    dense=False,
)
TRAINED = ("smi", "knife", "club", "nwj", "mine", "infonce", "smile", "flo")


@pytest.mark.parametrize("goal", ["min", "max"])
@pytest.mark.parametrize("parameters", ["shared", "each"])
@pytest.mark.parametrize("dim", [1, 20, 200])
def test_information_starts_where_it_is_said_to(goal, parameters, dim):
    if (goal, dim) == ("min", 1):
        pytest.skip("a correlation below the largest has no 10 nats")
    theta = initial(goal, parameters, dim)
    assert float(information(theta, dim)) == pytest.approx({"min": 10, "max": 0.5}[goal], rel=1e-5)
    assert theta.shape == (1 if parameters == "shared" else dim,)


def test_coordinates_start_unequal_with_alternating_signs():
    theta = initial("min", "each", 6)
    assert (theta[1:] * theta[:-1] < 0).all()
    assert (theta.abs().diff() > 0).all()


def test_information_is_an_integral():
    """I(x; z) = E ln p(z | u) / p(z), by Gauss-Hermite quadrature over u and v."""
    rho = 0.8
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    u, v = nodes[:, None], nodes
    z = rho * u + math.sqrt(1 - rho**2) * v
    log_ratio = (z**2 - (z - rho * u) ** 2 / (1 - rho**2) - math.log(1 - rho**2)) / 2
    expected = float(weights @ log_ratio @ weights)
    theta = torch.tensor([math.atanh(rho)])
    assert float(information(theta, 1)) == pytest.approx(expected, rel=1e-5)
    assert float(information(theta, 7)) == pytest.approx(7 * expected, rel=1e-5)


@pytest.mark.parametrize("parameters", ["shared", "each"])
def test_gradient_of_the_information(parameters, generator):
    """dI / d theta_j = rho_j, because dI / d rho = rho / (1 - rho^2) and d rho / d theta = 1 - rho^2."""
    theta = torch.randn(1 if parameters == "shared" else 5, generator=generator).requires_grad_()
    (gradient,) = torch.autograd.grad(information(theta, 5), theta)
    torch.testing.assert_close(gradient, torch.tanh(theta.detach()) * (5 if parameters == "shared" else 1))


def test_samples_have_the_covariances_of_the_information():
    pair = Pair(replace(CELL, batch=100_000), [0], CPU)
    theta = initial("max", "each", 3)[None]
    x, z, _ = (part[0].double() for part in pair.sample(theta))
    own, other, cross = (a.mT @ b / len(x) for a, b in ((x, x), (z, z), (x, z)))
    joint = torch.cat([torch.cat([own, cross], 1), torch.cat([cross.mT, other], 1)])
    found = (torch.logdet(own) + torch.logdet(other) - torch.logdet(joint)) / 2
    assert float(found) == pytest.approx(0.5, rel=0.02)
    torch.testing.assert_close(other, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.02)
    assert float(x.square().mean()) == pytest.approx(1, rel=0.02)


def turned_back(x):
    angle = x.square().mean(-1)
    first, second = x[..., 0], x[..., 1]
    back = [angle.cos() * first + angle.sin() * second, angle.cos() * second - angle.sin() * first]
    return torch.cat([torch.stack(back, -1), x[..., 2:]], -1)


INVERSES = {
    "gaussian": lambda x: x,
    "cubic": lambda x: x.sign() * x.abs() ** (1 / 3),
    "asinh": torch.sinh,
    "power": lambda x: x.sign() * x.abs() ** (2 / 3),
    "spiral": turned_back,
}


@pytest.mark.parametrize("family", optimise.FAMILIES)
def test_families_can_be_inverted_and_have_unit_scale(family, generator):
    y = torch.randn(50, 4, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(INVERSES[family](optimise.FAMILIES[family](y)), y)
    assert (family == "gaussian") == torch.equal(optimise.FAMILIES[family](y), y)
    pair = Pair(replace(CELL, families=(family,), batch=50_000), [0, 1], CPU)
    x = pair.sample(torch.zeros(2, 1)).x
    torch.testing.assert_close(x.square().mean((1, 2)), torch.ones(2), rtol=0.1, atol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_product_samples_share_residuals_or_not(shared):
    pair = Pair(replace(CELL, batch=20_000, shared_residuals=shared), [0], CPU)
    apart = pair.sample(torch.zeros(1, 1))
    assert torch.equal(apart.z, apart.other) == shared
    x, z, other = (part[0] for part in pair.sample(torch.full((1, 1), math.atanh(0.9))))
    assert float((x.mT @ z / len(x)).norm()) == pytest.approx(0.9 * math.sqrt(3), rel=0.05)
    assert float((x.mT @ other / len(x)).norm()) < 0.05
    assert float((z * other).mean()) == pytest.approx(0.19 if shared else 0, abs=0.02)


# The gradient of the spread information, averaged over noise levels, is smaller than that of the information, and the
# Jensen-Shannon objective is none.
BIAS = {"smi": (0.3, 1.0), "smile": (0.1, 1.0)}


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("dense", [False, True])
def test_trained_methods_estimate_the_gradient(method, dense):
    """At fixed parameters, after 100 calls of five updates each; the truth is d rho."""
    if dense and method != "nwj":
        pytest.skip("one dense critic is as good as another")
    config = replace(CELL, methods=(method,), dims=(2,), batch=32 if dense else 256, hidden=32, network_rate=5e-3)
    config = replace(config, dense=dense)
    pair, trained = Pair(config, [0], CPU), METHODS[method](config, [0], CPU)
    theta = torch.full((1, 1), math.atanh(0.7)).requires_grad_()
    found = []
    for step in range(100):
        trained.learn(lambda: pair.sample(theta.detach()))
        if step >= 60:
            found.append(torch.autograd.grad(trained.surrogate(pair.sample(theta)), theta)[0])
    ratio = float(torch.stack(found).mean()) / 1.4
    low, high = BIAS.get(method, (0.8, 1.25))
    assert low < ratio < high


def test_moving_average_of_mine_follows_the_updates_only():
    config = replace(CELL, methods=("mine",))
    pair, mine = Pair(config, [0], CPU), METHODS["mine"](config, [0], CPU)
    theta = torch.full((1, 1), 0.5, requires_grad=True)
    mine.surrogate(pair.sample(theta)).backward()
    assert mine.log_mean is None
    mine.learn(lambda: pair.sample(theta.detach()))
    before = mine.log_mean
    mine.surrogate(pair.sample(theta)).backward()
    assert mine.log_mean is before


def test_a_gradient_is_clipped_seed_by_seed():
    weights = [torch.zeros(2, 3, 2), torch.zeros(2)]
    weights[0].grad, weights[1].grad = torch.full((2, 3, 2), 4.0), torch.tensor([0.0, 1.0])
    weights[0].grad[1] = 0
    optimise.methods.clip(weights, 2.0)
    assert float(weights[0].grad[0].norm()) == pytest.approx(2)
    assert weights[1].grad.tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_does_not_depend_on_others(method):
    config = replace(CELL, methods=(method,), goals=("max",))
    (alone,) = optimised(config, [5], CPU)
    _, beside = optimised(config, [4, 5], CPU)
    np.testing.assert_allclose(beside.information, alone.information, rtol=1e-4)
    assert not alone.failed
    assert alone.updates == 5
    assert alone.information[0] != alone.information[-1]


def test_a_gaussian_score_attains_both_targets():
    config = replace(CELL, dims=(20,), batch=256, updates=(900, 900))
    (down,) = optimised(config, [0], CPU)
    assert down.quantities(config)["attained"] == 1
    assert down.updates == 900
    up_config = replace(config, goals=("max",), parameters=("each",))
    (up,) = optimised(up_config, [0], CPU)
    quantities = up.quantities(up_config)
    assert quantities["attained"] == 1
    assert 50 <= quantities["final"] < 51
    assert up.information[up.updates - 1] < 50 <= up.information[up.updates]
    assert (up.information[up.updates :] == up.information[up.updates]).all()


class Failing(GradientMethod):
    """The Gaussian score, until some seeds of a kind fail at the third update."""

    kind = "nan"

    def __init__(self, config, seeds, device):
        super().__init__(config, seeds, device)
        self.inner, self.calls = METHODS["gaussian"](config, seeds, device), 0

    def surrogate(self, batch):
        self.calls += 1
        value = self.inner.surrogate(batch)
        if self.calls < 3 or 1 not in self.seeds:
            return value
        if self.kind == "refusal":
            raise ValueError("samples: expected an invertible covariance")
        return value + math.inf * batch.z[self.seeds.index(1)].sum()


@pytest.mark.parametrize("kind", ["nan", "refusal"])
def test_a_failure_is_counted_and_the_other_seeds_go_on(kind, monkeypatch):
    monkeypatch.setattr(Failing, "kind", kind)
    monkeypatch.setitem(METHODS, "failing", Failing)
    config = replace(CELL, methods=("failing",))
    whole, failed = optimised(config, [0, 1], CPU)
    (reference,) = optimised(CELL, [0], CPU)
    np.testing.assert_allclose(whole.information, reference.information, rtol=1e-6)
    assert not whole.failed
    assert failed.failed
    assert failed.updates == 3
    assert np.isfinite(failed.information).all()
    assert (failed.information[2:] == failed.information[2]).all()
    assert failed.information[2] != failed.information[1]
    ((quantities, curves),) = optimise.run_seeds(config, None, [1], CPU)
    name = "failing/min-gaussian-d3-shared"
    assert quantities[f"{name}/failures"] == 1
    assert quantities[f"{name}/attained"] == 0
    assert quantities[f"{name}/final"] == failed.information[-1]
    assert set(quantities) == {f"{name}/{metric}" for metric in optimise.METRICS}
    assert curves[f"{name}/information"].shape == (6,)


def test_a_minimum_is_judged_over_the_last_fifth():
    config = replace(CELL, updates=(100, 100))
    falling = np.concatenate([np.full(81, 1.0), np.full(20, 9e-4)])
    assert Outcome(falling, 100, False, 1.0).quantities(config)["attained"] == 1
    assert Outcome(falling, 100, True, 1.0).quantities(config)["attained"] == 0
    assert Outcome(falling, 100, False, 1.0).quantities(config)["final"] == pytest.approx(9e-4)
    falling[-10] = 2e-3
    assert Outcome(falling, 100, False, 1.0).quantities(config)["attained"] == 0


def test_units_are_single_cells_within_each_methods_dimensions():
    config = replace(optimise.PROFILES["full"], largest=(("knife", 20), ("gaussian", 100)))
    cells = optimise.units(config)
    assert len(cells) == (12 * 3 - 2 - 1) * 2 * 5 * 2
    assert all(cell.dims == (20,) for cell in cells if cell.methods == ("knife",))
    assert optimise.units(cells[0]) == [cells[0]]
    for scale in (optimise.PROFILES | optimise.STUDIES).values():
        assert set(scale.methods) <= set(METHODS)
        assert set(scale.families) <= set(optimise.FAMILIES)
