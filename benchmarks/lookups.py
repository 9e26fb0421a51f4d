"""fbgemm's operator for quantized tables against the engine, on the same rows.

    python -m benchmarks.lookups

Made-up tables are looked up, an id a row and table, by both in turns: what fbgemm reads, float32,
float16 and rows of 8, 4 and 2 bits. The operator has a row's scale and offset at its front, and
stored rows have them at their end, so for rows of bits it is given a copy in its own layout; floats
are read where they lie. The engine runs as a shard does, which pools rows of slots for a message;
the operator runs so too (`--lookups fbgemm`), and alone on whole tables with its inputs prepared.
Then a model on one machine is scored with rows by either.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from rich.table import Table

import embedcomp
from benchmarks import result
from benchmarks.script import command, console, parser
from benchmarks.sharded import Clicks, inputs
from embedcomp.engine.arrays import as_array
from embedcomp.kernels import native, routing
from embedcomp.kernels.routing import SLOTS
from embedcomp.sharding.by_fbgemm import Fbgemm, Rows
from embedcomp.sharding.pooled import Pooled
from embedcomp.storage.kind import RowByRow
from embedcomp.storage.kinds import named

STORAGES = {
    "float32": 0,
    "float16": 1,
    "row_int8": 2,
    "row_int4": 3,
    "row_int2": 4,
}  # fbgemm's types
HOST = 3  # where fbgemm is told that rows are
TIMES = ("engine_us", "fbgemm_shard_us", "fbgemm_us", "scored_engine_us", "scored_fbgemm_us")
CODES_AT = 4  # bytes of scale and offset


def main() -> None:
    options = parser(__doc__, data=False)
    options.add_argument("--tables", type=int, default=26)
    options.add_argument("--ids", type=int, default=100_000)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--calls", type=int, default=3_000)
    given = options.parse_args()
    torch.set_num_threads(1)
    found = [measured(storage, given) for storage in STORAGES]
    console.print(_render(found))
    sizes = {n: getattr(given, n) for n in ("tables", "ids", "width", "rows", "calls")}
    print(
        result.write(
            "lookups", data={"made_up": True}, settings=sizes, seeds=[0], results=found,
            folder=given.results,
        )
    )  # fmt: skip


def measured(storage: str, given: Any) -> dict[str, Any]:
    """Microseconds of both, and how far what they give is apart."""
    import fbgemm_gpu  # noqa: F401

    kind = named(storage)
    assert isinstance(kind, RowByRow)
    generator = torch.manual_seed(0)
    stored = [
        kind.encode(torch.randn(given.ids, given.width, generator=generator), None)
        for _ in range(given.tables)
    ]
    random = np.random.default_rng(0)
    drawn = (given.ids * random.random((200, given.tables, given.rows)) ** 3).astype(np.int64)
    ways: dict[str, Any] = {
        "engine": Shard(kind, stored, given, by_fbgemm=False),
        "fbgemm_shard": Shard(kind, stored, given, by_fbgemm=True),
        "fbgemm": Operator(storage, stored, given),
    }
    one, *others = (way.rows(drawn[0]) for way in ways.values())
    times: dict[str, list[int]] = {name: [] for name in ways}
    for call in range(given.calls):
        ids = drawn[call % len(drawn)]
        for name, runs in ways.items():
            prepared = runs.prepared(ids)
            began = perf_counter_ns()
            runs.run(prepared)
            times[name].append(perf_counter_ns() - began)
    return {
        "storage": storage,
        "in_place": storage.startswith("float"),
        "largest_difference": max(float(np.abs(one - other).max()) for other in others),
        "equal": all(np.array_equal(one, other) for other in others),
        **whole(storage, given),
        **{f"{name}_us": median(of) / 1e3 for name, of in times.items()},
        **{f"{name}_p99_us": float(np.percentile(of, 99)) / 1e3 for name, of in times.items()},
    }


def whole(storage: str, given: Any) -> dict[str, float]:
    """Microseconds of a call of a model on one machine, in turns: tables, two layers and all."""
    model = Clicks(given.tables, given.ids, given.width).eval()
    if storage != "float32":
        embedcomp.swap_(model, {"tables.*": "half" if storage == "float16" else storage})
    batches = [inputs(given, seed) for seed in range(20)]
    with TemporaryDirectory() as folder:
        saved = embedcomp.save(
            model, Path(folder) / "model", score=lambda m, x: m(*x), example=batches[0]
        )
        scorers = {by: embedcomp.Scorer(saved, lookups=by) for by in ("engine", "fbgemm")}
        times: dict[str, list[int]] = {by: [] for by in scorers}
        for call in range(given.calls):
            for by, scorer in scorers.items():
                began = perf_counter_ns()
                scorer.score(batches[call % len(batches)])
                times[by].append(perf_counter_ns() - began)
    return {f"scored_{by}_us": median(of) / 1e3 for by, of in times.items()}


class Shard:
    """Rows of slots, pooled for a message as a shard does, by the engine or by fbgemm."""

    def __init__(self, kind: RowByRow, stored: list[torch.Tensor], given: Any, by_fbgemm: bool):
        self._held: list[Any] = []
        self._tables = (routing.Slotted * given.tables)()
        by_slot: dict[int, Rows] = {}
        for number, (struct, rows) in enumerate(zip(self._tables, stored, strict=True)):
            slots = [as_array(rows[slot::SLOTS].contiguous()) for slot in range(SLOTS)]
            by_slot[number] = Rows(kind, given.width, slots)
            places = (native.c_void_p * SLOTS)()
            for slot, own in enumerate(slots):
                found = kind.located({"stored": own}, len(own), given.width, -1)
                places[slot] = native.ctypes.addressof(found.rows)
                self._held.append((own, found))
            self._held.append(places)
            struct.slots = native.ctypes.addressof(places)
            struct.num_ids, struct.width, struct.number = given.ids, given.width, SLOTS
        self._shape = given.tables, given.rows, given.width + 1
        self._pooled = Pooled(self._tables, given.tables, 1)
        if by_fbgemm:
            self._pooled.have(Fbgemm(by_slot), range(SLOTS))

    def prepared(self, ids: np.ndarray) -> np.ndarray:
        """A message for ids [tables, rows]."""
        words = [0x31534345, len(ids), 1, 0]
        for table, own in enumerate(ids):
            words += [table, len(own), len(own), 0, *[1] * len(own), *own.tolist()]
        return np.array(words, np.uint32)

    def run(self, message: np.ndarray) -> np.ndarray:
        return self._pooled.pool(message)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Float32 [tables, rows, width]."""
        return self.run(self.prepared(ids)).reshape(self._shape)[:, :, :-1]


