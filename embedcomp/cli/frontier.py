"""embedcomp compress --frontier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedcomp.cli.options import listed, show


def frontier(
    model: Path,
    log: str,
    budgets: str,
    out: Path,
    *,
    baselines: str | None,
    split: str | None,
    control: Path | None,
    dry_run: bool,
    given: Mapping[str, Any],
    json: str | None,
) -> None:
    """One artifact a budget under `out`, evaluated, with a table and a picture."""
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.compare import frontier as made
    from embedcomp.errors import BadSettings
    from embedcomp.log.click_log import ClickLog
    from embedcomp.planning.plan import Plan, render
    from embedcomp.recipes.progress import counted
    from embedcomp.recipes.settings import CompressSettings, validated

    names = tuple(dict.fromkeys(listed(budgets)))
    if not names:
        raise BadSettings("the frontier has no budgets; write them as 2x,5x,10x")
    wanted = made.Frontier(
        original=Artifact.open(model),
        log=ClickLog(log),
        budgets=names,
        settings=validated(CompressSettings, {**given, "budget": names[0]}, "--set"),
        baselines=made.baselines() if baselines is None else _named(baselines),
        split=split or "valid",
        out=out,
        control=control or out / "control",
    )
    measured = wanted.measure()
    plans = wanted.plans(measured)
    if dry_run:
        tables = [render(p) if isinstance(p, Plan) else f"{b}: {p}" for b, p in plans.items()]
        told = {b: p.to_dict() if isinstance(p, Plan) else p for b, p in plans.items()}
        show({"plans": told}, tables, json)
        return
    with counted("frontier") as progress:
        result = wanted.make(measured, plans, progress)
    files = [str(out / f"{made.NAME}.{kind}") for kind in ("json", "png", "html")]
    show(result, [*made.render(result), *files], json)


def _named(baselines: str) -> tuple[str, ...]:
    return () if baselines == "none" else listed(baselines)
