"""embedcomp verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import Json, show


def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact or model.")],
    log: Annotated[str, typer.Option(help="Folder or URL with schema.toml.")],
    tolerance: Annotated[
        float | None,
        typer.Option(help="Of AUC, log loss and calibration; not given: what engines differ by."),
    ] = None,
    json: Json = None,
) -> None:
    """Score the rows again that the artifact's quality was recorded on; ends with 0 if it holds."""
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.recipes.verify import TOLERANCE, render
    from embedcomp.recipes.verify import verify as verified

    found = verified(
        Artifact.open(artifact), ClickLog(log), TOLERANCE if tolerance is None else tolerance
    )
    show(found.to_dict(), render(found), json)
    if not found.holds:
        raise typer.Exit(1)
