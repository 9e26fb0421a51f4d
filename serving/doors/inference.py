"""inference.GRPCInferenceService: the Open Inference Protocol, and Triton's repository calls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import pyarrow as pa

from embedcomp.errors import BadRequest
from embedcomp.serving.caller import Caller
from embedcomp.serving.doors.door import handlers, parsed
from embedcomp.serving.errors import Refused
from embedcomp.serving.labels import NAMES
from embedcomp.serving.models import READY, Models
from embedcomp.serving.repository import Repository
from embedcomp.serving.scoring import Scoring
from embedcomp.serving.served import WEIGHTS, Input, Served
from embedcomp.serving.watching import Watching
from embedcomp.serving.wire import inference_pb2 as wire
from embedcomp.support.version import __version__

SERVICE = wire.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SCORE = "score"
VALUES, LENGTHS = ".values", ".lengths"  # after the name of a list of ids
PLATFORM = "embedcomp"
EXTENSIONS = ("model_repository", "statistics")
CONTENTS = {  # of each datatype: how a number lies in raw contents, and the field of others
    "BOOL": ("?", "bool_contents"),
    "INT8": ("i1", "int_contents"),
    "INT16": ("<i2", "int_contents"),
    "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "UINT8": ("u1", "uint_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "UINT32": ("<u4", "uint_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "FP16": ("<f2", ""),
    "FP32": ("<f4", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
    "BYTES": ("", "bytes_contents"),
}
NO_JSON = ValueError, RecursionError  # of bytes that are none, or are nested too deep
DATATYPES = {pa.int64(): "INT64", pa.string(): "BYTES", pa.float32(): "FP32"}
Tensor = tuple[np.ndarray | pa.Array, list[int]]  # flat numbers or strings, and a shape


class Inference:
    """From a request's bytes to the scorer and back."""

    def __init__(self, models: Models, scoring: Scoring, repository: Repository | None = None):
        self._models, self._scoring, self._repository = models, scoring, repository

    def handlers(self, watching: Watching) -> grpc.GenericRpcHandler:
        """The service's methods."""
        return handlers(
            "inference",
            SERVICE,
            {
                "ServerLive": lambda data, _: wire.ServerLiveResponse(live=True),
                "ServerReady": self._server_ready,
                "ModelReady": self._model_ready,
                "ServerMetadata": lambda data, _: self.server(),
                "ModelMetadata": self._metadata,
                "ModelInfer": self._scoring.in_room(self._infer),
                "ModelStatistics": self._statistics,
                "RepositoryIndex": self._index,
                "RepositoryModelLoad": self._load,
                "RepositoryModelUnload": self._unload,
            },
            watching,
        )

    def _server_ready(self, data: bytes, _: Caller) -> wire.ServerReadyResponse:
        return wire.ServerReadyResponse(ready=self._models.ready)

    def server(self) -> wire.ServerMetadataResponse:
        """What this server is."""
        return wire.ServerMetadataResponse(
            name=PLATFORM, version=__version__, extensions=EXTENSIONS
        )

    def _model_ready(self, data: bytes, _: Caller) -> wire.ModelReadyResponse:
        request = parsed(wire.ModelReadyRequest, data)
        self._models.find(request.name, *version_of(request.version))
        return wire.ModelReadyResponse(ready=True)

    def _metadata(self, data: bytes, _: Caller) -> wire.ModelMetadataResponse:
        request = parsed(wire.ModelMetadataRequest, data)
        return self.described(self._models.find(request.name, *version_of(request.version)))

    def described(self, served: Served) -> wire.ModelMetadataResponse:
        """What a version reads and gives."""
        versions = [str(one.version) for one in self._models.loaded(served.name)]
        return wire.ModelMetadataResponse(
            name=served.name,
            versions=versions,
            platform=PLATFORM,
            inputs=[tensor for one in served.inputs for tensor in described(one)],
            outputs=[_told(SCORE, "FP32", [-1])],
        )

    def _infer(self, data: bytes, caller: Caller) -> wire.ModelInferResponse:
        request = parsed(wire.ModelInferRequest, data)
        caller.name(request.id)
        asked = version_of(request.model_version)
        served = self._models.find(request.model_name, *asked, caller)
        refuse_others([output.name for output in request.outputs])
        given = tensors(request)
        scores = self._scoring.score(served, caller, lambda one: one.read(columns_of(given, one)))
        response = wire.ModelInferResponse(
            model_name=served.name,
            model_version=str(served.version),
            id=request.id,
            raw_output_contents=[scores.tobytes()],
        )
        response.outputs.add(name=SCORE, datatype="FP32", shape=[len(scores)])
        return response

    def _statistics(self, data: bytes, _: Caller) -> wire.ModelStatisticsResponse:
        request = parsed(wire.ModelStatisticsRequest, data)
        if request.name:
            asked = [self._models.find(request.name, *version_of(request.version))]
        else:
            asked = self._models.loaded()
        return wire.ModelStatisticsResponse(model_stats=[_counted(one) for one in asked])

    def _index(self, data: bytes, _: Caller) -> wire.RepositoryIndexResponse:
        return self.index(ready=parsed(wire.RepositoryIndexRequest, data).ready)

    def index(self, *, ready: bool) -> wire.RepositoryIndexResponse:
        """What became of every version; `ready`: of those alone that answer."""
        found = wire.RepositoryIndexResponse()
        for one in self._models.states():
            if one.state == READY or not ready:
                found.models.add(
                    name=one.name, version=str(one.version), state=one.state, reason=one.reason
                )
        return found

    def _load(self, data: bytes, _: Caller) -> wire.RepositoryModelLoadResponse:
        request = parsed(wire.RepositoryModelLoadRequest, data)
        self.load(request.model_name, request.parameters)
        return wire.RepositoryModelLoadResponse()

    def load(self, name: str, parameters: Mapping[str, wire.ModelRepositoryParameter]) -> None:
        """Serve a version of a model (Repository.load)."""
        self._changed().load(name, asked_version(parameters))

    def _unload(self, data: bytes, _: Caller) -> wire.RepositoryModelUnloadResponse:
        request = parsed(wire.RepositoryModelUnloadRequest, data)
        self.unload(request.model_name)
        return wire.RepositoryModelUnloadResponse()

    def unload(self, name: str) -> None:
        """Serve a model no more (Repository.unload)."""
        self._changed().unload(name)

    def _changed(self) -> Repository:
        if self._repository is None:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION, "the models of this server do not change"
            )
        return self._repository


