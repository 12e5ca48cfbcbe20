"""GANs in the plane: metrics and training steps against closed forms, seeds together and alone, the records' claims."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dispatch import host_reads
from scipy import integrate, optimize

from migelib import entropy_surrogate
from migelib.experiments import gan_plane, records
from migelib.experiments.adversarial import SMOOTH, Game, GameTraining
from migelib.experiments.gan_plane import METHODS, Config, Mixture, mixture
from migelib.experiments.randomness import Streams

CPU = torch.device("cpu")
TINY = Config(
    seeds=2,
    training=GameTraining(steps=4, batch=16, noise=4, width=8, evaluation=50),
    tasks=("ring",),
    settings=(("pacgan/ring", 4),),
    checkpoints=2,
)


def game(method, setting=0.01, seeds=(0,), training=TINY.training):
    return Game(mixture("ring"), METHODS[method], setting, training, seeds, CPU)


def judged(task, samples):
    (found,) = task.judge(samples)
    return found


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", gan_plane.MIXTURES)
def test_a_perfect_generator_covers_all_modes_at_no_divergence(name):
    task = mixture(name)
    found = judged(task, task.sample(100_000, Streams([0], "test")))
    assert found["modes"] == len(task.centres)
    assert found["quality"] == pytest.approx(100 * (1 - math.exp(-4.5)), abs=0.15)
    assert 0 <= found["kl"] < 1e-3


def test_missed_modes_cost_the_logarithm_of_their_share():
    task = Mixture.grid()
    outside = math.exp(-4.5)
    samples = Mixture(task.centres[:5], 0.0).sample(10_000, Streams([0], "test"))
    found = judged(task, samples)
    assert found["modes"] == 5
    assert found["quality"] == 100
    assert found["kl"] == pytest.approx(math.log(5) - math.log(1 - outside), abs=1e-3)


def test_samples_far_from_every_mode_are_one_cell():
    found = judged(Mixture.ring(), torch.zeros(1, 10, 2))
    assert found == {"modes": 0.0, "quality": 0.0, "kl": pytest.approx(4.5)}


def test_weight_broadens_a_mode_as_the_chapter_says():
    w = 0.5
    task = Mixture(torch.zeros(1, 2), 0.1 * math.sqrt(1 + w))
    found = judged(Mixture(torch.zeros(1, 2), 0.1), task.sample(100_000, Streams([0], "test")))
    assert found["quality"] == pytest.approx(100 * (1 - math.exp(-4.5 / (1 + w))), abs=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_trains_all_networks_and_the_weight_falls_to_zero(method):
    played = game(method, 2 if method == "pacgan" else 0.01, seeds=(0, 1))
    networks = [x for x in (played.generator, played.discriminator, played.critic) if x is not None]
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    for _ in range(TINY.training.steps):
        played.step()
    for network, old in zip(networks, before, strict=True):
        assert all((p != q).flatten(1).any(1).all() for p, q in zip(network.parameters(), old, strict=True))
        assert all(p.requires_grad for p in network.parameters())
    assert [played.share(step) for step in range(5)] == [1, 1, 1, 0.5, 0]


def test_packs_join_different_samples():
    samples = torch.arange(64.0).reshape(2, 16, 2)
    assert torch.equal(game("pacgan", 4, seeds=(0, 1)).seen(samples), samples.reshape(2, 4, 8))


@pytest.mark.parametrize("method", METHODS)
def test_seeds_together_are_seeds_alone(method, double):
    setting = 2 if method == "pacgan" else 0.1
    together, alone = (game(method, setting, seeds) for seeds in ((3, 7), (7,)))
    for played in (together, alone):
        for _ in range(4):
            played.step()
    a, b = (played.samples(20, Streams(seeds, "test")) for played, seeds in ((together, (3, 7)), (alone, (7,))))
    assert not torch.allclose(a[0], a[1])
    real = together.task.sample(20, together.random)
    assert not torch.allclose(real[0], real[1])
    torch.testing.assert_close(a[1], b[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_steady_step_reads_no_more_than_the_entropy_checks_its_arguments(method):
    played = game(method, 2 if method == "pacgan" else 0.1, seeds=(0, 1))
    played.step()
    samples = torch.randn(2, 16, 2, requires_grad=True)
    entropy = method in ("ege", "ssge-paper")
    allowed = host_reads(lambda: entropy_surrogate(samples, SMOOTH)) if entropy else {}
    assert host_reads(played.step) == allowed


def test_the_entropy_spreads_a_collapsed_generator():
    """With a discriminator that says nothing only the entropy acts."""
    training = GameTraining(steps=400, batch=64, noise=4, width=8, learning_rate=1e-2)
    spreads = {}
    for method, setting in (("vanilla", 1e-2), ("ege", 1.0)):
        played = game(method, setting, training=training)
        with torch.no_grad():
            for p in played.discriminator.parameters():
                p.zero_()
            played.generator.weights["4.weight"].mul_(0.01)
        played.optimisers[1].param_groups[0]["lr"] = 0.0
        played.schedules[1].base_lrs = [0.0]
        for _ in range(30):
            played.step()
        spreads[method] = float(played.samples(500, Streams([0], "test")).std())
    assert spreads["ege"] > 2 * spreads["vanilla"]


def test_seeds_measure_all_and_repeat():
    shared = gan_plane.prepare(TINY, CPU)
    results = gan_plane.run_seeds(TINY, shared, [0, 1], CPU)
    again = gan_plane.run_seeds(TINY, shared, [1], CPU)
    quantities, curves = results[1]
    assert (curves["ege/ring/samples"] != results[0][1]["ege/ring/samples"]).any()
    assert all(name.split("/")[-1] in gan_plane.METRICS for name in quantities)
    assert {name.split("/")[0] for name in quantities} == set(METHODS)
    assert quantities["vanilla/ring/setting"] in METHODS["vanilla"].grid
    assert quantities["pacgan/ring/setting"] == 4
    assert curves["tuning/ring/ege/kl"].shape == (4, 1)
    assert "tuning/ring/pacgan/kl" not in curves
    for name, values in again[0][1].items():
        if name.endswith("samples"):
            np.testing.assert_allclose(values.astype(float), curves[name].astype(float), atol=0.01)


def test_a_method_alone_is_tuned_as_beside_the_others():
    part = replace(TINY, methods=("meg",))
    whole, alone = (gan_plane.prepare(config, CPU) for config in (TINY, part))
    assert set(alone.tuned) == {f"tuning/ring/meg/{metric}" for metric in ("modes", "quality", "kl", "setting")}
    assert all(np.array_equal(values, whole.tuned[name]) for name, values in alone.tuned.items())
    assert alone.settings["meg/ring"] == whole.settings["meg/ring"]


def test_what_was_tuned_is_not_tuned_again(monkeypatch):
    part = replace(TINY, methods=("ege",))
    tuned = {"tuning/ring/ege/kl": np.array([[3.0], [1.0], [2.0], [4.0]])}
    monkeypatch.setattr(gan_plane, "tune", None)
    assert gan_plane.prepare(part, CPU, tuned=tuned).settings["ege/ring"] == METHODS["ege"].grid[1]


def test_settings_are_hashable():
    configs = [*gan_plane.PROFILES.values(), *gan_plane.STUDIES.values()]
    assert len({hash(config) for config in configs}) == len(configs)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tasks": ("star",)}, "tasks.*'star'.*ring"), ({"methods": ("wgan",)}, "methods.*'wgan'.*vanilla")],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        gan_plane.prepare(replace(TINY, **change), CPU)


@pytest.mark.parametrize("profile", ["quick", "cpu"])
def test_recorded_ring_is_nearer_to_the_truth_with_the_entropy(profile):
    run = records.load("gan-plane", profile)
    ege, vanilla = (run[f"{method}/ring/kl"] for method in ("ege", "vanilla"))
    assert ege.mean + ege.std < vanilla.mean


def test_recorded_entropy_does_not_help_a_longer_run_of_the_grid():
    run = records.load("gan-plane", "large")
    kl, modes = (
        {m: run.curves[f"{m}/grid/{metric}"][:, -1] for m in run.config["methods"]} for metric in ("kl", "modes")
    )
    assert all(run[f"{method}/grid/quality"].mean > 90 for method in run.config["methods"])
    assert abs(kl["ege"].mean() - kl["vanilla"].mean()) < kl["vanilla"].std(ddof=1)
    assert modes["ssge-paper"].mean() < modes["vanilla"].mean()
    assert kl["meg"].mean() < kl["ege"].mean()
    assert sorted(modes["instance-noise"])[-3:] == [24, 25, 25]
    assert modes["instance-noise"].min() < 10


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
