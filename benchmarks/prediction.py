"""How well predicted losses rank true ones: options of every layer, swapped in one by one.

    python -m benchmarks.prediction --log kuairand

DCN-V2 is trained with default settings (or taken from the work folder of benchmarks.comparison,
where it is the same one), and `embedcomp measure` swaps 60 options in on validation rows.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import result
from benchmarks.script import WORK, command, console, open_log, parser
from embedcomp import recipes
from embedcomp.compare.cells import ORIGINAL, Cell
from embedcomp.compare.run import Trained
from embedcomp.log.click_log import ClickLog
from embedcomp.recipes.progress import shown
from embedcomp.recipes.settings import CompareSettings, CompressSettings
from embedcomp.swapping.prediction import render, summary
from embedcomp.swapping.settings import CheckSettings

MODEL = "dcnv2"


def measure(log: ClickLog, checking: CheckSettings, models: Path, seed: int) -> dict[str, Any]:
    """What `embedcomp measure` prints."""
    settings = CompareSettings(models=(MODEL,), budgets=("100%",))
    cell = Cell(model=MODEL, seed=seed, method=ORIGINAL)
    with shown() as watch:
        original = Trained(log, settings, cell, models).original(cell, watch)
    batches = recipes.rows_of(original, log, checking.split, checking.rows)
    read, whole = sum(map(len, batches)), CompressSettings(budget="100%")
    measured = recipes.measure(original, log, whole)
    with shown() as watch:
        chosen = recipes.options(original, measured, whole, checking, read, watch)
        found = recipes.check(original, measured, chosen, batches, watch)
    for shown_part in render(found, read, checking.split):
        console.print(shown_part)
    return summary(found, read, checking.split)


def main() -> None:
    options = _options()
    log, checking = open_log(options.data, options.log), CheckSettings(options=options.options)
    models = options.work / f"comparison-{options.log}" / "models"
    file = result.write(
        f"prediction-{options.log}",
        data={"name": options.log, "rows": {split: log.rows(split) for split in log.schema.splits}},
        settings={"model": MODEL, **asdict(checking)},
        seeds=[options.seed],
        results=measure(log, checking, models, options.seed),
        folder=options.results,
    )
    print(file)


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--log", default="kuairand", help="folder in --data")
    options.add_argument("--options", type=int, default=60, help="measured, of all layers together")
    options.add_argument("--seed", type=int, default=0, help="of the training")
    options.add_argument("--work", type=Path, default=WORK, help="folder with the trained models")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
