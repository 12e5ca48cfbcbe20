"""Encoders of a bounded noisy channel: its capacity, the true information, and a training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from migelib.experiments import channels
from migelib.experiments.optimise import METHODS
from migelib.experiments.randomness import Streams

CPU = torch.device("cpu")
SMALL = channels.Config(seeds=2, methods=("gaussian",), dims=(1,), updates=40, batch=64, hidden=8, codes=2000)


def test_capacity_of_a_loud_channel_is_that_of_two_inputs():
    """Up to a half width of 1.6 standard deviations the best code has two points [Smith 1971]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for noise in (1.0, 1 / 1.5):
        exponent = -2 * (1 + noise * nodes) / noise**2
        expected = math.log(2) - weights @ np.log1p(np.exp(exponent)) / weights.sum()
        assert channels.capacity(noise) == pytest.approx(expected, rel=2e-3)


def test_capacity_of_a_quiet_channel_is_that_of_a_uniform_code():
    noise = 0.02
    uniform = math.log(2) - math.log(2 * math.pi * math.e * noise**2) / 2
    assert uniform < channels.capacity(noise) < uniform + 0.1


@pytest.mark.parametrize("dim", [1, 2])
def test_information_of_known_codes(dim):
    config = replace(SMALL, dims=(dim,), codes=8000)

    def found(encoder):
        return channels.information(encoder, Streams([0, 1], "test"), config).tolist()

    assert found(torch.sign) == pytest.approx(2 * [dim * math.log(2)], abs=0.02)  # an error of the sampled signs
    gaussian = dim / 2 * math.log(1 + 0.09 / config.noise**2)
    assert found(lambda x: 0.3 * x) == pytest.approx(2 * [gaussian], abs=0.06)


def test_training_raises_the_information_and_seeds_do_not_meet():
    config = replace(SMALL, learning_rate=5e-3)
    curves, ms = channels.trained(config, [3, 4], CPU)
    alone, _ = channels.trained(config, [4], CPU)
    np.testing.assert_allclose(curves[1], alone[0], rtol=1e-3, atol=1e-3)
    assert (curves[:, -1] > curves[:, 0] + 0.5).all()
    assert (curves < channels.capacity(config.noise) + 0.1).all()
    assert ms > 0


@pytest.mark.parametrize("method", ["smi", "ratio", "knife", "club", "nwj", "flo"])
def test_methods_of_the_other_experiment_serve(method):
    config = replace(SMALL, methods=(method,), dims=(2,), updates=2, codes=100)
    ((quantities, curves),) = channels.run_seeds(config, None, [0], CPU)
    name = f"{method}/box-d2"
    assert set(quantities) == {f"{name}/{metric}" for metric in channels.METRICS}
    assert np.isfinite(list(quantities.values())).all()
    total = quantities[f"{name}/information"] + quantities[f"{name}/gap"]
    assert total == pytest.approx(2 * channels.capacity(config.noise))
    assert curves[f"{name}/information"].shape == (3,)


def test_settings_name_methods_that_exist():
    for config in (channels.PROFILES | channels.STUDIES).values():
        assert set(config.methods) <= set(METHODS)
        assert len(channels.units(config)) == len(config.methods) * len(config.dims)
