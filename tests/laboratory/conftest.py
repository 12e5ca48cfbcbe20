"""An experiment made up for the tests, in folders of its own."""

import made_up
import pytest

from migelib.experiments import records, runner


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """The only experiment there is; own records go to tmp_path/own, published ones to tmp_path/published."""
    module = made_up.make()
    monkeypatch.setattr(runner, "NAMES", ("made-up",))
    monkeypatch.setattr(runner, "MISSING_ORDER", ("made-up",))
    monkeypatch.setattr(runner, "get", lambda name: module)
    monkeypatch.setenv("MIGELIB_RECORDS", str(tmp_path / "own"))
    monkeypatch.setattr(records, "published", lambda: tmp_path / "published")
    return module
