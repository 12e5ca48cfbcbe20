"""The counter of host reads sees what it is meant to see, and nothing else."""

import torch
from dispatch import host_reads


def test_reads_of_values_and_of_shapes_are_counted():
    x = torch.arange(4.0)
    assert host_reads(lambda: float(x.sum())) == {"_local_scalar_dense": 1}
    assert host_reads(lambda: bool((x > 9).any())) == {"_local_scalar_dense": 1}
    assert host_reads(lambda: x.nonzero()) == {"nonzero": 1}
    assert host_reads(lambda: x[x > 1]) == {"index": 1}


def test_a_step_without_reads_has_none():
    weight = torch.ones(3, requires_grad=True)
    optimiser = torch.optim.Adam([weight], fused=True)

    def step() -> None:
        optimiser.zero_grad()
        torch.where(weight > 0, weight, 0).square().sum().backward()
        optimiser.step()

    step()
    assert not host_reads(step)
