"""embedcomp frontier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedcomp.cli.options import DryRun, Json, OfLog, Trained, from_fields, listed, show, target
from embedcomp.errors import BadSettings
from embedcomp.recipes.settings import CompressSettings, validated


@from_fields(CompressSettings, "methods", "solver", "train.epochs", "from_log", "tune.epochs")
def frontier(
    model: Trained,
    log: OfLog,
    budgets: Annotated[str, typer.Option(help="Comma-separated, each as of `compress`.")],
    given: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the artifacts, table and pictures.")
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(help="Methods beside them, comma-separated, or none; else simple ones."),
    ] = None,
    split: Annotated[str, typer.Option(help="That is scored.")] = "valid",
    control: Annotated[
        Path | None, typer.Option(help="Folder for the original trained on; else in --out.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Compress a model to several budgets: an artifact each, a table and a picture."""
    names = tuple(dict.fromkeys(listed(budgets)))
    if not names:
        raise BadSettings("the frontier has no budgets; write them as 2x,5x,10x")
    settings, *_ = [validated(CompressSettings, given | {"budget": b}, "--set") for b in names]
    settings.refuse_student("a frontier")
    folder = target(out, dry_run) or Path()

    from embedcomp.artifact.artifact import Artifact
    from embedcomp.compare import frontier as comparison
    from embedcomp.log.click_log import ClickLog
    from embedcomp.planning.plan import Plan, render
    from embedcomp.recipes.progress import counted

    wanted = comparison.Frontier(
        original=Artifact.open(model),
        log=ClickLog(log),
        budgets=names,
        settings=settings,
        baselines=comparison.baselines() if baselines is None else _named(baselines),
        split=split,
        out=folder,
        control=control or folder / "control",
    )
    with counted() as progress:
        measured = wanted.measure(progress.begin(""))
        plans = wanted.plans(measured)
        result = None if dry_run else wanted.make(measured, plans, progress)
    if result is None:
        tables = [render(p) if isinstance(p, Plan) else f"{b}: {p}" for b, p in plans.items()]
        descriptions = {b: p.to_dict() if isinstance(p, Plan) else p for b, p in plans.items()}
        show({"plans": descriptions}, tables, json)
        return
    files = [str(folder / f"{comparison.NAME}.{kind}") for kind in ("json", "png", "html")]
    show(result, [*comparison.render(result), *files], json)


def _named(baselines: str) -> tuple[str, ...]:
    return () if baselines == "none" else listed(baselines)
