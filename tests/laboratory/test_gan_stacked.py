"""GANs of stacked digits: metrics and features against their definitions, seeds together and alone, host reads."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dispatch import host_reads
from torch import nn

from migelib import entropy_surrogate
from migelib.experiments import gan_stacked
from migelib.experiments.adversarial import SMOOTH, Game, GameTraining
from migelib.experiments.gan_stacked import METHODS, Config, Stacks
from migelib.experiments.networks import digit_classifier
from migelib.experiments.randomness import Streams
from migelib.experiments.training import Stack, train_classifier

CPU = torch.device("cpu")
TINY = Config(
    seeds=2,
    training=GameTraining(steps=2, batch=16, noise=4, width=8, evaluation=50),
    methods=("vanilla", "ege-projection", "ege-discriminator", "ege-classifier"),
    settings=(("vanilla", 1e-3), ("ege-projection", 0.1), ("ege-discriminator", 0.1), ("ege-classifier", 0.1)),
    data="mnist_5k",
    size=8,
    projection=6,
    checkpoints=2,
)


class Lookup(nn.Module):
    """Classifies a constant image by its value: digit d has the value d / 10."""

    def forward(self, x):
        return 1e3 * -(10 * x.mean(-1, keepdim=True) - torch.arange(10.0)).abs()


def constant_stacks():
    digits = (torch.arange(10.0) / 10)[:, None, None].expand(10, 4, 4)
    return Stacks(digits, Lookup(), nn.Identity, torch.zeros(1, 48, 2))


def random_stacks(seeds):
    digits = Streams([0], "digits").normal(20, 8, 8)[0].tanh()
    classifier = Stack.build(lambda: digit_classifier(8), seeds, "classifier")
    return Stacks(digits, classifier, lambda: classifier, Streams(seeds, "matrix").normal(192, 6))


def game(method, seeds):
    return Game(random_stacks(seeds), METHODS[method], 2 if method == "pacgan" else 0.1, TINY.training, seeds, CPU)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def brief(monkeypatch):
    """Ten steps for a classifier."""

    def train(network, batch, indices, optimiser):
        train_classifier(network, batch, itertools.islice(indices, 10), optimiser)

    monkeypatch.setattr(gan_stacked, "train_classifier", train)


def test_stacks_are_told_apart_by_their_three_digits():
    task = constant_stacks()
    (found,) = task.judge(task.sample(50_000, Streams([0], "test")))
    assert found["modes"] == 1000
    assert found["quality"] == 100
    assert found["kl"] == pytest.approx(999 / 2 / 50_000, rel=0.2)  # the bias of a histogram
    one = torch.stack([task.digits[d] for d in (1, 2, 3)])[None].expand(20, 3, 4, 4)
    other = torch.stack([task.digits[d] for d in (3, 2, 1)])[None].expand(20, 3, 4, 4)
    missed = {"modes": 1.0, "quality": 100.0, "kl": pytest.approx(math.log(1000))}
    assert task.judge(one[None]) == [missed]
    (both,) = task.judge(torch.cat([one, other])[None])
    assert both == {"modes": 2.0, "quality": 100.0, "kl": pytest.approx(math.log(500))}


def test_features_are_of_the_layers_that_they_name():
    played = game("ege-discriminator", (0, 1))
    samples = Streams([0, 1], "test").normal(5, 3, 8, 8)
    features, logits = played.discriminator(samples)
    assert features.shape == (2, 5, 64)
    assert (features < 0).any()  # before the activation
    weight, bias = (played.discriminator.weights[f"head.7.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(nn.functional.leaky_relu(features, 0.2) @ weight.mT + bias[:, None], logits)
    projected = gan_stacked.projection(played.task, samples, features)
    torch.testing.assert_close(projected[1], samples[1].flatten(1) @ played.task.matrix[1])
    classified = gan_stacked.classifier(played.task, samples, features)
    channel = samples[:, :, 2].flatten(2)
    torch.testing.assert_close(classified[..., 20:], played.task.guide(channel))


@pytest.mark.parametrize("method", METHODS)
def test_seeds_together_are_seeds_alone(method, double):
    together, alone = game(method, (3, 7)), game(method, (7,))
    for played in (together, alone):
        for _ in range(2):
            played.step()
    a, b = (played.samples(20, Streams(seeds, "test")) for played, seeds in ((together, (3, 7)), (alone, (7,))))
    assert not torch.allclose(a[0], a[1])
    real = together.task.sample(20, together.random)
    assert not torch.allclose(real[0], real[1])
    torch.testing.assert_close(a[1], b[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_steady_step_reads_no_more_than_the_entropy_checks_its_arguments(method):
    played = game(method, (0, 1))
    played.step()
    features = torch.randn(2, 16, 30, requires_grad=True)
    allowed = host_reads(lambda: entropy_surrogate(features, SMOOTH)) if method.startswith("ege") else {}
    assert host_reads(played.step) == allowed


def test_seeds_measure_all_and_repeat(brief):
    shared = gan_stacked.prepare(TINY, CPU)
    results = gan_stacked.run_seeds(TINY, shared, [0, 1], CPU)
    (again,) = gan_stacked.run_seeds(replace(TINY, methods=("vanilla",)), shared, [1], CPU)
    quantities, curves = results[1]
    assert quantities != results[0][0]
    assert all(name.split("/")[-1] in gan_stacked.METRICS for name in quantities)
    assert {name.split("/")[0] for name in quantities} == {*TINY.methods, "data", "classifier"}
    assert curves["ege-classifier/stacked/samples"].shape == (8, 3, 8, 8)
    assert set(again[0]) < set(quantities)
    samples, repeated = (own["vanilla/stacked/samples"].astype(float) for own in (curves, again[1]))
    assert np.abs(samples - repeated).max() <= 2  # of 255 grey values
    assert again[0]["classifier/stacked/accuracy"] == pytest.approx(quantities["classifier/stacked/accuracy"], abs=1)
    assert gan_stacked.data_source(TINY)


def test_the_guiding_classifier_is_not_the_judge(brief):
    task = gan_stacked.stacks(TINY, gan_stacked.prepare(TINY, CPU), [0])
    pairs = zip(task.classifier.parameters(), task.guide.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs if a.ndim > 2)
    assert task.guide is task.guide  # trained once
    assert all(not p.requires_grad for p in task.guide.parameters())


def test_settings_are_hashable():
    assert len({hash(config) for config in gan_stacked.PROFILES.values()}) == len(gan_stacked.PROFILES)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"methods": ("wgan",)}, "methods.*'wgan'.*vanilla"), ({"settings": ()}, "settings.*'vanilla'.*add")],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        gan_stacked.prepare(replace(TINY, **change), CPU)
