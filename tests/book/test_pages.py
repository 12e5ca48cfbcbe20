"""The check of the built pages finds what it looks for, on small pages with one defect each."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("check_pages", ROOT / "tools" / "check_pages.py")
check_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_pages)

SOUND = r"""<html><body><h1 id="top">Title</h1>
<p>Maths <span class="math notranslate">\(x^2\)</span>, code <code>$x {ref}`y`</code>, a price of 5 $ each.</p>
<pre>\alpha $x$ {ref}</pre><img src="a.png" alt="A curve that falls."/>
<table><thead><tr><th>m</th><th>n</th></tr></thead><tr><td>1</td><td>–</td></tr><tr><td>–</td><td>2</td></tr></table>
<a href="#top">up</a> <a href="page.html#top">here</a> <a href="https://example.org/#x">away</a>
<script>const a = 1; const b = 2;</script></body></html>"""


def defects(folder: Path, html: str) -> list[str]:
    (folder / "page.html").write_text(html)
    return check_pages.page_defects(folder)[(folder / "page.html").resolve()]


def test_a_sound_page_passes(tmp_path, capsys):
    assert defects(tmp_path, SOUND) == []
    assert check_pages.main(str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("html", "defect"),
    [
        ("<td>$H(z)$</td>", "raw LaTeX '$H(z)$'"),
        (r"<p>so \hat s is</p>", r"raw LaTeX 'so \\hat s is'"),
        (r"<p>so \(x\)</p>", "raw LaTeX"),
        ("<p>see {prf:ref}<code>a</code></p>", "raw role {prf:ref}"),
        ('<img src="a.png"/>', "no alt text for a.png: ''"),
        ('<img src="a.png" alt="../_images/a.png"/>', "no alt text for a.png"),
        ('<a href="gone.html">x</a>', "missing file: gone.html"),
        ('<a href="#gone">x</a>', "missing anchor: #gone"),
        ('<a href="page.html#gone">x</a>', "missing anchor: page.html#gone"),
        ("<script>const a = 3;</script>", "script variable a declared twice"),
        (
            "<table><thead><tr><th>m</th><th>full</th></tr></thead><tr><td>1</td><td>–</td></tr></table>",
            "a column of dashes: full",
        ),
    ],
)
def test_each_defect_is_noticed(tmp_path, html, defect):
    found = defects(tmp_path, SOUND.replace("</body>", f"{html}</body>"))
    assert len(found) == 1
    assert defect in found[0]


def test_defects_and_missing_pages_fail_the_command(tmp_path, capsys):
    assert check_pages.main(str(tmp_path)) == 1
    assert "build the book first" in capsys.readouterr().out
    defects(tmp_path, "<p>$x$</p>")
    assert check_pages.main(str(tmp_path)) == 1
    assert "page.html: raw LaTeX" in capsys.readouterr().out
