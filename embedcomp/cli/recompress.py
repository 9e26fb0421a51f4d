"""embedcomp recompress."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import Changes, Json, show


def recompress(
    plan: Annotated[Path, typer.Option(help="Artifact whose plan is carried out.")],
    checkpoint: Annotated[Path, typer.Option(help="New weights: .safetensors or a state dict.")],
    log: Annotated[str, typer.Option(help="Folder or URL with schema.toml.")],
    out: Annotated[Path, typer.Option(help="Folder for the artifact; a new version each time.")],
    tune_epochs: Annotated[int, typer.Option(help="Epochs of distillation afterwards.")] = 0,
    changes: Changes = None,
    json: Json = None,
) -> None:
    """Compress new weights of a model by an existing plan, and say whether a new plan would pay."""
    from embedcomp.recipes.settings import CompressSettings, changed

    settings = CompressSettings(budget="100%")
    settings = changed(settings, [f"tune.epochs={tune_epochs}", *(changes or [])])

    from embedcomp import recipes
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.recipes.progress import shown

    planned = Artifact.open(plan)
    with shown() as watch:
        made, drift = recipes.recompress(
            planned, checkpoint, ClickLog(log), settings, out, watch=watch
        )
    result = {**recipes.summary(made), "drift": asdict(drift)}
    show(result, [recipes.summary_line(made), str(drift)], json)