def refuse_others(outputs: Sequence[str]) -> None:
    """Raises BadRequest where others than the scores are asked for."""
    for name in outputs:
        if name != SCORE:
            raise BadRequest(name, f"is no output; the model has {SCORE!r} alone")


def asked_version(parameters: Mapping[str, wire.ModelRepositoryParameter]) -> int:
    """The version that a load call asks for, 0: the newest one.

    It is the parameter `version`, a number, or that of a version policy as Triton's configurations
    have it: {"version_policy": {"specific": {"versions": [2]}}}.

    Raises:
        BadRequest: it is no number, or something else is asked for.
    """
    for name in parameters:
        if name not in ("version", "config"):
            raise BadRequest(name, "is nothing that loading a model takes; give a version alone")
    if "version" in parameters:
        given = parameters["version"]
        return given.int64_param or number_of(given.string_param)
    if "config" not in parameters:
        return 0
    try:
        config = json.loads(parameters["config"].string_param)
        if not config:
            return 0
        ((_, policy),) = {"version_policy": {}, **config}.items()
        (version,) = policy["specific"]["versions"]
        return int(version)
    except (*NO_JSON, OverflowError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(
            "config", f"does not name one specific version ({error}); nothing else can be set"
        ) from error


def version_of(text: str) -> tuple[int, str]:
    """What is asked for: the number of a version or 0, and a label or none.

    Raises:
        BadRequest: it is neither.
    """
    return (0, text) if text in NAMES else (number_of(text), "")


def number_of(text: str) -> int:
    """The number of a version; 0 where none is asked for.

    Raises:
        BadRequest: it is no number.
    """
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequest("model_version", f"is {text!r}, but versions are numbers")
    return int(text)


def described(one: Input) -> list[wire.ModelMetadataResponse.TensorMetadata]:
    """The tensors of an input: two of a list of ids."""
    datatype = DATATYPES[one.type]
    if not one.many:
        return [_told(one.name, datatype, [-1] if one.width is None else [-1, one.width])]
    if one.name.endswith(WEIGHTS):
        return [_told(one.name, datatype, [-1])]
    return [
        _told(f"{one.name}{VALUES}", datatype, [-1]),
        _told(f"{one.name}{LENGTHS}", "INT64", [-1]),
    ]


def _told(
    name: str, datatype: str, shape: Sequence[int]
) -> wire.ModelMetadataResponse.TensorMetadata:
    return wire.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=shape)


