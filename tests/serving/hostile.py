"""Sends a server messages that were made wrong, through each of its doors, and looks after it.

`python -m tests.serving.hostile --messages 50000 [--door NAME] [--seed N]` starts a server, a
process of its own that serves a compiled model, for each door. It has to answer each message, with
scores or with a status that names the fault, never as if the fault were its own; meanwhile it gives
good requests the model's scores to the last bit, and in the end it has no more memory and
descriptors than after a quarter of them. Ends with 1 where it does not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa

from embedcomp.log.features import Features
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors import inference, torchrec, typed
from embedcomp.serving.wire import inference_pb2 as oip
from embedcomp.serving.wire import predictor_pb2 as theirs
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as ours
from tests.serving.mutations import of_bytes, of_fields, of_json
from tests.serving.torchrec_request import torchrec_request
from tests.serving.toy_scorer import FEATURES, save_small

CONNECTIONS = 4
GOOD_EVERY = 100  # messages of a connection
ANSWER_S = 30.0  # in which every message has to be answered
GROWTH_BYTES = 32 << 20  # of memory, which says that some is lost
SETTLE_S = 10.0  # that connections may take until they are gone
MODEL = "clicks"
FAULTS = {"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "DATA_LOSS"}
HTTP_FAULTS = {"500", "503"}
FOLDER = Path(__file__).parents[2]

NUMBERS = Features(  # what TorchRec's protocol can send
    tuple(f for f in FEATURES.ids if f.name in ("user_id", "genres")), FEATURES.dense
)
COLUMNS = {
    "user_id": pa.array([10, 20, 99, -1]),
    "city": pa.array(["Zürich", "Basel", "", "上海"]),
    "genres": pa.array([[1, 2, 9], [], [4], [1]]),
    "tags": pa.array([["a", "b"], [], ["zz"], ["b"]]),
    "age": pa.array([31.5, 0.1, -7.25, 90.0], pa.float32()),
    "price": pa.array([7.0, 1e-3, 0.0, -5.0], pa.float32()),
}
ROWS = 4


# ---- what is sent -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A message that is good, where it goes and what scores it gets; None: it asks for none."""

    path: str
    message: bytes
    wanted: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """What became of a message: its status and what was said, or scores."""

    status: str
    said: str
    scores: np.ndarray | None = None


def batch(names: Sequence[str]) -> pa.RecordBatch:
    """Rows of some columns, none of them null."""
    return pa.RecordBatch.from_pydict({name: COLUMNS[name] for name in names})


def for_typed(scorer: Scorer) -> list[Sent]:
    """Requests with and without a user's columns, with nulls, of this model, and Metadata."""
    path, wanted = f"/{typed.SERVICE}/Predict", scorer.score(batch(FEATURES.names))
    whole = to_request(batch(FEATURES.names), model=MODEL, version=1)
    items, user = batch(FEATURES.item.names), batch(FEATURES.user.names).slice(1, 1)
    nulls = pa.RecordBatch.from_pydict(
        {name: pa.nulls(3, column.type) for name, column in COLUMNS.items()}
    )
    return [
        Sent(path, whole.SerializeToString(), wanted),
        Sent(path, to_request(items, user).SerializeToString(), scorer.score(items, user)),
        Sent(path, to_request(nulls).SerializeToString(), scorer.score(nulls)),
        Sent(f"/{typed.SERVICE}/Metadata", ours.MetadataRequest(model=MODEL).SerializeToString()),
    ]


def for_torchrec(scorer: Scorer) -> list[Sent]:
    """Ids of eight bytes and of four."""
    path, wanted = f"/{torchrec.SERVICE}/Predict", scorer.score(batch(NUMBERS.names))
    dense = np.stack([COLUMNS["age"].to_numpy(), COLUMNS["price"].to_numpy()], 1)
    genres = COLUMNS["genres"]
    ids = np.concatenate([COLUMNS["user_id"].to_numpy(), genres.flatten().to_numpy()])
    lengths = np.concatenate([np.ones(ROWS, "<i4"), genres.value_lengths().to_numpy()])
    return [
        Sent(path, torchrec_request(dense, ids, lengths, kind).SerializeToString(), wanted)
        for kind in ("<i8", "<i4")
    ]


