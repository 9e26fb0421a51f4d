"""embedcomp train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcomp import models
from embedcomp.cli.options import Json, from_fields, show
from embedcomp.errors import BadSettings
from embedcomp.recipes.settings import CountSettings, read_changes, validated
from embedcomp.support.files import refuse_unwritable
from embedcomp.train.settings import TrainSettings

if TYPE_CHECKING:
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.artifact.source import ModelSource

MIN_COUNT = 2


@from_fields(CountSettings, into="counting")
@from_fields(TrainSettings, "epochs", "seed")
def train(
    log: Annotated[str, typer.Argument(help="Folder or URL with schema.toml.")],
    out: Annotated[Path, typer.Option(help="Folder for the model; a new version each time.")],
    counting: dict[str, Any],
    given: dict[str, Any],
    model: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(models.names())} or package.module:factory; not given: the teacher's."
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Model or artifact whose scores and features the model is to take over."),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(help=f"Ids seen fewer times share one row; not given: {MIN_COUNT}."),
    ] = None,
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
    _refuse(model, teacher, min_count, given, counting)
    how = validated(CountSettings, counting, "train")
    refuse_unwritable(out)
    untrained = {} if checkpoint is None else {"epochs": 0}
    settings = validated(TrainSettings, untrained | given, "--set")

    from embedcomp import recipes
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.log.features import Features
    from embedcomp.log.kept import counted
    from embedcomp.recipes.progress import shown
    from embedcomp.support.progress import Doing

    teaches = None if teacher is None else Artifact.open(teacher)
    source = _source(model, model_changes or [], teaches)
    clicks = ClickLog(log)
    with shown() as watch:
        if teaches is not None:
            features = teaches.features
        else:
            watch(Doing("counting ids"))
            with counted(clicks, "train", how.count_bytes, how.counts) as counts:
                features = Features.from_counts(clicks, counts, min_count or MIN_COUNT)
        artifact = recipes.train(
            clicks,
            features,
            source,
            settings,
            out,
            start=checkpoint,
            teacher=teaches,
            watch=watch,
        )
    result = recipes.summary(artifact)
    show(result, [recipes.summary_line(artifact)], json)


def _refuse(
    model: str | None,
    teacher: Path | None,
    min_count: int | None,
    given: dict[str, Any],
    counting: dict[str, Any],
) -> None:
    """Raise BadSettings where options do not go together."""
    if model is not None:
        models.refuse_unknown([model])
    elif teacher is None:
        raise BadSettings("there is no model to train; give --model, or --teacher for one like it")
    if teacher is not None and min_count is not None:
        raise BadSettings(
            "--min-count makes vocabularies, and a student has its teacher's; omit it"
        )
    if teacher is not None and counting:
        raise BadSettings(
            f"--{next(iter(counting)).replace('_', '-')} is for counting ids, and a student has "
            "its teacher's vocabularies; omit it"
        )
    if teacher is None and "distil" in given:
        raise BadSettings("distil is the weight of a teacher's scores; give --teacher as well")


def _source(model: str | None, changes: list[str], teacher: Artifact | None) -> ModelSource:
    """The model named with its settings, or the teacher's with some of them changed."""
    from embedcomp.artifact.source import ModelSource

    if teacher is None or model is not None:
        assert model is not None, "refused before"
        return ModelSource(model=model, settings=read_changes(changes)).complete()
    known = teacher.source
    return ModelSource(model=known.model, settings=read_changes(changes, known.settings)).complete()
