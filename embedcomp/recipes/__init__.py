"""What the commands and the Ray steps do: the library's functions in the order of the data path.

count -> train -> measure -> plan -> compress (and control) -> evaluate. Counting, measuring and
evaluating go a piece at a time and their results are sums, so shards of them can run anywhere.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcomp.recipes.checking import check as check
    from embedcomp.recipes.checking import options as options
    from embedcomp.recipes.compressing import Drift as Drift
    from embedcomp.recipes.compressing import compress as compress
    from embedcomp.recipes.compressing import control as control
    from embedcomp.recipes.compressing import recompress as recompress
    from embedcomp.recipes.measuring import held_out as held_out
    from embedcomp.recipes.measuring import layers_of as layers_of
    from embedcomp.recipes.measuring import measure as measure
    from embedcomp.recipes.measuring import measure_piece as measure_piece
    from embedcomp.recipes.measuring import measure_pieces as measure_pieces
    from embedcomp.recipes.measuring import measure_share as measure_share
    from embedcomp.recipes.measuring import rows_of as rows_of
    from embedcomp.recipes.measuring import total as total
    from embedcomp.recipes.planned import Planning as Planning
    from embedcomp.recipes.planned import plan as plan
    from embedcomp.recipes.save import ONLY_BY_CODE as ONLY_BY_CODE
    from embedcomp.recipes.save import figures as figures
    from embedcomp.recipes.save import on_validation as on_validation
    from embedcomp.recipes.save import summary as summary
    from embedcomp.recipes.save import summary_line as summary_line
    from embedcomp.recipes.students import with_student as with_student
    from embedcomp.recipes.training import train as train
    from embedcomp.support.progress import quiet as quiet

_ROOMS = {
    "check": "embedcomp.recipes.checking",
    "options": "embedcomp.recipes.checking",
    "Drift": "embedcomp.recipes.compressing",
    "compress": "embedcomp.recipes.compressing",
    "control": "embedcomp.recipes.compressing",
    "recompress": "embedcomp.recipes.compressing",
    "held_out": "embedcomp.recipes.measuring",
    "layers_of": "embedcomp.recipes.measuring",
    "measure": "embedcomp.recipes.measuring",
    "measure_piece": "embedcomp.recipes.measuring",
    "measure_pieces": "embedcomp.recipes.measuring",
    "measure_share": "embedcomp.recipes.measuring",
    "rows_of": "embedcomp.recipes.measuring",
    "total": "embedcomp.recipes.measuring",
    "Planning": "embedcomp.recipes.planned",
    "plan": "embedcomp.recipes.planned",
    "ONLY_BY_CODE": "embedcomp.recipes.save",
    "figures": "embedcomp.recipes.save",
    "on_validation": "embedcomp.recipes.save",
    "summary": "embedcomp.recipes.save",
    "summary_line": "embedcomp.recipes.save",
    "with_student": "embedcomp.recipes.students",
    "train": "embedcomp.recipes.training",
    "quiet": "embedcomp.support.progress",
}


def __getattr__(name: str) -> Any:
    """Imported when it is first asked for: what describes an artifact needs no torch."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)
