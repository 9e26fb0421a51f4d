"""A server that is stopped answers every call that it was sent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import pyarrow as pa
import pytest
from toy_scorer import ToyScorer

from embedcomp.serving import draining
from embedcomp.serving.client import Client
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.models import Models
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings

pytestmark = pytest.mark.server
CLIENTS = 4
NOT_SENT = "failed to connect to all addresses"


def test_sigterm_loses_no_call_of_clients_without_a_pause(
    items: pa.RecordBatch,
    serve_slowly: Callable[[float], tuple[subprocess.Popen[str], str]],
) -> None:
    (process, target), message = serve_slowly(0.0), to_request(items).SerializeToString()
    answered: Counter[str] = Counter()
    stopping = threading.Event()

    def call_on() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        with grpc.insecure_channel(target, options=options) as channel:
            call = channel.unary_unary(f"/{SERVICE}/Predict")
            while True:
                try:
                    call(message, timeout=20)
                    answered["after" if stopping.is_set() else "before"] += 1
                except grpc.RpcError as error:
                    said = "not sent" if NOT_SENT in error.details() else str(error)
                    answered[said] += 1
                    return

    clients = [threading.Thread(target=call_on) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(0.3)
    stopping.set()
    process.terminate()
    assert process.wait(20) == 0
    for client in clients:
        client.join(20)
    assert answered.keys() == {"before", "after", "not sent"}, answered
    assert answered["not sent"] == CLIENTS


def test_clients_that_are_quiet_are_not_waited_for(
    scorer: ToyScorer, items: pa.RecordBatch
) -> None:
    settings = ServerSettings(port=0, connection_s=60, grace_s=60)
    with (
        ScoringServer(Models.of(settings, scorer), settings) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        client.predict(items)
        assert draining.connections(server.port) == 1
        began = time.monotonic()
        server.drain()
        assert time.monotonic() - began < 30


def _opened(inode: int) -> int:
    """How many of this process's descriptors are of one socket."""
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.islink(one) and str(inode) in os.readlink(one) for one in links)


def test_a_port_that_is_closed_to_new_clients_keeps_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as theirs:
            ours, _ = listening.accept()
            own = os.fstat(ours.fileno()).st_ino
            for _ in range(100):
                assert draining.connections(port) == 1
            draining.stop_listening(port)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            assert draining.connections(port) == 1
            assert _opened(own) == 1
            ours.sendall(b"still here")
            assert theirs.recv(10) == b"still here"
            ours.close()
        assert draining.connections(port) == 0


STUCK = """
import threading
from embedcomp.serving import server
server._end_within(0.5)
threading.Thread(target=threading.Event().wait).start()  # it keeps the process for ever
"""


@pytest.mark.slow
def test_a_server_that_does_not_come_to_an_end_is_ended() -> None:
    found = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 1 and "did not end in 0.5 s" in found.stderr
