"""The collapsing sampler: its energy, how wells are counted, and what the entropy term does."""

import dataclasses

import numpy as np
import pytest
import torch

from migelib.experiments import collapse, records

CPU = torch.device("cpu")
TINY = dataclasses.replace(
    collapse.PROFILES["quick"], betas=(0.0, 1.0, 2.0), steps=4, n=32, width=8, evaluation=500, snapshots=3
)


def test_energy_is_lowest_in_its_wells_and_the_same_in_each():
    at_wells = collapse.energy(collapse.centres())
    torch.testing.assert_close(at_wells, at_wells[:1].expand(collapse.WELLS))
    assert (collapse.energy(1.4 * collapse.centres()) > at_wells).all()
    assert (collapse.energy(0.6 * collapse.centres()) > at_wells).all()


def test_the_samples_have_the_density_of_the_energy():
    """Stein's identity: E[z . grad log q] = -d."""
    z = collapse.sample(20_000, torch.Generator().manual_seed(0)).requires_grad_()
    (score,) = torch.autograd.grad(-collapse.energy(z).sum(), z)
    assert float((score * z.detach()).sum(-1).mean()) == pytest.approx(-2, abs=0.15)  # four standard errors


def test_samples_of_the_energy_find_all_wells():
    measured = collapse.found(collapse.sample(20_000, torch.Generator().manual_seed(0)))
    assert measured["wells"] == 8
    # Within two spreads of its own well lie 1 - exp(-2) of a Gaussian in the plane; some lie near a neighbour's.
    assert 86.5 < measured["near"] < 93


def test_a_point_finds_one_well():
    assert collapse.found(collapse.centres()[:1].expand(100, 2)) == {"wells": 1.0, "near": 100.0}
    assert collapse.found(torch.full((100, 2), 9.0)) == {"wells": 0.0, "near": 0.0}


def test_seeds_do_not_depend_on_each_other():
    together = collapse.run_seeds(TINY, None, [3, 5], CPU)
    alone = collapse.run_seeds(TINY, None, [5], CPU)
    assert together[1][0] == alone[0][0]
    snapshots = together[1][1]
    np.testing.assert_array_equal(snapshots["tikhonov/beta-1/snapshots"], alone[0][1]["tikhonov/beta-1/snapshots"])
    assert {*snapshots} == {"tikhonov/beta-0/snapshots", "tikhonov/beta-1/snapshots"}
    assert snapshots["tikhonov/beta-1/snapshots"].shape == (3, collapse.SHOWN, 2)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="unknown nothing, expected some of tikhonov"):
        dataclasses.replace(TINY, methods=("nothing",))


def test_the_record_shows_a_collapse_without_the_term_and_none_with_it():
    for profile in ("quick", "full"):
        record = records.load("collapse", profile)
        assert record["tikhonov/beta-0/wells"].values == (1.0,) * len(record.made_with["seeds"])
        assert min(record["tikhonov/beta-1/wells"].values) >= 7
