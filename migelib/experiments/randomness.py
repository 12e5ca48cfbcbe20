"""Random numbers of the experiments: an independent stream for every seed and purpose, on the device that uses it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Built = TypeVar("Built")


def stream(seed: int, *label: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one part of an experiment: independent for every seed and label."""
    entropy = (seed, zlib.crc32(repr(label).encode()))
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)


def seeded(build: Callable[[], Built], seed: int) -> Built:
    """Return what `build` makes, such as a network, with torch's global generator seeded, and then put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class Streams:
    """The streams of several seeds for one purpose: every draw is [seeds, *shape], one row from the stream of each.

    Numbers are drawn on the device, so that a training step there copies none to it. A seed's numbers do not depend on
    which other seeds are drawn beside it.

    Parameters
    ----------
    seeds : sequence of int
        The seeds, in the order of the rows.
    *label
        What the numbers are for.
    device : torch.device
        Where they are drawn.

    Examples
    --------
    >>> Streams([0, 1], "noise").normal(3, 2).shape
    torch.Size([2, 3, 2])
    """

    def __init__(self, seeds: Sequence[int], *label: object, device: torch.device | str = "cpu") -> None:
        self.generators = [stream(seed, *label, device=device) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self.generators[0].device

    def draw(self, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Stack what `sample` draws from the generator of each seed."""
        return torch.stack([sample(generator) for generator in self.generators])

    def normal(self, *shape: int) -> Float[Tensor, "seeds *shape"]:
        """Draw standard normal numbers."""
        return self.draw(lambda g: torch.randn(shape, generator=g, device=g.device))

    def uniform(self, *shape: int) -> Float[Tensor, "seeds *shape"]:
        """Draw numbers uniform in [0, 1)."""
        return self.draw(lambda g: torch.rand(shape, generator=g, device=g.device))

    def integers(self, high: int, *shape: int) -> Int[Tensor, "seeds *shape"]:
        """Draw integers uniform in 0..high - 1."""
        return self.draw(lambda g: torch.randint(high, shape, generator=g, device=g.device))

    def permutation(self, n: int) -> Int[Tensor, "seeds n"]:
        """Draw an order of 0..n - 1 for each seed."""
        return self.draw(lambda g: torch.randperm(n, generator=g, device=g.device))

    def batches(self, n: int, size: int, steps: int) -> Iterator[Int[Tensor, "seeds size"]]:
        """Yield the indices of `steps` batches: passes over 0..n - 1, each in a new order, without a rest.

        Raises
        ------
        ValueError
            If a batch is larger than n.
        """
        if size > n:
            raise ValueError(f"batch: expected at most the number of samples {n}, got {size}")
        order, start = self.permutation(n), 0
        for _ in range(steps):
            if start + size > n:
                order, start = self.permutation(n), 0
            yield order[:, start : start + size]
            start += size
