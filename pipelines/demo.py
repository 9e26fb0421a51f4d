"""The whole chain on this machine: `python -m embedcomp.pipelines.demo --rows N --out DIR`.

Writes a made-up log, runs the job on a local Ray, serves the artifact, sends the test split over
gRPC and prints one table. Run again, it only does what is not done yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from embedcomp.errors import EmbedcompError
from embedcomp.log.click_log import ClickLog
from embedcomp.log.synth import synth
from embedcomp.pipelines.cluster import connected
from embedcomp.pipelines.job import Job
from embedcomp.pipelines.records import say
from embedcomp.pipelines.settings import TEST, located
from embedcomp.recipes.evaluate import render
from embedcomp.recipes.settings import CompressSettings, JobSettings
from embedcomp.serving.client import Client
from embedcomp.serving.predict import predict_log
from embedcomp.support.files import refuse_unwritable, remove, replacing
from embedcomp.swapping.settings import TuneSettings

BUDGET, TUNE_EPOCHS = "5x", 1
STOP_SECONDS = 30.0  # that the server has to finish


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        demo(given.out, given.rows)
    except EmbedcompError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def demo(out: Path, rows: int) -> None:
    """Run everything in the folder `out` and print the table."""
    began = time.perf_counter()
    refuse_unwritable(out)
    teacher = _log(out, rows)
    settings = located(
        JobSettings(
            log=str(out / "log"),
            out=str(out),
            compress=CompressSettings(budget=BUDGET, tune=TuneSettings(epochs=TUNE_EPOCHS)),
        )
    )
    with connected():
        result = Job(settings).run()
    say("serve and predict: begins")
    with (
        served(Path(result["models"]["compressed"]["path"])) as target,
        Client(target) as client,
    ):
        wire = predict_log(client, ClickLog(settings.log), TEST)
    found = {**result, "teacher": teacher, "wire": wire}
    with replacing(out / "demo.json") as fresh:
        fresh.write_text(json.dumps(found, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_table(found))
    console.print(f"{rows:,} rows, {time.perf_counter() - began:.0f} s; {out / 'demo.json'}")


@contextmanager
def served(artifact: Path) -> Iterator[str]:
    """Within the block, a server of the artifact in a process of its own, at the address given.

    Raises:
        EmbedcompError: the server did not start, or did not stop when it was told to.
    """
    command = ["-m", "embedcomp.cli.main", "serve", str(artifact), "--port", "0"]
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            words = server.stdout.readline().split()
            if not words:
                raise EmbedcompError(f"the server ended with {server.wait()}; its error is above")
            yield words[-1]
        finally:
            server.terminate()
            _stopped(server)


def _stopped(server: subprocess.Popen[str]) -> None:
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired as error:
        server.kill()
        raise EmbedcompError(
            f"the server did not stop within {STOP_SECONDS:.0f} s of SIGTERM and was killed"
        ) from error


def _log(out: Path, rows: int) -> dict[str, Any]:
    """Write the log, unless one of as many rows is there; returns its teacher's own quality."""
    note = out / "log.json"
    if note.exists():
        found = json.loads(note.read_text())
        if sum(found["rows"].values()) == rows:
            return dict(found["teacher"])
    say(f"log: {rows:,} rows are made up")
    note.unlink(missing_ok=True)
    remove(out / "log")
    written = synth(out / "log", rows).to_dict()
    with replacing(note) as fresh:
        fresh.write_text(json.dumps(written, indent=1) + "\n")
    return _log(out, rows)


def _table(found: dict[str, Any]) -> Table:
    """Original, control and compressed; the ceiling; and the artifact over the wire."""
    table = render(found["models"])
    wire, teacher = found["wire"], found["teacher"]
    calls = f"{wire['calls']:,} calls of {wire['rows'] / wire['calls']:.0f} rows"
    table.caption = (
        f"over gRPC: {wire['rows_per_second']:,.0f} rows/s in {calls}, "
        f"p50 {wire['p50_ms']:.1f} ms, p99 {wire['p99_ms']:.1f} ms; "
        "no model can pass the teacher that the clicks were drawn from"
    )
    table.add_section()
    table.add_row("over gRPC", f"{wire['auc']:.5f}", f"{wire['logloss']:.5f}")
    table.add_row("teacher", f"{teacher['auc']:.5f}", f"{teacher['logloss']:.5f}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedcomp.pipelines.demo", description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the made-up log")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for everything")
    return parser


if __name__ == "__main__":
    sys.exit(main())
