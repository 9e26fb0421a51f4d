"""A made-up click log with a known answer: Zipf ids and clicks drawn from a low-rank teacher.

The teacher gives every id a weight and a vector of RANK numbers; its logit is the sum of the
weights and of the dot products between the user's side and the item's. Its own AUC is the ceiling
for every model trained on the log. A log that drifts is in the order of time and split by it, and
what most of its ids stand for lives for hours; then they are somebody else's, like addresses that
are handed on. What a model learns of them by heart is wrong a day later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcomp.errors import BadSettings
from embedcomp.support.metrics import Quality

RANK = 4
GROUP_ROWS = 100_000  # rows generated and written at a time
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
MAX_TAGS = 4
DAYS = 5  # that a log that drifts goes over
MOVING = {  # the ids of such a log that are handed on, by side
    "user": ("user_id", "session", "address"),
    "item": ("item_id", "brand", "campaign", "creative"),
}
LIFE_HOURS = 6.0  # after which an id of such a log stands for something else

SCHEMA = """\
label = "clicked"

[splits]
train = "train.parquet"
valid = "valid.parquet"
test = "test.parquet"

[categorical]
user_id = { side = "user" }
country = { side = "user" }
device = { side = "user" }
hour = { side = "user" }
item_id = { side = "item" }
brand = { side = "item" }
category = { side = "item" }
tags = { side = "item" }

[dense]
price = { side = "item", transform = "log1p" }
age_days = { side = "item", transform = "log1p" }
"""


@dataclass(frozen=True)
class _Column:
    """distinct ids, exponent of their Zipf law, share of nulls, how an id is written.

    lives: how often an id stands for something else.
    """

    distinct: int
    exponent: float
    nulls: float
    write: Callable[[int], object]
    lives: int = 1


@dataclass(frozen=True)
class Written:
    """A log that was written: rows by split, and the teacher's own quality on the test split."""

    rows: dict[str, int]
    auc: float
    logloss: float

    def to_dict(self) -> dict[str, object]:
        return {"rows": self.rows, "teacher": {"auc": self.auc, "logloss": self.logloss}}


