"""The report of a comparison: tables in Markdown, pictures as PNG and HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from embedcomp.compare import results
from embedcomp.compare.cells import CONTROL, ORIGINAL, PLANNED
from embedcomp.compare.pictures import Curve, Level, Picture, Point, html, png
from embedcomp.compare.results import Record
from embedcomp.compare.sections import Group, Section, Spread, sections
from embedcomp.errors import BadResults
from embedcomp.recipes.evaluate import SPEED_BATCHES
from embedcomp.support.files import replacing

BATCHES = tuple(str(n) for n in SPEED_BATCHES)
LARGEST = BATCHES[-1]
LEFT_OUT = ("seeds", *(f"rows/s at {n}" for n in BATCHES[:-1]))  # on a terminal
NONE = "-"
AGAINST = "The planned mix against the best single method"

READING = (
    "Figures are means over seeds. The std is the sample standard deviation over seeds; that of a "
    "difference is of the differences seed by seed. The control is the original, trained on labels "
    "for the epochs that the compressed models were trained and tuned for. The planned mix is "
    "better or worse than the best single method where their mean AUCs differ by more than the AUC "
    "of either spreads over seeds (by its std). Layers that a method cannot take at all are "
    "compressed by the methods in the setting `rest`."
)

Cells = list[list[str]]


def report(out: Path) -> list[Path]:
    """Write report.md, report.html and a PNG a section beside a comparison's results.

    Raises:
        BadResults: there are no results, or one cannot be read.
    """
    records = results.read(out / results.NAME)
    if not records:
        raise BadResults(f"{out} has no {results.NAME}; run `embedcomp compare LOG --out` first")
    found = sections(records)
    drawn = [section for section in found if _points(section)]
    files = [out / f"{_file_name(section)}.png" for section in drawn]
    for section, file in zip(drawn, files, strict=True):
        png(picture(section), file)
    written = [out / "report.md"]
    with replacing(written[0]) as fresh:
        fresh.write_text(markdown(found, records))
    if drawn:
        html("embedcomp compare", [picture(s) for s in drawn], out / "report.html")
        written.append(out / "report.html")
    return [*written, *files]


def markdown(found: Sequence[Section], records: Sequence[Record]) -> str:
    """The report's text."""
    parts = ["# Comparison", _provenance(records)]
    for section in found:
        parts += _section(section)
    parts += _models(found)
    return "\n\n".join(parts) + "\n"


def tables(found: Iterable[Section]) -> list[RenderableType]:
    """For a person at a terminal: the main figures of every section, and the verdicts."""
    shown: list[RenderableType] = []
    for section in found:
        head, rows = figures(section)
        main = [place for place, name in enumerate(head) if name not in LEFT_OUT]
        narrow = [[row[place] for place in main] for row in rows]
        title = f"{section.title}, {section.split} split"
        shown += [_rich(title, [head[place] for place in main], narrow)]
        shown += [_rich(AGAINST, *verdicts(section))]
    return shown


def figures(section: Section) -> tuple[list[str], Cells]:
    """Every method at every budget, with the original and the control first."""
    head = ["budget", "method", "seeds", "bytes", "size", "AUC", "std", "log loss"]
    head += [f"AUC - {section.reference}", "std", *(f"rows/s at {n}" for n in BATCHES)]
    keys = [(ORIGINAL, ""), (CONTROL, "")]
    keys += [(method, budget) for budget in section.budgets for method in section.methods]
    present = [key for key in keys if section.group(*key).records]
    return head, [_figures(section, *key) for key in present]


def verdicts(section: Section) -> tuple[list[str], Cells]:
    """The planned mix and the best single method at every budget."""
    head = ["budget", "planned AUC", "best single method", "its AUC", "difference"]
    head += ["its std", "spread of AUC over seeds", "planned is"]
    rows = []
    for budget in section.budgets:
        verdict = section.verdict(budget)
        if verdict is None:
            rows.append([budget, *[NONE] * 6, "not told: a cell is missing or could not be made"])
            continue
        planned, best = section.group(PLANNED, budget), section.group(verdict.best, budget)
        row = [budget, _auc(planned.auc), verdict.best, _auc(best.auc)]
        row += [_signed(verdict.difference), _std(verdict.difference)]
        rows.append([*row, _number(verdict.spread, ".5f"), str(verdict)])
    return head, rows


def picture(section: Section) -> Picture:
    """AUC over bytes of every method; the planned mix stands out."""
    curves = [
        Curve(method, points, emphasised=method == PLANNED)
        for method, points in _points(section).items()
    ]
    levels = [(name, section.group(name)) for name in (ORIGINAL, CONTROL)]
    return Picture(
        title=f"{section.title}, {section.split} split",
        curves=curves,
        levels=[Level(name, group.auc.mean) for name, group in levels if group.made],
        whole_bytes=section.group(ORIGINAL).bytes,
    )


def _points(section: Section) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    if not section.group(ORIGINAL).made:
        return found
    for method in section.methods:
        groups = [(budget, section.group(method, budget)) for budget in section.budgets]
        points = [_point(budget, group) for budget, group in groups if group.made]
        if points:
            found[method] = points
    return found


