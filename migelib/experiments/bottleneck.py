r"""The information bottleneck on permutation-invariant MNIST: cross-entropy plus a weight times a measure of the code.

The second application of the MIGE paper [Wen et al., ICLR 2020], with the network of the variational bottleneck
[Alemi et al., ICLR 2017]; and, before it, the gradient of I(x; z) of linear-Gaussian encoders, where it is known.
Explained in :doc:`/book/12_bottleneck`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from .. import bounds, critics
from ..codes import (
    Centres,
    GaussianCode,
    Moments,
    code_information_surrogate,
    information_bracket,
    mixture_information_surrogate,
    mixture_of_classes_surrogate,
    pairwise_information,
)
from ..scores import SSGE, GaussianScore, Residual, Transformed
from ..surrogates import mutual_information_surrogate
from ..transforms import Whitening
from .data import load
from .metrics import auroc, calibration_error
from .randomness import seeded, stream

UNITS = {
    "relative_error": "1",
    "averaged_error": "1",
    "cosine": "1",
    "scale_drift": "1",
    "test_error": "%",
    "nll": "nat",
    "ece": "%",
    "fgsm_error": "%",
    "noise_auroc": "1",
    "permuted_auroc": "1",
    "information_low": "nat",
    "information_high": "nat",
    "information_gaussian": "nat",
    "code_scale": "1",
    "weight": "1",
}

CLASSES = 10
FGSM_STEP = 0.1  # in units of the pixels' range 0..1
SETTING = "mnist"
WEIGHTS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # the grid of every penalty on the code
OWN_WEIGHTS = {  # grids of the same length for those that have a scale of their own
    "dropout": (0.1, 0.2, 0.3, 0.4, 0.5),
    "label-smoothing": (0.01, 0.03, 0.05, 0.1, 0.2),
    "confidence-penalty": (0.01, 0.03, 0.1, 0.3, 1.0),
}


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    data : str
        "mnist" or "mnist_5k".
    methods : tuple of str
        Some of `METHODS`.
    weights : tuple of (str, float)
        Weight of a method's penalty; a method that is not listed has it tuned.
    hidden, code : int
        Units of each of the two hidden layers, and coordinates of the code.
    train, epochs, batch : int
        Training images, drawn anew for every seed; passes over them; images a step.
    image_noise : float
        Standard deviation of the Gaussian noise that every training step adds to its images, whose pixels lie in -1..1.
        Tests are without it.
    hidden_noise : float
        Standard deviation of the noise that training adds in every hidden layer, to what the layer computes, normalised
        over the batch. Tests are without noise and normalise by the training images. 0: neither noise nor normalising.
    bfloat16 : bool
        Train the encoder's layers in bfloat16, which some processors compute faster; the code, the losses and the
        weights stay in single precision, and so do the tests.
    learning_rate, decay, decay_every, adam_beta, average :
        Adam's rate, its factor every so many epochs, Adam's first decay rate, and the decay of the moving average of
        the weights that is tested. The published values are those of the full profile.
    noise_offset : float
        The code's scale is softplus(r + noise_offset) of the network's output r.
    samples : int
        Codes that a prediction is averaged over.
    memory : float
        Weight of the past in the moments of `Gaussian`.
    kl_share : float
        Weight of KL(q(z) || N(0, I)) beside that of I(x; z) in `mige-kl`.
    prior_components : int
        Gaussians of the learnt prior.
    critic_hidden, critic_learning_rate, critic_decay :
        MINE's critic, its training, and the weight of the past in its moving average.
    sweep_hidden, sweep_train, sweep_epochs : int
        The smaller scale at which weights are tuned and swept.
    tuning_seeds, validation : int
        Runs for every weight of a grid, and the training images held out to judge them.
    plane, plane_weights : tuple
        Methods and weights of the information plane.
    attacked, informed : int
        Test images for the attack, and for the estimate of I(x; z).
    gradient_codes : tuple of int
        Coordinates of the linear-Gaussian codes.
    gradient_n, gradient_batches, gradient_past : int
        Samples of a batch, batches, and past batches that the methods with a memory keep.
    """

    seeds: int
    data: str = "mnist"
    methods: tuple[str, ...] = ()
    weights: tuple[tuple[str, float], ...] = ()
    hidden: int = 1024
    code: int = 256
    train: int = 60000
    epochs: int = 200
    batch: int = 100
    image_noise: float = 0.0
    hidden_noise: float = 0.0
    bfloat16: bool = False
    learning_rate: float = 1e-4
    decay: float = 0.97
    decay_every: int = 2
    adam_beta: float = 0.5
    average: float = 0.999
    noise_offset: float = 0.0
    samples: int = 12
    memory: float = 0.9
    kl_share: float = 0.1
    prior_components: int = 20
    critic_hidden: int = 256
    critic_learning_rate: float = 1e-3
    critic_decay: float = 0.99
    sweep_hidden: int = 256
    sweep_train: int = 4000
    sweep_epochs: int = 8
    tuning_seeds: int = 2
    validation: int = 10000
    plane: tuple[str, ...] = ("vib", "mige-classes")
    plane_weights: tuple[float, ...] = WEIGHTS
    attacked: int = 2000
    informed: int = 4000
    gradient_codes: tuple[int, ...] = (16, 64, 256)
    gradient_n: int = 100
    gradient_batches: int = 16
    gradient_past: int = 9


