"""Cuts an artifact's tables into slots. Needs torch, by which kinds of stored rows take some.

Ids are in the order of their counts, and stay in it within a slot, so tiers and the prefixes of
tables survive. Rows are taken as they are stored: what is read of an id does not change by a bit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree, ignore_patterns

import torch
from safetensors import safe_open
from torch import Tensor

from embedcomp.artifact.artifact import (
    CUT,
    MANIFEST,
    TENSORS,
    Artifact,
    next_version,
    seal,
    write_tensors,
)
from embedcomp.engine.standalone import FILE, OLD_FILE, Standalone
from embedcomp.engine.tensors import StoredMatrix, Table
from embedcomp.errors import BadSettings
from embedcomp.kernels.routing import SLOTS
from embedcomp.sharding.cutting import FOLDER, SHARED, CutTable, Cutting, slot_file
from embedcomp.storage import kinds
from embedcomp.storage.index import Cut, Index, Map, Ranked
from embedcomp.support.files import replacing, sha256
from embedcomp.support.mapped import other_names
from embedcomp.support.progress import Doing, Watch, quiet

NEAR_BYTES = 1 << 20  # of each table that the front holds: all of a small one
MOST_IDS = 1 << 32  # of a table, whose ids travel in 32 bits


def cut(
    artifact: Artifact,
    out: str | Path,
    *,
    near_bytes: int = NEAR_BYTES,
    watch: Watch = quiet,
) -> Artifact:
    """Write an artifact whose large tables lie in slots as a new version under `out`.

    Args:
        near_bytes: about as much of each table stays with the front: tables that are not larger
            stay whole, and of others their first rows, which are looked up most.

    Raises:
        BadSettings: no table is larger, or the compiled engine does not score the model.
    """
    alone = artifact.standalone
    if Cutting.of(artifact.folder) is not None:
        raise BadSettings(f"{artifact.folder} is cut into slots already; cut what it was made of")
    if alone is None or alone.graph is None:
        why = "its own code scores it" if alone is None else alone.reason
        raise BadSettings(
            f"{artifact.folder} cannot be cut into slots, since torch scores it: {why}"
        )
    held = _Held(artifact)
    whole = [_Whole.of(name, alone, held) for name in _cuttable(alone, held)]
    large = [table for table in whole if table.bytes > near_bytes]
    if not large:
        raise BadSettings(
            f"{artifact.folder} has no table of more than {near_bytes:,} bytes that can be cut; "
            "serve it whole, or let less of a table stay with the front"
        )
    target = next_version(Path(out))
    with replacing(target) as fresh:
        left_out = ignore_patterns(MANIFEST, TENSORS, FILE, OLD_FILE)
        copytree(artifact.folder, fresh, ignore=left_out)
        folder = fresh / FOLDER
        folder.mkdir()
        near = {table.name: table.near(near_bytes, _unknown(artifact, alone)) for table in large}
        _write_front(fresh, alone, held, near)
        grids = {name: grid for table in large for name, grid in table.grids.items()}
        write_tensors(folder / SHARED, grids)
        for slot in range(SLOTS):
            watch(Doing("cutting", slot, SLOTS, "slots"))
            _write(folder / slot_file(slot), [table.slot(slot) for table in large])
        checksums = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        cutting = Cutting(fresh, {name: part.cut for name, part in near.items()}, checksums)
        cutting.save()
        apart = [folder / name for name in checksums]
        seal(fresh, artifact.manifest.model_copy(update={"format": CUT}), apart)
    return Artifact.open(target)


def _cuttable(alone: Standalone, held: _Held) -> list[str]:
    """Tables that a lookup of the graph reads, with an id in every slot, and rows of their own."""
    assert alone.graph is not None
    names = dict.fromkeys(feature.table for feature in alone.graph.features)
    readers = Counter(held.name(f"{name}.stored.stored") for name in alone.tables)
    return [
        name
        for name in names
        if alone.tables[name].probes is None
        and SLOTS <= alone.tables[name].rows <= MOST_IDS
        and readers[held.name(f"{name}.stored.stored")] <= 1
    ]


def _unknown(artifact: Artifact, alone: Standalone) -> Mapping[str, int]:
    """Ids of unknown values by table, where the artifact says what ids stand for."""
    if not artifact.has_features:
        return {}
    assert alone.graph is not None
    rows = {one.name: one.vocabulary.unknown_row for one in artifact.features.ids}
    return {one.table: rows[one.name] for one in alone.graph.features if one.name in rows}


class _Held:
    """The tensors of an artifact, where they lie in its file until they are asked for."""

    def __init__(self, artifact: Artifact):
        self._file = safe_open(artifact.tensors_file, "pt")
        self._others = other_names(self._file.metadata())
        own = {name: name for name in self._file.keys()}  # noqa: SIM118
        self.names = own | self._others

    def name(self, name: str) -> str:
        """The name under which a tensor is stored; its own where there is none."""
        return self.names.get(name, name)

    def get(self, name: str) -> Tensor:
        found: Tensor = self._file.get_tensor(self.names[name])
        return found

    def inside(self, module: str) -> dict[str, Tensor]:
        """The tensors of a module by their names within it."""
        prefix = f"{module}."
        inside = (name for name in self.names if name.startswith(prefix))
        return {name.removeprefix(prefix): self.get(name) for name in inside}


@dataclass(frozen=True)
class _Part:
    """Some ids of a table.

    tensors: by the names that they have in the artifact.
    ids: how many there are.
    stored: how they are stored; None: as floats.
    """

    table: str
    tensors: Mapping[str, Tensor]
    ids: int
    stored: StoredMatrix | None


@dataclass(frozen=True)
class _Near(_Part):
    """What the front holds of a table."""

    cut: CutTable


@dataclass(frozen=True)
class _Whole:
    """A table before it is cut.

    state: of its stored rows, or its weight.
    index: None: an id reads its own row.
    """

    name: str
    table: Table
    stored: StoredMatrix | None
    state: Mapping[str, Tensor]
    index: Index | None

    @classmethod
    def of(cls, name: str, alone: Standalone, held: _Held) -> _Whole:
        table = alone.tables[name]
        if not table.stored:
            state = {"stored": held.get(f"{name}.weight")}
            return cls(name, table, None, state, None)
        stored = alone.stored[f"{name}.stored"]
        index = _index(table.rows, stored.rows, held.inside(f"{name}.index"))
        return cls(name, table, stored, held.inside(f"{name}.stored"), index)

    @property
    def grids(self) -> dict[str, Tensor]:
        """What all of its rows share, by the names in the artifact."""
        found = {} if self.stored is None else {"grid": self.state.get("grid")}
        return {f"{self.name}.stored.{n}": grid for n, grid in found.items() if grid is not None}

    @property
    def bytes(self) -> int:
        """Of what is not shared by all rows."""
        own = [tensor for name, tensor in self.state.items() if name != "grid"]
        own += [] if self.index is None else self.index.buffers()
        return sum(tensor.nbytes for tensor in own)

    def slot(self, slot: int) -> _Part:
        return self._of(torch.arange(slot, self.table.rows, SLOTS))

    def near(self, most_bytes: int, unknown: Mapping[str, int]) -> _Near:
        """About so many bytes of first ids, and the unknown one."""
        number = max(1, self.table.rows * most_bytes // self.bytes)
        last, ids = unknown.get(self.name, -1), torch.arange(number)
        if last >= number:
            ids, last = torch.cat([ids, torch.tensor([last])]), number
        part = self._of(ids)
        width = self.table.dim if self.stored is None else self.stored.width
        said = CutTable(
            ids=self.table.rows, width=width, near=number, unknown=last, bytes=self.bytes
        )
        return _Near(part.table, part.tensors, part.ids, part.stored, said)

    def _of(self, ids: Tensor) -> _Part:
        kind = kinds.named("float32") if self.stored is None else self.stored.kind
        index, rows = (None, ids) if self.index is None else self.index.taken(ids)
        width = self.table.dim if self.stored is None else self.stored.width
        taken, state = kind.take(self.state, rows, width)
        if self.stored is None:
            return _Part(self.name, {f"{self.name}.weight": state["stored"]}, len(ids), None)
        own = {n: tensor for n, tensor in state.items() if n != "grid"}
        tensors = {f"{self.name}.stored.{n}": tensor for n, tensor in own.items()}
        if index is not None:
            tensors |= {f"{self.name}.index.{n}": t for n, t in index.named_buffers()}
        stored = replace(self.stored, kind=taken, rows=len(rows))
        return _Part(self.name, tensors, len(ids), stored)


def _index(ids: int, stored: int, held: Mapping[str, Tensor]) -> Index | None:
    """An index by its tensors, as the engine finds it (engine/tensors.py)."""
    found: Index
    if "places" in held:
        found = Map(ids, stored)
        found.places = held["places"]
    elif "blocks" in held:
        found = Ranked(ids, stored, len(held["firsts"]))
        found.blocks, found.firsts = held["blocks"], held["firsts"]
    else:
        return Cut(stored) if stored < ids else None
    return found


def _write(file: Path, parts: Sequence[_Part]) -> None:
    """Write parts of tables with what they are."""
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    said = {
        part.table: {
            "ids": part.ids,
            "stored": None if part.stored is None else part.stored.to_dict(),
        }
        for part in parts
    }
    write_tensors(file, tensors, {"tables": json.dumps(said)})


def _write_front(fresh: Path, alone: Standalone, held: _Held, near: Mapping[str, _Near]) -> None:
    """Write what scores, in which the large tables are their first rows."""
    tables, stored = dict(alone.tables), dict(alone.stored)
    for name, part in near.items():
        tables[name] = replace(tables[name], rows=part.ids)
        if part.stored is not None:
            stored[f"{name}.stored"] = part.stored
    replace(alone, tables=tables, stored=stored).save(fresh)
    kept = {name: held.get(name) for name in _kept(held, near)}
    for part in near.values():
        kept |= part.tensors
    write_tensors(fresh / TENSORS, kept)


def _kept(held: _Held, near: Mapping[str, _Near]) -> Iterator[str]:
    """Names of the tensors that stay as they are."""
    for name in held.names:
        table = next((t for t in near if name.startswith(f"{t}.")), None)
        rest = "" if table is None else name.removeprefix(f"{table}.")
        rows = rest == "weight" or rest.startswith(("stored.", "index."))
        if table is None or not rows or rest == "stored.grid":
            yield name
