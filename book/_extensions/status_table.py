"""Sphinx directive `status-table`: the state of every experiment, read from the records when the book is built."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from migelib import experiments, records


class StatusTable(SphinxDirective):
    """Table of all experiments with the origin of their quick records and of those at a larger scale."""

    def run(self) -> list[nodes.Node]:
        """Build the table's nodes from Markdown, so that its links resolve as elsewhere in the book."""
        lines = ["| experiment | quick | full | on a CPU, until full is |", "|---|---|---|---|"]
        for name in experiments.NAMES:
            others = [profile for profile in experiments.get(name).PROFILES if profile not in ("quick", "full")]
            cells = [self._cell(name, profile) for profile in ("quick", "full")]
            cells.append("; ".join(f"{profile}: {self._cell(name, profile)}" for profile in others) or "–")
            lines.append(f"| {{py:mod}}`{name} <migelib.experiments.{name}>` | {' | '.join(cells)} |")
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.get_source_info()[0]), 0, container)
        return container.children

    @staticmethod
    def _cell(name: str, profile: str) -> str:
        if profile not in experiments.get(name).PROFILES:
            return "–"
        if (name, profile) not in records.available():
            return "not recorded yet"
        made = records.load(name, profile).made_with
        return f"{made['device']}, {len(made['seeds'])} seeds, {made['wall_s']:.0f} s, {made['date']}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("status-table", StatusTable)
    return {"parallel_read_safe": True}
