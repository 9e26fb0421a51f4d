"""Whether a user's own torchrec tables, in any order, compress as well as those of a click log.

    python -m benchmarks.own_tables --log movielens_1m

`embedcomp compress` knows how often every id of its log is looked up, and has its tables in that
order. The same trained model is taken as one that is nobody's but the user's: the rows of every
table are permuted, `embedcomp.plan` gets batches of permuted ids, and `swap_` carries the plan out.
Both are held against the original on the test split, untuned.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from benchmarks import one_model
from benchmarks.one_model import EVERY_ROW, OneModel
from benchmarks.script import command, console
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original
from embedcomp.log.batches import Batch
from embedcomp.planning.plan import Plan
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.statistics import score_batch
from embedcomp.swapping.heldout import HeldOut

Orders = Mapping[str, Tensor]  # of a feature: the id that each of its ids becomes


def permute_(model: nn.Module, seed: int) -> Orders:
    """Put the rows of every table into a random order, the same for tables of one feature."""
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, Tensor] = {}
    for collection in model.modules():
        if isinstance(collection, EmbeddingBagCollection):
            for config in collection.embedding_bag_configs():
                (feature,) = config.feature_names
                weight = collection.embedding_bags[config.name].weight
                if feature not in orders:
                    orders[feature] = torch.randperm(len(weight), generator=generator)
                with torch.no_grad():
                    weight[orders[feature]] = weight.clone()
    return orders


def permuted(batches: Iterable[Batch], orders: Orders) -> Iterator[tuple[Batch, Tensor]]:
    """Batches with the ids that a permuted model knows, and their labels."""
    for batch in batches:
        keys, ends = batch.sparse.keys(), batch.sparse.offset_per_key()
        values = batch.sparse.values()
        found = [orders[key][values[a:b]] for key, a, b in zip(keys, ends, ends[1:], strict=False)]
        sparse = KeyedJaggedTensor(keys, torch.cat(found), lengths=batch.sparse.lengths())
        yield replace(batch, sparse=sparse), batch.labels


def quality(plan: Plan, test: HeldOut, model: nn.Module) -> dict[str, Any]:
    """What a plan does to the test split's AUC, and what it is made of."""
    true, found = test.compared(model)
    return {
        "times_smaller": plan.bytes_before / plan.bytes_after,
        "predicted_loss": plan.loss,
        "auc": found.auc,
        "auc_loss": true.auc_loss,
        "auc_error": true.auc_error,
        "table_methods": dict(Counter(planned.method for planned in plan.tables)),
    }


class Ways:
    """The two ways of compressing one trained model."""

    def __init__(self, one: OneModel, budget: str, rows: int, seed: int):
        settings = CompressSettings(budget=budget)
        self.original = Original.measure(one.artifact, one.log, settings)
        self.model, self.test = one.artifact.model().eval(), one.test_rows()
        read, orders = partial(recipes.rows_of, one.artifact, one.log), permute_(self.model, seed)
        self.batches = list(permuted(read("train", rows), orders))
        mixed = permuted(read("test", EVERY_ROW), orders)
        self.mixed_test = HeldOut.of(self.model, mixed, score_batch, "test")
        assert abs(self.test.quality.auc - self.mixed_test.quality.auc) < 1e-6

    def of_the_log(self, budget: str, folder: Path) -> dict[str, Any]:
        settings = CompressSettings(budget=budget)
        plan = self.original.plan(settings)
        assert isinstance(plan, Plan), plan
        made = self.original.compress(plan, settings, folder, recipes.quiet)
        assert isinstance(made, Artifact), made
        return quality(plan, self.test, made.model())

    def of_the_user(self, budget: str) -> dict[str, Any]:
        plan = embedcomp.plan(self.model, self.batches, budget, score=score_batch)
        embedcomp.swap_(self.model, plan)
        try:
            return quality(plan, self.mixed_test, self.model)
        finally:
            embedcomp.restore_(self.model)


def rendered(found: Mapping[str, dict[str, Any]]) -> Table:
    table = Table("budget", "tables", "size", "test AUC", "lost", "methods of tables")
    for name, one in found.items():
        lost = f"{one['auc_loss']:+.5f} ± {one['auc_error']:.5f}"
        methods = ", ".join(f"{method} {n}" for method, n in one["table_methods"].items())
        size = f"1/{one['times_smaller']:.1f}"
        table.add_row(*name.split(), size, f"{one['auc']:.5f}", lost, methods)
    return table


def main() -> None:
    options = _options()
    more = {"budgets": options.budgets, "rows": options.rows}
    one, found = OneModel("own_tables", options, more), {}
    ways = cache(lambda: Ways(one, options.budgets[0], options.rows, options.seed))

    for budget in options.budgets:
        made = {
            "log": lambda: ways().of_the_log(budget, one.folder / budget),  # noqa: B023
            "user": lambda: ways().of_the_user(budget),  # noqa: B023
        }
        for whose, work in made.items():
            found[f"{budget} {whose}"] = one.steps.run(f"{whose}-{budget}", work)
        console.print(rendered(found))
    print(one.record(found, [options.seed]))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__)
    made.add_argument("--budgets", nargs="+", default=["20x", "50x"])
    made.add_argument("--rows", type=int, default=EVERY_ROW, help="that `embedcomp.plan` is given")
    made.add_argument("--seed", type=int, default=0, help="of the order of rows")
    return made.parse_args()


if __name__ == "__main__":
    command(main)
