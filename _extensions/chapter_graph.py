"""Sphinx directive `chapter-graph`: which chapter builds on which, as a vector graphic in the page's own colours.

Each line of its content is `slug: short name` or `slug: short name < slug, slug`, the chapters that it builds on. A
chapter that the book does not have is left out.
"""

from __future__ import annotations

from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WIDTH, HEIGHT, ACROSS, DOWN = 140, 30, 8, 30  # of a box, and between boxes


def parsed(lines: list[str], known: set[str]) -> dict[str, tuple[str, list[str]]]:
    """Slug -> (short name, slugs that it builds on), of the chapters that are known, in order."""
    chapters = {}
    for line in lines:
        slug, _, rest = line.partition(":")
        name, _, needs = rest.partition("<")
        if slug.strip() in known:
            chapters[slug.strip()] = (
                name.strip(),
                [need.strip() for need in needs.split(",") if need.strip() in known],
            )
    return chapters


def depths(chapters: dict[str, tuple[str, list[str]]]) -> dict[str, int]:
    """Length of the longest way to each chapter."""
    found: dict[str, int] = {}
    for slug, (_, needs) in chapters.items():  # a chapter comes after those that it builds on
        found[slug] = 1 + max((found[need] for need in needs), default=-1)
    return found


def places(chapters: dict[str, tuple[str, list[str]]]) -> dict[str, tuple[float, float]]:
    """Middle of the upper edge of each box: one row a depth, rows centred."""
    depth = depths(chapters)
    rows = [[slug for slug in chapters if depth[slug] == row] for row in range(1 + max(depth.values()))]
    widest = max(map(len, rows))
    return {
        slug: ((widest - len(row) + 1 + 2 * column) / 2 * (WIDTH + ACROSS), 2 + index * (HEIGHT + DOWN))
        for index, row in enumerate(rows)
        for column, slug in enumerate(row)
    }


def drawing(chapters: dict[str, tuple[str, list[str]]]) -> str:
    """The graphic, with a link in every box."""
    at = places(chapters)
    lines, boxes = [], []
    for slug, (name, needs) in chapters.items():
        x, y = at[slug]
        for need in needs:
            x0, y0 = at[need][0], at[need][1] + HEIGHT
            middle = (y0 + y) / 2
            lines.append(f'<path d="M{x0:.0f} {y0:.0f}C{x0:.0f} {middle:.0f} {x:.0f} {middle:.0f} {x:.0f} {y:.0f}"/>')
        boxes.append(
            f'<a href="{slug}.html" style="text-decoration: none">'
            f'<rect x="{x - WIDTH / 2:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text x="{x:.0f}" y="{y + HEIGHT / 2 + 4:.0f}" text-anchor="middle">{escape(name)}</text></a>'
        )
    width = max(x for x, _ in at.values()) + WIDTH / 2 + 2
    height = max(y for _, y in at.values()) + HEIGHT + 2
    left = min(x for x, _ in at.values()) - WIDTH / 2 - 2
    return (
        '<div class="chapter-graph" style="overflow-x: auto; margin-bottom: 1rem" tabindex="0" role="region" '
        'aria-label="Which chapter builds on which">'
        f'<svg viewBox="{left:.0f} 0 {width - left:.0f} {height:.0f}" style="min-width: 34rem; width: 100%">'
        f'<g fill="none" stroke="currentColor" stroke-opacity="0.4">{"".join(lines)}</g>'
        '<g fill="var(--pst-color-surface, none)" stroke="currentColor" font-size="13">'
        + "".join(boxes).replace("<text ", '<text stroke="none" fill="currentColor" ')
        + "</g></svg></div>"
    )


class ChapterGraph(SphinxDirective):
    """The chapters of the directive's content, as a graph."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the graphic for HTML; other formats have the text around it."""
        known = {name.removeprefix("book/") for name in self.env.found_docs}
        chapters = parsed([line for line in self.content if line.strip()], known)
        return [nodes.raw("", drawing(chapters), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("chapter-graph", ChapterGraph)
    return {"parallel_read_safe": True}