# --- the gradient of linear-Gaussian codes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearCode:
    r"""Code :math:`z = W x + \sigma \epsilon` of standard Gaussian x, whose information has a closed form.

    Parameters
    ----------
    loading : Tensor [k, p]
        W.
    log_scale : Tensor [k]
        :math:`\ln \sigma`.
    """

    loading: Float[Tensor, "k p"]
    log_scale: Float[Tensor, "k"]

    @classmethod
    def random(cls, size: int, generator: torch.Generator) -> LinearCode:
        """A loading p = k with random singular vectors and squared singular values 30 j^-1.5, and noise of scale 1."""
        left, right = torch.linalg.qr(torch.randn(2, size, size, dtype=torch.float64, generator=generator))[0]
        signal = 30.0 * torch.arange(1, size + 1, dtype=torch.float64) ** -1.5
        return cls((left * signal.sqrt()) @ right, torch.zeros(size, dtype=torch.float64))

    def covariance(self) -> Float[Tensor, "k k"]:
        """Of z."""
        return self.loading @ self.loading.mT + torch.diag((2 * self.log_scale).exp())

    def moments(self) -> Moments:
        """True moments of z, held fixed."""
        loading, scale = self.loading.detach(), self.log_scale.detach().exp()
        return Moments(torch.zeros_like(scale), loading @ loading.mT, scale.square())

    def information(self) -> Float[Tensor, ""]:
        """I(x; z), in nats, differentiable."""
        return 0.5 * torch.linalg.slogdet(self.covariance()).logabsdet - self.log_scale.sum()

    def encode(self, x: Float[Tensor, "n p"]) -> GaussianCode:
        """The conditionals at inputs."""
        return GaussianCode(x @ self.loading.mT, self.log_scale.exp().expand(len(x), -1))


def gradient_estimates(
    task: LinearCode, past: int, n: int, generator: torch.Generator
) -> dict[str, Callable[[], Float[Tensor, ""]]]:
    """Surrogates of I(x; z) by method, of one batch of n codes; those with a memory know `past` further batches."""
    device = task.loading.device
    x = torch.randn(n * (past + 1), task.loading.shape[1], generator=generator, dtype=torch.float64).to(device)
    everything = task.encode(x)
    every_z = everything.sample(generator)
    code, z, x = GaussianCode(everything.mean[:n], everything.scale[:n]), every_z[:n], x[:n]
    fixed = z.detach()

    def with_score(score: Tensor) -> Tensor:
        return -(score.detach() * z).sum(-1).mean() - code.conditional_entropy()

    def true_score() -> Tensor:
        return -torch.linalg.solve(task.covariance().detach(), fixed.mT).mT

    def joint_exact() -> Tensor:
        own = (code.mean - z).detach() / code.scale.detach().square()
        return ((own - true_score()) * z).sum(-1).mean()

    def marginal(estimator: object) -> Callable[[], Tensor]:
        return lambda: code_information_surrogate(code, z, estimator)

    return {
        "exact-joint": joint_exact,
        "exact-marginal": lambda: with_score(true_score()),
        "exact-averaged": lambda: code.gaussian_surrogate(task.moments()),
        "mige": lambda: mutual_information_surrogate(x, z, SSGE()),
        "mige-marginal": marginal(SSGE()),
        "mige-whitened": marginal(Transformed(Whitening(0.03), SSGE())),
        "mige-shrunk-gaussian": marginal(GaussianScore("ledoit-wolf")),
        "mige-residual": marginal(Residual(GaussianScore("ledoit-wolf"), SSGE(shrinkage=True))),
        "mige-default": marginal(None),
        "mige-memory": lambda: with_score(SSGE().fit(every_z.detach())(fixed)),
        "mige-mixture": lambda: mixture_information_surrogate(code, z),
        "mige-leave-out": lambda: mixture_information_surrogate(code, z, leave_out=True),
        "mige-mixture-memory": lambda: (
            ((((code.mean - z) / code.scale.square()).detach() - everything.mixture_score(z)) * z).sum(-1).mean()
        ),
        "mige-gaussian-batch": lambda: code.gaussian_surrogate(),
        "mige-gaussian": lambda: code.gaussian_surrogate(Moments.of(everything)),
        "nib": lambda: pairwise_information(code),
        "club": lambda: bounds.club(code.log_conditional(z)),
        "vib": lambda: code.rate(),
    }


