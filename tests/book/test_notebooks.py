"""What nbval does not notice: cells that were never run, chapters without a check, outputs that do not belong there."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
CLAIM = 60  # words
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]


def defects(notebook: dict) -> list[str]:
    """All that is wrong with a committed chapter."""
    found = []
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("cells were not run, or not in order")
    if not any("records.check(" in source for source in sources):
        found.append("no check against a record")
    if not sources or "pip install" not in sources[0] or "import migelib" not in sources[0]:
        found.append("the first cell does not import migelib or install it")
    for cell, source in zip(cells, sources, strict=True):
        if "records.check(" in source and "nbval-ignore-output" in cell["metadata"].get("tags", []):
            found.append("the output of a check is ignored")
        if "NBVAL" in source:
            found.append("a marker for nbval that a reader sees; it has tags")
    if any("execution" in cell["metadata"] for cell in cells):
        found.append("times of execution, which fill a diff; `make run` leaves none")
    for cell in cells:
        for output in cell["outputs"]:
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"output of type {output['output_type']} {output.get('name', '')}")
        if re.search(r"""["']C(?:\d|\{)""", "".join(cell["source"])):
            found.append("a colour by its number; `plotting.colour(method)` is the method's in all chapters")
    prose = [[*cell["source"], "\n"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    text = json.dumps(notebook["cells"])
    found += [f"path {path}" for path in re.findall(r"(?<![\w./-])/(?:home|root|work|tmp|Users)/[\w./-]+", text)]
    return found + prose_defects("".join("".join(lines) + "\n" for lines in prose))


def prose_defects(prose: str) -> list[str]:
    """All that is wrong with a chapter's text."""
    found = []
    fences = re.findall(r"^ *(`{3,}\{.*)", prose, re.MULTILINE)
    found += [f"{fence}: a backtick directive is raw code outside the book" for fence in fences]
    formulas = re.findall(r"\$\$(.+?)\$\$", prose, re.DOTALL)
    rows = [formula for formula in formulas if re.search(r"&|\\\\", formula) and r"\begin{" not in formula]
    found += [f"only Sphinx shows rows outside an environment such as aligned: {formula}" for formula in rows]
    headings = re.findall(r"^#{2,} (.+)", prose, re.MULTILINE)
    if "Exercises" in headings[:-1]:
        found.append(f"section {headings[-1]!r} after the exercises")
    paragraphs = re.split(r"\n\s*\n", re.sub(r"\$\$.+?\$\$", "", prose, flags=re.DOTALL))
    claims = [text.removeprefix("**Claim.**").split() for text in paragraphs if text.startswith("**Claim.**")]
    found += [f"a claim of {len(words)} words, more than {CLAIM}" for words in claims if len(words) > CLAIM]
    found += [f"a code name in the claim: {word}" for words in claims for word in words if word.startswith("`")]
    for first, *rest in (text.strip("\n").split("\n") for text in paragraphs):
        bullets = [line for line in rest if re.match(r"\s*[-+*>] ", line)]
        if bullets and not re.match(r"\s*(?:[-+*>] |:::|```)", first):
            found.append(f"a line that becomes a list or a quotation: {bullets[0].strip()!r}")
    titles = re.findall(r"\{ref\}`[^<`]+`", prose)
    return found + [f"a title in mid-sentence: {title}; numref, or a text of its own" for title in titles]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_chapter_is_sound(path):
    assert defects(json.loads(path.read_text())) == []


def code_cell(source: str, count: int | None, outputs: list | None = None, tags: list[str] | None = None) -> dict:
    metadata = {"tags": tags or []}
    cell = {"cell_type": "code", "source": [source], "execution_count": count, "outputs": outputs or []}
    return cell | {"metadata": metadata}


def prose_cell(source: str) -> dict:
    return {"cell_type": "markdown", "source": source.splitlines(keepends=True)}


FIRST = code_cell("try:\n    import migelib\nexcept ImportError:\n    %pip install migelib", 1)
CHECK = code_cell("records.check(live)", 2)


@pytest.mark.parametrize(
    ("cells", "defect"),
    [
        ([FIRST, code_cell("records.check(live)", None)], "not run"),
        ([FIRST, code_cell("records.check(live)", 5)], "not in order"),
        ([FIRST, code_cell("1 + 1", 2)], "no check"),
        ([code_cell("import migelib", 1), CHECK], "first cell"),
        ([FIRST, code_cell("records.check(live)", 2, tags=["nbval-ignore-output"])], "ignored"),
        ([FIRST, code_cell("# NBVAL_IGNORE_OUTPUT\n1 + 1", 2), CHECK], "marker"),
        ([FIRST, CHECK | {"metadata": {"execution": {"iopub.status.busy": "2026-01-01"}}}], "times of execution"),
        ([FIRST, CHECK, code_cell("x", 3, [{"output_type": "error"}])], "error"),
        ([FIRST, CHECK, code_cell("x", 3, [{"output_type": "stream", "name": "stderr"}])], "stderr"),
        ([FIRST, CHECK, code_cell("open('/home/me/x')", 3)], "path /home/me/x"),
        ([FIRST, CHECK, prose_cell("## Exercises\n\n1. One."), prose_cell("### More")], "'More' after the exercises"),
        ([FIRST, CHECK, prose_cell("So\n\n```{math}\n:label: a\nx\n```")], "```{math}: a backtick directive"),
        ([FIRST, CHECK, prose_cell("$$\na &= b \\\\\n&= c\n$$ (a)")], "outside an environment"),
        ([FIRST, CHECK, code_cell("plot(x, color='C1')", 3)], "a colour by its number"),
        ([FIRST, CHECK, code_cell("plot(x, color=f'C{i}')", 3)], "a colour by its number"),
        ([FIRST, CHECK, prose_cell("**Claim.** " + "word " * 61)], "a claim of 61 words"),
        ([FIRST, CHECK, prose_cell("**Claim.** By `f` it is.")], "a code name in the claim: `f`"),
        (
            [FIRST, CHECK, prose_cell("1. Show that H(z)\n   - I(x; z) is.")],
            "becomes a list or a quotation: '- I(x; z) is.'",
        ),
        ([FIRST, CHECK, prose_cell("See {ref}`toy` there.")], "a title in mid-sentence: {ref}`toy`"),
        ([FIRST, CHECK, prose_cell("1. One.\n\n   ````{prf:proof}\n   Yes.\n   ````")], "```{prf:proof}: a backtick"),
    ],
)
def test_each_defect_is_noticed(cells, defect):
    assert any(defect in found for found in defects({"cells": cells}))


def test_a_sound_chapter_passes():
    boxes = prose_cell(":::{prf:proof}\n$$\nx\n$$ (a)\n:::\n\n```python\nx\n```")
    lists = prose_cell("**Claim.** So\n$$\n- x\n$$ (b)\n\n- one\n  goes on\n- {ref}`two <b>`\n" + "word " * 61)
    assert defects({"cells": [FIRST, CHECK, boxes, lists, prose_cell("## Exercises\n\n1. One.")]}) == []


def addresses(notebook: dict) -> list[str]:
    """Addresses of the repository that the first code cell installs from or names, and that of the chapter's page."""
    first = next("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    below_title = "".join(notebook["cells"][0]["source"]).split("\n")[3]
    found = re.findall(r"(?:git\+)?https://[^\s\"]+", first)
    return found + re.findall(r"^\*\[Read this chapter, .*\]\((.*)\)\.\*$", below_title)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_chapters_name_the_addresses_of_pyproject(path):
    assert addresses(json.loads(path.read_text())) == [
        f"git+{URLS['Repository']}@{REPOSITORY['branch']}",
        URLS["Repository"],
        f"{URLS['Documentation']}/book/{path.stem}.html",
    ]


def test_the_book_links_the_repository_of_pyproject():
    assert REPOSITORY["url"] == URLS["Repository"]


def test_every_chapter_begins_with_the_same_code():
    notebooks = [json.loads(path.read_text()) for path in NOTEBOOKS]
    assert len({"".join(notebook["cells"][1]["source"]) for notebook in notebooks}) == 1


def test_the_template_is_a_chapter():
    template = json.loads((ROOT / "tools" / "chapter.ipynb").read_text())
    assert defects(template) == []
    assert template["cells"][1]["source"] == json.loads(NOTEBOOKS[0].read_text())["cells"][1]["source"]
    assert addresses(template)[-1] == f"{URLS['Documentation']}/book/SLUG.html"


def test_every_chapter_is_in_the_table_of_contents():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {chapter["file"] for part in contents["parts"] for chapter in part["chapters"]}
    assert {f"book/{path.stem}" for path in NOTEBOOKS} <= listed
    assert all(list(ROOT.glob(f"{name}.*")) for name in listed)


def test_no_test_depends_on_wall_time():
    """A clone on a busy machine once failed at a limit of 600 s. Hypothesis and nbval have limits unless told."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    options = project["tool"]["pytest"]["ini_options"]
    assert {"--nbval-cell-timeout=-1", "--nbval-kernel-startup-timeout=inf"} <= set(options["addopts"])
    assert "timeout" not in options
    assert "pytest-timeout" not in (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    clocks = re.compile(r"\b(?:perf_counter|monotonic|time\.time|mark\.timeout)\b")
    for path in Path(__file__).parent.glob("test_*.py"):
        source = path.read_text()
        assert path == Path(__file__) or not clocks.search(source), path
        assert source.count("@given") <= source.count("deadline=None"), path
