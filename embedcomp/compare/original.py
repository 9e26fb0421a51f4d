"""An original that is measured once, and the compressed models that are made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.cells import digest
from embedcomp.errors import LimitsTooSmall
from embedcomp.log.click_log import ClickLog
from embedcomp.planning.choices import candidates
from embedcomp.planning.plan import Plan
from embedcomp.recipes.evaluate import evaluate
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.storage.kind import CannotStore
from embedcomp.support.progress import Doing, Watch, quiet
from embedcomp.swapping.heldout import HeldOut

T = TypeVar("T")


class Progress(Protocol):
    """What a long run reports to: steps to expect, and those that begin and end."""

    def expect(self, steps: int, done: int) -> None: ...

    def begin(self, title: str) -> Watch: ...

    def end(self, result: str) -> None: ...


class Silent:
    """Progress that shows nothing."""

    def expect(self, steps: int, done: int) -> None: ...

    def begin(self, title: str) -> Watch:
        return quiet

    def end(self, result: str) -> None: ...


@dataclass
class Clock:
    """Seconds of each step."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, step: str, run: Callable[[], T]) -> T:
        began = perf_counter()
        try:
            return run()
        finally:
            self.seconds[step] = round(perf_counter() - began, 2)


@dataclass(frozen=True)
class Original:
    """A trained model, its statistics, and what its plans share."""

    artifact: Artifact
    log: ClickLog
    measured: Statistics
    planning: recipes.Planning
    held: HeldOut | None = None

    @classmethod
    def measure(
        cls, artifact: Artifact, log: ClickLog, settings: CompressSettings, watch: Watch = quiet
    ) -> Original:
        """The model and its statistics; `watch` is also told how far each of its plans is."""
        measured = recipes.measure(artifact, log, settings, watch)
        held = recipes.held_out(artifact, log, settings, watch)
        planning = recipes.Planning(artifact, measured, held, watch)
        return cls(artifact, log, measured, planning, held)

    def plan(self, settings: CompressSettings) -> Plan | str:
        """The plan, or why there is none."""
        names = settings.goal.methods
        specs = [layer.spec for layer in self.planning.found.layers.values()]
        if not any(candidates(name, spec) for name in names for spec in specs):
            return f"{', '.join(names)} takes none of the model's {len(specs)} layers"
        try:
            return self.planning.plan(settings)
        except LimitsTooSmall as error:
            return str(error)

    def compress(
        self,
        plan: Plan,
        settings: CompressSettings,
        out: Path,
        watch: Watch,
        control: Artifact | None = None,
    ) -> Artifact | str:
        """The artifact, or why the plan cannot be carried out; its proof records the control."""
        try:
            return recipes.compress(
                self.artifact,
                self.log,
                self.measured,
                plan,
                settings,
                out,
                held=self.held,
                control=control,
                watch=watch,
            )
        except CannotStore as error:
            return str(error)

    def passing(
        self, settings: CompressSettings, scratch: Path, split: str, watch: Watch
    ) -> dict[str, Any]:
        """Figures of a compressed model that need not be kept, or why there are none.

        Args:
            scratch: folder for its artifact, and for the checkpoints of its tuning, from which
                a run that was killed goes on.
        """
        clock = Clock()
        plan = clock.time("plan", lambda: self.plan(settings))
        if isinstance(plan, str):
            return {"reason": plan, "seconds": clock.seconds}
        result = {**of_plan(plan), "seconds": clock.seconds}
        folder = scratch / result["plan"]  # another plan could not go on from its checkpoints
        compressed = clock.time("compress", lambda: self.compress(plan, settings, folder, watch))
        if isinstance(compressed, str):
            return {**result, "reason": compressed}
        assert compressed.plan is not None
        result |= of_plan(compressed.plan)  # short runs may have chosen another one
        watch(Doing("evaluating"))
        figures = clock.time("evaluate", lambda: score(compressed, self.log, split))
        return {**result, **figures}


def score(artifact: Artifact, log: ClickLog, split: str) -> dict[str, Any]:
    """Quality, bytes and speed on a split."""
    return evaluate(artifact.model(), log, artifact.features, split, artifact.folder)


def of_plan(plan: Plan) -> dict[str, Any]:
    """What a result says of its plan."""
    description = plan.to_dict()
    return {
        "budget_bytes": plan.budget_bytes,
        "predicted_loss": plan.loss,
        "plan": digest([description["layers"], description["single_valued"]]),
        "mix": dict(Counter(planned.method for planned in plan.layers)),
    }
