"""Arrays of a safetensors file, where they lie in it: shared by all processes that map it."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from embedcomp.errors import BadArtifact

_TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"},
    **{"I8": "<i1", "U8": "<u1", "BOOL": "?", "BF16": "<u2"},  # bfloat16 as its bits
}

OTHER_NAMES = "other names"  # in a safetensors file's metadata: of tensors that layers share


def mapped(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, read-only and shared with every process that maps it.

    Raises:
        BadArtifact: it is not such a file.
    """
    return mapped_with_metadata(file)[0]


def mapped_with_metadata(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors as `mapped` gives them, and what the file says beside them.

    Raises:
        BadArtifact: it is not such a file.
    """
    try:
        with file.open("rb") as stream:
            raw = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        start = 8 + int(raw[:8].view("<u8")[0])
        header = json.loads(raw[8:start].tobytes())
        metadata: dict[str, str] = header.pop("__metadata__", {})
        found = {name: _view(raw[start:], **entry) for name, entry in header.items()}
        others = {name: found[kept] for name, kept in other_names(metadata).items()}
        return found | others, metadata
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"{file} is not a safetensors file: {error}") from error


def other_names(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Names of tensors that are stored under another name, and which, by a file's metadata."""
    found: dict[str, str] = json.loads((metadata or {}).get(OTHER_NAMES, "{}"))
    return found


def _view(data: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    first, last = data_offsets
    return data[first:last].view(_TYPES[dtype]).reshape(shape)
