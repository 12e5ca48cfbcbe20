"""What is added to the cross-entropy: measures of the code, of which some are gradients only; and the methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ... import bounds, critics
from ...codes import (
    Centres,
    CodeMoments,
    GaussianCode,
    code_information_surrogate,
    mixture_information_surrogate,
    mixture_of_classes_surrogate,
    pairwise_information,
)
from ...scores import SSGE, GaussianScore, Residual, ScoreEstimator
from ...surrogates import mutual_information_surrogate
from ..randomness import Streams
from ..training import Stack, adam, descend, own_rows
from . import networks

WEIGHTS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # the grid of every penalty on the code


class Minibatch(NamedTuple):
    """What a penalty may look at: inputs, labels, conditionals (None where unknown), codes and logits."""

    x: Float[Tensor, "seeds n p"]
    y: Int64[Tensor, "seeds n"]
    code: GaussianCode | None
    z: Float[Tensor, "seeds n k"]
    logits: Float[Tensor, "seeds n c"]


class Penalty:
    """What is added to the cross-entropy: called with a batch, a scalar whose gradient is that of a measure.

    It is summed over the seeds, whose networks have nothing in common. The value of a score-based one is no measure.

    Parameters
    ----------
    pixels, code : int
        Numbers of coordinates of x and z.
    streams : Streams
        For what is drawn at the start; its device is that of the penalty.
    """

    def __init__(self, pixels: int, code: int, streams: Streams) -> None:
        pass

    def parameters(self) -> list[Tensor]:
        """What the optimiser trains along with the network."""
        return []

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """The penalty on a batch."""
        raise NotImplementedError


class Confidence(Penalty):
    """Minus the entropy of the predicted classes [Pereyra et al., 2017]."""

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From the logits."""
        log_probs = batch.logits.log_softmax(-1)
        return (log_probs.exp() * log_probs).sum(-1).mean(-1).sum()


class Rate(Penalty):
    """The variational bottleneck: I(x; z) + KL(q(z) || N(0, I)) [Alemi et al., ICLR 2017]."""

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From the conditionals."""
        return batch.code.rate().sum()


class MixturePrior(Penalty):
    """The rate with a learnt mixture of Gaussians for its prior; one sample a code."""

    components = 20

    def __init__(self, pixels: int, code: int, streams: Streams) -> None:
        self.means = (0.1 * streams.normal(self.components, code)).requires_grad_()
        self.log_scales = torch.zeros_like(self.means, requires_grad=True)
        self.logits = torch.zeros_like(self.means[..., 0], requires_grad=True)

    def parameters(self) -> list[Tensor]:
        """Means, scales and weights of the prior."""
        return [self.means, self.log_scales, self.logits]

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From conditionals and samples."""
        log_density = GaussianCode(self.means, self.log_scales.exp()).log_conditional(batch.z)
        log_prior = (log_density + self.logits.log_softmax(-1)[..., None]).logsumexp(-2)
        return -(batch.code.conditional_entropy() + log_prior.mean(-1)).sum()


class Pairwise(Penalty):
    """The nonlinear bottleneck's bound [Kolchinsky, Tracey & Wolpert, Entropy 21, 2019]."""

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From the conditionals."""
        return pairwise_information(batch.code).sum()


class Club(Penalty):
    """CLUB with the conditional known [Cheng et al., ICML 2020]."""

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From conditionals and samples."""
        return bounds.club(batch.code.log_conditional(batch.z)).sum()


class Mine(Penalty):
    """MINE: a critic that takes one step of its own for every step of the network [Belghazi et al., ICML 2018].

    `decay` is the weight of the past in the moving average of the bound's denominator.
    """

    hidden, learning_rate, decay = 256, 1e-3, 0.99

    def __init__(self, pixels: int, code: int, streams: Streams) -> None:
        self.critic = Stack(networks.drawn(lambda: critics.SeparableCritic(pixels, code, self.hidden), streams))
        self.log_mean: Tensor | None = None
        self.optimiser = adam(self.critic.parameters(), self.learning_rate)

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """The bound of the critic after its step."""
        value, self.log_mean = bounds.mine(self.critic(batch.x, batch.z.detach()), self.log_mean, self.decay)
        descend(self.optimiser, -value)
        with self.critic.frozen():
            return bounds.donsker_varadhan(self.critic(batch.x, batch.z)).sum()


class Joint(Penalty):
    """MIGE as in its paper: the joint and the marginal score, both by SSGE."""

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From inputs and samples."""
        return mutual_information_surrogate(batch.x, batch.z, SSGE())


class Marginal(Penalty):
    """MIGE with the conditional known, the marginal score by SSGE."""

    estimator: ScoreEstimator = SSGE()

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From conditionals and samples."""
        return code_information_surrogate(batch.code, batch.z, self.estimator)


class MarginalResidual(Marginal):
    """MIGE with the conditional known, the marginal score by a shrunk Gaussian and SSGE for what it leaves."""

    estimator = Residual(GaussianScore("ledoit-wolf"), SSGE(shrinkage=True))


