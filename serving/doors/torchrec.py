"""predictor.Predictor, TorchRec's own scoring service: features in order, without names.

TorchRec's client sends ids of eight bytes where its servers read four, and nobody says so. Here the
number of bytes tells which they are.
"""

from __future__ import annotations

from functools import partial

import grpc
import numpy as np
import pyarrow as pa

from embedcomp.engine.prepare import Part
from embedcomp.errors import BadRequest
from embedcomp.serving.caller import Caller
from embedcomp.serving.doors.door import handlers, parsed
from embedcomp.serving.errors import Refused
from embedcomp.serving.models import Models
from embedcomp.serving.scoring import Scoring
from embedcomp.serving.served import Served, Work
from embedcomp.serving.watching import Watching
from embedcomp.serving.wire import predictor_pb2 as wire

SERVICE = wire.DESCRIPTOR.services_by_name["Predictor"].full_name
SCORES = "default"  # what TorchRec's servers call their only output
NOT_TAKEN = ("embedding_features", "unary_features")


class TorchRec:
    """From a request's bytes to the scorer and back."""

    def __init__(self, models: Models, scoring: Scoring):
        self._models, self._scoring = models, scoring

    def handlers(self, watching: Watching) -> grpc.GenericRpcHandler:
        """The service's methods."""
        predict = self._scoring.in_room(self._predict)
        return handlers("torchrec", SERVICE, {"Predict": predict}, watching)

    def _predict(self, data: bytes, caller: Caller) -> wire.PredictionResponse:
        request = parsed(wire.PredictionRequest, data)
        served = self._models.find(caller=caller)
        if request.batch_size < 0:
            raise BadRequest("batch_size", f"is {request.batch_size}, but must be 0 or more")
        served.check_rows(request.batch_size)
        for name in NOT_TAKEN:
            _refuse(name, request)
        scores = self._scoring.score(served, caller, partial(_read, request=request))
        return wire.PredictionResponse(predictions={SCORES: wire.FloatVec(data=scores)})


def _read(served: Served, request: wire.PredictionRequest) -> Work:
    rows, columns = request.batch_size, len(served.inputs)
    if not served.scorer.has_features:
        return served.read_parts(_parts(served, request), rows)
    ids = [one for one in served.inputs if one.type != pa.float32()]
    dense = _dense(request, columns - len(ids))
    _refuse("id_score_list_features", request)
    values, lengths, _ = _sparse("id_list_features", request, len(ids), served.settings.max_ids)
    found: dict[str, pa.Array] = {}
    ends = np.concatenate([[0], np.cumsum(lengths)])
    for place, one in enumerate(ids):
        if one.type != pa.int64():
            raise BadRequest(
                one.name, "is of strings, which this protocol cannot send; use one of the others"
            )
        own = ends[place * rows : (place + 1) * rows + 1]
        if one.many:
            offsets = pa.array((own - own[0]).astype(np.int32))
            found[one.name] = pa.ListArray.from_arrays(offsets, pa.array(values[own[0] : own[-1]]))
        elif (np.diff(own) > 1).any():
            raise BadRequest(one.name, "has several ids in a row, but the model reads one")
        else:  # a row without an id is null
            there = np.diff(own) == 1
            single = np.zeros(rows, np.int64)
            single[there] = values[own[0] : own[-1]]
            found[one.name] = pa.array(single, mask=~there)
    for one, numbers in zip(served.inputs[len(ids) :], dense.T, strict=True):
        found[one.name] = pa.array(np.ascontiguousarray(numbers))
    return served.read(pa.RecordBatch.from_pydict(found))


def _parts(served: Served, request: wire.PredictionRequest) -> list[Part]:
    """The inputs of a user's own model: numbers, and one jagged tensor of ids."""
    dense, jagged = served.leaves_of("dense"), served.leaves_of("jagged")
    if len(dense) > 1 or len(jagged) > 1 or served.leaves_of("ids"):
        raise Refused(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{served.name} takes other inputs than a tensor of numbers and a KeyedJaggedTensor, "
            "which is all that this protocol knows; use another one",
        )
    parts = []
    for leaf in dense:
        numbers = _dense(request, 1 if leaf.width is None else leaf.width)
        if not np.isfinite(numbers).all():
            raise BadRequest("float_features", "hold a number that is not finite")
        parts.append(Part(leaf, numbers))
    if not dense:
        _dense(request, 0)
    fields = {"id_list_features", "id_score_list_features"}
    for leaf in jagged:
        field = "id_score_list_features" if leaf.weighted else "id_list_features"
        fields -= {field}
        read = _sparse(field, request, len(leaf.keys), served.settings.max_ids)
        parts.append(Part(leaf, *read))
    for name in fields:
        _refuse(name, request)
    return parts


def _refuse(name: str, request: wire.PredictionRequest) -> None:
    """Raises BadRequest where something is sent that the model has no use for."""
    if getattr(request, name).num_features:
        raise BadRequest(name, "is nothing that this model takes; leave it out")


def _dense(request: wire.PredictionRequest, columns: int) -> np.ndarray:
    """Numbers float32 [batch_size, columns]."""
    given, name = request.float_features, "float_features"
    if given.num_features != columns:
        raise BadRequest(name, f"has {given.num_features} features, but the model has {columns}")
    if len(given.values) != 4 * request.batch_size * columns:
        raise BadRequest(
            name,
            f"has {len(given.values):,} bytes, but {request.batch_size:,} rows of {columns} "
            f"float32 have {4 * request.batch_size * columns:,}",
        )
    return np.frombuffer(given.values, "<f4").reshape(request.batch_size, columns)


def _sparse(
    name: str, request: wire.PredictionRequest, features: int, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ids int64 [n], lengths int64 [features * batch_size], and scored ids' weights float32 [n]."""
    given = getattr(request, name)
    if given.num_features != features:
        raise BadRequest(name, f"has {given.num_features} features, but the model has {features}")
    bags = features * request.batch_size
    lengths = _whole(f"lengths of {name}", given.lengths, bags)
    if (lengths < 0).any():
        raise BadRequest(name, f"has a length of {lengths.min()}; lengths are 0 or more")
    if bags and int(lengths.max()) > most:
        raise BadRequest(name, f"has a length of {lengths.max():,}; this server takes {most:,}")
    total = int(lengths.sum())
    values = _whole(f"values of {name}", given.values, total)
    if name == "id_list_features":
        if given.weights:
            raise BadRequest(name, "has weights, which the model does not take; leave them out")
        return values, lengths, None
    if len(given.weights) != 4 * total:
        raise BadRequest(
            name, f"has {len(given.weights):,} bytes of weights for {total:,} ids of 4 bytes each"
        )
    return values, lengths, np.frombuffer(given.weights, "<f4")


def _whole(name: str, data: bytes, count: int) -> np.ndarray:
    """So many whole numbers, int64, sent with four or eight bytes each."""
    if len(data) == 4 * count:
        return np.frombuffer(data, "<i4").astype(np.int64)
    if len(data) == 8 * count:
        return np.frombuffer(data, "<i8")
    raise BadRequest(
        name, f"are {len(data):,} bytes, but {count:,} numbers take {4 * count:,} or {8 * count:,}"
    )
