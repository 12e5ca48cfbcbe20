"""The implicit posteriors: likelihoods and divergences against closed forms, their training at a tiny scale."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from bars import bars
from dispatch import host_reads
from torch import distributions, nn

from migelib import kl_surrogate
from migelib.experiments import implicit_posterior, records
from migelib.experiments.implicit_posterior import METHODS, Config, Shared, binarised, training
from migelib.experiments.implicit_posterior.evaluation import grid_posterior, log_joint
from migelib.experiments.implicit_posterior.networks import ExplicitEncoder, ImplicitEncoder
from migelib.experiments.metrics import importance_log_likelihood
from migelib.experiments.randomness import Streams
from migelib.experiments.training import Stack, adam, descend, reconstruction_loss
from migelib.tasks import gaussian_log_prob

CPU = torch.device("cpu")
TINY = Config(
    seeds=2,
    methods=("vae", "vae-full", "vae-3x", "ege"),
    hidden=16,
    posterior_codes=(2, 3),
    posterior_steps=5,
    posterior_batch=8,
    posterior_samples=8,
    likelihood_images=4,
    likelihood_samples=20,
    grid=20,
)


@pytest.fixture(scope="module")
def images():
    return bars()


@pytest.fixture(scope="module")
def shared(images):
    return Shared(images.x_train, binarised(images.x_test[: TINY.likelihood_images]))


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
    noise = Streams(range(51), "test")
    bound = importance_log_likelihood(log_density, samples, noise.normal(40, 1000, 3)[0])
    torch.testing.assert_close(bound, truth, rtol=0, atol=0.15)
    # The weights' mean is the evidence, also with few samples: no systematic part is left.
    few = noise.normal(40, 20, 3)[1:]
    ratios = (importance_log_likelihood(log_density, samples.expand(50, -1, -1, -1), few) - truth).exp()
    assert float(ratios.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("shift", "scale"), [(1.0, 1.0), (0.0, 0.1), (0.0, 5.0)])
def test_likelihood_bound_stays_below_with_other_samples(linear_gaussian, shift, scale):
    log_density, truth, samples = linear_gaussian
    centre = samples.mean(1, keepdim=True)
    wrong = centre + shift + scale * (samples - centre)
    bound = importance_log_likelihood(log_density, wrong, torch.randn(40, 100, 3))
    assert float((bound - truth).mean()) < -0.02


def test_the_proposal_is_normalised():
    # The prior itself in place of the joint density: its integral is one, and its share of 10 % bounds the ratio.
    generator = torch.Generator().manual_seed(0)
    samples = 0.5 + 0.3 * torch.randn(200, 100, 2, generator=generator)

    def log_prior(z):
        return distributions.Normal(0, 1).log_prob(z).sum(-1)

    bound = importance_log_likelihood(log_prior, samples, torch.randn(200, 1000, 2, generator=generator))
    assert float(bound.exp().mean()) == pytest.approx(1, abs=0.02)
    assert float(bound.exp().max()) <= 10


def test_grid_posterior_of_a_decoder_that_ignores_its_code():
    decoders = [nn.Linear(2, 4), nn.Linear(2, 4)]
    for decoder, bias in zip(decoders, (0.3, -1.0), strict=True):
        nn.init.zeros_(decoder.weight)
        nn.init.constant_(decoder.bias, bias)
    x = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]]).expand(2, -1, -1)
    with torch.no_grad():
        evidence, z = grid_posterior(Stack(decoders), x, 100, 4000, Streams([0, 1], "test"))
    for row, bias in enumerate((0.3, -1.0)):
        log_one, log_zero = -math.log1p(math.exp(-bias)), -math.log1p(math.exp(bias))
        assert evidence[row].tolist() == pytest.approx([2 * log_one + 2 * log_zero, 4 * log_one], abs=1e-4)
        torch.testing.assert_close(z[row].mean(1), torch.zeros(2, 2), rtol=0, atol=0.06)
        torch.testing.assert_close(z[row, 0].T.cov(), torch.eye(2), rtol=0, atol=0.08)


def test_grid_and_importance_sampling_agree():
    torch.manual_seed(0)
    decoder = nn.Linear(2, 10)
    with torch.no_grad():
        decoder.weight.mul_(4)
        stack, x, noise = Stack([decoder]), (torch.rand(1, 5, 10) < 0.5).float(), Streams([0], "test")
        evidence, z = grid_posterior(stack, x, 300, 500, noise)
        bound = importance_log_likelihood(partial(log_joint, stack, x), z, noise.normal(5, 2000, 2))
    torch.testing.assert_close(bound, evidence, rtol=0, atol=0.1)


@pytest.mark.parametrize("full", [False, True])
def test_divergence_of_the_gaussian_posteriors(full):
    torch.manual_seed(0)
    encoder = ExplicitEncoder(5, 7, 3, full)
    x, generator = torch.randn(2, 5), torch.Generator().manual_seed(0)
    with torch.no_grad():
        encoder.rest[-1].weight.mul_(5)
        z, divergence = encoder(x, torch.randn(2, 100_000, 3, generator=generator))
    for codes, value in zip(z, divergence, strict=True):
        q = distributions.MultivariateNormal(codes.mean(0), codes.T.cov())
        prior = distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
        assert float(value) == pytest.approx(float(distributions.kl_divergence(q, prior)), rel=0.03)
        correlation = torch.corrcoef(codes.T)[0, 1].abs()
        assert correlation > 0.02 if full else correlation < 0.02


def test_implicit_encoder_gives_each_image_its_own_noise():
    torch.manual_seed(0)
    encoder = ImplicitEncoder(5, 7, 3, 4)
    x, noise = torch.randn(2, 5), torch.randn(2, 6, 4)
    z, divergence = encoder(x, noise)
    assert z.shape == (2, 6, 3)
    assert divergence.tolist() == [0, 0]
    torch.testing.assert_close(encoder(x[1:], noise[1:])[0], z[1:])


def test_tiny_run_measures_everything_and_repeats(shared):
    quantities, curves = implicit_posterior.run_seeds(TINY, shared, [0], CPU)[0]
    again, _ = implicit_posterior.run_seeds(TINY, shared, [0], CPU)[0]
    assert quantities == again
    assert all(math.isfinite(value) for value in quantities.values())
    assert {name.split("/")[-1] for name in quantities} == set(implicit_posterior.METRICS)
    assert {"vae-full/posterior-d2/posterior_distance", "ege/posterior-d3/log_likelihood"} <= set(quantities)
    assert curves["ege/posterior-d2/codes"].shape == curves["ege/posterior-d2/posterior"].shape == (4, 20, 2)
    other, _ = implicit_posterior.run_seeds(TINY, shared, [1], CPU)[0]
    assert all(other[name] != quantities[name] for name in quantities)


def test_seeds_and_methods_run_together_as_alone(shared):
    together = implicit_posterior.run_seeds(TINY, shared, [0, 1], CPU)
    for seed, (quantities, curves) in enumerate(together):
        alone, their_curves = {}, {}
        for method in TINY.methods:
            part = replace(TINY, methods=(method,))
            ((found, more),) = implicit_posterior.run_seeds(part, shared, [seed], CPU)
            alone |= found
            their_curves |= more
        assert quantities == pytest.approx(alone, rel=1e-3, abs=1e-4)
        assert curves.keys() == their_curves.keys()


@pytest.mark.parametrize("name", ["ege", "vae", "vae-full"])
def test_a_step_reads_nothing_back(images, name):
    method, seeds, x = METHODS[name], [0, 1], images.x_train[:16].view(2, 8, 64)
    model, noise = training.build(method, 2, TINY, 64, seeds, CPU), Streams(seeds, "test")
    optimiser = adam(model.parameters(), 1e-3)

    def step():
        descend(optimiser, training.loss(model, method, 2, TINY, x, noise))

    z = torch.randn(2, 8, 8, 2, requires_grad=True)
    checks = host_reads(lambda: kl_surrogate(z, gaussian_log_prob, METHODS["ege"].estimator).backward())
    step()
    assert host_reads(step) == (checks if name == "ege" else {})


def test_an_implicit_encoder_learns_to_use_its_codes(images):
    config = replace(TINY, posterior_steps=250, posterior_batch=32, posterior_samples=16, learning_rate=0.01)
    config = replace(config, methods=("ege",), posterior_codes=(2,))
    shared = Shared(images.x_train, binarised(images.x_test))
    ((metrics, curves),) = implicit_posterior.run_seeds(config, shared, [0], CPU)
    likelihood = metrics["ege/posterior-d2/log_likelihood"]
    mean = images.x_train.mean(0).clamp(0.01, 0.99)
    constant = reconstruction_loss(mean.logit().expand_as(images.x_test), images.x_test)
    assert likelihood > -float(constant.mean()) + 5  # a divergence summed, not averaged, gives +1
    assert metrics["ege/posterior-d2/reconstruction"] < -likelihood
    spread = curves["ege/posterior-d2/codes"].astype(float).std(axis=1).mean()
    assert 0.05 < spread < 0.9  # neither a point nor the prior


@pytest.mark.parametrize("profile", implicit_posterior.PROFILES)
def test_every_configuration_is_hashable_and_its_methods_are_known(profile):
    config = implicit_posterior.PROFILES[profile]
    assert isinstance(hash(config), int)
    assert set(config.methods) <= set(METHODS)


def test_errors_name_what_is_unknown(images):
    with pytest.raises(ValueError, match=r"methods.*'flow'.*vae-full"):
        implicit_posterior.train("flow", 2, TINY, images.x_train, [0], CPU)


def test_recorded_implicit_posterior_is_ahead_at_equal_steps_not_at_equal_time():
    run = records.load("implicit-posterior", "cpu")
    vae, longer, ege = (run[f"{method}/posterior-d8/log_likelihood"] for method in ("vae", "vae-3x", "ege"))
    assert ege.mean - ege.std > vae.mean + vae.std
    assert longer.mean > ege.mean
