"""What papers say of forms that are trained, on one log: who beats whom, not by how much.

    python -m benchmarks.shapes --log movielens_1m

From the log, with the same dense part and as many epochs: one pool for all tables against hashing
table by table at equal bytes, with shares of the vocabularies' rows; OptEmbed against its own full
tables; and ROBE in arrays as large as the tables, which is the plain model, as its untrained form
shows to the bit. Magnitude pruning, trained on from the model, is beside each. Figures are those of
the test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks import one_model
from benchmarks.forms import PRUNED, SPLIT, Forms, rendered
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from embedcomp.methods.trained import hashed, robe, unified
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning import planner
from embedcomp.planning.plan import Plan
from embedcomp.recipes.evaluate import evaluate
from embedcomp.sensitivity.layer import TableSpec
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.storage.names import FactorStorage
from embedcomp.swapping import swap
from embedcomp.swapping.heldout import logits

STORAGE: FactorStorage = "float16"  # of shared rows, so that both have the same bytes


class Shapes(Forms):
    """One trained model, and forms of its structure whose settings are written down."""

    @property
    def tables(self) -> dict[str, TableSpec]:
        """Tables that rows can be cut of; those that are 1 wide stay as they are."""
        specs = {n: layer.spec for n, layer in self.original.planning.found.layers.items()}
        return {n: s for n, s in specs.items() if isinstance(s, TableSpec) and s.dim > 1}

    def hashed(self, share: float) -> Plan:
        """So many of each table's rows, which its ids share by a hash."""
        return self._written(hashed.Settings(share=share, storage=STORAGE))

    def unified(self, share: float) -> Plan:
        """One pool as large as the hashed tables together, of which an id reads a row's width."""
        width = self.options.width
        hashed = self.hashed(share)
        kept = hashed.bytes_before - sum(planned.bytes_before for planned in hashed.layers)
        numbers = (hashed.bytes_after - kept) // np.dtype(STORAGE).itemsize
        wanted = {
            name: unified.Settings(
                rows=numbers // width, width=width, chunks=spec.dim // width, storage=STORAGE
            )
            for name, spec in self.tables.items()
        }
        return self._written(wanted)

    def robe(self) -> Plan:
        """Arrays of all of the tables' numbers, in a permuted order."""
        return self._written(robe.Settings(share=1.0, storage="float32"))

    def _written(self, wanted: Any) -> Plan:
        """A plan of the same settings for all tables, or of their own."""
        each = wanted if isinstance(wanted, dict) else dict.fromkeys(self.tables, wanted)
        planning = self.original.planning
        return planner.by_name(planning.model, planning.found, each)

    def trained(self, plan_of: Callable[[Shapes], Plan], name: str, seed: int) -> dict[str, Any]:
        """Figures of a written plan, trained from the log."""
        settings = self.settings(1.0, ("keep",), "log", seed)
        return self.carried_out(plan_of(self), settings, f"{name}-{seed}")

    def pruned(self, name: str, share: float, seed: int) -> dict[str, Any]:
        """Figures of magnitude pruning in the bytes of hashed tables."""
        plan, sizes = self.hashed(share), model_bytes(self.original.planning.model)
        ratio = sizes["tables"] / (plan.bytes_after - sizes["dense"])
        return self.made(name, ratio, "model", seed)

    def permuted(self) -> dict[str, Any]:
        """How far the original's scores are from those of its own numbers in such arrays."""
        planning, held = self.original.planning, self.original.held
        assert held is not None
        made = swap.apply(planning.model, self.robe(), planning.found, Statistics())
        scored = logits(made, held.score, held.inputs)
        return {
            **evaluate(made, self.one.log, self.one.artifact.features, SPLIT),
            "tables": model_bytes(made)["tables"],
            "trained_rows_per_second": [],
            "most_difference": float(np.abs(scored - held.original).max()),
        }


def forms(options: argparse.Namespace, seed: int) -> dict[str, Callable[[Shapes], dict[str, Any]]]:
    """What is made for a seed, by name."""
    made: dict[str, Callable[[Shapes], dict[str, Any]]] = {
        "beside": lambda these: these.beside(seed),
        "full tables": lambda these: these.made("keep", 1.0, "log", seed),
    }

    def written(name: str, plan: Callable[[Shapes], Plan]) -> None:
        made[name] = lambda these: these.trained(plan, name.replace(" ", "-"), seed)

    for share in options.shares:
        written(f"hashed {share:g}", partial(Shapes.hashed, share=share))
        written(f"unified {share:g}", partial(Shapes.unified, share=share))
        for name in PRUNED:
            made[f"{name} {share:g}"] = partial(Shapes.pruned, name=name, share=share, seed=seed)
    for ratio in options.ratios:
        way = {"optembed": "log"} | dict.fromkeys(PRUNED, "model")
        for name in way:
            made[f"{name} {ratio:g}x"] = partial(
                Shapes.made, name=name, ratio=ratio, way=way[name], seed=seed
            )
    if seed == 0:
        made["robe 1x untrained"] = Shapes.permuted
    written("robe 1x", Shapes.robe)
    return made


def main() -> None:
    options = _options()
    names = ("shares", "width", "ratios", "epochs", "train_set", "seeds")
    one = OneModel("shapes", options, {name: getattr(options, name) for name in names})
    shapes = cache(partial(Shapes, one, options))
    found: dict[str, dict[str, Any]] = {}
    for seed in range(options.seeds):
        for name, make in forms(options, seed).items():
            step = f"{name} {seed}"
            found[step] = one.steps.run_of(step.replace(" ", "-"), make, shapes)
            console.print(rendered(found))
    print(one.record(found, seeds=range(options.seeds)))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__)
    made.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.5, 0.1], help="of rows")
    made.add_argument("--width", type=int, default=4, help="of a row of the pool")
    made.add_argument("--ratios", nargs="+", type=float, default=[4.0, 8.0], help="of OptEmbed")
    made.add_argument("--epochs", type=int, default=15, help="of training a form, at most")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--train-set", action="append", default=[], help="a setting of that training")
    return made.parse_args()


if __name__ == "__main__":
    command(main)
