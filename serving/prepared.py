"""Real rows of a log for the model that is served, and requests of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from embedcomp.errors import BadLog, BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.serving.convert import to_request
from embedcomp.serving.settings import LoadSettings
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

ROWS = 131_072  # first ones of the split that requests are made of
MOST = 4_096  # different requests
MOST_BYTES = 64 << 20  # that they take, unless a single one takes more


@dataclass(frozen=True)
class Prepared:
    """Serialised requests, and the rows of the log that are in them."""

    requests: Sequence[bytes]
    log_rows: int

    @property
    def mean_bytes(self) -> float:
        return sum(map(len, self.requests)) / len(self.requests)


def prepared(
    served: wire.MetadataResponse, target: str, log: ClickLog, settings: LoadSettings
) -> Prepared:
    """Different requests for the model that is served, of as many candidates as is said.

    Rows are taken in the log's order, and from its beginning again where there are too few.

    Raises:
        BadLog: the split cannot be read, or lacks a feature of the model.
        BadSettings: a request has more candidates than the server takes, or cannot be divided into
            a user and candidates.
    """
    _refuse_too_many(served, settings)
    names = names_in(log, served, target)
    user = _user_side(served) if settings.user_candidates else []
    taken = [batch.select(names) for batch in batches(log, settings.split, ROWS, ROWS)]
    rows = pa.concat_batches(taken)
    return Prepared(list(_bounded(_requests(rows, user, settings))), rows.num_rows)


def names_in(log: ClickLog, served: wire.MetadataResponse, target: str) -> list[str]:
    """Names of the served model's features, all of which the log has.

    Raises:
        BadLog: it lacks some.
    """
    names = [feature.name for feature in served.features]
    missing = [name for name in names if name not in log.schema.columns]
    if missing:
        raise BadLog(
            f"{log.path} lacks {len(missing)} of the {len(names)} features that model "
            f"{served.model!r} at {target} needs: {', '.join(missing)}; name them in "
            "schema.toml or serve a model of this log"
        )
    return names


def batches(
    log: ClickLog, split: str, limit: int | None, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """The split's rows in order, up to `batch_rows` at a time, `limit` in all."""
    left = sys.maxsize if limit is None else limit
    for piece in log.pieces(split):
        for columns in log.read(piece):
            taken = columns.slice(0, left)
            for start in range(0, taken.num_rows, batch_rows):
                yield taken.slice(start, batch_rows)
            left -= taken.num_rows
            if not left:
                return


def _requests(rows: pa.RecordBatch, user: Sequence[str], settings: LoadSettings) -> Iterator[bytes]:
    """Requests until the rows, or the users among them, begin again."""
    many = settings.candidates
    items = rows.drop_columns(list(user))
    firsts = range(0, rows.num_rows * (many if user else 1), many)
    for number, first in enumerate(firsts):
        places = (first + np.arange(many)) % rows.num_rows
        of_user = rows.slice(number, 1).select(list(user)) if user else None
        yield to_request(items.take(pa.array(places)), of_user).SerializeToString()


def _bounded(requests: Iterator[bytes]) -> Iterator[bytes]:
    """The first ones, which do not take too much memory together."""
    left = MOST_BYTES
    for number, request in enumerate(islice(requests, MOST)):
        left -= len(request)
        if left < 0 and number:
            return
        yield request


def _refuse_too_many(served: wire.MetadataResponse, settings: LoadSettings) -> None:
    if 0 < served.max_rows < settings.candidates:
        name = "user_candidates" if settings.user_candidates else "rows"
        raise BadSettings(
            f"{name} is {settings.candidates:,}, but the server takes {served.max_rows:,} "
            "candidates in a call; send fewer or serve with a larger --max-rows"
        )


def _user_side(served: wire.MetadataResponse) -> list[str]:
    """Names of the features that are the user's."""
    names = [one.name for one in served.features if one.side == wire.Feature.SIDE_USER]
    if 0 < len(names) < len(served.features):
        return names
    raise BadSettings(
        f"{len(names)} of the {len(served.features)} features of model {served.model!r} are the "
        "user's, so that its calls do not have a user and candidates; give rows instead of "
        "user_candidates"
    )
