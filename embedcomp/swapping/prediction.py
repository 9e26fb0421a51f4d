"""Predicted losses against measured ones: how well prediction ranks what compressing does.

Options of all layers are swapped into the model one at a time, and the model scores the same rows
with and without each. The difference of the two losses of a row is what is averaged, so the spread
of the losses themselves cancels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import RenderableType
from rich.table import Table
from scipy.special import expit
from torch import nn

from embedcomp import methods
from embedcomp.errors import BadModel
from embedcomp.log.batches import Batch
from embedcomp.planning.diverse import Option
from embedcomp.planning.plan import told
from embedcomp.sensitivity.layer import Layer, Served, TableSpec
from embedcomp.sensitivity.statistics import score_batch
from embedcomp.support.progress import Counter, Watch, quiet
from embedcomp.swapping.heldout import logits
from embedcomp.swapping.settings import CLEAR, FEWEST_RANKED
from embedcomp.train.tables import fast_tables

OFFENDERS = 8


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An option with what was predicted and what was measured, in mean log loss."""

    layer: str
    kind: str  # "table" or "linear"
    method: str
    settings: dict[str, Any]
    bytes: int
    predicted: float
    true: float  # increase against the labels
    error: float  # standard error of `true`
    expected: float  # increase if clicks came as often as the original says: what prediction is
    # about, without what the original itself gets wrong

    @property
    def is_clear(self) -> bool:
        return self.true > CLEAR * self.error


@torch.no_grad()
def check(
    model: nn.Module,
    layers: Mapping[str, Layer],
    options: Sequence[Option],
    batches: Sequence[Batch],
    watch: Watch = quiet,
) -> list[Checked]:
    """Measure every option on the same rows; the model is left as it was.

    Args:
        layers: with the statistics that the options were predicted from.

    Raises:
        BadModel: the rows are too few to give a standard error.
        CannotStore: a layer's values do not fit an option's storage.
    """
    labels = np.concatenate([batch.labels.numpy() for batch in batches] or [np.empty(0)])
    if len(labels) < 2:
        raise BadModel(f"an increase cannot be measured on {len(labels)} rows; give at least 2")
    with fast_tables(model):
        before = logits(model, score_batch, batches)
    found = []
    counter = Counter(watch, "measuring options", len(options), "options")
    for option in counter.over(options):
        layer, choice = layers[option.layer], option.choice
        served = methods.get(choice.method).compress(layer, choice.settings)
        with _swapped(model, option.layer, served), fast_tables(model):
            after = logits(model, score_batch, batches)
        found.append(_checked(option, layer, before, after, labels))
    return found


@contextmanager
def _swapped(model: nn.Module, name: str, served: Served) -> Iterator[None]:
    own = model.get_submodule(name)
    model.set_submodule(name, served.train(model.training))
    try:
        yield
    finally:
        model.set_submodule(name, own)


def _checked(
    option: Option, layer: Layer, before: np.ndarray, after: np.ndarray, labels: np.ndarray
) -> Checked:
    """Args: logits and labels [rows]."""
    risen = np.logaddexp(0.0, after) - np.logaddexp(0.0, before)
    moved = after - before
    increase, choice = risen - labels * moved, option.choice
    return Checked(
        layer=option.layer,
        kind="table" if isinstance(layer.spec, TableSpec) else "linear",
        method=choice.method,
        settings=asdict(choice.settings),
        bytes=choice.bytes,
        predicted=choice.loss,
        true=float(increase.mean()),
        error=float(increase.std(ddof=1) / np.sqrt(len(increase))),
        expected=float((risen - expit(before) * moved).mean()),
    )


def spearman(found: Sequence[Checked], truth: str = "true") -> float | None:
    """Rank correlation of predicted with measured increases; None where there is none to speak of.

    Args:
        truth: "true" or "expected".
    """
    if len(found) < FEWEST_RANKED:
        return None
    predicted = pd.Series([c.predicted for c in found])
    measured = pd.Series([getattr(c, truth) for c in found])
    if predicted.nunique() == 1 or measured.nunique() == 1:
        return None
    return float(predicted.corr(measured, method="spearman"))


