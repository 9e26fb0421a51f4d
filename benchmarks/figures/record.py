"""A record of a run, and what can be said of it in words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.result import RESULTS

Record = dict[str, Any]


class NotSo(Exception):
    """What a document says in words is not what the record has, or there is no such record."""


@cache
def read(name: str, folder: Path = RESULTS) -> Record:
    """The record NAME/DATE-COMMIT.

    Raises:
        NotSo: there is none.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        raise NotSo(f"there is no record {name} in {folder}")
    found: Record = json.loads(file.read_text())
    return found


def newest(name: str, folder: Path = RESULTS) -> str:
    """NAME/DATE-COMMIT of the latest run of NAME.

    Raises:
        NotSo: there is none.
    """
    files = sorted((folder / name).glob("*.json"))
    if not files:
        raise NotSo(f"there is no record of {name} in {folder}")
    return f"{name}/{files[-1].stem}"


def claim(holds: bool, words: str) -> None:
    """Hold what a paragraph says in words against its record.

    Raises:
        NotSo: the record says otherwise.
    """
    if not holds:
        raise NotSo(f"not so any more: {words}")
