"""Figures to operate: which numbers a setting shows, what stands in the page, and the quantities that they plot."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from migelib.experiments import collapse, figures, records
from migelib.experiments.interactive import INK, Layer, LiveFigure, Panel, Slider

X = np.arange(4.0)
MOVING = Layer("dots", {"x": X, "y": np.arange(24.0).reshape(2, 3, 4)}, "moving")
FIXED = Layer("line", {"x": X, "y": X}, color=INK)
ARROWS = Layer("arrows", {"x": X, "y": X, "u": X, "v": np.arange(12.0).reshape(1, 3, 4)})
PANEL = Panel([MOVING, FIXED, ARROWS], (0, 4), (0, 24))
SLIDERS = [Slider("first", ["a", "b"], 1), Slider("second", ["c", "d", "e"], 0, plays=True)]
LIVE = LiveFigure("made-up", [PANEL], SLIDERS, 'A line and "dots".', [f"<b>note</b> {i}" for i in range(6)])


def test_the_last_slider_moves_fastest_through_the_frames():
    frames = MOVING.packed((2, 3))
    assert frames.shape == (6, 8)
    assert frames[0 * 3 + 1].tolist() == [*X, *range(4, 8)]
    assert frames[1 * 3 + 0].tolist() == [*X, *range(12, 16)]
    assert ARROWS.packed((2, 3))[1 * 3 + 2].tolist() == [*X, *X, *X, *range(8, 12)]
    assert LIVE.start == 3


def test_only_layers_that_move_are_in_the_callback():
    item = re.search(r"embed_item\((.*)\);\n", LIVE.html("")).group(1)
    models = json.loads(item)["doc"]["roots"]
    callback = json.dumps(models)
    frames = re.findall(r'"shape": \[6, (\d+)\], "dtype": "float32"', callback)
    assert frames == ["8", "16"]
    assert "note</b> 3" in callback


def test_the_page_shows_a_still_until_the_scripts_have_come():
    bundle = LIVE._repr_mimebundle_()
    html = bundle["text/html"]
    assert f'alt="A line and &quot;dots&quot;." src="data:image/png;base64,{bundle["image/png"]}"' in html
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert not re.search(r"%[A-Z]+%", html)
    assert "</b>" not in html  # nor another end tag from the data, which could end the script


def test_descriptions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="kind: unknown 'bars', expected one of line, dots, arrows"):
        Layer("bars", {"x": X, "y": X})
    with pytest.raises(ValueError, match="arrows need x, y, u, v, got x, y"):
        Layer("arrows", {"x": X, "y": X})
    with pytest.raises(ValueError, match="notes: expected 6, one a setting, got 2"):
        dataclasses.replace(LIVE, notes=["one", "two"])


def test_the_truth_of_the_score_field_is_that_of_two_clusters():
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    log_density = torch.logsumexp(-torch.cdist(points, centres).square() / (2 * 0.5**2), dim=-1)
    (truth,) = torch.autograd.grad(log_density.sum(), points)
    torch.testing.assert_close(figures.two_clusters(points.detach()), truth)


def test_the_score_field_says_how_many_eigenfunctions_a_setting_keeps():
    live = figures.score_field(n=40, factors=(1.0, 4.0), energies=(0.5, 0.99))
    assert live.settings == (2, 2)
    kept = [int(note.split()[0]) for note in live.notes]
    assert kept[1] > kept[0] >= 1  # a larger share of the trace
    assert kept[1] > kept[3]  # a wider kernel has a steeper spectrum


def test_without_the_entropy_samples_flow_into_points_and_with_it_they_stay_apart():
    live = figures.flow_of_samples(betas=(0.0, 1.0), moments=2, n=40, steps_between=60)
    dots = live.panels[0].layers[0].data
    path = np.stack([dots["x"], dots["y"]], axis=-1)
    nearest = [np.sort(np.linalg.norm(z[:, None] - z, axis=-1), axis=1)[:, 1].mean() for z in path[:, -1]]
    assert nearest[1] > 5 * nearest[0]


def test_the_entropy_pushes_a_cloud_apart():
    cloud = collapse.centres()[0] + 0.2 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    push = figures.velocity(cloud, 1.0) - figures.velocity(cloud, 0.0)
    assert float((push * (cloud - cloud.mean(0))).sum(-1).mean()) > 0


def test_toy_estimates_are_those_of_the_record():
    record = records.load("toy", "full", records.published())
    live = figures.toy_estimates(record)
    slope = figures.information_slope(np.array([0.5]))
    assert slope == pytest.approx([0.5 / 0.75])
    curve = next(layer for layer in live.panels[0].layers if layer.label == "MIGE (SSGE)")
    expected = record.curves["mige/d16/gradient"].mean(0) / 16
    np.testing.assert_allclose(curve.data["y"][1, 0], expected)


def test_the_error_of_a_remembered_score_falls_with_the_memory_and_rises_with_the_drift():
    noise = torch.randn(200, 2, 32, 4, generator=torch.Generator().manual_seed(0))
    moments = noise.mT @ noise / 32
    still, drifting = torch.ones(200), torch.exp(0.05 * torch.arange(200.0))
    short, long = (figures.remembered_error(moments, still, decay)[100:].mean() for decay in (0.5, 0.9))
    # Of (d + 1) / n_eff, the square of the error for many samples, the root: for 96 and 608 of them.
    assert float(short) == pytest.approx((5 / 96) ** 0.5, rel=0.2)
    assert float(long) == pytest.approx((5 / 608) ** 0.5, rel=0.2)
    assert figures.remembered_error(moments, drifting, 0.9)[100:].mean() > 3 * long
    torch.testing.assert_close(figures.remembered_error(moments, 5 * still, 0.9)[100:].mean(), long)
