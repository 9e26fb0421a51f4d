"""Settings chosen by short runs on a share of the log: the tables' L2 and the teacher's weight.

A probe trains a copy of the model on runs of rows spread over the log and is scored on validation
rows.

One of the L2 ends when its validation AUC falls. Without enough L2, rows learn the clicks by heart,
which shows after a few passes over so few rows. Too much L2 does not show: the less there is of it,
the faster a model learns at first. Probes of movielens_1m liked a sixteenth of the usual weight
best, by 0.011 of AUC, and whole runs with it ended 0.004 below those with the usual one. So probes
only tell when more is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from embedcomp.log.click_log import Piece
from embedcomp.support.files import replacing
from embedcomp.support.metrics import Quality
from embedcomp.train import workers
from embedcomp.train.settings import STEPS as EPOCH_STEPS
from embedcomp.train.settings import TrainSettings

USUAL_L2 = 6000.0  # suits movielens_1m, kuairand and globo_clicks alike
FACTOR = 4.0  # between neighbours
FURTHEST = 2  # factors above the usual weight
ROWS = 65_536  # of the training split in a probe, at most
SHARE = 8  # a probe reads at most one row in this many
FEWEST = 8192  # that tell weights apart: a smaller share is not probed
RUNS = 8  # of rows that follow each other, which keep together what is seen together
PASSES = 6
USUAL_DISTIL = 0.7  # in whole runs of tuning DCN-V2 on two logs 0.0004 of AUC below the best weight
# at most, whether that was 0 or 1; 1 was as much as 0.004 below it
DISTILS = 0.0, 0.5, 0.7, 0.85, 1.0
DISTIL_ROWS = 1 << 20  # of the training split in a probe of the teacher's weight, at most
DISTIL_SHARE = 4  # an eighth of the log shows less of what its labels bring
ALIKE = 0.1  # errors of an AUC by which two probes' may differ by chance: they score the same rows,
# nearly alike
STEPS = 128  # of a pass, at least


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one value of a setting brought: an AUC, how far off that may be, and a log loss."""

    setting: str
    value: float
    auc: float
    error: float
    logloss: float
    seconds: float


Settings = TypeVar("Settings", bound=TrainSettings)
Trained = Callable[[float], Quality]  # the validation quality of a probe with this value


class Probes:
    """Probes of one setting, each run once.

    Args:
        file: keeps the probes that are done, for a run that is killed and started again; it may
            hold those of other settings too.
    """

    def __init__(self, setting: str, train: Trained, file: Path):
        self._setting, self._train, self._file = setting, train, file

    def __call__(self, value: float) -> Probe:
        """The probe of a value, which is run if it is not done yet."""
        every = _read(self._file)
        for probe in every:
            if (probe.setting, probe.value) == (self._setting, value):
                return probe
        began = perf_counter()
        found = self._train(value)
        probe = Probe(
            setting=self._setting,
            value=value,
            auc=found.auc,
            error=found.auc_error,
            logloss=found.logloss,
            seconds=round(perf_counter() - began, 1),
        )
        _write(self._file, [*every, probe])
        return probe

    @property
    def done(self) -> list[Probe]:
        """Those that are done, in the order of their values."""
        found = [probe for probe in _read(self._file) if probe.setting == self._setting]
        return sorted(found, key=lambda probe: probe.value)


def chosen_l2(probe: Callable[[float], Probe]) -> float:
    """The weight of the L2 that probes are best with.

    Goes from the usual weight on to larger ones while the AUC clearly rises, so that what makes no
    difference leaves the weight as it is.
    """
    best = probe(USUAL_L2)
    for place in range(1, FURTHEST + 1):
        found = probe(USUAL_L2 * FACTOR**place)
        if not found.auc > best.auc + best.error:
            break
        best = found
    return best.value


