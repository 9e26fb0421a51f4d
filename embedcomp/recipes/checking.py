"""Hold predicted losses against measured ones."""

from __future__ import annotations

from collections.abc import Sequence

from embedcomp.artifact.artifact import Artifact
from embedcomp.errors import BadModel
from embedcomp.log.batches import Batch
from embedcomp.planning.choices import choices, every
from embedcomp.planning.diverse import Option, diverse
from embedcomp.recipes.measuring import layers_of
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.progress import Counter, Watch, quiet
from embedcomp.swapping import prediction
from embedcomp.swapping.prediction import Checked
from embedcomp.swapping.settings import CheckSettings


def options(
    original: Artifact,
    measured: Statistics,
    settings: CompressSettings,
    checking: CheckSettings,
    rows: int,
    watch: Watch = quiet,
) -> list[Option]:
    """Options of all layers to hold predicted losses against measured ones on.

    Args:
        rows: that they will be measured on.

    Raises:
        BadModel: no method offers anything for any layer.
    """
    found = measured.measured(layers_of(original, original.model()))
    names = [name for name in settings.goal.methods if name != "keep"]
    wanted = {name: every(layer.spec, names) for name, layer in found.layers.items()}
    tried = sum(len(some) for one in wanted.values() for some in one.values())
    counter = Counter(watch, "planning", tried, "candidates")
    offered = {name: choices(layer, names, counter) for name, layer in found.layers.items()}
    chosen = diverse(offered, checking.options, checking.smallest(rows), checking.seed)
    if not chosen:
        reasons = [f"{name} {reason}" for name, reason in found.refused.items()]
        said = f" ({reasons[0]})" if reasons else ""
        raise BadModel(f"{original.folder} has no layer that the methods would change{said}")
    return chosen


def check(
    original: Artifact,
    measured: Statistics,
    chosen: Sequence[Option],
    batches: Sequence[Batch],
    watch: Watch = quiet,
) -> list[Checked]:
    """Measure the increase of the log loss by each option alone."""
    model = original.model()
    layers = measured.measured(layers_of(original, model)).layers
    return prediction.check(model, layers, chosen, batches, watch)
