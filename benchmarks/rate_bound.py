"""The least predicted loss of normal numbers in so many bytes, against that of the plans.

    python -m benchmarks.rate_bound --log movielens_1m

Rate-distortion theory bounds what rounding costs: a number of variance s^2 that is off by D on
average takes log2(s^2 / D) / 2 bits if it is normal, and no code of many of them does with fewer.
Numbers of that variance that are not normal may take fewer, so this is a yardstick, not a bound on
what a model's own numbers need.
Every layer's numbers are taken in the directions in which their errors add up (a table's codes; a
linear layer's weights between the directions of its inputs and of its output's gradient), each with
the part of the loss that leaving it out costs; one level of loss for all of them (reverse
water-filling) gives the bytes. A table's rows are in octaves of their counts, since rare rows are
small. Bytes of decoders, scales and indices, which real codes need, are not in the bound.

The same is done for a student of one shape, which the original taught.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from benchmarks import one_model
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from benchmarks.students import taught
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original
from embedcomp.methods.parts.factors import encoded, layer_moments, metric_roots, output_basis
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning.goal import ByteBudget
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.algebra import leading
from embedcomp.sensitivity.layer import Layer, TableSpec

HALVINGS = 200  # of the interval of the loss's level
WAYS = ("original", "student")


def costs(layer: Layer) -> Tensor:
    """Loss of leaving out each number of a layer, float64, expected of one of its variance."""
    return 0.5 * (_of_table(layer) if isinstance(layer.spec, TableSpec) else _of_linear(layer))


def _of_table(layer: Layer) -> Tensor:
    """[rows * dim], by the variance of codes in the rows of about one count."""
    found, mean = output_basis(layer, "loss"), layer_moments(layer)[0]
    codes = encoded(layer.weight, found.encoder, mean).double()
    counts = torch.ones(len(codes)).double() if layer.counts is None else layer.counts.double()
    looked_up = counts > 0
    codes, counts = codes[looked_up], counts[looked_up]
    octave = counts.log2().floor().long()
    squares = torch.zeros(int(octave.max()) + 1, codes.shape[1]).double()
    squares.index_add_(0, octave, codes.square())
    variances = squares / octave.bincount(minlength=len(squares)).clamp_min(1)[:, None]
    each: Tensor = (counts / counts.sum())[:, None] * variances[octave] * found.weights
    return each.view(-1)


def _of_linear(layer: Layer) -> Tensor:
    """[outputs * inputs], by the variance of weights from one direction of the inputs."""
    covariance = layer.inputs.covariance
    assert isinstance(covariance, Tensor), "layers of so many inputs have a sketch alone"
    size, along = leading(covariance)
    roots = metric_roots(layer, "loss")
    weight = layer.weight.double() @ along
    if roots is not None:
        scales, axes = leading(roots.root)
        weight = scales[:, None] * (axes.T @ weight)
    return (weight.square().mean(0) * size).expand_as(weight).reshape(-1)


def least_loss(each: np.ndarray[Any, Any], most: float) -> float:
    """The least loss of numbers that cost so much to leave out, in this many bytes."""
    low, high = 0.0, float(each.max())
    for _ in range(HALVINGS):
        level = (low + high) / 2
        above = each[each > level]
        bits = 0.5 * np.log2(above / level).sum() if level else np.inf
        low, high = (level, high) if bits > 8 * most else (low, level)
    return float(np.minimum(each, high).sum())


def bounded(begun: Original, budget: str, whole: int) -> dict[str, Any]:
    """The bound and the best plan of the methods that need no training, within a budget."""
    most = ByteBudget.parse(budget).of(whole)
    plan = begun.plan(CompressSettings(budget=str(most)))
    layers = begun.measured.measured(begun.planning.found).layers.values()
    each = torch.cat([costs(layer) for layer in layers]).numpy()
    loss = least_loss(each[each > 0], most)
    found = {"budget_bytes": most, "least_loss": loss, "numbers": len(each)}
    return {**found, "reason": plan} if isinstance(plan, str) else {**found, "plan": plan.loss}


def begun(one: OneModel, way: str) -> Original:
    """The original or its student, measured."""
    artifact: Artifact = one.artifact
    if way != "original":
        place = one.folder / "student"
        artifact = taught(one, artifact, place, one.given.student, distil=one.given.distil)
    return Original.measure(artifact, one.log, CompressSettings(budget="1x"))


def rendered(found: dict[str, dict[str, Any]]) -> Table:
    table = Table("of", "bytes", "least predicted loss", "that of the plan", "plan / least")
    for name, one in found.items():
        size, least = f"{one['budget_bytes']:,}", f"{one['least_loss']:.2e}"
        if "plan" in one:
            ratio = one["plan"] / one["least_loss"]
            table.add_row(name, size, least, f"{one['plan']:.2e}", f"{ratio:.2f}")
        else:
            table.add_row(name, size, least, one["reason"])
    return table


def main() -> None:
    options = _options()
    one = OneModel(
        "rate_bound",
        options,
        {name: getattr(options, name) for name in ("budgets", "student", "distil")},
    )
    whole = model_bytes(one.artifact.model())["total"]
    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        ready = cache(partial(begun, one, way))
        for budget in options.budgets:
            step = f"{way}-{budget}"
            make = partial(bounded, budget=budget, whole=whole)
            found[step] = one.steps.run_of(step, make, ready)
    console.print(rendered(found))
    print(one.record(found))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__)
    made.add_argument("--budgets", nargs="+", default=["10x", "20x", "50x", "100x"])
    made.add_argument("--student", default="hidden=64,32,cross_layers=1", help="its shape")
    made.add_argument("--distil", type=float, default=0.7, help="weight of the original's scores")
    return made.parse_args()


if __name__ == "__main__":
    command(main)
