"""Sphinx hook that mends two faults of other extensions in the finished pages."""

from __future__ import annotations

import re
from pkgutil import resolve_name

from sphinx.application import Sphinx

VIEWCODE_BACK = re.compile(r'(<div class="viewcode-block" id="(.+)">\n<a class="viewcode-back" href=".+#)([^"]+)')


def drop_repeated_scripts(scripts: list) -> None:
    """Keep the first of equal inline scripts, in place.

    Sphinx adds those that an extension registers late a second time, and a second `const` is an error in the browser.
    """
    seen = set()
    for script in list(scripts):
        body = script.attributes.get("body")
        if body is not None and body in seen:
            scripts.remove(script)
        seen.add(body)


def mend_docs_links(body: str, module: str, documented: set[str]) -> str:
    """Lead each [docs] link of a page of source code to the name that the object is documented under.

    Viewcode takes the module of the file's first object for all: `migelib.SSGE`, so `migelib.SpectralScore`.
    """

    def mended(match: re.Match) -> str:
        start, name, target = match.groups()
        if target not in documented:
            ends = sorted(full for full in documented if full.endswith(f".{name}"))
            target = next((full for full in ends if resolve_name(full).__module__ == module), target)
        return start + target

    return VIEWCODE_BACK.sub(mended, body)


def repair(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Mend one page before it is written."""
    drop_repeated_scripts(context["script_files"])
    if pagename.startswith("_modules/migelib"):
        module = pagename.removeprefix("_modules/").replace("/", ".")
        context["body"] = mend_docs_links(context["body"], module, set(app.env.get_domain("py").objects))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook, to run after those that add scripts."""
    app.connect("html-page-context", repair, priority=900)
    return {"parallel_read_safe": True}
