"""PromQL evaluated on numbers: as much of it as alerts ask for, so that they are seen to fire."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Series = Mapping[str, Iterable[tuple[dict[str, str], float]]]

AGGREGATIONS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max}
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
COMPARISONS = {">": operator.gt, "==": operator.eq}
AROUND = {"ParenExpr": "expr", "MatrixSelector": "vector_selector"}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "rate": lambda value: value,  # series have what came within the window
    "increase": lambda value: value,
    "clamp_min": max,
    "ln": lambda value: math.log(value) if value > 0 else -math.inf,
    "abs": abs,
}


def value(node: Any, series: Series) -> Any:
    """A parsed expression's vector, or its number."""
    kind = type(node).__name__
    if kind == "NumberLiteral":
        return node.val
    if kind in AROUND:
        return value(getattr(node, AROUND[kind]), series)
    if kind == "VectorSelector":
        wanted = {one.name: one.value for one in node.matchers.matchers}
        found = series.get(node.name, ())
        return {frozenset(of.items()): v for of, v in found if wanted.items() <= of.items()}
    if kind == "Call":
        first, *rest = (value(one, series) for one in node.args)
        return {of: FUNCTIONS[node.func.name](v, *rest) for of, v in first.items()}
    if kind == "AggregateExpr":
        return _aggregated(node, value(node.expr, series))
    assert kind == "BinaryExpr", kind
    return _joined(node, value(node.lhs, series), value(node.rhs, series))


def _aggregated(node: Any, vector: Vector) -> Vector:
    groups: dict[Labels, list[float]] = {}
    for of, v in vector.items():
        groups.setdefault(_only(of, node.modifier.labels), []).append(v)
    return {of: AGGREGATIONS[str(node.op)](values) for of, values in groups.items()}


def _joined(node: Any, left: Vector, right: Any) -> Vector:
    op = str(node.op)
    matching = None if node.modifier is None else node.modifier.matching
    on = None if matching is None else matching.labels
    many = node.modifier is not None and str(node.modifier.card).endswith("ManyToOne")
    found: Vector = {}
    others = right if isinstance(right, dict) else None
    by = {} if others is None else {_only(of, on): v for of, v in others.items()}
    assert others is None or len(by) == len(others), "several on the right match"
    for of, v in left.items():
        key = _only(of, on)
        if others is not None and key not in by:
            continue
        other = right if others is None else by[key]
        kept = of if many or others is None or op in ("and", *COMPARISONS) else key
        assert kept not in found, "several on the left match"
        if op in ARITHMETIC:
            found[kept] = ARITHMETIC[op](v, other) if op != "/" or other else math.nan
        elif op == "and" or COMPARISONS[op](v, other):
            found[kept] = v
    return found


def _only(of: Labels, names: Iterable[str] | None) -> Labels:
    return of if names is None else frozenset(pair for pair in of if pair[0] in names)
