"""Figures of `benchmarks.scale`: a deployment that was simulated."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record, claim

GB = 1e9


def plan(record: Record) -> list[str]:
    """What is deployed, and what a call does there."""
    one = record["results"]["the plan"]
    of, failed = one["traffic"], one["failures"]["2"]
    rows = [
        ["ids of a table", f"{one['ids_of_a_table']:,}"],
        ["bytes of a slot", f"{one['slot_bytes'] / GB:,.1f} GB"],
        ["slots of a machine", f"{one['slots_of_machine']}"],
        ["groups of replicas", f"{one['groups']}"],
        ["machines with slots", f"{one['machines']}"],
        ["machines of fronts", f"{of['fronts']}"],
        ["look-ups that the front answers itself", f"{of['front_share']:.1%}"],
        ["load of the busiest group, times the mean", f"{of['busiest_group']:.3f}"],
        ["share of a shard's answering cores that is busy", f"{of['busy']:.0%}"],
        ["messages of a call", f"{of['messages']}"],
        ["bytes sent of a call", f"{of['bytes_sent'] / 1e3:,.1f} kB"],
        ["bytes answered", f"{of['bytes_answered'] / 1e3:,.1f} kB"],
        ["answers to all fronts", f"{of['front_network'] / GB:,.1f} GB/s"],
        ["a front's cores for a call", f"{of['front_ms']:.2f} ms"],
        ["until a machine that failed is back", f"{failed['back_s'] / 60:,.1f} minutes"],
        ["failures of machines in a year", f"{failed['failures_a_year']:,.0f}"],
    ]
    return table(["", "simulated"], rows)


def varied(record: Record) -> list[str]:
    """The plan and what one other assumption makes of it."""
    head = ["", "groups", "busy", "a shard's p99", "the slowest's p50", "p99", "a call's p99"]
    head += ["front machines", "without a slot, 1 replica", "2", "3", "needed"]
    rows = []
    for name, one in record["results"].items():
        of = one["traffic"]
        times = [of["one"]["p99_ms"], of["slowest"]["p50_ms"], of["slowest"]["p99_ms"]]
        times.append(of["call"]["p99_ms"])
        gone = [1 - failed["available"] for failed in one["failures"].values()]
        rows.append(
            [
                name,
                f"{one['groups']}",
                f"{of['busy']:.0%}",
                *(f"{time:.2f} ms" for time in times),
                f"{of['fronts']}",
                *(f"{share:.1e}" for share in gone),
                str(one["replicas_needed"]),
            ]
        )
    return table(head, rows)


def words(record: Record) -> list[float]:
    """What the text says: how much the assumptions matter."""
    results = record["results"]
    base = results["the plan"]
    small = results["with machines of 256 GB"]
    claim(base["replicas_needed"] == 2, "two replicas are enough")
    anywhere = results["with replicas in any rack"]["failures"]
    claim(
        anywhere["3"]["available"] < base["failures"]["2"]["available"],
        "two replicas in different racks are better than three in any",
    )
    claim(
        all(one["traffic"]["late"] == 0 for one in results.values()),
        "no simulated call missed its deadline",
    )
    return [
        base["traffic"]["slowest"]["p99_ms"],
        base["traffic"]["call"]["p99_ms"],
        small["groups"],
        small["traffic"]["front_ms"],
        small["traffic"]["fronts"],
        results["with ten times the stalls"]["traffic"]["slowest"]["p99_ms"],
        results["with twice the calls"]["traffic"]["busy"] * 100,
        results["with twice the calls"]["traffic"]["slowest"]["p99_ms"],
    ]


def lookups(record: Record) -> list[str]:
    """Microseconds of looking up by the engine and by fbgemm (`benchmarks.lookups`)."""
    ways = {
        "engine_us": "engine, in a shard",
        "fbgemm_shard_us": "fbgemm, in a shard",
        "fbgemm_us": "its operator alone",
        "scored_engine_us": "a model scored, engine",
        "scored_fbgemm_us": "fbgemm",
    }
    there = {way: said for way, said in ways.items() if way in record["results"][0]}
    lines = []
    for one in record["results"]:
        equal = "to the bit" if one["equal"] else f"{one['largest_difference']:.0e}"
        lines.append([one["storage"], *(f"{one[way]:.0f}" for way in there), equal])
    return table(["rows", *there.values(), "equal"], lines)


def sharded(record: Record) -> list[str]:
    """Milliseconds of a call by who has its rows, and calls a second (`benchmarks.sharded`)."""
    found, whole = record["results"], record["results"]["latency"]["one process"]
    lines = []
    for name, of in found["latency"].items():
        times = [f"{of[f'p{p}_ms']:.2f}" for p in (50, 99)]
        more = [f"{of[f'p{p}_ms'] - whole[f'p{p}_ms']:+.2f}" for p in (50, 99)]
        if of is whole:
            more = ["", ""]
        lines.append([name, *times, *more, f"{found['throughput'][name]:,.0f}"])
    names = ["scored by", "p50 ms", "p99 ms", "more, p50", "more, p99", "calls/s"]
    return table(names, lines)


LOG_ROWS = 1e11
CORES = 1_600  # of a hundred machines


def steps(counted: Record, logs: Record, workers: Record, known: Record) -> list[str]:
    """Rates on record, and what they make of a large log if cores add up."""
    cores = counted["machine"]["cores"]
    count = counted["results"]["30000000"]["count"]
    made = logs["results"]["10000000"]
    trained = workers["results"]["large"]["two, rowwise_adagrad"]
    rate = trained["rows_per_second"]["mean"]
    sent = trained["sent_bytes_a_step"]["mean"] / workers["settings"]["batch_rows"]
    ids = next(
        one for one in known["results"] if one["ids"] == "int64" and one["table"] == "embedcomp"
    )

    def hours(rows_s: float) -> str:
        return f"{LOG_ROWS / rows_s * cores / CORES / 3600:,.1f} h"

    measured, evaluated = made["measure"], made["evaluate"]["rows_per_second"]
    per_second, bytes_known = count["rows_per_second"], ids["bytes"] * 10e12 / 256
    sampled = f"{measured['rows']:,} rows, {measured['seconds']:,.0f} s"
    lines = [
        ["count", "long_logs", f"{per_second:,.0f} rows/s", hours(per_second)],
        ["train, an epoch", "workers", f"{rate:,.0f} rows/s", hours(rate)],
        [
            "its exchange",
            "workers",
            f"{sent:,.0f} bytes a row",
            f"{sent * LOG_ROWS / 1e12:,.0f} TB",
        ],
        ["measure", "long_logs", sampled, "the same rows"],
        ["evaluate", "long_logs", f"{evaluated:,.0f} rows/s", "a bounded sample"],
        [
            "known ids",
            "known_ids",
            f"{ids['bytes']:.1f} bytes an id",
            f"{bytes_known / GB:,.0f} GB",
        ],
    ]
    return table(["step", "record", "two cores, shared", "10^11 rows, 10 TB"], lines, text=(0, 1))
