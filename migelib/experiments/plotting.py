"""Figures that a printed page can carry: one style, and curves with bands."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

TRUTH = "black"


def use_style() -> None:
    """Set the book's figure style: serif-free 9-point text, the colour-blind palette, 200 dots an inch."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette="colorblind",
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
