"""Sphinx hook that serves Bokeh's scripts with the book, on the pages that have a figure to operate.

Outside the book these figures fetch them from Bokeh's own server; a book that is read offline has none to ask.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import bokeh
from sphinx.application import Sphinx

SCRIPTS = ("bokeh.min.js", "bokeh-widgets.min.js")
MARK = 'class="migelib-live"'


def copy_scripts(app: Sphinx) -> None:
    """Copy the scripts of the installed Bokeh to the book's static files."""
    if app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "bokeh"
    target.mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        shutil.copy(Path(bokeh.__file__).parent / "server" / "static" / "js" / name, target)


def add_scripts(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Load the scripts on a page with a figure to operate, before the script of the figure looks for them."""
    if MARK in context.get("body", ""):
        for name in SCRIPTS:
            app.add_js_file(f"bokeh/{name}", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hooks."""
    app.connect("builder-inited", copy_scripts)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True}
