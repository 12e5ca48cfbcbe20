"""Checks of the arguments that users pass; the lowest layer, it imports nothing of ours.

To look at values means to wait for the device. So a call collects its checks of values (`fused_checks`), goes on, and
reads all of them at once at its end, or where it has to decide something by values anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real

import torch
from jaxtyping import Bool
from torch import Tensor


class _Pending(threading.local):
    checks: list[tuple[Tensor, Callable[[], Exception]]] | None = None
    seen: tuple[Tensor, ...] = ()  # tensors whose entries are found finite, or will be


_pending = _Pending()


@contextmanager
def fused_checks() -> Iterator[None]:
    """Collect the checks of values inside and read them at once; also a decorator of functions.

    Inside another such block the outer one reads them. Where something else fails first, as linear algebra does on NaN,
    a check that failed is raised in its place.
    """
    if _pending.checks is not None:
        yield
        return
    _pending.checks = []
    try:
        try:
            yield
        except Exception:
            settle_checks()
            raise
        settle_checks()
    finally:
        _pending.checks, _pending.seen = None, ()


def require(passed: Bool[Tensor, ""], error: Callable[[], Exception]) -> None:
    """Raise the error unless `passed`: at once, or where `fused_checks` reads."""
    if _pending.checks is not None:
        _pending.checks.append((passed.detach(), error))
    elif not bool(passed):
        raise error()


def settle_checks() -> None:
    """Read the checks collected so far: before what a bad value must not reach, such as the training of a state."""
    if _pending.checks:
        decide(torch.zeros_like(_pending.checks[0][0]))


def decide(flag: Bool[Tensor, ""]) -> bool:
    """Read a flag from the device, and with it the checks collected so far; the first that failed is raised."""
    checks, flag = _pending.checks or [], flag.detach()
    if _pending.checks is not None:
        _pending.checks = []
    passed = [passed for passed, _ in checks]
    answer = int(torch.stack([*passed, *passed, flag]).sum()) - 2 * len(passed)  # one read for all of them
    if answer < 0:
        raise next(error() for passed, error in checks if not bool(passed))
    return bool(answer)


def check_precision(values: Tensor, name: str, shape: str = "[*batch, n, d]") -> None:
    """Raise TypeError unless `values` is a tensor of float32 or float64; `shape` is for the message."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor {shape}, got {type(values).__name__}")
    if values.dtype not in (torch.float32, torch.float64):
        hint = "" if values.is_complex() else "; `.float()` makes it so"
        raise TypeError(
            f"{name}: expected a floating-point tensor {shape}, float32 or float64, got {values.dtype} "
            f"of shape {tuple(values.shape)}{hint}"
        )


def check_samples(samples: Tensor, name: str = "samples") -> None:
    """Raise unless `samples` is a finite tensor [*batch, n, d] of float32 or float64 with n >= 2 and d >= 1.

    Parameters
    ----------
    samples : Tensor
        The argument to check.
    name : str
        Its name in the caller's signature, for the message.

    Raises
    ------
    TypeError
        If it is not a tensor, or neither float32 nor float64.
    ValueError
        If it has fewer than two axes, fewer than two samples, no coordinates, or a NaN or infinite entry.
    """
    check_precision(samples, name)
    if samples.ndim < 2:
        hint = "; samples of one coordinate are `[:, None]`, [n, 1]" if samples.ndim == 1 else ""
        raise ValueError(f"{name}: expected shape [*batch, n, d], got shape {tuple(samples.shape)}{hint}")
    if samples.shape[-2] < 2 or samples.shape[-1] < 1 or samples.numel() == 0:
        hint = "; a loader's last batch of one is left out by `drop_last=True`" if samples.shape[-2] == 1 else ""
        raise ValueError(
            f"{name}: expected at least two samples of at least one coordinate, [*batch, n >= 2, d >= 1], "
            f"got shape {tuple(samples.shape)}{hint}"
        )
    _check_finite(samples, name)


def check_spread(samples: Tensor, name: str = "samples") -> None:
    """Raise ValueError if all n samples of some batch entry are equal: a point mass has no score."""
    differ = (samples.amax(-2) != samples.amin(-2)).any(dim=-1).all()
    require(
        differ,
        lambda: ValueError(
            f"{name}: all samples are equal (shape {tuple(samples.shape)}); a score needs samples that differ"
        ),
    )