def chosen_distil(probe: Callable[[float], Probe]) -> float:
    """The teacher's weight that probes are best with.

    Goes from the usual weight to its better neighbour and on while that is better.
    """
    place = DISTILS.index(USUAL_DISTIL)
    tried = {place: probe(USUAL_DISTIL)}
    for step in (1, -1):
        while 0 <= place + step < len(DISTILS) and place + step not in tried:
            tried[place + step] = probe(DISTILS[place + step])
            if not _better(tried[place + step], tried[place]):
                break
            place += step
    return DISTILS[place]


def _better(found: Probe, than: Probe) -> bool:
    """Whether a probe is better than another one: by its AUC, or by its log loss where that of both
    is about the same, as under a teacher that knows nothing, whose scores pull all logits together
    and leave their order.
    """
    rise = found.auc - than.auc
    if abs(rise) > ALIKE * found.error:
        return rise > 0
    return found.logloss < than.logloss


def short(settings: TrainSettings, rows: int) -> TrainSettings:
    """A run's settings as those of one on `rows` rows that ends when its validation AUC falls."""
    return replace(
        settings,
        epochs=PASSES,
        batch_rows=max(1, min(settings.batch_rows, rows // STEPS)),
        schedule="plateau",
        evaluations_per_epoch=1,
        patience=1,
        cuts=0,
    )


def small(settings: TrainSettings, rows: int) -> TrainSettings:
    """A run's settings as those of one on `rows` rows that is like it in all else."""
    if settings.schedule != "linear":
        return short(settings, rows)
    batch_rows = max(1, min(settings.batch_rows, rows // EPOCH_STEPS))
    return replace(settings, batch_rows=batch_rows)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A setting that probes choose a value of where it is left open.

    most, part: a probe trains on at most so many rows, and on at most one in so many of the log's.
    usual: the value where the log is too small to tell, and in probes of what is chosen before.
    choose: finds the value by the probes that it asks for.
    probing: a run's settings as those of a probe on so many rows.
    """

    setting: str  # of TrainSettings
    most: int
    part: int
    usual: float
    choose: Callable[[Callable[[float], Probe]], float]
    probing: Callable[[TrainSettings, int], TrainSettings]

    def rows_of(self, train: int) -> int:
        """Rows of a probe, by those of the training split."""
        return max(1, min(self.most, train // self.part))

    def set(self, settings: Settings, value: float) -> Settings:
        """The settings with this value."""
        changes: dict[str, Any] = {self.setting: value}
        return replace(settings, **changes)


L2 = Weight(
    setting="embedding_l2",
    most=ROWS,
    part=SHARE,
    usual=USUAL_L2,
    choose=chosen_l2,
    probing=short,
)
DISTIL = Weight(
    setting="distil",
    most=DISTIL_ROWS,
    part=DISTIL_SHARE,
    usual=USUAL_DISTIL,
    choose=chosen_distil,
    probing=small,
)


def left_open(settings: TrainSettings, taught: bool) -> list[Weight]:
    """Weights that the settings of a run leave to probes, in the order in which they are chosen.

    Args:
        taught: whether there is a teacher.
    """
    weights = [L2, DISTIL] if taught else [L2]
    return [w for w in weights if settings.epochs and getattr(settings, w.setting) is None]


def sample(pieces: Sequence[Piece], rows: int) -> list[Piece]:
    """About `rows` rows, in runs at equal distances."""
    total = sum(piece.rows for piece in pieces)
    runs = min(RUNS, rows)
    if rows >= total:
        return list(pieces)
    return [
        piece for share in workers.shares(pieces, runs) for piece in _first(share, -(-rows // runs))
    ]


def _first(pieces: Sequence[Piece], rows: int) -> Iterator[Piece]:
    for piece in pieces:
        if rows > 0:
            yield piece.part(0, min(rows, piece.rows))
        rows -= piece.rows


def _read(file: Path) -> list[Probe]:
    return [Probe(**probe) for probe in json.loads(file.read_text())] if file.exists() else []


def _write(file: Path, probes: Sequence[Probe]) -> None:
    if workers.rank() == 0:
        with replacing(file) as fresh:
            fresh.write_text(json.dumps([asdict(probe) for probe in probes]))
    workers.wait()
