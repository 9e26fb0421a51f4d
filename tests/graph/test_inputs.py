"""Inputs of a model are taken apart into their leaves, and put together again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from embedcomp.graph.inputs import leaves, with_leaves


@dataclass
class Batch:
    dense: Any
    ids: Any


class Pair(NamedTuple):
    first: Any
    second: Any


NESTED = [
    (3, [("", 3)]),
    ((1, [2, 3]), [("[0]", 1), ("[1][0]", 2), ("[1][1]", 3)]),
    (OrderedDict(b=1, a=(2,)), [("['b']", 1), ("['a'][0]", 2)]),
    (Batch(1, {"x": 2}), [(".dense", 1), (".ids['x']", 2)]),
    (Pair(Batch(1, 2), 3), [("[0].dense", 1), ("[0].ids", 2), ("[1]", 3)]),
    ([Batch], [("[0]", Batch)]),  # a class is no batch
]


@pytest.mark.parametrize(("inputs", "ends"), NESTED)
def test_leaves_say_where_they_stand(inputs: Any, ends: list[tuple[str, Any]]) -> None:
    assert list(leaves(inputs)) == ends


@pytest.mark.parametrize("inputs", [inputs for inputs, _ in NESTED[:-1]])
def test_what_is_put_together_again_has_the_structure_and_other_leaves(inputs: Any) -> None:
    changed = with_leaves(inputs, lambda name, value: 10 * value)
    before, after = dict(leaves(inputs)), dict(leaves(changed))
    assert after == {name: 10 * value for name, value in before.items()}
    assert isinstance(changed, dict if isinstance(inputs, dict) else type(inputs))
