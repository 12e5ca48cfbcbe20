"""Every page of the built book in a real browser, wide and narrow, light and dark; `make browser` builds it first.

Skipped where Playwright, a Chromium or the built book is missing. `MIGELIB_BOOK` names another folder of pages,
`CHROMIUM` another browser.
"""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra browser)")

ROOT = Path(__file__).parents[2]
BOOK = Path(os.environ.get("MIGELIB_BOOK", ROOT / "_build" / "html")).resolve()
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = sorted(path.relative_to(BOOK).as_posix() for path in BOOK.rglob("book/**/*.html"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
MEASURE = (Path(__file__).parent / "measure.js").read_text()
WIDE, NARROW = 1400, 390

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(not PAGES, reason=f"no book in {BOOK}: make book"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root in CI has none
        yield chromium
        chromium.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site():
    """The book's address on this machine: the search reads the pages for its excerpts, which no page of a file may."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=BOOK)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def visit(browser, url: str, scheme: str = "light") -> tuple:
    """Open a page at full width and wait for its formulas; return it and the list that its faults are added to."""
    page = browser.new_page(viewport={"width": WIDE, "height": 1000}, color_scheme=scheme)
    faults = []
    page.on("console", lambda message: message.type == "error" and faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("request", lambda request: elsewhere(request.url) and faults.append(f"asks for {request.url}"))
    page.on("requestfailed", lambda request: faults.append(f"not loaded: {request.url}"))
    page.goto(url)
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate("() => document.fonts.ready")
    return page, faults


def elsewhere(url: str) -> bool:
    """Whether an address is one that a reader without a network has not."""
    return url.startswith("http") and not url.startswith("http://127.0.0.1:")


def faults_of(browser, url: str, scheme: str) -> list[str]:
    """All that is wrong with a page in one colour scheme, at both widths."""
    page, faults = visit(browser, url, scheme)
    if (theme := page.evaluate("() => document.documentElement.dataset.theme")) not in (scheme, None):
        faults.append(f"theme {theme}, asked for {scheme}")
    faults += page.evaluate(f"({MEASURE})(true)")
    page.set_viewport_size({"width": NARROW, "height": 800})
    faults += [f"at {NARROW} px: {fault}" for fault in page.evaluate(f"({MEASURE})(false)")]
    page.close()
    return list(dict.fromkeys(faults))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_sound(browser, site, name, scheme):
    assert faults_of(browser, f"{site}/{name}", scheme) == []


@pytest.mark.parametrize("name", PAGES)
def test_launch_links_lead_to_the_notebook(name):
    links = BeautifulSoup((BOOK / name).read_text(), "html.parser").select("a[href*='colab.research.google.com']")
    notebook = Path(name).with_suffix(".ipynb")
    repository = CONFIG["repository"]["url"].removeprefix("https://github.com/")
    target = f"https://colab.research.google.com/github/{repository}/blob/{CONFIG['repository']['branch']}/{notebook}"
    assert {link["href"] for link in links} == ({target} if (ROOT / notebook).exists() else set())


def test_search_finds_the_estimator_and_shows_no_markup(browser, site):
    page, faults = visit(browser, f"{site}/search.html?q=SSGE")
    page.wait_for_selector("#search-results li", timeout=0)
    page.wait_for_function("() => document.querySelector('#search-results .search-summary')?.textContent", timeout=0)
    found = page.inner_text("#search-results")
    page.close()
    assert faults == []
    assert "SSGE" in found
    assert not [line for line in found.splitlines() if "\\(" in line or "\\[" in line]


SOUND = "<html><body><article><h1>Title</h1><p>Text, 5 $.</p><img alt='A curve.' src='{image}'></article></body></html>"
IMAGE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ("", None),
        ("<div style='width: 1500px'>x</div>", "wider than the page: 15"),
        ("<div style='width: 500px'>x</div>", "at 390 px: wider than the page: 5"),
        ("<div class='math' style='width: 90px; overflow: auto'><p style='width: 99px'>x</p></div>", "formula cut: x"),
        ("<pre style='width: 90px; overflow: auto'>a line that is too long for it</pre>", "code cut: a line that is"),
        ("<img src='{image}'>", "no alt text"),
        ("<img src='{image}' alt='a/b.png'>", "no alt text"),
        ("<img src='gone.png' alt='Gone.'>", "gone.png"),
        (r"<p>so \hat s is</p>", "raw markup \\hat"),
        ("<p>so $s$ is</p>", "raw markup $s$"),
        ("<p>see {prf:ref}<code>a</code></p>", "raw markup {prf:ref}"),
        ("<script>const a = 1; const a = 2;</script>", "script: "),
        ("<script>console.error('no')</script>", "console: no"),
        ("<script src='https://example.invalid/x.js'></script>", "asks for https://example.invalid/x.js"),
    ],
)
def test_each_fault_is_noticed(browser, tmp_path, html, fault):
    path = tmp_path / "page.html"
    path.write_text(SOUND.replace("</article>", f"{html}</article>").replace("{image}", IMAGE))
    found = faults_of(browser, path.as_uri(), "light")
    assert any(fault in line for line in found) if fault else found == []