def tensors() -> Iterator[tuple[str, str, list[object]]]:
    """Names, datatypes and values of the inputs of the Open Inference Protocol."""
    for name, column in COLUMNS.items():
        if not pa.types.is_list(column.type):
            kind = {pa.string(): "BYTES", pa.float32(): "FP32"}.get(column.type, "INT64")
            yield name, kind, column.to_pylist()
            continue
        kind = "BYTES" if column.type.value_type == pa.string() else "INT64"
        yield f"{name}.values", kind, column.flatten().to_pylist()
        yield f"{name}.lengths", "INT64", column.value_lengths().to_pylist()


def for_inference(scorer: Scorer) -> list[Sent]:
    """Raw and typed contents, and calls about models; none of them unloads one."""
    path, wanted = f"/{inference.SERVICE}/ModelInfer", scorer.score(batch(FEATURES.names))
    raw, listed = (oip.ModelInferRequest(model_name=MODEL, id="7") for _ in range(2))
    for name, kind, values in tensors():
        given = raw.inputs.add(name=name, datatype=kind, shape=[len(values)])
        contents = listed.inputs.add(name=name, datatype=kind, shape=given.shape).contents
        dtype, into = inference.CONTENTS[kind]
        if kind == "BYTES":
            texts = [str(value).encode() for value in values]
            contents.bytes_contents.extend(texts)
            data = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        else:
            getattr(contents, into).extend(values)
            data = np.array(values, dtype).tobytes()
        raw.raw_input_contents.append(data)
    listed.outputs.add(name="score")
    policy = json.dumps({"version_policy": {"specific": {"versions": [1]}}})
    configured = {"config": oip.ModelRepositoryParameter(string_param=policy)}
    numbered = {"version": oip.ModelRepositoryParameter(int64_param=1)}
    others = {
        "ModelReady": oip.ModelReadyRequest(name=MODEL, version="1"),
        "ModelMetadata": oip.ModelMetadataRequest(name=MODEL, version="1"),
        "ModelStatistics": oip.ModelStatisticsRequest(name=MODEL),
        "RepositoryIndex": oip.RepositoryIndexRequest(ready=True),
    }
    load = oip.RepositoryModelLoadRequest
    return [
        *(Sent(path, one.SerializeToString(), wanted) for one in (raw, listed) for _ in range(4)),
        *(
            Sent(f"/{inference.SERVICE}/{method}", request.SerializeToString())
            for method, request in others.items()
        ),
        *(
            Sent(
                f"/{inference.SERVICE}/RepositoryModelLoad",
                load(model_name=MODEL, parameters=parameters).SerializeToString(),
            )
            for parameters in (configured, numbered)
        ),
    ]


def for_http(scorer: Scorer) -> list[Sent]:
    """The same as JSON."""
    inputs = [
        {"name": name, "datatype": kind, "shape": [len(values)], "data": values}
        for name, kind, values in tensors()
    ]
    outputs = [{"name": "score"}]
    whole = json.dumps({"id": "7", "inputs": inputs, "outputs": outputs}).encode()
    nested = [
        one
        if "." in one["name"]
        else one | {"shape": [ROWS, 1], "data": [[v] for v in one["data"]]}
        for one in inputs
    ]
    wanted = scorer.score(batch(FEATURES.names))
    load, infer = f"/v2/repository/models/{MODEL}/load", f"/v2/models/{MODEL}/infer"
    return [
        *(Sent(infer, whole, wanted) for _ in range(4)),
        *(Sent(infer, json.dumps({"inputs": nested}).encode(), wanted) for _ in range(4)),
        Sent(load, json.dumps({"parameters": {"version": 1}}).encode()),
        Sent("/v2/repository/index", b"{}"),
    ]


