"""An old plan with the losses that it has for other weights."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from embedcomp.errors import BadModel
from embedcomp.planning.plan import Plan
from embedcomp.sensitivity.layers import Found
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.swapping.swap import Compressing


def repriced(model: nn.Module, plan: Plan, found: Found, measured: Statistics) -> Plan:
    """The plan's choices for other weights or another log, with the losses that they have there.

    Raises:
        BadModel: the plan is another model's.
        CannotStore: values do not fit the planned storage any more.
    """
    layers = measured.measured(found).layers
    missing = [p.layer for p in plan.layers if p.layer not in layers]
    if missing:
        raise BadModel(f"the plan has a layer {missing[0]!r} that cannot be swapped in this model")
    compressing = Compressing(model, plan, layers)
    losses = {p.layer: predicted_loss(*compressing.served(p)) for p in plan.tables + plan.linears}
    today = tuple(replace(p, loss=losses[p.layer]) for p in plan.layers)
    return replace(plan, layers=today, auc_loss=None, outcome=None, trials=())
