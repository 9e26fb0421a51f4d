"""Scores from an artifact, of raw columns or of a model's own inputs, without the model's code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedcomp.artifact.artifact import Artifact
from embedcomp.engine.description import Description
from embedcomp.engine.engine import Ready
from embedcomp.engine.prepare import Part
from embedcomp.engine.program import Work
from embedcomp.engine.requests import Read, Requests, Taken
from embedcomp.engine.standalone import PRECISIONS, Standalone
from embedcomp.errors import BadArtifact, BadRequest, BadSettings
from embedcomp.kernels import native
from embedcomp.log.features import Features
from embedcomp.scorer.backend import Backend
from embedcomp.scorer.by_engine import ByEngine
from embedcomp.scorer.by_fbgemm import ByFbgemm
from embedcomp.scorer.by_shards import ByShards
from embedcomp.sharding.cutting import Cutting
from embedcomp.sharding.front import Shards

# Finds who holds the slots of a version of a model, by its name.
FindShards = Callable[[Cutting, str, int], Shards]


class Scorer:
    """Scores candidates with one version of a model; safe to call from several threads.

    Where the artifact's dense part is a graph, the compiled engine runs it and torch is not even
    imported; else torch runs the exported program.

    Args:
        threads: that share the rows of a large call; None: one a core.
        precision: of products, "float32", "bfloat16" or "int8"; None: as the artifact says.
        shards: finds who holds the slots of an artifact that is cut; None: it is whole.
        lookups: "fbgemm": its operator looks up rows that are in its layouts; else the engine does.

    Raises:
        BadSettings: there is no such precision, or torch has to score and knows no other; or
            fbgemm is to look up rows and cannot.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = 1,
        precision: str | None = None,
        shards: FindShards | None = None,
        lookups: str = "auto",
    ):
        self.name, self.version, self.folder = artifact.name, artifact.version, artifact.folder
        if precision not in (None, *PRECISIONS):
            raise BadSettings(f"precision is {precision!r}, but must be {' or '.join(PRECISIONS)}")
        self._features = artifact.features if artifact.has_features else None
        self.alone, self.proof = artifact.standalone, artifact.proof
        self._backend = _opened(artifact, threads, precision, shards, lookups)
        if self.description.saved_for:
            logging.getLogger(__name__).warning("%s is scored by %s", artifact.folder, self.engine)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        threads: int | None = 1,
        precision: str | None = None,
        budget: str | None = None,
        shards: FindShards | None = None,
        lookups: str = "auto",
    ) -> Scorer:
        """Load NAME (its newest version) or NAME/VERSION.

        Args:
            budget: bytes of the whole model, as "300kB", or a share of the original's, as "20x",
                that layers of ordered ranks are cut to; None: they are served in full.

        Raises:
            BadArtifact: there is none, or it is damaged.
            BadSettings: all of its forms are larger than the budget.
        """
        opened = Artifact.open(path)
        within = opened if budget is None else opened.within(budget)
        return cls(within, threads=threads, precision=precision, shards=shards, lookups=lookups)

    @property
    def features(self) -> Features:
        """What raw columns are encoded by."""
        if self._features is None:
            raise BadSettings(f"{self.name} takes its model's inputs, and no raw columns")
        return self._features

    @property
    def has_features(self) -> bool:
        """Whether it scores raw columns."""
        return self._features is not None

    @property
    def description(self) -> Description:
        """What runs the model."""
        return self._backend.description

    @property
    def engine(self) -> str:
        """What runs the model, and why not the compiled engine, for a person."""
        return str(self.description)

    @property
    def precision(self) -> str:
        """Precision that products are computed in."""
        return self.description.precision

    @property
    def work(self) -> Work | None:
        """What a row costs the compiled engine; None where torch scores."""
        return self._backend.work

    @property
    def resident(self) -> Mapping[str, int]:
        """Bytes of the numbers that are read when it scores, by module; "": of no module."""
        return self._backend.resident

    @property
    def splits(self) -> bool:
        """Whether the user's part of the model is computed once for all candidates."""
        return self._backend.splits

    def call(self, items: Sequence[Part], user: Sequence[Part] | None) -> Callable[[], np.ndarray]:
        """A call that scores these inputs, which are prepared already: for measuring."""
        return self._backend.call(items, user)

    def score(
        self, items: Any, user: pa.RecordBatch | None = None, *, one_user: bool = False
    ) -> np.ndarray:
        """Click probabilities float32 [B].

        Args:
            items: raw columns, one row a candidate, nulls allowed; or the model's own inputs, of
                the same structure as the example's that it was saved with.
            user: one row of raw columns that hold for every candidate.
            one_user: the model's inputs have one user's features in all rows, so that their part
                of the model needs to be computed once.

        Raises:
            BadRequest: a feature is missing, given twice or of the wrong type; or the rows have
                several users.
            BadId: an id is out of its table's range.
        """
        if isinstance(items, pa.RecordBatch):
            if one_user:
                raise BadRequest(
                    "one_user", "is for a model's inputs; give the user's columns apart"
                )
            return self._backend.score_columns(self.features, items, user)
        if user is not None:
            raise BadRequest("user", "comes with raw columns only; else set one_user")
        return self._backend.score_inputs(items, one_user)

    def score_parts(self, parts: Sequence[Part]) -> np.ndarray:
        """Click probabilities float32 [B] of a model's own inputs as arrays.

        Raises:
            BadId: an id is out of its table's range.
            BadRequest: bags do not fit their ids, or a number is not finite.
        """
        return self.ready_parts(parts)()

    def ready(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> Ready:
        """What scores raw columns that `read` does not read, once it is called: what comes from
        elsewhere is here by then.

        Raises:
            BadRequest, BadId: as for `score`, now or when it is called.
        """
        return self._backend.ready_columns(self.features, items, user)

    def ready_parts(self, parts: Sequence[Part]) -> Ready:
        """What scores a model's own inputs as arrays, likewise."""
        return self._backend.ready_parts(parts)

    def read(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> Read | None:
        """Raw columns, read to be scored by `score_part` or `score_joined`.

        Returns:
            None: the compiled engine does not score here, or they are out of the ordinary; `score`
            them.
        """
        requests = self._requests
        return None if requests is None else requests.read(items, user)

    def read_message(self, message: bytes, *, max_rows: int, max_ids: int) -> Read | None:
        """A PredictRequest's bytes (proto/), read to be scored by `score_part` or `score_joined`.

        Args:
            max_rows, max_ids: candidates, and ids of one feature, that it may have.

        Returns:
            None: the compiled engine does not score here; or the request asks for another model or
            version, has more rows or ids, or is wrong. Read it and call `score`.
        """
        requests = self._requests
        if requests is None:
            return None
        return requests.read_message(
            message, Taken(self.name.encode(), self.version, max_rows, max_ids)
        )

    def score_part(self, read: Read, rows: int) -> None:
        """Score the next rows of a request that was read.

        Raises:
            BadRequest: a score is not finite.
        """
        assert self._requests is not None, "it read the request"
        self._requests.score_part(read, rows)

    def score_joined(self, reads: Sequence[Read]) -> None:
        """Score whole requests that were read and join, in one call.

        Raises:
            BadRequest: a score of any of them is not finite.
        """
        assert self._requests is not None, "it read the requests"
        self._requests.score_joined(reads)

    @property
    def seen(self) -> np.ndarray | None:
        """Ids that were read and those of them that are unknown, int64 [features of ids, 2].

        None: nobody counts them, since the compiled engine reads no columns here.
        """
        return None if self._requests is None else self._requests.seen

    @cached_property
    def _requests(self) -> Requests | None:
        return None if self._features is None else self._backend.requests(self._features)


def _opened(
    artifact: Artifact,
    threads: int | None,
    precision: str | None,
    shards: FindShards | None,
    lookups: str,
) -> Backend:
    alone, cutting = artifact.standalone, Cutting.of(artifact.folder)
    if shards is not None and cutting is None:
        raise BadSettings(
            f"{artifact.folder} is not cut into slots, so no shard has rows of it; cut it with "
            "`embedcomp cut`, or serve it without shards"
        )
    if cutting is not None:
        assert alone is not None, "it was cut"
        return _of_shards(artifact, alone, cutting, threads, precision, shards)
    if alone is not None and alone.graph is not None and native.library() is not None:
        opens = ByFbgemm if lookups == "fbgemm" else ByEngine
        return opens(alone, artifact.arrays(), threads, precision)
    if lookups == "fbgemm":
        raise BadSettings(
            f"lookups are by fbgemm, but torch scores {artifact.folder} and looks up its rows; "
            "leave --lookups at auto"
        )
    from embedcomp.scorer import by_torch

    backend = by_torch.opened(artifact, threads, precision)
    if precision not in (None, "float32") and backend.work is None:
        raise BadSettings(f"{artifact.name} is scored in float32 alone, by {backend.description}")
    return backend


def _of_shards(
    artifact: Artifact,
    alone: Standalone,
    cutting: Cutting,
    threads: int | None,
    precision: str | None,
    shards: FindShards | None,
) -> Backend:
    if shards is None:
        raise BadArtifact(
            f"{artifact.folder} is cut into slots, and its large tables are with shards; serve it "
            "with --shards, or open what it was cut from"
        )
    if artifact.ranks:
        raise BadSettings(
            f"{artifact.folder} is cut into slots, whose rows are served in full; leave the budget "
            "out, or cut a model that was compressed at it"
        )
    native.needed()
    return ByShards(
        alone,
        artifact.arrays(),
        threads,
        precision,
        cutting=cutting,
        version=artifact.version,
        shards=shards(cutting, artifact.name, artifact.version),
    )
