"""Sphinx directive `status-table`: the state of every experiment, read from the records when the book is built."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from migelib.experiments import records, runner


class StatusTable(SphinxDirective):
    """Table of all experiments with the origin of their quick records and of those at a larger scale."""

    def run(self) -> list[nodes.Node]:
        """Build the table's nodes from Markdown, so that its links resolve as elsewhere in the book."""
        lines = ["| experiment | quick | full | on a CPU, and studies |", "|---|---|---|---|"]
        for name in runner.NAMES:
            scales = runner.scales(runner.get(name))
            others = [scale for scale in scales if scale not in ("quick", "full")]
            cells = [self._cell(name, scale) if scale in scales else "–" for scale in ("quick", "full")]
            cells.append("; ".join(f"{scale}: {self._cell(name, scale)}" for scale in others) or "–")
            module = f"migelib.experiments.{name.replace('-', '_')}"
            lines.append(f"| {{py:mod}}`{name} <{module}>` | {' | '.join(cells)} |")
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.get_source_info()[0]), 0, container)
        return container.children

    @staticmethod
    def _cell(name: str, scale: str) -> str:
        if (name, scale) not in records.available(records.published()):
            return "not recorded yet"
        made = records.load(name, scale, records.published()).made_with
        return f"{made['device']}, {len(made['seeds'])} seeds, {made['wall_s']:.0f} s, {made['date']}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("status-table", StatusTable)
    return {"parallel_read_safe": True}
