"""Plans in which each family of methods has its turn, for short runs to choose among (trying.py).

The methods that need no training are one family, and every method that trains is one. A mix by
predicted losses has next to nothing of the latter: their forms lose much before they are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from embedcomp import methods
from embedcomp.planning.plan import Plan
from embedcomp.recipes.settings import CompressSettings

MIX, POST_TRAINING = "mix", "post-training"  # names of plans: by all methods, and by those that
# need no training
TRIED = 6  # plans, where nobody says how many
ROUNDS = 2  # of finding out which layers a method has a use for

Make = Callable[[CompressSettings, Collection[str]], Plan | None]  # the best plan, where some
# layers are left to the rest of the methods; None: nothing keeps to the budgets


def others(settings: CompressSettings, best: Plan, make: Make) -> tuple[Plan, ...]:
    """The plans to try beside the best mix: that without training, then those of least loss."""
    families = _families(settings)
    most = settings.plans_tried or (len(families) + 1 if settings.from_log else TRIED)
    if most == 1 or len(families) < 2:
        return ()
    made = {name: make(how, ()) for name, how in families.items()}
    found = {name: plan for name, plan in made.items() if plan is not None and _has(plan, name)}
    plans = [best]
    for name in sorted(found, key=lambda name: (name != POST_TRAINING, found[name].loss)):
        if len(plans) < most:
            plan = _with_rest(found[name], name, families[name], make)
            if all(plan.layers != one.layers for one in plans):
                plans.append(replace(plan, name=name))
    return tuple(plans[1:])


def _families(settings: CompressSettings) -> dict[str, CompressSettings]:
    """What is asked for of each family's plan; what a method does not take has other methods."""
    training, offered = methods.that_train(), settings.goal.methods
    untrained = tuple(name for name in offered if name not in training)
    rest = *untrained, *settings.rest
    found = {POST_TRAINING: replace(settings, methods=untrained)} if untrained else {}
    trained = (name for name in offered if name in training)
    return found | {name: replace(settings, methods=(name,), rest=rest) for name in trained}


def _with_rest(plan: Plan, name: str, how: CompressSettings, make: Make) -> Plan:
    """The plan with other methods for layers that one method takes and has no use for, which would
    be kept as they are.
    """
    left: set[str] = set()
    for _ in range(ROUNDS if name != POST_TRAINING else 0):
        unused = {planned.layer for planned in plan.layers if planned.method != name}
        better = make(how, unused) if unused != left else None
        if better is None or not _has(better, name):
            break
        plan, left = better, unused
    return plan


def _has(plan: Plan, name: str) -> bool:
    """Whether some layer has the family's method."""
    return name == POST_TRAINING or any(planned.method == name for planned in plan.layers)
