"""Sphinx directive `status-table`: the state of every experiment, read from the records when the book is built."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from migelib.experiments import records, runner


class StatusTable(SphinxDirective):
    """Table of all experiments, a line for each profile and study, with the origin of its record."""

    def run(self) -> list[nodes.Node]:
        """Build the table's nodes from Markdown, so that its links resolve as elsewhere in the book."""
        lines = ["| experiment | scale | device | seeds | seconds | date |", "|---|---|---|---|---|---|"]
        for name in runner.NAMES:
            link = f"{{py:mod}}`{name} <migelib.experiments.{name.replace('-', '_')}>`"
            for scale in runner.scales(runner.get(name)):
                lines.append(f"| {link} | {scale} | {' | '.join(self._origin(name, scale))} |")
                link = ""
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.get_source_info()[0]), 0, container)
        return container.children

    @staticmethod
    def _origin(name: str, scale: str) -> tuple[str, str, str, str]:
        if (name, scale) not in records.available(records.published()):
            return "not recorded yet", "", "", ""
        made = records.load(name, scale, records.published()).made_with
        return made["device"], str(len(made["seeds"])), f"{made['wall_s']:.0f}", made["date"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("status-table", StatusTable)
    return {"parallel_read_safe": True}
