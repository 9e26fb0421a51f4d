"""What every tool is asked to train, and the rows it trains on. Needs nothing but NumPy."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its data and how long it is trained; all tools get the same."""

    log: str  # folder of the click log
    folder: str  # where the prepared rows and features are
    model: str  # "deepfm" or "dcnv2"
    hidden: tuple[int, ...]  # widths of the perceptron's layers
    dropout: float
    fuxictr_l2: float  # FuxiCTR's embedding regularizer, as tuned for the log
    warm_up_steps: int  # trained before the clock starts
    steps: int  # trained against the clock
    width: int = 16  # columns of every table
    cross_layers: int = 3  # of dcnv2
    batch_rows: int = 4096
    learning_rate: float = 1e-3
    threads: int = 2
    seed: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_command_line(cls) -> Task:
        """The task in this process's only argument."""
        return cls(**json.loads(sys.argv[1]))


@dataclass(frozen=True)
class Arrays:
    """Encoded rows in memory.

    ids: by feature, int32 [R] of table rows, or [R, L] of a multi-valued feature. All are one
        larger than embedcomp's, since 0 fills up short lists.
    rows: by feature, rows of its table, that of 0 included.
    dense: by feature, float32 [R]; labels: float32 [R].
    """

    ids: dict[str, np.ndarray]
    rows: dict[str, int]
    dense: dict[str, np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def repeated(self, rows: int) -> Arrays:
        """Exactly `rows` rows: the first ones, from the start again where there are too few."""
        if rows <= len(self):
            return self._taken(slice(rows))
        return self._taken(np.arange(rows) % len(self))

    def _taken(self, rows: Any) -> Arrays:
        return Arrays(
            {name: values[rows] for name, values in self.ids.items()},
            self.rows,
            {name: values[rows] for name, values in self.dense.items()},
            self.labels[rows],
        )

    def save(self, folder: Path) -> None:
        columns = {f"ids|{n}": v for n, v in self.ids.items()}
        columns |= {f"dense|{n}": v for n, v in self.dense.items()}
        np.savez(folder / "rows.npz", allow_pickle=False, **columns, labels=self.labels)
        (folder / "rows.json").write_text(json.dumps(self.rows))

    @classmethod
    def load(cls, folder: str) -> Arrays:
        with np.load(Path(folder) / "rows.npz") as found:
            columns = {tuple(name.split("|", 1)): found[name] for name in found.files}
        labels = columns.pop(("labels",))
        by_kind = {
            kind: {name: values for (k, name), values in columns.items() if k == kind}
            for kind in ("ids", "dense")
        }
        rows = json.loads((Path(folder) / "rows.json").read_text())
        return cls(by_kind["ids"], rows, by_kind["dense"], labels)
