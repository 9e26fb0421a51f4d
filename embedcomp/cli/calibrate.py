"""embedcomp calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    out: Annotated[Path, typer.Option(help="File for the cost model, for --cost-model.")],
) -> None:
    """Time the engine on this machine, so that plans for it can keep to a latency elsewhere."""
    from embedcomp.engine.calibrate import calibrated

    model = calibrated()
    model.save(out)
    print(f"{out}: the cost of {len(model.microseconds)} kinds of work on {model.machine}")
