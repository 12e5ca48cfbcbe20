r"""The kernel estimators and the bounds against independent implementations on the same samples.

Optional: skipped unless the peers are installed, by ``pip install migelib[crosscheck]`` in an environment of its own:
the TensorFlow Probability that non-param-score-est imports does not work with a current JAX, and torch-mist pins
NumPy 1. Then ``pytest -m crosscheck``. Last run: Python 3.11, torch 2.13.0, NumPy 1.26.4, JAX 0.4.35,
non-param-score-est 1.0.0, torch-mist 0.2.17, all comparisons in double precision.

Kernel estimators, `non-param-score-est`:

- SSGE coincides everywhere for the same width and number of eigenvalues, with the peer's `eta` at 0. Its default
  `eta` = 0.1 is added to the Gram matrix's diagonal, and 1e-6 to the eigenvalues that the coefficients are divided by.
  Its width is the median of all distances, the mean of the two middle ones of an even count; ours is the upper one.
- Stein coincides at the samples with ridge = n lam: the peer adds n^2 lam to the Gram matrix where Li & Turner write
  eta, and ours has eta = n ridge. Off the samples the definitions differ: the peer's value at a point is that of the
  estimate fitted to the samples and this point together, at the same eta; ours is the Nystrom extension.
- Tikhonov with a curl-free kernel coincides everywhere with ridge = sigma^2 lam: our curl-free kernel carries a factor
  sigma^2, so that K(x, x) = I. The peer has no Tikhonov, Landweber or nu-method with a diagonal kernel.
- The nu-method coincides everywhere at width 1, and at other widths in the units of the width: without that factor the
  peer's operator has norms up to 1 / sigma^2, and the method is made for norms up to 1.
- Landweber does not coincide: the peer adds the Stein term with the other sign and leaves out two factors 1 / n. Its
  recursion, written out here and put right, gives ours.
- KDE coincides everywhere for the same width; the default widths differ (the peer has one per coordinate).

Bounds, `torch-mist`, on the same critic, with all other samples of the batch as negatives:

- NWJ, SMILE, InfoNCE (there the joint pair is among the negatives, on both sides), MINE's value and CLUB coincide, and
  so does the gradient of MINE's training loss with its moving average, over several steps.
- JS coincides for a critic of any class but the peer's `SeparableCritic`, whose short cut counts the joint pairs among
  the negatives of the training loss.
"""

import importlib
import warnings

import numpy as np
import pytest
import torch

from migelib import bounds
from migelib.kernels import VectorKernel, median_distance
from migelib.scores import KDE, SSGE, Landweber, NuMethod, Stein, Tikhonov

pytestmark = pytest.mark.crosscheck


