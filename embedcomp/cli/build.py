"""embedcomp build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(artifact: Annotated[Path, typer.Argument(help="Artifact or model.")]) -> None:
    """Compile what the engine cannot run into machine code, in this machine's cache."""
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.errors import BadArtifact
    from embedcomp.scorer.scorer import Scorer

    opened = Artifact.open(artifact)
    if opened.standalone is None:
        raise BadArtifact(
            f"{opened.folder} has no exported program; train or compress it again, or save it with "
            "embedcomp.save"
        )
    scorer = Scorer(opened)
    if scorer.work is not None:
        typer.echo(f"{opened.folder}: {scorer.engine}; there is nothing to build")
        return
    from embedcomp.scorer.by_torch import machine_code

    typer.echo(f"{opened.folder}: machine code in {machine_code(opened)}")
