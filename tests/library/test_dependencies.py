"""The library needs torch, NumPy and jaxtyping, and nothing else."""

import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from alone import FORBIDDEN

import migelib

ROOT = Path(__file__).parents[2]
LIBRARY = sorted(
    module.name
    for module in pkgutil.walk_packages(migelib.__path__, "migelib.")
    if not module.name.startswith(("migelib.experiments", "migelib.__main__"))
)


def alone(code: str) -> subprocess.CompletedProcess:
    """Run code in a new interpreter without the forbidden packages."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import alone; alone.forbid()\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)


def test_all_modules_import_without_what_the_book_needs():
    run = alone("\n".join(f"import {name}" for name in LIBRARY))
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("package", ["scipy", "pandas.core"])
def test_a_forbidden_import_fails(package):
    assert "ModuleNotFoundError" in alone(f"import {package}").stderr


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not in a checkout")
def test_dependencies_are_three_and_the_extras_are_forbidden_to_the_library():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert names == {"torch", "numpy", "jaxtyping"}
    extra = {re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"]["experiments"]}
    assert {name.replace("scikit-learn", "sklearn") for name in extra} <= FORBIDDEN
