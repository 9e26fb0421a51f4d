"""Seconds that each solver takes for a plan of 1,000 layers with 60 options each.

    python -m benchmarks.solvers

The layers are made up: the sizes of their tables, the decay of their spectra and what they matter
to the loss span orders of magnitude, and options are ranks in several bits, with the loss of the
ranks left out and of rounding. Solvers take turns; HiGHS is the peer. WeLore and FARMS are not
here, since their time is that of the weights' spectra.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import result
from benchmarks.script import command, console, parser
from embedcomp.planning.choices import (
    Choice,
    Chosen,
    total_bytes,
    total_loss,
)
from embedcomp.planning.solvers import exact, greedy, highs

SOLVERS = {"exact": exact, "highs": highs, "greedy": greedy}
SHARES = (0.5, 0.1, 0.02)  # of the uncompressed bytes
BITS = (2, 3, 4, 8, 16)
Options = dict[str, list[Choice]]


def main() -> None:
    options = _options()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SOLVERS}
    for seed in options.seeds:
        layers = make(options.layers, options.choices, seed)
        whole = sum(max(choice.bytes for choice in found) for found in layers.values())
        for share in SHARES:
            for name, solver in SOLVERS.items():
                run = _run(solver, layers, int(share * whole))
                runs[name].append({"seed": seed, "share": share, **run})
    found = _summary(runs)
    console.print(_render(found))
    file = result.write(
        "solvers",
        data={"made_up": True, "layers": options.layers, "choices": options.choices},
        settings={"shares": SHARES, "bits": BITS, "highs_seconds": highs.SECONDS},
        seeds=options.seeds,
        results=found,
        peers=result.versions(["scipy"]),
        folder=options.results,
    )
    print(file)


def make(layers: int, choices: int, seed: int) -> Options:
    """Layers with `choices` options each, the last of them to keep the layer as it is."""
    rng = np.random.default_rng(seed)
    return {str(layer): _layer(rng, choices) for layer in range(layers)}


def _layer(rng: np.random.Generator, choices: int) -> list[Choice]:
    rows, dim = int(10 ** rng.uniform(2, 6)), int(rng.choice([8, 16, 32, 64]))
    matters, decay = 10 ** rng.uniform(-7, -1), rng.uniform(0.6, 5)
    spectrum = matters * np.arange(1, dim + 1) ** -decay * rng.lognormal(0, 0.3, dim)
    left_out = np.append(np.cumsum(spectrum[::-1])[::-1], 0)  # [dim + 1], by rank
    ranks, bits = rng.integers(1, dim + 1, choices - 1), rng.choice(BITS, choices - 1)
    found = []
    for rank, width in zip(ranks.tolist(), bits.tolist(), strict=True):
        rounding = 0.1 * matters * 4.0**-width * rng.lognormal(0, 0.2)
        size = -(-rows * rank * width // 8) + 2 * rank * dim + 8 * rank
        found.append(Choice("low_rank", (rank, width), size, float(left_out[rank] + rounding)))
    return [*found, Choice("keep", None, 4 * rows * dim, 0.0)]


def _run(solver: ModuleType, layers: Options, limit: int) -> dict[str, Any]:
    """Both questions: the least loss within a budget, then the fewest bytes of that loss."""
    began = perf_counter()
    found: Chosen = solver.least_loss(layers, limit)
    between = perf_counter()
    dual: Chosen = solver.least_bytes(layers, total_loss(found))
    return {
        "seconds": between - began,
        "dual_seconds": perf_counter() - between,
        "loss": total_loss(found),
        "bytes": total_bytes(found),
        "dual_bytes": total_bytes(dual),
    }


def _summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, made in runs.items():
        pairs = list(zip(made, runs["highs"], strict=True))
        found[name] = {
            "seconds": median(run["seconds"] for run in made),
            "most_seconds": max(run["seconds"] for run in made),
            "dual_seconds": median(run["dual_seconds"] for run in made),
            "most_dual_seconds": max(run["dual_seconds"] for run in made),
            "times_faster_than_highs": median(p["seconds"] / r["seconds"] for r, p in pairs),
            "most_loss_against_highs": max(r["loss"] / p["loss"] - 1 for r, p in pairs),
            "runs": made,
        }
    return found


def _render(found: dict[str, Any]) -> Table:
    table = Table("solver")
    for column in ("seconds", "most", "dual", "most", "against HiGHS", "worst loss against it"):
        table.add_column(column, justify="right")
    for name, made in found.items():
        table.add_row(
            name,
            f"{made['seconds']:.2f}",
            f"{made['most_seconds']:.2f}",
            f"{made['dual_seconds']:.2f}",
            f"{made['most_dual_seconds']:.2f}",
            f"{made['times_faster_than_highs']:.1f}x",
            f"{made['most_loss_against_highs']:+.1e}",
        )
    return table


def _options() -> argparse.Namespace:
    options = parser(__doc__, data=False)
    options.add_argument("--layers", type=int, default=1000)
    options.add_argument("--choices", type=int, default=60)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return options.parse_args()


if __name__ == "__main__":
    command(main)
