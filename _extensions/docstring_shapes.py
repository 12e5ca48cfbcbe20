"""Sphinx hook for docstrings with shapes: in ``[*batch, n, d]`` and ``[seeds, *shape]`` the star is no markup."""

from __future__ import annotations

import re

from sphinx.application import Sphinx


def escape_stars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape the star of `*batch` and `*shape` inside brackets in a docstring, in place."""
    lines[:] = [re.sub(r"(\[|\[seeds, )\*(batch|shape)", r"\1\\*\2", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook, to run before napoleon's."""
    app.connect("autodoc-process-docstring", escape_stars, priority=100)
    return {"parallel_read_safe": True}
