"""AUC over bytes, drawn: PNG and SVG for a page, and HTML to explore without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from embedcomp.support.files import replacing

COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22"),
    *("#17becf", "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#dbdb8d"),
)
DASHES = ("solid", "dashed", "dotted")  # once the colours are used up
EMPHASISED = "#000000"
BYTES = "bytes of the whole served model"
LEAST_SHOWN = 0.002  # of AUC, below the lowest point that matters


@dataclass(frozen=True)
class Point:
    """One model: its bytes and AUC, the AUC's spread over seeds, and what else there is to say."""

    bytes: float
    auc: float
    spread: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Models that were made in one way."""

    name: str
    points: Sequence[Point]
    emphasised: bool = False

    @property
    def ordered(self) -> list[Point]:
        return sorted(self.points, key=lambda p: p.bytes)


@dataclass(frozen=True)
class Level:
    """A model that is not compressed: a horizontal line."""

    name: str
    auc: float

    def __str__(self) -> str:
        return f"{self.name} {self.auc:.5f}"


@dataclass(frozen=True)
class Picture:
    """AUC over bytes of several ways to make a model smaller."""

    title: str
    curves: Sequence[Curve]
    levels: Sequence[Level]
    whole_bytes: float  # of the original

    @property
    def shown(self) -> tuple[float, float]:
        """The AUCs that are shown at first: those of the emphasised curves and near them.

        Simple methods fall so low at small budgets that nothing else could be told apart.
        """
        matter = [p.auc for c in self.curves if c.emphasised for p in c.points]
        matter += [level.auc for level in self.levels]
        matter = matter or [p.auc for c in self.curves for p in c.points]
        below = max(LEAST_SHOWN, 0.5 * (max(matter) - min(matter)))
        best = max(p.auc for p in self._points) if self._points else max(matter)
        return min(matter) - below, max(*matter, best) + 0.1 * below

    @property
    def hidden(self) -> int:
        """Points that lie below what is shown at first."""
        return sum(p.auc < self.shown[0] for p in self._points)

    @property
    def _points(self) -> list[Point]:
        return [p for curve in self.curves for p in curve.points]

    def style(self, curve: Curve) -> tuple[str, str]:
        """Colour and dashes; a curve has the same in both kinds of picture."""
        if curve.emphasised:
            return EMPHASISED, "solid"
        place = [c.name for c in self.curves if not c.emphasised].index(curve.name)
        dashes = DASHES[place // len(COLOURS) % len(DASHES)]
        return COLOURS[place % len(COLOURS)], dashes


def png(picture: Picture, file: Path) -> None:
    """Draw a picture into a PNG file."""
    with replacing(file) as fresh:
        painted(picture).savefig(fresh, dpi=130)


def svg(figure: Any) -> str:
    """The text of an SVG file of a figure of matplotlib; equal figures give equal text."""
    import matplotlib as mpl

    text = StringIO()
    # The salt names the file's parts, which would have random names without it.
    with mpl.rc_context({"svg.hashsalt": "embedcomp", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def painted(picture: Picture) -> Any:
    """The picture as a figure of matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    for curve in picture.curves:
        _draw(axes, curve, *picture.style(curve))
    for number, level in enumerate(picture.levels):
        line = DASHES[1 + number % 2]
        axes.axhline(level.auc, color="grey", linestyle=line, label=str(level))
    below = f" ({_below(picture)})" if picture.hidden else ""
    axes.set(xscale="log", xlabel=f"{BYTES}{below}", ylabel="AUC")
    axes.set(title=picture.title, ylim=picture.shown)
    _size_axis(axes, picture.whole_bytes)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _draw(axes: Any, curve: Curve, colour: str, dashes: str) -> None:
    points = curve.ordered
    axes.errorbar(
        [p.bytes for p in points],
        [p.auc for p in points],
        yerr=[p.spread or 0.0 for p in points],
        label=curve.name,
        color=colour,
        linestyle=dashes,
        linewidth=2.5 if curve.emphasised else 1.2,
        marker="o",
        markersize=7 if curve.emphasised else 4,
        capsize=2,
        zorder=3 if curve.emphasised else 2,
    )


def _size_axis(axes: Any, original_bytes: float) -> None:
    """How many times smaller than the original, above the picture."""
    from matplotlib.ticker import LogLocator

    def times(value: Any) -> Any:
        return original_bytes / np.maximum(value, 1e-9)  # the axis also asks about 0

    above = axes.secondary_xaxis("top", functions=(times, times))
    above.set_xlabel("times smaller than the original")
    for axis, shown in ((axes.xaxis, _size), (above.xaxis, lambda value: f"{value:g}x")):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _, shown=shown: shown(value))
        axis.set_minor_formatter(lambda value, _: "")


def _below(picture: Picture) -> str:
    return f"{picture.hidden} point{'s' if picture.hidden > 1 else ''} below {picture.shown[0]:.4f}"


def _size(value: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g} B"


def html(title: str, pictures: Sequence[Picture], file: Path) -> None:
    """Draw pictures into one HTML file: hover for figures, click a name to hide its curve."""
    from bokeh.embed import file_html
    from bokeh.layouts import column
    from bokeh.resources import INLINE

    page = file_html(column([_figure(p) for p in pictures]), INLINE, title)
    with replacing(file) as fresh:
        fresh.write_text(page)


def _figure(picture: Picture) -> Any:
    from bokeh.models import LogTicker, NumeralTickFormatter, Range1d
    from bokeh.plotting import figure

    lowest, highest = picture.shown
    below = f" ({_below(picture)}: zoom out to see them)" if picture.hidden else ""
    plot = figure(
        title=picture.title,
        width=1100,
        height=620,
        x_axis_type="log",
        y_range=Range1d(start=lowest, end=highest),
        x_axis_label=f"{BYTES}{below}",
        y_axis_label="AUC",
        tools="pan,wheel_zoom,box_zoom,reset,save",
    )
    plot.xaxis.formatter = NumeralTickFormatter(format="0.[0] a")
    plot.xaxis.ticker = LogTicker(mantissas=[1, 2, 5])
    for curve in picture.curves:
        _add(plot, picture, curve)
    for number, level in enumerate(picture.levels):
        line = DASHES[1 + number % 2]
        plot.hspan(y=level.auc, line_color="grey", line_dash=line, legend_label=str(level))
    plot.add_layout(plot.legend[0], "right")
    plot.legend.click_policy = "hide"
    return plot


def _add(plot: Any, picture: Picture, curve: Curve) -> None:
    from bokeh.models import ColumnDataSource, HoverTool

    (colour, dashes), points = picture.style(curve), curve.ordered
    source = ColumnDataSource(
        {
            "bytes": [p.bytes for p in points],
            "auc": [p.auc for p in points],
            "low": [p.auc - (p.spread or 0.0) for p in points],
            "high": [p.auc + (p.spread or 0.0) for p in points],
            "size": [f"{p.bytes:,.0f}, 1/{picture.whole_bytes / p.bytes:.1f}" for p in points],
            "told": [p.note for p in points],
        }
    )
    drawn = {"source": source, "color": colour, "legend_label": curve.name}
    width = 3 if curve.emphasised else 1.5
    plot.line("bytes", "auc", line_dash=dashes, line_width=width, **drawn)
    plot.segment("bytes", "low", "bytes", "high", **drawn)
    dots = plot.scatter("bytes", "auc", size=9 if curve.emphasised else 6, **drawn)
    shown = [("", curve.name), ("AUC", "@auc{0.00000}"), ("bytes", "@size"), ("", "@told")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=shown, visible=False))
