"""embedcomp compress --frontier."""

from __future__ import annotations

from pathlib import Path

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
    changes: list[str],
    json: str | None,
) -> None:
    """One artifact a budget under `out`, evaluated, with a table and a picture."""
    from embedcomp.artifact import Artifact
    from embedcomp.compare import frontier as made
    from embedcomp.compress.plan import Plan, render
    from embedcomp.log.click_log import ClickLog
    from embedcomp.progress import counted
    from embedcomp.settings import CompressSettings, changed

    wanted = made.Frontier(
        original=Artifact.open(model),
        log=ClickLog(log),
        budgets=tuple(dict.fromkeys(listed(budgets))),
        settings=changed(CompressSettings(budget=""), changes),
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
