"""What a task with a known mutual-information gradient is, and what all tasks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Task = TypeVar("Task")


class PairScores(NamedTuple):
    r"""Exact scores at paired samples.

    Attributes
    ----------
    joint_x, joint_z : Tensor [*batch, n, p] and [*batch, n, q]
        The two parts of :math:`\nabla \log q(x, z)`.
    x, z : Tensor [*batch, n, p] and [*batch, n, q]
        :math:`\nabla \log q(x)` and :math:`\nabla \log q(z)`.
    """

    joint_x: Float[Tensor, "*batch n p"]
    joint_z: Float[Tensor, "*batch n q"]
    x: Float[Tensor, "*batch n p"]
    z: Float[Tensor, "*batch n q"]


@runtime_checkable
class PairTask(Protocol):
    r"""A pair (x, z) whose law depends on parameters, with a known gradient of :math:`I(x; z)`.

    A task is a frozen object of tensors; `at` returns the same task at other parameters.
    """

    @property
    def theta(self) -> Float[Tensor, "*k"]:
        """Parameters of the samples."""
        ...

    def at(self, theta: Float[Tensor, "*k"]) -> PairTask:
        """Return the task at these parameters, which may require a gradient."""
        ...

    def sample(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "*batch n p"], Float[Tensor, "*batch n q"]]:
        """Draw n pairs (x, z), differentiable in theta; what does not depend on it requires no gradient."""
        ...

    def mutual_information(self) -> Float[Tensor, "*batch"]:
        """Mutual information, in nats."""
        ...

    def mutual_information_gradient(self) -> Float[Tensor, "*k"]:
        """Gradient with respect to theta, in nats."""
        ...

    def mutual_information_gradient_error(self) -> Float[Tensor, "*k"]:
        """Standard error of `mutual_information_gradient`: zero where it has a closed form."""
        ...

    def scores(self, x: Float[Tensor, "*batch n p"], z: Float[Tensor, "*batch n q"]) -> PairScores:
        """Exact scores at samples, without a gradient."""
        ...


def exact_score_surrogate(
    task: PairTask, x: Float[Tensor, "*batch n p"], z: Float[Tensor, "*batch n q"]
) -> Float[Tensor, ""]:
    r"""Scalar whose gradient is that of `migelib.mutual_information_surrogate` with the exact scores: the floor.

    An unbiased estimate of :math:`\nabla_\theta I(x; z)`, whose error is Monte-Carlo noise of the samples alone,

    .. math:: \nabla_\theta I = E[(s^x_{xz} - s_x) \cdot \partial_\theta x + (s^z_{xz} - s_z) \cdot \partial_\theta z].

    Parameters
    ----------
    task : PairTask
        The task that the samples are from.
    x, z : Tensor [*batch, n, p] and [*batch, n, q]
        What `task.sample` returned.

    Returns
    -------
    Tensor []
        Zero; only its gradient means anything.
    """
    scores = task.scores(x.detach(), z.detach())
    surrogate = z.new_zeros(())
    for variable, joint, marginal in ((x, scores.joint_x, scores.x), (z, scores.joint_z, scores.z)):
        if variable.requires_grad:
            surrogate = (
                surrogate + ((joint - marginal).detach() * (variable - variable.detach())).sum(-1).mean(-1).sum()
            )
    return surrogate


class Truth(NamedTuple):
    """Information and its gradient, in nats, with the standard errors of both."""

    information: Float[Tensor, ""]
    information_error: Float[Tensor, ""]
    gradient: Float[Tensor, "k"]
    gradient_error: Float[Tensor, "k"]


def monte_carlo_truth(
    information: Callable[[Float[Tensor, "k"], torch.Generator], Float[Tensor, ""]],
    theta: Float[Tensor, "k"],
    repeats: int,
    seed: int = 0,
) -> Truth:
    r"""Mean over independent repeats of an unbiased estimate of the information and of its total derivative.

    The estimate is a mean of :math:`\ln q_\theta(x, z) / q_\theta(x) q_\theta(z)` at reparameterised samples. Its total
    derivative has two parts: the one through the samples, whose mean is the gradient of the information, and the
    explicit one, whose mean is zero. The second is a control variate: for a Gaussian pair the sum has no variance.

    Parameters
    ----------
    information : callable
        (theta [k], generator) -> one estimate [], differentiable in theta.
    theta : Tensor [k]
        Where.
    repeats : int
        Number of estimates, at least 2; the standard errors come from their spread.
    seed : int
        Seed of the generator, so that the truth is the same number in every run.
    """
    generator = torch.Generator().manual_seed(seed)
    theta = theta.detach().double()
    values, gradients = [], []
    for _ in range(repeats):
        leaf = theta.clone().requires_grad_()
        value = information(leaf, generator)
        gradients.append(torch.autograd.grad(value, leaf)[0])
        values.append(value.detach())
    values, gradients = torch.stack(values), torch.stack(gradients)
    return Truth(values.mean(), values.std() / repeats**0.5, gradients.mean(0), gradients.std(0) / repeats**0.5)


def cast(task: Task, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Task:
    """Return the task with all its floating-point tensors, and those of the tasks in it, converted."""
    changes = {}
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        if isinstance(value, Tensor) and value.is_floating_point():
            changes[field.name] = value.to(device=device, dtype=dtype)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = cast(value, dtype, device)
    return dataclasses.replace(task, **changes)


def draw_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise on the generator's device and move it to that of `like`, in its dtype."""
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)


def draw_chi_square(n: int, df: float, like: Tensor, generator: torch.Generator) -> Float[Tensor, "n 1"]:
    r"""Draw :math:`\chi^2_\nu / \nu` on the generator's device and move it to that of `like`, in its dtype."""
    half_df = torch.full((n, 1), df / 2, dtype=like.dtype, device=generator.device)
    return (torch._standard_gamma(half_df, generator=generator) * 2 / df).to(like.device)
