"""The Deep InfoMax experiment: its encoder, projections, objectives, diagnostics and classifiers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from migelib.experiments import infomax, records
from migelib.experiments.networks import DeepInfoMaxEncoder, PatchFeatures
from migelib.experiments.randomness import stream
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


@pytest.fixture(scope="module")
def images() -> infomax.Images:
    return infomax.load_images(SMALL, CPU)


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
    again = infomax.load_images(SMALL, CPU)
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    assert images.x_train.shape == (192, 1, 28, 28)
    assert float(images.x_train.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.x_train.std()) == pytest.approx(1, abs=1e-4)
    assert infomax.load_images(replace(SMALL, size=14), CPU).x_test.shape == (100, 1, 14, 14)
    with pytest.raises(ValueError, match="train"):
        infomax.load_images(replace(SMALL, train=10**6), CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"methods": ("mige", "magic")}, "magic"), ({"dataset": "mars"}, "mars"), ({"train": 10}, "batch")],
)
def test_config_rejects(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **settings)


def test_patch_features_match_a_slow_oracle(images):
    x = images.x_train[:20]
    features = PatchFeatures(x, filters=3, size=5, stride=3, patches=200, generator=torch.Generator().manual_seed(0))
    raw = torch.zeros(20, 3, 2, 2)
    for i in range(20):
        for f in range(3):
            for row in range(2):
                for column in range(2):
                    # 28 pixels give 8 places at stride 3, and 4 a cell.
                    places = [
                        (3 * a, 3 * b) for a in range(4 * row, 4 * row + 4) for b in range(4 * column, 4 * column + 4)
                    ]
                    values = [float((x[i, :, a : a + 5, b : b + 5] * features.weights[f]).sum()) for a, b in places]
                    raw[i, f, row, column] = np.mean([max(v - 1.0, 0.0) for v in values])
    raw = raw.flatten(1)
    expected = (raw - raw.mean(0)) / raw.std(0).clamp_min(1e-6)
    torch.testing.assert_close(features(x), expected, rtol=1e-3, atol=1e-3)


def test_patch_features_do_not_see_brightness(images):
    features = PatchFeatures(images.x_train, filters=8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(features(images.x_test + 3), features(images.x_test), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("settings", "message"), [({"size": 40}, "pixels"), ({"patches": 4, "filters": 8}, "patches")])
def test_patch_features_reject(images, settings, message):
    with pytest.raises(ValueError, match=message):
        PatchFeatures(images.x_train, **settings)


def test_moving_moments_are_those_of_a_weighted_sample():
    batches = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0)) + 2
    moving = infomax.MovingMoments(0.7)
    for batch in batches:
        moving.update(batch)
    weights = np.repeat(0.7 ** np.arange(3, -1, -1), 50)
    samples = batches.flatten(0, 1).double().numpy()
    mean, covariance = moving.moments()
    np.testing.assert_allclose(mean, np.average(samples, 0, weights), rtol=1e-10)
    expected = np.cov(samples.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(covariance, expected + 1e-3 * np.diag(np.diag(expected)), rtol=1e-10)
    with pytest.raises(ValueError, match="memory"):
        infomax.MovingMoments(1.0)


def test_one_batch_of_moments_gives_the_gaussian_score():
    samples = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([1.0, 2, 3, 4]))
    moving = infomax.MovingMoments(0.0)
    moving.update(samples)
    for start in (0, 2):
        exact = GaussianScore().fit(samples[:, start:])(samples[:, start:])
        torch.testing.assert_close(moving.score(samples[:, start:], start), exact, rtol=0.01, atol=1e-3)


def test_moment_surrogate_has_the_gradient_of_the_information():
    dim, n = 2, 20_000
    rho = torch.tensor(0.6, requires_grad=True)
    objective = infomax.MomentMige.__new__(infomax.MomentMige)
    torch.nn.Module.__init__(objective)
    objective.moments = infomax.MovingMoments(0.0)
    objective.pair = lambda batch: CorrelatedGaussian(dim, rho).sample(n, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(-objective(None), rho)
    # The ridge of a thousandth and 20,000 samples; a wrong sign, or a block of the wrong variable, each fail.
    assert gradient.item() == pytest.approx(dim * 0.6 / (1 - 0.36), rel=0.05)


@pytest.mark.parametrize("method", infomax.OBJECTIVES)
def test_every_objective_trains_and_repeats(method, images):
    encoder, history = infomax.train(SMALL, method, images, 0)
    again, _ = infomax.train(SMALL, method, images, 0)
    start = infomax.encoder_of(SMALL, images, stream(0, "encoder"))
    moved = sum(
        float((a - b).detach().abs().sum()) for a, b in zip(encoder.parameters(), start.parameters(), strict=True)
    )
    assert (moved == 0) == (method == "random")
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))
    assert all(math.isfinite(value) for curve in history.values() for value in curve)
    assert method == "random" or len(history["effective_rank"]) == 3
    assert not encoder.training


def test_supervision_lowers_the_loss(images):
    trainer = infomax.Trainer(replace(SMALL, learning_rate=3e-3), "supervised", images, 0)
    index = torch.arange(64)
    before = trainer.objective(trainer.batch(index)).item()
    for _ in range(60):
        trainer.step(index)
    assert trainer.objective(trainer.batch(index)).item() < before / 2


def test_prior_matching_trains_discriminator_and_encoder_against_each_other(images):
    settings = replace(SMALL, prior_weight=1.0)
    objective = infomax.objective_of(settings, "jsd-prior", images, stream(0, "objective"))
    objective.bound = lambda critic: critic.sum() * 0
    y = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = infomax.Features(torch.randn(64, 8, 7, 7), torch.zeros(64, 16), y)
    batch = infomax.Batch(torch.arange(64), images.x_train[:64], images.y_train[:64], features, stream(0, "noise"))
    (gradient,) = torch.autograd.grad(objective(batch), y)
    softplus = torch.nn.functional.softplus
    fooled = softplus(objective.prior(torch.sigmoid(y))).mean()  # the discriminator minimises it, the encoder maximises
    (expected,) = torch.autograd.grad(-fooled, y)
    torch.testing.assert_close(gradient, expected)


def test_effective_rank():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(50_000, 5, generator=generator)
    assert infomax.effective_rank(white) == pytest.approx(5, rel=1e-3)
    assert infomax.effective_rank(white @ torch.diag(torch.tensor([1.0, 1.0, 0, 0, 0]))) == pytest.approx(2, rel=1e-3)


def test_classifiers_tell_linear_from_nonlinear():
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    config = replace(SMALL, classifier_epochs=40, classifier_rate=0.01)
    for labels, easy in (((x[:, 0] > 0).long(), True), ((x[:, 0] * x[:, 1] > 0).long(), False)):
        pairs = (x[:3000], labels[:3000]), (x[3000:], labels[3000:])
        linear, layered = (infomax.classifier_accuracy(config, *pairs, h, stream(0, "c")) for h in (None, 50))
        assert layered > 95
        assert linear > 95 if easy else linear < 65


def test_pca_reference_has_the_largest_variances(images):
    projected = infomax.pca(SMALL, images, stream(0, "pca"))(images.x_train)
    expected = torch.linalg.eigvalsh(torch.cov(images.x_train.flatten(1).mT))[-6:]
    torch.testing.assert_close(projected.var(0), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.cov(projected.mT).diagonal(), expected, rtol=1e-3, atol=1e-3)


def test_a_run_has_all_quantities():
    quantities, curves = infomax.run_seed(replace(SMALL, timed_steps=2), 0, CPU)
    assert {name.split("/")[0] for name in quantities} == {"random", "mige", "pca"}
    for method, layer in (("random", "conv"), ("mige", "fc"), ("mige", "y"), ("pca", "y")):
        for metric in ("test_accuracy", "probe_accuracy"):
            assert 0 <= quantities[f"{method}/{layer}/{metric}"] <= 100
    assert all(name.split("/")[-1] in infomax.UNITS for name in quantities)
    assert curves["mige/kept_joint"].shape == (3,)
    assert curves["mige/step_ms"].shape == curves["encoder/step_ms"].shape == (2,)
    assert infomax.data_source(SMALL)


@pytest.mark.parametrize("profile", [profile for name, profile in records.available() if name == "infomax"])
def test_what_the_chapter_claims_is_recorded(profile):
    run = records.load("infomax", profile)

    def gain(first, second, metric):
        a, b = run[f"{first}/y/{metric}"], run[f"{second}/y/{metric}"]
        return a.mean - b.mean, a.std + b.std

    for metric in ("test_accuracy", "probe_accuracy"):
        for first, second in (
            ("mige", "random"),
            ("mige", "infonce"),
            ("mige-moments", "jsd"),
            ("mige-moments", "pca"),
        ):
            difference, spread = gain(first, second, metric)
            assert difference > spread, (first, second, metric)
        difference, spread = gain("mige-moments", "mige", metric)
        assert difference > max(2.0, spread)
    difference, spread = gain("mige", "jsd", "test_accuracy")
    assert difference > spread


def test_with_all_images_mige_is_ahead_of_the_critics_in_both_layers():
    run = records.load("infomax", "cpu-large")
    for layer in ("fc", "y"):
        for metric in ("test_accuracy", "probe_accuracy"):
            mige = run[f"mige/{layer}/{metric}"]
            for bound in ("jsd", "infonce"):
                other = run[f"{bound}/{layer}/{metric}"]
                assert mige.mean - other.mean > mige.std + other.std
    assert run["pca/y/test_accuracy"].mean > run["mige/y/test_accuracy"].mean  # the chapter's negative result
