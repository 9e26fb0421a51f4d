"""Make the form that a plan says, on the original's weights or on drawn ones, and train it.

What is served is made here, and so is what short runs try (trying.py), which only train less.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from embedcomp.artifact.artifact import Artifact
from embedcomp.planning.plan import Plan
from embedcomp.recipes import searching
from embedcomp.recipes.measuring import layers_of
from embedcomp.recipes.searching import Start
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.layers import as_drawn
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.storage.rows import keeping_unrounded
from embedcomp.support.progress import Watch
from embedcomp.swapping import swap, tune
from embedcomp.swapping.cutting import drop_dead_
from embedcomp.swapping.heldout import HeldOut
from embedcomp.train.fit import Data

FAR_LOSS = 0.03  # predicted, of a form that begins as far from its end as if nothing were learnt


@dataclass(frozen=True)
class Formed:
    """A compressed model, the plan that it came to in training, and the history of that."""

    model: nn.Module
    plan: Plan
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Forming:
    """What any plan of one model is carried out with.

    model: the original's; not changed.
    measured: statistics that the plans were made of.
    held: rows that a search compares settings on.
    """

    original: Artifact
    model: nn.Module
    measured: Statistics
    settings: CompressSettings
    data: Data
    held: HeldOut

    def form(self, plan: Plan, folder: Path, watch: Watch) -> Formed:
        """The form of a plan, trained as `settings.train` says.

        Args:
            folder: of checkpoints, from which a run that was killed goes on.
        """
        start, training = self._start(plan), self.settings.train
        teacher = None if self.settings.from_log else self.model
        if training.epochs and searching.searches(plan):
            first, training = searching.stages(training)
            priced = self.measured.measured(layers_of(self.original, self.model)).layers
            start = searching.search(
                start, priced, teacher, self.data, self.held, first, folder, watch
            )
        plan, history = start.plan, start.history
        unrounded = keeping_unrounded() if self.settings.trains else nullcontext()
        with unrounded:  # learns which way to round
            compressed = swap.apply(start.model, plan, start.found, start.measured, watch)
        if training.epochs:
            given = compressed, teacher, self.data, training, folder, watch
            history += tune.train_form(*given, far=plan.loss / FAR_LOSS)
            plan = drop_dead_(compressed, plan)
        return Formed(compressed, plan, history)

    def _start(self, plan: Plan) -> Start:
        """A plan and the model, or one of its structure whose numbers are drawn."""
        original = self.original
        if not self.settings.from_log:
            return Start(self.model, layers_of(original, self.model), self.measured, plan)
        fresh = original.source.build(original.features, self.settings.train.seed)
        return Start(fresh, as_drawn(layers_of(original, fresh)), Statistics(), plan)
