"""What an artifact says of its tables that lie in slots, and where their files are.

    slots/index.json.gz         tables, and a checksum a file
    slots/shared.safetensors    what the rows of all slots share: grids, codebooks
    slots/000.safetensors       rows of slot 0: ids 0, 256, 512, ... of every table, to slot 255

The rest of the artifact is what a front needs: small tables, the first rows of the large ones,
decoders, the dense part and the vocabularies. No file holds what another one does but for the
grids, so a shard opens and checks the shared file and those of its own slots.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from embedcomp.errors import BadArtifact, BadSettings
from embedcomp.kernels.routing import SLOTS
from embedcomp.support.files import read_json, sha256, write_json

FOLDER, INDEX, SHARED = "slots", "index.json.gz", "shared.safetensors"
FORM = 1  # of the index


@dataclass(frozen=True, kw_only=True)
class CutTable:
    """A table whose rows lie in slots.

    ids: of the whole table.
    width: numbers that an id reads.
    near: first ids, whose rows the front holds.
    unknown: place among the front's rows of the one for unknown ids; -1: nobody knows of one.
    bytes: of its stored rows and its index, in all slots.
    """

    ids: int
    width: int
    near: int
    unknown: int
    bytes: int


@dataclass(frozen=True)
class Cutting:
    """The tables of an artifact that lie in slots, in the order of their numbers."""

    folder: Path  # of the artifact
    tables: Mapping[str, CutTable]
    checksums: Mapping[str, str]  # sha256 by file of the slots' folder

    @classmethod
    def of(cls, artifact: Path) -> Cutting | None:
        """What an artifact's folder says; None: it is whole.

        Raises:
            BadArtifact: the index does not hold together.
        """
        file = artifact / FOLDER / INDEX
        if not file.exists():
            return None
        try:
            said = read_json(file)
            if said["form"] != FORM:
                raise BadArtifact(
                    f"{file} has form {said['form']}, and this embedcomp reads {FORM}; install a "
                    "newer embedcomp"
                )
            tables = {name: CutTable(**table) for name, table in said["tables"].items()}
            return cls(artifact, tables, said["checksums"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadArtifact(f"{file} cannot be read: {error}") from error

    def save(self) -> None:
        """Write the index."""
        tables = {name: asdict(table) for name, table in self.tables.items()}
        said = {"form": FORM, "tables": tables, "checksums": dict(self.checksums)}
        write_json(self.folder / FOLDER / INDEX, said)

    @cached_property
    def digest(self) -> str:
        """A checksum of the index, and so of all slots: equal ones hold equal rows."""
        return sha256(self.folder / FOLDER / INDEX)

    def opened(self, name: str) -> Path:
        """A file of the slots' folder that is the one that was written.

        Raises:
            BadArtifact: it is missing, or another one.
        """
        file = self.folder / FOLDER / name
        try:
            found = sha256(file)
        except OSError as error:
            raise BadArtifact(
                f"{file} is missing or cannot be read: {error}; copy it to this shard"
            ) from error
        if found != self.checksums[name]:
            raise BadArtifact(
                f"{file} is not the file that was written (its checksum differs); copy it again"
            )
        return file


def slot_file(slot: int) -> str:
    return f"{slot:03d}.safetensors"


def slots_in(text: str) -> tuple[int, ...]:
    """Slots in words: "0-127" or "3,7-9", or "1/4" for shard 1 of 0 to 3, every fourth slot.

    Raises:
        BadSettings: they are none.
    """
    found: set[int] = set()
    for part in text.split(","):
        several = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        share = re.fullmatch(r"\s*(\d+)/(\d+)\s*", part)
        if share and int(share[1]) < int(share[2]) <= SLOTS:
            found |= set(range(int(share[1]), SLOTS, int(share[2])))
        elif several and int(several[1]) <= int(several[2] or several[1]) < SLOTS:
            found |= set(range(int(several[1]), int(several[2] or several[1]) + 1))
        else:
            raise BadSettings(
                f"slots are {text!r}, but must be among 0 to {SLOTS - 1}, as 0-127, or a share of "
                "them, as 0/2 for the first of two shards"
            )
    return tuple(sorted(found))


def in_words(slots: Iterable[int]) -> str:
    """Slots as `slots_in` reads them."""
    every = sorted(slots)
    runs: list[list[int]] = []
    step = every[1] - every[0] if len(every) > 1 else 1
    if step > 1 and every[0] < step and every == list(range(every[0], SLOTS, step)):
        return f"{every[0]}/{step}"
    for slot in every:
        if runs and runs[-1][1] == slot - 1:
            runs[-1][1] = slot
        else:
            runs.append([slot, slot])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def refuse_uncovered(slots: Collection[int]) -> None:
    """Raises BadSettings where some slots are of no shard."""
    missing = set(range(SLOTS)) - set(slots)
    if missing:
        raise BadSettings(
            f"slots {in_words(missing)} are of no shard that answers, {len(missing)} of {SLOTS}; "
            f"start one with `embedcomp shard ARTIFACT --slots {in_words(missing)}` and name it in "
            "--shards"
        )
