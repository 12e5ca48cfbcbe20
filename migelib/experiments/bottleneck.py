r"""The information bottleneck on permutation-invariant MNIST: cross-entropy plus a weight times a measure of the code.

The second application of the MIGE paper [Wen et al., ICLR 2020], with the network of the variational bottleneck
[Alemi et al., ICLR 2017]; and, before it, the gradient of I(x; z) of linear-Gaussian encoders, where it is known.
Explained in :doc:`/book/12_bottleneck`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .. import bounds
from ..codes import (
    GaussianCode,
    Moments,
    code_information_surrogate,
    information_bracket,
    mixture_information_surrogate,
    pairwise_information,
)
from ..scores import SSGE, GaussianScore, Residual, Stein, Transformed
from ..surrogates import mutual_information_surrogate
from ..transforms import Whitening
from . import stream

CLASSES = 10


class Network(nn.Module):
    """Multilayer perceptron with a stochastic code and a linear decoder.

    Parameters
    ----------
    pixels, hidden, code : int
        Sizes of input, hidden layers and code.
    encoder : str
        "deterministic"; "gaussian", mean and scale of the code from the input; "additive", scale one whatever the
        input; "propagated", noise of one learnt scale a layer added to the input of every layer, so that the code's
        conditional is unknown.
    dropout : float
        Share of hidden units dropped in training.
    noise_offset : float
        The scale is softplus(r + noise_offset) of the network's output r.
    """

    def __init__(
        self, pixels: int, hidden: int, code: int, encoder: str, dropout: float = 0.0, noise_offset: float = -5.0
    ) -> None:
        super().__init__()
        self.encoder, self.dropout, self.noise_offset, self.code = encoder, dropout, noise_offset, code
        self.layers = nn.ModuleList([nn.Linear(pixels, hidden), nn.Linear(hidden, hidden)])
        self.head = nn.Linear(hidden, 2 * code if encoder == "gaussian" else code)
        self.decoder = nn.Linear(code, CLASSES)
        self.log_noise = nn.Parameter(torch.full((3,), math.log(0.1))) if encoder == "propagated" else None

    def encode(self, x: Float[Tensor, "n p"], generator: torch.Generator) -> GaussianCode | Float[Tensor, "n k"]:
        """The conditionals where they are known, otherwise a sample of the code (the code where there is no noise)."""
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(self._perturbed(x, i, generator)))
            if self.dropout:
                x = F.dropout(x, self.dropout, self.training)
        x = self.head(self._perturbed(x, 2, generator))
        if self.encoder == "gaussian":
            mean, raw = x.chunk(2, dim=-1)
            return GaussianCode(mean, F.softplus(raw + self.noise_offset) + 1e-6)
        if self.encoder == "additive":
            return GaussianCode(x, torch.ones_like(x))
        return x

    def _perturbed(self, x: Tensor, layer: int, generator: torch.Generator) -> Tensor:
        if self.log_noise is None:
            return x
        return x + self.log_noise[layer].exp() * torch.randn(x.shape, generator=generator).to(x.device)

    def log_probs(self, x: Float[Tensor, "n p"], samples: int, generator: torch.Generator) -> Float[Tensor, "n c"]:
        """Logarithm of the class probabilities, averaged over samples of the code."""
        code = self.encode(x, generator)
        if self.encoder == "deterministic":
            return self.decoder(code).log_softmax(-1)
        total = []
        for i in range(samples):
            if isinstance(code, GaussianCode):
                z = code.sample(generator)
            else:
                z = code if i == 0 else self.encode(x, generator)
            total.append(self.decoder(z).log_softmax(-1))
        return torch.stack(total).logsumexp(0) - math.log(samples)


class Penalty:
    """What is added to the cross-entropy: a function of the batch whose gradient is the measure's."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        self.config, self.generator = config, generator

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser trains along with the network."""
        return iter(())

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return z.new_zeros(())


class Confidence(Penalty):
    """Minus the entropy of the predicted classes [Pereyra et al., 2017]."""

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        return (log_probs.exp() * log_probs).sum(-1).mean()


class Rate(Penalty):
    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return code.rate()


class MixturePrior(Penalty):
    """Rate with a learnt mixture of Gaussians for its prior; one sample a code."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        k, d = config.prior_components, config.code
        self.means = nn.Parameter((0.1 * torch.randn(k, d, generator=generator)).to(device))
        self.log_scales = nn.Parameter(torch.zeros(k, d, device=device))
        self.logits = nn.Parameter(torch.zeros(k, device=device))

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter((self.means, self.log_scales, self.logits))

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        prior = GaussianCode(self.means, self.log_scales.exp())
        log_prior = (prior.log_conditional(z) + self.logits.log_softmax(0)[:, None]).logsumexp(0)
        return -code.conditional_entropy() - log_prior.mean()


