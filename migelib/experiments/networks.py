"""Networks that several experiments, or a reader's own, may use.

Explained in :doc:`/book/infomax`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..validation import check_count


class LayerFeatures(NamedTuple):
    """What `DeepInfoMaxEncoder` returns.

    Attributes
    ----------
    conv : Tensor [n, c, h, w]
        Last map of the convolutions.
    fc : Tensor [n, hidden]
        The hidden layer.
    y : Tensor [n, code]
        The code Y.
    """

    conv: Float[Tensor, "n c h w"]
    fc: Float[Tensor, "n hidden"]
    y: Float[Tensor, "n code"]


class DeepInfoMaxEncoder(nn.Module):
    """Encoder of Deep InfoMax for small images [Hjelm et al., ICLR 2019]: convolutions, one hidden layer, Y.

    Every convolution is 4 x 4 with stride 2, without a bias, and followed by batch normalisation and ReLU, as is the
    hidden layer; Y is linear. Explained in :doc:`/book/infomax`.

    Parameters
    ----------
    channels : int
        Of the images.
    size : int
        Height and width of the images, at least 2 to the number of convolutions.
    widths : tuple of int
        Channels of the convolutions.
    hidden, code : int
        Units of the hidden layer and of Y.

    Attributes
    ----------
    conv_dim : int
        Numbers in the last map of the convolutions.

    Raises
    ------
    ValueError
        If a number is not positive, or the images are too small for the convolutions.

    Examples
    --------
    >>> import torch
    >>> DeepInfoMaxEncoder()(torch.zeros(2, 3, 32, 32)).y.shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        widths: tuple[int, ...] = (64, 128, 256),
        hidden: int = 1024,
        code: int = 64,
    ) -> None:
        super().__init__()
        for name, value in {"channels": channels, "size": size, "hidden": hidden, "code": code}.items():
            check_count(value, name)
        if size >> len(widths) < 1:
            raise ValueError(f"size: expected at least {2 ** len(widths)} for {len(widths)} convolutions, got {size}")
        flat = (widths[-1] if widths else channels) * (size >> len(widths)) ** 2
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(flat, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU())
        self.y = nn.Linear(hidden, code)
        self.conv_dim = flat

    def forward(self, images: Float[Tensor, "n c h w"]) -> LayerFeatures:
        """Features of the three layers."""
        conv = self.conv(images)
        fc = self.fc(conv.flatten(1))
        return LayerFeatures(conv, fc, self.y(fc))


def digit_classifier(side: int) -> nn.Sequential:
    """Small convolutional network from digits [n, side * side] to 64 features and, last, the logits of ten classes."""
    left = -(-side // 4)  # after two strides of two
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * left**2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


LOG_SCALE = -2.0  # of a Gaussian encoder's deviations at the start


@torch.no_grad()
def start_narrow(layer: nn.Linear, code: int, log_scale: float) -> None:
    """Shift the outputs code..2 code - 1 of a Gaussian encoder, its log scales at the start.

    Codes that start as noise of the prior's size are slow to be used.
    """
    layer.bias[code : 2 * code] += log_scale
