"""Files that are either whole or not there."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedcomp.errors import BadSettings


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, moved to it when the block ends well.

    Works for a file and for a folder that is not there yet; a reader never sees half of either.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        fresh = Path(scratch) / target.name
        yield fresh
        sync(fresh)
        os.replace(fresh, target)
    _sync_one(target.parent)


def write_json(file: Path, value: Any) -> None:
    """Write a value as gzipped JSON, equal values as equal bytes."""
    text = json.dumps(value, separators=(",", ":")).encode()
    file.write_bytes(gzip.compress(text, 9, mtime=0))


def read_json(file: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        OSError, ValueError: the file cannot be read, or is none.
    """
    try:
        return json.loads(gzip.decompress(file.read_bytes()))
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error


def refuse_unwritable(folder: Path) -> None:
    """Find out before long work whether its result can be written; nothing is left behind.

    Args:
        folder: that may not be there yet.

    Raises:
        BadSettings: nothing can be written there.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise BadSettings(
            f"{folder} cannot be written: {there}: {error.strerror or error}; give a folder that "
            "can be"
        ) from error


def remove(folder: Path) -> None:
    """Delete a folder and what it holds, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def cache_folder() -> Path:
    """Where this user's machine keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedcomp"


def sha256(file: Path) -> str:
    """Checksum of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file, or a folder and what it holds, on disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