def gradients(config: Config, seed: int, device: torch.device) -> dict[str, float]:
    r"""Errors of every method's gradient with respect to W and :math:`\ln\sigma`, for every size of the code.

    The relative error is the root mean square over the batches, that of their average says what averaging leaves, and
    the drift is the derivative along :math:`z \to c z`, a coordinate, which is zero: I(x; z) does not depend on c.
    """
    quantities = {}
    for size in config.gradient_codes:
        base = LinearCode.random(size, stream(seed, "linear", size))
        task = LinearCode(base.loading.to(device).requires_grad_(), base.log_scale.to(device).requires_grad_())
        inputs = (task.loading, task.log_scale)

        def flat(surrogate: Tensor, inputs: tuple[Tensor, Tensor] = inputs) -> Tensor:
            found = torch.autograd.grad(surrogate, inputs, allow_unused=True)
            both = zip(found, inputs, strict=True)
            return torch.cat([(torch.zeros_like(at) if g is None else g).flatten() for g, at in both])

        truth = flat(task.information())
        direction = torch.cat([task.loading.detach().flatten(), torch.ones_like(task.log_scale)])  # d z / d ln c
        errors, cosines, drifts, means = defaultdict(list), defaultdict(list), defaultdict(list), {}
        names = gradient_estimates(task, 0, 4, stream(seed, "names"))
        for method in names:
            for batch in range(config.gradient_batches):
                generator = stream(seed, "batch", size, batch)
                gradient = flat(gradient_estimates(task, config.gradient_past, config.gradient_n, generator)[method]())
                errors[method].append(float((gradient - truth).square().sum() / truth.square().sum()))
                cosines[method].append(float(torch.cosine_similarity(gradient, truth, dim=0)))
                drifts[method].append(float(gradient @ direction) / size)
                means[method] = means.get(method, 0) + gradient / config.gradient_batches
            name = f"{method}/k{size}"
            quantities[f"{name}/relative_error"] = math.sqrt(np.mean(errors[method]))
            quantities[f"{name}/averaged_error"] = float((means[method] - truth).norm() / truth.norm())
            quantities[f"{name}/cosine"] = float(np.mean(cosines[method]))
            quantities[f"{name}/scale_drift"] = float(np.mean(drifts[method]))
    return quantities


