"""The autoencoder experiment: its metrics against closed forms and slow oracles, its training at a tiny scale."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import distributions, nn

from migelib.experiments import autoencoder, records
from migelib.experiments.autoencoder import KERNELS, Config, Frontier, Images, mmd_squared
from migelib.experiments.networks import batches
from migelib.experiments.randomness import stream
from migelib.experiments.records import Quantity, Record

CPU = torch.device("cpu")
TINY = Config(
    seeds=2,
    frontiers=(
        Frontier(2, 32, 4, {"none": (0.0,), "ege": (3.0,), "wae-gan": (1.0,), "wae-mmd-rbf": (10.0,), "vae": (1.0,)}),
    ),
    hidden=16,
    classifier_epochs=1,
    posterior_codes=(2, 3),
    posterior_methods=("vae", "vae-full", "vae-3x", "ege"),
    posterior_steps=5,
    posterior_batch=8,
    posterior_samples=8,
    likelihood_images=4,
    likelihood_samples=20,
    grid=20,
    kept={"ege": 3.0},
)


@pytest.fixture(scope="module")
def images():
    """Images 8 x 8 of two bars whose lengths are random; the label says which bar is longer."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(300, 2, 1, generator=generator) * 8
    bars = (lengths - torch.arange(8)).clamp(0, 1)
    x = bars.repeat_interleave(4, dim=1).flatten(1)
    y = (lengths[:, 0] > lengths[:, 1]).long().squeeze(1)
    return Images(x[:260], y[:260], x[260:], y[260:])


@pytest.mark.parametrize("name", KERNELS)
def test_mmd_is_the_sum_over_pairs(name):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=generator).double(), torch.randn(5, 3, generator=generator).double() + 1

    def k(a, b):
        return float(KERNELS[name]((a - b).square().sum(), 3))

    within_x = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within_y = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    assert float(mmd_squared(x, y, KERNELS[name])) == pytest.approx(within_x + within_y - 2 * across, abs=1e-5)
    batch = mmd_squared(torch.stack([x, x]), torch.stack([y, y + 1]), KERNELS[name])
    assert float(batch[1]) == pytest.approx(float(mmd_squared(x, y + 1, KERNELS[name])), abs=1e-6)


def test_energy_distance_of_two_gaussians():
    shift, n = 0.7, 3000
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, 1, generator=generator)

    def mean_distance(m):  # E|N(m, 2)|
        return 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)

    truth = 2 * mean_distance(shift) - 2 * mean_distance(0.0)
    assert float(mmd_squared(x + shift, y, KERNELS["energy"])) == pytest.approx(truth, rel=0.1)
    assert abs(float(mmd_squared(x, y, KERNELS["energy"]))) < 0.005


def test_rbf_width_is_the_median_distance_of_the_prior():
    z = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    median = torch.pdist(z).median()
    assert float(KERNELS["rbf"](median.square(), 8)) == pytest.approx(math.exp(-0.5), rel=0.01)


def test_frechet_distance_against_a_matrix_root():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 5, generator=generator).double()
    first, second, mean = a @ a.T, b @ b.T, torch.arange(5.0)
    root = scipy.linalg.sqrtm((first @ second).numpy()).real
    truth = float(mean.square().sum() + first.trace() + second.trace()) - 2 * np.trace(root)
    distance = autoencoder.frechet_distance(mean, first, torch.zeros(5), second)
    assert float(distance) == pytest.approx(truth, rel=1e-6)
    assert float(autoencoder.frechet_distance(mean, first, mean, first)) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def linear_gaussian():
    """x = W z + noise: log joint, exact log evidence and exact posterior of a few images."""
    generator = torch.Generator().manual_seed(0)
    loading, noise = torch.randn(6, 3, generator=generator), 0.5
    x = torch.randn(40, 6, generator=generator) * 1.5
    evidence = distributions.MultivariateNormal(torch.zeros(6), loading @ loading.T + noise**2 * torch.eye(6))
    precision = torch.eye(3) + loading.T @ loading / noise**2
    mean = x @ loading @ precision.inverse() / noise**2
    posterior = distributions.MultivariateNormal(mean, precision.inverse().expand(40, 3, 3))

    def log_density(z):
        likelihood = distributions.Normal(z @ loading.T, noise).log_prob(x[:, None]).sum(-1)
        return likelihood + distributions.Normal(0, 1).log_prob(z).sum(-1)

    torch.manual_seed(0)
    return log_density, evidence.log_prob(x), posterior.sample((200,)).movedim(0, 1)


