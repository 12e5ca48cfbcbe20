"""The library alone: what only the book and its experiments need is as if it were not installed."""

import sys

# The packages of the extras `experiments` and `book`, by the names that they are imported under.
FORBIDDEN = {
    *("IPython", "jupyter_book", "matplotlib", "mlxtend", "pandas", "pooch", "scipy", "seaborn", "sklearn", "sphinx"),
    *("bokeh", "tqdm", "zuko"),
}


def forbid() -> None:
    """Make every import of a forbidden package raise ModuleNotFoundError."""
    for name in FORBIDDEN:
        sys.modules[name] = None
