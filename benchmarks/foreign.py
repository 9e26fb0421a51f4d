"""DeepFM and DCN-V2 of FuxiCTR and DeepCTR-Torch: planned, swapped, saved, and scored alone.

    python -m benchmarks.foreign

Each model is built by its library, in an environment with both of them and embedcomp's requirements
(`--peers`); the result has the largest difference between the scorer's probabilities and the
compressed model's own, for calls of 1, 2 and 512 rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import child, result
from benchmarks.script import command, console, parser
from benchmarks.speed import peers
from benchmarks.speed.foreign_steps import METHODS
from benchmarks.speed.task import Task

CLOSE = 1e-6  # of a probability
TOOLS, MODELS = ("fuxictr", "deepctr-torch"), ("deepfm", "dcnv2")


def main() -> None:
    options = _options()
    python = options.python or peers.environment(options.peers, peers.OURS)
    found = {}
    for tool in TOOLS:
        for model in MODELS:
            task = _task(model)
            steps = ["benchmarks.speed.foreign_steps", tool, task.to_json()]
            made = child.run(steps, python=python, threads=task.threads).answer
            largest = max(made["largest_difference"].values())
            made["equal"] = largest <= CLOSE and made["standard_deviation"] > CLOSE
            console.print(tool, model, made)
            found[f"{tool} {model}"] = made
    file = result.write(
        "foreign",
        data={"name": "made up", "rows": 2048},
        settings={"budget": "3x", "methods": METHODS, "close": CLOSE},
        seeds=[0],
        results=found,
        peers=peers.versions(python),
        folder=options.results,
    )
    print(file)


def _task(model: str) -> Task:
    return Task(
        log="",
        folder="",
        model=model,
        hidden=(64, 32),
        dropout=0.1,
        fuxictr_l2=0.0,
        warm_up_steps=0,
        steps=0,
        width=8,
        threads=1,
    )


def _options() -> argparse.Namespace:
    options = parser(__doc__, data=False)
    options.add_argument("--peers", type=Path, default=child.ROOT / "build" / "foreign")
    options.add_argument("--python", type=Path, help="of an environment that is there already")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
