"""What trellis-coded numbers leave of a column's variance, against single steps and the bound.

    python -m benchmarks.trellis

Columns are normal, Laplacian and uniform, in 1 to 8 bits. `steps` is frequency_tiers' storage and
`trellis` that of trellis_coded, each with a grid fitted to the values. The bound is Shannon's, of
normal values. With --design the numbers that windows stand for
(embedcomp/kernels/trellis_windows.npy) are made anew: by turns normal values are encoded and each
number becomes the mean of what it stood for (Lloyd's algorithm), from several random beginnings, of
which the best is taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.table import Table
from scipy.stats import norm

from benchmarks import result
from benchmarks.script import command, console, parser
from embedcomp.kernels import trellis_windows
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis, encode
from embedcomp.storage.rows import StoredRows

VALUES = 1 << 17
COLUMNS = 8
BEGINNINGS = 6
TURNS = 40
COUNT = 1 << trellis_windows.BITS
DRAWN: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda random: random.standard_normal(VALUES),
    "laplacian": lambda random: random.laplace(0, 0.5**0.5, VALUES),
    "uniform": lambda random: random.uniform(-(3**0.5), 3**0.5, VALUES),
}


def main() -> None:
    options = _options()
    if options.design:
        coded = range(1, trellis_windows.CODED + 1)
        numbers = np.stack([np.zeros(COUNT), *(_designed(bits) for bits in coded)])
        np.save(trellis_windows.NUMBERS, numbers.astype(np.float32))
        trellis_windows.numbers.cache_clear()
    found = {name: [_left(name, b, options.seeds) for b in range(1, 9)] for name in DRAWN}
    console.print(_render(found))
    file = result.write(
        "trellis",
        data={"made_up": True, "values": VALUES, "distributions": list(DRAWN)},
        settings={"beginnings": BEGINNINGS, "turns": TURNS},
        seeds=options.seeds,
        results=found,
        folder=options.results,
    )
    print(file)


def _left(name: str, bits: int, seeds: list[int]) -> dict[str, Any]:
    """Mean squared errors of columns of variance 1 in `bits` bits."""
    drawn = [DRAWN[name](np.random.default_rng(seed)) for seed in seeds]
    values = [torch.from_numpy(v.astype(np.float32)).view(-1, COLUMNS) for v in drawn]
    n, size = len(values[0]), COLUMNS * bits
    steps = [_error(StoredRows(n, COLUMNS, Tiered((n,), (size // 8,))), v) for v in values]
    trellis = [_error(StoredRows(n, COLUMNS, Trellis((n,), (size,))), v) for v in values]
    return {
        "bits": bits,
        "steps": mean(steps),
        "trellis": mean(trellis),
        "bound": 4.0**-bits if name == "normal" else None,
    }


def _error(stored: StoredRows, values: torch.Tensor) -> float:
    stored.fill(values)
    return float((stored.to_float() - values).square().mean())


def _designed(bits: int) -> np.ndarray:
    """The numbers that windows of columns of `bits` bits stand for, float64 [256]."""
    best, least = np.zeros(COUNT), np.inf
    for seed in range(BEGINNINGS):
        random = np.random.default_rng(seed)
        numbers = _beginning(bits, random)
        for _ in range(TURNS):
            values = random.standard_normal(VALUES)
            named = _named(values, bits, numbers)
            counts = np.bincount(named, minlength=COUNT)
            sums = np.bincount(named, values, COUNT)
            numbers = (sums + 2 * numbers) / (counts + 2)
        values = np.random.default_rng(BEGINNINGS).standard_normal(VALUES)
        error = float(np.square(numbers[_named(values, bits, numbers)] - values).mean())
        console.print(f"{bits} bits, beginning {seed}: {error:.5f}")
        if error < least:
            best, least = numbers, error
    return best


def _beginning(bits: int, random: np.random.Generator) -> np.ndarray:
    """Quantiles, of which each of a code's choices has one of every part of the distribution."""
    parts = norm.ppf((np.arange(COUNT) + 0.5) / COUNT).reshape(1 << bits, -1)
    found: np.ndarray = random.permuted(random.permuted(parts, axis=1), axis=0).ravel()
    return found


def _named(values: np.ndarray, bits: int, numbers: np.ndarray) -> np.ndarray:
    """The windows that stand for values [n], by the best codes."""
    rows, matters = values.reshape(-1, COLUMNS).astype(np.float32), np.ones(COLUMNS, np.float32)
    words = np.tile(numbers.astype(np.float32), (COLUMNS, 1))
    out = np.zeros(1 + len(values) * bits // 8, np.uint8)
    encode(rows, np.full(COLUMNS, bits, np.int32), matters, words, out)
    stream = np.unpackbits(out, bitorder="little").astype(np.int64)
    ends = trellis_windows.BITS + bits * np.arange(1, len(values) + 1)
    named: np.ndarray = sum(
        stream[ends - trellis_windows.BITS + bit] << bit for bit in range(trellis_windows.BITS)
    )
    return named


def _render(found: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table("values", "bits", "steps", "trellis", "bound")
    for name, rows in found.items():
        for row in rows:
            bound = "" if row["bound"] is None else f"{row['bound']:.5f}"
            numbers = f"{row['steps']:.5f}", f"{row['trellis']:.5f}", bound
            table.add_row(name, str(row["bits"]), *numbers)
    return table


def _options() -> argparse.Namespace:
    options = parser(__doc__, data=False)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--design", action="store_true", help="make the numbers anew")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
