"""The networks of the bottleneck: encoders that differ in what noise makes the code, and a linear decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...codes import GaussianCode
from ..randomness import Streams, seeded
from ..training import Stack

CLASSES = 10


class Noise(NamedTuple):
    """What is drawn for one evaluation of an encoder; nothing, unless it is needed.

    Attributes
    ----------
    inputs : tuple of Tensor [*seeds, n, units]
        Standard normal, for the input of each of the three linear maps (see `PropagatedEncoder`).
    hidden : tuple of Tensor [*seeds, n, hidden]
        To be added to what each hidden layer computes.
    kept : tuple of Tensor [*seeds, n, hidden]
        Factors of the hidden units: 0 for those that dropout drops, 1 / (1 - p) for the others.
    """

    inputs: tuple[Tensor, ...] = ()
    hidden: tuple[Tensor, ...] = ()
    kept: tuple[Tensor, ...] = ()


class DeterministicEncoder(nn.Module):
    """Multilayer perceptron of two hidden layers whose output is the code.

    Parameters
    ----------
    pixels, hidden, code : int
        Sizes of input, hidden layers and code.
    normalised : bool
        Normalise what a hidden layer computes: in training over the batch, otherwise as over the last batch of
        training.

    Attributes
    ----------
    random : bool
        Whether the code is random, so that a prediction is an average over codes.
    noisy_inputs : bool
        Whether the forward pass needs `Noise.inputs`.
    """

    random: ClassVar[bool] = False
    noisy_inputs: ClassVar[bool] = False
    outputs: ClassVar[int] = 1  # numbers a coordinate of the code

    def __init__(self, pixels: int, hidden: int, code: int, normalised: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(pixels, hidden), nn.Linear(hidden, hidden)])
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(hidden, momentum=1.0) if normalised else nn.Identity() for _ in self.layers
        )
        self.head = nn.Linear(hidden, self.outputs * code)

    def forward(self, x: Float[Tensor, "n p"], noise: Noise) -> tuple[Float[Tensor, "n k"], ...]:
        """Mean and scale of the code's conditional where it is known; otherwise the code alone."""
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = norm(layer(self.perturbed(x, i, noise)))
            if noise.hidden:
                x = x + noise.hidden[i]
            x = F.relu(x)
            if noise.kept:
                x = x * noise.kept[i]
        x = self.head(self.perturbed(x, len(self.layers), noise))
        return self.conditional(x.to(self.head.weight.dtype))

    def perturbed(self, x: Float[Tensor, "n units"], layer: int, noise: Noise) -> Float[Tensor, "n units"]:
        """The input of a linear map, with its noise; here it has none."""
        return x

    def conditional(self, x: Float[Tensor, "n outputs"]) -> tuple[Float[Tensor, "n k"], ...]:
        """What the last linear map says of the code."""
        return (x,)


class GaussianEncoder(DeterministicEncoder):
    """Mean and scale of a Gaussian code, both from the input."""

    random = True
    outputs = 2

    def conditional(self, x: Float[Tensor, "n outputs"]) -> tuple[Float[Tensor, "n k"], ...]:
        """Mean, and softplus of what the scale is made from."""
        mean, raw = x.chunk(2, dim=-1)
        return mean, F.softplus(raw) + 1e-6


class AdditiveEncoder(DeterministicEncoder):
    """Mean of a Gaussian code from the input; its scale is one whatever the input."""

    random = True

    def conditional(self, x: Float[Tensor, "n outputs"]) -> tuple[Float[Tensor, "n k"], ...]:
        """Mean, and ones."""
        return x, torch.ones_like(x)


class PropagatedEncoder(DeterministicEncoder):
    """Noise of one learnt scale a layer is added to the input of every layer: the code's conditional is unknown."""

    random = True
    noisy_inputs = True

    def __init__(self, pixels: int, hidden: int, code: int, normalised: bool = False) -> None:
        super().__init__(pixels, hidden, code, normalised)
        self.log_noise = nn.Parameter(torch.full((3,), math.log(0.1)))

    def perturbed(self, x: Float[Tensor, "n units"], layer: int, noise: Noise) -> Float[Tensor, "n units"]:
        """The input of a linear map, with its noise."""
        return x + self.log_noise[layer].exp() * noise.inputs[layer] if noise.inputs else x


