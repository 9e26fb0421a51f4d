"""Figures of `benchmarks.own_tables`: tables in any order beside those of a click log."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record

HEAD = ("budget", "tables", "smaller", "test AUC", "AUC - original", "methods of tables")


def ways(record: Record) -> list[str]:
    """What each way of compressing gives at each budget."""
    rows = []
    for name, made in record["results"].items():
        budget, whose = name.split()
        methods = (f"{method} {number}" for method, number in made["table_methods"].items())
        rows.append(
            [
                budget,
                {"log": "in order of count", "user": "in any order"}[whose],
                f"{made['times_smaller']:.1f}x",
                f"{made['auc']:.5f}",
                f"{-made['auc_loss']:+.5f} ± {made['auc_error']:.5f}",
                ", ".join(methods),
            ]
        )
    return table(HEAD, rows, text=(0, 1, 5))
