"""Versions by label: which answers everybody, which a share of them, and which is only compared."""

from __future__ import annotations

import tomllib
from pathlib import Path
from zlib import crc32

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from embedcomp.errors import BadSettings
from embedcomp.support.fields import refuse_below

FILE = "labels.toml"  # in a model's folder, beside its versions
STABLE = "stable"
NAMES = (STABLE, "canary", "shadow")


@checked(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Labels:
    """Versions of one model by label; 0: none has it.

    stable: answers who asks for no version; 0: the newest one does.
    canary: answers a share of those, chosen by their key.
    shadow: scores a share of all calls as well; how far its scores are off is counted.
    """

    stable: int = 0
    canary: int = 0
    canary_share: float = 0.0
    shadow: int = 0
    shadow_share: float = 1.0

    def __post_init__(self) -> None:
        refuse_below(self, stable=0, canary=0, canary_share=0, shadow=0, shadow_share=0)
        for name in ("canary_share", "shadow_share"):
            if getattr(self, name) > 1:
                raise BadSettings(f"{name} is {getattr(self, name)}, but must be 1 or less")

    def __getitem__(self, label: str) -> int:
        """The version that has a label; 0: none has."""
        return int(getattr(self, label)) if label in NAMES else 0

    @property
    def versions(self) -> set[int]:
        """All that have a label."""
        return {self[label] for label in NAMES} - {0}

    def is_canarys(self, key: bytes) -> bool:
        """Whether the canary answers calls of a key; a key is always answered by the same."""
        return self.canary > 0 and _part(key) < self.canary_share

    def is_shadowed(self, key: bytes) -> bool:
        """Whether the shadow scores calls of a key too."""
        return self.shadow > 0 and _part(key) < self.shadow_share


NONE = Labels()


def read(folder: Path) -> Labels:
    """The labels in a model's folder; none where it has no such file.

    Raises:
        BadSettings: it cannot be read, or says something else.
    """
    file = folder / FILE
    try:
        if not file.is_file():
            return NONE
        return TypeAdapter(Labels).validate_python(tomllib.loads(file.read_text()))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise BadSettings(f"{file}: {where} {problem['msg'].lower()}") from error
    except (OSError, ValueError) as error:  # of TOML, and of text, too
        raise BadSettings(f"{file} cannot be read: {error}") from error


def _part(key: bytes) -> float:
    """A number in [0, 1) that is spread evenly over keys."""
    return crc32(key) / (1 << 32)