class Pairwise(Penalty):
    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return pairwise_information(code)


class Club(Penalty):
    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return bounds.club(code.log_conditional(z))


class Mine(Penalty):
    """MINE: a critic that takes one step of its own for every step of the network."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        self.critic = _seeded(
            generator, lambda: bounds.SeparableCritic(784, config.code, config.critic_hidden)
        ).to(device)
        self.optimiser = _adam(self.critic.parameters(), config.critic_learning_rate)
        self.log_mean = None

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        value, self.log_mean = bounds.mine(self.critic(x, z.detach()), self.log_mean, 0.99)
        self.optimiser.zero_grad()
        (-value).backward()
        self.optimiser.step()
        return bounds.donsker_varadhan(self.critic(x, z))


class Joint(Penalty):
    """MIGE as in its paper: the joint and the marginal score estimated by SSGE."""

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return mutual_information_surrogate(x, z, SSGE())


class Marginal(Penalty):
    estimator = SSGE()

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return code_information_surrogate(code, z, self.estimator)


class MarginalResidual(Marginal):
    estimator = Residual(GaussianScore("ledoit-wolf"), SSGE(shrinkage=True))


class MixtureScore(Penalty):
    leave_out = False

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return mixture_information_surrogate(code, z, self.leave_out)


class LeaveOut(MixtureScore):
    leave_out = True


class Gaussian(Penalty):
    """Score of a Gaussian whose moments are a moving average over past codes, the noise's share known."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        self.memory, self.moments = config.memory, None

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        now = Moments.of(code)
        self.moments = now if self.moments is None else self.moments.mixed(now, 1 - self.memory)
        return code.gaussian_surrogate(self.moments)


class GaussianDivergence(Gaussian):
    """KL(q(z) || N(0, I)) alone: the rate less the information by `Gaussian`."""

    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return code.rate() - super().__call__(x, code, z, logits)


class PairwiseDivergence(Penalty):
    def __call__(self, x: Tensor, code: GaussianCode | Tensor, z: Tensor, logits: Tensor) -> Tensor:
        return code.rate() - pairwise_information(code)


METHODS: dict[str, tuple[str, type[Penalty]]] = {
    "baseline": ("deterministic", Penalty),
    "dropout": ("deterministic", Penalty),
    "label-smoothing": ("deterministic", Penalty),
    "confidence-penalty": ("deterministic", Confidence),
    "stochastic": ("gaussian", Penalty),
    "vib": ("gaussian", Rate),
    "vib-mixture": ("gaussian", MixturePrior),
    "nib": ("gaussian", Pairwise),
    "club": ("gaussian", Club),
    "mine": ("gaussian", Mine),
    "mine-additive": ("additive", Mine),
    "mine-propagated": ("propagated", Mine),
    "mige": ("gaussian", Joint),
    "mige-propagated": ("propagated", Joint),
    "mige-marginal": ("gaussian", Marginal),
    "mige-residual": ("gaussian", MarginalResidual),
    "mige-mixture": ("gaussian", MixtureScore),
    "mige-leave-out": ("gaussian", LeaveOut),
    "mige-gaussian": ("gaussian", Gaussian),
    "additive": ("additive", Penalty),
    "vib-additive": ("additive", Rate),
    "mige-marginal-additive": ("additive", Marginal),
    "mige-residual-additive": ("additive", MarginalResidual),
    "mige-gaussian-additive": ("additive", Gaussian),
    "mige-mixture-additive": ("additive", MixtureScore),
    "nib-additive": ("additive", Pairwise),
    "kl-gaussian": ("gaussian", GaussianDivergence),
    "kl-pairwise": ("gaussian", PairwiseDivergence),
}


