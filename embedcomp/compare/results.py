"""The file of a comparison's results: one JSON line each, only ever added to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from embedcomp.compare.cells import Epochs
from embedcomp.errors import BadResults
from embedcomp.log.schema import first_problem

NAME = "results.jsonl"


class Record(BaseModel):
    """One result: its cell, its figures or the reason why there are none, and how it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str  # names the cell, its settings and the log
    setup: str  # names what all cells of one table have in common
    data: dict[str, Any]  # name, rows by split, fingerprint
    model: str
    method: str
    budget: str
    seed: int
    train_epochs: int = 0  # of the compressed form, or of the control before it is tuned
    from_log: bool = False  # whether the form began with drawn numbers
    form: str = ""  # names the other settings of that training; empty: there was none
    tune_epochs: int
    split: str
    reason: str | None = None  # why this cannot be made
    budget_bytes: int | None = None
    bytes: dict[str, int] = {}  # total, tables, dense, and disk
    auc: float | None = None
    logloss: float | None = None
    calibration: float | None = None
    rows: int | None = None
    rows_per_second: dict[str, float] = {}  # by batch size
    predicted_loss: float | None = None
    plan: str | None = None  # digest
    mix: dict[str, int] = {}  # layers by method
    settings: dict[str, Any]
    versions: dict[str, Any]
    machine: dict[str, Any]
    date: str
    seconds: dict[str, float]  # by step

    @property
    def epochs(self) -> Epochs:
        """What a compressed model got, or the control on labels."""
        return Epochs(
            train=self.train_epochs, from_log=self.from_log, form=self.form, tune=self.tune_epochs
        )

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not made: {self.reason}"
        seconds = sum(self.seconds.values())
        return f"AUC {self.auc:.5f}, {self.bytes['total']:,} bytes, {seconds:,.0f} s"


def read(file: Path) -> list[Record]:
    """Every whole line; the last may have been cut short by a kill.

    Raises:
        BadResults: another line is not a result.
    """
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last line end is not whole
    return [_read_line(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]


def append(file: Path, record: Record) -> None:
    """Add a line, in place of one that was cut short; it is on the disk when this returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # another comparison may write into the same file
        _cut_torn(stream)
        stream.write(record.model_dump_json().encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _cut_torn(stream: IO[bytes]) -> None:
    stream.seek(0)
    content = stream.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        stream.truncate(end)
    stream.seek(0, os.SEEK_END)


def _read_line(line: bytes, file: Path, number: int) -> Record:
    try:
        return Record.model_validate_json(line)
    except ValidationError as error:
        raise BadResults(
            f"{file}, line {number} is not a result: {first_problem(error)}; delete the line, "
            "and it is computed again"
        ) from error