# --- the network and its penalties -----------------------------------------------------------------------------------


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
        The Gaussian encoder's scale is softplus(r + noise_offset) of the network's output r.
    hidden_noise : float
        If positive, what a hidden layer computes is normalised over the batch, and in training noise of this standard
        deviation is added before the nonlinearity [Rasmus et al., NeurIPS 2015].

    Raises
    ------
    ValueError
        If the encoder is none of these.
    """

    ENCODERS = ("deterministic", "gaussian", "additive", "propagated")

    def __init__(
        self,
        pixels: int,
        hidden: int,
        code: int,
        encoder: str,
        dropout: float = 0.0,
        noise_offset: float = 0.0,
        hidden_noise: float = 0.0,
    ) -> None:
        super().__init__()
        if encoder not in self.ENCODERS:
            raise ValueError(f"encoder: unknown name {encoder!r}, expected one of {', '.join(self.ENCODERS)}")
        self.encoder, self.dropout, self.noise_offset, self.hidden_noise = encoder, dropout, noise_offset, hidden_noise
        self.layers = nn.ModuleList([nn.Linear(pixels, hidden), nn.Linear(hidden, hidden)])
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) if hidden_noise else nn.Identity() for _ in self.layers)
        self.head = nn.Linear(hidden, 2 * code if encoder == "gaussian" else code)
        self.decoder = nn.Linear(code, CLASSES)
        self.log_noise = nn.Parameter(torch.full((3,), math.log(0.1))) if encoder == "propagated" else None

    def encode(self, x: Float[Tensor, "n p"], generator: torch.Generator) -> GaussianCode | Float[Tensor, "n k"]:
        """The conditionals where they are known; otherwise the code, a sample of it where the layers are noisy."""
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = norm(layer(self._perturbed(x, i, generator)))
            if self.hidden_noise and self.training:
                x = x + self.hidden_noise * torch.randn(x.shape, generator=generator).to(x.device)
            x = F.relu(x)
            if self.dropout and self.training:
                kept = torch.rand(x.shape, generator=generator).to(x.device) >= self.dropout
                x = x * kept / (1 - self.dropout)
        x = self.head(self._perturbed(x, 2, generator)).to(self.head.weight.dtype)
        if self.encoder == "gaussian":
            mean, raw = x.chunk(2, dim=-1)
            return GaussianCode(mean, F.softplus(raw + self.noise_offset) + 1e-6)
        if self.encoder == "additive":
            return GaussianCode(x, torch.ones_like(x))
        return x

    @torch.no_grad()
    def set_statistics(self, x: Float[Tensor, "n p"]) -> None:
        """Let the hidden layers normalise by their means and variances at these images, without any noise."""
        if not self.hidden_noise:
            return
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x)
            norm.running_mean.copy_(x.mean(0))
            norm.running_var.copy_(x.var(0))
            x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))

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
        for _ in range(samples):
            z = code.sample(generator) if isinstance(code, GaussianCode) else self.encode(x, generator)
            total.append(self.decoder(z).log_softmax(-1))
        return torch.stack(total).logsumexp(0) - math.log(samples)


class Batch(NamedTuple):
    """What a penalty may look at: inputs, labels, conditionals (None where unknown), codes and logits."""

    x: Float[Tensor, "n p"]
    y: Int64[Tensor, "n"]
    code: GaussianCode | None
    z: Float[Tensor, "n k"]
    logits: Float[Tensor, "n c"]


class Penalty:
    """What is added to the cross-entropy: a function of the batch whose gradient is that of a measure. Here nothing."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        pass

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser trains along with the network."""
        return iter(())

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        """The penalty; for the score-based ones only its gradient means anything."""
        return self._value(batch)

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return batch.z.new_zeros(())


class Confidence(Penalty):
    """Minus the entropy of the predicted classes [Pereyra et al., 2017]."""

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        log_probs = batch.logits.log_softmax(-1)
        return (log_probs.exp() * log_probs).sum(-1).mean()


class Rate(Penalty):
    """The variational bottleneck: I(x; z) + KL(q(z) || N(0, I)) [Alemi et al., ICLR 2017]."""

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return batch.code.rate()


class MixturePrior(Penalty):
    """The rate with a learnt mixture of Gaussians for its prior; one sample a code."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        k, d = config.prior_components, config.code
        self.means = nn.Parameter((0.1 * torch.randn(k, d, generator=generator)).to(device))
        self.log_scales = nn.Parameter(torch.zeros(k, d, device=device))
        self.logits = nn.Parameter(torch.zeros(k, device=device))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Means, scales and weights of the prior."""
        return iter((self.means, self.log_scales, self.logits))

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        prior = GaussianCode(self.means, self.log_scales.exp())
        log_prior = (prior.log_conditional(batch.z) + self.logits.log_softmax(0)[:, None]).logsumexp(0)
        return -batch.code.conditional_entropy() - log_prior.mean()


class Pairwise(Penalty):
    """The nonlinear bottleneck's bound [Kolchinsky, Tracey & Wolpert, Entropy 21, 2019]."""

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return pairwise_information(batch.code)


