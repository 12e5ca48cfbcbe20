"""What a training step does behind the scenes: reads from the device to the host, and shapes that depend on data."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# On a GPU each of these waits for the device: the host needs a value, or a shape that only the data tell.
READS = (
    *("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "equal"),
    "_linalg_check_errors",  # of solve, cholesky and others; their _ex variants leave it out
)


class HostReads(TorchDispatchMode):
    """Counts the operations inside that read from the device, by name, in `counts`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean_index = name in ("index", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1] if index is not None
        )
        if name in READS or boolean_index:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def host_reads(step) -> Counter[str]:
    """Operations of one call of `step` that read from the device."""
    with HostReads() as mode:
        step()
    return mode.counts
