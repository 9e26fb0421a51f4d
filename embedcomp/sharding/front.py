"""What a front does of a call before it is scored: rows of large tables come from shards.

The engine finds out what to ask each shard for, and adds the answers up (kernels/slots.inc); who
carries messages is told by whoever opens the front.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from embedcomp.engine.engine import BAD, Engine, Inputs, Ready
from embedcomp.engine.program import Program
from embedcomp.engine.requests import Read, Requests
from embedcomp.engine.standalone import Standalone
from embedcomp.engine.tensors import TableRows
from embedcomp.errors import EmbedcompError
from embedcomp.kernels import native, routing
from embedcomp.kernels.native import address
from embedcomp.log.features import Features
from embedcomp.sharding.cutting import CutTable


class Shards(Protocol):
    """Who holds the slots of a version, and gives their rows.

    owner: int32 [SLOTS], the number of each slot's shard.
    number: of shards.
    """

    owner: np.ndarray
    number: int

    def ask(self, messages: Sequence[pa.Buffer | None]) -> Sequence[pa.Buffer | None]:
        """The answers to messages, one a shard; None: nothing is asked of it.

        Returns:
            None: the answer cannot be had, and unknown ids stand for those that it is of.

        Raises:
            EmbedcompError: it cannot be had, and a call without it is to fail.
        """
        ...


class WrongAnswer(EmbedcompError):
    """What a shard answered does not fit what it was asked for."""


class Outside:
    """The features of a model whose rows are with shards.

    inputs: the dense input that has the pooled rows of each, by the feature's number.
    """

    def __init__(self, alone: Standalone, cut: Mapping[str, CutTable]):
        assert alone.graph is not None
        self._graph, self._cut, self._alone = alone.graph, cut, alone
        self.dense = sum(leaf.kind == "dense" for leaf in alone.leaves)
        far = [f for f, one in enumerate(alone.graph.features) if one.table in cut]
        self.inputs = {feature: self.dense + place for place, feature in enumerate(far)}

    def told(self, tables: Mapping[str, TableRows]) -> ctypes.Array[routing.Outside]:
        """What the engine is told of them.

        Args:
            tables: the rows that are here.
        """
        found = (routing.Outside * max(len(self.inputs), 1))()
        numbers = {name: number for number, name in enumerate(self._cut)}
        for struct, which in zip(found, self.inputs, strict=False):
            feature = self._graph.features[which]
            table, cut = self._alone.tables[feature.table], self._cut[feature.table]
            struct.near = ctypes.pointer(tables[feature.table].stored)
            struct.near_ids, struct.unknown, struct.num_ids = cut.near, cut.unknown, cut.ids
            struct.padding = -1 if table.padding_idx is None else table.padding_idx
            struct.feature, struct.table = which, numbers[feature.table]
            struct.width, struct.count = cut.width, feature.count
            struct.mean = table.pooling == "mean"
        return found


class Front:
    """Fetches the rows of calls; safe to use from several threads.

    Args:
        tables: the rows that are here.
        version: of the model.
    """

    def __init__(
        self, outside: Outside, tables: Mapping[str, TableRows], version: int, shards: Shards
    ):
        self._library, self._shards = routing.library(), shards
        self._told, self._tables = outside.told(tables), tables
        self._front = routing.Front(
            features=self._told,
            count=len(outside.inputs),
            dense=outside.dense,
            shards=shards.number,
            version=version,
        )
        self._at = ctypes.addressof(self._front)

    def fetch(self, call: Any, check: Any) -> tuple[Any, int]:
        """A call with the rows that it asks for, until this thread fetches others.

        Args:
            call: native.Call, or a pointer to one.
            check: is told what is wrong with it, as Engine.check is.

        Returns:
            A pointer to a call, and how many of its ids the unknown one stands for.

        Raises:
            BadId, BadRequest: as scoring it would.
            EmbedcompError: a shard gives no answer.
        """
        routed, bad = routing.Routed(), BAD()
        at = ctypes.addressof(routed)
        code = self._library.embedcomp_route(self._at, address(self._shards.owner), call, at, bad)
        check(code, bad)
        words = routed.words[: self._shards.number]
        defaulted = 0
        if any(words):
            messages = [
                pa.foreign_buffer(routed.messages[shard], 4 * count) if count else None
                for shard, count in enumerate(words)
            ]
            answers = self._shards.ask(messages)
            for shard, (message, answer) in enumerate(zip(messages, answers, strict=True)):
                if message is None:
                    continue
                if answer is None:
                    self._library.embedcomp_do_without(self._at, shard)
                    defaulted += routed.ids[shard]
                elif not self._library.embedcomp_gather(
                    self._at, shard, answer.address, answer.size // 4
                ):
                    raise WrongAnswer(
                        f"shard {shard} answered {answer.size:,} bytes, but other ones"
                    )
        self._library.embedcomp_settle(self._at)
        return routed.call, defaulted


class FrontEngine(Engine):
    """An engine whose calls have their rows fetched before they are scored."""

    def __init__(
        self,
        alone: Standalone,
        program: Program,
        threads: int | None,
        outside: Outside,
        front: Front,
    ):
        assert alone.graph is not None
        super().__init__(alone.graph, program, alone.user, threads, outside.dense)
        self._front = front

    def fetched(self, call: Any) -> tuple[Any, int]:
        """As Front.fetch does."""
        return self._front.fetch(call, self.check)

    def ready(self, items: Inputs, user: Inputs | None = None, *, logits: bool = False) -> Ready:
        if not items.rows:
            return Ready(lambda: np.empty(0, np.float32))
        call, defaulted = self.fetched(self._call(items, user))
        score = partial(self.run, call, items.rows, shares_user=user is not None, logits=logits)
        return Ready(score, defaulted, held=(items, user))


class FrontRequests(Requests):
    """Requests whose rows are fetched as soon as they are read. They are not scored together with
    others: each has sums of its own."""

    def __init__(self, engine: FrontEngine, features: Features):
        super().__init__(engine, features)
        self._fetch = engine.fetched

    def score(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> np.ndarray | None:
        read = self.read(items, user)
        if read is None:
            return None
        found = read.encoded
        return self._engine.run(found.call, found.rows, shares_user=bool(found.shares_user))

    def _read(self, request: native.Request) -> Read | None:
        read = super()._read(request)
        if read is None:
            return None
        call, defaulted = self._fetch(read.encoded.call)
        read.encoded.call = call
        return replace(read, defaulted=defaulted, outside=True)