class Club(Penalty):
    """CLUB with the conditional known [Cheng et al., ICML 2020]."""

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return bounds.club(batch.code.log_conditional(batch.z))


class Mine(Penalty):
    """MINE: a critic that takes one step of its own for every step of the network [Belghazi et al., ICML 2018]."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        critic = seeded(lambda: critics.SeparableCritic(784, config.code, config.critic_hidden), _drawn_seed(generator))
        self.critic, self.decay, self.log_mean = critic.to(device), config.critic_decay, None
        self.optimiser = _adam(self.critic.parameters(), config.critic_learning_rate)

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        value, self.log_mean = bounds.mine(self.critic(batch.x, batch.z.detach()), self.log_mean, self.decay)
        self.optimiser.zero_grad()
        (-value).backward()
        self.optimiser.step()
        return bounds.donsker_varadhan(self.critic(batch.x, batch.z))


class Joint(Penalty):
    """MIGE as in its paper: the joint and the marginal score, both by SSGE."""

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return mutual_information_surrogate(batch.x, batch.z, SSGE())


class Marginal(Penalty):
    """MIGE with the conditional known, the marginal score by SSGE."""

    estimator = SSGE()

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return code_information_surrogate(batch.code, batch.z, self.estimator)


class MarginalResidual(Marginal):
    """The same with a shrunk Gaussian and SSGE for what it leaves."""

    estimator = Residual(GaussianScore("ledoit-wolf"), SSGE(shrinkage=True))


class LeaveOut(Penalty):
    """The same with the score of the mixture of the other conditionals of the batch."""

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return mixture_information_surrogate(batch.code, batch.z, leave_out=True)


class Gaussian(Penalty):
    """The same with the score of a Gaussian: moments averaged over past codes, noise known, no sampling."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        self.memory, self.moments = config.memory, None

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        now = Moments.of(batch.code)
        self.moments = now if self.moments is None else self.moments.mixed(now, 1 - self.memory)
        return batch.code.gaussian_surrogate(self.moments)


