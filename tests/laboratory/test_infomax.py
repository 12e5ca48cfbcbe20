"""The Deep InfoMax experiment: its encoder, projections, objectives, diagnostics and classifiers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dispatch import host_reads

from migelib import mutual_information_surrogate
from migelib.experiments import infomax, records
from migelib.experiments.compare import difference
from migelib.experiments.data import Images
from migelib.experiments.infomax.evaluation import classifier_accuracies
from migelib.experiments.infomax.networks import pca
from migelib.experiments.infomax.objectives import Batch, MomentMige, MovingMoments
from migelib.experiments.infomax.training import Trainer, train
from migelib.experiments.metrics import effective_rank
from migelib.experiments.networks import DeepInfoMaxEncoder, LayerFeatures
from migelib.experiments.randomness import Streams, stream
from migelib.scores import GaussianScore
from migelib.tasks import CorrelatedGaussian

CPU = torch.device("cpu")
SMALL = infomax.Config(
    seeds=2,
    methods=("random", "mige", "pca"),
    dataset="mnist_5k",
    train=192,
    test=100,
    widths=(4, 8),
    hidden=16,
    code=6,
    batch=64,
    epochs=2,
    projection=20,
    filters=8,
    components=5,
    resolved=3,
    critic_hidden=16,
    embedding=4,
    classifier_epochs=2,
    log_points=3,
)


TRAINED = [name for name, method in infomax.METHODS.items() if hasattr(method, "objective")]


@pytest.fixture(scope="module")
def images() -> Images:
    return infomax.prepare(SMALL, CPU)


def objective_of(method, images, seeds=(0,), config=SMALL):
    return infomax.METHODS[method].objective(config, images, seeds, method)


def trainer_of(method, images, seeds=(0,), config=SMALL):
    return Trainer(config, objective_of(method, images, seeds, config), images, seeds, method)


def test_encoder_is_that_of_deep_infomax():
    encoder = DeepInfoMaxEncoder()
    features = encoder(torch.zeros(2, 3, 32, 32))
    assert [tuple(f.shape) for f in features] == [(2, 256, 4, 4), (2, 1024), (2, 64)]
    convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 256)
    normalisations = 2 * (64 + 128 + 256 + 1024)
    layers = 4096 * 1024 + 1024 * 64 + 64
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + normalisations + layers
    assert encoder.conv_dim == 4096


@pytest.mark.parametrize("settings", [{"code": 0}, {"hidden": -1}, {"channels": 0}, {"size": 7}])
def test_encoder_rejects(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        DeepInfoMaxEncoder(**settings)


def test_images_are_the_same_in_every_run_and_standardised(images):
    again = infomax.prepare(SMALL, CPU)
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    assert images.x_train.shape == (192, 1, 28, 28)
    assert float(images.x_train.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.x_train.std()) == pytest.approx(1, abs=1e-4)
    assert infomax.prepare(replace(SMALL, size=14), CPU).x_test.shape == (100, 1, 14, 14)
    with pytest.raises(ValueError, match="train"):
        infomax.prepare(replace(SMALL, train=10**6), CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("mige", "magic")}, "magic"),
        ({"other_rates": (("magic", 0.1),)}, "magic"),
        ({"dataset": "mars"}, "mars"),
        ({"train": 10}, "batch"),
    ],
)
def test_config_rejects(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **settings)


def test_moving_moments_are_those_of_a_weighted_sample_for_each_seed():
    batches = torch.randn(4, 2, 50, 3, generator=torch.Generator().manual_seed(0)) + 2
    moving = MovingMoments(0.7)
    for batch in batches:
        moving.update(batch)
    weights = np.repeat(0.7 ** np.arange(3, -1, -1), 50)
    for seed, (mean, covariance) in enumerate(zip(*moving.moments(), strict=True)):
        samples = batches[:, seed].flatten(0, 1).double().numpy()
        np.testing.assert_allclose(mean, np.average(samples, 0, weights), rtol=1e-10)
        expected = np.cov(samples.T, aweights=weights, ddof=0)
        np.testing.assert_allclose(covariance, expected + 1e-3 * np.diag(np.diag(expected)), rtol=1e-10)
    with pytest.raises(ValueError, match="decay"):
        MovingMoments(1.0)


def test_one_batch_of_moments_gives_the_gaussian_score():
    samples = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([1.0, 2, 3, 4]))
    moving = MovingMoments(0.0)
    moving.update(samples)
    for start in (0, 2):
        exact = GaussianScore().fit(samples[:, start:])(samples[:, start:])
        torch.testing.assert_close(moving.score(samples[:, start:], start), exact, rtol=0.01, atol=1e-3)


def test_moment_surrogate_has_the_gradient_of_the_information():
    dim, n = 2, 20_000
    rho = torch.tensor(0.6, requires_grad=True)
    objective = MomentMige.__new__(MomentMige)
    objective.moments = MovingMoments(0.0)
    objective.pair = lambda batch: CorrelatedGaussian(dim, rho).sample(n, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(-objective(None), rho)
    # The ridge of a thousandth and 20,000 samples; a wrong sign, or a block of the wrong variable, each fail.
    assert gradient.item() == pytest.approx(dim * 0.6 / (1 - 0.36), rel=0.05)


@pytest.mark.parametrize("method", TRAINED)
def test_every_objective_trains_and_repeats(method, images):
    start = trainer_of(method, images).encoder
    encoder, history = train(SMALL, objective_of(method, images), images, (0,), method)
    again, _ = train(SMALL, objective_of(method, images), images, (0,), method)
    moved = sum(
        float((a - b).detach().abs().sum()) for a, b in zip(encoder.parameters(), start.parameters(), strict=True)
    )
    assert (moved == 0) == (method == "random")
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))
    assert all(np.isfinite(curve).all() for curve in history.values())
    assert method == "random" or history["effective_rank"].shape == (1, 3)
    parts = [encoder(x[None]).y[0] for x in images.x_test.split(50)]
    torch.testing.assert_close(encoder(images.x_test[None]).y[0], torch.cat(parts))  # it is in evaluation mode


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", ["mige", "mige-balanced", "mige-moments", "jsd-prior", "supervised"])
def test_seeds_trained_together_are_those_trained_alone(method, images, double_precision):
    images = images._replace(x_train=images.x_train.double(), x_test=images.x_test.double())

    def codes(seeds):
        trainer = trainer_of(method, images, seeds)
        order = Streams(seeds, "batches")
        for index in order.batches(192, 64, 4):
            trainer.step(index)
        return trainer.encoder.eval()(images.x_test.expand(len(seeds), *images.x_test.shape)).y

    together = codes((3, 0))
    for seed, own in zip((3, 0), together, strict=True):
        torch.testing.assert_close(own, codes((seed,))[0], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(together[0], together[1], rtol=0.1)


@pytest.mark.parametrize("method", ["mige", "mige-moments", "jsd-prior"])
def test_a_steady_step_reads_nothing_back_but_for_the_estimators_checks(method, images):
    trainer = trainer_of(method, images, (0, 1))
    index = torch.arange(128).reshape(2, 64)
    trainer.step(index)

    def checks():
        if method == "mige":
            x, z = trainer.objective.pair(trainer.batch(index))
            mutual_information_surrogate(x, z, trainer.objective.estimator).backward()

    assert host_reads(lambda: trainer.step(index)) == host_reads(checks)


def test_supervision_lowers_the_loss(images):
    trainer = trainer_of("supervised", images, config=replace(SMALL, learning_rate=3e-3))
    index = torch.arange(64)[None]
    before = trainer.objective(trainer.batch(index)).item()
    for _ in range(60):
        trainer.step(index)
    assert trainer.objective(trainer.batch(index)).item() < before / 2


def test_a_method_has_its_own_rate():
    settings = replace(SMALL, other_rates=(("jsd", 0.1),))
    assert settings.rate("jsd") == 0.1
    assert settings.rate("mige") == SMALL.learning_rate


def test_prior_matching_trains_discriminator_and_encoder_against_each_other(images):
    objective = objective_of("jsd-prior", images, config=replace(SMALL, prior_weight=1.0))
    objective.bound = lambda critic: critic.sum((-2, -1)) * 0
    y = torch.randn(1, 64, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = LayerFeatures(torch.randn(1, 64, 8, 7, 7), torch.zeros(1, 64, 16), y)
    index = torch.arange(64)[None]
    batch = Batch(index, images.x_train[index], images.y_train[index], features, Streams([0], "noise"))
    (gradient,) = torch.autograd.grad(objective(batch).sum(), y)
    softplus = torch.nn.functional.softplus
    fooled = softplus(objective.prior(torch.sigmoid(y))).mean()  # the discriminator minimises it, the encoder maximises
    (expected,) = torch.autograd.grad(-fooled, y)
    torch.testing.assert_close(gradient, expected)


def test_effective_rank():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(50_000, 5, generator=generator)
    assert effective_rank(white) == pytest.approx(5, rel=1e-3)
    assert effective_rank(white @ torch.diag(torch.tensor([1.0, 1.0, 0, 0, 0]))) == pytest.approx(2, rel=1e-3)


def test_classifiers_tell_linear_from_nonlinear():
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    config = replace(SMALL, classifier_epochs=40, classifier_rate=0.01)
    for labels, easy in (((x[:, 0] > 0).long(), True), ((x[:, 0] * x[:, 1] > 0).long(), False)):
        pairs = (x[None, :3000], labels[:3000]), (x[None, 3000:], labels[3000:])
        linear, layered = (classifier_accuracies(config, *pairs, h, (0,), "c")[0] for h in (None, 50))
        assert layered > 95
        assert linear > 95 if easy else linear < 65


def test_classifiers_of_all_seeds_are_those_of_each_and_read_no_step_back(double_precision):
    x = torch.randn(2, 600, 3, generator=torch.Generator().manual_seed(0))
    labels = (x[0, :, 0] > 0).long()

    def accuracies(seeds, epochs=3):
        config = replace(SMALL, classifier_epochs=epochs)
        rows = x[list(seeds)]
        return classifier_accuracies(
            config, (rows[:, :400], labels[:400]), (rows[:, 400:], labels[400:]), 20, seeds, "c"
        )

    assert accuracies((1, 0)) == [accuracies((1,))[0], accuracies((0,))[0]]
    assert host_reads(lambda: accuracies((0, 1), 1)) == host_reads(lambda: accuracies((0, 1), 4))


def test_pca_reference_has_the_largest_variances(images):
    projected = pca(SMALL, images, stream(0, "pca"))(images.x_train)
    expected = torch.linalg.eigvalsh(torch.cov(images.x_train.flatten(1).mT))[-6:]
    torch.testing.assert_close(projected.var(0), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.cov(projected.mT).diagonal(), expected, rtol=1e-3, atol=1e-3)


def test_a_run_has_all_quantities(images):
    config = replace(SMALL, timed_steps=2)
    ((quantities, curves),) = infomax.run_seeds(config, images, (0,), CPU)
    assert {name.split("/")[0] for name in quantities} == {"random", "mige", "pca"}
    for method, layer in (("random", "conv"), ("mige", "fc"), ("mige", "y"), ("pca", "y")):
        for metric in ("test_accuracy", "probe_accuracy"):
            assert 0 <= quantities[f"{method}/{layer}/{metric}"] <= 100
    assert all(isinstance(value, float) for value in quantities.values())
    assert all(name.split("/")[-1] in infomax.METRICS for name in quantities)
    assert set(infomax.FLOORS) <= set(infomax.METRICS)
    assert curves["mige/kept_joint"].shape == (3,)
    assert curves["mige/step_ms"].shape == curves["mige/encoder_step_ms"].shape == (2,)
    assert infomax.data_source(SMALL)


def test_results_do_not_depend_on_what_else_is_run(images):
    together = infomax.run_seeds(SMALL, images, (0, 1), CPU)
    for method in SMALL.methods:
        ((quantities, curves),) = infomax.run_seeds(replace(SMALL, methods=(method,)), images, (1,), CPU)
        beside, curves_beside = together[1]
        assert set(quantities) == {name for name in beside if name.split("/")[0] == method}
        for name, value in quantities.items():  # 100 test images: an accuracy may move by one of them
            assert beside[name] == pytest.approx(value, rel=1e-3, abs=2.0 if "accuracy" in name else 0)
        for name, curve in curves.items():
            np.testing.assert_allclose(curves_beside[name], curve, rtol=5e-2)


def test_configs_are_hashable():
    runs = [*infomax.PROFILES.values(), *infomax.STUDIES.values()]
    assert len({*runs}) == len(runs) == 4


@pytest.mark.parametrize("profile", [profile for name, profile in records.available() if name == "infomax"])
def test_what_the_chapter_claims_is_recorded(profile):
    run = records.load("infomax", profile)

    def gain(first, second, metric):
        return difference(run[f"{first}/y/{metric}"], run[f"{second}/y/{metric}"])

    for metric in ("test_accuracy", "probe_accuracy"):
        for first, second in (
            ("mige", "random"),
            ("mige", "infonce"),
            ("mige-moments", "jsd"),
            ("mige-moments", "pca"),
        ):
            assert gain(first, second, metric).low > 0, (first, second, metric)
        found = gain("mige-moments", "mige", metric)
        assert found.low > 0
        assert found.mean > 2
    assert gain("mige", "jsd", "test_accuracy").low > 0


def test_with_all_images_mige_is_ahead_of_the_critics_in_both_layers():
    run = records.load("infomax", "large")
    for layer in ("fc", "y"):
        for metric in ("test_accuracy", "probe_accuracy"):
            for bound in ("jsd", "infonce"):
                assert difference(run[f"mige/{layer}/{metric}"], run[f"{bound}/{layer}/{metric}"]).low > 0
    # the chapter's negative result
    assert difference(run["pca/y/test_accuracy"], run["mige/y/test_accuracy"]).low > 0
