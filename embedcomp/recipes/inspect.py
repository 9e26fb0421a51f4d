"""What an artifact holds, for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from embedcomp.artifact.artifact import Artifact
from embedcomp.engine.description import OWN_CODE
from embedcomp.engine.tensors import bytes_by_layer
from embedcomp.log.features import Features
from embedcomp.planning.plan import render as render_plan
from embedcomp.scorer.scorer import Scorer
from embedcomp.storage.prefixes import Cut
from embedcomp.support.mapped import mapped

SHOWN = 8  # sizes that an artifact can be cut to


def describe(artifact: Artifact) -> dict[str, Any]:
    """Everything about an artifact but its tensors' values."""
    manifest = artifact.manifest
    features = artifact.features if artifact.has_features else Features((), ())
    scored_by, resident = _scored_by(artifact)
    total = sum(resident.values())
    return {
        "path": str(artifact.folder),
        "created": manifest.created,
        "embedcomp": manifest.embedcomp,
        "model": manifest.source,
        "bytes": {**manifest.bytes, "resident": total, **artifact.disk_bytes},
        "resident": resident,
        "metrics": manifest.metrics,
        "scored_by": scored_by,
        "features": [
            {
                "name": f.name,
                "type": str(features.column_type(f.name)),
                "side": f.side,
                "rows": f.rows,
            }
            for f in features.ids
        ]
        + [{"name": f.name, "type": "float", "side": f.side} for f in features.dense],
        "plan": artifact.origin.plan,
        "cuts": [asdict(cut) for cut in artifact.origin.cuts],
        "tensors": {
            name: [str(tensor.dtype), list(tensor.shape)]
            for name, tensor in mapped(artifact.tensors_file).items()
        },
    }


def render(found: dict[str, Any], artifact: Artifact) -> list[RenderableType]:
    """The description as tables."""
    sizes = found["bytes"]
    features = Table("feature", "type", "side", "rows")
    for feature in found["features"]:
        rows = f"{feature['rows']:,}" if "rows" in feature else ""
        features.add_row(feature["name"], feature["type"], feature["side"], rows)
    tensors = Table("tensor", "type", "shape")
    for name, (dtype, shape) in found["tensors"].items():
        tensors.add_row(name, dtype, " x ".join(str(n) for n in shape) or "1")
    model = "its owner's model" if found["model"] is None else found["model"]["model"]
    head = (
        f"{found['path']}: {model}, {sizes['total']:,} bytes of tensors "
        f"({sizes['tables']:,} tables, {sizes['dense']:,} dense), {sizes['resident']:,} resident, "
        f"{sizes['vocabularies']:,} of vocabularies, {sizes['program']:,} of program, "
        f"{sizes['disk']:,} on disk"
    )
    last = render_plan(artifact.plan, found["resident"]) if artifact.plan is not None else tensors
    sizes_table = [_sizes(artifact.origin.cuts)] if artifact.origin.cuts else []
    scored_by = f"scored here by {found['scored_by']}"
    return [head, *_quality(artifact), scored_by, features, *sizes_table, last]


def _sizes(cuts: Sequence[Cut]) -> Table:
    """Some of the sizes that an artifact of ordered ranks can be cut to."""
    table = Table(
        title=f"{len(cuts):,} smaller sizes, {cuts[-1].bytes:,} bytes at least, for --budget"
    )
    table.add_column("bytes", justify="right")
    table.add_column("predicted loss over the full size", justify="right")
    for place in sorted({(len(cuts) - 1) * i // (SHOWN - 1) for i in range(SHOWN)}):
        table.add_row(f"{cuts[place].bytes:,}", f"{cuts[place].loss:.2e}")
    return table


def _quality(artifact: Artifact) -> list[str]:
    """The proof; older artifacts have two figures, and those of one's own model none."""
    if artifact.proof is not None:
        return [str(artifact.proof)]
    return [
        f"{split} AUC {m['auc']:.5f}, log loss {m['logloss']:.5f}, with nothing to check them by"
        for split, m in artifact.manifest.metrics.items()
    ] or ["quality not recorded"]


def _scored_by(artifact: Artifact) -> tuple[str, Mapping[str, int]]:
    """What would score it on this machine, and the bytes that it would read there, by layer."""
    if artifact.standalone is None:
        why = artifact.manifest.needs_code or "the artifact holds no exported program"
        layers = [planned.layer for planned in artifact.plan.layers] if artifact.plan else []
        return f"{OWN_CODE}, since {why}", bytes_by_layer(mapped(artifact.tensors_file), layers)
    scorer = Scorer(artifact)
    return scorer.engine, scorer.resident
