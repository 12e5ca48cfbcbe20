"""Figures that a printed page can carry: one style, and curves with bands."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

TRUTH = "black"

# One colour a method in all chapters, those of the colour-blind palette (Wong 2011) first, then of Tol's muted one. The
# keys begin the methods' names in the records: "ssge" is also "ssge-paper". Methods share a colour only where no figure
# can show both.
COLOURS = {
    "exact": TRUTH,
    "ssge": "#0173b2",
    "mige": "#0173b2",  # the paper's, by SSGE
    "mige-default": "#de8f05",
    "mige-gaussian": "#029e73",
    "mige-classes": "#029e73",
    "mige-moments": "#029e73",
    "ege": "#56b4e9",  # by a finer filter than the paper's
    "tikhonov": "#56b4e9",
    "default": "#de8f05",
    "adaptive": "#de8f05",
    "gaussian": "#029e73",
    "streaming": "#d55e00",
    "nu": "#332288",
    "landweber": "#44aa99",
    "stein": "#999933",
    "kde": "#ca9161",
    "denoising": "#882255",
    "ar-dae": "#882255",
    "flow": "#661100",
    "dv": "#cc78bc",
    "mine": "#cc78bc",
    "mine-f": "#ca9161",
    "nwj": "#ca9161",
    "meg": "#cc78bc",  # a critic's bound of the entropy
    "infonce": "#aa4499",
    "jsd": "#999933",
    "vae": "#999933",
    "vib": "#999933",
    "wae-gan": "#ca9161",
    "wae-mmd-imq": "#cc78bc",
    "wae-mmd-energy": "#aa4499",
    "wae-mmd-rbf": "#882255",
    "pacgan": "#332288",
    "instance-noise": "#44aa99",
    "none": "#949494",
    "vanilla": "#949494",
}


def colour(method: str) -> str:
    """Return a method's colour: that of the longest key of `COLOURS` that its name is, or goes on from with a hyphen.

    Raises
    ------
    ValueError
        If no key begins the name.

    Examples
    --------
    >>> colour("ssge-paper") == colour("ssge")
    True
    """
    keys = [key for key in COLOURS if method == key or method.startswith(f"{key}-")]
    if not keys:
        raise ValueError(f"method: {method!r} has no colour; add one to migelib.experiments.plotting.COLOURS")
    return COLOURS[max(keys, key=len)]


def use_style() -> None:
    """Set the book's figure style: 9-point text without serifs, 200 dots an inch, one hue for what is no method."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette=["#3b0f70", "#8c2981", "#de4968", "#fe9f6d"],
        rc={
            "figure.dpi": 200,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.labelsize": 9,
            "axes.titlesize": 9,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
    )
    mpl.rcParams["savefig.dpi"] = 200


def band(axis: Axes, x: np.ndarray, curves: np.ndarray, **line: object) -> None:
    """Draw the mean over the first axis of `curves` [seeds, points] against `x` [points], with a band of ± one std."""
    mean, std = curves.mean(0), curves.std(0, ddof=1)
    (drawn,) = axis.plot(x, mean, **line)
    axis.fill_between(x, mean - std, mean + std, color=drawn.get_color(), alpha=0.25, linewidth=0)
