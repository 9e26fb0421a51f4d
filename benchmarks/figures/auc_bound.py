"""Figures of `benchmarks.auc_bound`: what bounds give, predicted, measured and true."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record

HEAD = ("log", "bound", "smaller", "predicted", "measured, validation", "true, test")


def bounds(*records: Record) -> list[str]:
    """Differences of the AUC from the original's, and mean scores over the original's."""
    rows = []
    for record in records:
        for bound, made in record["results"].items():
            measured = made["measured"]
            rows.append(
                [
                    record["data"]["name"],
                    bound,
                    f"{made['times_smaller']:.1f}x",
                    _difference(made["predicted_auc_loss"]),
                    _difference(measured["auc_loss"], measured["auc_error"]),
                    _difference(made["true_auc_loss"], made["true_auc_error"]),
                    f"{made['calibration'] / made['original_calibration']:.4f}",
                ]
            )
    return table([*HEAD, "calibration"], rows)


def _difference(loss: float, error: float | None = None) -> str:
    return f"{-loss:+.5f}" + ("" if error is None else f" ± {error:.5f}")
