"""Figures of `benchmarks.scoring`: microseconds a call on one thread, and times as fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record, claim
from embedcomp.engine.standalone import PRECISIONS

FLOAT, COMPILED = "torchrec float", "torchrec int8, AOTInductor"
OURS = tuple(f"embedcomp {precision}" for precision in PRECISIONS)
BATCHES = ("1", "64", "1024")
MIB = 2**20
MODELS = {
    "original": "original",
    "all_5x_tuned_1": "5x, tuned",
    "all_20x_tuned_1": "20x, tuned",
}


def rank_64(record: Record) -> list[str]:
    return _yardstick(record, 64)


def rank_16(record: Record) -> list[str]:
    return _yardstick(record, 16)


def yardstick(record: Record) -> Iterator[float]:
    """bfloat16 against the compiled int8; shares of the roofline; differences."""
    made = {rank: record["results"]["yardstick"][f"rank_{rank}"] for rank in (64, 16)}
    for one in made.values():
        calls = one["microseconds"].values()
        yield min(taken[COMPILED] / taken["embedcomp bfloat16"] for taken in calls)
    for one in made.values():
        for precision in PRECISIONS:
            shares = one["share_of_the_roofline"][precision]
            yield from (100 * shares[rows] for rows in BATCHES)
    for one in made.values():
        yield one["largest_difference_of_probabilities"]["embedcomp float32"]
    yield made[16]["spread_of_probabilities"]
    yield made[16]["largest_difference_of_probabilities"][COMPILED]


def aims(*records: Record) -> Iterator[float]:
    """Times as fast as torchrec float in the fastest precision: rank 64, then rank 16.

    Args:
        records: of a CPU where no aim of one row is met, and of one where int8 meets it.
    """
    for record, meeting in zip(records, ([], [OURS[-1]]), strict=True):
        for rank, aim in ((64, 15), (16, 18)):
            made = record["results"]["yardstick"][f"rank_{rank}"]
            speeds = made["microseconds"]["1"]
            met = [p for p in OURS if round(speeds[FLOAT] / speeds[p], 1) >= aim]
            claim(met == meeting, f"the aim of one row is met in {', '.join(meeting) or 'none'}")
            yield from (_best(made, rows) for rows in BATCHES)


def matrix_unit(record: Record, before: Record) -> Iterator[float]:
    """Products a nanosecond in bfloat16 and float32; times as fast as float32 a call of 4,096 rows
    in bfloat16 is, by rank, and what it was by vectors."""
    products = record["results"]["yardstick"]["rank_64"]["limits"]["float32"]["products"]
    yield products["bfloat16"] / 1e9
    yield products["float32"] / 1e9
    for one in (record, before):
        for rank in (64, 16):
            speeds = one["results"]["yardstick"][f"rank_{rank}"]["microseconds"]["4096"]
            faster = speeds["embedcomp float32"] / speeds["embedcomp bfloat16"]
            claim((faster > 1) == (one is record), "the matrix unit makes the difference")
            yield faster


def kuairand(record: Record) -> list[str]:
    """DCN-V2 in each precision: AUC, log loss, microseconds and times as fast as torchrec."""
    made = record["results"]["kuairand"]
    head = ["model", "products", "AUC", "log loss", "1 row", "64 rows", "1,024 rows"]
    contenders = [("original, torchrec", "float32", FLOAT)]
    contenders += [(MODELS[m], p, f"{m} {p}") for m in MODELS for p in PRECISIONS]
    rows = [
        [
            *(model, precision, f"{made['auc'][name]:.5f}", f"{made['logloss'][name]:.5f}"),
            *(_call(made["microseconds"][rows], name) for rows in BATCHES),
        ]
        for model, precision, name in contenders
    ]
    return table(head, rows, text=(0, 1))


def int8_costs(record: Record) -> Iterator[float]:
    """The AUC that int8 products cost at most."""
    auc = record["results"]["kuairand"]["auc"]
    bfloat16 = max(abs(auc[f"{name} bfloat16"] - auc[f"{name} float32"]) for name in MODELS)
    claim(bfloat16 < 0.0001, "bfloat16 costs no AUC that shows")
    yield max(auc[f"{name} float32"] - auc[f"{name} int8"] for name in MODELS)


def one_user(record: Record) -> Iterator[float]:
    """Microseconds sent whole and as one user, and their ratio: kuairand, then the yardstick."""
    for model in ("kuairand", "yardstick"):
        made = record["results"]["one_user"][model]
        claim(all(made[p]["scores_are_identical"] for p in PRECISIONS), "scores are identical")
        for precision in ("float32", "bfloat16"):
            taken = made[precision]["microseconds"]
            whole, once = taken["rows sent whole"], taken["one user"]
            yield from (whole, once, whole / once)


def processes(record: Record) -> Iterator[float]:
    """Memory of 1 and of 4 processes in MiB, the largest one's; seconds to the first scores."""
    made = record["results"]["processes"]
    one, four = made["yardstick"]["1"], made["yardstick"]["4"]
    claim(not one["imports_torch"], "it starts without torch")
    yield from (one["proportional_bytes"] / MIB, four["proportional_bytes"] / MIB)
    yield max(four["resident_bytes"]) / MIB
    yield from (made[name]["1"]["ready_seconds"][0] for name in ("yardstick", "kuairand"))
    yield max(four["ready_seconds"])


def _yardstick(record: Record, rank: int) -> list[str]:
    made = record["results"]["yardstick"][f"rank_{rank}"]["microseconds"]
    rows = [
        [f"{int(size):,}", f"{taken[FLOAT]:,.0f}", *(_call(taken, n) for n in (COMPILED, *OURS))]
        for size, taken in made.items()
    ]
    return table([f"rows, rank {rank}", FLOAT, COMPILED, *OURS], rows, text=())


def _call(taken: dict[str, float], name: str) -> str:
    return f"{taken[name]:,.0f} ({taken[FLOAT] / taken[name]:.1f}x)"


def _best(made: dict[str, Any], rows: str) -> float:
    """Times as fast as torchrec float, in the fastest precision."""
    taken = made["microseconds"][rows]
    times: float = max(taken[FLOAT] / taken[name] for name in OURS)
    return times