def peer_module(name):
    """Import a peer, or skip; what it warns of while it is imported is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")


@pytest.fixture(scope="module")
def peers():
    module = peer_module("non_param_score_est.estimators")
    importlib.import_module("jax").config.update("jax_enable_x64", True)
    return module


@pytest.fixture(scope="module")
def samples():
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise @ torch.tensor([[1.5, 0.4, 0.0], [0.0, 0.8, -0.3], [0.0, 0.0, 1.1]], dtype=torch.float64)


@pytest.fixture(scope="module")
def points():
    return 1.5 * torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def evaluate(peer, points, samples):
    import jax.numpy as jnp

    samples = jnp.asarray(samples.numpy())
    points = samples if points is None else jnp.asarray(points.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = np.asarray(peer.estimate_gradients_s_x(points, samples))
    assert found.dtype == np.float64
    return torch.as_tensor(np.array(found))


def difference(ours, peer):
    return float((ours - peer).norm() / peer.norm())


@pytest.mark.parametrize("count", [1, 5, 12])
def test_ssge_with_a_number_of_eigenvalues(peers, samples, points, count):
    peer = peers.SSGE(eta=0.0, n_eigen_values=count, bandwidth=1.7)
    score = SSGE(n_eigen=count, width=1.7).fit(samples)
    # The peer adds 1e-6 to eigenvalues, the least of which is near 0.1 here.
    for where in (samples, points):
        assert difference(score(where), evaluate(peer, where, samples)) < 1e-4


def test_ssge_with_an_energy(peers, samples, points):
    peer = peers.SSGE(eta=0.0, n_eigen_threshold=0.97, bandwidth=1.7)
    score = SSGE(0.97, width=1.7).fit(samples)
    assert difference(score(points), evaluate(peer, points, samples)) < 1e-4


def test_ssge_differs_by_the_ridge_of_the_peers_default(peers, samples):
    peer = evaluate(peers.SSGE(n_eigen_values=12, bandwidth=1.7), samples, samples)
    assert difference(SSGE(n_eigen=12, width=1.7).fit(samples)(samples), peer) > 0.01
    # The peer's filter, from the eigenvalues that it sees: one factor 1 / (l + eta) comes from the extension.
    gram = VectorKernel(samples, samples, torch.tensor(1.7).double(), "rbf", False)
    values, vectors = torch.linalg.eigh(gram.g[0])
    values, vectors = values[-12:], vectors[:, -12:]
    gain = len(samples) * values / ((values + 0.1) * (values + 0.1 + 1e-6))
    assert difference(-vectors @ (gain[:, None] * (vectors.mT @ gram.stein())), peer) < 1e-6


@pytest.mark.parametrize("n", [59, 60])
def test_median_width(peers, samples, n):
    distances = torch.cdist(samples[:n], samples[:n], compute_mode="donot_use_mm_for_euclid_dist").flatten()
    found = float(peers.SSGE().bandwith_median_heuristic(samples[:n].numpy()))
    assert found == pytest.approx(float(distances.quantile(0.5)), rel=1e-6)
    if n % 2:
        assert found == pytest.approx(float(median_distance(samples[:n])), rel=1e-6)
    else:  # the upper one of the two middle distances, the same but for their gap
        middle = distances.sort().values[n * n // 2]
        assert float(median_distance(samples[:n])) == pytest.approx(float(middle), rel=1e-6)


def test_stein_at_the_samples(peers, samples):
    peer = evaluate(peers.Stein(lam=1e-5, bandwidth=1.7), None, samples)
    score = Stein(ridge=1e-5 * len(samples), kernel="imq", width=1.7).fit(samples)
    assert difference(score(samples), peer) < 1e-8


def test_stein_off_the_samples_is_another_extension(peers, samples, points):
    peer = evaluate(peers.Stein(lam=1e-5, bandwidth=1.7), points, samples)
    eta = 1e-5 * len(samples) ** 2
    rows = []
    for point in points:  # what the peer does: the point joins the samples
        joined = torch.cat([samples, point[None]])
        rows.append(Stein(ridge=eta / len(joined), kernel="imq", width=1.7).fit(joined)(joined)[-1])
    assert difference(torch.stack(rows), peer) < 1e-8
    nystrom = Stein(ridge=1e-5 * len(samples), kernel="imq", width=1.7).fit(samples)(points)
    assert difference(nystrom, peer) > 0.01


KERNELS = [("rbf", "curl_free_se"), ("imq", "curl_free_imq")]


@pytest.mark.parametrize(("kernel", "name"), KERNELS)
@pytest.mark.parametrize("width", [0.7, 1.7])
def test_tikhonov(peers, samples, points, kernel, name, width):
    peer = peers.Tikhonov(lam=1e-2, kernel_type=name, bandwidth=width, use_cg=False)
    ours = Tikhonov(ridge=1e-2 * width**2, kernel=kernel, curl_free=True, width=width, tolerance=1e-13)
    score = ours.fit(samples)
    for where in (samples, points):
        assert difference(score(where), evaluate(peer, where, samples)) < 1e-8


@pytest.mark.parametrize(("kernel", "name"), KERNELS)
@pytest.mark.parametrize("width", [1.0, 1.7])
def test_nu_method(peers, samples, points, kernel, name, width):
    peer = peers.NuMethod(lam=None, num_iter=15, kernel_type=name, bandwidth=1.0)
    score = NuMethod(steps=15, kernel=kernel, curl_free=True, width=width).fit(samples)
    for where in (samples, points):  # in the units of the width, in which the peer's is 1
        assert difference(score(where), evaluate(peer, where / width, samples / width) / width) < 1e-8


@pytest.mark.parametrize(("kernel", "name"), KERNELS)
def test_landweber_differs_by_a_sign_and_by_factors_of_n(peers, samples, kernel, name):
    steps, size, n = 40, 2.0**-7, len(samples)  # the peer's step is a single-precision number: an exact one
    gram = VectorKernel(samples, samples, torch.tensor(1.0).double(), kernel, True)
    zeta = gram.stein()

    def recursion(sign, size, share):
        c = torch.zeros_like(zeta)
        for t in range(1, steps):
            c = c - size * share * gram.apply(c) + sign * t * size**2 * share * zeta
        return gram.apply(c) - steps * size * zeta

    peer = peers.Landweber(num_iter=steps, kernel_type=name, bandwidth=1.0, stepsize=size)
    assert difference(recursion(-1, size, 1.0), evaluate(peer, samples, samples)) < 1e-8
    ours = Landweber(steps=steps, kernel=kernel, curl_free=True, width=1.0).fit(samples)(samples)
    assert difference(ours, recursion(1, 1.0, 1 / n)) < 1e-8


def test_kde(peers, samples, points):
    for where in (samples, points):
        peer = evaluate(peers.KDE(bandwidth=0.6), where, samples)
        assert difference(KDE(width=0.6).fit(samples)(where), peer) < 1e-10


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mist():
    peer_module("torch_mist")
    return peer_module("torch_mist.estimators"), peer_module("torch_mist.critic.separable").SeparableCritic


@pytest.fixture(scope="module")
def pair():
    x, z = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, 0.6 * x + 0.8 * z


def peer_value(mist, pair, name, negatives=-1, **settings):
    """Mean of torch-mist's log-ratio for the critic T(x, z) = x . z."""
    estimators, critic = mist
    estimator = getattr(estimators, name)(critic=critic(), neg_samples=negatives, **settings)
    return float(estimator.mutual_information(*pair))