def test_likelihood_bound_is_tight_with_samples_of_the_posterior(linear_gaussian):
    log_density, truth, samples = linear_gaussian
    generator = torch.Generator().manual_seed(1)
    bound = autoencoder.importance_log_likelihood(log_density, samples, 1000, generator)
    torch.testing.assert_close(bound, truth, rtol=0, atol=0.15)
    # The weights' mean is the evidence, also with few samples: no systematic part is left.
    ratios = [
        (autoencoder.importance_log_likelihood(log_density, samples, 20, generator) - truth).exp().mean()
        for _ in range(50)
    ]
    assert float(torch.stack(ratios).mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("shift", "scale"), [(1.0, 1.0), (0.0, 0.1), (0.0, 5.0)])
def test_likelihood_bound_stays_below_with_other_samples(linear_gaussian, shift, scale):
    log_density, truth, samples = linear_gaussian
    centre = samples.mean(1, keepdim=True)
    wrong = centre + shift + scale * (samples - centre)
    bound = autoencoder.importance_log_likelihood(log_density, wrong, 100, torch.Generator().manual_seed(1))
    assert float((bound - truth).mean()) < -0.02


def test_the_proposal_is_normalised():
    # The prior itself in place of the joint density: its integral is one, and its share of 10 % bounds the ratio.
    generator = torch.Generator().manual_seed(0)
    samples = 0.5 + 0.3 * torch.randn(200, 100, 2, generator=generator)

    def log_prior(z):
        return distributions.Normal(0, 1).log_prob(z).sum(-1)

    bound = autoencoder.importance_log_likelihood(log_prior, samples, 1000, generator)
    assert float(bound.exp().mean()) == pytest.approx(1, abs=0.02)
    assert float(bound.exp().max()) <= 10


def test_grid_posterior_of_a_decoder_that_ignores_its_code():
    decoder = nn.Sequential(nn.Linear(2, 4))
    nn.init.zeros_(decoder[0].weight)
    nn.init.constant_(decoder[0].bias, 0.3)
    x = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]])
    evidence, z = autoencoder.grid_posterior(decoder, x, 100, 4000, torch.Generator().manual_seed(0))
    log_one, log_zero = -math.log1p(math.exp(-0.3)), -math.log1p(math.exp(0.3))
    assert evidence.tolist() == pytest.approx([2 * log_one + 2 * log_zero, 4 * log_one], abs=1e-4)
    torch.testing.assert_close(z.mean(1), torch.zeros(2, 2), rtol=0, atol=0.06)
    torch.testing.assert_close(z[0].T.cov(), torch.eye(2), rtol=0, atol=0.08)


