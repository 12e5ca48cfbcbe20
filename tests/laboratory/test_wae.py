"""The Wasserstein autoencoders: their metrics against closed forms and slow oracles, their training at a tiny scale."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from bars import bars
from dispatch import host_reads

from migelib import kl_surrogate
from migelib.experiments import records, wae
from migelib.experiments.data import load_vectors
from migelib.experiments.metrics import KERNELS, frechet_distance, mmd_squared
from migelib.experiments.randomness import Streams
from migelib.experiments.records import Quantity, Record
from migelib.experiments.training import adam, descend
from migelib.experiments.wae import METHODS, Config, Frontier, Ruler, Shared, objectives, training
from migelib.experiments.wae.networks import Autoencoder
from migelib.tasks import gaussian_log_prob

CPU = torch.device("cpu")
TINY = Config(
    seeds=2,
    methods=("none", "ege", "wae-gan", "wae-mmd-rbf", "vae"),
    frontiers=(
        Frontier(
            2,
            32,
            4,
            (("none", (0.0,)), ("ege", (3.0,)), ("wae-gan", (1.0,)), ("wae-mmd-rbf", (10.0,)), ("vae", (1.0,))),
        ),
    ),
    hidden=16,
    classifier_epochs=1,
    kept=(("ege", 3.0),),
)


@pytest.fixture(scope="module")
def images():
    return bars()


@pytest.fixture(scope="module")
def shared(images):
    return Shared(images, Ruler.train(images, TINY.classifier_epochs, range(TINY.seeds), CPU))


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
    distance = frechet_distance(mean, first, torch.zeros(5), second)
    assert float(distance) == pytest.approx(truth, rel=1e-6)
    assert float(frechet_distance(mean, first, mean, first)) == pytest.approx(0, abs=1e-6)


def test_the_discriminator_learns_and_passes_its_gradient_to_the_codes():
    discriminator = objectives.AdversarialPenalty(replace(TINY, discriminator_rate=0.01), 2, [0, 1], CPU)
    noise = Streams([0, 1], "test")
    z = (noise.normal(64, 2) + 3).requires_grad_()
    for _ in range(100):
        penalty = discriminator(z, noise)
    assert float(penalty.detach()) > 2  # softplus(0) is 0.69 a seed: codes at a mean of 3 are told from the prior
    discriminator.optimiser.zero_grad()
    penalty.backward()
    assert all(weight.grad is None for weight in discriminator.network.parameters())
    for row, grad in zip(z.detach(), z.grad, strict=True):
        assert (row - 0.1 * grad.sign()).square().mean() < row.square().mean()  # towards the prior


def test_batches_pass_over_all_images():
    chosen = torch.cat(list(Streams([0, 1], "test").batches(10, 3, 6)), dim=1)
    for row in chosen:
        for start in (0, 9):
            assert len(row[start : start + 9].unique()) == 9
    with pytest.raises(ValueError, match=r"batch.*10.*11"):
        next(Streams([0], "test").batches(10, 11, 1))


def test_images_are_rows_of_grey_values():
    images = load_vectors("mnist_5k", 50, 20, CPU)
    assert images.x_train.shape == (50, 784)
    assert images.x_test.shape == (20, 784)
    assert (images.x_train.min(), images.x_train.max()) == (0, 1)
    assert len(images.y_test) == 20


def test_tiny_run_measures_everything_and_repeats(shared):
    quantities, curves = wae.run_seeds(TINY, shared, [0], CPU)[0]
    again, _ = wae.run_seeds(TINY, shared, [0], CPU)[0]
    assert quantities == again
    assert all(math.isfinite(value) for value in quantities.values())
    assert {name.split("/")[-1] for name in quantities} == set(wae.METRICS)
    assert "ege/d2-b32-e4-w3/frechet" in quantities
    assert curves["ege/d2-b32-e4-w3/codes"].shape == (40, 2)
    other, _ = wae.run_seeds(TINY, shared, [1], CPU)[0]
    assert all(other[name] != quantities[name] for name in quantities if "accuracy" not in name)


def test_the_parts_of_a_run_share_their_classifiers():
    config = replace(TINY, data="mnist_5k", images=256, test_images=100)
    first, second = (wae.prepare(replace(config, methods=(method,)), CPU) for method in ("none", "ege"))
    assert first is second
    assert len(first.ruler.accuracy) == config.seeds
    assert wae.prepare(replace(config, seeds=1), CPU) is not first


def test_seeds_and_methods_run_together_as_alone(shared):
    together = wae.run_seeds(TINY, shared, [0, 1], CPU)
    for seed, (quantities, curves) in enumerate(together):
        alone, their_curves = {}, {}
        for method in TINY.methods:
            ((found, more),) = wae.run_seeds(replace(TINY, methods=(method,)), shared, [seed], CPU)
            alone |= found
            their_curves |= more
        assert quantities == pytest.approx(alone, rel=1e-3, abs=1e-4)
        assert curves.keys() == their_curves.keys()


def test_rulers_of_some_seeds_are_theirs(images, shared):
    alone, second = Ruler.train(images, TINY.classifier_epochs, [1], CPU), shared.ruler.of([1])
    assert second.accuracy == alone.accuracy
    assert second.floor == pytest.approx(alone.floor, rel=1e-3)
    samples = images.x_train[None, :50]
    assert second.distances(samples) == pytest.approx(alone.distances(samples), rel=1e-3)


@pytest.mark.parametrize("method", ["ege", "wae-mmd-imq", "wae-gan", "vae"])
def test_a_step_reads_nothing_back(images, method):
    seeds, x = [0, 1], images.x_train[:64].view(2, 32, 64)
    model = Autoencoder.build(METHODS[method].encoding, 64, 16, 2, seeds, CPU)
    penalty, noise = METHODS[method].start(TINY, 2, seeds, CPU), Streams(seeds, "test")
    optimiser = adam(model.networks.parameters(), 1e-3)

    def step():
        descend(optimiser, training.loss(model, penalty, 1.0, x, noise))

    z = torch.randn(2, 32, 2, requires_grad=True)
    checks = host_reads(lambda: kl_surrogate(z, gaussian_log_prob, wae.ESTIMATORS["ege"]).backward())
    step()
    assert host_reads(step) == (checks if method == "ege" else {})


@pytest.mark.parametrize("method", ["ege", "ssge-paper", "gaussian", "wae-mmd-imq", "wae-mmd-energy"])
def test_each_penalty_brings_the_codes_to_the_prior(images, shared, method):
    frontier = Frontier(2, 32, 30, ())
    distance = {}
    for name, weight in (("none", 0.0), (method, 20.0)):
        model = wae.train(name, weight, frontier, TINY, images.x_train, [0], CPU)
        metrics, _, _ = wae.evaluate(model, images, shared.ruler.of([0]), Streams([0], "evaluate"))
        (distance[name],) = metrics["energy_distance"]
    assert distance[method] < 0.2 * distance["none"]


@pytest.mark.parametrize("profile", wae.PROFILES)
def test_every_configuration_is_hashable_and_has_the_methods_of_its_frontiers(profile):
    config = wae.PROFILES[profile]
    assert isinstance(hash(config), int)
    assert set(config.methods) == {method for frontier in config.frontiers for method, _ in frontier.weights}
    assert set(config.methods) <= set(METHODS)


def record(values: dict[str, tuple[float, float]]) -> Record:
    quantities = {
        f"{name}/{metric}": Quantity(mean, 0.01, 5, "1", 0.1, "")
        for name, pair in values.items()
        for metric, mean in zip(("reconstruction", "energy_distance"), pair, strict=True)
    }
    return Record("wae", "quick", {}, {}, quantities)


def test_dominance_needs_one_point_better_in_both():
    run = record({"a/s-w1": (1, 3), "a/s-w10": (2, 1), "b/s-w1": (1.5, 2), "b/s-w2": (3, 2), "b/s-w3": (2.005, 1.005)})
    assert wae.dominated(run, "s", "b", "a") == {1.0: False, 2.0: True, 3.0: False}
    with pytest.raises(ValueError, match="no point of 'c'"):
        wae.dominated(run, "s", "b", "c")


def test_errors_name_what_is_unknown(images):
    with pytest.raises(ValueError, match=r"methods.*'wae-mmd-cubic'.*wae-mmd-imq"):
        wae.train("wae-mmd-cubic", 1.0, TINY.frontiers[0], TINY, images.x_train, [0], CPU)
    with pytest.raises(ValueError, match=r"methods.*wae-mmd-rbf.*'wae-mmd-cubic'"):
        replace(TINY, methods=("ege", "wae-mmd-cubic"))
    with pytest.raises(ValueError, match=r"data.*'svhn'.*mnist_5k"):
        wae.data_source(replace(TINY, data="svhn"))


@pytest.mark.parametrize(
    ("profile", "setting"),
    [("quick", "d8-b64-e5"), *(("cpu", s) for s in ("d8-b128-e6", "d32-b128-e6", "d8-b32-e2", "d8-b512-e6"))],
)
def test_recorded_points_of_the_peers_are_dominated_after_a_short_training(profile, setting):
    run = records.load("wae", profile)
    names = {name.split("/")[0] for name in run.quantities if f"/{setting}-" in name}
    for peer in names - {"ege", "ssge-paper", "gaussian"}:
        beaten = wae.dominated(run, setting, peer, "ege")
        undecided = {300.0} if (setting, peer) == ("d8-b128-e6", "wae-mmd-imq") else set()
        assert {weight for weight, lower in beaten.items() if not lower} == undecided, peer
        assert not any(wae.dominated(run, setting, "ege", peer).values()), peer


def test_recorded_lead_is_gone_after_thirty_passes_and_in_two_dimensions():
    run = records.load("wae", "cpu")
    for setting in ("d8-b128-e30", "d2-b128-e6"):
        for pair in (("ege", "wae-mmd-imq"), ("wae-mmd-imq", "ege")):
            assert not any(wae.dominated(run, setting, *pair).values()), (setting, pair)
