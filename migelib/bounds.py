r"""Variational bounds on mutual information: pure functions of a matrix of critic values, which `migelib.critics` make.

Entry (i, j) of the matrix is :math:`T(x_i, z_j)`: the diagonal holds the n joint pairs, the rest the n (n - 1) pairs of
the product of the marginals. All values are in nats.
Derived in :doc:`/book/information-measures`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .validation import check_fraction, check_positive


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


def infonce(critic: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""InfoNCE bound, :math:`\frac1n \sum_i \ln \frac{e^{T_{ii}}}{\frac1n \sum_j e^{T_{ij}}}`: each x among all z.

    The negative of the loss of van den Oord, Li & Vinyals [arXiv:1807.03748, 2018, eq. 4] plus :math:`\ln n`, as in
    Poole et al. [ICML 2019, sec. 2.3]. Little variance, but never above :math:`\ln n`.

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
    return _joint_mean(critic) - critic.logsumexp(-1).mean(-1) + math.log(critic.shape[-1])


def jsd(critic: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""Jensen-Shannon objective, :math:`-E_p[\mathrm{sp}(-T)] - E_{p \otimes p}[\mathrm{sp}(T)]` with sp the softplus.

    The objective of Deep InfoMax [Hjelm et al., ICLR 2019, eq. 4; Nowozin, Cseke & Tomioka, NeurIPS 2016]: the
    log-likelihood of a classifier with logit T. Its value is a Jensen-Shannon divergence of the joint law and the
    product of the marginals, :math:`2 D_{JS} - 2 \ln 2` at its maximum, and not an information. Its maximiser
    is the logarithm of their ratio, :math:`T^* = \ln p(x, z) / p(x) p(z)`; where a value in nats is needed, train by
    this objective and pass the critic to `smile`, or to `nwj` as ``nwj(critic + 1)`` [Poole et al., ICML 2019,
    sec. 2.3]. The gradient of the information through samples is then that of ``critic.diagonal().mean()`` with the
    critic held fixed.

    Parameters
    ----------
    critic : Tensor [*batch, n, n]
        Critic values, joint pairs on the diagonal, n >= 2.

    Returns
    -------
    Tensor [*batch]
        The objective, at most 0: to be maximised in the critic.

    Raises
    ------
    ValueError
        If `critic` is not a stack of square matrices of at least two rows.
    """
    joint = _joint_mean(-nn.functional.softplus(-critic))
    n = critic.shape[-1]
    softplus = nn.functional.softplus(critic)
    product = softplus.sum((-2, -1)) - softplus.diagonal(dim1=-2, dim2=-1).sum(-1)
    return joint - product / (n * (n - 1))


def smile(critic: Float[Tensor, "*batch n n"], tau: float | None = 5.0) -> Float[Tensor, "*batch"]:
    r"""SMILE, :math:`E_p[T] - \ln E_{p \otimes p}[\mathrm{clip}(e^T, e^{-\tau}, e^\tau)]` [Song & Ermon, ICLR 2020].

    The Donsker-Varadhan bound with a clipped ratio in the partition function: less variance, but no bound. A clipped
    entry has no gradient, so the paper trains the critic by another objective, here `jsd`, and reads off this value.

    Parameters
    ----------
    critic : Tensor [*batch, n, n]
        Critic values, joint pairs on the diagonal, n >= 2.
    tau : float, optional
        Clip, > 0; None for the Donsker-Varadhan bound itself.

    Returns
    -------
    Tensor [*batch]
        The estimate, in nats.

    Raises
    ------
    ValueError
        If `critic` is not a stack of square matrices of at least two rows, or `tau` is not positive.
    """
    check_positive(tau, "tau", optional=True)
    joint = _joint_mean(critic)
    return joint - log_mean_exp_product(critic if tau is None else critic.clamp(-tau, tau))


