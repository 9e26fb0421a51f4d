"""Tables in Markdown, and figures as they stand in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Collection[int] = (0,)
) -> list[str]:
    """Lines of a table; columns are numbers, but for those of `text`."""
    sides = ["---" if column in text else "--:" for column in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(sides)}|"]
    return [*lines, *("|" + "".join(f" {cell} |" if cell else " |" for cell in r) for r in rows)]


def plus_minus(figure: dict[str, Any], digits: int = 5) -> str:
    """Mean and standard deviation over seeds."""
    deviation = "" if figure["std"] is None else f" ± {figure['std']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{deviation}"


def each(figure: dict[str, Any]) -> str:
    """The mean of a difference, and that of each seed."""
    return f"{figure['mean']:+.5f} ({' '.join(f'{value:+.5f}' for value in figure['values'])})"


def faster(times: float) -> str:
    return f"{times:.1f}x"
