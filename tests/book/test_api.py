"""The API pages hold every public name: a new one cannot be left out."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

import migelib
import migelib.scores
from migelib.experiments import runner

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "book" / "api").glob("*.md"))
DIRECTIVES = re.compile(r"^\.\. (auto(?:module|class|function|exception)):: (\S+)$|^\.\. currentmodule:: (\S+)$", re.M)


def documented(text: str) -> set[str]:
    """Full names of the objects and modules that a page's autodoc directives name."""
    names, module = set(), ""
    for kind, name, current in DIRECTIVES.findall(text):
        module = current or module
        if kind:
            names.add(name if name.startswith("migelib") else f"{module}.{name}")
    return names


DOCUMENTED = set().union(*(documented(page.read_text()) for page in PAGES))


def test_directives_are_read_with_their_module():
    text = ".. currentmodule:: migelib\n\n.. autoclass:: SSGE\n   :members:\n\n.. autofunction:: migelib.scores.f\n"
    assert documented(text) == {"migelib.SSGE", "migelib.scores.f"}


@pytest.mark.parametrize("name", sorted(migelib.__all__))
def test_public_names_of_the_library_are_documented(name):
    assert f"migelib.{name}" in DOCUMENTED, f"add it to a page in book/api: {', '.join(page.name for page in PAGES)}"


@pytest.mark.parametrize("name", sorted(set(migelib.scores.__all__) - {"ESTIMATORS"}))
def test_public_names_of_scores_are_documented(name):
    assert {f"migelib.{name}", f"migelib.scores.{name}"} & DOCUMENTED


@pytest.mark.parametrize("name", runner.NAMES)
def test_experiments_are_documented(name):
    assert f"migelib.experiments.{name.replace('-', '_')}" in DOCUMENTED


def test_documented_names_exist():
    for full in DOCUMENTED:
        parts = full.split(".")
        module = importlib.import_module(".".join(parts[:-1]))
        assert hasattr(module, parts[-1]) or importlib.import_module(full), full


def test_api_pages_are_in_the_table_of_contents_and_in_the_table_of_families():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter for part in contents["parts"] for chapter in part["chapters"]]
    api = next(chapter for chapter in chapters if chapter["file"] == "book/api")
    stems = [page.stem for page in PAGES]
    assert sorted(section["file"] for section in api["sections"]) == [f"book/api/{stem}" for stem in stems]
    assert sorted(re.findall(r"\{doc\}`api/(\S+)`", (ROOT / "book" / "api.md").read_text())) == stems