def _counted(served: Served) -> wire.ModelStatistics:
    of, duration = served.counts, wire.StatisticDuration
    return wire.ModelStatistics(
        name=served.name,
        version=str(served.version),
        last_inference=of.last_ms,
        inference_count=of.rows,
        execution_count=of.calls,
        inference_stats=wire.InferStatistics(
            success=duration(count=of.calls, ns=of.ns),
            fail=duration(count=of.failed, ns=of.failed_ns),
            queue=duration(count=of.calls, ns=of.queue_ns),
            compute_infer=duration(count=of.calls, ns=of.ns - of.queue_ns),
        ),
    )


def tensors(request: wire.ModelInferRequest) -> dict[str, Tensor]:
    """The request's inputs by name.

    Raises:
        BadRequest: a tensor does not hold together, or is there twice.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(
            "raw_input_contents", f"has {len(raw)} entries for {len(request.inputs)} inputs"
        )
    found: dict[str, Tensor] = {}
    for place, given in enumerate(request.inputs):
        if given.name in found:
            raise BadRequest(given.name, "is given twice")
        found[given.name] = _tensor(given, raw[place] if raw else None)
    return found


def _tensor(given: wire.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    name, shape = given.name, list(given.shape)
    if given.datatype not in CONTENTS:
        raise BadRequest(name, f"is of {given.datatype!r}, but may be of {', '.join(CONTENTS)}")
    kind, field = CONTENTS[given.datatype]
    if not shape or min(shape) < 0 or len(shape) > 2:
        raise BadRequest(name, f"has the shape {shape}, but must be [N] or [N, columns]")
    size = math.prod(shape)
    if raw is None:
        values = getattr(given.contents, field) if field else ()
        if len(values) != size:
            raise BadRequest(name, f"has {len(values):,} {field or 'contents'}, but is {shape}")
        if kind:
            return narrowed(name, np.array(values), kind), shape
        return _strings(name, list(values)), shape
    if given.HasField("contents"):
        raise BadRequest(name, "has contents, and raw contents too; send one of them")
    if not kind:
        return _strings(name, _entries(name, raw, size)), shape
    width = np.dtype(kind).itemsize
    if len(raw) != size * width:
        raise BadRequest(
            name,
            f"has {len(raw):,} bytes, but {shape} of {given.datatype} take {size * width:,}",
        )
    return np.frombuffer(raw, kind), shape


def narrowed(name: str, values: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as a datatype has them; raises BadRequest where a whole one is not one of its."""
    with np.errstate(invalid="ignore", over="ignore"):
        narrow = values.astype(kind)
    if narrow.dtype.kind in "iu" and not np.array_equal(narrow, values):
        raise BadRequest(name, f"holds a number that is no {narrow.dtype}")
    return narrow


