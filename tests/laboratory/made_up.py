"""An experiment made up for the tests of the runner and of the records."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import torch

from migelib.experiments.randomness import stream


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: int = 4
    methods: tuple[str, ...] = ("first", "second")
    shift: float = 0.0


def make() -> SimpleNamespace:
    """The experiment; `calls` lists the methods and seeds that ran, `prepared` the tuned settings it was given."""
    calls, prepared = [], []

    def prepare(config, device, tuned=None):
        prepared.append(tuned)
        return SimpleNamespace(tuned={"weight": np.array([3.0])} if tuned is None else tuned)

    def run_seeds(config, shared, seeds, device):
        results = []
        for seed in seeds:
            quantities, curves = {}, {}
            for method in config.methods:
                calls.append((method, seed))
                value = float(torch.randn((), generator=stream(seed, method))) + config.shift
                quantities[f"{method}/setting/error"] = value
                curves[f"{method}/curve"] = np.arange(3) + value
            results.append((quantities, curves | {"weight": shared.tuned["weight"]}))
        return results

    def summarise(config, quantities):
        return {"all/setting/error": sum(quantities[f"{method}/setting/error"] for method in config.methods)}

    return SimpleNamespace(
        __name__="made_up",
        Config=Config,
        PROFILES={"quick": Config(), "full": Config(seeds=2)},
        STUDIES={"shifted": Config(seeds=2, shift=1.0)},
        METRICS={"error": "nat"},
        prepare=prepare,
        run_seeds=run_seeds,
        summarise=summarise,
        calls=calls,
        prepared=prepared,
    )
