"""scoring.json.gz: what an artifact's scorer has to know, none of it code of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedcomp.engine.tensors import StoredMatrix, Table, Tensors
from embedcomp.errors import BadArtifact
from embedcomp.graph.graph import Graph, Leaf, LookUp
from embedcomp.storage.prefixes import Ranks, cut_layout, cut_tensors, ranks_are_columns
from embedcomp.support.files import read_json, write_json

FILE, PROGRAM = "scoring.json.gz", "dense.pt2"
OLD_FILE = "scoring.json"  # of format 2
PRECISIONS = ("float32", "bfloat16", "int8")  # of products


@dataclass(frozen=True, kw_only=True)
class Standalone:
    """A model's dense part and its lookups.

    weights: tensors that the program takes after the inputs and the lookups' rows.
    graph: for the engine; None: torch runs the program, because of `reason`.
    layers: compressed modules by name, as `modules/layout.py` describes them.
    user: features that are the same for all candidates of a request.
    user_columns: the same of dense inputs, by their place among the dense ones.
    least_rows: that the program takes at a time; a model may squeeze a single row's batch away.
    """

    leaves: tuple[Leaf, ...]
    look_ups: tuple[LookUp, ...]
    weights: tuple[str, ...]
    graph: Graph | None
    reason: str
    stored: Mapping[str, StoredMatrix]
    tables: Mapping[str, Table]
    layers: Mapping[str, Mapping[str, Any]]
    user: tuple[str, ...] = ()
    user_columns: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    precision: str = "float32"
    least_rows: int = 1

    @property
    def precisions(self) -> set[str]:
        """What the engine multiplies in: as the artifact says, and as layers are stored for."""
        stored = self.tensors({})
        return {self.precision, *filter(None, map(stored.multiplied_in, self.weights))}

    def tensors(self, held: Mapping[str, np.ndarray]) -> Tensors:
        return Tensors(held, self.stored, self.tables)

    def cut(self, ranks: Ranks) -> Standalone:
        """The model with the first ranks of some layers."""
        layers, stored = dict(self.layers), dict(self.stored)
        for name, rank in ranks.items():
            layers[name] = cut_layout(self.layers[name], rank)
            for part, columns in ranks_are_columns(self.layers[name]).items():
                what = stored[f"{name}.{part}"]
                cut = replace(what, width=rank) if columns else replace(what, rows=rank)
                stored[f"{name}.{part}"] = cut
        graph = None if self.graph is None else self.graph.with_ranks(ranks)
        return replace(self, layers=layers, stored=stored, graph=graph)

    def cut_held(self, held: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
        """The tensors of the model with the first ranks of some layers, of this one's."""
        found = dict(held)
        for name, rank in ranks.items():
            inside = f"{name}."
            own = {n.removeprefix(inside): t for n, t in held.items() if n.startswith(inside)}
            cut = cut_tensors(self.layers[name], own, rank)
            found |= {f"{inside}{n}": tensor for n, tensor in cut.items()}
        return found

    def save(self, folder: Path) -> None:
        values = {
            "leaves": [asdict(leaf) for leaf in self.leaves],
            "look_ups": [asdict(look_up) for look_up in self.look_ups],
            "weights": self.weights,
            "graph": self.graph.to_dict() if self.graph is not None else None,
            "reason": self.reason,
            "stored": {name: matrix.to_dict() for name, matrix in self.stored.items()},
            "tables": {name: _saved(table) for name, table in self.tables.items()},
            "layers": self.layers,
            "user": self.user,
            "user_columns": {str(i): columns for i, columns in self.user_columns.items()},
            "precision": self.precision,
            "least_rows": self.least_rows,
        }
        write_json(folder / FILE, values)

    @classmethod
    def load(cls, folder: Path) -> Standalone | None:
        """What was saved; None where nothing was.

        Raises:
            BadArtifact: the file does not hold together.
        """
        file = next((folder / name for name in (FILE, OLD_FILE) if (folder / name).exists()), None)
        if file is None:
            return None
        try:
            values = read_json(file) if file.name == FILE else json.loads(file.read_text())
            graph = values["graph"]
            columns = values["user_columns"].items()
            return cls(
                leaves=tuple(Leaf(**_tuples(leaf)) for leaf in values["leaves"]),
                look_ups=tuple(LookUp(**_tuples(look_up)) for look_up in values["look_ups"]),
                weights=tuple(values["weights"]),
                graph=None if graph is None else Graph.from_dict(graph),
                reason=values["reason"],
                stored={
                    name: StoredMatrix.from_dict(m, _nonzeros(values["layers"], name))
                    for name, m in values["stored"].items()
                },
                tables={name: _table(table) for name, table in values["tables"].items()},
                layers=values["layers"],
                user=tuple(values["user"]),
                user_columns={int(i): tuple(of) for i, of in columns},
                precision=values["precision"],
                least_rows=values.get("least_rows", 1),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadArtifact(f"{file} cannot be read: {error}") from error


def _nonzeros(layers: Mapping[str, Any], stored: str) -> int | None:
    """Number of elements that a layer's sparse rows store, in artifacts of format 2."""
    found: int | None = layers.get(stored.removesuffix(".stored"), {}).get("nonzeros")
    return found


def _saved(table: Table) -> dict[str, Any]:
    """A table as `_table` reads it; without probes, as every version has read it."""
    values = asdict(table)
    return values if table.probes else {n: v for n, v in values.items() if n != "probes"}


def _table(values: Mapping[str, Any]) -> Table:
    if values["decodes"] is True:  # as it was before there was more than one kind of decoder
        values = {**values, "decodes": "affine"}
    return Table(**{**values, "decodes": values["decodes"] or ""})


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
