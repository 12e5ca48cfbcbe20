"""The benchmark's pairs: scores against autograd, truths against integration and against large samples."""

import math

import pytest
import torch

from migelib import tasks
from migelib.tasks import PAIRS, exact_score_surrogate, pair

DOUBLE = torch.float64
NAMES = [name for name in PAIRS if name != "mlp"]  # its Monte-Carlo truth takes longer; it has tests of its own


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dimension(name):
    return 4 if name == "mlp-blocks" else 3


# --- independent log densities ---------------------------------------------------------------------------------------


def gaussian_log_density(covariance):
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(covariance), dtype=DOUBLE), covariance)
    return normal.log_prob


def student_log_density(scale, df):
    dim = len(scale)
    precision, log_det = torch.linalg.inv(scale), torch.logdet(scale)
    constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - dim / 2 * math.log(df * math.pi) - float(log_det) / 2

    def log_prob(u):
        return constant - (df + dim) / 2 * torch.log1p(torch.einsum("...i,ij,...j->...", u, precision, u) / df)

    return log_prob


def log_densities(task):
    """Logarithms of the densities of (x, z), x and z, each written without the task's own scores."""
    if isinstance(task, tasks.CorrelatedGaussian):
        eye, rho = torch.eye(task.dim, dtype=DOUBLE), float(task.rho)
        joint = torch.cat([torch.cat([eye, rho * eye], 1), torch.cat([rho * eye, eye], 1)], 0)
        return gaussian_log_density(joint), gaussian_log_density(eye), gaussian_log_density(eye)
    if isinstance(task, tasks.GaussianPair | tasks.StudentPair):
        core = task.core if isinstance(task, tasks.StudentPair) else task
        make = gaussian_log_density if core is task else (lambda scale: student_log_density(scale, task.df))
        x_loading, z_loading = core.joint().x_loading, core.joint().z_loading
        both = torch.cat([x_loading, z_loading])
        return tuple(make(w @ w.mT) for w in (both, x_loading, z_loading))
    if isinstance(task, tasks.MixturePair):
        means, loadings = task._z_components()

        def mixture(centres, factors):
            parts = [
                torch.distributions.MultivariateNormal(centre, factor @ factor.mT)
                for centre, factor in zip(centres, factors, strict=True)
            ]
            return lambda u: torch.stack([part.log_prob(u) for part in parts]).logsumexp(0) - math.log(len(parts))

        return (
            mixture(torch.cat([task.x_means, means], 1), torch.cat([task.x_loadings, loadings], 1)),
            mixture(task.x_means, task.x_loadings),
            mixture(means, loadings),
        )
    assert isinstance(task, tasks.TransformedPair)
    core = log_densities(task.core)

    def pulled(log_prob, transform):
        if transform is None:
            return log_prob

        def log_density(y):
            jacobian = torch.func.vmap(torch.func.jacrev(lambda one: transform.forward(one[None])[0]))
            with torch.no_grad():
                u = transform.inverse(y)
            # One Newton step makes the bisection's result differentiable.
            u = u + torch.linalg.solve(jacobian(u).detach(), (y - transform.forward(u).detach())[..., None])[..., 0]
            return log_prob(u) - torch.linalg.slogdet(jacobian(u)).logabsdet

        return log_density

    p = task.core.sample(2, generator())[0].shape[-1]

    def both_inverse(u):
        x, z = u[:, :p], u[:, p:]
        return x, z

    class Joint:
        def forward(self, u):
            x, z = both_inverse(u)
            f, g = task.x_map, task.z_map
            return torch.cat([f.forward(x) if f else x, g.forward(z) if g else z], -1)

        def inverse(self, u):
            x, z = both_inverse(u)
            f, g = task.x_map, task.z_map
            return torch.cat([f.inverse(x) if f else x, g.inverse(z) if g else z], -1)

    return pulled(core[0], Joint()), pulled(core[1], task.x_map), pulled(core[2], task.z_map)


