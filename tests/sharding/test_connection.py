"""Connections between fronts and shards: messages, deadlines, and what is no message."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from embedcomp.artifact.artifact import Artifact
from embedcomp.kernels import native
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.errors import CannotListen
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.connection import (
    HEAD,
    Closed,
    Connection,
    Kind,
    Refused,
    WrongPeer,
    asked,
    reach,
)
from embedcomp.serving.shards.replica import Asked, Replica, ShardFailed
from embedcomp.serving.shards.rows import finds
from embedcomp.serving.shards.server import ShardServer, Versions
from embedcomp.serving.shards.settings import ShardSettings
from tests.sharding import cases

LONG_S = 30.0  # in which whatever does not hang has ended


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and the bare socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    connection = Connection(ours)
    with theirs:
        yield connection, theirs
    connection.close()


def soon() -> float:
    return time.monotonic() + LONG_S


@pytest.mark.parametrize("size", [0, 1, 70_000, 30_000_000])
def test_a_message_arrives_as_it_was_sent(
    pair: tuple[Connection, socket.socket], size: int
) -> None:
    ours, other = pair
    theirs, body = Connection(other), bytes(range(256)) * (size // 256 + 1)
    sending = threading.Thread(target=ours.send, args=(Kind.POOL, body[:size], soon()))
    sending.start()
    kind, got = theirs.receive(soon())
    sending.join()
    assert kind == Kind.POOL
    assert got.to_pybytes() == body[:size]


def test_who_is_too_late_is_not_waited_for(pair: tuple[Connection, socket.socket]) -> None:
    ours, other = pair
    with pytest.raises(TimeoutError):
        ours.receive(time.monotonic() + 0.05)
    with pytest.raises(TimeoutError):  # also where a deadline has passed before
        ours.receive(time.monotonic() - 1)
    other.sendall(HEAD.pack(Kind.ANSWER, 100) + b"half")
    with pytest.raises(TimeoutError):
        ours.receive(time.monotonic() + 0.05)
    with pytest.raises(TimeoutError):  # nobody reads
        ours.send(Kind.POOL, bytes(100_000_000), time.monotonic() + 0.05)


def test_an_end_between_messages_is_told_from_one_within(
    pair: tuple[Connection, socket.socket],
) -> None:
    ours, other = pair
    other.sendall(HEAD.pack(Kind.ANSWER, 3) + b"all" + HEAD.pack(Kind.ANSWER, 3) + b"h")
    other.shutdown(socket.SHUT_WR)
    assert ours.receive(soon())[1].to_pybytes() == b"all"
    with pytest.raises(WrongPeer, match="in the middle"):
        ours.receive(soon())
    with pytest.raises(Closed):
        ours.receive(soon())


def test_an_end_within_a_head_is_within_a_message(
    pair: tuple[Connection, socket.socket],
) -> None:
    ours, other = pair
    other.sendall(HEAD.pack(Kind.ANSWER, 0)[:3])
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(WrongPeer, match="in the middle"):
        ours.receive(soon())


def test_what_is_no_answer_is_none(pair: tuple[Connection, socket.socket]) -> None:
    ours, other = pair
    other.sendall(HEAD.pack(Kind.REFUSED, 2) + b"no" + HEAD.pack(Kind.POOL, 0) + b"HTTP/1.1 400")
    with pytest.raises(Refused, match=r"^no$"):
        asked(ours, Kind.DESCRIBE, b"", soon())
    with pytest.raises(WrongPeer, match="answers with POOL"):
        asked(ours, Kind.DESCRIBE, b"", soon())
    with pytest.raises(WrongPeer, match="no message"):
        ours.receive(soon())


def test_closing_wakes_who_waits(pair: tuple[Connection, socket.socket]) -> None:
    ours, _ = pair
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            ours.receive()
        except OSError as error:
            seen.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.05)
    ours.close()
    waiting.join(LONG_S)
    assert len(seen) == 1


needs_engine = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")


@pytest.fixture
def shard(made: Artifact) -> Iterator[ShardServer]:
    server = ShardServer(Versions(made.folder, range(256)), ShardSettings(port=0))
    yield server
    server.close()


def told(shard: ShardServer) -> Any:
    """What a shard says of itself to somebody new."""
    connection = reach(f"127.0.0.1:{shard.port}", soon())
    said = json.loads(asked(connection, Kind.DESCRIBE, b"", soon()).to_pybytes())
    connection.close()
    return said


@needs_engine
@pytest.mark.parametrize(
    ("given", "why"),
    [
        (HEAD.pack(Kind.POOL, 0), "no stream was begun"),
        (HEAD.pack(Kind.ANSWER, 0), "ANSWER is no question"),
        (HEAD.pack(Kind.STREAM, 2) + b"[]", "not told as fronts do"),
        (HEAD.pack(Kind.STREAM, 4) + b"\xff\xff\xff\xff", "not told as fronts do"),
        (HEAD.pack(Kind.LOAD, 30_000) + b"[" * 30_000, "not told as fronts do"),
        (HEAD.pack(Kind.LOAD, 30) + b'{"model": "x", "version": "1"}', "not told as fronts do"),
        (HEAD.pack(Kind.LOAD, 28) + b'{"model": "x", "version": 1}', "'x' is not here"),
    ],
)
def test_what_a_shard_cannot_do_is_refused_in_words(
    shard: ShardServer, given: bytes, why: str
) -> None:
    connection = Connection(socket.create_connection(("127.0.0.1", shard.port)))
    connection._socket.sendall(given)
    kind, said = connection.receive(soon())
    assert kind == Kind.REFUSED
    assert why in said.to_pybytes().decode()
    with pytest.raises(Closed):
        connection.receive(soon())
    connection.close()
    assert told(shard)["slots"] == list(range(256))


@needs_engine
def test_wrong_messages_of_a_stream_are_counted_and_end_it(
    made: Artifact, shard: ShardServer
) -> None:
    (digest,) = told(shard)["versions"].values()
    of = Asked(shard.held.model, made.version, digest).body
    for body in (b"", b"abc", b"\xff" * 64, struct.pack("<3I", 7, 1, 0)):
        connection = reach(f"127.0.0.1:{shard.port}", soon())
        asked(connection, Kind.STREAM, of, soon())
        with pytest.raises(Refused):
            asked(connection, Kind.POOL, body, soon())
        connection.close()
    counted = shard.metrics.requests.labels("wrong")._value.get()
    assert counted + shard.metrics.requests.labels("other_version")._value.get() == 4
    until = soon()
    while shard.held.streams and time.monotonic() < until:
        time.sleep(0.01)
    assert not shard.held.streams


@needs_engine
def test_noise_and_silence_take_no_shard_from_others(made: Artifact, shard: ShardServer) -> None:
    front = Scorer(made, shards=finds(ServerSettings(shards=(f"127.0.0.1:{shard.port}",))))
    given = cases.inputs(20)
    wanted = front.score(given)
    silent = [socket.create_connection(("127.0.0.1", shard.port)) for _ in range(20)]
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 8, b"\xff" * 1000, HEAD.pack(Kind.POOL, 99)):
        with socket.create_connection(("127.0.0.1", shard.port)) as one:
            one.sendall(noise)
    assert (front.score(given) == wanted).all()
    for one in silent:
        one.close()


@needs_engine
def test_a_shard_takes_so_many_connections_and_then_others_again(
    made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcomp.serving.shards.server.MOST_CONNECTIONS", 2)
    server = ShardServer(Versions(made.folder, range(256)), ShardSettings(port=0))
    held = [reach(f"127.0.0.1:{server.port}", soon()) for _ in range(2)]
    for one in held:
        asked(one, Kind.DESCRIBE, b"", soon())
    with pytest.raises(OSError):
        told(server)
    held[0].close()
    until = soon()
    while True:
        try:
            assert told(server)["slots"]
            break
        except OSError:
            assert time.monotonic() < until
    held[1].close()
    server.close()
    with pytest.raises(OSError):
        told(server)


@needs_engine
def test_an_address_is_taken_once(shard: ShardServer) -> None:
    with pytest.raises(CannotListen):
        ShardServer(shard.held, ShardSettings(port=shard.port))


def test_a_shard_that_hangs_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # nobody takes who comes
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        replica = Replica(lambda: address, Asked("clicks", 1, "digest"))
        replica.live, replica.address = True, address
        with pytest.raises(ShardFailed, match="did not answer in time"):
            replica.send(pa.py_buffer(b"abcd"), time.monotonic() + 0.1)
        replica.close()


def test_a_closed_replica_keeps_no_stream(pair: tuple[Connection, socket.socket]) -> None:
    ours, other = pair
    replica = Replica(lambda: "127.0.0.1:1", Asked("clicks", 1, "digest"))
    replica.close()
    other.sendall(HEAD.pack(Kind.ANSWER, 2) + b"ok")
    assert replica.receive(ours, soon()).to_pybytes() == b"ok"  # a call in flight has its answer
    other.settimeout(LONG_S)
    assert not other.recv(1)
