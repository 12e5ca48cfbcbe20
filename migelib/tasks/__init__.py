r"""Distributions with a known score, entropy, mutual information and gradient: accuracy is measured against these.

Samples are reparameterised: they are differentiable functions of the task's parameters, which may be tensors that
require a gradient. Noise is drawn by an explicit generator, on the generator's device, so that a run on a GPU sees the
same samples as one on a CPU.

Pairs (x, z) follow one protocol, `PairTask`; the benchmark's are built by name and dimension with `pair`.
"""

from __future__ import annotations

from .base import PairScores, PairTask, cast, exact_score_surrogate
from .densities import Gaussian, GaussianMixture, LinearGaussian, LinearMap, SinhArcsinh, StudentT
from .encoder import Encoder
from .energies import (
    PLANE_ENERGIES,
    FunnelEnergy,
    LogisticRegression,
    Moments,
    PlaneEnergy,
    breast_cancer_posterior,
    gaussian_log_prob,
)
from .gaussian import CorrelatedGaussian, GaussianPair, JointGaussian
from .maps import Asinh, Bimodal, Compose, HalfCube, NormalCDF, SinhArcsinhMap, Spiral, TransformedPair, Wiggle
from .mixture import MixturePair
from .student import StudentPair
from .suite import PAIRS, pair

__all__ = [
    "PAIRS",
    "PLANE_ENERGIES",
    "Asinh",
    "Bimodal",
    "Compose",
    "CorrelatedGaussian",
    "Encoder",
    "FunnelEnergy",
    "Gaussian",
    "GaussianMixture",
    "GaussianPair",
    "HalfCube",
    "JointGaussian",
    "LinearGaussian",
    "LinearMap",
    "LogisticRegression",
    "MixturePair",
    "Moments",
    "NormalCDF",
    "PairScores",
    "PairTask",
    "PlaneEnergy",
    "SinhArcsinh",
    "SinhArcsinhMap",
    "Spiral",
    "StudentPair",
    "StudentT",
    "TransformedPair",
    "Wiggle",
    "breast_cancer_posterior",
    "cast",
    "exact_score_surrogate",
    "gaussian_log_prob",
    "pair",
]
