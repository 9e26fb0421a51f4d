"""embedcomp train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcomp import models
from embedcomp.cli.options import Changes, Json, show


def train(
    log: Annotated[str, typer.Argument(help="Folder or URL with schema.toml.")],
    model: Annotated[
        str, typer.Option(help=f"{', '.join(models.names())} or package.module:factory.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model; a new version each time.")],
    seed: Annotated[int, typer.Option(help="Equal seeds give equal runs.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="At most; a plateau ends it earlier.")] = None,
    min_count: Annotated[int, typer.Option(help="Ids seen fewer times share one row.")] = 2,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to start from; without --epochs nothing is trained."),
    ] = None,
    changes: Changes = None,
    model_changes: Annotated[
        list[str] | None, typer.Option("--model-set", help="A setting of the model, name=value.")
    ] = None,
    json: Json = None,
) -> None:
    """Train a model on a click log, or load one from a checkpoint."""
    from embedcomp.recipes.settings import changed, read_changes
    from embedcomp.support.files import refuse_unwritable
    from embedcomp.train.settings import TrainSettings

    models.refuse_unknown([model])
    refuse_unwritable(out)
    if epochs is None and checkpoint is not None:
        epochs = 0
    given = {"seed": seed} if epochs is None else {"seed": seed, "epochs": epochs}
    settings = changed(TrainSettings(**given), changes or [])  # type: ignore[arg-type]

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
        made = recipes.train(clicks, features, source, settings, out, start=checkpoint, watch=watch)
    result = recipes.summary(made)
    show(result, [recipes.summary_line(made)], json)
