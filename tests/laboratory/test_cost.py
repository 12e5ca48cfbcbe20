"""What a gradient costs: the instruments, the plain implementation, and what the records claim."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from migelib import SSGE
from migelib.experiments import cost, records

CPU = torch.device("cpu")
SMALL = replace(cost.PROFILES["quick"], sizes=((16, 2),), repeats=1, batches=1)


def allocating(*sizes):
    """A step that holds tensors of these numbers of bytes, the first two at once, and then each of the others alone."""

    def step(x, z):
        held = [torch.empty(size, dtype=torch.uint8) for size in sizes[:2]]
        del held
        for size in sizes[2:]:
            torch.empty(size, dtype=torch.uint8)

    return step


@pytest.mark.parametrize(("sizes", "peak"), [((3000, 5000, 1000), 8000), ((3000, 5000, 90_000, 70_000), 90_000)])
def test_peak_is_of_what_is_held_at_once(sizes, peak):
    assert cost.peak_bytes(allocating(*sizes), (None, None), CPU) == peak


def test_measuring_writes_nothing_and_gives_standard_error_back(capfd):
    def failing(x, z):
        os.write(2, b"lost")
        raise RuntimeError

    cost.peak_bytes(allocating(8, 8), (None, None), CPU)
    with pytest.raises(RuntimeError):
        cost.peak_bytes(failing, (None, None), CPU)
    os.write(2, b"kept")
    assert tuple(capfd.readouterr()) == ("", "kept")


def test_one_thread_while_measuring_and_as_many_as_before_after_an_error(monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with cost.one_thread():
        assert threads == [1]
    assert threads == [1, 7]
    monkeypatch.setattr(cost, "_costs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cost.run_seeds(SMALL, None, [0], CPU)
    assert threads == [1, 7, 1, 7]


def test_plain_implementation_computes_what_ssge_computes():
    samples = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fresh = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, ours = cost.ThreeIndexSSGE().fit(samples), SSGE().fit(samples)
    for points in (samples, fresh):
        assert torch.allclose(plain(points), ours(points), rtol=1e-6, atol=1e-8)


def test_plain_implementation_holds_tensors_of_three_indices():
    n, dim = 64, 16
    samples = cost.pair(n, dim, torch.Generator().manual_seed(0))
    tensor = 4 * n * n * 2 * dim  # of the joint samples, in single precision
    assert cost.peak_bytes(cost.gradient_step(cost.ThreeIndexSSGE()), samples, CPU) > 2 * tensor
    assert cost.peak_bytes(cost.gradient_step(SSGE()), samples, CPU) < tensor / 2


def test_pairs_are_clustered_or_gaussian():
    def correlations(separation):
        x, z = cost.pair(20_000, 2, torch.Generator().manual_seed(0), separation)
        return torch.corrcoef(torch.cat([x, z], -1).T)

    assert correlations(0.0)[0] == pytest.approx([1, 0, 0.6, 0], abs=0.03)
    assert float(correlations(4.0)[0, 1]) == pytest.approx(16 / 17, abs=0.01)


def test_a_seed_and_a_method_alone_take_the_memory_that_they_take_beside_others():
    some = replace(SMALL, methods=("ssge", "kde", "three-index"))
    (_, _), (quantities, curves) = cost.run_seeds(some, None, [3, 4], CPU)
    ((_, alone),) = cost.run_seeds(replace(SMALL, methods=("ssge", "kde")), None, [4], CPU)
    for name in ("ssge", "kde"):
        assert alone[f"{name}/n16-d2/bytes"] == curves[f"{name}/n16-d2/bytes"]
    assert {name.split("/")[-1] for name in quantities} == set(cost.METRICS) == set(cost.FLOORS)
    assert not any(name.startswith("ssge") for name in quantities)
    ratio = curves["kde/n16-d2/bytes"] / curves["ssge/n16-d2/bytes"]
    assert quantities["kde/n16-d2/memory"] == pytest.approx(np.log10(ratio))


def test_every_method_is_measured_and_none_takes_no_time():
    ((_, curves),) = cost.run_seeds(SMALL, None, [0], CPU)
    assert {name.split("/")[0] for name in curves} == set(cost.METHODS) == set(cost.LABELS)
    assert all(value > 0 for value in curves.values())


def test_calls_end_at_the_number_or_at_the_time(monkeypatch):
    calls = []
    monkeypatch.setattr(cost, "seconds_of", lambda *_: calls.append(1) or 0.4)
    config = replace(SMALL, methods=("ssge",), repeats=9, seconds=1.0)
    cost.measure(config, 16, 2, 0, CPU)
    assert len(calls) == 3  # 0.8 s are less than a second, 1.2 s are not
    cost.measure(replace(config, repeats=2), 16, 2, 0, CPU)
    assert len(calls) == 3 + 2


def test_only_one_of_the_two_defaults_sees_clusters(monkeypatch):
    seen = {}
    monkeypatch.setattr(cost, "seconds_of", lambda step, samples, device: seen.setdefault(step, samples) and 1.0)
    monkeypatch.setattr(cost, "peak_bytes", lambda *_: 1)
    cost.measure(replace(SMALL, methods=("adaptive", "adaptive-gaussian")), 500, 2, 0, CPU)
    clusters, gaussian = (float(x.abs().mean()) for x, _ in seen.values())
    assert clusters == pytest.approx(4, abs=0.2)
    assert gaussian == pytest.approx((2 / np.pi) ** 0.5, abs=0.1)


def test_sizes_are_the_parts_and_the_largest_leave_out_the_plain_implementation():
    config = replace(SMALL, sizes=((16, 2), (32, 2)), entries=2 * 16 * 16 * 2)
    assert [part.sizes for part in cost.units(config)] == [((16, 2),), ((32, 2),)]
    assert "three-index" in config.methods_at(16, 2)
    assert set(cost.METHODS) - set(config.methods_at(32, 2)) == {"three-index"}
    assert cost.cross((1, 2), 3, 2, (3, 4)) == ((1, 3), (2, 3), (2, 4))
    for config in cost.PROFILES.values():
        assert hash(config) == hash(replace(config))


def made_up(**seconds):
    curves = {f"ssge/{size}/seconds": np.array([value] * 3) for size, value in seconds.items()}
    return records.Record("cost", "custom", {}, {}, {}, curves)


def test_growth_is_the_exponent_in_what_differs():
    record = made_up(**{"n8-d2": 1.0, "n32-d2": 64.0, "n8-d4": 2.0})
    assert cost.growth(record, "ssge", (8, 2), (32, 2)) == pytest.approx(3)
    assert cost.growth(record, "ssge", (8, 2), (8, 4)) == pytest.approx(1)
    assert np.isnan(cost.cost(record, "kde", 8, 2))


def test_recorded_costs_say_what_the_chapter_says():
    record = records.load("cost", "cpu", records.published())
    ends = (512, 16), (2048, 16)
    for name in ("ssge", "stein", "tikhonov", "nu", "landweber", "kde", "three-index"):
        assert cost.growth(record, name, *ends, "bytes") == pytest.approx(2, abs=0.1)
    for name in ("gaussian", "adaptive", "streaming"):
        assert cost.growth(record, name, *ends, "bytes") < 1.1
        assert cost.growth(record, name, *ends) < 1.1 < 1.9 < cost.growth(record, "stein", *ends)
    ratio = [cost.cost(record, name, 2048, 16, "bytes") for name in ("three-index", "ssge")]
    assert ratio[0] / ratio[1] == pytest.approx(19, abs=1)
    assert cost.cost(record, "ssge", 2048, 16) > 8 * cost.cost(record, "ssge", 256, 16)
