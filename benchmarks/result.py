"""Result files of benchmarks: what was measured, on what, with what, when. They are only added."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from embedcomp.compare.provenance import PACKAGES, machine, versions

RESULTS = Path(__file__).parent / "results"


def write(
    name: str,
    *,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    results: Any,
    peers: Mapping[str, str | None] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write NAME.json into `folder`, or NAME-DATE.json where there is one already.

    Args:
        data: what was read: name and rows.
        settings: everything that can be set and has an influence.
        peers: versions of packages outside this environment.
    """
    now = datetime.now(UTC)
    content = {
        "benchmark": name,
        "date": now.isoformat(timespec="seconds"),
        "data": data,
        "settings": settings,
        "seeds": seeds,
        "machine": machine(),
        "versions": {"embedcomp": _commit(), **versions(PACKAGES), **(peers or {})},
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    if file.exists():
        file = folder / f"{name}-{now:%Y-%m-%dT%H-%M-%S}.json"
    with file.open("x") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
    return file


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation of one figure over seeds, and the figure of each seed."""
    deviation = stdev(values) if len(values) > 1 else None
    return {"mean": mean(values), "std": deviation, "values": list(values)}


def _commit() -> str:
    """The commit that ran, "+" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
