"""The GAN experiment's metrics and training steps against closed forms, and what its records claim."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize
from torch import nn

from migelib.experiments import gan, records
from migelib.experiments.gan import Config, Mixture, Stacks, Trainer, Training

CPU = torch.device("cpu")
TINY = Config(
    seeds=2,
    plane=Training(steps=4, batch=16, noise=4, width=8, evaluation=50),
    stacked=Training(steps=2, batch=16, noise=4, width=8, evaluation=50),
    tasks=("ring",),
    settings={"stacked": {"vanilla": 1e-3, "ege-projection": 0.1, "ege-discriminator": 0.1, "ege-classifier": 0.1}},
    stacked_methods=("vanilla", "ege-projection", "ege-discriminator", "ege-classifier"),
    data="mnist_5k",
    size=8,
    projection=6,
    critic_hidden=8,
    checkpoints=2,
)


class Lookup(nn.Module):
    """Classifies a constant image by its value: digit d has the value d / 10."""

    def forward(self, x):
        return 1e3 * -(10 * x.mean(-1, keepdim=True) - torch.arange(10.0)).abs()


def stacks():
    digits = (torch.arange(10.0) / 10)[:, None, None, None].expand(10, 1, 4, 4)
    return Stacks(digits, Lookup(), nn.Identity(), 100.0, torch.zeros(48, 2))


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", gan.MIXTURES)
def test_a_perfect_generator_covers_all_modes_at_no_divergence(name):
    task = gan.mixture(name)
    found = task.judge(task.sample(100_000, generator()))
    assert found["modes"] == len(task.centres)
    assert found["quality"] == pytest.approx(100 * (1 - math.exp(-4.5)), abs=0.15)
    assert 0 <= found["kl"] < 1e-3


def test_missed_modes_cost_the_logarithm_of_their_share():
    task = Mixture.grid()
    outside = math.exp(-4.5)
    samples = Mixture(task.centres[:5], 0.0).sample(10_000, generator())
    found = task.judge(samples)
    assert found["modes"] == 5
    assert found["quality"] == 100
    assert found["kl"] == pytest.approx(math.log(5) - math.log(1 - outside), abs=1e-3)


def test_samples_far_from_every_mode_are_one_cell():
    found = Mixture.ring().judge(torch.zeros(10, 2))
    assert found == {"modes": 0.0, "quality": 0.0, "kl": pytest.approx(4.5)}


def test_weight_broadens_a_mode_as_the_chapter_says():
    w = 0.5
    task = Mixture(torch.zeros(1, 2), 0.1 * math.sqrt(1 + w))
    quality = Mixture(torch.zeros(1, 2), 0.1).judge(task.sample(100_000, generator()))["quality"]
    assert quality == pytest.approx(100 * (1 - math.exp(-4.5 / (1 + w))), abs=0.3)


def test_stacks_are_told_apart_by_their_three_digits():
    task = stacks()
    found = task.judge(task.sample(50_000, generator()))
    assert found["modes"] == 1000
    assert found["quality"] == 100
    assert found["kl"] == pytest.approx(999 / 2 / 50_000, rel=0.2)  # the bias of a histogram
    one = torch.stack([task.digits[d, 0] for d in (1, 2, 3)])[None].expand(20, 3, 4, 4)
    assert task.judge(one) == {"modes": 1.0, "quality": 100.0, "kl": pytest.approx(math.log(1000))}


@pytest.mark.parametrize("method", gan.PLANE)
def test_a_step_trains_both_networks_and_the_weight_falls_to_zero(method):
    setting = 2 if method == "pacgan" else 0.01
    trainer = Trainer(gan.mixture("ring"), method, setting, TINY.plane, TINY, 0, CPU)
    before = [[p.clone() for p in network.parameters()] for network in (trainer.generator, trainer.discriminator)]
    for _ in range(TINY.plane.steps):
        trainer.step()
    for network, old in zip((trainer.generator, trainer.discriminator), before, strict=True):
        assert all((p != q).any() for p, q in zip(network.parameters(), old, strict=True))
        assert all(p.requires_grad for p in network.parameters())
    assert [trainer._share(step) for step in range(5)] == [1, 1, 1, 0.5, 0]


def test_packs_join_different_samples():
    trainer = Trainer(gan.mixture("ring"), "pacgan", 4, TINY.plane, TINY, 0, CPU)
    samples = torch.arange(32.0).reshape(16, 2)
    assert torch.equal(trainer._seen(samples), samples.reshape(4, 8))


def test_the_entropy_spreads_a_collapsed_generator():
    """With a discriminator that says nothing only the entropy acts."""
    config = Training(steps=400, batch=64, noise=4, width=8, learning_rate=1e-2)
    spreads = {}
    for method, setting in (("vanilla", 1e-2), ("ege", 1.0)):
        trainer = Trainer(gan.mixture("ring"), method, setting, config, TINY, 0, CPU)
        with torch.no_grad():
            for p in trainer.discriminator.parameters():
                p.zero_()
            trainer.generator[-1].weight.mul_(0.01)
        trainer.optimisers[1].param_groups[0]["lr"] = 0.0
        trainer.schedules[1].base_lrs = [0.0]
        for _ in range(30):
            trainer.step()
        spreads[method] = float(trainer.samples(500, generator()).std())
    assert spreads["ege"] > 2 * spreads["vanilla"]


def test_a_seed_measures_all_and_repeats():
    gan._TUNED.clear()
    first, curves = gan.run_seed(TINY, 0, CPU)
    again, _ = gan.run_seed(TINY, 0, CPU)
    assert first == again
    assert all(name.split("/")[-1] in gan.UNITS for name in first)
    assert {name.split("/")[0] for name in first if "/ring/" in name} == set(gan.PLANE)
    assert first["vanilla/ring/setting"] in gan.METHODS["vanilla"].grid
    assert curves["tuning/ring/ege/kl"].shape == (4, 1)
    assert curves["ege-classifier/stacked/samples"].shape == (8, 3, 8, 8)
    assert gan.data_source(TINY)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gan.mixture("star"), "tasks.*'star'.*ring"),
        (lambda: Trainer(gan.mixture("ring"), "wgan", 1.0, TINY.plane, TINY, 0, CPU), "method.*'wgan'.*vanilla"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "profile",
    [p for name, p in records.available() if name == "gan" and "ring" in records.load(name, p).config["tasks"]],
)
def test_recorded_ring_is_nearer_to_the_truth_with_the_entropy(profile):
    run = records.load("gan", profile)
    ege, vanilla = (run[f"{method}/ring/kl"] for method in ("ege", "vanilla"))
    assert ege.mean + ege.std < vanilla.mean


def test_recorded_entropy_does_not_help_a_longer_run_of_the_grid():
    run = records.load("gan", "cpu-large")
    kl, modes = (
        {m: run.curves[f"{m}/grid/{metric}"][:, -1] for m in run.config["methods"]} for metric in ("kl", "modes")
    )
    assert all(run[f"{method}/grid/quality"].mean > 90 for method in run.config["methods"])
    assert abs(kl["ege"].mean() - kl["vanilla"].mean()) < kl["vanilla"].std(ddof=1)
    assert modes["ssge-paper"].mean() < modes["vanilla"].mean()
    assert kl["meg"].mean() < kl["ege"].mean()
    assert sorted(modes["instance-noise"])[-3:] == [24, 25, 25]
    assert modes["instance-noise"].min() < 10


def test_the_guiding_classifier_is_not_the_judge():
    train, test = gan.stacks("mnist_5k", 8, 2, 0, CPU)
    pairs = zip(train.classifier.parameters(), train.guide.parameters(), strict=True)
    assert all(not torch.equal(judge, guide) for judge, guide in pairs if judge.ndim > 1)
    assert all(not p.requires_grad for p in train.guide.parameters())
    assert test.guide is train.guide


@pytest.mark.parametrize(("weight", "share"), [(0.3, 0.955), (1.0, 0.859)])
def test_price_of_the_entropy_under_the_non_saturating_loss(weight, share):
    """Where (1 + q / p) q^w is constant for a Gaussian p in the plane: the share within three deviations."""
    half_square = np.linspace(0, 100, 100_001)  # |z|^2 / 2, so that an area is 2 pi times its length
    log_p = -half_square - np.log(2 * np.pi)

    def mass(density):
        return 2 * np.pi * integrate.trapezoid(density, half_square)

    def density(constant):
        low, high = np.full_like(log_p, -200.0), np.full_like(log_p, 20.0)
        for _ in range(60):  # bisection for ln q at every point
            middle = (low + high) / 2
            above = np.logaddexp(0, middle - log_p) + weight * middle > constant
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return np.exp(low)

    q = density(optimize.brentq(lambda constant: mass(density(constant)) - 1, -20, 5))
    assert mass(np.where(half_square < 4.5, q, 0)) == pytest.approx(share, abs=6e-4)
    assert share < 1 - np.exp(-4.5 / (1 + weight))  # what the KL divergence leaves
