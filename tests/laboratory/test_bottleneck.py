"""The bottleneck's training against slow oracles, and what its records claim."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from dispatch import host_reads

from migelib.experiments import bottleneck, compare, records
from migelib.experiments.bottleneck import measures, networks, training
from migelib.experiments.data import load_mnist_5k
from migelib.experiments.metrics import auroc, calibration_error
from migelib.experiments.randomness import Streams
from migelib.experiments.training import adam

CPU = torch.device("cpu")


def test_calibration_error_of_a_hand_made_example():
    log_probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]).log()
    # Bin of 0.9: accuracy 0.5, gap 0.4, half of the samples; bin of 0.6: accuracy 1, gap 0.4.
    assert calibration_error(log_probs, torch.tensor([0, 1, 1, 1])) == pytest.approx(0.4, abs=1e-6)


def test_auroc_counts_pairs():
    negatives, positives = torch.tensor([0.1, 0.4, 0.4]), torch.tensor([0.4, 0.9])
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    assert auroc(negatives, positives) == pytest.approx(np.mean(pairs))


def small(**changes):
    sizes = {"hidden": 24, "code": 8, "train": 300, "epochs": 1, "batch": 50}
    sweeps = {"sweep_hidden": 24, "sweep_train": 200, "sweep_epochs": 1, "validation": 500, "tuning_seeds": 1}
    counts = {"attacked": 50, "informed": 60, "plane_weights": (1e-2,)}
    return replace(bottleneck.PROFILES["quick"], **(sizes | sweeps | counts | changes))


@pytest.fixture(scope="module")
def images():
    return bottleneck.prepare(small(methods=()), CPU)


def train(method, weight, images, config, seeds=(0,)):
    """Networks of the seeds, all trained on the first images."""
    rows = torch.arange(config.train).expand(len(seeds), -1)
    return training.train(bottleneck.METHODS[method], weight, images.x, images.y, rows, config, seeds)


@pytest.mark.parametrize("method", bottleneck.METHODS)
def test_every_method_trains_reproducibly_and_leaves_the_global_generator_alone(method, images):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second = (train(method, 0.1, images, small()) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    (measured,) = measures.measure(first, images.x_test[:60], images.y_test[:60], small(), [0])
    assert all(math.isfinite(value) for value in measured.values())
    if bottleneck.METHODS[method].needs_weight:
        other = train(method, 0.0, images, small())
        assert not torch.equal(first.decoder.weights["weight"], other.decoder.weights["weight"])


@pytest.fixture
def precise(images):
    """The images, and all that is drawn beside them, in double precision: Adam amplifies rounding."""
    torch.set_default_dtype(torch.float64)
    yield replace(images, x=images.x.double(), x_test=images.x_test.double())
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", bottleneck.METHODS)
def test_seeds_together_are_the_seeds_alone(method, precise):
    config = small(epochs=2, image_noise=0.1)
    together = train(method, 0.1, precise, config, (0, 1))
    measured = measures.measure(together, precise.x_test, precise.y_test, config, (0, 1))
    for i in range(2):
        alone = train(method, 0.1, precise, config, (i,))
        for found, expected in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(found[i], expected[0], rtol=0, atol=1e-8)
        (expected,) = measures.measure(alone, precise.x_test, precise.y_test, config, (i,))
        assert measured[i] == pytest.approx(expected, rel=1e-5)


def test_noisy_layers_of_seeds_together_predict_what_they_predict_alone(precise):
    config = small(hidden_noise=0.3)
    together = train("vib", 0.1, precise, config, (0, 1))
    found = measures.predict(together, precise.x_test[:50], 3, Streams((0, 1), "test"))
    for i in range(2):
        alone = train("vib", 0.1, precise, config, (i,))
        (expected,) = measures.predict(alone, precise.x_test[:50], 3, Streams((i,), "test"))
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-6)


# A code checks its scales, once; besides the encoder's there is that of the learnt prior.
READS = {
    "baseline": 0,
    "dropout": 0,
    "vib": 1,
    "vib-mixture": 2,
    "mine": 1,
    "mige-gaussian": 1,
    "mige-classes": 1,
    "kl": 1,
}


@pytest.mark.parametrize("method", READS)
def test_a_step_reads_nothing_but_a_code_s_check(method, images):
    config = small(image_noise=0.1, hidden_noise=0.1)
    noise = Streams([0, 1], "train")
    model, objective = training.start(
        bottleneck.METHODS[method], 0.1, images.x.shape[1], config, noise, Streams([0, 1], "penalty")
    )
    optimiser = adam([*model.parameters(), *objective.parameters()], 1e-3)
    batch = images.x[:100].reshape(2, 50, -1), images.y[:100].reshape(2, 50)

    def step():
        training.step(model, objective, optimiser, *batch, noise, config)

    step()  # the first one makes what later ones find
    reads = host_reads(step)
    assert set(reads) <= {"_local_scalar_dense"}
    assert sum(reads.values()) <= READS[method]


@pytest.mark.parametrize("changes", [{"image_noise": 0.6}, {"bfloat16": True}], ids=str)
def test_noise_and_precision_act_in_training_and_not_in_tests(changes, images):
    plain, changed = (train("baseline", 0.0, images, small(**c)) for c in ({}, changes))  # it draws nothing else
    assert not torch.equal(plain.decoder.weights["weight"], changed.decoder.weights["weight"])
    assert all(weight.dtype == torch.float32 for weight in changed.parameters())
    # The same weights trained the plain way predict the same: nothing but the weights says how they were trained.
    with torch.no_grad():
        for weight, other in zip(plain.parameters(), changed.parameters(), strict=True):
            weight.copy_(other)
    expected, found = (
        measures.predict(model, images.x_test[:9], 12, Streams([0], "test")) for model in (plain, changed)
    )
    assert torch.equal(found, expected)


def test_noisy_layers_normalise_by_the_training_images_and_are_without_noise_in_tests(images):
    config = small(hidden_noise=0.5, train=4000)
    model = train("vib", 0.1, images, config)
    network = networks.GaussianEncoder(784, config.hidden, config.code, normalised=True)
    network.load_state_dict({k: v[0] for k, v in (model.encoder.weights | model.encoder.buffers).items()})
    read = images.x
    with torch.no_grad():
        for layer, norm in zip(network.layers, network.norms, strict=True):
            norm.eval()
            read = norm(layer(read))
            # The second layer's were found behind a first one that divided by n, not n - 1: 1e-4 of a deviation.
            torch.testing.assert_close(read.mean(0), norm.bias, atol=5e-4, rtol=0)
            torch.testing.assert_close(read.std(0), norm.weight.abs(), atol=1e-3, rtol=1e-3)
            read = read.relu()
        some = [images.x_test[None, :n] for n in (9, 9, 30)]
        means = [model.encode(x, model.noise(x.shape[1], Streams([0], "any"))).mean for x in some]
    assert torch.equal(means[0], means[1])
    torch.testing.assert_close(means[0], means[2][:, :9], atol=1e-5, rtol=1e-5)  # whatever else is in the batch
    model.encoder.train()
    noises = [model.noise(9, Streams([seed], "any"), training=True) for seed in (0, 1)]
    first, second = (model.encode(some[0], noise).mean for noise in noises)
    assert not torch.allclose(first, second, atol=1e-2)


def test_dropout_drops_its_share_and_keeps_the_mean(images):
    model = networks.Model.build(networks.DeterministicEncoder, 784, 400, 8, Streams([0, 1], "any"), dropout=0.3)
    kept = torch.stack(model.noise(100, Streams([0, 1], "any"), training=True).kept)
    assert kept.shape == (2, 2, 100, 400)
    # 160,000 draws: standard errors 0.0011 of the share, 0.0016 of the mean.
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(kept.mean()) == pytest.approx(1, abs=0.008)
    assert model.noise(100, Streams([0, 1], "any")).kept == ()  # none in tests


def test_an_attack_raises_the_error(images):
    config = small(epochs=8, train=2000, attacked=200)
    model = train("baseline", 0.0, images, config)
    (error,) = measures.measure(model, images.x_test[:200], images.y_test[:200], config, [0])
    assert error["fgsm_error"] > error["test_error"] + 10


def test_tuning_never_sees_test_images_and_takes_the_best_weight(monkeypatch):
    config = small(methods=("baseline", "vib"), weights=())
    shared = bottleneck.prepare(config, CPU)
    errors = shared.tuned["tuning/vib/validation_error"].mean(1)
    assert shared.weights == {"baseline": 0.0, "vib": bottleneck.METHODS["vib"].grid[int(errors.argmin())]}
    data = load_mnist_5k()._replace(x_test=None, y_test=None)
    monkeypatch.setattr(training, "load", lambda _: data._replace(x_test=data.x_train[:1], y_test=data.y_train[:1]))
    assert bottleneck.prepare(config, CPU).weights == shared.weights


def test_what_was_tuned_is_not_tuned_again(monkeypatch):
    config = small(methods=("vib", "kl"), weights=(("kl", 1e-2),))
    errors = np.array([[3.0], [2.0], [1.0], [2.0], [3.0]], np.float32)
    monkeypatch.setattr(training, "train", None)
    shared = bottleneck.prepare(config, CPU, {"tuning/vib/validation_error": errors})
    assert shared.weights == {"vib": 3e-3, "kl": 1e-2}
    np.testing.assert_array_equal(shared.tuned["tuning/vib/validation_error"], errors)


def test_the_parts_of_a_run_measure_what_the_run_measures():
    config = small(methods=("baseline", "vib"), weights=(("vib", 1e-2),), plane=("vib",))
    shared = bottleneck.prepare(config, CPU)
    ((quantities, curves),) = bottleneck.run_seeds(config, shared, [1], CPU)
    assert {name.split("/")[-1] for name in quantities} == set(bottleneck.METRICS)
    assert quantities["vib/mnist/weight"] == 1e-2
    assert curves["vib/test_error"] == np.float32(quantities["vib/mnist/test_error"])
    assert curves["plane/vib/information_low"].shape == (1,)
    parts = bottleneck.units(config)
    assert [(part.methods, part.plane) for part in parts] == [(("baseline",), ()), (("vib",), ()), ((), ("vib",))]
    merged, merged_curves = {}, {}
    for part in parts:
        ((some, others),) = bottleneck.run_seeds(part, bottleneck.prepare(part, CPU), [1], CPU)
        merged |= some
        merged_curves |= others
    assert merged == quantities
    assert merged_curves.keys() == curves.keys()
    assert all(np.array_equal(merged_curves[name], curves[name]) for name in curves)


def test_every_config_is_hashable_and_names_known_methods():
    for config in (bottleneck.PROFILES | bottleneck.STUDIES).values():
        assert hash(config) == hash(replace(config))
        assert set(config.methods + config.plane) <= set(bottleneck.METHODS)
        for part in bottleneck.units(config):
            assert len(part.methods + part.plane) == 1
    assert len({hash(method) for method in bottleneck.METHODS.values()}) == len(bottleneck.METHODS)


def test_too_many_images_are_named():
    with pytest.raises(ValueError, match="train: expected at most 10 images, got 11"):
        training._draw(11, 10, [0], CPU)


def difference(curves, method, metric="test_error", reference="stochastic", column=...):
    """Mean of the paired differences, and half the width of its 95 % interval; of a column of a plane's curve."""
    ours = curves[f"{method}/{metric}"][:, column].astype(float)
    found = compare.difference(ours, curves[f"{reference}/{metric}"].astype(float))
    return found.mean, found.high - found.mean


