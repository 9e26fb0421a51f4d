"""Whether a bound on the AUC holds on rows that nobody looked at: predicted, measured and true.

    python -m benchmarks.auc_bound --log kuairand

A model is trained with default settings, compressed within each bound on the decrease of its AUC
(`embedcomp compress --max-auc-loss`), and both are scored on the test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import one_model
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original
from embedcomp.planning.plan import Plan
from embedcomp.recipes.settings import CompressSettings
from embedcomp.swapping.heldout import HeldOut

BOUNDS = (0.0003, 0.001, 0.003)
EVERY_ROW = 10**9


def within(
    bound: float, folder: Path, ready: Callable[[], tuple[Original, HeldOut]]
) -> dict[str, Any]:
    """What one bound gives: figures of the plan, and those of the test split."""
    original, test = ready()
    settings = CompressSettings(max_auc_loss=bound)
    plan = original.plan(settings)
    assert isinstance(plan, Plan), plan
    made = original.compress(plan, settings, folder, recipes.quiet)
    assert isinstance(made, Artifact), made
    carried_out = made.plan
    assert carried_out is not None and carried_out.outcome is not None
    model = made.model()
    true, quality = test.compared(model)
    return {
        "times_smaller": plan.bytes_before / plan.bytes_after,
        "predicted_auc_loss": plan.auc_loss,
        "measured": asdict(carried_out.outcome),
        "true_auc_loss": true.auc_loss,
        "true_auc_error": true.auc_error,
        "calibration": quality.calibration,
        "original_calibration": test.quality.calibration,
    }


def rendered(found: dict[str, dict[str, Any]]) -> Table:
    table = Table("bound", "size", "predicted", "measured", "true", "calibration")
    for bound, one in found.items():
        measured = one["measured"]
        table.add_row(
            bound,
            f"1/{one['times_smaller']:.1f}",
            f"{-one['predicted_auc_loss']:+.5f}",
            f"{-measured['auc_loss']:+.5f} ± {measured['auc_error']:.5f}",
            f"{-one['true_auc_loss']:+.5f} ± {one['true_auc_error']:.5f}",
            f"{one['calibration'] / one['original_calibration']:.4f}",
        )
    return table


def main() -> None:
    options = _options()
    one, found = OneModel("auc_bound", options, {"bounds": options.bounds}), {}

    @cache
    def ready() -> tuple[Original, HeldOut]:
        settings = CompressSettings(max_auc_loss=options.bounds[0])
        return Original.measure(one.artifact, one.log, settings), one.test_rows()

    for bound in options.bounds:
        work = partial(within, bound, one.folder / f"{bound:g}", ready)
        found[f"{bound:g}"] = one.steps.run(f"bound-{bound:g}", work)
        console.print(rendered(found))
    print(one.record(found))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__)
    made.add_argument("--bounds", type=_bounds, default=BOUNDS, help="comma-separated")
    return made.parse_args()


def _bounds(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    command(main)