def _point(budget: str, group: Group) -> Point:
    rows = _number(group.rows_per_second(LARGEST), ",.0f")
    note = f"budget {budget}, {len(group.seeds)} seeds, log loss {group.logloss:.5f}, {rows} rows/s"
    return Point(group.bytes, group.auc.mean, group.auc.std, note)


def _section(section: Section) -> list[str]:
    head, rows = figures(section)
    emphasised = [[f"**{c}**" if PLANNED in row else c for c in row] for row in rows]
    parts = [f"## {section.title} ({section.split} split)", _markdown(head, emphasised)]
    failed = {key: group.reasons for key, group in section.groups.items() if group.reasons}
    if failed:
        lines = [f"- {m} at {b}: {'; '.join(reasons)}" for (m, b), reasons in failed.items()]
        parts.append("Not made:\n\n" + "\n".join(lines))
    if _points(section):
        name = _file_name(section)
        parts.append(f"![AUC over bytes]({name}.png)")
    if section.budgets:
        over = ", ".join(section.planned_over) or "no methods yet"
        parts += [f"### {AGAINST}", f"Planned over {over}.", _markdown(*verdicts(section))]
    return parts


def _models(found: Sequence[Section]) -> list[str]:
    """One table a budget, in which every model is a row."""
    if len({section.model for section in found}) < 2:
        return []
    budgets = list(dict.fromkeys(budget for section in found for budget in section.budgets))
    parts = ["## All models, planned mix"]
    for budget in budgets:
        head = ["model", "log", "epochs", "AUC of original", "of control", "of planned mix"]
        head += ["AUC - reference", "std", "bytes", "size", f"rows/s at {LARGEST}", "times as fast"]
        able = [section for section in found if section.group(PLANNED, budget).made]
        parts += [f"### At {budget}", _markdown(head, [_of_model(s, budget) for s in able])]
    return parts


def _of_model(section: Section, budget: str) -> list[str]:
    original, control = section.group(ORIGINAL), section.group(CONTROL)
    planned = section.group(PLANNED, budget)
    difference = planned.minus(section.group(section.reference))
    aucs = [_auc(group.auc) if group.made else NONE for group in (original, control, planned)]
    row = [section.model, section.log, section.trained, *aucs]
    row += [_signed(difference), _std(difference), f"{planned.bytes:,.0f}"]
    rows = planned.rows_per_second(LARGEST)
    faster = rows / original.rows_per_second(LARGEST) if original.made else float("nan")
    return [*row, _times(original, planned), _number(rows, ",.0f"), _number(faster, ".2f")]


def _figures(section: Section, method: str, budget: str) -> list[str]:
    group = section.group(method, budget)
    row = [budget or NONE, method, str(len(group.seeds))]
    if not group.made:
        return [*row, *[NONE] * (7 + len(BATCHES))]
    difference = group.minus(section.group(section.reference))
    row += [f"{group.bytes:,.0f}", _times(section.group(ORIGINAL), group)]
    row += [_auc(group.auc), _std(group.auc), _number(group.logloss, ".5f")]
    row += [_signed(difference), _std(difference)]
    return [*row, *(_number(group.rows_per_second(n), ",.0f") for n in BATCHES)]


def _provenance(records: Sequence[Record]) -> str:
    """From when the results are, on what and with what they were made."""
    days = sorted(record.date[:10] for record in records)
    machines = dict.fromkeys(f"{r.machine['cpu']}, {r.machine['cores']} cores" for r in records)
    versions = dict.fromkeys(str(r.versions["embedcomp"]) for r in records)
    return (
        f"{len(records):,} results from {days[0]} to {days[-1]}, by embedcomp "
        f"{', '.join(versions)}, on {'; '.join(machines)}; {results.NAME} has everything else.\n\n"
        f"{READING}"
    )


def _file_name(section: Section) -> str:
    setup, epochs = section.records[0].setup[:6], section.epochs
    form = f"{epochs.form[:6]}-" if epochs.train else ""
    name = f"{section.log}-{section.model}-{section.trained}-{form}{section.split}-{setup}"
    return re.sub(r"[^\w.-]", "-", name)


def _markdown(head: Sequence[str], rows: Cells) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rich(title: str, head: Sequence[str], rows: Cells) -> Table:
    table = Table(title=title)
    for name in head:
        words = name in ("budget", "method", "best single method", "planned is")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row, style="bold" if PLANNED in row else None)
    return table


def _times(original: Group, group: Group) -> str:
    return f"1/{original.bytes / group.bytes:.1f}" if original.made and group.made else NONE


def _auc(figure: Spread) -> str:
    return f"{figure.mean:.5f}"


def _signed(figure: Spread | None) -> str:
    return NONE if figure is None else f"{figure.mean:+.5f}"


def _std(figure: Spread | None) -> str:
    return NONE if figure is None else _number(figure.std, ".5f")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None or isnan(value) else format(value, form)
