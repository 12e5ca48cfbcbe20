"""Figures that a reader operates in the page: sliders that choose among pictures computed beforehand, without a kernel.

A figure is described once, as panels of layers whose data have one leading axis a slider. Bokeh draws it in the
browser, in the rendered book as in Colab, and Matplotlib draws the still that print and readers without scripts see.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

INK = "ink"  # black on paper, and what the page writes with on a screen, so that the truth shows in dark mode too
WIDTH, HEIGHT = 300, 270  # pixels of a panel, before the page stretches it
KINDS = {"line": ("x", "y"), "dots": ("x", "y"), "arrows": ("x", "y", "u", "v")}


@dataclass(frozen=True)
class Layer:
    """One mark of a panel: a line, dots, or arrows from (x, y) to (x + u, y + v).

    Attributes
    ----------
    kind : str
        "line", "dots" or "arrows".
    data : dict of array
        x and y, and of arrows u and v: each ``[*settings, points]``, one axis a slider, or ``[points]`` where no slider
        changes it.
    label : str
        In the legend; none where empty.
    color : str
        A colour of Matplotlib's, or `INK`.
    dashed : bool
        Of a line.
    size : float
        Of dots, in pixels; of the others, width of the line.

    Raises
    ------
    ValueError
        If the kind is unknown, or the data are not what it needs.
    """

    kind: str
    data: dict[str, np.ndarray]
    label: str = ""
    color: str = INK
    dashed: bool = False
    size: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: unknown {self.kind!r}, expected one of {', '.join(KINDS)}")
        if set(self.data) != set(KINDS[self.kind]):
            raise ValueError(f"data: {self.kind} need {', '.join(KINDS[self.kind])}, got {', '.join(self.data)}")

    def packed(self, settings: tuple[int, ...]) -> np.ndarray:
        """All columns after each other, for every setting [settings, columns * points]."""
        columns = [np.asarray(self.data[name], np.float32) for name in KINDS[self.kind]]
        points = max(column.shape[-1] for column in columns)
        full = [np.broadcast_to(column, (*settings, points)).reshape(-1, points) for column in columns]
        return np.concatenate(full, axis=1)

    @property
    def fixed(self) -> bool:
        """Whether no slider changes it."""
        return all(np.ndim(column) == 1 for column in self.data.values())


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes
    ----------
    layers : sequence of Layer
        From the lowest to the uppermost.
    title, x_label, y_label : str
        Plain text: Bokeh and Matplotlib write it.
    x_range, y_range : pair of float
        Ends of the axes.
    log_x : bool
        Whether the horizontal axis is logarithmic.
    legend : str
        Its corner: "upper right" or "upper left".
    """

    layers: Sequence[Layer]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    legend: str = "upper right"


@dataclass(frozen=True)
class Slider:
    """What a reader changes.

    Attributes
    ----------
    label : str
        Stands above the slider, before the value.
    values : sequence of str
        Its values, as they are shown.
    start : int
        Index of the value that stands there at first, and in the still.
    plays : bool
        Whether a button moves it through its values by itself.
    """

    label: str
    values: Sequence[str]
    start: int = 0
    plays: bool = False


@dataclass(frozen=True)
class LiveFigure:
    """A figure to operate: panels side by side, sliders below them, and a line of text that goes with their values.

    Shown by being the last expression of a notebook's cell.

    Attributes
    ----------
    name : str
        Of letters, digits and hyphens; no other figure of the page has it.
    panels : sequence of Panel
    sliders : sequence of Slider
    alt : str
        What the still shows, for those who cannot see it.
    notes : sequence of str, optional
        One line a setting, in the order of the layers' leading axes.

    Raises
    ------
    ValueError
        If the notes are not as many as the settings.
    """

    name: str
    panels: Sequence[Panel]
    sliders: Sequence[Slider]
    alt: str
    notes: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if self.notes and len(self.notes) != np.prod(self.settings):
            raise ValueError(f"notes: expected {np.prod(self.settings)}, one a setting, got {len(self.notes)}")

    @property
    def settings(self) -> tuple[int, ...]:
        """Number of values of each slider."""
        return tuple(len(slider.values) for slider in self.sliders)

    @property
    def start(self) -> int:
        """Index of the setting that is shown at first."""
        return int(np.ravel_multi_index([slider.start for slider in self.sliders], self.settings))

    def still(self) -> bytes:
        """The first setting as a PNG."""
        figure, axes = plt.subplots(1, len(self.panels), figsize=(3.2 * len(self.panels), 2.7), squeeze=False)
        for axis, panel in zip(axes[0], self.panels, strict=True):
            _draw(axis, panel, self.settings, self.start)
        chosen = [f"{slider.label}: {slider.values[slider.start]}" for slider in self.sliders]
        figure.supxlabel(" · ".join(chosen), fontsize=8)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
        plt.close(figure)
        return file.getvalue()

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, str]:
        """HTML for browsers, with the still in it for print; the still alone for LaTeX and other viewers."""
        png = base64.b64encode(self.still()).decode()
        return {"text/html": self.html(png), "image/png": png, "text/plain": f"[figure to operate: {self.alt}]"}

    def html(self, png: str) -> str:
        """The still, and the script that puts the live figure in its place."""
        import bokeh
        from bokeh.embed import json_item

        item = json.dumps(json_item(_layout(self), f"{self.name}-live"), separators=(",", ":")).replace("</", "<\\/")
        filled = {
            "NAME": self.name,
            "VERSION": bokeh.__version__,
            "ALT": html.escape(self.alt),
            "PNG": png,
            "ITEM": item,
        }
        page = PAGE
        for key, value in filled.items():
            page = page.replace(f"%{key}%", value)
        return page


