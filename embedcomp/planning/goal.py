"""What a plan is asked for, read once and before anything is measured."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from embedcomp.errors import BadSettings
from embedcomp.methods import named, refuse_unknown
from embedcomp.planning import solvers
from embedcomp.support import sizes
from embedcomp.support.sizes import NUMBER, SIZES

TWO_LIMITS = ("exact", "highs")  # solvers that keep to bytes and to a time at once

_TIMES = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6}


@dataclass(frozen=True)
class ByteBudget:
    """A bound on the bytes of the whole served model: a size, or a share of the original's."""

    amount: float
    unit: str  # of size, or "x" or "%"

    @classmethod
    def parse(cls, text: str) -> ByteBudget:
        """Read "5x" (five times smaller), "20%", "4MiB", "300kB" or "123456".

        Raises:
            BadSettings: it is none of these, or not positive.
        """
        number, unit = sizes.parse(text)
        if number <= 0 or unit not in {*SIZES, "x", "%"}:
            raise BadSettings(
                f"the budget {text!r} is not a positive size; write 5x, 20%, 4MiB, 300kB or bytes"
            )
        return cls(number, unit)

    def of(self, original: int) -> int:
        """The budget in bytes, given those of the original."""
        if self.unit == "x":
            return int(original / self.amount)
        if self.unit == "%":
            return int(original * self.amount / 100)
        return int(self.amount * SIZES[self.unit])


@dataclass(frozen=True)
class LatencyBudget:
    """A bound on a call that scores `rows` rows: a time, or times as fast as the original."""

    amount: float
    unit: str  # of time, or "x"
    rows: int
    text: str  # that said so

    @classmethod
    def parse(cls, text: str) -> LatencyBudget:
        """Read "200us@64" (or ms, ns), or "2x@64", twice as fast, in a call of 64 rows.

        Raises:
            BadSettings: it is not that, or not positive.
        """
        match = re.fullmatch(rf"{NUMBER}\s*({'|'.join(_TIMES)}|x)\s*@\s*(\d+)", text.strip())
        if match is not None:
            found = cls(float(match[1]), match[2], int(match[3]), text.strip())
            if found.rows and (found.amount > 0 if found.unit == "x" else found.nanoseconds(0)):
                return found
        raise BadSettings(
            f"the latency budget {text!r} is not a time and a number of rows; write 200us@64 "
            "for 200 microseconds a call of 64 rows, or 2x@64 for half the original's time"
        )

    def nanoseconds(self, original: int) -> int:
        """How long a call may take, where the original's takes `original`."""
        if self.unit == "x":
            return int(original / self.amount)
        return round(self.amount * _TIMES[self.unit])

    def share(self, before: float, after: float) -> float:
        """The part of the allowed time that a call takes.

        Args:
            before, after: microseconds of a call of the original and of what has to be as fast.
        """
        return 1000 * after / self.nanoseconds(round(1000 * before))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is limited, and what a plan may choose among.

    bytes, latency: limits; the loss is then as small as they allow.
    auc_loss: instead of bytes, the limit; the model is then as small as that allows.
    methods: that may be used; rest: for the layers that none of those takes.
    solver: one of embedcomp/planning/solvers.
    """

    bytes: ByteBudget | None
    latency: LatencyBudget | None
    auc_loss: float | None
    methods: tuple[str, ...]
    rest: tuple[str, ...]
    solver: str

    @classmethod
    def parse(
        cls,
        budget: str = "",
        latency_budget: str = "",
        max_auc_loss: float | None = None,
        *,
        methods: Collection[str] = (),
        rest: Collection[str] = (),
        solver: str = "exact",
        training: bool = False,
    ) -> Goal:
        """Read what a user wrote; an empty string is no budget.

        Args:
            methods: names; none are those that pay, "all" is every one.
            training: whether the compressed model will be trained, so that methods may need it.

        Raises:
            BadSettings: something cannot be read, there is no such method or solver, or what is
                limited is nothing or too much at once.
        """
        found = cls(
            bytes=ByteBudget.parse(budget) if budget else None,
            latency=LatencyBudget.parse(latency_budget) if latency_budget else None,
            auc_loss=max_auc_loss,
            methods=named(methods, training),
            rest=tuple(rest),
            solver=solver,
        )
        refuse_unknown((*found.methods, *found.rest))
        solvers.refuse_unknown(solver)
        found._refuse_limits()
        return found

    def _refuse_limits(self) -> None:
        if self.latency is None:
            if (self.bytes is None) == (self.auc_loss is None):
                given = "neither was" if self.bytes is None else "both were"
                raise BadSettings(
                    f"a plan needs either a budget or max_auc_loss, but {given} given; give one"
                )
            return
        if self.auc_loss is not None:
            raise BadSettings(
                "max_auc_loss asks for the smallest model and latency_budget for the best one "
                "within a time; give latency_budget alone or with a budget"
            )
        if self.bytes is not None and self.solver not in TWO_LIMITS:
            raise BadSettings(
                f"the solver {self.solver} keeps to one limit, but a budget and a latency_budget "
                "are two; take the solver exact or highs"
            )