def autograd_score(log_density, points):
    points = points.detach().clone().requires_grad_()
    return torch.autograd.grad(log_density(points).sum(), points)[0]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("toy", "mlp-blocks")])
def test_scores_are_gradients_of_the_log_density(name):
    task = pair(name, dimension(name), DOUBLE)
    x, z = task.sample(20, generator())
    scores = task.scores(x, z)
    joint, x_density, z_density = log_densities(task)
    expected = autograd_score(joint, torch.cat([x, z], dim=-1))
    assert torch.allclose(torch.cat([scores.joint_x, scores.joint_z], -1), expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(scores.x, autograd_score(x_density, x), rtol=1e-6, atol=1e-6)
    assert torch.allclose(scores.z, autograd_score(z_density, z), rtol=1e-6, atol=1e-6)


def test_scores_of_the_toy_task():
    task = tasks.CorrelatedGaussian(3, torch.tensor(0.6, dtype=DOUBLE))
    x, z = task.sample(20, generator())
    scores = task.scores(x, z)
    expected = autograd_score(log_densities(task)[0], torch.cat([x, z], dim=-1))
    assert torch.allclose(torch.cat([scores.joint_x, scores.joint_z], -1), expected)
    assert torch.allclose(scores.z, -z)


@pytest.mark.parametrize("name", ["mlp-blocks", "mlp"])
def test_encoder_scores_are_gradients_of_the_log_density(name):
    task = pair(name, 4, DOUBLE)
    x, z = task.sample(20, generator())
    scores = task.scores(x, z)

    def blocks(points, rotation):
        return (points if rotation is None else points @ rotation.mT).unflatten(-1, (task.blocks, -1))

    def joint(both):
        x, z = blocks(both[:, :4], task.x_rotation), blocks(both[:, 4:], task.z_rotation)
        return -x.square().sum((-2, -1)) / 2 - (z - task.encode(x)).square().sum((-2, -1)) / (2 * task.noise**2)

    def marginal(points):
        z = blocks(points, task.z_rotation)[..., None, :]
        weights = task.log_weights if task.log_weights is not None else 0.0
        logits = weights - (z - task.encode(task.nodes)).square().sum(-1) / (2 * task.noise**2)
        return logits.logsumexp(-1).sum(-1)

    expected = autograd_score(joint, torch.cat([x, z], -1))
    assert torch.allclose(torch.cat([scores.joint_x, scores.joint_z], -1), expected, rtol=1e-6, atol=1e-8)
    assert torch.allclose(scores.z, autograd_score(marginal, z), rtol=1e-6, atol=1e-6)
    assert torch.equal(scores.x, -x)


# --- maps ------------------------------------------------------------------------------------------------------------

MAPS = [
    tasks.HalfCube(),
    tasks.Asinh(3.0),
    tasks.SinhArcsinhMap(0.5, 1.3),
    tasks.NormalCDF(),
    tasks.Bimodal(),
    tasks.Wiggle(),
    tasks.Spiral(1.2),
    tasks.Compose((tasks.Spiral(0.7), tasks.HalfCube())),
]


@pytest.mark.parametrize("transform", MAPS, ids=lambda transform: type(transform).__name__)
@pytest.mark.parametrize("dim", [2, 5])
def test_maps_are_inverted(transform, dim):
    u = torch.randn(200, dim, dtype=DOUBLE, generator=generator())
    assert torch.allclose(transform.inverse(transform.forward(u)), u, atol=1e-9)


def test_spiral_preserves_volume_and_norm():
    spiral = tasks.Spiral(1.2)
    u = torch.randn(10, 5, dtype=DOUBLE, generator=generator())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: spiral.forward(one[None])[0]))(u)
    assert torch.allclose(torch.linalg.det(jacobian), torch.ones(10, dtype=DOUBLE))
    assert torch.allclose(spiral.forward(u).norm(dim=-1), u.norm(dim=-1))


