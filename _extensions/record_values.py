"""Sphinx role `record`, one number of a record, and directive `results`, all numbers of all records.

Both read the published records when the book is built, so that no page holds a number that no run has measured:

    {record}`toy/full mige/d8/relative_error .3f`
"""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from migelib.experiments import records, runner

MOST = 1000  # a longer record is linked, not shown
FOLDER = "migelib/experiments/records"


class RecordedValue(SphinxRole):
    """The mean of a quantity: `experiment/scale`, the quantity and, optionally, a format and a factor, by spaces."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the number as text; a name that no record has is an error of the build."""
        where, name, *rest = self.text.split()
        form = rest[0] if rest else ".3g"
        try:
            quantity = records.load(*where.split("/"), records.published())[name]
        except (KeyError, ValueError, OSError) as error:
            message = self.inliner.reporter.error(f"no recorded value {self.text!r}: {error}", line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        return [nodes.Text(format(quantity.mean, form))], []


def table(record: records.Record) -> str:
    """HTML table of a record: a row for each method and setting, a column for each metric, mean ± std over seeds."""
    rows: dict[str, dict[str, str]] = {}
    for name, quantity in record.quantities.items():
        row, metric = name.rsplit("/", 1)
        column = metric if quantity.unit == "1" else f"{metric} ({quantity.unit})"
        rows.setdefault(row, {})[column] = f"{quantity.mean:.4g} ± {quantity.std:.2g}"
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in ("", *columns))
    lines = [[escape(row), *(cells.get(column, "") for column in columns)] for row, cells in rows.items()]
    body = "".join(f"<tr><th>{first}</th><td>{'</td><td>'.join(cells)}</td></tr>" for first, *cells in lines)
    return f'<table class="table results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


class Results(SphinxDirective):
    """Every published record, folded."""

    def run(self) -> list[nodes.Node]:
        """Return a section's worth of raw HTML for each experiment."""
        found = []
        repository = self.config.html_theme_options["repository_url"]
        branch = self.config.html_theme_options["repository_branch"]
        for name, scale in sorted(records.available(records.published()), key=self._order):
            record = records.load(name, scale, records.published())
            made, count = record.made_with, len(record.quantities)
            address = f"{repository}/blob/{branch}/{FOLDER}/{quote(name)}/{quote(scale)}/values.csv"
            seeds, device = len(made["seeds"]), escape(made["device"])
            summary = f"{name}, {scale}: {count} quantities, {seeds} seeds, {device}, {made['date']}"
            shown = table(record) if count <= MOST else "<p>Too long for a page.</p>"
            link = f'<p><a href="{address}">The record, one column a seed</a></p>'
            html = f'<details class="results"><summary>{summary}</summary>{link}<div>{shown}</div></details>'
            found.append(nodes.raw("", html, format="html"))
        return found

    @staticmethod
    def _order(key: tuple[str, str]) -> tuple[int, str]:
        return runner.NAMES.index(key[0]), key[1]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the role and the directive."""
    app.add_role("record", RecordedValue())
    app.add_directive("results", Results)
    return {"parallel_read_safe": True}