# ---- doors ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Door:
    """A protocol: messages that are good, what makes them wrong, and how they are sent.

    connected: what sends a message over a connection of its own, to a server's two ports.
    """

    features: Features
    good: Callable[[Scorer], list[Sent]]
    mutated: Callable[[bytes, Sequence[bytes], random.Random], bytes]
    connected: Callable[[Server], Iterator[Callable[[str, bytes], Answer]]]


def _scores_of(path: str, answer: bytes) -> np.ndarray | None:
    if path == f"/{typed.SERVICE}/Predict":
        return np.frombuffer(ours.PredictResponse.FromString(answer).scores, "<f4")
    if path == f"/{torchrec.SERVICE}/Predict":
        data = theirs.PredictionResponse.FromString(answer).predictions["default"].data
        return np.array(data, np.float32)
    if path == f"/{inference.SERVICE}/ModelInfer":
        return np.frombuffer(
            oip.ModelInferResponse.FromString(answer).raw_output_contents[0], "<f4"
        )
    return None


def over_grpc(server: Server) -> Iterator[Callable[[str, bytes], Answer]]:
    """Sends a message's bytes as they are."""
    apart = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", apart) as channel:

        def send(path: str, message: bytes) -> Answer:
            try:
                answer = channel.unary_unary(path)(message, timeout=ANSWER_S)
            except grpc.RpcError as error:
                return Answer(error.code().name, error.details() or "")
            return Answer("OK", "", _scores_of(path, answer))

        yield send


def over_http(server: Server) -> Iterator[Callable[[str, bytes], Answer]]:
    """Posts a message; a connection takes one."""

    def send(path: str, message: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=ANSWER_S)
        try:
            connection.request("POST", path, message)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return Answer("UNAVAILABLE", repr(error))
        finally:
            connection.close()
        told = json.loads(said)
        if answer.status != 200:
            return Answer(str(answer.status), told["error"])
        scores = told["outputs"][0]["data"] if "outputs" in told else []
        return Answer("200", "", np.array(scores, np.float32))

    yield send


def _either(
    one: Callable[..., bytes], share: float
) -> Callable[[bytes, Sequence[bytes], random.Random], bytes]:
    def mutated(message: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
        return (one if draw.random() < share else of_bytes)(message, others, draw)

    return mutated


DOORS: Mapping[str, Door] = {
    "typed": Door(FEATURES, for_typed, _either(of_fields, 0.6), over_grpc),
    "torchrec": Door(NUMBERS, for_torchrec, _either(of_fields, 0.6), over_grpc),
    "inference": Door(FEATURES, for_inference, _either(of_fields, 0.6), over_grpc),
    "http": Door(FEATURES, for_http, _either(of_json, 0.7), over_http),
}


# ---- the server -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server's process and its ports."""

    process: subprocess.Popen[str]
    port: int
    http_port: int
    log: Path

    @property
    def resident(self) -> int:
        """Bytes of memory that it has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status).group(1))  # type: ignore[union-attr]

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@contextmanager
def served(place: Path, log: Path, *options: str, before: Sequence[str] = ()) -> Iterator[Server]:
    """A server of a model, as the command starts it.

    Args:
        options: of the command; before: the command that runs it.
    """
    ports = ["--port", "0", "--metrics-port", "0", "--grace-s", "1"]
    command = [*before, sys.executable, "-m", "embedcomp", "serve", str(place), *ports, *options]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    with log.open("w") as told:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=told, text=True
        )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        ports_found = [re.findall(r":(\d+)$", line.strip()) for line in said]
        (port,), _, (http_port,) = ports_found
        yield Server(process, int(port), int(http_port), log)
    finally:
        process.terminate()
        process.wait(20)


# ---- the run ----------------------------------------------------------------------------------


@dataclass
class Found:
    """What became of a door's messages; memory and descriptors are of the server."""

    sent: int = 0
    good: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    resident: tuple[int, int] = 0, 0
    descriptors: tuple[int, int] = 0, 0
    seconds: float = 0.0

    def add(self, other: Found) -> None:
        self.sent, self.good = self.sent + other.sent, self.good + other.good
        self.statuses += other.statuses
        self.faults += other.faults

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.statuses.most_common())
        before, after = (size / 2**20 for size in self.resident)
        return (
            f"{self.sent:,} sent in {self.seconds:.0f} s: {counts}; {self.good:,} good ones scored;"
            f" RSS {before:.1f} -> {after:.1f} MiB; descriptors {self.descriptors[0]} -> "
            f"{self.descriptors[1]}; {len(self.faults)} faults"
        )