# --- truths ----------------------------------------------------------------------------------------------------------


def sample_gradients(task, n, chunks, seed=0):
    """Exact-score estimates of the gradient on `chunks` independent samples of size n."""
    drawn, gradients = generator(seed), []
    for _ in range(chunks):
        theta = task.theta.clone().requires_grad_()
        x, z = task.at(theta).sample(n, drawn)
        gradients.append(torch.autograd.grad(exact_score_surrogate(task, x, z), theta)[0])
    return torch.stack(gradients)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_mean_of_exact_score_estimates(name):
    task = pair(name, dimension(name), DOUBLE)
    gradients = sample_gradients(task, 1000, 50)
    error = (gradients.std(0) / 50**0.5).square() + task.mutual_information_gradient_error().square()
    deviation = (gradients.mean(0) - task.mutual_information_gradient()).abs() / error.sqrt()
    # At most six numbers, each of about a standard normal size.
    assert float(deviation.max()) < 4.5
    assert float(error.sqrt().norm()) < 0.1 * float(task.mutual_information_gradient().norm())


def finite_difference(task, step=1e-4):
    steps = step * torch.eye(len(task.theta), dtype=DOUBLE)
    return torch.stack(
        [
            (task.at(task.theta + s).mutual_information() - task.at(task.theta - s).mutual_information()) / (2 * step)
            for s in steps
        ]
    )


@pytest.mark.parametrize("name", ["gauss-dense", "gauss-low-noise", "spiral", "student", "mixture-signs", "mlp-blocks"])
def test_gradient_is_the_derivative_of_the_information(name):
    task = pair(name, dimension(name), DOUBLE)
    # A Monte-Carlo truth draws the same samples at every theta, so that it can be differenced too.
    assert torch.allclose(finite_difference(task), task.mutual_information_gradient(), rtol=1e-5, atol=1e-6)


def test_mlp_truth_by_quadrature_agrees_with_monte_carlo():
    exact = pair("mlp-blocks", 2, DOUBLE)
    draws = torch.randn(4096, 2, dtype=DOUBLE, generator=generator(1))
    sampled = tasks.Encoder(
        exact.theta, exact.hidden_directions, exact.out_directions, exact.bias, exact.noise, draws, truth_repeats=24
    )
    information = (sampled.truth.information - exact.truth.information) / sampled.truth.information_error
    gradient = (sampled.truth.gradient - exact.truth.gradient) / sampled.truth.gradient_error
    assert float(sampled.truth.information_error) < 0.02 * float(exact.truth.information)
    assert float(information.abs()) < 4
    assert float(gradient.abs().max()) < 4


def test_truths_are_the_same_in_every_run():
    first, second = (tasks.cast(pair("mixture-clusters", 2, DOUBLE), DOUBLE) for _ in range(2))
    assert first is not second
    assert torch.equal(first.mutual_information_gradient(), second.mutual_information_gradient())


@pytest.mark.parametrize("name", ["gauss-dense", "half-cube", "student", "student-asinh", "mixture-clusters"])
def test_information_by_numerical_integration(name):
    task = pair(name, 1, DOUBLE)
    core = task.core if isinstance(task, tasks.TransformedPair) else task  # the same information
    joint, x_density, z_density = log_densities(core)
    heavy = isinstance(core, tasks.StudentPair)
    # Integrate over u with (x, z) = sinh(u) where tails are heavy; the trapezoidal rule is exact to rounding then.
    axis = torch.linspace(-9, 9, 1201, dtype=DOUBLE)
    value, slope = (torch.sinh(axis), torch.cosh(axis)) if heavy else (2 * axis, torch.full_like(axis, 2.0))
    points = torch.cartesian_prod(value, value)
    weight = torch.cartesian_prod(slope, slope).prod(-1) * float(axis[1] - axis[0]) ** 2
    log_joint = joint(points)
    ratio = log_joint - x_density(points[:, :1]) - z_density(points[:, 1:])
    information = float((weight * log_joint.exp() * ratio).sum())
    error = float(task.truth.information_error) if name == "mixture-clusters" else 0.0
    assert information == pytest.approx(float(task.mutual_information()), abs=1e-5 + 4 * error)