def test_nwj(mist, pair):
    x, z = pair
    assert float(bounds.nwj(x @ z.mT)) == pytest.approx(peer_value(mist, pair, "NWJ"), rel=1e-6)


@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_smile(mist, pair, tau):
    x, z = pair
    assert float(bounds.smile(x @ z.mT, tau)) == pytest.approx(peer_value(mist, pair, "SMILE", tau=tau), rel=1e-6)


def test_infonce(mist, pair):
    x, z = pair
    assert float(bounds.infonce(x @ z.mT)) == pytest.approx(peer_value(mist, pair, "InfoNCE", 0), rel=1e-6)


def test_mine(mist, pair):
    x, z = pair
    assert float(bounds.mine(x @ z.mT)[0]) == pytest.approx(peer_value(mist, pair, "MINE"), rel=1e-6)


def bilinear_critic(weight):
    """A critic that is not of the peer's separable class, which takes a short cut."""
    base = peer_module("torch_mist.critic.base").Critic

    class Bilinear(base):
        def forward(self, x, y):
            return ((x @ weight) * y).sum(-1)

    return Bilinear()


def test_gradient_of_mines_training(mist, pair):
    weight = torch.eye(4, dtype=torch.float64).requires_grad_()
    estimator = mist[0].MINE(critic=bilinear_critic(weight), neg_samples=-1, gamma=0.8)
    running = None
    for step in range(3):
        x, z = (1 + 0.2 * step) * pair[0], pair[1]
        ours, running = bounds.mine(x @ weight @ z.mT, running, 0.8)
        (gradient,) = torch.autograd.grad(-ours, weight)
        (expected,) = torch.autograd.grad(estimator.loss(x, z), weight)
        assert difference(gradient, expected) < 1e-6


def test_jsd(mist, pair):
    x, z = pair
    estimators, separable = mist
    weight = torch.eye(4, dtype=torch.float64)
    loss = float(estimators.JS(critic=bilinear_critic(weight), neg_samples=-1).loss(x, z))
    assert float(bounds.jsd(x @ z.mT)) == pytest.approx(-loss, rel=1e-6)
    loss = float(estimators.JS(critic=separable(), neg_samples=-1).loss(x, z))
    softplus = torch.nn.functional.softplus
    assert float(softplus(-(x * z).sum(-1)).mean() + softplus(x @ z.mT).mean()) == pytest.approx(loss, rel=1e-6)


def test_club(mist, pair):
    distributions = peer_module("pyro.distributions")

    class Conditional(distributions.ConditionalDistribution):
        def condition(self, context):
            return distributions.Normal(0.5 * context, 1.3).to_event(1)

    x, z = pair
    matrix = Conditional().condition(x[:, None]).log_prob(z)
    expected = float(mist[0].CLUB(Conditional()).mutual_information(x, z))
    assert float(bounds.club(matrix)) == pytest.approx(expected, rel=1e-6)
