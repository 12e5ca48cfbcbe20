"""Look through the built pages for what their readers would trip over; `make book` runs it.

    python tools/check_pages.py _build/html

Raw LaTeX and raw roles in the text, figures without a description, links that lead nowhere, script variables that are
declared twice, columns of dashes: none of these is a warning of the build.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

RAW_LATEX = re.compile(r".{0,20}(?:\$[^\s$]|\\[a-zA-Z]+|\\[()\[\]]).{0,20}")
RAW_ROLE = re.compile(r"\{[a-z]+(?::[a-z]+)*\}")
DECLARATION = re.compile(r"\b(?:const|let|var)\s+(\w+)\s*=")
FILE = re.compile(r"\.(?:png|jpe?g|svg|gif)$", re.IGNORECASE)


def text_defects(page: BeautifulSoup) -> list[str]:
    """Raw LaTeX and roles in the text: outside the elements that MathJax renders, and outside code."""
    shown = (
        text
        for text in page.find_all(string=True)
        if not text.find_parent(["pre", "code", "script", "style"]) and not text.find_parent(class_="math")
    )
    text = "\n".join(shown)
    return [f"raw LaTeX {found!r}" for found in RAW_LATEX.findall(text)] + [
        f"raw role {found}" for found in RAW_ROLE.findall(text)
    ]


def image_defects(page: BeautifulSoup) -> list[str]:
    """Images whose description is missing, or is the name of a file."""
    descriptions = [(image.get("src"), image.get("alt", "").strip()) for image in page.find_all("img")]
    return [f"no alt text for {src}: {alt!r}" for src, alt in descriptions if not alt or FILE.search(alt)]


def script_defects(page: BeautifulSoup) -> list[str]:
    """Variables that the page's inline scripts declare more than once."""
    scripts = " ".join(script.get_text() for script in page.find_all("script"))
    declared = Counter(DECLARATION.findall(scripts))
    return [f"script variable {name} declared twice" for name, times in declared.items() if times > 1]


def table_defects(page: BeautifulSoup) -> list[str]:
    """Columns of tables with heads that hold nothing but dashes, or nothing at all."""
    defects = []
    for table in page.find_all("table"):
        rows = [[cell.get_text(strip=True) for cell in row.find_all("td")] for row in table.find_all("tr")]
        columns = zip(*[row for row in rows if row], strict=False)
        heads = [cell.get_text(strip=True) for cell in table.select("thead th")]
        defects += [
            f"a column of dashes: {head}"
            for head, column in zip(heads, columns, strict=False)
            if {*column} <= {"", "–", "—", "-"}
        ]
    return defects


def link_defects(path: Path, page: BeautifulSoup, anchors: dict[Path, set[str]]) -> list[str]:
    """Links to files that do not exist and to anchors that their page lacks."""
    defects = []
    for link in page.find_all("a", href=True):
        url = urlsplit(link["href"])
        if url.scheme or url.netloc:
            continue
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        if target not in anchors and not target.exists():
            defects.append(f"link to a missing file: {link['href']}")
        elif target in anchors and url.fragment and unquote(url.fragment) not in anchors[target]:
            defects.append(f"link to a missing anchor: {link['href']}")
    return defects


def page_defects(root: Path) -> dict[Path, list[str]]:
    """All that is wrong with each page below a folder."""
    paths = [path.resolve() for path in sorted(root.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in paths}
    anchors = {path: {element["id"] for element in page.find_all(id=True)} for path, page in pages.items()}
    return {
        path: [
            *text_defects(page),
            *image_defects(page),
            *script_defects(page),
            *table_defects(page),
            *link_defects(path, page, anchors),
        ]
        for path, page in pages.items()
    }


def main(folder: str) -> int:
    """Print what is wrong with the pages; return 1 if anything is, else 0."""
    found = page_defects(Path(folder))
    if not found:
        print(f"No page in {folder}: build the book first.")
        return 1
    root = Path(folder).resolve()
    lines = [f"{path.relative_to(root)}: {defect}" for path, defects in found.items() for defect in defects]
    print("\n".join([*lines, f"{len(lines)} defects in {len(found)} pages of {folder}"]))
    return min(len(lines), 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