@dataclass
class Model:
    """The networks of all seeds, and how much noise they are trained with.

    Attributes
    ----------
    kind : type
        Of the encoders.
    encoder, decoder : Stack
        One network for each seed.
    sizes : tuple of int
        Units of the input and of the two hidden layers.
    hidden_noise, dropout : float
        Standard deviation of the noise, and share of units dropped, in the hidden layers during training.
    """

    kind: type[DeterministicEncoder]
    encoder: Stack
    decoder: Stack
    sizes: tuple[int, int, int]
    hidden_noise: float
    dropout: float

    @classmethod
    def build(
        cls,
        kind: type[DeterministicEncoder],
        pixels: int,
        hidden: int,
        code: int,
        streams: Streams,
        hidden_noise: float = 0.0,
        dropout: float = 0.0,
    ) -> Model:
        """Networks with new weights (see `drawn`), on the device of the streams."""

        def make() -> nn.Module:
            return nn.ModuleList([kind(pixels, hidden, code, hidden_noise > 0), nn.Linear(code, CLASSES)])

        encoder, decoder = (Stack(part) for part in zip(*drawn(make, streams), strict=True))
        return cls(kind, encoder, decoder, (pixels, hidden, hidden), hidden_noise, dropout)

    def parameters(self) -> list[Tensor]:
        """All weights, for an optimiser."""
        return self.encoder.parameters() + self.decoder.parameters()

    def encode(self, x: Float[Tensor, "seeds n p"], noise: Noise) -> GaussianCode | Float[Tensor, "seeds n k"]:
        """The conditionals where they are known; otherwise the code, a sample of it where the layers are noisy."""
        outputs = self.encoder(x, noise)
        return outputs[0] if len(outputs) == 1 else GaussianCode(*outputs)

    def noise(self, n: int, streams: Streams, training: bool = False) -> Noise:
        """Draw what an evaluation at n inputs needs."""
        inputs, hidden, kept = [], [], []
        for i, size in enumerate(self.sizes):
            if self.kind.noisy_inputs:
                inputs.append(streams.normal(n, size))
            if i + 1 == len(self.sizes) or not training:
                continue
            if self.hidden_noise:
                hidden.append(self.hidden_noise * streams.normal(n, self.sizes[i + 1]))
            if self.dropout:
                kept.append((streams.uniform(n, self.sizes[i + 1]) >= self.dropout) / (1 - self.dropout))
        return Noise(tuple(inputs), tuple(hidden), tuple(kept))

    def log_probs(self, x: Float[Tensor, "seeds n p"], samples: int, streams: Streams) -> Float[Tensor, "seeds n c"]:
        """Logarithm of the class probabilities, averaged over samples of the code."""
        n = x.shape[1]
        encoded = self.encode(x, self.noise(n, streams))
        if not self.kind.random:
            return self.decoder(encoded).log_softmax(-1)
        total = []
        for _ in range(samples):
            if isinstance(encoded, GaussianCode):
                z = sample(encoded, streams)
            else:
                z = self.encode(x, self.noise(n, streams))
            total.append(self.decoder(z).log_softmax(-1))
        return torch.stack(total).logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def set_statistics(self, x: Float[Tensor, "seeds n p"]) -> None:
        """Let the hidden layers normalise by their means and variances at these images, without any noise."""
        self.encoder.train()
        self.encoder(x, Noise())


def drawn(make: Callable[[], nn.Module], streams: Streams) -> list[nn.Module]:
    """A new network for every seed, on the device of the streams, from each of which it takes one number."""
    device = streams.generators[0].device
    return [seeded(make, number).to(device) for number in streams.integers(2**62).tolist()]


def sample(encoded: GaussianCode | Float[Tensor, "seeds n k"], streams: Streams) -> Float[Tensor, "seeds n k"]:
    """A sample of each conditional, with the noise of each seed's stream; the code itself where that is given."""
    if not isinstance(encoded, GaussianCode):
        return encoded
    return encoded.reparameterised(streams.normal(*encoded.mean.shape[1:]))
