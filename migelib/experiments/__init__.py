"""The laboratory: the experiments of the book, one question each, and what runs and records them.

An experiment is a module, or a folder where it is large, of this package, with

``Config``
    A frozen, hashable dataclass of settings with a field `seeds`, the number of repetitions, and a field `methods`, a
    tuple of names, where methods are compared.
``PROFILES``
    The same question at another scale: "quick", "full" and, where that needs a GPU, "cpu".
``STUDIES``
    Ablations and longer runs, each a short list of differences from a profile.
``METRICS``
    Metric -> unit. ``FLOORS``, optional, is metric -> least tolerance, for metrics that move in steps.
``prepare(config, device)``
    Data and tuned settings, once a part: what `run_seeds` gets as `shared`. Where that has an attribute `tuned`, a dict
    of arrays, an interrupted run keeps it, and goes on by ``prepare(config, device, tuned=tuned)``.
``run_seeds(config, shared, seeds, device)``
    For each seed, in order, the measured quantities, <method>/<setting>/<metric> -> number, and the curves, name ->
    array. They do not depend on which seeds and methods are run together.
``units(config)``
    Optional: configs of the parts of a run; by default one for each of `methods`. A unit, a part and some seeds, takes
    at most ten minutes on two cores, or a minute on a large GPU.
``summarise(config, quantities)``
    Optional: quantities of one seed that need all parts, such as means over tasks.
``data_source(config)``
    Optional: where the data came from, in a few words.

`run` runs one in memory; `record` writes its record too.
"""

from .runner import NAMES, get, record, run

__all__ = ["NAMES", "get", "record", "run"]
