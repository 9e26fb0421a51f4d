"""Statistics of a model's layers over a log: sums over pieces, which can run anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.proof import SPLIT
from embedcomp.kernels.threads import cores, one_thread
from embedcomp.log.batches import Batch, in_order
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity import statistics
from embedcomp.sensitivity.layers import Found, find
from embedcomp.sensitivity.statistics import Statistics, score_batch
from embedcomp.support.progress import Counter, Doing, Watch, quiet
from embedcomp.swapping.heldout import HeldOut
from embedcomp.train.tables import fast_tables

TRAIN = "train"
MEASURE_BATCH_ROWS = 2048
CHECK_BATCH_ROWS = 8192
LEAST_ROWS = 256  # of a piece, so that the time to open pieces does not grow with the log


def layers_of(original: Artifact, model: nn.Module) -> Found:
    """The model's layers that can be compressed, with the log's id counts."""
    counts = {f.name: f.vocabulary.counts for f in original.features.ids}
    return find(model, counts)


def measure_pieces(log: ClickLog, settings: CompressSettings) -> list[Piece]:
    """The pieces that statistics are gathered on."""
    return spread(log.pieces("train"), settings.measure_rows)


def spread(pieces: Sequence[Piece], rows: int) -> list[Piece]:
    """All pieces, or some at equal distances where `rows` rows would be too few of each of them."""
    most = max(1, rows // LEAST_ROWS)
    return list(pieces[:: -(-len(pieces) // most)])


def measure_piece(
    original: Artifact,
    model: nn.Module,
    log: ClickLog,
    piece: Piece,
    share: float,
    counter: Counter | None = None,
    twins: Sequence[nn.Module] = (),
) -> Statistics:
    """Statistics of every layer over the first `share` of one piece's rows.

    A product is made by one thread, since those summed by several differ in the last bit.

    Args:
        counter: of rows.
        twins: more of the same model, for a thread each.
    """
    rows = rows_in(piece, share)
    batches = in_order(log, original.features, [piece], MEASURE_BATCH_ROWS, rows_per_piece=rows)
    if counter is not None:
        batches = counter.over(batches, len)
    with one_thread():
        return statistics.measure(model, batches, layers_of(original, model), twins=twins)


def measure(
    original: Artifact, log: ClickLog, settings: CompressSettings, watch: Watch = quiet
) -> Statistics:
    """Statistics of every layer over about `measure_rows` rows spread over the whole log."""
    model, pieces = original.model(), measure_pieces(log, settings)
    twins = [original.model(model) for _ in range(cores() - 1)]
    share = measure_share(pieces, settings)
    rows = sum(rows_in(piece, share) for piece in pieces)
    counter = Counter(watch, "measuring", rows, "rows")
    parts = (measure_piece(original, model, log, piece, share, counter, twins) for piece in pieces)
    return total(parts)


def rows_in(piece: Piece, share: float) -> int:
    """Rows that are read of a piece."""
    return max(1, round(piece.rows * share))


def measure_share(pieces: Sequence[Piece], settings: CompressSettings) -> float:
    """The share of each piece that is read, so that about `measure_rows` rows are."""
    return min(1.0, settings.measure_rows / sum(piece.rows for piece in pieces))


def total(parts: Iterable[Statistics]) -> Statistics:
    """The sum of the pieces' statistics; in the order of the pieces it is the same bit for bit."""
    found = Statistics()
    for part in parts:
        found += part
    return found


def held_out(
    original: Artifact, log: ClickLog, settings: CompressSettings, watch: Watch = quiet
) -> HeldOut:
    """About `held_rows` rows that compressed models are held against the original on.

    They are of the validation split, which the model was not fitted to, and where there is none of
    the training split. On one thread, so that scores are the same to the last bit wherever this
    runs.

    Raises:
        BadLog: there is a bound on the AUC, but no validation split.
    """
    bounded = settings.max_auc_loss is not None
    split = SPLIT if bounded or SPLIT in log.schema.splits else TRAIN
    watch(Doing("reading held-out rows"))
    batches = rows_of(original, log, split, settings.held_rows)
    with one_thread(), fast_tables(original.model()) as model:
        pairs = ((batch, batch.labels) for batch in batches)
        return HeldOut.of(model, pairs, score_batch, split, watch)


def rows_of(original: Artifact, log: ClickLog, split: str, rows: int) -> list[Batch]:
    """About `rows` rows from all pieces of a split, kept in memory."""
    pieces = spread(log.pieces(split), rows)
    share = min(1.0, rows / sum(piece.rows for piece in pieces))
    return [
        batch
        for piece in pieces
        for batch in in_order(
            log,
            original.features,
            [piece],
            CHECK_BATCH_ROWS,
            rows_per_piece=rows_in(piece, share),
        )
    ]
