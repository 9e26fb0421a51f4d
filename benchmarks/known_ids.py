"""Known ids and their rows: bytes of a table, time to make it, and time of a look-up.

    python -m benchmarks.known_ids

The engine's tables, mapped from files, against open addressing (12 bytes a slot, or 8 and the
strings with an offset of 4 each, half as many slots again as ids), std::unordered_map, and pandas'
Index.get_indexer with Python's part of each call. Ids are looked up in random order, in batches. A
batch waits for the one before it, and is of the next of several equal tables, so that little of
what it reads is in the caches. Contenders take turns on one thread, whose own clock is read. Needs
g++ and an x86 CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.table import Table

from benchmarks import result
from benchmarks.script import WORK, command, console, parser
from embedcomp.log import known
from embedcomp.log.known import NUMBERS, STRINGS, About, Known

SOURCE = Path(__file__).with_suffix(".cpp")
KINDS = ("int64", "int64 below 2^40", "strings of 20 letters")
BATCHES = (1, 64, 4096)
COPIES = 4  # equal tables of the contenders whose tables are arrays
PYTHON_CALLS = 2000  # of pandas at most, which take long
LETTERS = 20


class Ids(NamedTuple):
    """int64 values, or strings by their offsets and letters."""

    values: np.ndarray
    offsets: np.ndarray | None
    array: pa.Array

    @property
    def at(self) -> tuple[int, int | None]:
        offsets = None if self.offsets is None else self.offsets.ctypes.data
        return self.values.ctypes.data, offsets


@dataclass
class Contender:
    """Tables, what was measured of them, and what times look-ups in them.

    seconds: of looking ids up in batches of this size, whose rows it writes; how many it did.
    """

    name: str
    bytes: int
    made_seconds: float
    seconds: Callable[[Ids, int, np.ndarray], tuple[float, int]]


def main() -> None:
    options = _options()
    library = _built(options.work)
    found = []
    for kind in KINDS:
        ids, misses = _drawn(kind, options.ids, options.asked)
        with TemporaryDirectory(dir=options.work) as folder:
            some = list(_contenders(library, ids, Path(folder)))
            found += _compared(kind, ids, misses, some, options.rounds)
            del some
    console.print(_render(found))
    file = result.write(
        "known_ids",
        data={"made_up": True, "ids": options.ids, "kinds": KINDS, "batches": BATCHES},
        settings={"rounds": options.rounds, "asked": options.asked, "copies": COPIES},
        seeds=[0],
        results=found,
        folder=options.results,
    )
    print(file)


def _drawn(kind: str, count: int, asked: int) -> tuple[Ids, Ids]:
    """Known ids in random order, and others of the same kind."""
    random = np.random.default_rng(0)
    if kind.startswith("strings"):
        letters = random.integers(97, 123, (count + asked, LETTERS), np.uint8)
        return _strings(letters[:count]), _strings(letters[count:])  # 26^20 of them
    low, high = (-(1 << 63), 1 << 63) if kind == "int64" else (0, 1 << 40)
    values = np.unique(random.integers(low, high - 1, count + asked, endpoint=True))
    random.shuffle(values)
    parts = values[asked:].copy(), values[:asked].copy()
    known_ones, others = (Ids(part, None, pa.array(part)) for part in parts)
    return known_ones, others


def _strings(letters: np.ndarray) -> Ids:
    offsets = np.arange(len(letters) + 1, dtype=np.int32) * LETTERS
    flat = np.ascontiguousarray(letters).reshape(-1)
    array = pa.StringArray.from_buffers(len(letters), pa.py_buffer(offsets), pa.py_buffer(flat))
    return Ids(flat, offsets, array)


def _contenders(library: ctypes.CDLL, ids: Ids, folder: Path) -> Iterator[Contender]:
    yield _embedcomp(library, ids, folder)
    yield _compiled(library, "open", "open addressing", ids, COPIES)
    yield _compiled(library, "standard", "std::unordered_map", ids, 1)
    yield _pandas(ids)


def _embedcomp(library: ctypes.CDLL, ids: Ids, folder: Path) -> Contender:
    about = About(NUMBERS if ids.offsets is None else STRINGS, len(ids.array), 1, 0, 0)
    made, seconds = _timed(lambda: Known.of(ids.array, about))
    files = [folder / f"{copy}.safetensors" for copy in range(COPIES)]
    for file in files:
        known.save([made], file)
    tables = [known.load(file)[0] for file in files]
    size = sum(array.nbytes for array in made.arrays.values())
    return Contender("embedcomp", size, seconds, _finder(library.known_ids_seconds, tables))


def _compiled(library: ctypes.CDLL, name: str, shown: str, ids: Ids, copies: int) -> Contender:
    """A table of known_ids.cpp."""
    before, make = _resident(), getattr(library, f"known_ids_{name}")
    first, seconds = _timed(lambda: make(*ids.at, len(ids.array)))
    size = _resident() - before + (0 if name == "standard" else _string_bytes(ids))
    end = getattr(library, f"known_ids_{name}_end")
    others = (make(*ids.at, len(ids.array)) for _ in range(1, copies))
    tables = [_Compiled(at, end) for at in (first, *others)]
    find = _finder(getattr(library, f"known_ids_{name}_seconds"), tables)
    return Contender(shown, size, seconds, find)


class _Compiled:
    """A table of known_ids.cpp."""

    def __init__(self, at: int, end: Callable[[int], None]):
        self.at, self._end = at, end

    def __del__(self) -> None:
        self._end(self.at)


def _finder(
    seconds: Callable[..., float], tables: Sequence[Known | _Compiled]
) -> Callable[[Ids, int, np.ndarray], tuple[float, int]]:
    at = (ctypes.c_void_p * len(tables))(*(table.at for table in tables))

    def find(asked: Ids, batch: int, rows: np.ndarray) -> tuple[float, int]:
        count = len(rows) // batch * batch
        return seconds(at, len(tables), *asked.at, count, batch, rows.ctypes.data), count

    return find


def _pandas(ids: Ids) -> Contender:
    before = _resident()

    def make() -> pd.Index:
        index = pd.Index(ids.array.to_pandas())
        index.get_indexer(index[:1])  # makes its hash table
        return index

    index, seconds = _timed(make)

    def find(asked: Ids, batch: int, rows: np.ndarray) -> tuple[float, int]:
        count = min(len(rows) // batch, PYTHON_CALLS) * batch
        values = pd.Index(asked.array.slice(0, count).to_pandas())
        parts = [values[first : first + batch] for first in range(0, count, batch)]
        began = time.thread_time()
        for first, part in zip(range(0, count, batch), parts, strict=True):
            rows[first : first + batch] = index.get_indexer(part) + 1
        return time.thread_time() - began, count

    return Contender("pandas.Index", _resident() - before, seconds, find)


def _compared(
    kind: str, ids: Ids, misses: Ids, contenders: Sequence[Contender], rounds: int
) -> list[dict[str, Any]]:
    """Nanoseconds of a look-up, the fastest of all rounds, which contenders take in turns."""
    wanted = np.random.default_rng(1).choice(len(ids.array), len(misses.array))
    hits = _chosen(ids, wanted)
    found = [
        {
            "ids": kind,
            "table": one.name,
            "bytes": one.bytes / len(ids.array),
            "ids_per_second": len(ids.array) / one.made_seconds,
            "hit_nanoseconds": {},
            "miss_nanoseconds": {},
        }
        for one in contenders
    ]
    rows = np.empty(len(wanted), np.int32)
    for _ in range(rounds):
        for asked, right, name in ((hits, wanted + 1, "hit"), (misses, 0 * wanted, "miss")):
            for batch in BATCHES:
                for one, said in zip(contenders, found, strict=True):
                    seconds, count = one.seconds(asked, batch, rows)
                    assert np.array_equal(rows[:count], right[:count]), (one.name, name)
                    best = said[f"{name}_nanoseconds"]
                    best[str(batch)] = min(best.get(str(batch), np.inf), 1e9 * seconds / count)
    return found


def _chosen(ids: Ids, places: np.ndarray) -> Ids:
    if ids.offsets is None:
        values = ids.values[places]
        return Ids(values, None, pa.array(values))
    return _strings(ids.values.reshape(-1, LETTERS)[places])


def _timed(make: Callable[[], Any]) -> tuple[Any, float]:
    began = time.thread_time()
    return make(), time.thread_time() - began


def _string_bytes(ids: Ids) -> int:
    return 0 if ids.offsets is None else ids.values.nbytes + ids.offsets.nbytes


def _resident() -> int:
    """Bytes of memory that this process has to itself, without those it could give back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages, shared = (int(n) for n in Path("/proc/self/statm").read_text().split()[1:3])
    return (pages - shared) * os.sysconf("SC_PAGE_SIZE")