@pytest.mark.parametrize("profile", ["quick", "cpu"])
def test_recorded_errors_say_what_the_chapter_says(profile):
    curves = records.load("bottleneck", profile).curves

    for method in ("vib", "kl", "mige-gaussian", "mige-classes"):
        mean, width = difference(curves, method)
        assert mean + width < 0
    mean, width = difference(curves, "mige-marginal")
    assert mean + width > 0
    assert curves["mige-marginal/code_scale"].min() > curves["stochastic/code_scale"].max()
    assert difference(curves, "vib", "nll")[0] > 0 > difference(curves, "mige-classes", "nll")[0]


def test_on_all_images_one_gaussian_a_class_is_below_the_variational_bottleneck():
    curves = records.load("bottleneck", "large").curves
    for method in ("mige-classes", "kl", "mige-kl"):
        for metric in ("test_error", "nll"):
            mean, width = difference(curves, method, metric, "vib")
            assert mean + width < 0, (method, metric)
    for reference in ("baseline", "stochastic"):
        mean, width = difference(curves, "vib", reference=reference)
        assert abs(mean) < width  # the chapter's negative result: the gain on few images is gone
    assert curves["confidence-penalty/ece"].min() > 20 * curves["mige-classes/ece"].max()


def test_after_thirty_passes_penalties_buy_likelihood_and_robustness_not_accuracy():
    run = records.load("bottleneck", "long")
    mean, width = difference(run.curves, "vib")
    assert abs(mean) < width
    for reference in ("stochastic", "vib"):
        mean, width = difference(run.curves, "mige-classes", reference=reference)
        assert 0 < mean - width < mean < 0.2
        attacked, width = difference(run.curves, "mige-classes", "fgsm_error", reference)
        assert attacked + width < -4
    attacked, width = difference(run.curves, "vib", "fgsm_error")
    assert attacked - width > 0
    for method in ("vib", "mige-classes"):
        likelihood, width = difference(run.curves, method, "nll")
        assert likelihood + width < -0.02
    assert run["stochastic/mnist/nll"].mean > 1.3 * records.load("bottleneck", "large")["stochastic/mnist/nll"].mean
    assert 2.3 < run["mige-classes/mnist/information_low"].mean < 2.8 < run["vib/mnist/information_low"].mean
    assert all(run[f"{method}/mnist/test_error"].mean > 1.3 for method in run.config["methods"])


