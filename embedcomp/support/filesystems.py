"""Folders by their path or URL, as pyarrow filesystems."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from embedcomp.errors import BadSettings
from embedcomp.support.files import replacing


def is_url(place: str) -> bool:
    return "://" in place


def absolute(place: str) -> str:
    """A place that does not depend on the folder that this is called in."""
    return place if is_url(place) else str(Path(place).absolute())


def opened(place: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or URL, and the path in it.

    A URL is of a filesystem that pyarrow has (file, s3, gs, abfs, hdfs), or of one that fsspec
    brings.

    Raises:
        BadSettings: neither knows it.
    """
    if not is_url(place):
        return pafs.LocalFileSystem(), place.rstrip("/") or "/"
    try:
        filesystem, path = pafs.FileSystem.from_uri(place)
    except pa.ArrowInvalid as error:
        filesystem, path = _by_fsspec(place, error)
    return filesystem, path.rstrip("/") or path


def _by_fsspec(place: str, unknown: pa.ArrowInvalid) -> tuple[pafs.FileSystem, str]:
    try:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise BadSettings(
            f"{place} cannot be opened ({unknown}; by fsspec: {error}); give a folder, or the URL "
            "of a filesystem that pyarrow has or fsspec has a package for"
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def write_whole(filesystem: pafs.FileSystem, file: str, content: bytes) -> None:
    """Write a file that is either whole or not there; object stores show it when it is closed."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        with replacing(Path(file)) as fresh:
            fresh.write_bytes(content)
        return
    with filesystem.open_output_stream(file) as stream:
        stream.write(content)


def refuse_unwritable_url(url: str) -> None:
    """Find out before long work whether its result can be written; no file is left behind.

    Raises:
        BadSettings: nothing can be written there.
    """
    filesystem, root = opened(url)
    probe = f"{root}/.writable"
    try:
        filesystem.create_dir(root, recursive=True)
        write_whole(filesystem, probe, b"")
        filesystem.delete_file(probe)
    except OSError as error:
        raise BadSettings(f"{url} cannot be written: {error}; give one that can be") from error
