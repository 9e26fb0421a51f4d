"""Whether an artifact still scores as its proof says: measured again by what serves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import RenderableType
from rich.table import Table
from scipy.special import logit

from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.proof import Figures, Proof, chosen
from embedcomp.errors import BadArtifact
from embedcomp.log.click_log import ClickLog
from embedcomp.scorer.scorer import Scorer
from embedcomp.support.metrics import AucRange, Quality

TOLERANCE = 1e-5  # of AUC, log loss and calibration: what engines and machines differ by
ROUNDING = 4e-6  # of a logit, and of one beyond 1 in its size; twice what was seen between engines
COMPARED = {"auc": "AUC", "logloss": "log loss", "calibration": "calibration"}
STEP = 2.0**-24  # between float32 probabilities below 1
SMALLEST, LARGEST = 1e-30, 1 - STEP  # probabilities: what float32 holds short of 0 and 1


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A proof beside what was measured again.

    auc_range: the lowest and the highest AUC that rounding of the scores may lead to, in which the
    recorded one has to be: rows of equal scores differ by their rounding alone, and that by chance.
    same_rows: the log has the very rows that were recorded.
    scored_by: what computed the scores.
    """

    path: str
    proof: Proof
    found: Figures
    auc_range: tuple[float, float]
    same_rows: bool
    scored_by: str
    tolerance: float

    @property
    def differences(self) -> dict[str, float | None]:
        """What was found less what was recorded; None where one of the two is not known."""
        then, now = asdict(self.proof.model or self.found), asdict(self.found)
        return {n: None if None in (then[n], now[n]) else now[n] - then[n] for n in COMPARED}

    @property
    def unexplained(self) -> dict[str, float]:
        """How far each figure is off, and the AUC beyond its range; 0 where one is not known."""
        off = {name: abs(d or 0.0) for name, d in self.differences.items()}
        recorded = self.proof.model.auc if self.proof.model else None
        if recorded is not None and self.found.auc is not None:
            low, high = self.auc_range
            off["auc"] = max(low - recorded, recorded - high, 0.0)
        return off

    @property
    def holds(self) -> bool:
        return self.same_rows and all(d <= self.tolerance for d in self.unexplained.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "holds": self.holds,
            "same_rows": self.same_rows,
            "tolerance": self.tolerance,
            "scored_by": self.scored_by,
            "measured": asdict(self.found),
            "differences": self.differences,
            "auc_range": None if self.found.auc is None else self.auc_range,
            "recorded": asdict(self.proof),
        }

    def __str__(self) -> str:
        where = f"{self.found.rows:,} rows of the {self.proof.split} split"
        if not self.same_rows:
            return (
                f"{self.path}: the log's {self.proof.split} split is not the one of the record "
                "(its files or its schema differ), so nothing is proved; give the log that the "
                "artifact was made with"
            )
        differences = ", ".join(
            f"{COMPARED[n]} {'-' if d is None else f'{d:+.1e}'}"
            for n, d in self.differences.items()
        )
        if self.holds:
            ties = abs(self.differences["auc"] or 0.0) > self.tolerance
            note = ", by rows whose scores are equal but for rounding" if ties else ""
            return f"{self.path} scores as recorded on {where}: {differences}{note}"
        return (
            f"{self.path} does not score as recorded on {where}: {differences}, more than "
            f"{self.tolerance:g}; it was scored by {self.scored_by}"
        )


def verify(artifact: Artifact, log: ClickLog, tolerance: float = TOLERANCE) -> Verified:
    """Score the rows of an artifact's proof again.

    Raises:
        BadArtifact: it has no proof.
        BadLog: the log has no such split.
        BadRequest: the log lacks a feature.
    """
    proof = artifact.proof
    if proof is None or proof.model is None:
        reason = f" ({proof.reason})" if proof is not None else ""
        raise BadArtifact(
            f"{artifact.folder} has no record of its quality{reason}; make it again with "
            "`embedcomp train` or `embedcomp compress` on a log with a validation split"
        )
    scorer, quality, auc = Scorer(artifact), Quality(), AucRange()
    for rows in _rows(log, proof):
        scores = scorer.score(rows).astype(np.float64)
        labels = rows[log.schema.label].to_numpy()
        logits = logit(scores.clip(SMALLEST, LARGEST))
        quality.add(logits, labels)
        auc.add(logits, labels, _errors(logits))
    return Verified(
        path=str(artifact.folder),
        proof=proof,
        found=Figures.of(quality),
        auc_range=(auc.low, auc.high),
        same_rows=proof.is_of(log),
        scored_by=scorer.engine,
        tolerance=tolerance,
    )


def _errors(logits: np.ndarray) -> np.ndarray:
    """How much logits of float32 scores may differ from what another engine computes [B]."""
    of_probabilities = STEP * (1 + np.exp(logits))
    errors: np.ndarray = ROUNDING * np.maximum(1.0, np.abs(logits)) + of_probabilities
    return errors


def _rows(log: ClickLog, proof: Proof) -> Iterator[pa.RecordBatch]:
    for piece, rows in chosen(log, proof.split, proof.most_rows):
        done = 0
        for batch in log.read(piece):
            yield batch.slice(0, rows - done)
            done += batch.num_rows
            if done >= rows:
                break


def render(verified: Verified) -> list[RenderableType]:
    """The record beside what was found, and what the model is held against."""
    proof = verified.proof
    table = Table("", *COMPARED.values(), "rows", title=f"on the {proof.split} split")
    named = {
        "original, recorded": proof.original,
        "control, recorded": proof.control,
        "this model, recorded": proof.model,
        "this model, now": verified.found,
    }
    for name, figures in named.items():
        if figures is not None:
            table.add_row(name, *_cells(figures), f"{figures.rows:,}")
    seeds = ", ".join(f"{step} {seed}" for step, seed in proof.seeds.items())
    return [table, *([f"seeds: {seeds}"] if seeds else []), str(verified)]


def _cells(figures: Figures) -> list[str]:
    values = asdict(figures)
    return ["-" if values[name] is None else f"{values[name]:.5f}" for name in COMPARED]