def test_information_of_the_one_dimensional_encoder():
    task = pair("mlp", 1, DOUBLE)
    one = tasks.Encoder(
        task.theta,
        task.hidden_directions,
        task.out_directions,
        task.bias,
        task.noise,
        torch.linspace(-7, 7, 2001, dtype=DOUBLE)[:, None],
        torch.log_softmax(-torch.linspace(-7, 7, 2001, dtype=DOUBLE).square() / 2, 0),
    )
    x = torch.linspace(-8, 8, 1601, dtype=DOUBLE)
    codes = one.encode(x[:, None])[:, 0]
    prior = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    z = torch.linspace(float(codes.min()) - 4, float(codes.max()) + 4, 4001, dtype=DOUBLE)
    normal = torch.distributions.Normal(codes, one.noise)
    density = normal.log_prob(z[:, None]).exp() @ prior
    entropy = float(torch.trapezoid(torch.special.entr(density), z))
    expected = entropy - 0.5 * math.log(2 * math.pi * math.e * one.noise**2)
    assert float(one.mutual_information()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", list(PAIRS))
def test_protocol(name):
    task = pair(name, 4)
    assert isinstance(task, tasks.PairTask)
    assert pair(name, 4) is task
    theta = task.theta.clone().requires_grad_()
    x, z = task.at(theta).sample(8, generator())
    again = task.sample(8, generator())
    assert x.dtype == z.dtype == torch.float32
    assert torch.equal(x.detach(), again[0])
    assert torch.equal(z.detach(), again[1])
    assert z.requires_grad
    assert not again[1].requires_grad
    scores = task.scores(*again)
    for score, points in zip(scores, (x, z, x, z), strict=True):
        assert score.shape == points.shape
        assert score.dtype == points.dtype
        assert not score.requires_grad
    # Single and double precision see the same task: no score is lost to rounding.
    double = tasks.cast(task, DOUBLE).scores(again[0].double(), again[1].double())
    for score, reference in zip(scores, double, strict=True):
        assert float((score - reference).norm()) <= 1e-3 * float(reference.norm())


def test_pair_rejects():
    with pytest.raises(ValueError, match="unknown task"):
        pair("none", 2)
    for name, dim, message in (
        ("spiral", 1, "does not exist"),
        ("mlp-blocks", 3, "does not exist"),
        ("toy", 0, "got 0"),
    ):
        with pytest.raises(ValueError, match=f"dim: .*{message}"):
            pair(name, dim)


def test_correlated_gaussian_follows_the_protocol():
    task = tasks.CorrelatedGaussian(2, torch.tensor([0.3, -0.5]))
    assert isinstance(task, tasks.PairTask)
    assert torch.equal(task.theta, task.rho)
    assert torch.equal(task.mutual_information_gradient_error(), torch.zeros(2))
    assert torch.equal(task.at(task.theta / 2).rho, task.rho / 2)


@pytest.mark.parametrize(
    "noise",
    [
        tasks.Gaussian(torch.zeros(2), torch.eye(2)),
        tasks.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 0.5),
        tasks.StudentT(2, 5.0),
    ],
    ids=["gaussian", "mixture", "student"],
)
def test_entropy_gradient_of_a_linear_map(noise):
    loading = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], requires_grad=True)
    task = tasks.LinearMap(noise, loading)
    z = task.sample(200_000, generator())
    score = task.score(z.detach())
    (gradient,) = torch.autograd.grad(-(score * z).sum(-1).mean(), loading)
    # The standard error of an entry is below 0.01.
    assert torch.allclose(gradient, task.entropy_gradient(), atol=0.04)