def test_noise_on_the_images_lowers_the_error_and_penalties_do_not():
    run = records.load("bottleneck", "noise")
    for method, profile in {"baseline": "large", "stochastic": "long"}.items():
        without = records.load("bottleneck", profile)
        for metric in ("test_error", "nll"):
            assert run.curves[f"{method}/{metric}"].max() < without.curves[f"{method}/{metric}"].min()
    for method in dict(run.config["weights"]):
        mean, width = difference(run.curves, method)
        assert mean + width > 0, method
    for method in run.config["plane"]:
        mean, width = difference(run.curves, f"plane/{method}", column=0)
        assert mean - width > 0, method


def test_noise_in_every_layer_lowers_all_errors_and_penalties_improve_the_likelihood():
    run, before = (records.load("bottleneck", profile) for profile in ("layers", "noise"))
    mean = {m: run[f"{m}/mnist/test_error"].mean for m in run.config["methods"]}
    assert all(0.05 < before[f"{m}/mnist/test_error"].mean - mean[m] < 0.115 for m in mean)
    assert max(mean.values()) < 1.15  # what issue and chapter aim at
    assert min(mean, key=mean.get) == "baseline"
    for pair in combinations(mean, 2):
        errors = (run.curves[f"{method}/test_error"].astype(float) for method in pair)
        assert not compare.difference(*errors).better, pair
    for method in ("vib", "mige-gaussian", "mige-classes"):
        likelihood, width = difference(run.curves, method, "nll")
        assert likelihood + width < 0, method
    for method in ("vib", "mige-classes"):
        assert run[f"{method}/mnist/ece"].mean < 0.5 * run["stochastic/mnist/ece"].mean
        attacked, width = difference(run.curves, method, "fgsm_error")
        assert attacked + width < -5, method
    attacked, width = difference(run.curves, "mige-gaussian", "fgsm_error")
    assert abs(attacked) < width
    attacked = [min(r.curves[f"{m}/fgsm_error"].mean() for m in r.config["methods"]) for r in (run, before)]
    assert attacked[0] > before["stochastic/mnist/fgsm_error"].mean + 4 > attacked[1]  # no penalty makes up for it
    heavier = run.config["plane_weights"].index(1e-2)
    for method in run.config["plane"]:
        mean, width = difference(run.curves, f"plane/{method}", column=heavier)
        assert (mean - width > 0) == (method == "vib"), method
        low, high = (run.curves[f"plane/{method}/information_{side}"][:, heavier].mean() for side in ("low", "high"))
        assert (3.5 < low < high < 4.0) if method == "vib" else (4.7 < low < high < 6.0), method


