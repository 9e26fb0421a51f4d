"""embedcomp compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import (
    Changes,
    DryRun,
    Json,
    Methods,
    OfLog,
    Solver,
    Trained,
    TuneEpochs,
    listed,
    show,
    target,
)


def compress(
    model: Trained,
    log: OfLog,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the artifact; a new version each time.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Of the whole served model: 5x, 20% or 4MiB.")] = "",
    budget_of: Annotated[
        str, typer.Option(help="What the budget is for: served (tensors) or disk (all files).")
    ] = "served",
    max_auc_loss: Annotated[
        float | None,
        typer.Option(help="Instead of a budget: as small as a measured loss of AUC allows."),
    ] = None,
    latency_budget: Annotated[
        str,
        typer.Option(
            help="Beside a budget or instead: a call's predicted time, 200us@64 or 2x@64."
        ),
    ] = "",
    cost_model: Annotated[
        str, typer.Option(help="Of the machine that serves, by `embedcomp calibrate`.")
    ] = "",
    solver: Solver = "exact",
    tune_epochs: TuneEpochs = 0,
    methods: Methods = "",
    control: Annotated[
        Path | None, typer.Option(help="Also train the original on for the same epochs, into here.")
    ] = None,
    dry_run: DryRun = False,
    changes: Changes = None,
    json: Json = None,
) -> None:
    """Plan the best model within budgets or a loss of AUC, compress, tune, write an artifact."""
    from embedcomp.recipes.settings import CompressSettings, read_changes, validated

    given = {
        "budget": budget,
        "budget_of": budget_of,
        "max_auc_loss": max_auc_loss,
        "latency_budget": latency_budget,
        "cost_model": cost_model,
        "methods": listed(methods),
        "solver": solver,
        **read_changes([f"tune.epochs={tune_epochs}", *(changes or [])]),
    }
    settings = validated(CompressSettings, given, "--set")
    out = target(out, dry_run)

    from embedcomp import recipes
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.planning.plan import render
    from embedcomp.recipes.progress import shown

    original, clicks = Artifact.open(model), ClickLog(log)
    with shown() as watch:
        measured = recipes.measure(original, clicks, settings, watch)
        held = recipes.held_out(original, clicks, settings, watch)
        plan = recipes.plan(original, measured, settings, held, watch)
    if out is None:
        show(plan.to_dict(), [render(plan)], json)
        return
    beside = None
    if control is not None:
        with shown() as watch:
            beside = recipes.control(original, clicks, settings, control, watch=watch)
    with shown() as watch:
        made = recipes.compress(
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
    assert made.plan is not None
    show(recipes.summary(made), [render(made.plan), recipes.summary_line(made)], json)
