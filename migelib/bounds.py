r"""Variational bounds on mutual information: pure functions of a matrix of critic values, and critics that make one.

Entry (i, j) of the matrix is :math:`T(x_i, z_j)`: the diagonal holds the n joint pairs, the rest the n (n - 1) pairs of
the product of the marginals. All values are in nats.
Derived in :doc:`/book/02_information_measures`.
"""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .validation import check_fraction


def donsker_varadhan(critic: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""Donsker-Varadhan bound, :math:`E_p[T] - \log E_{p \otimes p}[e^T]` [Belghazi et al., ICML 2018, eq. 5].

    What the MIGE paper's code calls MINE. As an estimate from one batch it is biased: the logarithm of a mean over a
    finite sample.

    Parameters
    ----------
    critic : Tensor [*batch, n, n]
        Critic values, joint pairs on the diagonal, n >= 2.

    Returns
    -------
    Tensor [*batch]
        The bound, in nats.

    Raises
    ------
    ValueError
        If `critic` is not a stack of square matrices of at least two rows.
    """
    return _joint_mean(critic) - log_mean_exp_product(critic)


def mine(
    critic: Float[Tensor, "*batch n n"],
    log_running_mean: Float[Tensor, "*batch"] | None = None,
    decay: float = 0.99,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    r"""MINE: the Donsker-Varadhan bound with its bias-corrected gradient [Belghazi et al., ICML 2018, sec. 3.2].

    The gradient of :math:`\log E[e^T]` is :math:`E[e^T \nabla T] / E[e^T]`; the denominator is replaced by its
    exponential moving average over batches. The value is that of `donsker_varadhan`.

    Parameters
    ----------
    critic : Tensor [*batch, n, n]
        Critic values, joint pairs on the diagonal, n >= 2.
    log_running_mean : Tensor [*batch], optional
        Logarithm of the moving average so far; None at the first step.
    decay : float
        Weight of the past in the moving average, in (0, 1).

    Returns
    -------
    bound : Tensor [*batch]
        The bound, in nats.
    log_running_mean : Tensor [*batch]
        To be passed at the next step.

    Raises
    ------
    ValueError
        If `critic` is not a stack of square matrices of at least two rows, or `decay` is outside its range.
    """
    check_fraction(decay, "decay")
    joint_mean = _joint_mean(critic)
    log_mean = log_mean_exp_product(critic)
    now = log_mean.detach()
    if log_running_mean is None:
        log_running_mean = now
    else:
        log_running_mean = torch.logaddexp(log_running_mean + math.log(decay), now + math.log1p(-decay))
    weighted = torch.exp(log_mean - log_running_mean)  # its gradient has the running mean as denominator
    return joint_mean - now - (weighted - weighted.detach()), log_running_mean


def nwj(critic: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""Nguyen-Wainwright-Jordan bound, :math:`E_p[T] - E_{p \otimes p}[e^{T - 1}]`: MINE-f [MINE paper, eq. 8].

    Unbiased for its own critic, but with a variance that grows at least like :math:`e^I`.

    Parameters
    ----------
    critic : Tensor [*batch, n, n]
        Critic values, joint pairs on the diagonal, n >= 2.

    Returns
    -------
    Tensor [*batch]
        The bound, in nats.

    Raises
    ------
    ValueError
        If `critic` is not a stack of square matrices of at least two rows.
    """
    return _joint_mean(critic) - torch.exp(log_mean_exp_product(critic) - 1)


def log_mean_exp_product(critic: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """Logarithm of the mean of exp(T) over the n (n - 1) pairs off the diagonal."""
    n = critic.shape[-1]
    diagonal = torch.eye(n, dtype=torch.bool, device=critic.device)
    return critic.masked_fill(diagonal, -torch.inf).flatten(-2).logsumexp(-1) - math.log(n * (n - 1))


def _joint_mean(critic: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    if critic.ndim < 2 or critic.shape[-1] != critic.shape[-2] or critic.shape[-1] < 2:
        raise ValueError(f"critic: expected shape [*batch, n, n] with n >= 2, got shape {tuple(critic.shape)}")
    return critic.diagonal(dim1=-2, dim2=-1).mean(-1)


def mlp(sizes: list[int]) -> nn.Sequential:
    """Fully connected network with ReLU between its layers; `sizes` lists all widths, input and output included."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SeparableCritic(nn.Module):
    r"""Critic :math:`T(x, z) = f(x)^\top g(z)`: n evaluations of each network give all n^2 values.

    Parameters
    ----------
    x_dim, z_dim : int
        Numbers of coordinates of x and z.
    hidden : int
        Width of the two hidden layers of f and g.
    embedding : int
        Size of f(x) and g(z). The defaults are those of the MIGE paper's code.
    """

    def __init__(self, x_dim: int, z_dim: int, hidden: int = 512, embedding: int = 20) -> None:
        super().__init__()
        self.f = mlp([x_dim, hidden, hidden, embedding])
        self.g = mlp([z_dim, hidden, hidden, embedding])

    def forward(self, x: Float[Tensor, "n p"], z: Float[Tensor, "n q"]) -> Float[Tensor, "n n"]:
        """Matrix of all critic values, :math:`T(x_i, z_j)` at (i, j)."""
        return self.f(x) @ self.g(z).mT
