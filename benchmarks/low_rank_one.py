"""One contender of low_rank_speed in this process: time, memory and error of its factors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.child import answer

CHUNK_ROWS = 1 << 16
Approximation = Callable[[slice], np.ndarray]  # rows of the approximated table


def embedcomp_counts(table: np.ndarray, counts: np.ndarray, rank: int) -> Approximation:
    """embedcomp's low_rank, each row weighted by its count."""
    return _embedcomp("low_rank", table, counts, rank)


def embedcomp_uniform(table: np.ndarray, counts: np.ndarray, rank: int) -> Approximation:
    """embedcomp's low_rank with every row alike, as the plain decompositions take them."""
    return _embedcomp("low_rank", table, np.zeros_like(counts), rank)


def embedcomp_svd(table: np.ndarray, counts: np.ndarray, rank: int) -> Approximation:
    """embedcomp's svd: exactly the truncated decomposition, from the Gram matrix."""
    return _embedcomp("svd", table, counts, rank)


def numpy_svd(table: np.ndarray, counts: np.ndarray, rank: int) -> Approximation:
    """numpy.linalg.svd of the whole table, then cut."""
    u, s, vt = np.linalg.svd(table, full_matrices=False)
    codes, decoder = u[:, :rank] * s[:rank], vt[:rank]
    return lambda rows: codes[rows] @ decoder


def torch_svd_lowrank(table: np.ndarray, counts: np.ndarray, rank: int) -> Approximation:
    """torch.svd_lowrank with its default of two power iterations."""
    import torch

    u, s, v = torch.svd_lowrank(torch.from_numpy(table), q=rank)
    codes, decoder = (u * s).numpy(), v.T.numpy()
    return lambda rows: codes[rows] @ decoder


CONTENDERS = {
    made.__name__: made
    for made in (embedcomp_counts, embedcomp_uniform, embedcomp_svd, numpy_svd, torch_svd_lowrank)
}


def _embedcomp(method: str, table: np.ndarray, counts: np.ndarray, rank: int) -> Approximation:
    import torch

    from embedcomp import methods
    from embedcomp.modules.table import CompressedTable
    from embedcomp.sensitivity.layer import Layer, TableSpec, TableStatistics

    rows, dim = table.shape
    spec = TableSpec(name="table", rows=rows, dim=dim, pooling="sum")
    statistics = TableStatistics(torch.from_numpy(counts))
    layer = Layer(spec, torch.from_numpy(table), None, statistics)
    found = methods.get(method)
    settings = found.Settings(rank=rank, storage="float32")
    served = found.compress(layer, settings)
    assert isinstance(served, CompressedTable)
    codes, constant = served.stored.to_float(), torch.ones(1, 1)
    return lambda rows: served.decoded(codes[rows], constant).detach().numpy()


def errors(table: np.ndarray, counts: np.ndarray, approximation: Approximation) -> dict[str, float]:
    """Norm of the error over the norm of the table: all rows alike, and weighted by counts."""
    lost, whole = np.zeros(2), np.zeros(2)
    for rows in _slices(len(table)):
        exact = table[rows].astype(np.float64)
        wrong = np.square(exact - approximation(rows)).sum(1)
        weights = np.stack([np.ones_like(wrong), counts[rows]])  # [2, rows]
        lost += weights @ wrong
        whole += weights @ np.square(exact).sum(1)
    unweighted, weighted = np.sqrt(lost / whole)
    return {"error": float(unweighted), "weighted_error": float(weighted)}


def _slices(rows: int) -> Iterator[slice]:
    for start in range(0, rows, CHUNK_ROWS):
        yield slice(start, start + CHUNK_ROWS)


def _warm_up(contender: Callable[..., Approximation], rank: int) -> None:
    """Import what it needs and start its threads, outside of the measured time."""
    small = np.random.default_rng(0).normal(size=(4 * rank, 2 * rank)).astype(np.float32)
    contender(small, np.ones(len(small)), rank)


def _peak_bytes() -> int:
    """Resident; getrusage would begin with the peak of the process this was started from."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    name, folder, rank, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if name != numpy_svd.__name__:  # NumPy's threads are set by the environment
        import torch

        torch.set_num_threads(int(threads))
    contender = CONTENDERS[name]
    _warm_up(contender, rank)
    table, counts = np.load(folder / "table.npy"), np.load(folder / "counts.npy")
    before, began = _peak_bytes(), perf_counter()
    approximation = contender(table, counts, rank)
    seconds, peak = perf_counter() - began, _peak_bytes()
    answer(
        seconds=seconds,
        peak_bytes=peak,
        added_bytes=peak - before,  # beyond the process with the table in memory
        **errors(table, counts, approximation),
    )


if __name__ == "__main__":
    main()
