"""What a log holds, for a person about to train on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import IdCounts, LogCounts

RARE = 10  # ids seen fewer times than this are the tail


def profile(log: ClickLog, counts: LogCounts, split: str) -> dict[str, Any]:
    """Rows, positive rate, and for each column cardinality, nulls and tail mass.

    Tail mass is the share of the column's values whose id is seen fewer than RARE times.
    """
    return {
        "split": split,
        "rows": counts.rows,
        "positive_rate": counts.positives / counts.rows,
        "categorical": {
            name: {
                "type": str(log.types[name]),
                "side": log.schema.categorical[name].side,
                **_id_column(found, counts.rows),
            }
            for name, found in counts.ids.items()
        },
        "dense": {
            name: {
                "side": log.schema.dense[name].side,
                "transform": log.schema.dense[name].transform,
                "nulls": sums.nulls,
                "mean": sums.mean_and_scale()[0],
                "std": sums.mean_and_scale()[1],
            }
            for name, sums in counts.dense.items()
        },
    }


def _id_column(found: IdCounts, rows: int) -> dict[str, Any]:
    times, ids = found.frequencies().T
    seen, distinct = times * ids, int(ids.sum())
    total = max(int(seen.sum()), 1)
    before = np.cumsum(ids) - ids  # ids that are seen more often
    most = np.clip(max(1, distinct // 100) - before, 0, ids)
    return {
        "distinct": distinct,
        "nulls": found.nulls,
        "empty_bags": found.empty_bags,
        "values_per_row": (int(seen.sum()) + found.nulls) / max(rows, 1),
        "seen_once": int(ids[times == 1].sum()),
        "tail_mass": float(seen[times < RARE].sum() / total),
        "top_percent_mass": float((times * most).sum() / total),
    }


def render(found: dict[str, Any]) -> list[Table]:
    """The profile as tables for a terminal."""
    title = (
        f"{found['split']}: {found['rows']:,} rows, {found['positive_rate']:.2%} clicked; "
        f"tail = ids seen fewer than {RARE} times"
    )
    ids = Table(title=title)
    for heading in ("column", "type", "side"):
        ids.add_column(heading)
    for heading in ("distinct", "nulls", "seen once", "tail mass", "mass of top 1 %"):
        ids.add_column(heading, justify="right")
    for name, column in found["categorical"].items():
        ids.add_row(
            name,
            column["type"],
            column["side"],
            f"{column['distinct']:,}",
            f"{column['nulls']:,}",
            f"{column['seen_once']:,}",
            f"{column['tail_mass']:.1%}",
            f"{column['top_percent_mass']:.1%}",
        )
    return [ids, *([_dense_table(found["dense"])] if found["dense"] else [])]


def _dense_table(columns: dict[str, Any]) -> Table:
    table = Table("column", "side", "transform", "nulls", "mean", "standard deviation")
    for name, column in columns.items():
        numbers = (f"{column['nulls']:,}", f"{column['mean']:.4g}", f"{column['std']:.4g}")
        table.add_row(name, column["side"], column["transform"], *numbers)
    return table