def check_points(points: Tensor, samples: Tensor, name: str = "points", samples_name: str = "samples") -> None:
    """Raise unless `points` [*batch, m, d] can be passed to a score that is fitted to `samples` [*batch, n, d].

    Parameters
    ----------
    points, samples : Tensor
        The argument to check, and what it has to match.
    name, samples_name : str
        Their names, for the messages.

    Raises
    ------
    TypeError
        If `points` is not a tensor, or its dtype differs from that of `samples`.
    ValueError
        If its batch axes, number of coordinates or device differ from those of `samples`, or an entry is not finite.
    """
    if not isinstance(points, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor [*batch, m, d], got {type(points).__name__}")
    batch, dim = tuple(samples.shape[:-2]), samples.shape[-1]
    if points.ndim < 2 or tuple(points.shape[:-2]) != batch or points.shape[-1] != dim:
        wanted = ", ".join([*map(str, batch), "m", str(dim)])
        raise ValueError(
            f"{name}: expected shape [{wanted}], as the score is fitted to {samples_name} "
            f"[{wanted.replace('m', 'n')}], got shape {tuple(points.shape)}"
        )
    if points.dtype != samples.dtype:
        raise TypeError(f"{name}: expected dtype {samples.dtype}, that of {samples_name}, got {points.dtype}")
    _check_device(points, name, samples, samples_name)
    _check_finite(points, name)


def check_pair(x: Tensor, z: Tensor, x_name: str = "x", z_name: str = "z") -> None:
    """Raise unless `x` [*batch, n, p] and `z` [*batch, n, q] are paired samples: same batch, n, dtype and device."""
    check_samples(x, x_name)
    check_samples(z, z_name)
    if x.shape[:-1] != z.shape[:-1]:
        raise ValueError(
            f"{x_name} and {z_name}: expected paired samples [*batch, n, p] and [*batch, n, q] with the same batch "
            f"and n, got shapes {tuple(x.shape)} and {tuple(z.shape)}{_flatten_hint(x, z)}"
        )
    _check_device(x, x_name, z, z_name)
    if x.dtype != z.dtype:
        raise TypeError(f"{x_name} and {z_name}: expected one dtype, got {x.dtype} and {z.dtype}")


def _flatten_hint(x: Tensor, z: Tensor) -> str:
    more, less = (x, z) if x.ndim > z.ndim else (z, x)
    if more.ndim > less.ndim == 2 and more.shape[0] == less.shape[0]:
        return f"; all axes but the last two are batch axes, `.flatten(1)` makes {more.shape[0]} samples of the one"
    return ""


def check_log_prob(log_prob: Tensor, points: Tensor) -> None:
    """Raise unless `log_prob` is finite, floating-point, and one number for each of the `points` [*batch, n, d].

    Raises
    ------
    TypeError
        If it is not a tensor, or not of a real floating-point type.
    ValueError
        If its shape is not [*batch, n], or an entry is not finite.
    """
    if not isinstance(log_prob, Tensor):
        raise TypeError(f"log_prob: expected it to return a torch.Tensor [*batch, n], got {type(log_prob).__name__}")
    if not log_prob.is_floating_point():
        raise TypeError(f"log_prob: expected it to return a floating-point tensor, got {log_prob.dtype}")
    if log_prob.shape != points.shape[:-1]:
        raise ValueError(
            f"log_prob: expected it to return shape {tuple(points.shape[:-1])} at points of shape "
            f"{tuple(points.shape)}, got shape {tuple(log_prob.shape)}"
        )
    _check_finite(log_prob, "log_prob's return value")


def check_positive(value: float | None, name: str, optional: bool = False) -> None:
    """Raise ValueError unless `value` is a positive finite number, or None where that is allowed."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 < value < float("inf")):
        raise ValueError(f"{name}: expected a positive number{' or None' if optional else ''}, got {value!r}")


def check_nonnegative(value: float, name: str) -> None:
    """Raise ValueError unless `value` is a finite number of at least zero."""
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 <= value < float("inf")):
        raise ValueError(f"{name}: expected a number of at least zero, got {value!r}")


def check_fraction(value: float, name: str) -> None:
    """Raise ValueError unless 0 < `value` < 1."""
    if not (isinstance(value, Real) and 0 < value < 1):
        raise ValueError(f"{name}: expected a number in (0, 1), got {value!r}")


def _check_device(a: Tensor, a_name: str, b: Tensor, b_name: str) -> None:
    if a.device != b.device:
        raise ValueError(f"{a_name} and {b_name}: expected one device, got {a.device} and {b.device}")


def _check_finite(tensor: Tensor, name: str) -> None:
    def error() -> ValueError:
        bad = int((~torch.isfinite(tensor)).sum())
        return ValueError(f"{name}: expected finite entries, got {bad} NaN or infinite of {tuple(tensor.shape)}")

    if any(tensor is other for other in _pending.seen):
        return  # a score is evaluated where it was fitted
    if _pending.checks is not None:
        _pending.seen += (tensor,)
    if tensor.numel() > 0:
        require(tensor.abs().amax() < torch.inf, error)  # five times as fast as to ask of every entry


def check_kernel(kernel: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `kernel` is one of the names in `known`."""
    if kernel not in known:
        raise ValueError(f"kernel: expected one of {', '.join(known)}, got {kernel!r}")


def check_count(value: int, name: str, least: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
