"""What a plan would cost in microseconds a call, layer by layer, before anything is compressed.

The operations that choices would become (lowered.py) are counted as those of a program are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from embedcomp.engine import cost, ops
from embedcomp.engine.cost import CostModel, Counts
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import Choice, Chosen, Menu
from embedcomp.planning.goal import LatencyBudget
from embedcomp.planning.lowered import Lowered, Product, Widths
from embedcomp.sensitivity.layer import Spec
from embedcomp.storage.kind import Reads


class Timing:
    """Counts the choices for the layers of one model.

    Args:
        lowered: the operations that they would become.
        model: of the machine that serves.
        budget: what is allowed, and for how many rows; each has its own user.
        ids: of a bag, by feature; those that are not named have one.
    """

    def __init__(
        self,
        lowered: Lowered,
        model: CostModel,
        budget: LatencyBudget,
        *,
        ids: Mapping[str, float] | None = None,
    ):
        self.lowered, self.model, self.budget, self.rows = lowered, model, budget, budget.rows
        self._ids = [(ids or {}).get(feature.name, 1) for feature in lowered.features]
        self.fixed_work = ops.counts(lowered.fixed, self.rows, dict(enumerate(self._ids)))
        self.slower = 1.0  # calls than predicted, as far as somebody measured
        self._known: dict[object, int] = {}

    @property
    def fixed(self) -> int:
        """Nanoseconds of the operations that no choice changes."""
        return _nanoseconds(self.model.of(self.fixed_work))

    def allowed(self, original: int) -> int:
        """Predicted nanoseconds that keep to the budget, where the original's are `original`."""
        return int(self.budget.nanoseconds(original) / self.slower)

    def timed(self, options: Mapping[str, Menu], beside: Chosen) -> dict[str, Menu]:
        """The choices with their nanoseconds beside those that were made for the other layers.

        What a table's choice saves the linear layers that read it is counted to the table, as far
        as it differs from the one beside.
        """
        widths = {name: self.lowered.inputs(name, beside) for name in self.lowered.linears}
        return {name: self._timed(menu, beside, widths) for name, menu in options.items()}

    def _timed(self, menu: Menu, beside: Chosen, widths: Mapping[str, Widths]) -> Menu:
        spec = menu.layer.spec
        found = []
        for choice in menu:
            taken = self._of(spec, choice, widths.get(spec.name, ()))
            if beside.get(spec.name, choice) != choice:
                taken += self._of_readers(spec.name, choice, beside, widths)
            found.append(replace(choice, nanoseconds=taken))
        return Menu(menu.layer, tuple(found))

    def _of_readers(
        self, table: str, choice: Choice, beside: Chosen, widths: Mapping[str, Widths]
    ) -> int:
        """What the layers that read a table take more where it has another choice."""
        more = 0
        for name, parts in self.lowered.readers.get(table, {}).items():
            if name not in beside:
                continue
            moved = list(widths[name])
            for place, part in parts:
                moved[place] += self.lowered.width(part, name, {table: choice})
                moved[place] -= self.lowered.width(part, name, beside)
            spec = self.lowered.layers[name].spec
            more += self._of(spec, beside[name], tuple(moved))
            more -= self._of(spec, beside[name], widths[name])
        return more

    def _of(self, spec: Spec, choice: Choice, widths: Widths) -> int:
        """Nanoseconds of a layer's choice; `widths` are those of a linear layer's operations."""
        key = spec.name, choice.method, choice.settings, widths
        if key not in self._known:
            served = self.lowered.shape(spec, choice).served
            if isinstance(served, CompressedTable):
                work = self.of_table(spec.name, served)
            else:
                work = self.of_linear(spec.name, served, widths)
            self._known[key] = _nanoseconds(self.model.of(work))
        return self._known[key]

    def of_table(self, name: str, served: CompressedTable) -> Counts:
        """Lookups of a table and decoding what they give."""
        found = Counts()
        for ids, feature in zip(self._ids, self.lowered.features, strict=True):
            if feature.table == name:
                found += cost.look_up(self.rows, reads_of(served), ids * feature.count)
        decoding = map(self._of_product, self.lowered.decoders(name, served))
        return sum(decoding, found)

    def of_linear(self, name: str, served: nn.Module, widths: Sequence[int]) -> Counts:
        """Products of a linear layer whose operations read these numbers of columns."""
        products = self.lowered.products(name, served, widths)
        return sum(map(self._of_product, products), Counts())

    def _of_product(self, product: Product) -> Counts:
        found = cost.linear(
            self.rows,
            inputs=product.inputs,
            outputs=product.outputs,
            form=product.form,
            pieces=product.pieces,
            times=product.times,
        )
        if product.activation:
            numbers = self.rows * product.times * product.outputs
            found += {f"{product.activation} numbers": numbers}
        return found


def reads_of(served: CompressedTable) -> Reads:
    """Work of reading a row of a table."""
    stored = served.stored
    reads = stored.kind.reads(stored.rows, stored.width)
    return reads if served.index is None else served.index.reads(reads, stored.kind.scaled)


def _nanoseconds(microseconds: float) -> int:
    """Whole ones, whose sums are exact whatever their order."""
    return math.ceil(1000 * microseconds)