def test_grid_and_importance_sampling_agree():
    torch.manual_seed(0)
    decoder = nn.Linear(2, 10)
    with torch.no_grad():
        decoder.weight.mul_(4)
        x = (torch.rand(5, 10) < 0.5).float()
        generator = torch.Generator().manual_seed(0)
        evidence, z = autoencoder.grid_posterior(decoder, x, 300, 500, generator)
        joint = autoencoder.partial(autoencoder.log_joint, decoder, x)
        bound = autoencoder.importance_log_likelihood(joint, z, 2000, generator)
    torch.testing.assert_close(bound, evidence, rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", ["vae", "vae-full"])
def test_divergence_of_the_gaussian_posteriors(kind):
    torch.manual_seed(0)
    encoder = autoencoder.PosteriorEncoder(kind, 5, 7, 3, 4)
    x = torch.randn(2, 5)
    with torch.no_grad():
        encoder.rest[-1].weight.mul_(5)
        _, divergence = encoder(x, torch.zeros(2, 1, 3))
        z = encoder.draw(x, 100_000, torch.Generator().manual_seed(0))
    for codes, value in zip(z, divergence, strict=True):
        q = distributions.MultivariateNormal(codes.mean(0), codes.T.cov())
        prior = distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
        assert float(value) == pytest.approx(float(distributions.kl_divergence(q, prior)), rel=0.03)
        correlation = torch.corrcoef(codes.T)[0, 1].abs()
        assert correlation > 0.02 if kind == "vae-full" else correlation < 0.02


def test_implicit_encoder_gives_each_image_its_own_noise():
    torch.manual_seed(0)
    encoder = autoencoder.PosteriorEncoder("implicit", 5, 7, 3, 4)
    x, noise = torch.randn(2, 5), torch.randn(2, 6, 4)
    z, divergence = encoder(x, noise)
    assert z.shape == (2, 6, 3)
    assert divergence.tolist() == [0, 0]
    torch.testing.assert_close(encoder(x[1:], noise[1:])[0], z[1:])


def test_the_discriminator_learns_and_passes_its_gradient_to_the_codes():
    discriminator = autoencoder.Discriminator(2, replace(TINY, discriminator_rate=0.01), stream(0, "test"), CPU)
    noise = torch.Generator().manual_seed(0)
    z = (torch.randn(64, 2, generator=noise) + 3).requires_grad_()
    for _ in range(100):
        penalty = discriminator(z, noise)
    assert float(penalty.detach()) > 1  # softplus(0) is 0.69: codes at a mean of 3 are told from the prior
    discriminator.optimiser.zero_grad()
    penalty.backward()
    assert all(parameter.grad is None for parameter in discriminator.network.parameters())
    assert (z - 0.1 * z.grad.sign()).square().mean() < z.square().mean()  # towards the prior


def test_batches_pass_over_all_images():
    chosen = torch.cat(list(batches(10, 3, 6, torch.Generator().manual_seed(0))))
    for start in (0, 9):
        assert len(chosen[start : start + 9].unique()) == 9
    with pytest.raises(ValueError, match=r"batch.*10.*11"):
        next(batches(10, 11, 1, torch.Generator()))


def test_tiny_run_measures_everything_and_repeats(images):
    quantities, curves = autoencoder.measure(TINY, images, 0, CPU)
    again, _ = autoencoder.measure(TINY, images, 0, CPU)
    assert quantities == again
    assert all(math.isfinite(value) for value in quantities.values())
    metrics = {name.split("/")[-1] for name in quantities}
    assert metrics == set(autoencoder.UNITS)
    assert {
        "ege/d2-b32-e4-w3/frechet",
        "vae-full/posterior-d2/posterior_distance",
        "ege/posterior-d3/log_likelihood",
    } <= set(quantities)
    assert curves["ege/d2-b32-e4-w3/codes"].shape == (40, 2)
    other, _ = autoencoder.measure(TINY, images, 1, CPU)
    assert all(other[name] != quantities[name] for name in quantities if "accuracy" not in name)


@pytest.mark.parametrize("method", ["ege", "ssge-paper", "gaussian", "wae-mmd-imq", "wae-mmd-energy"])
def test_each_penalty_brings_the_codes_to_the_prior(images, method):
    config = replace(TINY, frontiers=(replace(TINY.frontiers[0], epochs=30),))
    ruler = autoencoder.Ruler.train(images, 1, stream(0, "classifier"), CPU)
    distance = {}
    for name, weight in (("none", 0.0), (method, 20.0)):
        model = autoencoder.train_autoencoder(name, weight, config.frontiers[0], config, images, 0, CPU)
        metrics, _, _ = autoencoder.evaluate(model, images, ruler, stream(0, "evaluate"))
        distance[name] = metrics["energy_distance"]
    assert distance[method] < 0.2 * distance["none"]


def test_an_implicit_encoder_learns_to_use_its_codes(images):
    config = replace(TINY, posterior_steps=250, posterior_batch=32, posterior_samples=16, learning_rate=0.01)
    metrics, curves = autoencoder.run_posterior("ege", 2, replace(config, likelihood_images=40), images, 0, CPU)
    mean = images.x_train.mean(0).clamp(0.01, 0.99)
    constant = autoencoder.reconstruction_loss(mean.logit().expand_as(images.x_test), images.x_test)
    assert metrics["log_likelihood"] > -float(constant.mean()) + 5  # a divergence summed, not averaged, gives +1
    assert metrics["reconstruction"] < -metrics["log_likelihood"]
    assert 0.05 < float(np.std(curves["codes"].astype(float), axis=1).mean()) < 0.9  # neither a point nor the prior


def record(values: dict[str, tuple[float, float]]) -> Record:
    quantities = {
        f"{name}/{metric}": Quantity(mean, 0.01, 5, "1", 0.1, "")
        for name, pair in values.items()
        for metric, mean in zip(("reconstruction", "energy_distance"), pair, strict=True)
    }
    return Record("autoencoder", "quick", {}, {}, quantities)


def test_dominance_needs_one_point_better_in_both():
    run = record({"a/s-w1": (1, 3), "a/s-w10": (2, 1), "b/s-w1": (1.5, 2), "b/s-w2": (3, 2), "b/s-w3": (2.005, 1.005)})
    assert autoencoder.dominated(run, "s", "b", "a") == {1.0: False, 2.0: True, 3.0: False}
    with pytest.raises(ValueError, match="no point of 'c'"):
        autoencoder.dominated(run, "s", "b", "c")


def test_errors_name_what_is_unknown(images):
    with pytest.raises(ValueError, match=r"method.*'wae-mmd-cubic'.*wae-mmd-imq"):
        autoencoder.train_autoencoder("wae-mmd-cubic", 1.0, TINY.frontiers[0], TINY, images, 0, CPU)
    with pytest.raises(ValueError, match=r"posterior.*'flow'"):
        autoencoder.train_posterior("flow", 2, TINY, images, 0, CPU)
    with pytest.raises(ValueError, match=r"data.*'svhn'.*mnist_5k"):
        autoencoder.data_source(replace(TINY, data="svhn"))


@pytest.mark.parametrize(
    ("profile", "setting"),
    [("quick", "d8-b64-e5"), *(("cpu", s) for s in ("d8-b128-e6", "d32-b128-e6", "d8-b32-e2", "d8-b512-e6"))],
)
def test_recorded_points_of_the_peers_are_dominated_after_a_short_training(profile, setting):
    run = records.load("autoencoder", profile)
    names = {name.split("/")[0] for name in run.quantities if f"/{setting}-" in name}
    for peer in names - {"ege", "ssge-paper", "gaussian"}:
        beaten = autoencoder.dominated(run, setting, peer, "ege")
        undecided = {300.0} if (setting, peer) == ("d8-b128-e6", "wae-mmd-imq") else set()
        assert {weight for weight, lower in beaten.items() if not lower} == undecided, peer
        assert not any(autoencoder.dominated(run, setting, "ege", peer).values()), peer


def test_recorded_lead_is_gone_after_thirty_passes_and_in_two_dimensions():
    run = records.load("autoencoder", "cpu")
    for setting in ("d8-b128-e30", "d2-b128-e6"):
        for pair in (("ege", "wae-mmd-imq"), ("wae-mmd-imq", "ege")):
            assert not any(autoencoder.dominated(run, setting, *pair).values()), (setting, pair)


def test_recorded_implicit_posterior_is_ahead_at_equal_steps_not_at_equal_time():
    run = records.load("autoencoder", "cpu")
    vae, longer, ege = (run[f"{method}/posterior-d8/log_likelihood"] for method in ("vae", "vae-3x", "ege"))
    assert ege.mean - ege.std > vae.mean + vae.std
    assert longer.mean > ege.mean
