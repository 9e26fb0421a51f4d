"""A server on one core that is asked for three times what it can do, and is left in peace again.

    python -m benchmarks.overload

First its capacity is found: calls of 64 rows of kuairand a second where several wait for one
before. Then calls come at fixed times from another core, whatever the server does: 30 % of the
capacity, three times it, and half of it, without a pause in between. Latencies are from the time
that a call was due. The record has calls by status and their latencies in each phase, how late the
load itself was, the server's memory each second, and after how long it was itself again: from when
on, for a second, no call failed and p99 of each quarter of it was within three times the unloaded
one.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import result
from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.served import load, made
from benchmarks.served.http2 import OK
from benchmarks.served.load import Call, Phase, milliseconds
from benchmarks.served.made import PREDICT, Calls
from benchmarks.served.server import Server, ended_by_sigterm

LOG, SIZE = "kuairand", "64"
CONNECTIONS, IN_FLIGHT = 8, 16
UNLOADED, OVER, AFTER = 0.3, 3.0, 0.5  # of the capacity
PIECE_S = 0.25
TIMES, BACK_S = 3.0, 2.0  # that are allowed


def main() -> None:
    options = _options()
    ended_by_sigterm()
    torch.set_num_threads(1)
    log, work = open_log(options.data, LOG), options.work / "serving"
    artifact = made.compressed(
        lambda: made.original(log, work / LOG / "model", options.set),
        log,
        options.artifact or work / LOG / "served",
    )
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [cores[-1]])
    calls = Calls(artifact.features, log, SIZE)
    file = work / "overload.log"
    with Server.embedcomp(
        artifact.folder, PREDICT, calls.ours[0], file, *options.serve, cores=cores[:1]
    ) as server:
        found = _measured(server, calls.ours, options)
    console.print({name: part for name, part in found.items() if name != "resident_bytes"})
    written = result.write(
        f"overload-{LOG}",
        data={"name": LOG, "rows": {"test": log.rows("test")}},
        settings={
            "rows": calls.rows,
            "connections": CONNECTIONS,
            "in_flight_for_capacity": options.in_flight,
            "shares_of_capacity": [UNLOADED, OVER, AFTER],
            "seconds": options.seconds,
            "serve": options.serve,
            "train": options.set,
            "budget": made.BUDGET,
        },
        seeds=[0],
        results=found,
        folder=options.results,
    )
    print(written)


def _measured(
    server: Server, messages: Sequence[bytes], options: argparse.Namespace
) -> dict[str, Any]:
    capacity = load.closed(
        server.target,
        PREDICT,
        messages,
        in_flight=options.in_flight,
        seconds=options.capacity_seconds,
        warm_up=1.0,
        cpu=server.cpu,
    ).figures(int(SIZE))
    rate = capacity["calls_per_second"]
    shares = {"unloaded": UNLOADED, "over": OVER, "after": AFTER}
    phases = [
        Phase(name, share * rate, seconds)
        for (name, share), seconds in zip(shares.items(), options.seconds, strict=True)
    ]
    resident: list[int] = []
    calls = load.opened(
        server.target,
        PREDICT,
        messages,
        phases,
        connections=CONNECTIONS,
        each_second=lambda _: resident.append(server.resident()),
    )
    told = {
        phase.name: _told([one for one in calls if one.phase == phase.name]) for phase in phases
    }
    unloaded = told["unloaded"]["served"]["p99_ms"]
    began = phases[0].seconds + phases[1].seconds
    back = _back([one for one in calls if one.phase == "after"], began, TIMES * unloaded / 1e3)
    first, last = phases[0].seconds, began
    grown = max(resident[int(last) - 1 :]) - resident[min(int(first) + 1, len(resident) - 1)]
    served = told["over"].get("served", {})
    return {
        "capacity": capacity,
        "phases": told,
        "back_after_seconds": back,
        "resident_bytes": resident,
        "grown_bytes": grown,
        "aims": {
            "p99_times_unloaded": served.get("p99_ms", np.inf) / unloaded,
            "wanted": {"p99_times_unloaded": TIMES, "back_after_seconds": BACK_S},
        },
    }


def _told(calls: Sequence[Call]) -> dict[str, Any]:
    """Calls by status, and latencies of those that were served and of those that were not."""
    served = np.array([one.done - one.due for one in calls if one.status == OK])
    others = np.array([one.done - one.due for one in calls if one.status not in ("", OK)])
    late = np.array([one.sent - one.due for one in calls])
    seconds = max(one.due for one in calls) - min(one.due for one in calls)
    return {
        "asked_per_second": len(calls) / seconds,
        "served_per_second": len(served) / seconds,
        "statuses": dict(Counter(one.status or "no answer" for one in calls)),
        "served": milliseconds(served),
        "refused": milliseconds(others),
        "load_was_late": milliseconds(late),
    }


def _back(calls: Sequence[Call], began: float, limit: float) -> float:
    """Seconds until all is well for a second; NaN: it never is."""
    pieces: dict[int, list[Call]] = {}
    for one in calls:
        pieces.setdefault(int((one.due - began) / PIECE_S), []).append(one)
    well = [_is_well(pieces[place], limit) for place in sorted(pieces)]
    after = round(1 / PIECE_S)
    for place in range(len(well) - after + 1):
        if all(well[place : place + after]):
            return place * PIECE_S
    return float("nan")


def _is_well(calls: Sequence[Call], limit: float) -> bool:
    """Whether all were served, and p99 was within the limit."""
    taken = np.array([one.done - one.due for one in calls])
    return all(one.status == OK for one in calls) and bool(np.quantile(taken, 0.99) <= limit)


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument(
        "--seconds", type=float, nargs=3, default=[10.0, 60.0, 10.0], help="before, over and after"
    )
    options.add_argument("--capacity-seconds", type=float, default=10.0, help="to find it")
    options.add_argument(
        "--in-flight",
        type=int,
        default=IN_FLIGHT,
        help="calls at once to find it; no more than the server takes, or what it refuses counts",
    )
    options.add_argument("--set", action="append", default=[], help="a setting of the trainer")
    options.add_argument("--serve", type=str.split, default=[], help="more for embedcomp serve")
    options.add_argument("--artifact", type=Path, help="what is served, where it is there")
    options.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
