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

from benchmarks import result
from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.steps import Steps
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.compare.original import Original
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.planning.plan import Plan
from embedcomp.recipes.progress import shown
from embedcomp.recipes.settings import CompressSettings, read_changes, validated
from embedcomp.sensitivity.statistics import score_batch
from embedcomp.swapping.heldout import HeldOut
from embedcomp.train.settings import TrainSettings

BOUNDS = (0.0003, 0.001, 0.003)
EVERY_ROW = 10**9


def trained(log: ClickLog, options: argparse.Namespace, folder: Path) -> Artifact:
    """The original, trained unless it is there already."""
    if folder.is_dir() and any(folder.glob("*/manifest.json")):
        return Artifact.open(folder)
    found = count(log, log.pieces("train"))
    features = Features.from_counts(log, found, options.min_count)
    settings = validated(TrainSettings, read_changes(options.set), "--set")
    source = ModelSource(model=options.model, settings={}).complete()
    with shown("training") as watch:
        return recipes.train(log, features, source, settings, folder, watch=watch)


def test_rows(original: Original) -> HeldOut:
    """All rows of the test split."""
    opened = original.artifact
    rows = recipes.rows_of(opened, original.log, "test", EVERY_ROW)
    pairs = ((batch, batch.labels) for batch in rows)
    return HeldOut.of(opened.model(), pairs, score_batch, "test")


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
    log = open_log(options.data, options.log)
    settings = {
        "model": options.model,
        "min_count": options.min_count,
        "train": options.set,
        "bounds": options.bounds,
    }
    folder = options.work / f"auc-bound-{options.log}"
    steps, found = Steps(folder, settings), {}

    @cache
    def ready() -> tuple[Original, HeldOut]:
        opened = trained(log, options, options.trained or folder / "model")
        original = Original.measure(opened, log, CompressSettings(max_auc_loss=options.bounds[0]))
        return original, test_rows(original)

    for bound in options.bounds:
        work = partial(within, bound, folder / f"{bound:g}", ready)
        found[f"{bound:g}"] = steps.run(f"bound-{bound:g}", work)
        console.print(rendered(found))
    file = result.write(
        f"auc_bound-{options.log}",
        data={"name": options.log, "rows": {split: log.rows(split) for split in log.schema.splits}},
        settings=settings,
        seeds=[0],
        results=found,
        folder=options.results,
    )
    print(file)


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--log", default="movielens_1m", help="its folder's name")
    made.add_argument("--model", default="dcnv2", help="of embedcomp")
    made.add_argument("--min-count", type=int, default=2, help="ids seen fewer times share a row")
    made.add_argument("--set", action="append", default=[], help="a setting of the trainer")
    made.add_argument("--bounds", type=_bounds, default=BOUNDS, help="comma-separated")
    made.add_argument("--trained", type=Path, help="folder of an original that is there already")
    made.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    return made.parse_args()


def _bounds(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    command(main)
