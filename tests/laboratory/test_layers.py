"""Imports inside the package go down its layers only."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import migelib

PACKAGE = Path(migelib.__file__).parent
# From the bottom up; a module may import from layers below its own, and from its own folder.
LAYERS = [
    {"validation"},
    {"kernels", "transforms", "projections"},
    {"scores"},
    {"labels", "bounds", "critics", "tasks"},
    {"surrogates"},
    {"codes", "information"},
    {"experiments"},  # the laboratory: it imports the library, which never imports it
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imported_parts(source: str, path: Path) -> set[str]:
    """Top-level parts of the package that a module imports, by relative or absolute imports."""
    parts = set()
    folder = ["migelib", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        parts |= {name[1] for name in names if name[0] == "migelib" and len(name) > 1}
    return parts


def upward(source: str, path: Path) -> set[str]:
    """Parts that a module imports although they do not lie below it."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return {part for part in imported_parts(source, path) if part != own and LEVEL.get(part, -1) >= LEVEL[own]}


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    assert upward(path.read_text(), path) == set()


@pytest.mark.parametrize(
    "line", ["from ..surrogates import x", "from migelib.experiments.records import load", "from .. import bounds"]
)
def test_an_upward_import_is_noticed(line):
    assert upward(line, PACKAGE / "scores" / "ssge.py")


def test_a_name_is_that_of_one_class():
    """But for the words of the protocol of an experiment."""
    trees = [ast.parse(path.read_text()) for path in MODULES]
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1} <= {"Config", "Shared"}