def attack(door: Door, server: Server, scorer: Scorer, messages: int, seed: int) -> Found:
    """Send a door messages, and see that its server is as it was after a quarter of them."""
    sent, whole, began = door.good(scorer), Found(), time.monotonic()
    for part, of in (("first", messages // 4), ("rest", messages - messages // 4)):
        shares = [of // CONNECTIONS + (i < of % CONNECTIONS) for i in range(CONNECTIONS)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            runs = [
                pool.submit(_one_connection, door, server, sent, share, f"{seed} {part} {place}")
                for place, share in enumerate(shares)
            ]
            for run in runs:
                whole.add(run.result())
        if not server.alive:
            whole.faults.append(f"the server ended with {server.process.returncode}")
            return whole
        here = server.resident, _settled(server, whole.descriptors[0])
        whole.resident = whole.resident[0] or here[0], here[0]
        whole.descriptors = whole.descriptors[0] or here[1], here[1]
    whole.seconds = time.monotonic() - began
    if whole.resident[1] - whole.resident[0] > GROWTH_BYTES:
        whole.faults.append("memory grows")
    if whole.descriptors[1] > whole.descriptors[0]:
        whole.faults.append("descriptors are left open")
    return whole


def _settled(server: Server, wanted: int) -> int:
    """Descriptors once connections are gone."""
    until, before = time.monotonic() + SETTLE_S, -1
    while time.monotonic() < until and server.descriptors not in (wanted, before):
        before = server.descriptors
        time.sleep(0.5)
    return server.descriptors


def _one_connection(
    door: Door, server: Server, sent: list[Sent], messages: int, seed: str
) -> Found:
    found, draw = Found(), random.Random(seed)
    others = [one.message for one in sent]
    scored = [one for one in sent if one.wanted is not None]
    with contextmanager(door.connected)(server) as send:
        for number in range(messages):
            one = draw.choice(sent)
            message = door.mutated(one.message, others, draw)
            answer = send(one.path, message)
            found.sent += 1
            found.statuses[answer.status] += 1
            if answer.status in FAULTS | HTTP_FAULTS or not (answer.said or answer.status in GOOD):
                found.faults.append(f"{answer.status} {answer.said!r} {one.path} {message.hex()}")
            if number % GOOD_EVERY == 0:
                one = draw.choice(scored)
                answer = send(one.path, one.message)
                if answer.scores is None or not np.array_equal(answer.scores, one.wanted):
                    found.faults.append(f"a good request got {answer}")
                found.good += 1
            if not server.alive:
                found.faults.append(f"the server ended at {one.path} {message.hex()}")
                break
    return found


GOOD = {"OK", "200"}


def main() -> int:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--messages", type=int, default=50_000, help="of each door")
    given.add_argument("--door", choices=DOORS, action="append")
    given.add_argument("--seed", type=int, default=0)
    asked = given.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.door or DOORS:
            home, door = Path(folder) / name, DOORS[name]
            place = save_small(home / MODEL, features=door.features, compiled=True)
            with served(home, home / "log") as server:
                found = attack(door, server, Scorer.open(place), asked.messages, asked.seed)
            print(f"{name}: {found}", flush=True)
            for fault in found.faults[:20]:
                print(f"  {fault[:2_000]}", flush=True)
            if found.faults:
                print((home / "log").read_text()[-5_000:], flush=True)
            wrong |= bool(found.faults)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
