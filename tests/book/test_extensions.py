"""The book's own Sphinx extensions, on pages of one line."""

import importlib.util
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from sphinx.application import Sphinx

from migelib.experiments import records

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build a page from its Markdown; return its text and the warnings."""
    monkeypatch.syspath_prepend(ROOT / "_extensions")

    def build(text: str) -> tuple[str, str]:
        (tmp_path / "index.md").write_text(f"# Title\n\n{text}\n")
        settings = {
            "extensions": ["myst_parser", "record_values", "status_table"],
            "html_theme": "basic",
            "suppress_warnings": ["ref.*", "app.*", "myst.*"],
        }
        warnings = tmp_path / "warnings"
        with warnings.open("w") as stream:
            app = Sphinx(tmp_path, None, tmp_path / "out", tmp_path / "trees", "html", settings, None, stream)
            app.build()
        page = BeautifulSoup((tmp_path / "out" / "index.html").read_text(), "html.parser")
        return page.find(role="main").get_text(" ", strip=True), warnings.read_text()

    return build


@pytest.mark.filterwarnings("ignore")  # of Sphinx and what it imports
def test_a_recorded_value_is_the_mean_of_the_published_record(build):
    value = records.load("toy", "full", records.published())["mige/d8/relative_error"].mean
    text, warnings = build("Error {record}`toy/full mige/d8/relative_error .3f`.")
    assert f"Error {value:.3f}." in " ".join(text.split()).replace(" .", ".")
    assert warnings == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["toy/full mige/d9/relative_error", "toy/huge mige/d8/relative_error", "toi/full x"])
def test_a_value_that_no_record_has_is_an_error_of_the_build(build, name):
    _, warnings = build(f"Error {{record}}`{name} .3f`.")
    assert f"no recorded value '{name} .3f'" in warnings


@pytest.mark.filterwarnings("ignore")
def test_the_table_of_the_state_names_what_is_not_recorded(build):
    text, _ = build("```{status-table}\n```")
    assert "not recorded yet" in text or all(name in text for name, _ in records.available(records.published()))
    assert "sampler-plane" in text


def test_a_table_of_results_has_a_row_for_each_method_and_setting():
    spec = importlib.util.spec_from_file_location("record_values", ROOT / "_extensions" / "record_values.py")
    record_values = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record_values)
    quantity = records.Quantity(1.5, 0.25, 3, "nat")
    quantities = {"a/d8/kl": quantity, "b/d8/kl": quantity, "b/d8/time_s": records.Quantity(2.0, 0.5, 3, "1")}
    html = record_values.table(records.Record("x", "full", {}, {}, quantities))
    rows = [[cell.get_text() for cell in row] for row in BeautifulSoup(html, "html.parser").find_all("tr")]
    assert rows == [["", "kl (nat)", "time s"], ["a/d8", "1.5 ± 0.25", ""], ["b/d8", "1.5 ± 0.25", "2 ± 0.5"]]