def test_all_methods_tuned_at_the_published_scale():
    run = records.load("bottleneck", "tuned")
    assert set(run.config["methods"]) == set(bottleneck.METHODS)
    mean = {m: run[f"{m}/mnist/test_error"].mean for m in run.config["methods"]}
    leading = ["label-smoothing", "confidence-penalty", "mine-propagated", "mine-additive"]
    level = ["vib", "mige-gaussian-additive", "mige-leave-out"]
    assert {*sorted(mean, key=mean.get)[:4]} == {*leading}
    assert {*sorted(mean, key=mean.get)[4:7]} == {*level}
    for method in leading:
        for reference in ("stochastic", "baseline"):
            below, width = difference(run.curves, method, reference=reference)
            assert below + width < 0, (method, reference)
    for method in level:
        below, width = difference(run.curves, method, reference="baseline")
        assert below + width > 0, method
    for method in ("vib", "mige-leave-out"):
        for metric in ("test_error", "nll"):
            below, width = difference(run.curves, method, metric)
            assert below + width < 0, (method, metric)
    worst = sorted(mean, key=lambda m: -run[f"{m}/mnist/nll"].mean)[:2]
    assert set(worst) == {"label-smoothing", "confidence-penalty"}
    for metric in ("test_error", "nll", "ece", "information_high"):  # no gradient at all
        np.testing.assert_array_equal(run.curves[f"nib/{metric}"], run.curves[f"stochastic/{metric}"])

    def validation(method, weight):
        return run.curves[f"tuning/{method}/validation_error"][0][bottleneck.METHODS["nib"].grid.index(weight), 0]

    marginal, vib, gaussian, *closer = (
        validation(m, 1e-2) for m in ("mige-marginal", "vib", "mige-gaussian", "mige-classes", "mige-leave-out")
    )
    assert marginal > vib + 0.3 > vib > gaussian > max(closer)
    assert len({float(validation("nib", weight)) for weight in bottleneck.METHODS["nib"].grid}) == 1
