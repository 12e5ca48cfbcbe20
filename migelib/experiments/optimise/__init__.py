r"""A known information minimised and maximised by the gradients of every method: training is the judge.

The task is that of Yu, Liu, Hernandez-Lobato & OuYang [2026, app. C.1.3]. With u, v ~ N(0, I_d) and orthogonal Q,

.. math:: z = Q_z (\rho \odot u + \sqrt{1 - \rho^2} \odot v), \qquad x = f(Q_x u) / \mathrm{rms},
    \qquad I(x; z) = -\frac12 \sum_j \ln (1 - \rho_j^2),

because f is invertible. (Their X is our z, and their Y our x.) The parameters are theta, with :math:`\rho = \tanh
\theta`, so the gradient flows through z alone, as in the paper; x has none. Every update draws a new batch. The known
information is never shown to a method: it is what is reported.

Where the profile `cpu` departs from the paper: fewer updates and seeds, d = 20 and 100 only, and separable critics for
NWJ, MINE, InfoNCE and SMILE; at d = 100 without `adaptive` and `knife`. `full` is the paper's own, for a GPU.
"""

from .config import FLOORS, METRICS, PROFILES, STUDIES, Config, units
from .methods import METHODS, GradientMethod
from .task import FAMILIES, Pair, correlation, information, initial
from .training import Outcome, optimised, prepare, run_seeds

__all__ = [
    "FAMILIES",
    "FLOORS",
    "METHODS",
    "METRICS",
    "PROFILES",
    "STUDIES",
    "Config",
    "GradientMethod",
    "Outcome",
    "Pair",
    "correlation",
    "information",
    "initial",
    "optimised",
    "prepare",
    "run_seeds",
    "units",
]
