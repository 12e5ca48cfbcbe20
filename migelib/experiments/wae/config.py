"""Settings of the Wasserstein autoencoders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frontier:
    """One frontier: the size of the code, the training, and by method the weights of its regulariser.

    Attributes
    ----------
    code : int
        Coordinates d of a code.
    batch : int
        Images a step.
    epochs : int
        Passes over the training images.
    weights : tuple
        Pairs of a method, one of `objectives.METHODS`, and its weights.
    """

    code: int
    batch: int
    epochs: int
    weights: tuple[tuple[str, tuple[float, ...]], ...]

    @property
    def setting(self) -> str:
        """Its name in quantities."""
        return f"d{self.code}-b{self.batch}-e{self.epochs}"


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    methods : tuple of str
        Which of the frontiers' methods are trained.
    frontiers : tuple of Frontier
        What is trained; the figures are made from the first.
    data : str
        "mnist" or "mnist_5k".
    images, test_images : int
        How many of the training and of the test images are used.
    hidden : int
        Units of each of two hidden layers of the encoder, of the decoder and of the discriminator.
    learning_rate : float
        Of Adam at the start; it falls to zero along a cosine.
    prior_draws : int
        Draws of the prior for each code of a batch, in the discrepancies.
    discriminator_rate : float
        That of the discriminator's Adam.
    classifier_epochs : int
        Passes in the training of the classifier whose features measure the samples.
    kept : tuple of pairs
        Method and weight: those whose codes and samples are kept for figures.

    Raises
    ------
    ValueError
        If no frontier has one of the methods.
    """

    seeds: int
    methods: tuple[str, ...]
    frontiers: tuple[Frontier, ...]
    data: str = "mnist"
    images: int = 60_000
    test_images: int = 10_000
    hidden: int = 128
    learning_rate: float = 4e-3
    prior_draws: int = 4
    discriminator_rate: float = 1e-3
    classifier_epochs: int = 2
    kept: tuple[tuple[str, float], ...] = (
        ("none", 0.0),
        ("ege", 5.0),
        ("wae-mmd-imq", 300.0),
        ("wae-gan", 1.0),
        ("vae", 1.0),
    )

    def __post_init__(self) -> None:
        known = {method: None for frontier in self.frontiers for method, _ in frontier.weights}
        for method in self.methods:
            if method not in known:
                raise ValueError(f"methods: expected some of the frontiers' {', '.join(known)}, got {method!r}")


_WEIGHTS = {
    "none": (0.0,),
    "ege": (1.0, 5.0, 20.0, 60.0),
    "ssge-paper": (1.0, 5.0, 20.0, 60.0),
    "gaussian": (1.0, 5.0, 20.0, 60.0),
    "wae-mmd-imq": (30.0, 100.0, 300.0, 1000.0),
    "wae-mmd-rbf": (3.0, 10.0, 30.0, 100.0),
    "wae-mmd-energy": (3.0, 10.0, 30.0, 100.0),
    "wae-gan": (0.5, 1.0, 2.0, 5.0),
    "vae": (0.3, 1.0),
}


def _some(methods: tuple[str, ...], first: int, last: int) -> tuple[tuple[str, tuple[float, ...]], ...]:
    return tuple((method, _WEIGHTS[method][first:last]) for method in methods)


PROFILES = {
    "quick": Config(
        seeds=5,
        methods=("none", "ege", "wae-mmd-imq", "wae-mmd-energy", "wae-gan", "vae"),
        frontiers=(
            Frontier(
                8,
                64,
                5,
                _some(("none",), 0, 1)
                + _some(("ege",), 1, 3)
                + _some(("wae-mmd-imq",), 1, 3)
                + _some(("wae-mmd-energy", "wae-gan", "vae"), 1, 2),
            ),
        ),
        data="mnist_5k",
        hidden=64,
        classifier_epochs=4,
    ),
    "cpu": Config(
        seeds=5,
        methods=tuple(_WEIGHTS),
        frontiers=(
            Frontier(
                8,
                128,
                6,
                _some(("none",), 0, 1)
                + _some(("ege", "wae-mmd-imq", "wae-mmd-rbf", "wae-mmd-energy"), 0, 4)
                + _some(("ssge-paper", "gaussian", "wae-gan"), 1, 3)
                + _some(("vae",), 0, 2),
            ),
            Frontier(8, 128, 30, _some(("ege", "gaussian"), 1, 2) + _some(("wae-mmd-imq", "wae-mmd-energy"), 2, 3)),
            Frontier(
                2,
                128,
                6,
                _some(("none",), 0, 1)
                + _some(("ege", "wae-mmd-imq"), 0, 3)
                + _some(("wae-mmd-rbf",), 1, 3)
                + _some(("vae",), 1, 2),
            ),
            Frontier(32, 128, 6, _some(("ege", "wae-mmd-imq", "wae-mmd-energy"), 1, 3) + _some(("ssge-paper",), 1, 2)),
            Frontier(8, 32, 2, _some(("ege", "wae-mmd-imq"), 1, 3) + _some(("wae-mmd-energy",), 2, 3)),
            Frontier(8, 512, 6, _some(("ege", "wae-mmd-imq"), 1, 3) + _some(("wae-mmd-energy",), 2, 3)),
        ),
        images=20_000,
        test_images=4000,
    ),
    "full": Config(
        seeds=5,
        methods=tuple(_WEIGHTS),
        frontiers=(
            Frontier(8, 128, 6, tuple(_WEIGHTS.items())),
            Frontier(2, 128, 6, _some(("none",), 0, 1) + _some(("ege", "wae-mmd-imq", "vae"), 1, 3)),
            Frontier(32, 128, 6, _some(("ege", "ssge-paper", "wae-mmd-imq"), 1, 3)),
            Frontier(8, 32, 2, _some(("ege", "wae-mmd-imq"), 1, 3)),
            Frontier(8, 512, 6, _some(("ege", "wae-mmd-imq", "wae-mmd-energy"), 1, 3)),
            Frontier(8, 128, 30, _some(("ege",), 1, 2) + _some(("wae-mmd-imq",), 1, 3)),
        ),
        hidden=512,
    ),
}
STUDIES: dict[str, Config] = {}
