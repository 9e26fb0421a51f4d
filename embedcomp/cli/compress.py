"""embedcomp compress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcomp.cli.options import DryRun, Json, OfLog, Trained, from_fields, show, target
from embedcomp.errors import BadSettings
from embedcomp.recipes.settings import CompressSettings, validated

if TYPE_CHECKING:
    from embedcomp.artifact.artifact import Artifact


@from_fields(
    CompressSettings,
    "budget",
    "budget_of",
    "max_auc_loss",
    "latency_budget",
    "cost_model",
    "methods",
    "solver",
    "train.epochs",
    "plans_tried",
    "trial_epochs",
    "from_log",
    "student",
    "tune.epochs",
)
def compress(
    model: Trained,
    log: OfLog,
    given: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the artifact; a new version each time.")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="Also train the original on for the same epochs, into here.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Plan the best model within budgets or a loss of AUC, compress, tune, write an artifact."""
    settings = validated(CompressSettings, given, "--set")
    out = target(out, dry_run)
    if settings.student and out is None:
        raise BadSettings("a student has to be trained before it is planned; give --out")

    from embedcomp import recipes
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.planning.plan import render
    from embedcomp.recipes.progress import shown

    original, clicks = Artifact.open(model), ClickLog(log)
    beside = None
    if control is not None and out is not None:
        with shown() as watch:
            beside = recipes.control(original, clicks, settings, control, watch=watch)
    if settings.student and out is not None:
        with shown() as watch:
            artifact = recipes.with_student(
                original, clicks, settings, out, control=beside, watch=watch
            )
        _show(artifact, json)
        return
    with shown() as watch:
        measured = recipes.measure(original, clicks, settings, watch)
        held = recipes.held_out(original, clicks, settings, watch)
        plan = recipes.plan(original, measured, settings, held, watch)
    if out is None:
        show(plan.to_dict(), [render(plan)], json)
        return
    with shown() as watch:
        artifact = recipes.compress(
            original,
            clicks,
            measured,
            plan,
            settings,
            out,
            held=held,
            control=beside,
            watch=watch,
        )
    _show(artifact, json)


def _show(artifact: Artifact, json: str | None) -> None:
    from embedcomp import recipes
    from embedcomp.planning.plan import render

    assert artifact.plan is not None
    show(recipes.summary(artifact), [render(artifact.plan), recipes.summary_line(artifact)], json)
