"""embedcomp measure."""

from __future__ import annotations

from typing import Any

from embedcomp.cli.options import Json, OfLog, Trained, from_fields, show
from embedcomp.recipes.settings import CompressSettings, validated
from embedcomp.swapping.settings import CheckSettings


@from_fields(CheckSettings, into="checked")
@from_fields(CompressSettings, "methods")
def measure(
    model: Trained,
    log: OfLog,
    checked: dict[str, Any],
    given: dict[str, Any],
    json: Json = None,
) -> None:
    """How well predicted losses rank the true ones, which options swapped in one by one show."""
    settings = validated(CompressSettings, {"budget": "100%", **given}, "--set")
    checking = CheckSettings(**checked)

    from embedcomp import recipes
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.recipes.progress import shown
    from embedcomp.support.progress import Doing
    from embedcomp.swapping.prediction import render, summary

    original, clicks = Artifact.open(model), ClickLog(log)
    with shown() as watch:
        watch(Doing("reading rows"))
        batches = recipes.rows_of(original, clicks, checking.split, checking.rows)
        read = sum(map(len, batches))
        measured = recipes.measure(original, clicks, settings, watch)
        chosen = recipes.options(original, measured, settings, checking, read, watch)
        found = recipes.check(original, measured, chosen, batches, watch)
    result = summary(found, read, checking.split)
    show(result, render(found, read, checking.split), json)
