"""What is published agrees with itself: one address, one version, workflows and a citation by their schemas."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import migelib

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("address", ROOT / "tools" / "address.py")
address = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(address)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
URLS = PROJECT["urls"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
NAME = URLS["Repository"].rsplit("/", 1)[1]
FOUND = re.compile(rf"(?:github\.com/[\w.-]+/|[\w-]+\.github\.io/|research\.google\.com/github/[\w.-]+/){NAME}\b")


def copies(text: str) -> set[str]:
    """What a text names as an address of the project: on GitHub, on its pages, on Colab."""
    return set(FOUND.findall(text))


def test_the_address_is_the_same_everywhere():
    short = URLS["Repository"].removeprefix("https://github.com/")
    right = {f"github.com/{short}", URLS["Documentation"].removeprefix("https://")}
    right.add(f"research.google.com/github/{short}")
    paths = [*ROOT.glob("*.*"), *ROOT.glob("book/**/*.*"), *ROOT.glob(".github/workflows/*"), *ROOT.glob("examples/*")]
    texts = {
        path: path.read_text() for path in paths if path.suffix in (".md", ".ipynb", ".cff", ".toml", ".yml", ".py")
    }
    assert {path: found - right for path, text in texts.items() if (found := copies(text)) - right} == {}
    assert address.pages(URLS["Repository"]) == URLS["Documentation"]


def test_a_move_changes_every_copy():
    new = {
        "Repository": "https://github.com/Elsewhere/another-name",
        "Documentation": address.pages("https://github.com/Elsewhere/another-name"),
    }
    text = (ROOT / "README.md").read_text() + (ROOT / "book" / "toy-gradients.ipynb").read_text()
    assert copies(text)
    moved = address.moved(text, URLS, new)
    assert not copies(moved) & copies(text)
    assert "git+https://github.com/Elsewhere/another-name@main" in moved
    assert "https://elsewhere.github.io/another-name/book/toy-gradients.html" in moved
    assert "https://colab.research.google.com/github/Elsewhere/another-name/blob/main/" in moved


@pytest.mark.parametrize("url", ["", "https://example.org/a/b", "https://github.com/a"])
def test_an_address_that_is_no_repository_is_refused(url):
    with pytest.raises(ValueError, match=r"expected https://github\.com/OWNER/NAME"):
        address.pages(url)


def test_the_version_is_the_same_everywhere():
    newest = re.search(r"^## (?:\[?([\d.]+)\]?.*|Unreleased)$", CHANGELOG, re.M)[1]
    assert CITATION["version"] == migelib.__version__
    assert newest in (None, migelib.__version__)
    assert PROJECT["dynamic"] == ["version"]


def test_the_citation_is_complete():
    assert {"title", "authors", "version", "date-released", "license", "abstract", "keywords"} <= set(CITATION)
    assert CITATION["repository-code"] == URLS["Repository"]
    assert CITATION["url"] == URLS["Documentation"]
    assert CITATION["license"] == PROJECT["license"]


@pytest.mark.parametrize(
    ("path", "schema"),
    [(path, "github-workflows") for path in sorted(ROOT.glob(".github/workflows/*.yml"))]
    + [(ROOT / "CITATION.cff", "citation-file-format")],
    ids=lambda value: getattr(value, "name", value),
)
def test_file_follows_its_schema(path, schema):
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_hooks_have_the_versions_of_the_constraints():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["repo"].split("/")[-1]: hook["rev"].removeprefix("v") for hook in hooks} == {
        "ruff-pre-commit": pinned["ruff"],
        "check-jsonschema": pinned["check-jsonschema"],
    }
