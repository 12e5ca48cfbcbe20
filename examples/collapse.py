"""A generator that collapses, and the one term that prevents it. Copy this file; it needs torch and migelib alone.

    python examples/collapse.py

The generator turns noise into points of the plane and is rewarded for points of low energy. The energy has eight wells.
Without an entropy term every sample ends in one of them. With it, at weight one, the loss is the KL divergence from the
distribution that the energy defines, but for a constant, and all eight fill.
"""

import math

import torch
from torch import nn

from migelib import Streaming, entropy_surrogate

WELLS, RADIUS, SPREAD = 8, 2.0, 0.4


def centres():
    """Where the wells are: evenly on a circle [8, 2]."""
    angles = torch.arange(WELLS) * 2 * math.pi / WELLS
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=-1)


def energy(z):
    """How bad each point [n, 2] is: minus the log density, but for a constant, of a Gaussian in every well."""
    return -torch.logsumexp(-torch.cdist(z, centres()).square() / (2 * SPREAD**2), dim=-1)


def generator():
    """A network from eight numbers of noise to a point of the plane."""
    return nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))


def train(beta, steps=300, batch=256):
    """Train a generator with `beta` times the entropy in its loss, and say now and then how it goes."""
    torch.manual_seed(0)
    model = generator()
    estimator = Streaming()  # remembers the batches that it has seen: one for each term of a loss
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps + 1):
        z = model(torch.randn(batch, 8))
        task_loss = energy(z).mean()
        loss = task_loss - beta * entropy_surrogate(z, estimator)  # the surrogate's gradient counts, not its value
        if step % 100 == 0:
            spread = ", ".join(f"{value:.2f}" for value in z.std(0).tolist())
            print(f"  step {step:3d}   energy {task_loss.item():6.2f}   spread of the samples {spread}")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@torch.no_grad()
def share_of_wells(model, n=10_000):
    """Share of the samples that lie within two spreads of each well [8]."""
    distance, nearest = torch.cdist(model(torch.randn(n, 8)), centres()).min(-1)
    return torch.bincount(nearest[distance < 2 * SPREAD], minlength=WELLS) / n


def main():
    """Train without the term and with it."""
    for beta in (0.0, 1.0):
        print(f"beta = {beta:g}")
        model = train(beta)
        shares = share_of_wells(model)
        found = int((shares > 0.25 / WELLS).sum())
        percent = (100 * shares).round().int().tolist()
        print(f"  {found} of {WELLS} wells found; share of the samples in each, in %: {percent}\n")


if __name__ == "__main__":
    main()
