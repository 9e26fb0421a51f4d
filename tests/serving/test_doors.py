"""The three protocols on one port give the scores that a model has in process, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from torchrec import KeyedJaggedTensor
from torchrec_request import torchrec_request
from toy_scorer import FEATURES, save_small

import embedcomp
from embedcomp.log.features import Features
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.client import Client
from embedcomp.serving.convert import to_column, to_request
from embedcomp.serving.doors import inference, torchrec, typed
from embedcomp.serving.models import Models
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.wire import inference_pb2 as oip
from embedcomp.serving.wire import predictor_pb2 as theirs
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as ours
from tests import cases

pytestmark = pytest.mark.server
ROWS = 9
SETTINGS = ServerSettings(port=0, max_rows=100, max_ids=1000)
CODE = grpc.StatusCode
NUMBERS = Features(
    tuple(f for f in FEATURES.ids if f.name in ("user_id", "genres")), FEATURES.dense
)


@dataclass(frozen=True)
class Door:
    """A server of one model, and calls of its methods by their bytes."""

    target: str
    scorer: Scorer

    def call(self, service: str, method: str, request: Any, answer: Any) -> Any:
        with grpc.insecure_channel(self.target) as channel:
            found = channel.unary_unary(f"/{service}/{method}")(
                request.SerializeToString(), timeout=20
            )
        return answer.FromString(found)

    def infer(self, request: oip.ModelInferRequest) -> np.ndarray:
        found = self.call(inference.SERVICE, "ModelInfer", request, oip.ModelInferResponse)
        (score,) = found.outputs
        assert (score.name, score.datatype) == ("score", "FP32")
        scores = np.frombuffer(found.raw_output_contents[0], "<f4")
        assert list(score.shape) == [len(scores)]
        return scores

    def predict(self, request: theirs.PredictionRequest) -> np.ndarray:
        found = self.call(torchrec.SERVICE, "Predict", request, theirs.PredictionResponse)
        return np.array(found.predictions["default"].data, np.float32)

    def refused(self, service: str, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.call(service, method, request, type(request))
        return caught.value.code(), caught.value.details()


def _served(scorer: Scorer) -> Iterator[Door]:
    with ScoringServer(Models.of(SETTINGS, scorer), SETTINGS) as server:
        yield Door(f"127.0.0.1:{server.port}", scorer)


def _saved(out: Path, features: Features) -> Scorer:
    return Scorer.open(save_small(out, features=features))


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A model of raw columns, of all kinds."""
    yield from _served(_saved(tmp_path_factory.mktemp("artifact") / "clicks", FEATURES))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The same without strings."""
    yield from _served(_saved(tmp_path_factory.mktemp("artifact") / "numbers", NUMBERS))


@pytest.fixture(scope="module", params=["dlrm", "weighted"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A user's own torchrec model: planned, swapped and saved."""
    case = getattr(cases, request.param)()
    out, inputs = tmp_path_factory.mktemp("own") / request.param, case.inputs(0)
    batches = [(inputs, torch.arange(cases.B) % 2)]
    plan = embedcomp.plan(case.model, batches, budget="2x", score=case.score)
    embedcomp.swap_(case.model, plan)
    embedcomp.save(case.model, out, score=case.score, example=inputs)
    for door in _served(Scorer.open(out)):
        yield door, case.inputs(1)


@pytest.fixture
def columns() -> dict[str, pa.Array]:
    """Rows without nulls, since only the project's own protocol has any."""
    lists = [[1, 2, 9], [], [4], [1], [2, 2], [3], [], [4, 1], [7]]
    return {
        "user_id": pa.array([10, 20, 99, 30, 10, 10, -1, 20, 2**62]),
        "city": pa.array(["Zürich", "Basel", "", "nowhere", "上海", "Basel", "x", "y", "Basel"]),
        "genres": pa.array(lists),
        "tags": pa.array([["a", "b"], [], ["zz"], ["b"], [], [], ["a"], ["b", "b"], []]),
        "age": pa.array(np.linspace(10, 90, ROWS, dtype=np.float32)),
        "price": pa.array(np.linspace(-5, 90, ROWS, dtype=np.float32)),
    }


