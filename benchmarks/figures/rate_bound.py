"""Figures of `benchmarks.rate_bound`: plans against what rate-distortion theory allows."""

from __future__ import annotations

from benchmarks.figures.markdown import faster, table
from benchmarks.figures.record import Record


def bounds(*records: Record) -> list[str]:
    """Predicted loss of plans of the original and of a student, and the least of any code."""
    rows = []
    for record in records:
        for step, one in record["results"].items():
            way, budget = step.rsplit("-", 1)
            about = [record["data"]["name"], way, budget, f"{one['budget_bytes']:,}"]
            rows.append([*about, f"{one['least_loss']:.1e}", *_of_plan(one)])
    head = ["log", "of", "budget", "bytes", "least", "plan", "plan / least"]
    return table(head, rows, text=(0, 1))


def _of_plan(one: dict[str, float]) -> list[str]:
    if "plan" not in one:
        return ["-", "-"]
    return [f"{one['plan']:.1e}", faster(one["plan"] / one["least_loss"])]
