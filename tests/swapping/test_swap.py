"""A plan that is carried out leaves the original alone."""

from __future__ import annotations

from embedcomp.planning.planner import by_name
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.swapping.swap import apply
from tests.small import measured


def test_layers_that_a_plan_does_not_name_are_copied_too() -> None:
    small, found, _ = measured()
    plan = by_name(small, found, {"embeddings.embedding_bags.t_a": "half"})
    copied = apply(small, plan, found, Statistics())
    own = {parameter.data_ptr() for parameter in small.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in copied.parameters())
    assert len([*copied.parameters()]) == len(own) - 1