def _arrays(columns: dict[str, pa.Array]) -> dict[str, np.ndarray]:
    """Columns as tensors of the Open Inference Protocol."""
    found: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if not pa.types.is_list(column.type):
            found[name] = column.to_numpy(zero_copy_only=False)
            continue
        found[f"{name}.values"] = column.flatten().to_numpy(zero_copy_only=False)
        found[f"{name}.lengths"] = column.value_lengths().to_numpy().astype(np.int64)
    return found


def _wanted(door: Door, columns: dict[str, pa.Array]) -> np.ndarray:
    scores = door.scorer.score(pa.RecordBatch.from_pydict(columns))
    assert len(np.unique(scores)) == ROWS
    return scores


def _raw(arrays: dict[str, np.ndarray], model: str = "") -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        if array.dtype == object:
            entries = [text.encode() for text in array.reshape(-1)]
            raw = b"".join(len(e).to_bytes(4, "little") + e for e in entries)
        else:
            raw = array.tobytes()
        kind = {"O": "BYTES", "f": "FP", "i": "INT", "u": "UINT", "b": "BOOL"}[array.dtype.kind]
        size = "" if kind in ("BYTES", "BOOL") else str(8 * array.itemsize)
        request.inputs.add(name=name, datatype=kind + size, shape=array.shape)
        request.raw_input_contents.append(raw)
    return request


def _listed(arrays: dict[str, np.ndarray]) -> oip.ModelInferRequest:
    """The same with typed contents."""
    request = _raw(arrays)
    del request.raw_input_contents[:]
    for given, array in zip(request.inputs, arrays.values(), strict=True):
        values = array.reshape(-1)
        if given.datatype == "BYTES":
            given.contents.bytes_contents.extend(text.encode() for text in values)
        else:
            _, field = inference.CONTENTS[given.datatype]
            getattr(given.contents, field).extend(values.tolist())
    return request


def test_tensors_give_the_scores_of_columns(clicks: Door, columns: dict[str, pa.Array]) -> None:
    arrays, wanted = _arrays(columns), _wanted(clicks, columns)
    upright = {
        name: array if "." in name else array.reshape(-1, 1) for name, array in arrays.items()
    }
    narrow = arrays | {"genres.lengths": arrays["genres.lengths"].astype(np.int32)}
    for request in (
        _raw(arrays),
        _raw(upright),
        _raw(narrow),
        _listed(arrays),
        _raw(arrays, "clicks"),
    ):
        assert np.array_equal(clicks.infer(request), wanted)


def test_a_matrix_of_ids_is_lists_of_one_length(clicks: Door, columns: dict[str, pa.Array]) -> None:
    matrix = np.arange(ROWS * 3).reshape(ROWS, 3) % 5
    arrays = {n: a for n, a in _arrays(columns).items() if not n.startswith("genres")}
    wanted = clicks.scorer.score(
        pa.RecordBatch.from_pydict(columns | {"genres": pa.array(matrix.tolist())})
    )
    assert np.array_equal(clicks.infer(_raw(arrays | {"genres": matrix})), wanted)


