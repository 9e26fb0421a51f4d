"""The weight of the tables' L2, chosen by short runs on a share of the log.

A probe trains a copy of the model on runs of rows spread over the log and ends when its validation
AUC falls. Without enough L2, rows learn the clicks by heart, which shows after a few passes over so
few rows. Too much L2 does not show: the less there is of it, the faster a model learns at first.
Probes of movielens_1m liked a sixteenth of the usual weight best, by 0.011 of AUC, and whole runs
with it ended 0.004 below those with the usual one. So probes only tell when more is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

from embedcomp.log.click_log import Piece
from embedcomp.support.files import replacing
from embedcomp.support.metrics import Quality
from embedcomp.train import workers
from embedcomp.train.settings import TrainSettings

USUAL_L2 = 6000.0  # suits movielens_1m, kuairand and globo_clicks alike
FACTOR = 4.0  # between neighbours
FURTHEST = 2  # factors above the usual weight
ROWS = 65_536  # of the training split in a probe, at most
SHARE = 8  # a probe reads at most one row in this many
FEWEST = 8192  # that tell weights apart: a smaller share is not probed
RUNS = 8  # of rows that follow each other, which keep together what is seen together
PASSES = 6
STEPS = 128  # of a pass, at least


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one weight brought: the AUC of its best pass, and how far off that may be."""

    embedding_l2: float
    auc: float
    error: float
    seconds: float


Trained = Callable[[float], Quality]  # the best validation quality of a probe with this weight


def chosen(train: Trained, file: Path) -> tuple[float, list[Probe]]:
    """The weight that probes are best with, and all probes.

    Goes from the usual weight on to larger ones while the AUC clearly rises, so that what makes no
    difference leaves the weight as it is.

    Args:
        file: keeps the probes that are done, for a run that is killed and started again.
    """
    done = {probe.embedding_l2: probe for probe in _read(file)}

    def probe(place: int) -> Probe:
        l2 = USUAL_L2 * FACTOR**place
        if l2 not in done:
            done[l2] = _probe(train, l2)
            _write(file, [*done.values()])
        return done[l2]

    best = probe(0)
    for place in range(1, FURTHEST + 1):
        found = probe(place)
        if not found.auc > best.auc + best.error:
            break
        best = found
    return best.embedding_l2, sorted(done.values(), key=lambda probe: probe.embedding_l2)


def _probe(train: Trained, l2: float) -> Probe:
    began = perf_counter()
    found = train(l2)
    seconds = round(perf_counter() - began, 1)
    return Probe(embedding_l2=l2, auc=found.auc, error=found.auc_error, seconds=seconds)


def settings_of(settings: TrainSettings, l2: float, rows: int) -> TrainSettings:
    """A run's settings as those of one of its probes, which trains on `rows` rows."""
    return replace(
        settings,
        embedding_l2=l2,
        epochs=PASSES,
        batch_rows=max(1, min(settings.batch_rows, rows // STEPS)),
        schedule="plateau",
        evaluations_per_epoch=1,
        patience=1,
        cuts=0,
    )


def rows_of(train: int) -> int:
    """Rows of a probe, by those of the training split."""
    return max(1, min(ROWS, train // SHARE))


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
