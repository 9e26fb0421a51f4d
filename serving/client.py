"""The client of the typed scoring service whose calls block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from embedcomp.serving.calls import Calls, Terms, joined, too_many
from embedcomp.serving.errors import CallFailed
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire


class Client(Calls):
    """Scores candidates at HOST:PORT; safe to use from several threads.

    `Calls` says what it is made with. A batch of more rows than the server takes in a call is sent
    in parts; how many it takes is asked for once it refuses a batch. Each part is scored by the
    version that is served when it arrives; give `version` where that may change meanwhile.
    """

    def predict(
        self,
        items: pa.RecordBatch,
        user: pa.RecordBatch | None = None,
        timeout_s: float | None = None,
        *,
        key: str = "",
    ) -> np.ndarray:
        """Click probabilities float32 [N] of N candidates.

        Args:
            items: raw columns, one row a candidate; nulls allowed.
            user: one row of columns that hold for every candidate.
            timeout_s: of all its parts together; None: the client's own.
            key: what the user is told apart by where a canary answers some of them.

        Raises:
            BadRequest: a column's type cannot be sent.
            Unreachable: no server answers.
            CallFailed: the server refused the request or was too slow.
        """
        terms = self._terms(timeout_s, key)
        if self._unasked(items):
            self._learn(self._metadata_by(terms))
        most = self._most(items)
        try:
            return self._scores(items, user, most, terms)
        except CallFailed as error:
            if not too_many(error, items) or not self._learn(self._metadata_by(terms), most):
                raise
        return self._scores(items, user, self._most(items), terms)

    def metadata(self, timeout_s: float | None = None) -> wire.MetadataResponse:
        """What is served: model, version, features, and the most rows of a call.

        Raises:
            Unreachable, CallFailed: as for predict.
        """
        return self._metadata_by(self._terms(timeout_s))

    def close(self) -> None:
        """Close the connections; calls in flight are cancelled."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _scores(
        self, items: pa.RecordBatch, user: pa.RecordBatch | None, most: int, terms: Terms
    ) -> np.ndarray:
        parts = self._parts(items, user, most)
        if items.num_rows <= most:
            return joined([self._call(self._predicts, next(parts), terms)])
        return joined(self._several(parts, terms))

    def _metadata_by(self, terms: Terms) -> wire.MetadataResponse:
        response: wire.MetadataResponse = self._call(self._describes, self._described(), terms)
        return response

    def _call(self, methods: Iterator[Any], request: Any, terms: Terms) -> Any:
        with self._errors_told():
            return next(methods)(request, **self._with(terms))

    def _several(
        self, parts: Iterator[wire.PredictRequest], terms: Terms
    ) -> list[wire.PredictResponse]:
        """Answers to all parts, of which a few are in flight at a time."""
        waiting: deque[Any] = deque()
        found = []
        try:
            with self._errors_told():
                for part in parts:
                    if len(waiting) == self._in_flight:
                        found.append(waiting.popleft().result())
                    waiting.append(next(self._predicts).future(part, **self._with(terms)))
                while waiting:
                    found.append(waiting.popleft().result())
        finally:
            for call in waiting:
                call.cancel()
        return found