def _triton(door: Door, arrays: dict[str, np.ndarray], folder: Path) -> tuple[np.ndarray, Any]:
    """Scores and what the server told Triton's client."""
    np.savez(folder / "inputs.npz", **arrays)
    here = Path(__file__).parent / "triton_client.py"
    files = str(folder / "inputs.npz"), str(folder / "found.npz")
    messages = json.dumps(_messages())
    asked = [sys.executable, "-W", "ignore", str(here), door.target, door.scorer.name, *files]
    done = subprocess.run(asked, input=messages, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return found["score"], json.loads(str(found["told"]))


def _messages() -> list[str]:
    return [name for name in oip.DESCRIPTOR.message_types_by_name if name != "ModelStatistics"]


def test_tritons_client_works_unchanged(
    clicks: Door, columns: dict[str, pa.Array], tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient")
    scores, told = _triton(clicks, _arrays(columns), tmp_path)
    assert np.array_equal(scores, _wanted(clicks, columns))
    assert (told["name"], told["versions"], told["version"], told["id"]) == (
        *("clicks", ["1"], "1", "7"),
    )
    inputs = {one["name"]: (one["datatype"], one["shape"]) for one in told["inputs"]}
    assert inputs == {
        "user_id": ("INT64", ["-1"]),
        "city": ("BYTES", ["-1"]),
        "genres.values": ("INT64", ["-1"]),
        "genres.lengths": ("INT64", ["-1"]),
        "tags.values": ("BYTES", ["-1"]),
        "tags.lengths": ("INT64", ["-1"]),
        "age": ("FP32", ["-1"]),
        "price": ("FP32", ["-1"]),
    }
    assert told["server"]["name"] == "embedcomp"
    assert told["index"] == {"models": [{"name": "clicks", "version": "1", "state": "READY"}]}
    for name, fields in told["messages"].items():  # what both have means the same in both
        of_theirs = {field[0]: field for field in fields}
        for field in oip.DESCRIPTOR.message_types_by_name[name].fields:
            assert of_theirs[field.name] == [field.name, field.number, field.type], name


def test_calls_and_rows_are_counted(numbers: Door, columns: dict[str, pa.Array]) -> None:
    kept = {name: columns[name] for name in NUMBERS.names}
    arrays = _arrays(kept)

    def counted() -> oip.ModelStatistics:
        request = oip.ModelStatisticsRequest(name="numbers")
        found = numbers.call(
            inference.SERVICE, "ModelStatistics", request, oip.ModelStatisticsResponse
        )
        (one,) = found.model_stats
        return one

    before = counted()
    numbers.infer(_raw(arrays))
    numbers.predict(_sparse(arrays, "<i8"))
    with Client(numbers.target) as client:
        client.predict(_batch(kept))
    numbers.refused(inference.SERVICE, "ModelInfer", _raw(arrays | {"user_id": arrays["age"]}))
    numbers.refused(inference.SERVICE, "ModelInfer", _raw(arrays | {"age": arrays["age"] * np.inf}))
    after = counted()
    assert after.execution_count - before.execution_count == 3
    assert after.inference_count - before.inference_count == 3 * ROWS
    stats, old = after.inference_stats, before.inference_stats
    assert stats.fail.count - old.fail.count == 1  # the other one never came to a model
    assert stats.success.ns > old.success.ns and after.last_inference >= before.last_inference


def _sparse(arrays: dict[str, np.ndarray], kind: str) -> theirs.PredictionRequest:
    """What TorchRec's client sends of these columns."""
    dense = np.stack([arrays["age"], arrays["price"]], 1)
    ids = np.concatenate([arrays["user_id"], arrays["genres.values"]])
    lengths = np.concatenate([np.ones(ROWS, np.int64), arrays["genres.lengths"]])
    return torchrec_request(dense, ids, lengths, kind)


@pytest.mark.parametrize("kind", ["<i4", "<i8"])
def test_torchrecs_client_may_send_ids_of_either_width(
    numbers: Door, columns: dict[str, pa.Array], kind: str
) -> None:
    kept = {n: columns[n] for n in NUMBERS.names} | {
        "user_id": pa.array([10, 20, 99, 30] + [7] * 5)
    }
    wanted = numbers.scorer.score(pa.RecordBatch.from_pydict(kept))
    assert len(np.unique(wanted)) == ROWS
    assert np.array_equal(numbers.predict(_sparse(_arrays(kept), kind)), wanted)


def test_a_row_without_an_id_is_null(numbers: Door, columns: dict[str, pa.Array]) -> None:
    kept = {name: columns[name] for name in NUMBERS.names}
    request = _sparse(_arrays(kept), "<i8")
    lengths = np.frombuffer(request.id_list_features.lengths, "<i4").copy()
    lengths[2] = 0
    ids = np.delete(np.frombuffer(request.id_list_features.values, "<i8"), 2)
    request.id_list_features.lengths = lengths.tobytes()
    request.id_list_features.values = ids.tobytes()
    user = kept["user_id"].to_pylist()
    user[2] = None
    nulled = kept | {"user_id": pa.array(user)}
    wanted = numbers.scorer.score(pa.RecordBatch.from_pydict(nulled))
    assert np.array_equal(numbers.predict(request), wanted)


def _parts(inputs: Any) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    """Dense numbers, of no columns where a model has none, and ids."""
    if isinstance(inputs, tuple):
        return inputs
    return torch.empty(inputs.stride(), 0), inputs


def _own_arrays(inputs: Any) -> dict[str, np.ndarray]:
    dense, sparse = _parts(inputs)
    found = {"dense": dense.numpy()} if dense.shape[1] else {}
    for key, one in sparse.to_dict().items():
        found[f"{key}.values"] = one.values().numpy()
        found[f"{key}.lengths"] = one.lengths().numpy().astype(np.int64)
        if one.weights_or_none() is not None:
            found[f"{key}.weights"] = one.weights().numpy()
    return found


@pytest.mark.slow
def test_a_users_own_model_is_served_by_every_protocol(own: Any, tmp_path: Path) -> None:
    door, inputs = own
    dense, sparse = _parts(inputs)
    wanted = door.scorer.score(inputs)
    arrays = _own_arrays(inputs)
    assert np.array_equal(door.infer(_raw(arrays)), wanted)
    weights = sparse.weights_or_none()
    given = theirs.SparseFeatures(
        num_features=len(sparse.keys()),
        lengths=sparse.lengths().numpy().astype("<i4").tobytes(),
        values=sparse.values().numpy().tobytes(),
        weights=b"" if weights is None else weights.numpy().tobytes(),
    )
    request = theirs.PredictionRequest(batch_size=len(dense))
    field = "id_list_features" if weights is None else "id_score_list_features"
    getattr(request, field).CopyFrom(given)
    request.float_features.num_features = dense.shape[1]
    request.float_features.values = dense.numpy().tobytes()
    assert np.array_equal(door.predict(request), wanted)
    assert np.array_equal(_typed_scores(door, arrays, len(dense)), wanted)
    pytest.importorskip("tritonclient")
    assert np.array_equal(_triton(door, arrays, tmp_path)[0], wanted)


def _typed_scores(door: Door, arrays: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """Of the same, by the project's own protocol."""
    request, lengths = ours.PredictRequest(), {}
    for name, array in arrays.items():
        if name.endswith(".lengths"):
            lengths[name.removesuffix(".lengths")] = array.astype("<i4").tobytes()
    for name, array in arrays.items():
        stem, _, part = name.rpartition(".")
        if part == "values":
            request.items[stem].CopyFrom(ours.Column(ids=array.tobytes(), lengths=lengths[stem]))
        elif part == "weights":
            request.items[name].CopyFrom(
                ours.Column(numbers=array.tobytes(), lengths=lengths[stem])
            )
        elif name == "dense":
            widths = np.full(rows, array.shape[1], "<i4").tobytes()
            request.items[name].CopyFrom(ours.Column(numbers=array.tobytes(), lengths=widths))
    found = door.call(typed.SERVICE, "Predict", request, ours.PredictResponse)
    return np.frombuffer(found.scores, "<f4")


def test_a_client_that_knows_reflection_alone_gets_the_scores(
    clicks: Door, columns: dict[str, pa.Array]
) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=typed.SERVICE)
    pool = descriptor_pool.DescriptorPool()
    with grpc.insecure_channel(clicks.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(stub.ServerReflectionInfo(iter([request]), timeout=10))
        for file in answer.file_descriptor_response.file_descriptor_proto:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
        method = pool.FindServiceByName(typed.SERVICE).methods_by_name["Predict"]
        asked, answered = (
            message_factory.GetMessageClass(kind)
            for kind in (method.input_type, method.output_type)
        )
        message = asked()
        for name, column in columns.items():
            message.items[name].ParseFromString(to_column(name, column).SerializeToString())
        found = channel.unary_unary(f"/{typed.SERVICE}/Predict")(message.SerializeToString())
    scores = np.frombuffer(answered.FromString(found).scores, "<f4")
    assert np.array_equal(scores, _wanted(clicks, columns))


def test_two_models_answer_by_their_names(
    clicks: Door, numbers: Door, columns: dict[str, pa.Array]
) -> None:
    models = Models.of(SETTINGS, clicks.scorer, numbers.scorer)
    kept = {name: columns[name] for name in NUMBERS.names}
    with ScoringServer(models, SETTINGS) as server:
        both = Door(f"127.0.0.1:{server.port}", clicks.scorer)
        for door, given in ((clicks, columns), (numbers, kept)):
            name, wanted = door.scorer.name, _wanted(door, given)
            with Client(both.target, model=name) as client:
                assert np.array_equal(client.predict(pa.RecordBatch.from_pydict(given)), wanted)
            assert np.array_equal(both.infer(_raw(_arrays(given), name)), wanted)
        code, said = both.refused(typed.SERVICE, "Predict", to_request(_batch(columns)))
        assert code == CODE.INVALID_ARGUMENT and "name the one that you want" in said
        code, said = both.refused(inference.SERVICE, "ModelInfer", _raw(_arrays(kept), "other"))
        assert code == CODE.NOT_FOUND and "'other' version any is not served here" in said


def _batch(columns: dict[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def _changed(columns: dict[str, pa.Array], **changes: np.ndarray | None) -> Any:
    arrays = _arrays(columns) | {n.replace("__", "."): a for n, a in changes.items()}
    return {name: array for name, array in arrays.items() if array is not None}


INTS = np.arange(ROWS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user_id": None}, "'user_id': is missing"),
        ({"genres__values": None}, "send genres.values and genres.lengths"),
        ({"other": INTS}, "'other': is no input"),
        ({"user_id": INTS[:5]}, "rows"),
        ({"user_id": INTS.astype(np.float32)}, "holds float values, but must hold int64"),
        ({"user_id": INTS.astype(np.uint64)}, "holds uint64 values"),
        ({"age": np.array(["x"] * ROWS, object)}, "holds string values, but must hold float"),
        ({"age": np.zeros((ROWS, 2), np.float32)}, "must have one number a row"),
        ({"age": np.zeros((ROWS, 1, 1), np.float32)}, "has the shape"),
        ({"age": np.array(np.float32(1))}, "has the shape"),
        ({"genres__lengths": -INTS}, "negative"),
        ({"genres__lengths": INTS + (1 << 31)}, "larger than any message"),
        ({"genres__lengths": INTS}, "add up to 36"),
        ({"genres__lengths": INTS.astype(np.float32)}, "must be whole numbers"),
        ({"age": np.full(ROWS, np.inf, np.float32)}, "'age': holds an infinite value"),
    ],
)
def test_tensors_that_do_not_fit_are_an_invalid_argument(
    clicks: Door, columns: dict[str, pa.Array], changes: dict[str, Any], said: str
) -> None:
    request = _raw(_changed(columns, **changes))
    code, details = clicks.refused(inference.SERVICE, "ModelInfer", request)
    assert code == CODE.INVALID_ARGUMENT and said in details


def _broken(columns: dict[str, pa.Array]) -> Iterator[tuple[oip.ModelInferRequest, str]]:
    whole = _raw(_arrays(columns))

    def changed() -> oip.ModelInferRequest:
        request = oip.ModelInferRequest()
        request.CopyFrom(whole)
        return request

    places = {one.name: place for place, one in enumerate(whole.inputs)}
    request = changed()
    del request.raw_input_contents[-1]
    yield request, "has 7 entries for 8 inputs"
    request = changed()
    request.raw_input_contents[places["age"]] += b"1"
    yield request, "has 37 bytes"
    request = changed()
    request.raw_input_contents[places["city"]] = b"\xff\xff\xff\xff"
    yield request, "has not 9 strings"
    request = changed()
    request.raw_input_contents[places["city"]] = b"\x01\0\0\0\xff" * ROWS
    yield request, "is not UTF-8"
    request = changed()
    request.inputs[places["age"]].datatype = "FP128"
    yield request, "is of 'FP128'"
    request = changed()
    request.inputs[places["age"]].shape[:] = [-1]
    yield request, "has the shape [-1]"
    request = changed()
    request.inputs[places["age"]].shape[:] = [2**62, 4]
    yield request, "take"
    request = changed()
    request.inputs.add(name="age", datatype="FP32", shape=[0])
    request.raw_input_contents.append(b"")
    yield request, "is given twice"
    request = changed()
    request.inputs[places["age"]].contents.fp32_contents.append(1.0)
    yield request, "send one of them"
    request = _listed(_arrays(columns))
    del request.inputs[places["age"]].contents.fp32_contents[-1]
    yield request, "has 8 fp32_contents"
    request = changed()
    request.outputs.add(name="logits")
    yield request, "'logits': is no output"
    request = changed()
    request.model_version = "latest"
    yield request, "is 'latest', but versions are numbers"


def test_messages_that_do_not_hold_together_are_an_invalid_argument(
    clicks: Door, columns: dict[str, pa.Array]
) -> None:
    for request, said in _broken(columns):
        code, details = clicks.refused(inference.SERVICE, "ModelInfer", request)
        assert code == CODE.INVALID_ARGUMENT and said in details


def _predictions(columns: dict[str, pa.Array]) -> Iterator[tuple[theirs.PredictionRequest, str]]:
    kept = _arrays({name: columns[name] for name in NUMBERS.names})

    def changed(**fields: Any) -> theirs.PredictionRequest:
        request = _sparse(kept, "<i8")
        for name, value in fields.items():
            setattr(request.id_list_features, name, value)
        return request

    whole = _sparse(kept, "<i8").id_list_features
    lengths = np.frombuffer(whole.lengths, "<i4")
    yield changed(num_features=3), "has 3 features, but the model has 2"
    yield changed(values=whole.values[:-1]), "values of id_list_features"
    yield changed(lengths=whole.lengths[:-1]), "lengths of id_list_features"
    yield changed(lengths=(-lengths).tobytes()), "has a length of -"
    yield changed(lengths=np.full(2 * ROWS, 2**31 - 1, "<i4").tobytes()), "this server takes 1,000"
    yield changed(weights=b"1234"), "has weights, which the model does not take"
    request = changed()
    request.id_score_list_features.num_features = 1
    yield request, "'id_score_list_features': is nothing that this model takes"
    twice = np.concatenate([[2, 0], lengths[2:]]).astype("<i4").tobytes()
    yield changed(lengths=twice), "'user_id': has several ids in a row"
    request = changed()
    request.batch_size = -1
    yield request, "'batch_size': is -1"
    request = changed()
    request.batch_size = 101
    yield request, "101 candidates"
    request = changed()
    request.float_features.num_features = 3
    yield request, "float_features"
    request = changed()
    request.float_features.values += b"1"
    yield request, "bytes, but 9 rows of 2 float32 have 72"
    request = changed()
    request.unary_features.num_features = 1
    yield request, "'unary_features': is nothing that this model takes"


def test_predictions_that_do_not_fit_are_an_invalid_argument(
    numbers: Door, columns: dict[str, pa.Array]
) -> None:
    for request, said in _predictions(columns):
        code, details = numbers.refused(torchrec.SERVICE, "Predict", request)
        assert code == CODE.INVALID_ARGUMENT and said in details, details


@pytest.mark.slow
def test_what_a_users_own_model_does_not_take_is_refused(own: Any) -> None:
    door, inputs = own
    dense, sparse = _parts(inputs)
    weighted = sparse.weights_or_none() is not None
    fields = ["id_list_features", "id_score_list_features"]
    lengths = sparse.lengths().numpy().astype("<i4").tobytes()
    request = theirs.PredictionRequest(batch_size=len(dense))
    request.float_features.num_features = dense.shape[1]
    request.float_features.values = dense.numpy().tobytes()
    given = getattr(request, fields[weighted])
    given.num_features, given.lengths = len(sparse.keys()), lengths
    given.values = sparse.values().numpy().tobytes()
    if weighted:  # none are sent
        code, said = door.refused(torchrec.SERVICE, "Predict", request)
        assert code == CODE.INVALID_ARGUMENT and "has 0 bytes of weights" in said
        given.weights = sparse.weights().numpy().tobytes()
    other = fields[not weighted]
    getattr(request, other).num_features = 1
    code, said = door.refused(torchrec.SERVICE, "Predict", request)
    assert code == CODE.INVALID_ARGUMENT and f"'{other}': is nothing that this model" in said


def test_strings_cannot_be_sent_by_torchrecs_protocol(clicks: Door) -> None:
    request = theirs.PredictionRequest(batch_size=0)
    request.float_features.num_features = 2
    request.id_list_features.num_features = 4
    code, details = clicks.refused(torchrec.SERVICE, "Predict", request)
    assert code == CODE.INVALID_ARGUMENT and "'city': is of strings" in details


@pytest.mark.slow
def test_an_id_beyond_its_table_is_named(own: Any) -> None:
    door, inputs = own
    arrays = _own_arrays(inputs)
    key = _parts(inputs)[1].keys()[0]
    arrays[f"{key}.values"] = arrays[f"{key}.values"] + 10**9
    code, details = door.refused(inference.SERVICE, "ModelInfer", _raw(arrays))
    assert code == CODE.INVALID_ARGUMENT and f"feature '{key}' has id 1,000,000," in details