class Operator:
    """The operator of fbgemm's inference module, on host memory."""

    def __init__(self, storage: str, stored: list[torch.Tensor], given: Any):
        rows = [own.contiguous().view(torch.uint8).view(given.ids, -1) for own in stored]
        if not storage.startswith("float"):
            rows = [torch.cat([own[:, -CODES_AT:], own[:, :-CODES_AT]], 1) for own in rows]
        self._weights = torch.cat([own.reshape(-1) for own in rows])
        tables, width, which = given.tables, given.width, STORAGES[storage]
        widest = [width * (which == kind) for kind in (4, 3, 2, 1, 0)]  # of int2 to float32
        self._about = (
            self._weights,
            torch.full((tables,), HOST, dtype=torch.int32),
            torch.arange(tables) * rows[0].numel(),
            torch.full((tables,), which, dtype=torch.uint8),
            torch.arange(tables + 1, dtype=torch.int32) * width,
            tables * width,
            *widest,
        )
        self._offsets = torch.arange(tables * given.rows + 1, dtype=torch.int32)
        self._run = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function
        self._shape = given.rows, tables, width

    def prepared(self, ids: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(ids.reshape(-1).astype(np.int32))

    def run(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._run(
            self._weights, *self._about, ids, self._offsets, 0, None, 0, row_alignment=1
        )
        return found

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Float32 [tables, rows, width]."""
        return self.run(self.prepared(ids)).view(self._shape).transpose(0, 1).numpy()


def _render(found: list[dict[str, Any]]) -> Table:
    head = ("rows", "engine us", "fbgemm in a shard us", "fbgemm us", "scored, engine", "fbgemm")
    table = Table(*head, "difference")
    for one in found:
        times = [one[n] for n in TIMES]
        difference = f"{one['largest_difference']:.1e}"
        table.add_row(one["storage"], *(f"{time:.1f}" for time in times), difference)
    return table


if __name__ == "__main__":
    command(main)
