"""`Streaming` in every surrogate, and in several processes."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.multiprocessing as mp

from migelib import (
    Streaming,
    conditional_entropy_surrogate,
    conditional_mutual_information_surrogate,
    entropy_surrogate,
    kl_surrogate,
    mutual_information,
    mutual_information_surrogate,
    total_correlation_surrogate,
)


def draws(seed, n=128):
    g = torch.Generator().manual_seed(seed)
    x, z, w = torch.randn(3, n, 2, generator=g)
    return x, z + 0.5 * x, w + 0.5 * z, torch.randint(0, 3, (n,), generator=g)


MEASURES = {
    "entropy": (lambda a, x, z, w, y, s: entropy_surrogate(a * z, s), {"z"}),
    "information": (lambda a, x, z, w, y, s: mutual_information_surrogate(x, a * z, s), {"x,z"}),
    "conditional entropy": (lambda a, x, z, w, y, s: conditional_entropy_surrogate(a * z, w, s), {"z", "z,given"}),
    "conditional information": (
        lambda a, x, z, w, y, s: conditional_mutual_information_surrogate(x, a * z, w, s),
        None,
    ),
    "total correlation": (lambda a, x, z, w, y, s: total_correlation_surrogate(a * z, s), {"halves 0:2"}),
    "divergence": (lambda a, x, z, w, y, s: kl_surrogate(a * z, lambda u: -u.square().sum(-1) / 2, s), {"z"}),
    "labels": (lambda a, x, z, w, y, s: mutual_information_surrogate(y, a * z, s), None),
}


@pytest.mark.parametrize("name", MEASURES)
def test_each_surrogate_keeps_a_state_for_each_of_its_scores(name):
    measure, roles = MEASURES[name]
    streaming = Streaming(features=32)
    for seed in range(4):
        a = torch.tensor(1.0, requires_grad=True)
        value = measure(a, *draws(seed), streaming)
        value.backward()
        assert float(value.detach()) == 0
        assert torch.isfinite(a.grad)
    if roles is not None:
        assert set(streaming.terms) == roles
    assert all(term.density.steps == 4 for term in streaming.terms.values())


def test_a_measure_of_another_shape_needs_an_instance_of_its_own():
    streaming = Streaming()
    x, z, *_ = draws(0)
    entropy_surrogate(z.requires_grad_(), streaming)
    with pytest.raises(ValueError, match="each term of a loss"):
        entropy_surrogate(torch.cat([x, z], -1), streaming)


def test_a_reference_is_learnt_from_too():
    streaming = Streaming(features=32)
    for seed in range(3):
        x, z, *_ = draws(seed)
        more = draws(seed + 50, 256)[:2]
        z.requires_grad_()
        mutual_information_surrogate(x, z, streaming, reference=more).backward()
        assert z.grad.shape == z.shape
    assert float(streaming.terms["x,z"].density.moments.count) == 384


def test_a_value_is_asked_without_an_update():
    streaming = Streaming()
    for seed in range(5):
        x, z, *_ = draws(seed)
        mutual_information_surrogate(x, z.requires_grad_(), streaming).backward()
    x, z, *_ = draws(77)
    first = float(mutual_information(x, z, streaming))
    assert first == float(mutual_information(x, z, streaming))
    assert first > 0


def _half(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    streaming = Streaming(features=32).sync()
    for seed in range(4):
        x, z, *_ = (v[64 * rank : 64 * (rank + 1)] for v in draws(seed))
        a = torch.tensor(1.0, requires_grad=True)
        (mutual_information_surrogate(x, a * z, streaming) + entropy_surrogate(a * z, streaming)).backward()
        torch.distributed.all_reduce(a.grad)
    queue.put((rank, float(a.grad) / 2))
    torch.distributed.destroy_process_group()


def test_two_processes_with_half_a_batch_have_the_gradient_of_the_whole():
    streaming = Streaming(features=32)
    for seed in range(4):
        x, z, *_ = draws(seed)
        a = torch.tensor(1.0, requires_grad=True)
        (mutual_information_surrogate(x, a * z, streaming) + entropy_surrogate(a * z, streaming)).backward()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_half, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    assert found[0] == pytest.approx(float(a.grad), rel=1e-4)
    assert found[1] == found[0]


def test_sync_without_processes_says_what_to_do():
    with pytest.raises(RuntimeError, match="init_process_group"):
        Streaming().sync()
