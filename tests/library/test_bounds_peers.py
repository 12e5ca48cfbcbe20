"""Every bound against its paper's formula written with loops, and at the true density ratio."""

import math

import pytest
import torch

from migelib import bounds, critics
from migelib.tasks import CorrelatedGaussian


@pytest.fixture
def critic():
    return 2 * torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def softplus(value):
    return math.log1p(math.exp(value))


def product_pairs(critic):
    n = len(critic)
    return [float(critic[i, j]) for i in range(n) for j in range(n) if i != j]


def joint_mean(critic):
    return sum(float(critic[i, i]) for i in range(len(critic))) / len(critic)


def test_infonce(critic):
    n = len(critic)
    total = 0.0
    for i in range(n):
        row = sum(math.exp(critic[i, j]) for j in range(n)) / n
        total += math.log(math.exp(critic[i, i]) / row)
    assert float(bounds.infonce(critic)) == pytest.approx(total / n, rel=1e-12)


def test_infonce_is_at_most_log_n():
    assert float(bounds.infonce(100 * torch.eye(9))) == pytest.approx(math.log(9))


def test_jsd(critic):
    n, products = len(critic), product_pairs(critic)
    joint = sum(-softplus(-float(critic[i, i])) for i in range(n)) / n
    expected = joint - sum(softplus(value) for value in products) / len(products)
    assert float(bounds.jsd(critic)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_smile(critic, tau):
    products = product_pairs(critic)
    clipped = [min(max(math.exp(value), math.exp(-tau)), math.exp(tau)) for value in products]
    expected = joint_mean(critic) - math.log(sum(clipped) / len(clipped))
    assert float(bounds.smile(critic, tau)) == pytest.approx(expected, rel=1e-12)


def test_smile_without_clip_is_donsker_varadhan(critic):
    products = product_pairs(critic)
    expected = joint_mean(critic) - math.log(sum(math.exp(value) for value in products) / len(products))
    for value in (bounds.smile(critic, None), bounds.smile(critic, 100.0), bounds.donsker_varadhan(critic)):
        assert float(value) == pytest.approx(expected, rel=1e-12)


def test_club(critic):
    n = len(critic)
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += float(critic[i, i]) - float(critic[i, j])
    assert float(bounds.club(critic)) == pytest.approx(total / n**2, rel=1e-12)


def test_flo(critic):
    n = len(critic)
    u = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = 0.0
    for i in range(n):
        others = sum(math.exp(critic[i, j] - critic[i, i] - u[i]) for j in range(n) if j != i)
        total += float(u[i]) + others / (n - 1)
    assert float(bounds.flo(critic, u)) == pytest.approx(1 - total / n, rel=1e-12)
    stacked = bounds.flo(torch.stack([critic, 2 * critic]), torch.stack([u, -u]))
    torch.testing.assert_close(stacked, torch.stack([bounds.flo(critic, u), bounds.flo(2 * critic, -u)]))


@pytest.mark.parametrize("shape", [(3,), (2, 7), ()])
def test_flo_rejects_other_shapes_of_u(critic, shape):
    with pytest.raises(ValueError, match="u: expected one value a row"):
        bounds.flo(critic, torch.zeros(shape))


def test_flo_at_the_true_ratio_and_its_best_u():
    task, _, _, critic = true_critic()
    u = -critic.diagonal()
    value = bounds.flo(critic, u)
    assert float(value) == pytest.approx(float(task.mutual_information()), abs=0.05)
    assert all(bounds.flo(critic, u + shift) < value for shift in (-0.3, 0.3))


def test_knife(critic):
    conditional, marginal = critic[0], critic[1]
    expected = sum(float(a) - float(b) for a, b in zip(conditional, marginal, strict=True)) / len(critic)
    assert float(bounds.knife(conditional, marginal)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="log_marginal: expected the shape"):
        bounds.knife(conditional, marginal[:3])


ALL = [bounds.donsker_varadhan, bounds.nwj, bounds.infonce, bounds.jsd, bounds.smile, bounds.club]


@pytest.mark.parametrize("bound", ALL, ids=lambda bound: bound.__name__)
def test_batch_axes_and_input(bound, critic):
    stack = torch.stack([critic, 2 * critic, critic.T]).requires_grad_()
    before = stack.detach().clone()
    values = bound(stack)
    assert values.shape == (3,)
    for value, each in zip(values.detach(), before, strict=True):
        assert float(value) == pytest.approx(float(bound(each)), rel=1e-12)
    values.sum().backward()
    assert torch.equal(stack.detach(), before)


@pytest.mark.parametrize("bound", ALL, ids=lambda bound: bound.__name__)
@pytest.mark.parametrize("shape", [(3,), (3, 4), (1, 1)])
def test_rejects_what_is_not_square(bound, shape):
    with pytest.raises(ValueError, match="expected shape"):
        bound(torch.zeros(shape))


def test_smile_rejects_tau(critic):
    with pytest.raises(ValueError, match="tau"):
        bounds.smile(critic, 0.0)


def true_critic(dim=2, rho=0.6, n=3000):
    task = CorrelatedGaussian(dim, torch.tensor(rho, dtype=torch.float64))
    x, z = task.sample(n, torch.Generator().manual_seed(0))
    return task, x, z, task.density_ratio(x, z)


@pytest.mark.parametrize(
    "estimate",
    [bounds.donsker_varadhan, bounds.infonce, bounds.smile, lambda critic: bounds.nwj(critic + 1)],
    ids=["donsker_varadhan", "infonce", "smile", "nwj"],
)
def test_value_at_the_true_ratio(estimate):
    task, _, _, critic = true_critic()
    # The joint mean alone has a standard error of about 0.01 here; the information is 0.446.
    assert float(estimate(critic)) == pytest.approx(float(task.mutual_information()), abs=0.05)


def test_true_ratio_maximises_jsd():
    critic = true_critic()[-1]
    best = bounds.jsd(critic)
    for other in (0.8 * critic, 1.25 * critic, critic + 0.3, critic - 0.3):
        assert bounds.jsd(other) < best


def test_club_of_the_true_conditional():
    task, x, z, _ = true_critic()
    rho = float(task.rho)
    distances = torch.cdist(rho * x, z).square()
    value = bounds.club(-distances / (2 * (1 - rho**2)))
    # E_p - E_pp of -(z - rho x)^2 / 2 (1 - rho^2): a dimension gives rho^2 / (1 - rho^2), an upper bound on I.
    assert float(value) == pytest.approx(2 * rho**2 / (1 - rho**2), rel=0.05)
    assert value > task.mutual_information()


def test_concatenated_critic_is_a_network_of_the_concatenation():
    torch.manual_seed(0)
    critic = critics.ConcatenatedCritic(3, 2, hidden=8).double()
    x, z = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    weight = torch.cat([critic.from_x.weight, critic.from_z.weight], dim=1)
    values = critic(x, z)
    for i in range(5):
        for j in range(5):
            first = weight @ torch.cat([x[i], z[j]]) + critic.from_x.bias
            assert torch.allclose(critic.rest(first)[0], values[i, j])


def test_gaussian_conditional_is_a_density():
    torch.manual_seed(0)
    conditional = critics.GaussianConditional(3, 2, hidden=8).double()
    x, z = torch.randn(6, 3).double(), 5 + torch.randn(6, 2).double()
    matrix = conditional(x, z)
    mean, log_variance = conditional.mean(x), conditional._moments(x)[1]
    for i in range(6):
        for j in range(6):
            normal = torch.distributions.Normal(mean[i], (log_variance[i] / 2).exp())
            assert torch.allclose(normal.log_prob(z[j]).sum(), matrix[i, j])
    assert torch.allclose(conditional.log_prob(x, z), matrix.diagonal())


@pytest.mark.parametrize("kind", [critics.SeparableCritic, critics.ConcatenatedCritic, critics.GaussianConditional])
def test_activation_is_that_of_all_hidden_layers(kind):
    network = kind(3, 2, hidden=8, activation=torch.nn.SiLU)
    found = {type(part) for part in network.modules()}
    assert torch.nn.SiLU in found
    assert torch.nn.ReLU not in found


def test_gaussian_conditional_has_the_layers_asked_for():
    network = critics.GaussianConditional(3, 2, hidden=8, layers=2)
    assert [layer.out_features for layer in network.mean if isinstance(layer, torch.nn.Linear)] == [8, 8, 2]


def test_fenchel_legendre_critic_is_bounded_by_its_temperature():
    torch.manual_seed(0)
    network = critics.FenchelLegendreCritic(3, 2, hidden=8, embedding=4, head=5).double()
    x, z = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    with torch.no_grad():
        network.log_temperature.fill_(math.log(0.5))
    values, u = network(x, z)
    f, g = network.f(x), network.g(z)
    for i in range(6):
        both = torch.cat([f[i] / f[i].norm(), g[i] / g[i].norm()])
        assert torch.allclose(network.u(both)[0], u[i])
        for j in range(6):
            assert torch.allclose(f[i] @ g[j] / (f[i].norm() * g[j].norm()) / 0.5, values[i, j])


def mixture(parts):
    """The mixture of torch.distributions of `MixtureDensities._parts`, for one sample."""
    log_weight, mean, log_scale, lower = parts
    factor = (lower + torch.eye(mean.shape[-1], dtype=mean.dtype)) @ torch.diag_embed(log_scale.exp())
    components = torch.distributions.MultivariateNormal(mean, precision_matrix=factor.mT @ factor)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=log_weight), components)