class Classes(Penalty):
    """The same with the score of a mixture, one Gaussian a class with a common covariance: moments as in `Gaussian`."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        self.memory, self.within = config.memory, None
        self.means = torch.zeros(CLASSES, config.code, device=device)
        self.counts = torch.zeros(CLASSES, device=device)

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        fixed = batch.code.detach()
        member = F.one_hot(batch.y, CLASSES).to(fixed.mean)
        now = member.sum(0)
        self.counts = self.memory * self.counts + now
        means = member.mT @ fixed.mean / now.clamp_min(1)[:, None]
        self.means = torch.lerp(self.means, means, (now / self.counts.clamp_min(1e-9))[:, None])
        moments = Moments.of(GaussianCode(fixed.mean - self.means[batch.y], fixed.scale))
        self.within = moments if self.within is None else self.within.mixed(moments, 1 - self.memory)
        centres = Centres(self.means, self.counts / self.counts.sum(), self.within)
        return mixture_of_classes_surrogate(batch.code, batch.z, centres)


class GaussianDivergence(Gaussian):
    """The rate less `Gaussian`: KL(G || N(0, I)) of the Gaussian G with the moments of the code."""

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return batch.code.rate() - super()._value(batch)


class GaussianBoth(Gaussian):
    """`Gaussian`, and the rate with a share of the weight."""

    def __init__(self, config: Config, generator: torch.Generator, device: torch.device) -> None:
        super().__init__(config, generator, device)
        self.share = config.kl_share

    def _value(self, batch: Batch) -> Float[Tensor, ""]:
        return (1 - self.share) * super()._value(batch) + self.share * batch.code.rate()


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
    "mige-marginal": ("gaussian", Marginal),
    "mige-residual": ("gaussian", MarginalResidual),
    "mige-leave-out": ("gaussian", LeaveOut),
    "mige-gaussian": ("gaussian", Gaussian),
    "mige-gaussian-additive": ("additive", Gaussian),
    "mige-classes": ("gaussian", Classes),
    "mige-kl": ("gaussian", GaussianBoth),
    "kl": ("gaussian", GaussianDivergence),
}
UNWEIGHTED = ("baseline", "stochastic")

_ALL_IMAGES = {  # what the CPU runs of the published architecture share
    "learning_rate": 1e-3,
    "decay": 0.6,
    "sweep_hidden": 1024,
    "sweep_train": 50_000,
    "tuning_seeds": 1,
    "plane": (),
    "gradient_codes": (),
}
PROFILES = {
    "quick": Config(
        seeds=5,
        data="mnist_5k",
        methods=("baseline", "stochastic", "vib", "kl", "mige-marginal", "mige-gaussian", "mige-classes"),
        weights=(("vib", 1e-2), ("kl", 1e-2), ("mige-marginal", 1e-3), ("mige-gaussian", 3e-2), ("mige-classes", 3e-2)),
        hidden=192,
        code=64,
        train=4000,
        epochs=5,
        learning_rate=1e-3,
        average=0.98,
        sweep_hidden=192,
        sweep_epochs=5,
        tuning_seeds=0,
        plane_weights=(1e-3, 1e-2, 1e-1),
        attacked=500,
        informed=1000,
        gradient_codes=(16, 64),
        gradient_batches=4,
    ),
    "cpu": Config(
        seeds=5,
        methods=tuple(METHODS),
        hidden=192,
        code=128,
        train=4000,
        epochs=6,
        learning_rate=1e-3,
        average=0.98,
        sweep_hidden=192,
        sweep_epochs=5,
        tuning_seeds=1,
        validation=5000,
        plane_weights=(1e-3, 1e-2, 1e-1),
        attacked=500,
        informed=1000,
        gradient_batches=3,
    ),
    "cpu-large": Config(
        seeds=5,
        methods=(
            "baseline",
            "confidence-penalty",
            "stochastic",
            "vib",
            "kl",
            "mige-marginal",
            "mige-gaussian",
            "mige-classes",
            "mige-kl",
        ),
        epochs=12,
        decay_every=2,
        sweep_epochs=2,
        **_ALL_IMAGES,
    ),
    "cpu-long": Config(
        seeds=5,
        methods=("stochastic", "vib", "mige-classes"),
        epochs=30,
        decay_every=5,
        sweep_epochs=30,
        **_ALL_IMAGES,
    ),
    "cpu-noise": Config(
        seeds=5,
        methods=("baseline", "stochastic", "vib", "mige-gaussian", "mige-classes"),
        weights=(("vib", 1e-4), ("mige-gaussian", 1e-4), ("mige-classes", 1e-4)),
        epochs=40,
        image_noise=0.8,
        bfloat16=True,
        decay_every=6,
        sweep_epochs=40,
        plane_weights=(1e-3,),
        **_ALL_IMAGES | {"sweep_train": 60_000, "plane": ("vib", "mige-classes")},
    ),
    "cpu-layers": Config(
        seeds=5,
        methods=("baseline", "stochastic", "vib", "mige-gaussian", "mige-classes"),
        weights=(("vib", 1e-3), ("mige-gaussian", 1e-3), ("mige-classes", 1e-2)),
        epochs=24,
        image_noise=0.6,
        hidden_noise=0.3,
        bfloat16=True,
        decay_every=4,
        sweep_epochs=24,
        plane_weights=(1e-3, 1e-2),
        **_ALL_IMAGES | {"sweep_train": 60_000, "plane": ("vib", "mige-gaussian", "mige-classes")},
    ),
    "cpu-tuned": Config(
        seeds=5,
        methods=tuple(METHODS),
        epochs=12,
        image_noise=0.6,
        hidden_noise=0.3,
        bfloat16=True,
        decay_every=2,
        sweep_epochs=12,
        **_ALL_IMAGES,
    ),
    "full": Config(
        seeds=5,
        methods=tuple(METHODS),
        sweep_hidden=1024,
        sweep_train=10000,
        sweep_epochs=20,
        plane=("vib", "kl", "mige-gaussian", "mige-classes"),
    ),
}


# --- training --------------------------------------------------------------------------------------------------------


def _drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _adam(parameters: Iterator[nn.Parameter], rate: float, beta: float = 0.9) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, rate, betas=(beta, 0.999), fused=True)


def train(
    method: str, weight: float, x: Float[Tensor, "n p"], y: Int64[Tensor, "n"], config: Config, seed: int
) -> Network:
    """Train one network; all methods of one seed share the initial weights where they fit, and the images' order."""
    encoder, penalty_type = METHODS[method]
    generator = stream(seed, "train")
    dropout = weight if method == "dropout" else 0.0
    smoothing = weight if method == "label-smoothing" else 0.0
    network = seeded(
        lambda: Network(
            x.shape[1], config.hidden, config.code, encoder, dropout, config.noise_offset, config.hidden_noise
        ),
        _drawn_seed(generator),
    ).to(x.device)
    penalty = penalty_type(config, stream(seed, "penalty"), x.device)
    weights = list(network.parameters())
    optimiser = _adam([*weights, *penalty.parameters()], config.learning_rate, config.adam_beta)
    average, count, order = [w.detach().clone() for w in weights], 0, stream(seed, "order")
    for epoch in range(config.epochs):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * config.decay ** (epoch // config.decay_every)
        shuffled = torch.randperm(len(x), generator=order).to(x.device)
        for rows in shuffled[: len(x) // config.batch * config.batch].split(config.batch):
            images = x[rows]
            if config.image_noise:
                images = images + config.image_noise * torch.randn(images.shape, generator=generator).to(images.device)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bfloat16):
                encoded = network.encode(images, generator)
            code = encoded if isinstance(encoded, GaussianCode) else None
            z = encoded if code is None else code.sample(generator)
            logits = network.decoder(z)
            loss = F.cross_entropy(logits, y[rows], label_smoothing=smoothing)
            if penalty_type is not Penalty:
                loss = loss + weight * penalty(Batch(images, y[rows], code, z, logits))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            count += 1
            with torch.no_grad():  # the average forgets faster in the first steps
                torch._foreach_lerp_(average, weights, max(1 - config.average, 1 / (1 + count / 3)))
    with torch.no_grad():
        for parameter, value in zip(weights, average, strict=True):
            parameter.copy_(value)
    network.set_statistics(x)
    return network.eval()


# --- what is reported ------------------------------------------------------------------------------------------------


def attacked_error(network: Network, x: Float[Tensor, "n p"], y: Int64[Tensor, "n"], samples: int, seed: int) -> float:
    """Error in percent after one step along the sign of the gradient of the averaged prediction's loss (FGSM)."""
    x = x.clone().requires_grad_()
    loss = F.nll_loss(network.log_probs(x, samples, stream(seed, "attack")), y)
    (gradient,) = torch.autograd.grad(loss, x)
    moved = (x.detach() + 2 * FGSM_STEP * gradient.sign()).clamp(-1, 1)  # pixels lie in -1..1
    with torch.no_grad():
        predicted = network.log_probs(moved, samples, stream(seed, "attacked")).argmax(-1)
    return 100 * float((predicted != y).float().mean())


@torch.no_grad()
def code_information(network: Network, x: Float[Tensor, "n p"], seed: int) -> dict[str, float]:
    """Estimates of I(x; z) from the conditionals at many inputs: the bracket, and the Gaussian upper bound."""
    code = network.encode(x, stream(seed, "code"))
    if not isinstance(code, GaussianCode):
        return {}
    low, high = information_bracket(code, stream(seed, "bracket"))
    return {
        "information_low": low,
        "information_high": high,
        "information_gaussian": float(code.gaussian_information()),
        "code_scale": float(Moments.of(code).covariance().diagonal().mean().sqrt()),
    }


def measure(
    network: Network, x: Float[Tensor, "n p"], y: Int64[Tensor, "n"], config: Config, seed: int
) -> dict[str, float]:
    """All metrics of a trained network on test images."""
    with torch.no_grad():
        log_probs = network.log_probs(x, config.samples, stream(seed, "test"))
        some = x[: config.attacked]
        generator = stream(seed, "outliers")
        uniform = (2 * torch.rand(some.shape, generator=generator) - 1).to(x.device)
        shuffled = some.gather(1, torch.rand(some.shape, generator=generator).argsort(1).to(x.device))
        entropy = [
            -(p.exp() * p).sum(-1)
            for p in (network.log_probs(s, config.samples, generator) for s in (some, uniform, shuffled))
        ]
    return (
        {
            "test_error": 100 * float((log_probs.argmax(-1) != y).float().mean()),
            "nll": float(F.nll_loss(log_probs, y)),
            "ece": 100 * calibration_error(log_probs, y),
            "fgsm_error": attacked_error(network, some, y[: config.attacked], config.samples, seed),
            "noise_auroc": round(auroc(entropy[0], entropy[1]), 3),  # nearly all one: a few pairs would be rounding
            "permuted_auroc": auroc(entropy[0], entropy[2]),
        }
        | code_information(network, x[: config.informed], seed)
    )


# --- the experiment --------------------------------------------------------------------------------------------------


def data_source(config: Config) -> str:
    """Where the images come from, in a few words."""
    return load(config.data).source


def _images(config: Config, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images as vectors in -1..1, with labels; the last training images are for validation."""
    data = load(config.data)
    flat = [images.flatten(1).float() / 127.5 - 1 for images in (data.x_train, data.x_test)]
    order = torch.randperm(len(data.y_train), generator=stream(0, "split"))
    parts = (flat[0][order], data.y_train[order], flat[1], data.y_test)
    return tuple(part.to(device) for part in parts)


def _draw(n: int, pool: int, seed: int, device: torch.device) -> Tensor:
    if n > pool:
        raise ValueError(f"train: expected at most {pool} images, got {n}")
    return torch.randperm(pool, generator=stream(seed, "images"))[:n].to(device)


def _small(config: Config) -> Config:
    return replace(config, hidden=config.sweep_hidden, train=config.sweep_train, epochs=config.sweep_epochs)


@lru_cache(maxsize=1)
def tune(config: Config, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Weight of least mean validation error for every method that has none, and the errors over its grid.

    The images are training images of which the last are held out; the seeds are none of the reported ones.
    """
    given = dict(config.weights)
    small = _small(config)
    x, y, _, _ = _images(config, device)
    pool = len(x) - config.validation
    chosen, curves = {}, {}
    for method in config.methods:
        if method in UNWEIGHTED or method in given:
            chosen[method] = given.get(method, 0.0)
            continue
        grid = OWN_WEIGHTS.get(method, WEIGHTS)
        errors = np.zeros((len(grid), config.tuning_seeds))
        for i, weight in enumerate(grid):
            for j in range(config.tuning_seeds):
                rows = _draw(small.train, pool, 1000 + j, device)
                network = train(method, weight, x[rows], y[rows], small, 1000 + j)
                with torch.no_grad():
                    log_probs = network.log_probs(x[pool:], config.samples, stream(1000 + j, "validation"))
                errors[i, j] = 100 * float((log_probs.argmax(-1) != y[pool:]).float().mean())
        chosen[method] = grid[int(errors.mean(1).argmin())]
        curves[f"tuning/{method}/validation_error"] = errors.astype(np.float32)
    return chosen, curves


def run_seed(config: Config, seed: int, device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Gradients of linear codes, every method at its weight, and the information plane, for one seed.

    The curves are tuning/<method>/validation_error over the grid (the same for every seed), <method>/<metric> of each
    seed, for paired tests, and plane/<method>/<metric> over the plane's weights.
    """
    quantities = gradients(config, seed, device)
    weights, curves = tune(config, device)
    curves = dict(curves)
    x, y, x_test, y_test = _images(config, device)
    rows = _draw(config.train, len(x), seed, device)
    for method in config.methods:
        network = train(method, weights[method], x[rows], y[rows], config, seed)
        for metric, value in measure(network, x_test, y_test, config, seed).items():
            quantities[f"{method}/{SETTING}/{metric}"] = value
            curves[f"{method}/{metric}"] = np.float32(value)
        quantities[f"{method}/{SETTING}/weight"] = weights[method]
    small = _small(config)
    rows = _draw(small.train, len(x), seed, device)
    for method in config.plane:
        values = defaultdict(list)
        for weight in config.plane_weights:
            network = train(method, weight, x[rows], y[rows], small, seed)
            with torch.no_grad():
                log_probs = network.log_probs(x_test, config.samples, stream(seed, "test"))
            values["test_error"].append(100 * float((log_probs.argmax(-1) != y_test).float().mean()))
            values["nll"].append(float(F.nll_loss(log_probs, y_test)))
            for metric, value in code_information(network, x_test[: config.informed], seed).items():
                values[metric].append(value)
        curves |= {f"plane/{method}/{metric}": np.array(value, np.float32) for metric, value in values.items()}
    return quantities, curves
