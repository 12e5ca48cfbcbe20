"""Pages with a figure to operate load the book's own copy of Bokeh, of the version that the figures were made with."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import bokeh

from migelib.experiments.interactive import PAGE

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("live_figures", ROOT / "_extensions" / "live_figures.py")
live_figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(live_figures)


def scripts_of(body):
    added = []
    app = SimpleNamespace(add_js_file=lambda name, loading_method: added.append(name))
    live_figures.add_scripts(app, "book/page", "page.html", {"body": body}, None)
    return added


def test_only_a_page_with_a_figure_loads_the_scripts():
    assert scripts_of(f"<p>x</p>{PAGE}") == ["bokeh/bokeh.min.js", "bokeh/bokeh-widgets.min.js"]
    assert scripts_of("<p>x</p>") == []


def test_the_book_gets_the_scripts_of_the_installed_bokeh(tmp_path):
    live_figures.copy_scripts(SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path))
    copied = (tmp_path / "_static" / "bokeh" / "bokeh.min.js").read_text()
    assert f'"{bokeh.__version__}"' in copied
    assert (tmp_path / "_static" / "bokeh" / "bokeh-widgets.min.js").exists()


def test_committed_figures_are_of_the_pinned_version():
    pinned = re.search(r"^bokeh==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)
    for path in (ROOT / "book").glob("*.ipynb"):
        assert set(re.findall(r"release/bokeh-([\d.]+)\.min\.js", path.read_text())) <= {pinned}, path.name
