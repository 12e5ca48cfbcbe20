"""Training the networks of all seeds at once: their weights stacked, their losses summed, their noise apart.

The loss of a step is the sum of the seeds' losses, [seeds] each from its own networks and numbers, so the gradient of
every seed's weights is its own; Adam works element by element. A seed's training is therefore the same beside others
as alone, but for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from .randomness import seeded, stream


class Stack:
    """Networks of one architecture, one a seed, that are evaluated and trained together.

    Parameters
    ----------
    networks : sequence of Module
        One for each seed; they are left as they are.

    Attributes
    ----------
    weights, buffers : dict of Tensor [seeds, ...]
        By name; the weights are leaves that require a gradient.

    Examples
    --------
    >>> stack = Stack([nn.Linear(3, 2) for _ in range(4)])
    >>> stack(torch.ones(4, 5, 3)).shape
    torch.Size([4, 5, 2])
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.weights, self.buffers = torch.func.stack_module_state(list(networks))
        self._skeleton = copy.deepcopy(networks[0]).to("meta")  # only its forward pass is used
        self._places = _places(self._skeleton)

    @classmethod
    def build(
        cls, make: Callable[[], nn.Module], seeds: Sequence[int], *label: object, device: torch.device | str = "cpu"
    ) -> Stack:
        """Make a network for every seed, its weights drawn by torch's global generator under the seed's stream."""
        return cls([seeded(make, stream(seed, *label).initial_seed()).to(device) for seed in seeds])

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def __call__(self, *inputs: Any) -> Any:
        """Evaluate every network at its own row of the inputs, tensors [seeds, ...] or tuples of them; so outputs."""
        if len(self) == 1:  # the plain call, faster than a functional one; an index in place of squeeze would copy
            for name, value in (self.weights | self.buffers).items():
                self._places[name][name.rpartition(".")[2]] = value.squeeze(0)
            outputs = self._skeleton(*pytree.tree_map(lambda x: x.squeeze(0), inputs))
            return pytree.tree_map(lambda y: y[None], outputs)
        return torch.func.vmap(self._one)(self.weights, self.buffers, *inputs)

    def _one(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Any) -> Any:
        return torch.func.functional_call(self._skeleton, (weights, buffers), inputs)

    def parameters(self) -> list[Tensor]:
        """The stacked weights, for an optimiser."""
        return list(self.weights.values())

    def train(self, mode: bool = True) -> Stack:
        """Put the networks into training mode, or into evaluation mode."""
        self._skeleton.train(mode)
        return self

    def eval(self) -> Stack:
        """Put the networks into evaluation mode."""
        return self.train(False)

    def part(self, name: str) -> Stack:
        """Return the submodules of that name, as a stack that shares their weights with this one.

        Raises
        ------
        AttributeError
            If the networks have no submodule of that name.
        """
        part, start = copy.copy(self), f"{name}."
        part._skeleton = self._skeleton.get_submodule(name)
        part.weights, part.buffers, part._places = (
            {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            for state in (self.weights, self.buffers, self._places)
        )
        return part

    def rows(self, index: Sequence[int]) -> Stack:
        """Return the networks of these rows, as a stack of copies without a gradient."""
        chosen, at = copy.copy(self), list(index)
        chosen.weights, chosen.buffers = (
            {key: value[at].detach() for key, value in state.items()} for state in (self.weights, self.buffers)
        )
        return chosen

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the weights fixed: inside, gradients flow through the networks to their inputs only."""
        for weight in self.parameters():
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in self.parameters():
                weight.requires_grad_(True)


def _places(network: nn.Module) -> dict[str, dict[str, Tensor | None]]:
    """Where a module looks up its weights and buffers, by their full names."""
    found = {}
    for prefix, module in network.named_modules():
        for state in (module._parameters, module._buffers):
            found |= {f"{prefix}.{name}".lstrip("."): state for name in state}
    return found


def own_rows(values: Tensor, index: Int[Tensor, "seeds b"]) -> Tensor:
    """Rows of values [seeds, n, ...], by every seed's index into its own: [seeds, b, ...]."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def adam(parameters: Iterable[Tensor], rate: float, beta: float = 0.9) -> torch.optim.Adam:
    """Adam with the given rate and first decay rate, in its fused form."""
    return torch.optim.Adam(list(parameters), rate, betas=(beta, 0.999), fused=True)


def descend(optimiser: torch.optim.Optimizer, loss: Float[Tensor, ""] | Float[Tensor, "seeds"]) -> None:
    """One step of the optimiser on a loss, summed over the seeds."""
    optimiser.zero_grad()
    loss.sum().backward()
    optimiser.step()


def cross_entropy(
    logits: Float[Tensor, "seeds n c"], labels: Int[Tensor, "seeds n"], smoothing: float = 0.0
) -> Float[Tensor, "seeds"]:
    """Mean cross-entropy of each seed, in nats."""
    losses = functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none", label_smoothing=smoothing)
    return losses.mean(-1)


def reconstruction_loss(logits: Float[Tensor, "*n p"], x: Float[Tensor, "*n p"]) -> Float[Tensor, "*n"]:
    """Binary cross entropy of each image, in nats: a sum over its pixels."""
    return functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def train_classifier(
    classifier: Stack,
    batch: Callable[[Int[Tensor, "seeds b"]], tuple[Tensor, Int[Tensor, "seeds b"]]],
    indices: Iterable[Int[Tensor, "seeds b"]],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """Train classifiers by cross-entropy.

    Parameters
    ----------
    classifier : Stack
        From inputs [seeds, b, ...] to logits [seeds, b, classes].
    batch : callable
        Inputs and labels of the rows of an index, such as ``lambda index: (x[index], labels[index])``.
    indices : iterable of Tensor [seeds, b]
        One a step, for instance `randomness.Streams.batches`.
    optimiser : Optimizer
        Of the classifier's parameters.
    schedule : LRScheduler, optional
        Stepped after every step.
    """
    for index in indices:
        inputs, labels = batch(index)
        descend(optimiser, cross_entropy(classifier(inputs), labels))
        if schedule is not None:
            schedule.step()
