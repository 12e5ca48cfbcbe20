r"""The information bottleneck on permutation-invariant MNIST: cross-entropy plus a weight times a measure of the code.

The second application of the MIGE paper [Wen et al., ICLR 2020], with the network of the variational bottleneck
[Alemi et al., ICLR 2017]. Explained in :doc:`/book/bottleneck`.
"""

from .config import METRICS, PROFILES, STUDIES, Config, units
from .objectives import METHODS, Regulariser
from .training import data_source, prepare, run_seeds

__all__ = [
    "METHODS",
    "METRICS",
    "PROFILES",
    "STUDIES",
    "Config",
    "Regulariser",
    "data_source",
    "prepare",
    "run_seeds",
    "units",
]
