"""The palette: one colour a method, whatever the setting that its name goes on with."""

import matplotlib as mpl
import pytest

from migelib.experiments import plotting

FIGURES = {
    "toy": ("mige", "mine-dv", "mine-f"),
    "beyond": ("exact", "ssge", "default", "gaussian"),
    "estimators": ("ssge", "tikhonov", "landweber", "nu", "gaussian", "kde", "denoising"),
    "gan": ("vanilla", "ege", "ssge-paper", "meg", "pacgan", "instance-noise"),
    "samplers": ("none", "ssge-paper", "ege", "ar-dae-5", "flow"),
    "autoencoders": ("ege", "ssge-paper", "gaussian", "wae-mmd-imq", "wae-mmd-energy", "wae-mmd-rbf", "wae-gan", "vae"),
    "defaults": ("ssge", "default", "streaming", "gaussian", "exact"),
}


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("ssge", "ssge"),
        ("ssge-paper", "ssge"),
        ("mine-f", "mine-f"),
        ("mine-ema", "mine"),
        ("mige-gaussian-x", "gaussian"),
    ],
)
def test_a_method_has_the_colour_of_the_longest_key_that_begins_its_name(method, key):
    assert plotting.colour(method) == plotting.COLOURS[key]


@pytest.mark.parametrize("method", ["ssgex", "mi", "unheard-of"])
def test_a_name_without_a_colour_is_named(method):
    with pytest.raises(ValueError, match=f"'{method}' has no colour"):
        plotting.colour(method)


@pytest.mark.parametrize("methods", FIGURES.values(), ids=FIGURES)
def test_methods_of_one_figure_are_told_apart(methods):
    assert len({plotting.colour(method) for method in methods}) == len(methods)


def test_colours_are_colours_and_the_truth_is_black():
    assert all(mpl.colors.is_color_like(colour) for colour in plotting.COLOURS.values())
    assert {key for key, colour in plotting.COLOURS.items() if colour == plotting.TRUTH} == {"exact"}


def test_what_is_no_method_takes_no_methods_colour():
    with mpl.rc_context():
        plotting.use_style()
        cycle = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    assert not {mpl.colors.to_hex(colour) for colour in cycle} & set(plotting.COLOURS.values())
