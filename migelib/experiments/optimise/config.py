"""Settings of the optimised informations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

METRICS = {"attained": "1", "final": "nat", "failures": "1", "updates": "1", "ms": "ms"}
# One run of a few may tip over on another machine, and a time is that of its machine.
FLOORS = {"attained": 0.5, "failures": 0.5, "ms": 1e6}

START = {"min": 10.0, "max": 0.5}  # nats
TARGET = {"min": 1e-3, "max": 50.0}
LARGEST = 0.9995  # of the correlations
CALIBRATION = 16_384  # samples that the root mean square is measured on
WINDOW = 5  # a minimum is judged over the last of so many parts of the updates
GRADIENT_NORM = 10.0  # to which a network's gradient is clipped
SPREAD = (0.01, 1.0)  # noise levels of the spread information


@dataclass(frozen=True)
class Config:
    """Settings; the defaults are those of the paper.

    Attributes
    ----------
    seeds : int
        Number of repetitions.
    methods : tuple of str
        Names of `METHODS`.
    goals : tuple of str
        "min", from 10 nats, and "max", from half a nat to 50.
    families : tuple of str
        Names of `FAMILIES`.
    dims : tuple of int
        Coordinates of x and of z.
    parameters : tuple of str
        "shared", one correlation, and "each", one a coordinate.
    updates : tuple of two int
        Most updates of the parameters in a minimisation and in a maximisation, by Adam.
    batch, learning_rate :
        Samples of an update, and Adam's step size.
    network_updates, network_rate, hidden :
        Updates of a method's networks for each update of the parameters, on a new batch each, Adam's step size, and the
        width of the two hidden layers.
    dense : bool
        Whether the critics of NWJ, MINE, InfoNCE and SMILE see x and z together in all layers, as in the paper, at the
        price of batch^2 evaluations. Otherwise they are separable.
    shared_residuals : bool
        Whether joint and product samples of the spread information share v and the noise, as in the paper: they then
        come closer as the information falls, and at zero they are equal, so that the estimate's noise vanishes there.
        A simulator can do so, an encoder of data cannot. The other methods never see product samples.
    largest : tuple of (str, int)
        Methods and their largest dimension, where a higher one takes too long or more samples than a batch has.
    """

    seeds: int
    methods: tuple[str, ...] = (
        *("streaming", "adaptive", "ssge", "gaussian", "smi", "knife"),
        *("club", "nwj", "mine", "infonce", "smile", "flo"),
    )
    goals: tuple[str, ...] = ("min", "max")
    families: tuple[str, ...] = ("gaussian", "cubic", "asinh", "power", "spiral")
    dims: tuple[int, ...] = (20, 100, 200)
    parameters: tuple[str, ...] = ("shared", "each")
    updates: tuple[int, int] = (5000, 5000)
    batch: int = 256
    learning_rate: float = 5e-3
    network_updates: int = 5
    network_rate: float = 1e-3
    hidden: int = 256
    dense: bool = True
    shared_residuals: bool = True
    largest: tuple[tuple[str, int], ...] = (("gaussian", 100),)

    @property
    def budget(self) -> int:
        """Most updates of a cell's goal."""
        return self.updates[self.goals[0] == "max"]

    @property
    def variables(self) -> tuple[int, int]:
        """Numbers of coordinates of x and z."""
        return self.dims[0], self.dims[0]


# A CPU has time for separable critics, one family at a time, and as many updates as tell a method that converges from
# one that does not: at d = 20 a minimum takes Adam 400 to 700 updates and a maximum 500 to 1,300.
CPU = Config(
    seeds=5,
    families=("gaussian",),
    dims=(20, 100),
    parameters=("shared",),
    updates=(1000, 2000),
    dense=False,
    largest=(("adaptive", 20), ("knife", 20)),
)
CHEAP = ("streaming", "ssge", "gaussian", "smi")
PROFILES = {
    "quick": replace(CPU, methods=("streaming", "gaussian", "smi"), dims=(20,), updates=(120, 40), hidden=64),
    "cpu": CPU,
    "full": Config(seeds=10),
}
STUDIES: dict[str, Config] = {
    "families": replace(CPU, methods=CHEAP, families=("cubic", "asinh", "power", "spiral"), dims=(20,)),
    "each": replace(CPU, methods=CHEAP, parameters=("each",)),
    "independent": replace(CPU, methods=("smi", "ratio"), shared_residuals=False),
}


def units(config: Config) -> list[Config]:
    """Every method in every cell, but for dimensions beyond its largest."""
    fields = ("methods", "goals", "families", "dims", "parameters")
    cells = itertools.product(*(getattr(config, field) for field in fields))
    largest = dict(config.largest)
    return [
        replace(config, **{field: (value,) for field, value in zip(fields, cell, strict=True)})
        for cell in cells
        if cell[3] <= largest.get(cell[0], cell[3])
    ]
