"""What each step was made from, so that a step whose inputs have not changed is not run again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from embedcomp.pipelines.published import STEPS, Published
from embedcomp.support.files import remove, replacing
from embedcomp.support.version import __version__

CHECKPOINTS = ".checkpoints"  # where recipes keep the state of a run, in the step's folder
RESUMABLE = {"workers"}  # inputs with other values of which a step that was stopped goes on


class Record(BaseModel):
    """One step of a job: `.steps/NAME.json`.

    Written without an output when the step begins, and again when its output is whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: dict[str, Any]  # everything that the output depends on
    output: str | None = None  # relative to the job's folder
    made: str = ""  # names this output: an input of the steps that read it
    seconds: float = 0.0


class Records:
    """The steps of the job in the folder `out`.

    Args:
        force: run every step, changed or not.
        published: where what they make is copied to.
    """

    def __init__(self, out: Path, *, force: bool = False, published: Published | None = None):
        self.out, self.force, self.published = out, force, published
        self.seconds: dict[str, float] = {}  # by step, those of an earlier run included

    def step(
        self, name: str, place: str, inputs: dict[str, Any], make: Callable[[Path], Path]
    ) -> Path:
        """The step's output: as it is if the inputs are those it was made from, or made now.

        Args:
            place: the step's file or folder within the job's.
            inputs: plain values; all that the output depends on.
            make: given the place, writes the output, whole or not at all, and says where.
        """
        file = self.out / STEPS / f"{name}.json"
        found, wanted = _read(file), {"embedcomp": __version__, **inputs}
        wanted = json.loads(json.dumps(wanted))
        kept = None if self.force else self._kept(found, wanted)
        if kept is not None:
            say(f"{name}: nothing changed, {kept} is kept")
        else:
            self._begin(name, file, found, wanted, self.out / place)
            found = self._finish(name, file, wanted, lambda: make(self.out / place))
            kept = self._kept(found, wanted)
        assert found is not None and kept is not None, f"{name} left no output"
        self.seconds[name] = found.seconds
        if self.published is not None:
            self.published.put(kept, file)
        return kept

    def place(self, output: Path) -> str:
        """Where whoever runs the job finds an output."""
        return str(output) if self.published is None else self.published.place(output)

    def made(self, name: str) -> str:
        """Names the step's present output, for the inputs of the steps that read it."""
        record = _read(self.out / STEPS / f"{name}.json")
        assert record is not None, f"step {name} has not run"
        return record.made

    def _kept(self, found: Record | None, wanted: dict[str, Any]) -> Path | None:
        if found is None or found.output is None or found.inputs != wanted:
            return None
        output = self.out / found.output
        return output if output.exists() else None

    def _begin(
        self, name: str, file: Path, found: Record | None, wanted: dict[str, Any], place: Path
    ) -> None:
        stopped = found is not None and found.output is None and not self.force
        if found is not None and stopped and _changed(found, wanted) <= RESUMABLE:
            say(f"{name}: goes on from where it was stopped")
        else:
            say(f"{name}: {_reason(found, wanted)}")
            remove(place / CHECKPOINTS)  # those of other inputs are not to be gone on from
        _write(file, Record(inputs=wanted))

    def _finish(
        self, name: str, file: Path, wanted: dict[str, Any], make: Callable[[], Path]
    ) -> Record:
        began = time.perf_counter()
        output = make()
        seconds = round(time.perf_counter() - began, 1)
        where = str(output.relative_to(self.out))
        record = Record(inputs=wanted, output=where, made=uuid4().hex, seconds=seconds)
        _write(file, record)
        say(f"{name}: {output}, {seconds:.1f} s")
        return record


def say(text: str) -> None:
    """Tell the job's log, which a submitter follows, how far the job is."""
    print(text, file=sys.stderr, flush=True)


def _reason(found: Record | None, wanted: dict[str, Any]) -> str:
    if found is None:
        return "begins"
    return f"begins again ({', '.join(sorted(_changed(found, wanted))) or 'as asked'})"


def _changed(found: Record, wanted: dict[str, Any]) -> set[str]:
    """Names of inputs that differ."""
    keys = found.inputs.keys() | wanted.keys()
    return {key for key in keys if found.inputs.get(key) != wanted.get(key)}


def _read(file: Path) -> Record | None:
    """The record in a file; one of another version of this program counts as none."""
    try:
        return Record.model_validate_json(file.read_text())
    except (FileNotFoundError, ValidationError):
        return None


def _write(file: Path, record: Record) -> None:
    with replacing(file) as fresh:
        fresh.write_text(record.model_dump_json(indent=1) + "\n")
