"""Records of runs: what was measured, on what, with what, when. They are added and never edited.

    file = result.write("latency", data=..., settings=..., seeds=[0], results=...)

writes results/latency/DATE-COMMIT.json, so each run of a benchmark has a record of its own. A long
benchmark keeps what it has done in a folder of `benchmarks.script.WORK`, which is another one for
another commit: the same command goes on where it was stopped, and no record mixes two programs.
Commit records after the last run only, together. Documents name the records that their figures are
from (`python -m benchmarks.figures`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

from embedcomp.compare.provenance import PACKAGES, machine, versions

RESULTS = Path(__file__).parent / "results"
TOP = Path(__file__).parents[1]
_BEGAN = perf_counter()
# What does not run makes no difference to figures.
PROGRAM = (".", ":!benchmarks/results", ":!docs", ":!tests", ":!*.md")


@dataclass(frozen=True)
class Source:
    """The program that runs.

    commit: in full; "unknown" outside a checkout.
    changes: digest of what differs from the commit; empty if nothing does.
    """

    commit: str
    changes: str = ""

    @property
    def name(self) -> str:
        """The commit's first digits, with "+" and a digest where files differ from it."""
        return self.commit[:7] + (f"+{self.changes}" if self.changes else "")


@cache
def source() -> Source:
    """The program as it is when it is first asked for, which is at the start of a run."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return Source(commit, _changes_since(commit))
    except (OSError, subprocess.CalledProcessError):
        return Source("unknown")


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
    """Write a new file NAME/DATE-COMMIT.json into `folder`.

    Args:
        data: what was read: name and rows.
        settings: everything that can be set and has an influence.
        peers: versions of packages outside this environment.
    """
    now, ran = datetime.now(UTC), source()
    content = {
        "benchmark": name,
        "date": now.isoformat(timespec="seconds"),
        "commit": ran.commit,
        "dirty": _is_dirty(ran),
        "process_seconds": perf_counter() - _BEGAN,  # a run that was stopped took longer
        "data": data,
        "settings": settings,
        "seeds": seeds,
        "machine": machine(),
        "versions": {"embedcomp": ran.name, **versions(PACKAGES), **(peers or {})},
        "results": results,
    }
    file = folder / name / f"{now:%Y-%m-%dT%H-%M-%S}-{ran.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
    return file


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation of one figure over seeds, and the figure of each seed."""
    deviation = stdev(values) if len(values) > 1 else None
    return {"mean": mean(values), "std": deviation, "values": list(values)}


def _is_dirty(ran: Source) -> bool:
    """Whether the program differed from its commit at the start, or does now."""
    known = ran.commit != "unknown"
    return bool(ran.changes) or (known and bool(_changes_since(ran.commit)))


def _changes_since(commit: str) -> str:
    """Digest of the program's files that are not as they were at a commit, or not in git."""
    differing = _git("diff", "--binary", commit, "--", *PROGRAM)
    others = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *PROGRAM)
    files = [TOP / name for name in others.split("\0") if name]
    if not differing and not files:
        return ""
    content = differing.encode() + b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:6]


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True).stdout
