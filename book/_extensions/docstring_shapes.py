"""Sphinx hook for docstrings with shapes: in ``[*batch, n, d]`` the star is no markup."""

from __future__ import annotations

from sphinx.application import Sphinx


def escape_stars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape the star of `[*batch` in a docstring, in place."""
    lines[:] = [line.replace("[*batch", r"[\*batch") for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook, to run before napoleon's."""
    app.connect("autodoc-process-docstring", escape_stars, priority=100)
    return {"parallel_read_safe": True}