def synth(folder: Path, rows: int, seed: int = 0, *, drift: bool = False) -> Written:
    """Write a click log of `rows` rows in all splits together.

    Args:
        drift: rows are in the order of time, splits follow each other, and what an id stands for
            lives for hours.

    Raises:
        BadSettings: fewer than 1,000 rows, or the folder holds a log already.
    """
    if rows < 1000:
        raise BadSettings(f"a log of {rows:,} rows is too small to split; ask for 1,000 or more")
    if (folder / "schema.toml").exists():
        raise BadSettings(f"{folder} holds a log already; give another folder or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    teacher = _Teacher(rows, np.random.default_rng([seed, 0]), drift)
    sizes = {split: round(rows * share) for split, share in SHARES.items()}
    ceiling, begin = Quality(), 0
    for number, (split, size) in enumerate(sizes.items(), start=1):
        rng = np.random.default_rng([seed, number])
        when = (begin + np.arange(size)) / sum(sizes.values())
        found = _write_split(folder / f"{split}.parquet", teacher, when, rng)
        ceiling, begin = found if split == "test" else ceiling, begin + size
    (folder / "schema.toml").write_text(_schema(drift))
    return Written(sizes, ceiling.auc, ceiling.logloss)


def _schema(drift: bool) -> str:
    if not drift:
        return SCHEMA
    sides = {name: side for side, names in MOVING.items() for name in names}
    fresh = [f'{n} = {{ side = "{s}" }}' for n, s in sides.items() if f"\n{n} =" not in SCHEMA]
    return SCHEMA.replace("\n[dense]", "\n".join([*fresh, "", "[dense]"]))


def _write_split(
    file: Path, teacher: _Teacher, when: np.ndarray, rng: np.random.Generator
) -> Quality:
    quality = Quality()
    writer: pq.ParquetWriter | None = None
    for start in range(0, len(when), GROUP_ROWS):
        columns, logits = teacher.draw(when[start : start + GROUP_ROWS], rng)
        labels = rng.random(len(logits)) < 1 / (1 + np.exp(-logits))
        quality.add(logits, labels)
        table = pa.table({"clicked": pa.array(labels.astype(np.int8)), **columns})
        writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return quality


class _Teacher:
    """Draws rows and their true logits."""

    def __init__(self, rows: int, rng: np.random.Generator, drift: bool):
        users, items = max(50, rows // 60), max(50, rows // 200)
        self.user = {
            "user_id": _Column(users, 0.8, 0.0, lambda i: f"u{i:07d}"),
            "country": _Column(30, 1.1, 0.02, lambda i: f"c{i:02d}"),
            "device": _Column(6, 0.7, 0.05, int),
            "hour": _Column(24, 0.2, 0.0, int),
        }
        self.item = {
            "item_id": _Column(items, 0.9, 0.0, lambda i: 10_000_000 + 7 * i),
            "brand": _Column(max(20, items // 10), 1.0, 0.1, lambda i: f"b{i:05d}"),
            "category": _Column(40, 0.8, 0.0, int),
            "tags": _Column(200, 1.0, 0.05, lambda i: f"t{i:03d}"),
        }
        if drift:
            ids = max(50, rows // 8)
            for side, names in ((self.user, MOVING["user"]), (self.item, MOVING["item"])):
                side |= {n: _Column(ids, 0.2, 0.0, f"{n}{{:07d}}".format, DAYS) for n in names}
        self._weights, self._vectors, self._written = {}, {}, {}
        for name, column in (self.user | self.item).items():
            scale, lives = 0.5 if column.distinct > 100 else 0.25, column.distinct * column.lives
            self._weights[name] = rng.normal(0, scale, lives)
            self._vectors[name] = rng.normal(0, 0.6 * scale, (lives, RANK))
            scrambled = rng.permutation(column.distinct)  # so that ids tell nothing of counts
            self._written[name] = np.array([column.write(int(i)) for i in scrambled], object)

    def draw(
        self, when: np.ndarray, rng: np.random.Generator
    ) -> tuple[dict[str, pa.Array], np.ndarray]:
        """Columns of rows and their logits float64 [rows], by when in the log they are, 0 to 1."""
        rows = len(when)
        columns: dict[str, pa.Array] = {}
        logits = np.full(rows, -1.0)
        sides = []
        for side in (self.user, self.item):
            vector = np.zeros((rows, RANK))
            for name, column in side.items():
                draw = self._bags if name == "tags" else self._single
                columns[name], weight, part = draw(name, column, when, rng)
                logits += weight
                vector += part
            sides.append(vector)
        price, age = rng.lognormal(2.5, 1.0, rows), rng.exponential(30.0, rows)
        logits += (sides[0] * sides[1]).sum(1) - 0.3 * (np.log1p(price) - 2.6)
        columns["price"] = pa.array(price.astype(np.float32), mask=rng.random(rows) < 0.03)
        columns["age_days"] = pa.array(age.astype(np.float32))
        return columns, logits

    def _single(
        self, name: str, column: _Column, when: np.ndarray, rng: np.random.Generator
    ) -> tuple[pa.Array, np.ndarray, np.ndarray]:
        ids = _drawn(column, when, rng)
        null = rng.random(len(when)) < column.nulls
        values = pa.array(self._written[name][ids % column.distinct].tolist(), mask=null)
        known = ~null
        return values, self._weights[name][ids] * known, self._vectors[name][ids] * known[:, None]

    def _bags(
        self, name: str, column: _Column, when: np.ndarray, rng: np.random.Generator
    ) -> tuple[pa.Array, np.ndarray, np.ndarray]:
        rows = len(when)
        lengths = rng.integers(0, MAX_TAGS + 1, rows)
        lengths[rng.random(rows) < column.nulls] = 0
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = _zipf(column, int(offsets[-1]), rng)
        row = np.repeat(np.arange(rows), lengths)
        share = 1.0 / np.maximum(lengths, 1)
        weight = np.bincount(row, self._weights[name][ids], rows) * share
        vectors = np.zeros((rows, RANK))
        np.add.at(vectors, row, self._vectors[name][ids])
        tags = self._written[name][ids].tolist()
        bags = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tags, pa.string()))
        return bags, weight, vectors * share[:, None]


def _drawn(column: _Column, when: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lives of ids, int64 [rows], among those of that time; life i is of id i modulo `distinct`."""
    if column.lives == 1:
        return _zipf(column, len(when), rng)
    lives = column.distinct * column.lives
    alive = max(1, round(lives * LIFE_HOURS / (24 * DAYS)))
    youngest = alive + (when * (lives - alive)).astype(np.int64)
    return youngest - 1 - _zipf(replace(column, distinct=alive), len(when), rng)


def _zipf(column: _Column, size: int, rng: np.random.Generator) -> np.ndarray:
    """Ids int64 [size] with P(i) proportional to (i + 1)^-exponent, by inverting the sum."""
    weights = np.arange(1, column.distinct + 1, dtype=np.float64) ** -column.exponent
    cumulative = np.cumsum(weights)
    return np.searchsorted(cumulative, rng.random(size) * cumulative[-1])