def _entries(name: str, raw: bytes, count: int) -> list[bytes]:
    """Strings that each follow their length, of four bytes."""
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) < count:
        length = int.from_bytes(raw[at : at + 4], "little")
        found.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(raw) or len(found) != count:
        raise BadRequest(name, f"has not {count:,} strings in its {len(raw):,} bytes")
    return found


def _strings(name: str, values: list[bytes]) -> pa.Array:
    try:
        return pa.array([value.decode() for value in values], pa.string())
    except UnicodeDecodeError as error:
        raise BadRequest(name, "holds a string that is not UTF-8", values=f": {error}") from error


def columns_of(given: Mapping[str, Tensor], served: Served) -> pa.RecordBatch:
    """The columns of a model's inputs.

    Raises:
        BadRequest: an input is missing, unknown, or of another shape or type.
        Refused: it has more rows than a call may have.
    """
    unread, found = set(given), {}
    for one in served.inputs:
        found[one.name] = _column(one, given, unread, served)
    if unread:
        names = ", ".join(repr(name) for name in served.names)
        raise BadRequest(min(unread), f"is no input; the model has {names}")
    rows = {name: len(column) for name, column in found.items()}
    first = next(iter(rows), "")
    for name, number in rows.items():
        if number != rows[first]:
            raise BadRequest(name, f"has {number:,} rows, but {first!r} has {rows[first]:,}")
    return pa.RecordBatch.from_pydict(found)


def _column(one: Input, given: Mapping[str, Tensor], unread: set[str], served: Served) -> pa.Array:
    """The column of an input; the tensors that it is made of are unread no more."""
    name, weights = one.name, one.name.endswith(WEIGHTS)
    if name in given and not weights:
        values, shape = given[name]
        served.check_rows(shape[0])  # which may have no columns, and be any number
        unread.discard(name)
        array, columns = _typed(one, values), shape[1] if len(shape) > 1 else 1
        if one.many or (one.width or 1) > 1:  # a matrix is lists of one length
            ends = np.arange(shape[0] + 1, dtype=np.int64) * columns
            return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), array)
        if columns != 1:
            raise BadRequest(name, f"has the shape {shape}, but must have one number a row")
        return array
    inner = name if weights else f"{name}{VALUES}"
    outer = f"{name.removesuffix(WEIGHTS)}{LENGTHS}"
    if not one.many or inner not in given or outer not in given:
        wanted = f"; send {inner} and {outer}" if one.many else ""
        raise BadRequest(name, f"is missing; every input of the model is needed{wanted}")
    unread -= {inner, outer}
    values, lengths = given[inner][0], _lengths(outer, given[outer][0])
    if lengths.sum() != len(values):
        raise BadRequest(
            name, f"has lengths that add up to {lengths.sum():,}, but {len(values):,} values"
        )
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), _typed(one, values))


def _lengths(name: str, values: np.ndarray | pa.Array) -> np.ndarray:
    if isinstance(values, pa.Array) or values.dtype.kind not in "iu":
        raise BadRequest(name, "must be whole numbers")
    if len(values) and (values.min() < 0 or values.max() >= 1 << 31):
        raise BadRequest(name, "holds a length that is negative, or larger than any message")
    return values.astype(np.int64)


def _typed(one: Input, values: np.ndarray | pa.Array) -> pa.Array:
    """Values of the input's type; whole numbers of any width are ids."""
    if isinstance(values, pa.Array):
        array = values
    elif one.type == pa.int64() and values.dtype.kind in "iub" and values.dtype != np.uint64:
        array = pa.array(values.astype(np.int64, copy=False))
    elif one.type == pa.float32() and values.dtype.kind in "fiub":
        array = pa.array(values.astype(np.float32, copy=False))
    else:
        array = pa.array(values)
    if array.type != one.type:
        raise BadRequest(one.name, f"holds {array.type} values, but must hold {one.type}")
    return array