def _built(work: Path) -> ctypes.CDLL:
    """known_ids.cpp, compiled as setup.py compiles the engine."""
    work.mkdir(parents=True, exist_ok=True)
    out = work / "known_ids.so"
    flags = ("-O3", "-std=c++17", "-shared", "-fPIC")
    subprocess.run(["g++", *flags, str(SOURCE), "-o", str(out)], check=True)
    library, at, number = ctypes.CDLL(str(out)), ctypes.c_void_p, ctypes.c_int64
    for name in ("open", "standard"):
        make = getattr(library, f"known_ids_{name}")
        make.argtypes, make.restype = [at, at, number], at
        end = getattr(library, f"known_ids_{name}_end")
        end.argtypes, end.restype = [at], None
    for name in ("", "open_", "standard_"):
        timed = getattr(library, f"known_ids_{name}seconds")
        timed.argtypes, timed.restype = [at, number, at, at, number, number, at], ctypes.c_double
    return library


def _render(found: list[dict[str, Any]]) -> Table:
    table = Table("ids", "table", "bytes", "ids/s", *(f"hit, {n}" for n in BATCHES))
    for batch in BATCHES:
        table.add_column(f"miss, {batch}")
    for one in found:
        times = [one[f"{w}_nanoseconds"][str(n)] for w in ("hit", "miss") for n in BATCHES]
        told = (f"{one['bytes']:.2f}", f"{one['ids_per_second']:,.0f}")
        table.add_row(one["ids"], one["table"], *told, *(f"{t:.0f}" for t in times))
    return table


def _options() -> argparse.Namespace:
    options = parser(__doc__, data=False)
    options.add_argument("--work", type=Path, default=WORK / "known_ids")
    options.add_argument("--ids", type=int, default=10_000_000)
    options.add_argument("--asked", type=int, default=1 << 20, help="look-ups of a round")
    options.add_argument("--rounds", type=int, default=5)
    return options.parse_args()


if __name__ == "__main__":
    command(main)