class LeaveOut(Penalty):
    """MIGE with the score of the mixture of the other conditionals of the batch."""

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From conditionals and samples."""
        return mixture_information_surrogate(batch.code, batch.z, leave_out=True)


class GaussianInformation(Penalty):
    """MIGE with the score of a Gaussian: the noise is known, and no sample needed.

    `decay` is the weight of the past in the moving moments of the codes.
    """

    decay = 0.9

    def __init__(self, pixels: int, code: int, streams: Streams) -> None:
        self.moments: CodeMoments | None = None

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From the conditionals, whose moments are averaged with those of the past."""
        now = CodeMoments.of(batch.code)
        self.moments = now if self.moments is None else self.moments.updated(now, self.decay)
        return batch.code.gaussian_surrogate(self.moments)


class Classes(Penalty):
    """MIGE with the score of a mixture: one Gaussian a class with a common covariance.

    `decay` is the weight of the past in the moving moments of the classes' codes.
    """

    decay = 0.9

    def __init__(self, pixels: int, code: int, streams: Streams) -> None:
        self.within: CodeMoments | None = None
        self.means: Tensor | float = 0.0
        self.counts: Tensor | float = 0.0

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From conditionals, labels and samples, after an update of the classes' moments."""
        fixed = batch.code.detach()
        member = batch.y[..., None] == torch.arange(networks.CLASSES, device=batch.y.device)
        member = member.to(fixed.mean)
        now = member.sum(-2)
        self.counts = self.decay * self.counts + now
        means = member.mT @ fixed.mean / now.clamp_min(1)[..., None]
        share = (now / self.counts.clamp_min(1e-9))[..., None]
        self.means = self.means + share * (means - self.means)
        moments = CodeMoments.of(fixed.shifted(-own_rows(self.means, batch.y)))
        self.within = moments if self.within is None else self.within.updated(moments, self.decay)
        centres = Centres(self.means, self.counts / self.counts.sum(-1, keepdim=True), self.within)
        return mixture_of_classes_surrogate(batch.code, batch.z, centres)


class GaussianDivergence(GaussianInformation):
    """The rate less `GaussianInformation`: KL(G || N(0, I)) of the Gaussian G with the moments of the code."""

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From the conditionals."""
        return batch.code.rate().sum() - super().__call__(batch)


class GaussianBoth(GaussianInformation):
    """`GaussianInformation`, and the rate with a share of the weight."""

    share = 0.1

    def __call__(self, batch: Minibatch) -> Float[Tensor, ""]:
        """From the conditionals."""
        return (1 - self.share) * super().__call__(batch) + self.share * batch.code.rate().sum()


@dataclass(frozen=True)
class Regulariser:
    """How a network is regularised.

    Attributes
    ----------
    encoder : type
        One of the encoders of `networks`.
    penalty : type, optional
        What is added to the cross-entropy, times the weight.
    dropout, smoothing : bool
        Whether the weight is the share of hidden units dropped, or that of the uniform law in the labels.
    grid : tuple of float
        Weights to choose from; none where there is nothing to weigh.
    """

    encoder: type[networks.DeterministicEncoder] = networks.GaussianEncoder
    penalty: type[Penalty] | None = None
    dropout: bool = False
    smoothing: bool = False
    grid: tuple[float, ...] = WEIGHTS

    @property
    def needs_weight(self) -> bool:
        """Whether there is anything to weigh."""
        return bool(self.grid)


METHODS: dict[str, Regulariser] = {
    "baseline": Regulariser(networks.DeterministicEncoder, grid=()),
    "dropout": Regulariser(networks.DeterministicEncoder, dropout=True, grid=(0.1, 0.2, 0.3, 0.4, 0.5)),
    "label-smoothing": Regulariser(networks.DeterministicEncoder, smoothing=True, grid=(0.01, 0.03, 0.05, 0.1, 0.2)),
    "confidence-penalty": Regulariser(networks.DeterministicEncoder, Confidence, grid=(0.01, 0.03, 0.1, 0.3, 1.0)),
    "stochastic": Regulariser(grid=()),
    "vib": Regulariser(penalty=Rate),
    "vib-mixture": Regulariser(penalty=MixturePrior),
    "nib": Regulariser(penalty=Pairwise),
    "club": Regulariser(penalty=Club),
    "mine": Regulariser(penalty=Mine),
    "mine-additive": Regulariser(networks.AdditiveEncoder, Mine),
    "mine-propagated": Regulariser(networks.PropagatedEncoder, Mine),
    "mige": Regulariser(penalty=Joint),
    "mige-marginal": Regulariser(penalty=Marginal),
    "mige-residual": Regulariser(penalty=MarginalResidual),
    "mige-leave-out": Regulariser(penalty=LeaveOut),
    "mige-gaussian": Regulariser(penalty=GaussianInformation),
    "mige-gaussian-additive": Regulariser(networks.AdditiveEncoder, GaussianInformation),
    "mige-classes": Regulariser(penalty=Classes),
    "mige-kl": Regulariser(penalty=GaussianBoth),
    "kl": Regulariser(penalty=GaussianDivergence),
}
