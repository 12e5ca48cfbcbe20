"""The first page: its numbers are those of the records, its graph has all chapters, its citation agrees."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml

from migelib.experiments.compare import difference
from migelib.experiments.records import load, published

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "index.md").read_text()
TEXT = " ".join(PAGE.split())


def extension(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "_extensions" / f"{name}.py")
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


chapter_graph = extension("chapter_graph")
LINES = re.search(r"```\{chapter-graph\}\n(.*?)```", PAGE, re.DOTALL).group(1).splitlines()
CHAPTERS = {path.stem for path in (ROOT / "book").glob("*.ipynb")}


def test_wells_are_those_of_the_record():
    record = load("collapse", "full", published())
    without, with_it = (record[f"tikhonov/beta-{beta}/wells"] for beta in (0, 1))
    assert without.values == (1,) * 5
    fewest, most = int(min(with_it.values)), int(max(with_it.values))
    found = str(most) if fewest == most else f"{fewest} or {most}"
    assert f"one of eight wells without the term, and {found} with it" in TEXT.replace("all eight", "8")


def test_errors_of_the_information_are_those_of_the_records():
    default = load("accuracy", "cpu", published())["default/toy-d32-n256/relative_error"].mean
    toy = load("toy", "full", published())
    paper, bound = (toy[f"{method}/d32/relative_error"].mean for method in ("mige", "mine-dv"))
    assert (
        f"is {default:.3f} by the default estimator, {paper:.2f} by the paper's, and {bound:.2f} by the Donsk" in TEXT
    )


def test_divergences_of_the_samplers_are_those_of_the_record():
    record = load("sampler-plane", "cpu", published())
    divergences = [record[f"ege/{target}/kl"].mean for target in record.config["targets"]]
    assert len(divergences) == 8
    assert f"within {min(divergences):.2f} to {max(divergences):.2f} nats" in TEXT


def test_the_grid_of_the_gan_is_that_of_the_record():
    record = load("gan-plane", "cpu", published())
    ege, vanilla = (record[f"{method}/grid/modes"] for method in ("ege", "vanilla"))
    assert (
        f"finds {ege.mean:.0f} ± {ege.std:.0f} of them with the term and {vanilla.mean:.0f} ± {vanilla.std:.0f}" in TEXT
    )
    assert not difference(ege, vanilla).better  # the interval includes zero


def test_the_citation_has_the_title_of_the_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"title = {{{citation['title']}}}" in TEXT  # in which a line break is a space


def test_the_graph_names_every_chapter_once_and_after_what_it_builds_on():
    named = [line.partition(":")[0] for line in LINES]
    assert set(named) >= CHAPTERS
    assert len(named) == len(set(named))
    for line in LINES:
        slug, _, needs = line.partition("<")
        before = named[: named.index(slug.partition(":")[0])]
        assert {need.strip() for need in needs.split(",") if need.strip()} <= set(before), line


def test_the_graph_leaves_out_chapters_that_are_not_there():
    chapters = chapter_graph.parsed(["a: First", "gone: Gone < a", "b: Second < a, gone"], {"a", "b"})
    assert chapters == {"a": ("First", []), "b": ("Second", ["a"])}


def test_a_chapter_stands_below_all_that_it_builds_on():
    chapters = chapter_graph.parsed(["a: A", "b: B < a", "c: C < b, a", "d: D < a"], set("abcd"))
    assert chapter_graph.depths(chapters) == {"a": 0, "b": 1, "c": 2, "d": 1}
    drawn = chapter_graph.drawing(chapters)
    assert drawn.count("<path") == 4
    assert [re.search(rf'href="{slug}.html"', drawn) is not None for slug in "abcd"] == [True] * 4


@pytest.mark.parametrize("name", ["collapse-moving", "collapse-still"])
def test_the_moving_picture_is_drawn_from_the_record(name, monkeypatch):
    spec = importlib.util.spec_from_file_location("moving_picture", ROOT / "tools" / "moving_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = module.picture(load("collapse", "full", published()), moves=name == "collapse-moving")
    assert (ROOT / "_static" / f"{name}.svg").read_text() == drawn
