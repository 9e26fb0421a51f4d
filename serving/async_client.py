"""The client of the typed scoring service for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import TracebackType

import grpc.aio
import numpy as np
import pyarrow as pa

from embedcomp.serving.calls import Calls, Terms, joined, too_many
from embedcomp.serving.errors import CallFailed
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire


class AsyncClient(Calls):
    """`Client` for asyncio: the same arguments and methods, which are awaited.

    It belongs to the event loop in which the first call is made.
    """

    _grpc = grpc.aio

    async def predict(
        self,
        items: pa.RecordBatch,
        user: pa.RecordBatch | None = None,
        timeout_s: float | None = None,
        *,
        key: str = "",
    ) -> np.ndarray:
        """As Client.predict."""
        terms = self._terms(timeout_s, key)
        if self._unasked(items):
            self._learn(await self._metadata_by(terms))
        most = self._most(items)
        try:
            return await self._scores(items, user, most, terms)
        except CallFailed as error:
            if not too_many(error, items) or not self._learn(await self._metadata_by(terms), most):
                raise
        return await self._scores(items, user, self._most(items), terms)

    async def metadata(self, timeout_s: float | None = None) -> wire.MetadataResponse:
        """As Client.metadata."""
        return await self._metadata_by(self._terms(timeout_s))

    async def close(self) -> None:
        """Close the connections; calls in flight are cancelled."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def _scores(
        self, items: pa.RecordBatch, user: pa.RecordBatch | None, most: int, terms: Terms
    ) -> np.ndarray:
        parts = self._parts(items, user, most)
        if items.num_rows <= most:
            return joined([await self._predict(next(parts), terms)])
        return joined(await self._several(parts, terms))

    async def _metadata_by(self, terms: Terms) -> wire.MetadataResponse:
        self._open()
        with self._errors_told():
            request = self._described()
            response: wire.MetadataResponse = await next(self._describes)(
                request, **self._with(terms)
            )
        return response

    async def _predict(self, part: wire.PredictRequest, terms: Terms) -> wire.PredictResponse:
        self._open()
        with self._errors_told():
            response: wire.PredictResponse = await next(self._predicts)(part, **self._with(terms))
        return response

    async def _several(
        self, parts: Iterator[wire.PredictRequest], terms: Terms
    ) -> list[wire.PredictResponse]:
        """Answers to all parts, of which a few are in flight at a time."""
        found: dict[int, wire.PredictResponse] = {}
        numbered = enumerate(parts)

        async def one_after_another() -> None:
            for number, part in numbered:
                found[number] = await self._predict(part, terms)

        senders = [asyncio.ensure_future(one_after_another()) for _ in range(self._in_flight)]
        try:
            await asyncio.gather(*senders)
        finally:
            for sender in senders:
                sender.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
        return [found[number] for number in sorted(found)]
