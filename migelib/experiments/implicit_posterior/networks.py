"""Encoders that draw codes of an image, with a density and without."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..networks import LOG_SCALE, start_narrow


class ImplicitEncoder(nn.Module):
    """Draws m codes of each image, by noise at the first hidden layer; it has no density.

    Parameters
    ----------
    pixels, hidden, code : int
        Numbers of pixels, of units of each of two hidden layers, and of coordinates of a code.
    noise : int
        Coordinates of the noise.
    """

    def __init__(self, pixels: int, hidden: int, code: int, noise: int) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, hidden)
        self.noise = nn.Linear(noise, hidden, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, code))

    def forward(
        self, x: Float[Tensor, "b p"], noise: Float[Tensor, "b m k"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b"]]:
        """Codes, and zeros in place of the divergence that a density would have."""
        return self.rest(self.first(x)[:, None] + self.noise(noise)), x.new_zeros(len(x))


class ExplicitEncoder(nn.Module):
    """Draws m codes of each image from a Gaussian, whose mean and triangular factor are its outputs.

    The hidden layers are those of an implicit encoder.

    Parameters
    ----------
    pixels, hidden, code : int
        Numbers of pixels, of units of each of two hidden layers, and of coordinates of a code.
    full : bool
        Whether the covariance is full; else it is diagonal.
    """

    def __init__(self, pixels: int, hidden: int, code: int, full: bool) -> None:
        super().__init__()
        self.code, self.full = code, full
        self.first = nn.Linear(pixels, hidden)
        outputs = 2 * code + (code * (code - 1) // 2 if full else 0)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        start_narrow(self.rest[-1], code, LOG_SCALE)

    def forward(
        self, x: Float[Tensor, "b p"], noise: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b"]]:
        """Codes, and KL(q(z | x) || p) of each image, in nats."""
        output = self.rest(self.first(x))
        mean, log_scale, below = output.tensor_split((self.code, 2 * self.code), dim=1)
        factor = torch.diag_embed(log_scale.exp())
        if self.full:
            rows, columns = torch.tril_indices(self.code, self.code, -1, device=x.device)
            unit = torch.diag_embed(torch.ones_like(mean))
            unit[:, rows, columns] = below
            factor = factor @ unit
        divergence = 0.5 * (mean.square().sum(-1) + factor.square().sum((-2, -1)) - self.code) - log_scale.sum(-1)
        return mean[:, None] + noise @ factor.mT, divergence
