"""Compress a smaller network, trained on labels and the original's scores, in its place.

Compressing a large network to a hundredth loses more than a network that is small to begin with and
has less to be rounded; which shape is best is found by making them and scoring the validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from embedcomp.artifact import artifact
from embedcomp.artifact.artifact import Artifact
from embedcomp.errors import BadSettings, LimitsTooSmall
from embedcomp.log.click_log import ClickLog
from embedcomp.modules.sizes import model_bytes
from embedcomp.recipes.compressing import compress
from embedcomp.recipes.measuring import held_out, measure
from embedcomp.recipes.planned import plan
from embedcomp.recipes.save import scratch
from embedcomp.recipes.settings import AUTO, CompressSettings, read_student
from embedcomp.recipes.training import train
from embedcomp.support.files import remove
from embedcomp.support.progress import Watch, quiet
from embedcomp.swapping.heldout import HeldOut
from embedcomp.train import workers
from embedcomp.train.fit import Data
from embedcomp.train.key import RunKey

PARTS = (0.5, 0.25, 0.125)  # of the widths of hidden layers, that are tried
FEWEST = 4  # numbers of a hidden layer that is tried

Shape = Mapping[str, Any]  # settings of a model that are changed


def shapes(original: Artifact, said: str) -> dict[str, Shape]:
    """Students to try, by name: the one that is said, or some that have less of everything.

    Raises:
        BadSettings: the original is no model of embedcomp, or has nothing that can be less.
    """
    source = original.source
    if ":" in source.model:
        raise BadSettings(
            f"{source.model} has no settings that a student could change; train one by itself with "
            "`embedcomp train --teacher` and compress that"
        )
    whole = source.complete().settings
    if said != AUTO:
        several = {name for name, value in whole.items() if isinstance(value, list | tuple)}
        one = {
            name: [value] if name in several and not isinstance(value, list) else value
            for name, value in read_student(said).items()
        }
        return {"said": one}
    hidden, cross = whole.get("hidden", ()), whole.get("cross_layers", 1)
    if not hidden:
        raise BadSettings(f"{source.model} has no hidden layers that a student could have less of")
    found: dict[str, Shape] = {}
    for part in PARTS:
        widths = tuple(max(FEWEST, math.ceil(width * part)) for width in hidden)
        fewer = {"cross_layers": max(1, round(cross * part))} if "cross_layers" in whole else {}
        found["x".join(map(str, widths))] = {"hidden": widths, **fewer}
    return found


@dataclass(frozen=True)
class Tried:
    """A student that was compressed, or the original itself.

    name: its hidden widths; empty: the original.
    auc_loss: of the validation rows, against the original.
    """

    name: str
    made: Artifact
    auc_loss: float


def with_student(
    original: Artifact,
    log: ClickLog,
    settings: CompressSettings,
    out: Path,
    *,
    control: Artifact | None = None,
    watch: Watch = quiet,
) -> Artifact:
    """Compress students of the original, and write the best of them to `out` with its proof.

    A run that was killed goes on from the students that it had trained. Where shapes are tried, so
    is the original, which therefore no student that is worse takes the place of. Several workers
    train together, and the first of them plans for all.

    Raises:
        BadSettings: there is no student of such a model.
        LimitsTooSmall: none of them keeps to the budget.
    """
    wanted, folder = shapes(original, settings.student), scratch(out) / "students"
    held = held_out(original, log, settings, watch)
    absolute = _in_bytes(original, settings)
    tried: list[Tried] = []
    refusals: list[LimitsTooSmall] = []
    of_itself: dict[str, Shape | None] = {"": None} if settings.student == AUTO else {}
    for name, shape in {**of_itself, **wanted}.items():
        start = original
        if shape is not None:
            start = _trained(original, log, settings, shape, folder, watch)
        try:
            tried.append(_tried(name, original, start, log, absolute, folder, held, control, watch))
        except LimitsTooSmall as error:
            refusals.append(error)
    if not tried:
        raise refusals[0]
    best = min(tried, key=lambda one: one.auc_loss)
    return Artifact.open(workers.once(partial(_taken_over, best.made, out)))


def _taken_over(made: Artifact, out: Path) -> Path:
    """Where the artifact lies once nothing else is left of what led to it."""
    found = artifact.take_over(made, out)
    remove(scratch(out))
    return found.folder


def _in_bytes(original: Artifact, settings: CompressSettings) -> CompressSettings:
    """The settings with a budget of bytes, which is the same for a smaller network."""
    budget = settings.goal.bytes
    assert budget is not None, "settings of a student have one"
    most = budget.of(model_bytes(original.model())["total"])
    return replace(settings, budget=str(most), student="")


def _trained(
    original: Artifact,
    log: ClickLog,
    settings: CompressSettings,
    shape: Shape,
    folder: Path,
    watch: Watch,
) -> Artifact:
    """A student with fewer numbers, trained unless a killed run trained this very one."""
    source = original.source.model_copy(
        update={"settings": {**original.source.settings, **shape}}
    ).complete()
    taught, data = settings.student_train, Data(log, original.features)
    begun, splits = source.build(data.features, taught.seed), (data.train, data.valid)
    key = RunKey.of(begun, log, splits, data.features, taught, original.model())
    place = folder / key.name
    if artifact.versions(place):
        return Artifact.open(place)
    return train(log, original.features, source, taught, place, teacher=original, watch=watch)


def _tried(
    name: str,
    original: Artifact,
    start: Artifact,
    log: ClickLog,
    settings: CompressSettings,
    folder: Path,
    held: HeldOut,
    control: Artifact | None,
    watch: Watch,
) -> Tried:
    """What compressing a student, or the original, makes of it."""
    measured = measure(start, log, settings, watch)
    planned = workers.once(partial(plan, start, measured, settings, held, watch))
    made = compress(
        start,
        log,
        measured,
        planned,
        settings,
        folder / f"compressed-{name or 'original'}",
        held=held,
        control=control,
        against=original,
        watch=watch,
    )
    assert made.plan is not None and made.plan.outcome is not None
    return Tried(name, made, made.plan.outcome.auc_loss)
