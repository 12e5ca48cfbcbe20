"""Encoders with and without a density, their decoders, and the autoencoders of all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...critics import mlp
from ..networks import LOG_SCALE, start_narrow
from ..randomness import Streams
from ..training import Stack


class DeterministicEncoding:
    """An encoder whose output is the code."""

    variational: ClassVar[bool] = False  # names the stream of the initial weights

    def network(self, pixels: int, hidden: int, code: int) -> nn.Sequential:
        """Return the encoder, from images [n, p] to what `codes` takes."""
        return mlp([pixels, hidden, hidden, code])

    def codes(
        self, output: Float[Tensor, "seeds n d"], noise: Streams
    ) -> tuple[Float[Tensor, "seeds n d"], Float[Tensor, "seeds n"]]:
        """Codes, and zeros in place of the divergence that a density would have."""
        return output, output.new_zeros(output.shape[:-1])


class GaussianEncoding:
    """An encoder whose output is the mean and the log variances of a Gaussian, of which the code is a draw."""

    variational: ClassVar[bool] = True

    def network(self, pixels: int, hidden: int, code: int) -> nn.Sequential:
        """Return the encoder, from images [n, p] to what `codes` takes."""
        encoder = mlp([pixels, hidden, hidden, 2 * code])
        start_narrow(encoder[-1], code, 2 * LOG_SCALE)
        return encoder

    def codes(
        self, output: Float[Tensor, "seeds n 2*d"], noise: Streams
    ) -> tuple[Float[Tensor, "seeds n d"], Float[Tensor, "seeds n"]]:
        """Codes, and KL(q(z | x) || p) of each image, in nats."""
        mean, log_variance = output.chunk(2, dim=-1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        return mean + (0.5 * log_variance).exp() * noise.normal(*mean.shape[1:]), divergence


Encoding = DeterministicEncoding | GaussianEncoding


@dataclass(frozen=True)
class Autoencoder:
    """Encoders and decoders, one a seed."""

    encoding: Encoding
    networks: Stack

    @classmethod
    def build(
        cls, encoding: Encoding, pixels: int, hidden: int, code: int, seeds: Sequence[int], device: torch.device
    ) -> Autoencoder:
        """Make the networks of every seed; their initial weights are the same for all methods of an encoding."""
        make = partial(_networks, encoding, pixels, hidden, code)
        return cls(encoding, Stack.build(make, seeds, "networks", code, encoding.variational, device=device))

    def encode(
        self, x: Float[Tensor, "seeds n p"], noise: Streams
    ) -> tuple[Float[Tensor, "seeds n d"], Float[Tensor, "seeds n"]]:
        """Codes, and KL(q(z | x) || p) of each image; the latter zero where the encoder is deterministic."""
        return self.encoding.codes(self.networks.part("encoder")(x), noise)

    def decode(self, z: Float[Tensor, "seeds n d"]) -> Float[Tensor, "seeds n p"]:
        """Logits of the pixels."""
        return self.networks.part("decoder")(z)


def _networks(encoding: Encoding, pixels: int, hidden: int, code: int) -> nn.ModuleDict:
    encoder = encoding.network(pixels, hidden, code)
    return nn.ModuleDict({"encoder": encoder, "decoder": mlp([code, hidden, hidden, pixels])})
