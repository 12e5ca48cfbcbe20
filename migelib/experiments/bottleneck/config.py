"""Settings of the bottleneck: its profiles, and the studies on all images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .objectives import METHODS, WEIGHTS

METRICS = {  # and their units
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
    learning_rate, rate_factor, rate_every, adam_beta :
        Adam's rate, its factor every so many epochs, and Adam's first decay rate. The published values are those of the
        full profile.
    decay : float
        Weight of the past in the moving average of the weights, which is what is tested.
    samples : int
        Codes that a prediction is averaged over.
    sweep_hidden, sweep_train, sweep_epochs : int
        The smaller scale at which weights are tuned and swept.
    tuning_seeds, validation : int
        Runs for every weight of a grid, and the training images held out to judge them.
    plane, plane_weights : tuple
        Methods and weights of the information plane.
    attacked, informed : int
        Test images for the attack, and for the estimate of I(x; z).
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
    rate_factor: float = 0.97
    rate_every: int = 2
    adam_beta: float = 0.5
    decay: float = 0.999
    samples: int = 12
    sweep_hidden: int = 256
    sweep_train: int = 4000
    sweep_epochs: int = 8
    tuning_seeds: int = 2
    validation: int = 10000
    plane: tuple[str, ...] = ("vib", "mige-classes")
    plane_weights: tuple[float, ...] = WEIGHTS
    attacked: int = 2000
    informed: int = 4000

    @property
    def small(self) -> Config:
        """The smaller scale at which weights are tuned and swept."""
        return replace(self, hidden=self.sweep_hidden, train=self.sweep_train, epochs=self.sweep_epochs)


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
        decay=0.98,
        sweep_hidden=192,
        sweep_epochs=5,
        tuning_seeds=0,
        plane_weights=(1e-3, 1e-2, 1e-1),
        attacked=500,
        informed=1000,
    ),
    "cpu": Config(
        seeds=5,
        methods=tuple(METHODS),
        hidden=192,
        code=128,
        train=4000,
        epochs=6,
        learning_rate=1e-3,
        decay=0.98,
        sweep_hidden=192,
        sweep_epochs=5,
        tuning_seeds=1,
        validation=5000,
        plane_weights=(1e-3, 1e-2, 1e-1),
        attacked=500,
        informed=1000,
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

# The published architecture on all images, by fewer and larger steps than published.
_ALL_IMAGES = replace(
    PROFILES["full"],
    learning_rate=1e-3,
    rate_factor=0.6,
    sweep_train=50_000,
    tuning_seeds=1,
    plane=(),
)
_PENALTIES = ("baseline", "stochastic", "vib", "mige-gaussian", "mige-classes")
_NOISY_LAYERS = replace(_ALL_IMAGES, image_noise=0.6, hidden_noise=0.3, bfloat16=True)
STUDIES = {
    "large": replace(
        _ALL_IMAGES,
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
        sweep_epochs=2,
    ),
    "long": replace(
        _ALL_IMAGES, methods=("stochastic", "vib", "mige-classes"), epochs=30, rate_every=5, sweep_epochs=30
    ),
    "noise": replace(
        _ALL_IMAGES,
        methods=_PENALTIES,
        weights=(("vib", 1e-4), ("mige-gaussian", 1e-4), ("mige-classes", 1e-4)),
        epochs=40,
        image_noise=0.8,
        bfloat16=True,
        rate_every=6,
        sweep_train=60_000,
        sweep_epochs=40,
        plane=("vib", "mige-classes"),
        plane_weights=(1e-3,),
    ),
    "layers": replace(
        _NOISY_LAYERS,
        methods=_PENALTIES,
        weights=(("vib", 1e-3), ("mige-gaussian", 1e-3), ("mige-classes", 1e-2)),
        epochs=24,
        rate_every=4,
        sweep_train=60_000,
        sweep_epochs=24,
        plane=("vib", "mige-gaussian", "mige-classes"),
        plane_weights=(1e-3, 1e-2),
    ),
    "tuned": replace(_NOISY_LAYERS, epochs=12, sweep_epochs=12),
}


def units(config: Config) -> list[Config]:
    """The parts of a run: one for each method, and one for each method of the information plane."""
    return [
        *(replace(config, methods=(method,), plane=()) for method in config.methods),
        *(replace(config, methods=(), plane=(method,)) for method in config.plane),
    ]
