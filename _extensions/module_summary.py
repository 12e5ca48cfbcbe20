"""Sphinx directive `module-summary`: a table of what a module offers, each with the first line of its docstring."""

from __future__ import annotations

import importlib
import inspect

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.ext.autosummary import Autosummary


def public_names(module_name: str) -> list[str]:
    """Names that autodoc documents of a module, in the source's order: `__all__`, or the public ones made there."""
    module = importlib.import_module(module_name)
    made_here = [
        name
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module_name
    ]
    names = getattr(module, "__all__", [name for name in made_here if not name.startswith("_")])
    return [name for name in names if callable(getattr(module, name)) and getattr(module, name).__doc__]


class ModuleSummary(Autosummary):
    """The `autosummary` of the public names of each module that the directive's content names."""

    def run(self) -> list[nodes.Node]:
        """Name the members of the modules in the content's place."""
        names = [f"~{module}.{name}" for module in self.content for name in public_names(module)]
        self.content = StringList(names, source=self.get_source_info()[0])
        self.options["nosignatures"] = None
        return super().run()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("module-summary", ModuleSummary)
    return {"parallel_read_safe": True}
