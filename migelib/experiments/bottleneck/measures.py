"""What is reported of the trained networks, for each seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...codes import CodeMoments, GaussianCode, information_bracket
from ..metrics import auroc, calibration_error
from ..randomness import Streams, stream
from ..training import cross_entropy
from .config import Config
from .networks import Model

FGSM_STEP = 0.1  # in units of the pixels' range 0..1


def measure(
    model: Model, x: Float[Tensor, "n p"], y: Int64[Tensor, "n"], config: Config, seeds: Sequence[int]
) -> list[dict[str, float]]:
    """All metrics on test images."""
    some, labels = x[: config.attacked], y[: config.attacked]
    log_probs = predict(model, x, config.samples, Streams(seeds, "test", device=x.device))
    familiar, uniform, permuted = outlier_entropies(model, some, config.samples, seeds)
    attacked = attacked_log_probs(model, some, labels, config.samples, seeds)
    information = code_information(model, x[: config.informed], seeds)
    return [
        prediction(log_probs[i], y)
        | {
            "ece": 100 * calibration_error(log_probs[i], y),
            "fgsm_error": prediction(attacked[i], labels)["test_error"],
            "noise_auroc": round(auroc(familiar[i], uniform[i]), 3),  # nearly all one: a few pairs would be rounding
            "permuted_auroc": auroc(familiar[i], permuted[i]),
        }
        | information[i]
        for i in range(len(seeds))
    ]


def measure_plane(
    model: Model, x: Float[Tensor, "n p"], y: Int64[Tensor, "n"], config: Config, seeds: Sequence[int]
) -> list[dict[str, float]]:
    """The metrics of the information plane on test images."""
    log_probs = predict(model, x, config.samples, Streams(seeds, "test", device=x.device))
    information = code_information(model, x[: config.informed], seeds)
    return [prediction(log_probs[i], y) | information[i] for i in range(len(seeds))]


def prediction(log_probs: Float[Tensor, "n c"], y: Int64[Tensor, "n"]) -> dict[str, float]:
    """Error in percent and negative log-likelihood of one seed's predictions."""
    return {
        "test_error": 100 * float((log_probs.argmax(-1) != y).float().mean()),
        "nll": float(torch.nn.functional.nll_loss(log_probs, y)),
    }


@torch.no_grad()
def predict(model: Model, x: Float[Tensor, "n p"], samples: int, streams: Streams) -> Float[Tensor, "seeds n c"]:
    """Log-probabilities of the classes of the same images by the networks of all seeds."""
    return model.log_probs(x.expand(len(streams), *x.shape), samples, streams)


@torch.no_grad()
def outlier_entropies(
    model: Model, x: Float[Tensor, "n p"], samples: int, seeds: Sequence[int]
) -> list[Float[Tensor, "seeds n"]]:
    """Entropies of the predictions on images, on uniform noise, and on the images with their pixels permuted."""
    streams = Streams(seeds, "outliers", device=x.device)
    same = x.expand(len(seeds), *x.shape)
    uniform = 2 * streams.uniform(*x.shape) - 1
    permuted = same.gather(-1, streams.uniform(*x.shape).argsort(-1))
    log_probs = [model.log_probs(images, samples, streams) for images in (same, uniform, permuted)]
    return [-(values.exp() * values).sum(-1) for values in log_probs]


def attacked_log_probs(
    model: Model, x: Float[Tensor, "n p"], y: Int64[Tensor, "n"], samples: int, seeds: Sequence[int]
) -> Float[Tensor, "seeds n c"]:
    """Predictions after one step along the sign of the gradient of the averaged prediction's loss (FGSM)."""
    images = x.repeat(len(seeds), 1, 1).requires_grad_()
    log_probs = model.log_probs(images, samples, Streams(seeds, "attack", device=x.device))
    loss = cross_entropy(log_probs, y.expand(len(seeds), -1)).sum()
    (gradient,) = torch.autograd.grad(loss, images)
    moved = (images.detach() + 2 * FGSM_STEP * gradient.sign()).clamp(-1, 1)  # pixels lie in -1..1
    with torch.no_grad():
        return model.log_probs(moved, samples, Streams(seeds, "attacked", device=x.device))


@torch.no_grad()
def code_information(model: Model, x: Float[Tensor, "n p"], seeds: Sequence[int]) -> list[dict[str, float]]:
    """Estimates of I(x; z) from the conditionals at many inputs: the bracket, and the Gaussian upper bound."""
    noise = model.noise(len(x), Streams(seeds, "code", device=x.device))
    code = model.encode(x.expand(len(seeds), *x.shape), noise)
    if not isinstance(code, GaussianCode):
        return [{} for _ in seeds]
    gaussian = code.gaussian_information()
    scale = CodeMoments.of(code).covariance().diagonal(dim1=-2, dim2=-1).mean(-1).sqrt()
    measured = []
    for i, seed in enumerate(seeds):
        one = GaussianCode(code.mean[i], code.scale[i])
        low, high = information_bracket(one, stream(seed, "bracket", device=x.device))
        measured.append(
            {
                "information_low": float(low),
                "information_high": float(high),
                "information_gaussian": float(gaussian[i]),
                "code_scale": float(scale[i]),
            }
        )
    return measured
