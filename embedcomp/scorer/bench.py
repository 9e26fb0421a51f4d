"""How fast an artifact scores, and how fast this machine could: rows a second with a roofline."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from statistics import median
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from embedcomp.engine.prepare import made_up
from embedcomp.engine.program import Work
from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.scorer.scorer import Scorer

BATCHES = (1, 16, 64, 256, 1024, 4096)
CANDIDATES = (128, 512)  # of one user
SECONDS = 0.4  # measured per model and batch
FEWEST_CALLS = 7
DIFFERENT = 8  # batches, so that rows are not all in the cache

_COPIED, _TABLE, _ROW = 1 << 28, 1 << 29, 64  # bytes


@dataclass(frozen=True)
class Limits:
    """What this machine can do on one thread.

    copied: bytes read and written a second, by copying a quarter GiB.
    weights: the same for as many bytes as the model's weights, which a cache may hold.
    rows: of 64 bytes a second, read at random places of half a GiB.
    products: multiplications (each with an addition) a second in registers, by format.
    """

    copied: float
    weights: float
    rows: float
    products: Mapping[str, float]

    def seconds(self, work: Work, batch: int, features: int, one_user: bool) -> float:
        """The shortest time for a batch: the longer of its products and its memory traffic.

        Weights are read once a batch, as if they stayed near between blocks of rows.
        """
        users = 1 if one_user else batch
        products = sum(
            rows * number / self.products[form]
            for rows, of in ((batch, work.item_products), (users, work.user_products))
            for form, number in of.items()
        )
        memory = work.weight_bytes / self.weights + batch * features / self.rows
        return max(products, memory)


@cache
def limits(weight_bytes: int) -> Limits:
    """Measure them; takes a second or two."""
    library = native.needed()
    table = np.ones((_TABLE // _ROW, _ROW // 4), np.float32)
    places = np.random.default_rng(0).integers(0, len(table), 1 << 18)
    rows = np.empty((len(places), _ROW // 4), np.float32)
    looked_up = len(places) / _best(lambda: np.take(table, places, 0, out=rows, mode="clip"), 5)
    count = 24 << 16
    seconds = {
        name: _best(partial(library.embedcomp_multiply, form, count), 9)
        for form, name in enumerate(native.FORMATS)
    }
    return Limits(
        copied=_copied(_COPIED, 5),
        weights=_copied(max(weight_bytes, _ROW), 50),
        rows=looked_up,
        products={name: count * native.LANES[name] / s for name, s in seconds.items()},
    )


def _copied(size: int, times: int) -> float:
    """Bytes read and written a second."""
    target, source = np.ones((2, size), np.uint8)
    return 2 * size / _best(partial(np.copyto, target, source), times)


def _best(call: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


@dataclass(frozen=True)
class Measured:
    """One model on one batch size.

    limit: rows a second that the machine could score, by the roofline; NaN where torch scores.
    """

    model: str
    threads: int
    batch: str
    microseconds: float
    rows_per_second: float
    limit: float

    @property
    def share(self) -> float:
        """Reached share of the limit that holds."""
        return self.rows_per_second / self.limit


def bench(scorers: Mapping[str, Scorer], threads: int) -> list[Measured]:
    """Score made-up rows, the models in turn.

    Ids are drawn by their counts in the training log, where the artifact knows them, and else all
    alike; a bag has three.

    Args:
        scorers: by name, with so many threads.
    """
    found = []
    for batch in BATCHES:
        calls = {name: _calls(scorer, batch, False) for name, scorer in scorers.items()}
        found += _timed(scorers, calls, threads, batch, one_user=False)
    for batch in CANDIDATES:
        able = {name: scorer for name, scorer in scorers.items() if scorer.splits}
        calls = {name: _calls(scorer, batch, True) for name, scorer in able.items()}
        found += _timed(able, calls, threads, batch, one_user=True)
    return found


def _timed(
    scorers: Mapping[str, Scorer],
    calls: Mapping[str, Sequence[Callable[[], object]]],
    threads: int,
    batch: int,
    *,
    one_user: bool,
) -> list[Measured]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for of_model in calls.values():
        for call in of_model:
            call()
    began = time.perf_counter()
    turn = 0
    while calls and (time.perf_counter() - began < SECONDS * len(calls) or turn < FEWEST_CALLS):
        for name, of_model in calls.items():
            start = time.perf_counter()
            of_model[turn % len(of_model)]()
            seconds[name].append(time.perf_counter() - start)
        turn += 1
    return [
        Measured(
            model=name,
            threads=threads,
            batch=f"1 user x {batch:,}" if one_user else f"{batch:,}",
            microseconds=median(taken) * 1e6,
            rows_per_second=batch / median(taken),
            limit=_limit(scorers[name], batch, threads, one_user),
        )
        for name, taken in seconds.items()
    ]


def _limit(scorer: Scorer, batch: int, threads: int, one_user: bool) -> float:
    if scorer.work is None:
        return float("nan")
    alone = scorer.alone
    assert alone is not None and alone.graph is not None
    can = limits(scorer.work.weight_bytes)
    seconds = can.seconds(scorer.work, batch, len(alone.graph.features), one_user)
    return threads * batch / seconds


def _calls(scorer: Scorer, batch: int, one_user: bool) -> list[Callable[[], object]]:
    if scorer.alone is None:
        raise BadSettings(
            f"{scorer.name} can only be scored by its own code; save it with embedcomp.save, or "
            "train or compress it again"
        )
    features = scorer.features if scorer.has_features else None
    calls: list[Callable[[], object]] = []
    for seed in range(DIFFERENT):
        parts = made_up(scorer.alone, features, batch, seed)
        user = made_up(scorer.alone, features, 1, seed + DIFFERENT) if one_user else None
        calls.append(scorer.call(parts, user))
    return calls


def to_dict(found: Sequence[Measured], scorers: Mapping[str, Scorer]) -> dict[str, Any]:
    """As JSON keeps it, with the machine's limits."""
    return {
        "engines": {name: scorer.engine for name, scorer in scorers.items()},
        "limits": {
            name: asdict(limits(scorer.work.weight_bytes))
            for name, scorer in scorers.items()
            if scorer.work is not None
        },
        "measured": [{**asdict(m), "share": m.share} for m in found],
    }


