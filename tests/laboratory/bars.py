"""A data set of small images for tests."""

import torch

from migelib.experiments.data import Images


def bars() -> Images:
    """Images 8 x 8 of two bars whose lengths are random; the label says which bar is longer."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(300, 2, 1, generator=generator) * 8
    x = (lengths - torch.arange(8)).clamp(0, 1).repeat_interleave(4, dim=1).flatten(1)
    y = (lengths[:, 0] > lengths[:, 1]).long().squeeze(1)
    return Images(x[:260], y[:260], x[260:], y[260:])
