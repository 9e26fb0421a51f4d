"""What `embedcomp load` found, as tables and as pictures of latency over load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from embedcomp.errors import BadSettings
from embedcomp.support.files import replacing

DRAWN_BY = ("matplotlib", "bokeh")
CURVES = {  # colours of what is drawn
    "p50": "#1f77b4",
    "p90": "#2ca02c",
    "p99": "#ff7f0e",
    "p99.9": "#d62728",
    "max": "#7f7f7f",
}
HEAD = ("rate", "sent", "answered", "failed", "calls/s", "rows/s", *CURVES, "sent late, p99")
FAILED_HEAD = ("rate", "status", "calls", *CURVES)
CLOSED = "closed loop"
LATENCY, LOAD = "latency in ms", "calls a second that were scheduled"
OPEN_NOTE = (
    "Latency is in ms and counts from the time at which a call was due; the times are those of a "
    "Poisson process."
)
CLOSED_NOTE = (
    "Latency is in ms and counts from when a call was sent, which was as soon as one before was "
    "answered: a slow server is sent less."
)
NONE = "-"


def render(found: Mapping[str, Any]) -> list[RenderableType]:
    """For a person at a terminal: a row a run, and what failed."""
    shown: list[RenderableType] = [_rich(_title(found), HEAD, _figures(found))]
    if failures := _failures(found):
        shown.append(_rich("Calls that failed, and their ms to the status", FAILED_HEAD, failures))
    return [*shown, _note(found)]


def refuse_undrawable() -> None:
    """Raises BadSettings where pictures cannot be drawn, before anything is timed."""
    missing = [name for name in DRAWN_BY if find_spec(name) is None]
    if missing:
        raise BadSettings(
            f"--out draws pictures by {' and '.join(missing)}, which is not installed; "
            "run `pip install 'embedcomp[report]'`, or leave --out out"
        )


def report(found: Mapping[str, Any], out: Path) -> list[Path]:
    """Write load.md, load.png and load.html into a folder."""
    text, picture, page = (out / f"load.{end}" for end in ("md", "png", "html"))
    with replacing(text) as fresh:
        fresh.write_text(_markdown(found))
    with replacing(picture) as fresh:
        _painted(found).savefig(fresh, dpi=130)
    with replacing(page) as fresh:
        fresh.write_text(_page(found))
    return [text, picture, page]


def _title(found: Mapping[str, Any]) -> str:
    asked = found["requests"]
    return (
        f"{found['model']} {found['version']} at {found['target']}: {asked['candidates']:,} "
        f"candidates a call, {asked['mean_bytes']:,.0f} bytes"
    )


def _note(found: Mapping[str, Any]) -> str:
    return CLOSED_NOTE if found["runs"][0]["rate"] is None else OPEN_NOTE


def _figures(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            _rate(run),
            *(f"{run[name]:,}" for name in ("sent", "answered")),
            f"{sum(run['failed'].values()):,}",
            *(f"{run[name]:,.1f}" for name in ("calls_per_second", "rows_per_second")),
            *_times(run["latency_ms"], CURVES),
            *_times(run["late_ms"], ["p99"]),
        ]
        for run in found["runs"]
    ]


def _failures(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [_rate(run), status, f"{calls:,}", *_times(run["failed_ms"][status], CURVES)]
        for run in found["runs"]
        for status, calls in run["failed"].items()
    ]


def _rate(run: Mapping[str, Any]) -> str:
    return CLOSED if run["rate"] is None else f"{run['rate']:g}"


def _times(
    summary: Mapping[str, float] | None, names: Sequence[str] | Mapping[str, str]
) -> list[str]:
    return [NONE if summary is None else f"{summary[name]:,.2f}" for name in names]


def _rich(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for name in head:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(found: Mapping[str, Any]) -> str:
    parts = [f"# {_title(found)}", _note(found), _pipes(HEAD, _figures(found))]
    if failures := _failures(found):
        parts += ["Calls that failed, and their ms to the status:", _pipes(FAILED_HEAD, failures)]
    return "\n\n".join(parts) + "\n"


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _points(found: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Calls a second, and a percentile at each in milliseconds, where calls were answered."""
    runs = [run for run in found["runs"] if run["latency_ms"] is not None]
    places = [run["rate"] or run["calls_per_second"] for run in runs]
    ordered = sorted(zip(places, (run["latency_ms"][name] for run in runs), strict=True))
    return [place for place, _ in ordered], [ms for _, ms in ordered]


def _painted(found: Mapping[str, Any]) -> Any:
    """Latency over load as a figure of matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, colour in CURVES.items():
        axes.plot(*_points(found, name), label=name, color=colour, marker="o")
    axes.set(title=_title(found), xlabel=LOAD, ylabel=LATENCY, yscale="log")
    axes.set_xlim(left=0)
    for shown in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        shown(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure


def _page(found: Mapping[str, Any]) -> str:
    """The same as one HTML file: hover for figures, click a name to hide its curve."""
    from bokeh.embed import file_html
    from bokeh.models import NumeralTickFormatter
    from bokeh.plotting import figure
    from bokeh.resources import INLINE

    plot = figure(
        title=_title(found),
        width=1000,
        height=560,
        x_axis_label=LOAD,
        y_axis_label=LATENCY,
        y_axis_type="log",
        tools="pan,wheel_zoom,box_zoom,reset,save",
    )
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[00]")
    for name, colour in CURVES.items():
        _add(plot, name, colour, *_points(found, name))
    plot.add_layout(plot.legend[0], "right")
    plot.legend.click_policy = "hide"
    page: str = file_html(plot, INLINE, "embedcomp load")
    return page


def _add(plot: Any, name: str, colour: str, places: list[float], times: list[float]) -> None:
    from bokeh.models import ColumnDataSource, HoverTool

    source = ColumnDataSource({"calls": places, "ms": times})
    drawn = {"source": source, "color": colour, "legend_label": name}
    plot.line("calls", "ms", line_width=2, **drawn)
    dots = plot.scatter("calls", "ms", size=8, **drawn)
    shown = [("", name), ("calls/s", "@calls{0,0.0}"), ("ms", "@ms{0,0.00}")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=shown, visible=False))