def render(found: Sequence[Measured], scorers: Mapping[str, Scorer]) -> list[RenderableType]:
    """The measurements as tables: one a number of threads."""
    shown: list[RenderableType] = []
    for name, scorer in scorers.items():
        shown.append(f"{name}: {scorer.engine}")
        if scorer.work is not None:
            can = limits(scorer.work.weight_bytes)
            shown.append(
                f"  on one thread, this machine copies {can.copied / 1e9:.1f} GB/s (the model's "
                f"weights {can.weights / 1e9:.1f}) and reads {can.rows / 1e6:.0f} M random rows/s"
            )
            of_a_row = Counter(scorer.work.item_products) + Counter(scorer.work.user_products)
            shown += [
                f"  it makes {can.products[form] / 1e9:.0f} G {form} products/s, and a row takes "
                f"{number:,}"
                for form, number in of_a_row.items()
            ]
    first = next(iter(scorers))
    for threads in sorted({m.threads for m in found}):
        table = Table("batch", title=f"{threads} thread{'s' if threads > 1 else ''}")
        for name in scorers:
            for column in ("us a call", "rows/s", "of the limit"):
                table.add_column(
                    f"{name}: {column}" if len(scorers) > 1 else column, justify="right"
                )
        if len(scorers) > 1:
            table.add_column("times as fast", justify="right")
        rows: dict[str, dict[str, Measured]] = {}
        for m in found:
            if m.threads == threads:
                rows.setdefault(m.batch, {})[m.model] = m
        for batch, by_model in rows.items():
            table.add_row(batch, *_cells(by_model, list(scorers), first))
        shown.append(table)
    return shown


def _cells(by_model: Mapping[str, Measured], names: Sequence[str], first: str) -> list[str]:
    cells: list[str] = []
    for name in names:
        m = by_model.get(name)
        if m is None:
            cells += ["", "", ""]
            continue
        share = "" if np.isnan(m.limit) else f"{m.share:.0%}"
        cells += [f"{m.microseconds:,.1f}", f"{m.rows_per_second:,.0f}", share]
    if len(names) > 1:
        ours, theirs = by_model.get(first), by_model.get(names[1])
        if ours is None or theirs is None:
            return [*cells, ""]
        cells.append(f"{ours.rows_per_second / theirs.rows_per_second:.1f}")
    return cells
