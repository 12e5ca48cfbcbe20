"""The counter of host reads sees what it is meant to see, and nothing else."""

import pytest
import torch
from dispatch import host_reads

from migelib import KDE, SSGE, GaussianScore, NuMethod, Stein, Tikhonov, entropy_surrogate, mutual_information_surrogate


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


@pytest.mark.parametrize("estimator", [SSGE(), GaussianScore(), Stein(), Tikhonov(), KDE(), NuMethod()], ids=str)
def test_a_surrogate_reads_once_for_each_score(estimator):
    x, z = torch.randn(2, 3, 40, 2, generator=torch.Generator().manual_seed(0))
    z.requires_grad_()
    entropy = host_reads(lambda: entropy_surrogate(z, estimator).backward())
    assert entropy.total() - entropy["_linalg_check_errors"] <= 1, entropy
    information = host_reads(lambda: mutual_information_surrogate(x, z, estimator).backward())
    assert information.total() - information["_linalg_check_errors"] <= 2, information
    assert not {"nonzero", "index", "index_put_"} & set(information)
