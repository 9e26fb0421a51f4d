"""Linear layers of few bits: products of float32 panels against panels that are kept as codes.

    python -m benchmarks.resident

Codes lie in the order of the engine's panels. A panel is decoded to floats in a small buffer when a
block of rows is multiplied, by loops for one kind of CPU each (resident.inc), and the engine's own
loops do the rest, so that the products are the same to the last bit. Both take turns in one process
and on one thread, whose own clock is read. A layer is alone, or one of several that take about 1.2
MB as floats, as in the models of the other benchmarks. Needs g++ and a CPU with AVX2.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import result
from benchmarks.script import WORK, command, console, parser
from embedcomp.errors import BadSettings

SOURCE = Path(__file__).with_suffix(".cpp")
KINDS = ("row_int8", "row_int4", "row_int2", "weight_clustering")  # as resident.inc has them
SIZES = ((64, 64), (256, 128), (400, 256), (512, 512))  # inputs and outputs
BATCHES = (1, 8, 64, 1024)
MODEL = 1_200_000  # bytes of the layers of a model as floats
PRODUCTS = 2_000_000  # of a turn, at least


def main() -> None:
    options = _options()
    library = _built(options.work)
    found = [
        _compared(library, kind, inputs, outputs, layers, batch, options.rounds)
        for kind in range(len(KINDS))
        for inputs, outputs in SIZES
        for layers in sorted({1, max(1, MODEL // (4 * inputs * outputs))})
        for batch in BATCHES
    ]
    console.print(_render(found))
    file = result.write(
        "resident",
        data={"made_up": True, "kinds": KINDS, "sizes": SIZES, "batches": BATCHES},
        settings={"rounds": options.rounds, "products": PRODUCTS, "model_bytes": MODEL},
        seeds=[0],
        results=found,
        folder=options.results,
    )
    print(file)


def _built(work: Path) -> ctypes.CDLL:
    """The loops, compiled as setup.py compiles the engine."""
    work.mkdir(parents=True, exist_ok=True)
    out = work / "resident.so"
    flags = ("-O3", "-std=c++17", "-Wno-psabi", "-shared", "-fPIC")
    subprocess.run(["g++", *flags, str(SOURCE), "-o", str(out)], check=True)
    library = ctypes.CDLL(str(out))
    library.resident_times.restype = ctypes.c_int64
    numbers = [ctypes.c_int64] * 6
    library.resident_times.argtypes = [ctypes.c_int32, *numbers, ctypes.c_void_p]
    return library


def _compared(
    library: ctypes.CDLL, kind: int, inputs: int, outputs: int, layers: int, batch: int, rounds: int
) -> dict[str, Any]:
    """Microseconds of a product by either way, and the ratio of the medians.

    Raises:
        BadSettings: this CPU has no vectors that the loops are written for.
    """
    calls = max(1, PRODUCTS // (inputs * outputs * layers * batch))
    times = np.zeros((rounds, 2))
    sizes = (inputs, outputs, layers, batch, rounds, calls)
    differ = library.resident_times(kind, *sizes, times.ctypes.data)
    if differ < 0:
        raise BadSettings("the loops of benchmarks/resident.inc need a CPU with AVX2 or AVX-512")
    assert not differ, f"{differ} outputs differ"
    floats, codes = (median(column) for column in times.T.tolist())
    return {
        "kind": KINDS[kind],
        "inputs": inputs,
        "outputs": outputs,
        "layers": layers,
        "batch": batch,
        "float_microseconds": 1e6 * floats / (calls * layers),
        "code_microseconds": 1e6 * codes / (calls * layers),
        "times_slower": codes / floats,
    }


def _render(found: list[dict[str, Any]]) -> Table:
    table = Table("kind", "inputs x outputs", "layers", *(f"batch {n}" for n in BATCHES))
    for first in range(0, len(found), len(BATCHES)):
        some = found[first : first + len(BATCHES)]
        one = some[0]
        shape = f"{one['inputs']} x {one['outputs']}"
        ratios = (f"{each['times_slower']:.2f}x" for each in some)
        table.add_row(one["kind"], shape, str(one["layers"]), *ratios)
    return table


def _options() -> argparse.Namespace:
    options = parser(__doc__, data=False)
    options.add_argument("--work", type=Path, default=WORK / "resident")
    options.add_argument("--rounds", type=int, default=21)
    return options.parse_args()


if __name__ == "__main__":
    command(main)