@dataclass(frozen=True)
class Config:
    seeds: int
    hidden: int = 1024
    code: int = 256
    epochs: int = 15
    batch: int = 100
    learning_rate: float = 1e-3
    decay: float = 0.97
    adam_beta: float = 0.5
    average: float = 0.999
    noise_offset: float = -5.0
    prior_components: int = 20
    critic_hidden: int = 256
    critic_learning_rate: float = 1e-3
    memory: float = 0.9
    samples: int = 12


def _seeded(generator: torch.Generator, make: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose initial weights come from the generator, leaving the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return make()


def _adam(parameters: Iterator[nn.Parameter], rate: float, beta: float = 0.9) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, rate, betas=(beta, 0.999), fused=True)


def train(method: str, weight: float, x: Tensor, y: Tensor, config: Config, seed: int) -> Network:
    encoder, penalty_type = METHODS[method]
    device = x.device
    generator = stream(seed, "train")
    dropout = weight if method == "dropout" else 0.0
    smoothing = weight if method == "label-smoothing" else 0.0
    network = _seeded(
        generator,
        lambda: Network(x.shape[1], config.hidden, config.code, encoder, dropout, config.noise_offset),
    ).to(device)
    penalty = penalty_type(config, stream(seed, "penalty"), device)
    order = stream(seed, "order")
    if dropout:
        torch.manual_seed(seed)
    parameters = [*network.parameters(), *penalty.parameters()]
    optimiser = _adam(parameters, config.learning_rate, config.adam_beta)
    average = [p.detach().clone() for p in network.parameters()]
    steps = len(x) // config.batch
    count = 0
    for epoch in range(config.epochs):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * config.decay**epoch
        for rows in torch.randperm(len(x), generator=order)[: steps * config.batch].to(device).split(config.batch):
            inputs, labels = x[rows], y[rows]
            code = network.encode(inputs, generator)
            z = code.sample(generator) if isinstance(code, GaussianCode) else code
            logits = network.decoder(z)
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            if penalty_type is not Penalty:
                loss = loss + weight * penalty(inputs, code, z, logits)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            count += 1
            with torch.no_grad():
                w = max(1 - config.average, 1 / (1 + count / 3))
                torch._foreach_lerp_(average, list(network.parameters()), w)
    with torch.no_grad():
        for p, a in zip(network.parameters(), average, strict=True):
            p.copy_(a)
    return network.eval()


@torch.no_grad()
def evaluate(network: Network, x: Tensor, y: Tensor, config: Config, seed: int) -> dict[str, float]:
    generator = stream(seed, "evaluate")
    lp = network.log_probs(x, config.samples, generator)
    out = {"test_error": 100 * float((lp.argmax(-1) != y).float().mean()), "nll": float(F.nll_loss(lp, y))}
    code = network.encode(x, generator)
    if isinstance(code, GaussianCode):
        code = GaussianCode(code.mean[:4000], code.scale[:4000])
        out["low"], out["high"] = information_bracket(code, generator)
        out["gauss"] = float(code.gaussian_information())
        out["rate"] = float(code.rate())
        out["mean_std"] = float(code.mean.std(0).mean())
        out["noise"] = float(code.scale.mean())
    return out
