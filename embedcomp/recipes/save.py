"""Write a model with the proof of its quality."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from embedcomp.artifact import artifact
from embedcomp.artifact.artifact import Artifact, StandsAlone
from embedcomp.artifact.proof import (
    MOST_ROWS,
    SPLIT,
    Figures,
    Proof,
    chosen,
)
from embedcomp.artifact.source import ModelSource
from embedcomp.graph.lookups import CannotExport
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning.plan import Plan
from embedcomp.scorer.stand_alone import stand_alone_from_log
from embedcomp.storage.prefixes import Cut
from embedcomp.support.files import remove
from embedcomp.support.metrics import Quality
from embedcomp.train import workers
from embedcomp.train.quality import quality
from embedcomp.train.tables import fast_tables

ONLY_BY_CODE = "only the model's own code can score it"


def on_validation(model: nn.Module, log: ClickLog, features: Features) -> Quality | None:
    """A model's quality on the rows of a proof, of which workers share the pieces.

    Returns:
        None: there is no validation split.
    """
    if SPLIT not in log.schema.splits:
        return None
    found, pieces = Quality(), chosen(log, SPLIT, MOST_ROWS)
    alone = workers.count() == 1  # several map the tables that they trained, and copy none
    with fast_tables(model) if alone else nullcontext():
        for piece, rows in pieces[workers.rank() :: workers.count()]:
            found += quality(model, log, features, [piece], rows)
    return workers.total(found)


def figures(written: Artifact, log: ClickLog) -> Figures | None:
    """An artifact's quality on a proof's rows: as it recorded it of this log, or measured now."""
    known = written.proof
    if known is not None and known.most_rows == MOST_ROWS and known.is_of(log):
        return known.model
    found = on_validation(written.model(), log, written.features)
    return None if found is None else Figures.of(found)


def seeds_of(original: Artifact, more: dict[str, int]) -> dict[str, int]:
    known = original.proof
    return {**(known.seeds if known is not None else {}), **more}


def saved(
    out: Path,
    model: nn.Module,
    features: Features,
    source: ModelSource,
    training: dict[str, Any],
    plan: Plan | None,
    proof: Proof | None,
    cuts: Sequence[Cut] = (),
) -> Artifact:
    """Write the model once, whatever the number of workers that trained it."""
    if workers.rank() == 0:
        alone, needs_code = _stands_alone(model, features)
        artifact.save(
            out,
            model,
            features=features,
            source=source,
            alone=alone,
            needs_code=needs_code,
            bytes=model_bytes(model),
            plan=plan,
            training=training,
            proof=proof,
            cuts=cuts,
        )
        remove(scratch(out))
    workers.wait()
    return Artifact.open(out)


def _stands_alone(model: nn.Module, features: Features) -> tuple[StandsAlone | None, str]:
    """What it takes to score without the model's code, or why there is no such thing."""
    try:
        return stand_alone_from_log(model, features), ""
    except CannotExport as error:
        logging.getLogger(__name__).warning("%s: %s", ONLY_BY_CODE, error)
        return None, str(error)


def scratch(out: Path) -> Path:
    """Where a run that makes `out` keeps its checkpoints until it is done."""
    return out / ".checkpoints"


def summary(written: Artifact) -> dict[str, Any]:
    """What a command prints of an artifact that it made."""
    manifest = written.manifest
    return {
        "path": str(written.folder),
        "bytes": {**manifest.bytes, **written.disk_bytes},
        "metrics": manifest.metrics,
        "needs_code": manifest.needs_code,
        "history": written.origin.training.get("history", []),
        "plan": written.origin.plan,
    }


def summary_line(written: Artifact) -> str:
    manifest, proof = written.manifest, written.proof
    needs = f"; {ONLY_BY_CODE}: {manifest.needs_code}" if manifest.needs_code else ""
    proved = f", {proof}" if proof is not None else ""
    tensors, disk = manifest.bytes["total"], written.disk_bytes["disk"]
    return f"{written.folder}: {tensors:,} bytes of tensors, {disk:,} on disk{proved}{needs}"
