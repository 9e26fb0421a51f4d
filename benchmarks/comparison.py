"""Every method alone and the planned mix of all, at equal bytes, on a real log's test split.

    python -m benchmarks.comparison --log kuairand --part methods budgets tuned models

`methods` compares all methods at 10x for one seed, untuned and after one tuning epoch. `budgets`
compares the best of them untuned at every budget for several seeds, and `tuned` the planned mix
with one tuning epoch against its control. `models` does 5x on each CTR model for one seed, and
`fast` 5x and half the original's time. It goes on where it was stopped; the record holds all that
the work folder has.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.steps import Steps
from embedcomp import models
from embedcomp.compare import results
from embedcomp.compare.report import report, tables
from embedcomp.compare.results import Record
from embedcomp.compare.run import compare
from embedcomp.compare.sections import sections
from embedcomp.recipes.progress import counted
from embedcomp.recipes.settings import CompareSettings
from embedcomp.swapping.settings import TuneSettings

BUDGETS = ("5x", "10x", "20x", "50x", "100x")
MODEL = "dcnv2"
BEST = ("fisher_svd", "frequency_tiers", "low_rank", "low_rank_vq", "product_quantization", "svd")
BEST += ("trellis_coded",)
LEFT_OUT = {"key", "data", "settings", "versions", "machine"}  # of a record: said once for a setup


def parts(options: argparse.Namespace) -> dict[str, CompareSettings]:
    """What each part compares."""
    budgets, seeds = tuple(options.budgets), options.seeds
    one: dict[str, Any] = {"models": (MODEL,), "split": "test"}
    every = CompareSettings(
        models=tuple(options.models),
        budgets=("5x",),
        alone=("low_rank",),
        tune_epochs=(options.tune_epochs,),
        split="test",
    )
    tune = TuneSettings(batch_rows=options.tune_batch)
    return {
        "methods": CompareSettings(
            **one, budgets=("10x",), tune_epochs=(0, 1), alone=options.alone
        ),
        "budgets": CompareSettings(
            **one, budgets=budgets, seeds=seeds, alone=options.alone or BEST
        ),
        "tuned": CompareSettings(
            **one, budgets=budgets, seeds=seeds, tune_epochs=(1,), alone=(), tune=tune
        ),
        "models": every,
        "fast": replace(every, latency_budget="2x@64"),
    }


def setups(records: list[Record]) -> dict[str, dict[str, Any]]:
    """Settings, versions and machine by what records say of their setup and version."""
    return {
        f"{record.setup} {record.versions['embedcomp']}": {
            "settings": {k: v for k, v in record.settings.items() if k != "methods"},
            "versions": record.versions,
            "machine": record.machine,
        }
        for record in records
    }


def told(record: Record) -> dict[str, Any]:
    """A record without what its setup says."""
    version = {"version": record.versions["embedcomp"]}
    return {k: v for k, v in record.model_dump().items() if k not in LEFT_OUT} | version


def main() -> None:
    options = _options()
    log, out = open_log(options.data, options.log), options.work / f"comparison-{options.log}"
    for part in options.part:
        with counted() as progress:
            compare(log, parts(options)[part], out, progress)
    records = results.read(out / results.NAME)
    for table in tables(sections(records)):
        console.print(table)
    report(out)
    file = Steps(out, {}).record(
        f"comparison-{options.log}",
        data=records[0].data,
        settings={"parts": options.part, "setups": setups(records)},
        seeds=sorted({record.seed for record in records}),
        results=[told(record) for record in records],
        folder=options.results,
    )
    print(file)


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    names = ["methods", "budgets", "tuned", "models", "fast"]
    options.add_argument("--log", default="kuairand", help="folder in --data")
    options.add_argument("--part", nargs="*", choices=names, default=names)
    options.add_argument("--budgets", nargs="*", default=BUDGETS)
    options.add_argument(
        "--models", nargs="*", default=models.names(), help="of the last two parts"
    )
    options.add_argument("--tune-epochs", type=int, default=1, help="of the last two parts")
    options.add_argument(
        "--tune-batch", type=int, default=TuneSettings.batch_rows, help="rows, of the part tuned"
    )
    options.add_argument("--seeds", type=int, default=3, help="of the parts budgets and tuned")
    options.add_argument("--alone", nargs="*", help="methods of the first two parts; see above")
    options.add_argument("--work", type=Path, default=WORK, help="folder for the parts' results")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