def summary(found: Sequence[Checked], rows: int, split: str) -> dict[str, Any]:
    """All that `embedcomp measure` reports."""
    clear = [c for c in found if c.is_clear]
    return {
        "split": split,
        "rows": rows,
        "spearman": spearman(found),
        "spearman_clear": spearman(clear),
        "spearman_expected": spearman(found, "expected"),
        "clear": len(clear),
        "layers": {name: _of_layer(one) for name, one in _by_layer(found).items()},
        "options": [
            asdict(c) | {"places_too_high": off} for c, off in zip(found, _off(found), strict=True)
        ],
    }


def _by_layer(found: Sequence[Checked]) -> dict[str, list[Checked]]:
    layers: dict[str, list[Checked]] = defaultdict(list)
    for checked in found:
        layers[checked.layer].append(checked)
    return layers


def _of_layer(found: Sequence[Checked]) -> dict[str, Any]:
    return {
        "options": len(found),
        "clear": sum(c.is_clear for c in found),
        "spearman": spearman(found),
        "spearman_expected": spearman(found, "expected"),
        "ratio": float(np.median([c.true / c.predicted for c in found])),
        "ratio_expected": float(np.median([c.expected / c.predicted for c in found])),
    }


def _off(found: Sequence[Checked]) -> list[float]:
    """Places that prediction ranks each option too high."""
    predicted = pd.Series([c.predicted for c in found])
    true = pd.Series([c.true for c in found])
    return list((predicted.rank() - true.rank()).astype(float))


def render(found: Sequence[Checked], rows: int, split: str) -> list[RenderableType]:
    """Tables of the candidates by layer, and of those that prediction ranks most wrongly."""
    told_of, offenders = summary(found, rows, split), _offenders(found)
    return [_layers_table(told_of), *([_offenders_table(offenders)] if offenders else [])]


def _layers_table(told_of: dict[str, Any]) -> Table:
    table = Table(title=_title(told_of))
    table.add_column("layer", overflow="fold")
    for column in ("options", "clear", "Spearman", "true / predicted"):
        table.add_column(column, justify="right")
    table.add_column("Spearman, own scores", justify="right")
    table.add_column("expected / predicted", justify="right")
    for name, layer in told_of["layers"].items():
        table.add_row(
            name,
            str(layer["options"]),
            str(layer["clear"]),
            _correlation(layer["spearman"]),
            f"{layer['ratio']:.2f}",
            _correlation(layer["spearman_expected"]),
            f"{layer['ratio_expected']:.2f}",
        )
    return table


def _title(told_of: dict[str, Any]) -> str:
    return (
        f"{len(told_of['options'])} options on {told_of['rows']:,} rows of {told_of['split']}; "
        f"Spearman across layers {_correlation(told_of['spearman'])}, of the {told_of['clear']} "
        f"clear increases {_correlation(told_of['spearman_clear'])}, against the original's own "
        f"scores {_correlation(told_of['spearman_expected'])}"
    )


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _offenders(found: Sequence[Checked]) -> list[tuple[Checked, float]]:
    """Options by how far off their ranks are, with that, the worst first."""
    ranked = sorted(zip(found, _off(found), strict=True), key=lambda pair: -abs(pair[1]))
    return [(checked, off) for checked, off in ranked[:OFFENDERS] if off]


def _offenders_table(offenders: Sequence[tuple[Checked, float]]) -> Table:
    table = Table(title="ranked most wrongly")
    table.add_column("layer", overflow="fold")
    for column in ("method", "settings"):
        table.add_column(column)
    for column in ("predicted", "true", "standard error", "expected", "places too high"):
        table.add_column(column, justify="right")
    for c, off in offenders:
        values = (f"{value:.2e}" for value in (c.predicted, c.true, c.error, c.expected))
        table.add_row(c.layer, c.method, told(c.method, c.settings), *values, f"{off:+.0f}")
    return table
