"""embedcomp.v1.ScoringService: columns by name, one user and many candidates."""

from __future__ import annotations

from functools import partial

import grpc
import pyarrow as pa

from embedcomp.engine.description import COMPILED, MACHINE_CODE, OWN_CODE, TORCH
from embedcomp.serving.caller import Caller
from embedcomp.serving.convert import from_request
from embedcomp.serving.doors.door import handlers, parsed
from embedcomp.serving.models import Models
from embedcomp.serving.scoring import Scoring
from embedcomp.serving.served import Input, Served, Work
from embedcomp.serving.watching import Watching
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

SERVICE = wire.DESCRIPTOR.services_by_name["ScoringService"].full_name
KINDS = {
    COMPILED: wire.Engine.KIND_COMPILED,
    MACHINE_CODE: wire.Engine.KIND_MACHINE_CODE,
    TORCH: wire.Engine.KIND_TORCH,
    OWN_CODE: wire.Engine.KIND_OWN_CODE,
}
TYPES = {
    pa.int64(): wire.Feature.TYPE_INT64,
    pa.string(): wire.Feature.TYPE_STRING,
    pa.float32(): wire.Feature.TYPE_FLOAT32,
}


class Typed:
    """From a request's bytes to the scorer and back."""

    def __init__(self, models: Models, scoring: Scoring):
        self._models, self._scoring = models, scoring

    def handlers(self, watching: Watching) -> grpc.GenericRpcHandler:
        """The service's methods."""
        predict = self._scoring.in_room(self._predict)
        answers = {"Predict": predict, "Metadata": self._metadata}
        return handlers("typed", SERVICE, answers, watching)

    def _predict(self, data: bytes, caller: Caller) -> wire.PredictResponse:
        served = self._models.only(caller)
        work: Work | None = None if served is None else served.read_message(data)
        if served is None or work is None:
            served, work = self._slowly(data, caller, tried=served)
        first = served, work

        def read(one: Served) -> Work:
            return first[1] if one is first[0] else _read(data, one)

        scores = self._scoring.score(served, caller, read)
        return wire.PredictResponse(
            scores=scores.tobytes(), model=served.name, version=served.version
        )

    def _slowly(self, data: bytes, caller: Caller, tried: Served | None) -> tuple[Served, Work]:
        """The version that a request asks for, and what is to be scored.

        Args:
            tried: whose engine does not read it by itself.
        """
        request = parsed(wire.PredictRequest, data)
        served = self._models.find(request.model, request.version, request.label, caller)
        caller.served, caller.read = served, partial(_read, data)
        work = None if served is tried else served.read_message(data)
        return served, work or served.read(*from_request(request, served.names))

    def _metadata(self, data: bytes, _: Caller) -> wire.MetadataResponse:
        request = parsed(wire.MetadataRequest, data)
        return described(self._models.find(request.model, request.version, request.label))


def _read(data: bytes, served: Served) -> Work:
    """A request that another version has answered."""
    read = served.read_message(data)
    return read or served.read(*from_request(parsed(wire.PredictRequest, data), served.names))


def described(served: Served) -> wire.MetadataResponse:
    """What is served: name, version, what scores, and the features in the model's order."""
    by = served.scorer.description
    found = wire.MetadataResponse(
        model=served.name,
        version=served.version,
        max_rows=served.settings.max_rows,
        engine=wire.Engine(
            kind=KINDS[by.name],
            precision=by.precision,
            threads=by.threads,
            reason=f"{by.reason}{by.lost}",
        ),
    )
    found.features.extend(_feature(one) for one in served.inputs)
    return found


def _feature(one: Input) -> wire.Feature:
    dense = one.type == pa.float32()
    return wire.Feature(
        name=one.name,
        kind=wire.Feature.KIND_DENSE if dense else wire.Feature.KIND_CATEGORICAL,
        type=TYPES[one.type],
        side=wire.Feature.SIDE_USER if one.user else wire.Feature.SIDE_ITEM,
        multi_valued=one.many or (one.width or 1) > 1,
        rows=one.rows,
    )
