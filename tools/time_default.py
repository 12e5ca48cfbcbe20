"""CPU time of one gradient of an information by the default and by `Streaming()`, as multiples of that by `SSGE()`.

Single thread, medians over five sample sets, which one `Streaming()` sees in turn; README.md has the ranges. Run by:
python tools/time_default.py
"""

import statistics
import time

import torch

from migelib import SSGE, Streaming, mutual_information_surrogate

SIZES = ((128, 8), (256, 8), (256, 32), (256, 64), (1024, 64))  # samples, dimensions of each variable


def samples(kind, n, dim, seed):
    """A Gaussian pair of correlation 0.6, the pair with its coordinates raised to the power 1.5, or two clusters."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator)
    z = 0.6 * x + 0.8 * torch.randn(n, dim, generator=generator)
    if kind == "power":
        x, z = (u.sign() * u.abs() ** 1.5 for u in (x, z))
    elif kind == "clusters":
        x = x + 4 * torch.randn(n, 1, generator=generator).sign()
        z = z + 0.3 * x
    return x, z.requires_grad_()


def milliseconds(estimator, kind, n, dim, repeats=5):
    """Median processor time of surrogate and backward pass; the first call, which warms up, is left out."""
    times = []
    for seed in range(repeats + 1):
        x, z = samples(kind, n, dim, seed)
        started = time.process_time()
        mutual_information_surrogate(x, z, estimator).backward()
        times.append(1e3 * (time.process_time() - started))
    return statistics.median(times[1:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for n, dim in SIZES:
        for kind in ("gaussian", "power", "clusters"):
            times = [milliseconds(estimator, kind, n, dim) for estimator in (None, Streaming(), SSGE())]
            default, streaming = (f"{time:.1f} ms, ratio {time / times[-1]:.1f}" for time in times[:-1])
            print(f"n={n} d={dim} {kind:8s} default {default}; Streaming {streaming}; SSGE {times[-1]:.1f} ms")
