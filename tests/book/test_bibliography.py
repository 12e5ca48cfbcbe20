"""Every entry of the bibliography can be followed, and is cited."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRIES = dict(re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", (ROOT / "book" / "references.bib").read_text(), re.M | re.S))
CITED = " ".join(
    text
    for path in [*ROOT.glob("book/**/*.md"), *ROOT.glob("book/*.ipynb")]
    for text in re.findall(r"\{cite(?:\:\w+)?\}`([^`]+)`", path.read_text())
)


@pytest.mark.parametrize("key", ENTRIES)
def test_entry_has_a_link(key):
    fields = set(re.findall(r"^\s*(\w+)\s*=", ENTRIES[key], re.M))
    assert fields & {"doi", "url", "eprint"}, f"{key}: give a doi, a url, or the eprint of an archive"
    assert "eprint" not in fields or "archiveprefix" in fields, f"{key}: an eprint needs its archiveprefix"


@pytest.mark.parametrize("key", ENTRIES)
def test_entry_is_cited(key):
    assert re.search(rf"\b{key}\b", CITED), f"{key} is in the bibliography and nowhere cited"