def club(log_conditional: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""Variational CLUB, :math:`\frac1n \sum_i \ln q(z_i | x_i) - \frac1{n^2} \sum_{ij} \ln q(z_j | x_i)`.

    The contrastive log-ratio upper bound of Cheng et al. [ICML 2020, sec. 3.2], for q the true conditional an upper
    bound in expectation; for a fitted one it may be none. The second mean is over all pairs, the joint ones included,
    as in the paper. The conditional, such as `GaussianConditional`, is fitted by maximum likelihood.

    Parameters
    ----------
    log_conditional : Tensor [*batch, n, n]
        :math:`\ln q(z_j | x_i)` at (i, j), joint pairs on the diagonal, n >= 2.

    Returns
    -------
    Tensor [*batch]
        The estimate, in nats.

    Raises
    ------
    ValueError
        If `log_conditional` is not a stack of square matrices of at least two rows.
    """
    return _joint_mean(log_conditional, "log_conditional") - log_conditional.mean((-2, -1))


def flo(critic: Float[Tensor, "*batch n n"], u: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    r"""FLO bound, :math:`1 - \frac1n \sum_i [u_i + \frac1{n - 1} \sum_{j \ne i} e^{T_{ij} - T_{ii} - u_i}]`.

    The Fenchel-Legendre lower bound of Guo et al. [NeurIPS 2022, arXiv:2107.01131]: InfoNCE with its logarithm replaced
    by a tangent, at a point that is learnt. At its maximum T is the logarithm of the density ratio, up to a function of
    x, and :math:`u(x, z) = -\ln p(x, z) / p(x) p(z)`. Not limited to :math:`\ln n`, at the price of the exponential's
    variance. `FenchelLegendreCritic` makes both arguments.

    Parameters
    ----------
    critic : Tensor [*batch, n, n]
        Critic values, joint pairs on the diagonal, n >= 2.
    u : Tensor [*batch, n]
        Values of u at the joint pairs.

    Returns
    -------
    Tensor [*batch]
        The bound, in nats.

    Raises
    ------
    ValueError
        If `critic` is not a stack of square matrices of at least two rows, or `u` has not one value a row.

    Examples
    --------
    >>> round(float(flo(torch.zeros(4, 4), torch.zeros(4))), 6)
    0.0
    """
    _joint_mean(critic)
    if u.shape != critic.shape[:-1]:
        raise ValueError(
            f"u: expected one value a row of critic, shape {tuple(critic.shape[:-1])}, got {tuple(u.shape)}"
        )
    n = critic.shape[-1]
    diagonal = torch.eye(n, dtype=torch.bool, device=critic.device)
    others = critic.masked_fill(diagonal, -torch.inf).logsumexp(-1) - math.log(n - 1)
    return 1 - (u + torch.exp(others - critic.diagonal(dim1=-2, dim2=-1) - u)).mean(-1)


def knife(
    log_conditional: Float[Tensor, "*batch n"], log_marginal: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    r"""KNIFE, :math:`\frac1n \sum_i [\ln q(z_i | x_i) - \ln q(z_i)]`: the difference of two fitted entropies.

    Neither an upper nor a lower bound: each term bounds an entropy from above [Pichler et al., ICML 2022, sec. 3]. Both
    densities, such as `MixtureDensities`, are fitted by maximum likelihood.

    Parameters
    ----------
    log_conditional, log_marginal : Tensor [*batch, n]
        :math:`\ln q(z_i | x_i)` and :math:`\ln q(z_i)`.

    Returns
    -------
    Tensor [*batch]
        The estimate, in nats.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> float(knife(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -3.0])))
    1.5
    """
    if log_conditional.shape != log_marginal.shape:
        raise ValueError(
            f"log_marginal: expected the shape of log_conditional, {tuple(log_conditional.shape)}, "
            f"got {tuple(log_marginal.shape)}"
        )
    return (log_conditional - log_marginal).mean(-1)


def _joint_mean(critic: Float[Tensor, "*batch n n"], name: str = "critic") -> Float[Tensor, "*batch"]:
    if critic.ndim < 2 or critic.shape[-1] != critic.shape[-2] or critic.shape[-1] < 2:
        raise ValueError(f"{name}: expected shape [*batch, n, n] with n >= 2, got shape {tuple(critic.shape)}")
    return critic.diagonal(dim1=-2, dim2=-1).mean(-1)