def _draw(axis: Axes, panel: Panel, settings: tuple[int, ...], setting: int) -> None:
    """Draw one setting of a panel by Matplotlib."""
    for layer in panel.layers:
        columns = np.split(layer.packed(settings)[setting], len(KINDS[layer.kind]))
        color, label = "black" if layer.color == INK else layer.color, layer.label or None
        if layer.kind == "line":
            style = "--" if layer.dashed else "-"
            axis.plot(*columns, color=color, linestyle=style, linewidth=0.75 * layer.size, label=label)
        elif layer.kind == "dots":
            axis.scatter(*columns, s=(0.75 * layer.size) ** 2, color=color, linewidths=0, label=label)
        else:
            lengths = {"angles": "xy", "scale_units": "xy", "scale": 1}
            axis.quiver(*columns, color=color, width=0.0035 * layer.size, label=label, **lengths)
    axis.set(xlim=panel.x_range, ylim=panel.y_range, xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
    if panel.log_x:
        axis.set_xscale("log")
    if any(layer.label for layer in panel.layers):
        axis.legend(fontsize=7, loc=panel.legend)


def _layout(live: LiveFigure) -> Any:
    """The Bokeh document: panels, sliders, a button where one plays, and the line of text."""
    from bokeh.layouts import column, row
    from bokeh.models import ColumnDataSource, CustomJS, CustomJSTickFormatter, Div, Toggle
    from bokeh.models import Slider as BokehSlider

    sources, frames, plots = [], [], []
    for panel in live.panels:
        plot = _axes(panel)
        for layer in panel.layers:
            packed = layer.packed(live.settings)
            shown = np.split(packed[live.start], len(KINDS[layer.kind]))
            source = ColumnDataSource(dict(zip(KINDS[layer.kind], shown, strict=True)))
            _mark(plot, layer, source)
            if not layer.fixed:
                sources.append(source)
                frames.append(packed)
        if any(layer.label for layer in panel.layers):
            corner = panel.legend.replace("upper", "top").replace(" ", "_")
            clear = {"background_fill_alpha": 0, "border_line_alpha": 0}
            plot.legend.update(location=corner, label_text_font_size="11px", padding=2, spacing=0, **clear)
        plots.append(plot)
    sliders = [
        BokehSlider(
            start=0,
            end=len(slider.values) - 1,
            value=slider.start,
            step=1,
            title=slider.label,
            format=CustomJSTickFormatter(args={"values": list(slider.values)}, code="return values[Math.round(tick)];"),
            sizing_mode="stretch_width",
            max_width=WIDTH,
        )
        for slider in live.sliders
    ]
    note = Div(text=live.notes[live.start] if live.notes else "", sizing_mode="stretch_width")
    shown_by = {"sliders": sliders, "sources": sources, "frames": frames, "note": note, "notes": list(live.notes)}
    choose = CustomJS(args=shown_by, code=CHOOSE)
    controls: list[Any] = []
    for widget, slider in zip(sliders, live.sliders, strict=True):
        widget.js_on_change("value", choose)
        controls.append(widget)
        if slider.plays:
            button = Toggle(label="▶ play", width=80)
            button.js_on_change("active", CustomJS(args={"button": button, "slider": widget}, code=PLAY))
            controls.append(button)
    wrap = {"flex-wrap": "wrap"}
    return column(
        row(*plots, sizing_mode="stretch_width", styles=wrap),
        row(*controls, sizing_mode="stretch_width", styles=wrap),
        note,
        sizing_mode="stretch_width",
    )


def _axes(panel: Panel) -> Any:
    """Empty axes that take the page's colours and width."""
    from bokeh.plotting import figure

    plot = figure(
        height=HEIGHT,
        min_width=WIDTH - 40,
        max_width=WIDTH + 90,
        sizing_mode="stretch_width",
        title=panel.title or None,
        x_axis_label=panel.x_label or None,
        y_axis_label=panel.y_label or None,
        x_range=panel.x_range,
        y_range=panel.y_range,
        x_axis_type="log" if panel.log_x else "linear",
        tools="",
        toolbar_location=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
    )
    plot.grid.grid_line_color = None
    return plot


def _mark(plot: Any, layer: Layer, source: Any) -> None:
    """Add a layer to axes; what is of `INK` is tagged, for the page to colour."""
    color, tags = ("black", [INK]) if layer.color == INK else (to_hex(layer.color), [])
    label = {"legend_label": layer.label} if layer.label else {}
    if layer.kind == "arrows":
        plot.add_layout(_arrows(layer, source, color, tags))
        return
    if layer.kind == "line":
        dash = "dashed" if layer.dashed else "solid"
        drawn = plot.line("x", "y", source=source, color=color, line_width=layer.size, line_dash=dash, **label)
    else:
        drawn = plot.scatter("x", "y", source=source, size=layer.size, color=color, **label)
    drawn.glyph.tags = tags


def _arrows(layer: Layer, source: Any, color: str, tags: list[str]) -> Any:
    """Arrows whose ends follow x + u and y + v of the source."""
    from bokeh.models import Arrow, CustomJSExpr, NormalHead

    sum_of = "const [from, step] = [this.data.{}, this.data.{}]; return from.map((at, i) => at + step[i]);"
    x_end, y_end = ({"expr": CustomJSExpr(code=sum_of.format(*pair))} for pair in (("x", "u"), ("y", "v")))
    head = NormalHead(size=2.5 * layer.size, fill_color=color, line_color=color, tags=tags)
    ends = {"x_start": "x", "y_start": "y", "x_end": x_end, "y_end": y_end, "end": head}
    return Arrow(source=source, line_color=color, line_width=layer.size, tags=tags, **ends)


# What the sliders' callback does: show the slice of the frames that their values point at.
CHOOSE = """
const settings = frames[0].shape[0];
const at = sliders.reduce((flat, slider) => flat * (slider.end + 1) + slider.value, 0);
sources.forEach((source, k) => {
  const names = Object.keys(source.data), points = frames[k].length / settings / names.length;
  const column = (j) => new Float32Array(
    frames[k].buffer, frames[k].byteOffset + 4 * points * (at * names.length + j), points);
  source.data = Object.fromEntries(names.map((name, j) => [name, column(j)]));
});
if (notes.length > 0) note.text = notes[at];
"""

PLAY = """
clearInterval(button.timer);
button.label = button.active ? "❚❚ stop" : "▶ play";
if (button.active) {
  if (slider.value == slider.end) slider.value = 0;
  button.timer = setInterval(() => {
    if (slider.value < slider.end) slider.value += 1; else button.active = false;
  }, 150);
}
"""

# The book serves Bokeh's scripts itself (book/_extensions/live_figures.py); elsewhere they come from its own server.
PAGE = """<div class="migelib-live" id="%NAME%">
<style>
.migelib-live > .still { max-width: 100%; }
.migelib-live > .live { display: none; }
.migelib-live.ready > .live { display: block; }
.migelib-live.ready > .still { display: none; }
@media print {
  .migelib-live.ready > .live { display: none; }
  .migelib-live.ready > .still { display: block; }
}
/* The book's theme lays a light ground below HTML in dark mode; the figure takes the page's colours itself. */
.cell_output .text_html:has(.migelib-live) {
  background: none !important; color: inherit !important; padding: 0 !important;
}
</style>
<img class="still" alt="%ALT%" src="data:image/png;base64,%PNG%">
<div class="live" id="%NAME%-live" role="group" aria-label="Figure to operate by its sliders"></div>
<script>
(() => {
  const root = document.getElementById("%NAME%");
  const load = (file) => new Promise((done, failed) => {
    const script = document.createElement("script");
    Object.assign(script, {src: file, onload: done, onerror: failed});
    document.head.append(script);
  });
  const library = async () => {
    await load("https://cdn.bokeh.org/bokeh/release/bokeh-%VERSION%.min.js");
    await load("https://cdn.bokeh.org/bokeh/release/bokeh-widgets-%VERSION%.min.js");
  };
  const paint = (models) => {
    const ink = getComputedStyle(root).color;
    for (const model of models) {
      const name = model.type;
      if (name.endsWith("Axis")) {
        for (const line of ["axis_line", "major_tick_line", "minor_tick_line"]) model[`${line}_color`] = ink;
        for (const text of ["axis_label_text", "major_label_text"]) model[`${text}_color`] = ink;
      } else if (name == "Title") model.text_color = ink;
      else if (name == "Legend") model.label_text_color = ink;
      else if (model.tags.includes("ink")) {
        if ("line_color" in model) model.line_color = ink;
        if ("fill_color" in model) model.fill_color = ink;
      }
    }
    for (const model of models) if (model.type == "Arrow") model.change.emit();  // a head that changes draws nothing
  };
  const start = async () => {
    if (!window.Bokeh) await (window.migelibBokeh ??= library());
    root.classList.add("ready");
    const manager = await window.Bokeh.embed.embed_item(%ITEM%);
    const models = [...manager.roots[0].model.references()];
    paint(models);
    new MutationObserver(() => paint(models)).observe(document.documentElement, {attributeFilter: ["data-theme"]});
  };
  const begin = () => start().catch(() => root.classList.remove("ready"));
  if (document.readyState == "loading") document.addEventListener("DOMContentLoaded", begin); else begin();
})();
</script>
</div>"""
