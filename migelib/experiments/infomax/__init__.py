"""Deep InfoMax: an encoder trained to maximise I(x; E(x)), by MIGE and by variational bounds, judged by a classifier.

The representation-learning experiment of the MIGE paper [Wen et al., ICLR 2020] on the encoder of Deep InfoMax
[Hjelm et al., ICLR 2019].
Explained in :doc:`/book/infomax`.
"""

from .config import FLOORS, METRICS, PROFILES, STUDIES, Config
from .evaluation import data_source, prepare, run_seeds
from .methods import CRITIC_KINDS, METHODS
from .training import LAYERS

__all__ = [
    "CRITIC_KINDS",
    "FLOORS",
    "LAYERS",
    "METHODS",
    "METRICS",
    "PROFILES",
    "STUDIES",
    "Config",
    "data_source",
    "prepare",
    "run_seeds",
]
