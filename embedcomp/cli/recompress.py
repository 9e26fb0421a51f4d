"""embedcomp recompress."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from embedcomp.cli.options import Json, OfLog, from_fields, show
from embedcomp.errors import BadSettings
from embedcomp.recipes.settings import CompressSettings, validated


@from_fields(CompressSettings, "tune.epochs")
def recompress(
    plan: Annotated[Path, typer.Option(help="Artifact whose plan is carried out.")],
    checkpoint: Annotated[Path, typer.Option(help="New weights: .safetensors or a state dict.")],
    log: OfLog,
    out: Annotated[Path, typer.Option(help="Folder for the artifact; a new version each time.")],
    given: dict[str, Any],
    json: Json = None,
) -> None:
    """Compress new weights of a model by an existing plan, and say whether a new plan would pay."""
    settings = validated(CompressSettings, {"budget": "100%", **given}, "--set")
    settings.refuse_student("an old plan")
    if settings.from_log:
        raise BadSettings("from_log draws new numbers, and recompress is given some; leave one out")

    from embedcomp import recipes
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.recipes.progress import shown

    planned = Artifact.open(plan)
    with shown() as watch:
        artifact, drift = recipes.recompress(
            planned, checkpoint, ClickLog(log), settings, out, watch=watch
        )
    result = {**recipes.summary(artifact), "drift": asdict(drift)}
    show(result, [recipes.summary_line(artifact), str(drift)], json)
