"""The toy experiment on a grid of two correlations."""

from dataclasses import replace

import pytest
import torch
from dispatch import host_reads

from migelib.experiments import toy

CPU = torch.device("cpu")
SMALL = toy.Config(seeds=2, dims=(2,), bound_dims=(2, 3), n=20, points=3, bound_points=2, hidden=4, steps=3)


def test_seeds_together_and_parts_measure_what_they_measure_alone():
    together = toy.run_seeds(SMALL, None, [0, 1], CPU)
    for seed, (quantities, curves) in enumerate(together):
        parts = [toy.run_seeds(part, None, [seed], CPU)[0] for part in toy.units(SMALL)]
        assert len(parts) == 3
        alone = {name: value for part, _ in parts for name, value in part.items()}
        assert quantities == pytest.approx(alone, rel=1e-4)
        assert curves.keys() == {name for _, part in parts for name in part}
    assert together[0][0] != together[1][0]


def test_a_step_of_the_critics_reads_nothing_back():
    def reads(steps):
        config = replace(SMALL, dims=(), steps=steps)
        return host_reads(lambda: toy.run_seeds(config, None, [0, 1], CPU))

    assert reads(6) == reads(3)
