"""The low-rank paper's setting: whether its compressed models score better, and faster.

    python -m benchmarks.born_again --log kuairand

As arXiv 2405.18146 publishes them, for each model: tables and layers of low rank with the network's
activation between the factors, the first hidden layers whole, floats, tuned. Beside it are the same
ranks without that activation, which is exact, the original trained on for as long, and one of its
size that it has taught from the start. Every layer keeps one share of its numbers in a row, the
largest within the budget, as 16 columns became 2 and rank 64 of 400; where first hidden layers
leave no room they are of low rank as well, and it says so. Figures are those of the test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import product
from typing import Any

from rich.table import Table

from benchmarks import one_model
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from embedcomp import models, recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.compare.original import Original, score
from embedcomp.methods import low_rank
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning import planner
from embedcomp.planning.plan import Plan
from embedcomp.recipes.settings import CompressSettings, read_changes, validated
from embedcomp.sensitivity.layer import Spec, TableSpec
from embedcomp.swapping import swap
from embedcomp.swapping.settings import TuneSettings

SPLIT = "test"
FIRST = ("deep_in.linear", "deep.0", "top.0", "bottom.0")  # hidden layers that read the inputs
SHARES = [k / 16 for k in range(15, 0, -1)]
BESIDE = ("original", "control", "born_again")


class Paper:
    """One model of one seed, and what the paper makes of it."""

    def __init__(self, one: OneModel, model: str, seed: int):
        self.one, self.seed = one, seed
        self.place = one.folder / model / str(seed)
        self.source = ModelSource(model=model, settings={}).complete()
        self.artifact = one.trained(self.place / "original", self.source, seed=seed)

    @cached_property
    def original(self) -> Original:
        return Original.measure(self.artifact, self.one.log, self.settings)

    @property
    def settings(self) -> CompressSettings:
        known = {"epochs": self.one.given.tune_epochs, "seed": self.seed}
        tune = validated(TuneSettings, read_changes(self.one.given.tune_set, known), "--tune-set")
        return CompressSettings(budget="1x", tune=tune)

    def beside(self, name: str) -> dict[str, Any]:
        """Figures of a model of the original's size."""
        place = self.place / name
        if name == "born_again":  # from other numbers than its teacher began with
            made = self.one.trained(place, self.source, self.artifact, seed=self.seed + 1)
        elif name == "control":
            made = recipes.control(self.artifact, self.one.log, self.settings, place)
        else:
            made = self.artifact
        return self._figures(made)

    def compressed(self, ratio: float, activation: bool) -> dict[str, Any]:
        """Figures of the paper's form, or of the exact one of the same ranks."""
        most = model_bytes(self.original.planning.model)["total"] / ratio
        for whole, share in product((True, False), SHARES):
            if self.plan(share, whole, True).bytes_after <= most:
                break
        else:
            return {"reason": f"no ranks keep to {most:,.0f} bytes"}
        name = f"{ratio:g}x-{'activated' if activation else 'exact'}"
        plan = self.plan(share, whole, activation)
        made = self.original.compress(plan, self.settings, self.place / name, recipes.quiet)
        if isinstance(made, str):
            return {"reason": made}
        return self._figures(made) | {"share": share, "first_hidden_whole": whole}

    @cache  # noqa: B019
    def plan(self, share: float, whole: bool, activation: bool) -> Plan:
        """Low rank at this share of the full rank, and what does not become smaller as it is."""
        planning = self.original.planning
        wanted = {
            name: "keep"
            if whole and name in FIRST
            else _settings(layer.spec, share, activation and name not in FIRST)
            for name, layer in planning.found.layers.items()
        }
        plan = planner.by_name(planning.model, planning.found, wanted)
        single = tuple(sorted(feature.name for feature in self.artifact.features.single))
        return _folded(self.original, replace(plan, single_valued=single))

    def _figures(self, made: Artifact) -> dict[str, Any]:
        return score(made, self.one.log, SPLIT)


def _settings(spec: Spec, share: float, activation: bool) -> Any:
    """Low rank where two factors are smaller than the layer."""
    if isinstance(spec, TableSpec):
        inputs, outputs, between = spec.rows, spec.dim, False
    else:
        inputs, outputs = spec.inputs, spec.outputs
        between = activation and spec.activation is not None
    rank = max(1, round(share * min(inputs, outputs)))
    if rank * (inputs + outputs) >= inputs * outputs:
        return "keep"
    return low_rank.Settings(rank=rank, activation=between)


def _folded(original: Original, plan: Plan) -> Plan:
    """A plan of layers by themselves, with their sizes once decoders are folded into readers."""
    made = swap.empty_like(swap.on_meta(original.planning.model), plan)
    layers = tuple(
        replace(one, bytes_after=model_bytes(made.get_submodule(one.layer))["total"])
        for one in plan.layers
    )
    size = model_bytes(made)["total"]
    return replace(plan, layers=layers, bytes_after=size, budget_bytes=size)


def rendered(found: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("model", "bytes", "test AUC", "log loss", "rows/s at 1", "64", "1,024", "share")
    for name, one in found.items():
        if "reason" in one:
            table.add_row(name, one["reason"])
            continue
        speeds = (f"{one['rows_per_second'][rows]:,.0f}" for rows in ("1", "64", "1024"))
        share = f"{one['share']:g}" if "share" in one else ""
        if not one.get("first_hidden_whole", True):
            share += ", of first layers too"
        size = f"{one['bytes']['total']:,}"
        table.add_row(name, size, f"{one['auc']:.5f}", f"{one['logloss']:.5f}", *speeds, share)
    return table


def main() -> None:
    options = _options()
    names = ("ratios", "tune_epochs", "tune_set", "seeds")
    one = OneModel("born_again", options, {name: getattr(options, name) for name in names})
    found: dict[str, dict[str, Any]] = {}
    for seed, model in product(range(options.seeds), options.model):
        paper = cache(partial(Paper, one, model, seed))
        for name, make in forms(options).items():
            step = f"{model}-{name}-{seed}"
            found[step] = one.steps.run_of(step, make, paper)
            console.print(rendered(found))
    print(one.record(found, seeds=range(options.seeds)))


def forms(given: argparse.Namespace) -> dict[str, Callable[[Paper], dict[str, Any]]]:
    """What stands beside each other for a model, by name."""
    made: dict[str, Callable[[Paper], dict[str, Any]]] = {
        name: partial(Paper.beside, name=name) for name in BESIDE
    }
    for ratio, activation in product(given.ratios, (True, False)):
        name = f"{ratio:g}x-{'activated' if activation else 'exact'}"
        made[name] = partial(Paper.compressed, ratio=ratio, activation=activation)
    return made


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__, log="kuairand", models=models.names())
    made.add_argument("--ratios", nargs="+", type=float, default=[3.0, 5.0], help="of all bytes")
    made.add_argument("--tune-epochs", type=int, default=1)
    made.add_argument("--tune-set", action="append", default=[], help="a setting of tuning")
    made.add_argument("--seeds", type=int, default=1)
    return made.parse_args()


if __name__ == "__main__":
    command(main)