def test_mixture_densities_are_densities():
    torch.manual_seed(0)
    network = critics.MixtureDensities(3, 2, components=4, hidden=8).double()
    with torch.no_grad():
        network.marginal.normal_()
        for weight in network.conditional.parameters():
            weight.mul_(3)
    x, z = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    conditional, marginal = network(x, z)
    torch.testing.assert_close(marginal, mixture(network._parts(network.marginal)).log_prob(z))
    for i in range(6):
        expected = mixture(network._parts(network.conditional(x[i]))).log_prob(z[i])
        torch.testing.assert_close(conditional[i], expected)


def test_mixture_densities_learn_an_information():
    torch.manual_seed(0)
    task, generator = CorrelatedGaussian(1, torch.tensor(0.8)), torch.Generator().manual_seed(0)
    network = critics.MixtureDensities(1, 1, components=2, hidden=16)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(300):
        conditional, marginal = network(*task.sample(256, generator))
        optimiser.zero_grad()
        (-conditional - marginal).mean().backward()
        optimiser.step()
    with torch.no_grad():
        value = bounds.knife(*network(*task.sample(4000, generator)))
    assert float(value) == pytest.approx(float(task.mutual_information()), abs=0.05)


def test_mixture_densities_reject_a_range():
    with pytest.raises(ValueError, match="log_scale_range"):
        critics.MixtureDensities(2, 2, log_scale_range=0.0)
