"""Examples in docstrings run, and every public name of the package has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import migelib
import migelib.scores
import migelib.transforms

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(migelib.__path__, "migelib.")
    if not module.name.startswith(("migelib.experiments", "migelib.__main__"))
)
# What an example may use without an import.
NAMES = (
    {"torch": torch}
    | {name: getattr(migelib, name) for name in migelib.__all__}
    | {"Whitening": migelib.transforms.Whitening}
)


def examples(module):
    """Docstrings of a module that have examples, by name."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(module, extraglobs=NAMES) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, capsys):
    runner = doctest.DocTestRunner()
    for test in examples(importlib.import_module(name)):
        torch.manual_seed(0)
        runner.run(test)
    assert runner.failures == 0, capsys.readouterr().out


def test_a_wrong_example_is_noticed(capsys):
    runner = doctest.DocTestRunner()
    runner.run(doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0))
    assert runner.failures == 1


@pytest.mark.parametrize("name", sorted(migelib.__all__))
def test_every_public_name_has_an_example(name):
    public = getattr(migelib, name)
    if inspect.isclass(public) and issubclass(public, Warning):
        return
    assert ">>>" in inspect.getdoc(public), name


@pytest.mark.parametrize("name", MODULES)
def test_examples_fit_on_a_page_of_the_book(name):
    """Its API pages are 84 characters wide."""
    lines = [line for test in examples(importlib.import_module(name)) for line in test.docstring.splitlines()]
    shown = [line.strip() for line in lines if line.strip().startswith((">>>", "..."))]
    assert [line for line in shown if len(line) > 84] == []
