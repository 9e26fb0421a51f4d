"""embedcomp train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedcomp import models
from embedcomp.cli.options import Json, from_fields, show
from embedcomp.recipes.settings import read_changes, validated
from embedcomp.support.files import refuse_unwritable
from embedcomp.train.settings import TrainSettings


@from_fields(TrainSettings, "epochs", "seed")
def train(
    log: Annotated[str, typer.Argument(help="Folder or URL with schema.toml.")],
    model: Annotated[
        str, typer.Option(help=f"{', '.join(models.names())} or package.module:factory.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model; a new version each time.")],
    given: dict[str, Any],
    min_count: Annotated[int, typer.Option(help="Ids seen fewer times share one row.")] = 2,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to start from; without --epochs nothing is trained."),
    ] = None,
    model_changes: Annotated[
        list[str] | None, typer.Option("--model-set", help="A setting of the model, name=value.")
    ] = None,
    json: Json = None,
) -> None:
    """Train a model on a click log, or load one from a checkpoint."""
    models.refuse_unknown([model])
    refuse_unwritable(out)
    untrained = {} if checkpoint is None else {"epochs": 0}
    settings = validated(TrainSettings, untrained | given, "--set")

    from embedcomp import recipes
    from embedcomp.artifact.source import ModelSource
    from embedcomp.log.click_log import ClickLog
    from embedcomp.log.counts import count
    from embedcomp.log.features import Features
    from embedcomp.recipes.progress import shown
    from embedcomp.support.progress import Doing

    source = ModelSource(model=model, settings=read_changes(model_changes or [])).complete()
    clicks = ClickLog(log)
    with shown() as watch:
        watch(Doing("counting ids"))
        features = Features.from_counts(clicks, count(clicks, clicks.pieces("train")), min_count)
        artifact = recipes.train(
            clicks, features, source, settings, out, start=checkpoint, watch=watch
        )
    result = recipes.summary(artifact)
    show(result, [recipes.summary_line(artifact)], json)
