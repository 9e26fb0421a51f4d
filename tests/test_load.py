"""The benchmarks' load: calls over bare HTTP/2, at fixed times or in turn, to a server of gRPC."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread

import grpc
import pytest

from benchmarks.served import load
from benchmarks.served.http2 import LOST, OK
from benchmarks.served.load import Lines, Phase
from benchmarks.served.server import once

pytestmark = pytest.mark.server
METHOD = "/a.Service/Echo"


@contextmanager
def serving(answer, threads=4, **options):
    """HOST:PORT of a server that answers bytes by bytes."""
    handler = grpc.unary_unary_rpc_method_handler(answer)
    sized = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1}
    server = grpc.server(
        ThreadPoolExecutor(threads),
        options=list((sized | {f"grpc.{name}": value for name, value in options.items()}).items()),
    )
    service = grpc.method_handlers_generic_handler("a.Service", {"Echo": handler})
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def echo(data, context):
    return data


def test_each_call_gets_its_own_answer_however_large():
    messages = [bytes([i]) * size for i, size in enumerate((0, 1, 16_384, 70_000, 1_000_000, 5))]
    with serving(echo) as target:
        lines = Lines(target, METHOD, 2)
        for message in messages:
            lines.send(message, message)
        answers = []
        end = time.monotonic() + 10
        while len(answers) < len(messages) and time.monotonic() < end:
            answers += lines.wait(0.1)
        lines.close()
    assert sorted(one.call for one in answers) == sorted(messages)
    assert all(one.status == OK and one.message == one.call for one in answers)


@pytest.mark.slow
@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.NOT_FOUND])
def test_a_status_is_told(code):
    with serving(lambda data, context: context.abort(code, "no")) as target:
        assert once(target, METHOD, b"a") == (code.name, b"")


@pytest.mark.slow
def test_connections_that_the_server_ends_lose_no_call():
    with serving(echo, max_connection_age_ms=100) as target:
        calls = load.opened(target, METHOD, [b"a"], [Phase("all", 200, 1.0)], connections=2)
    assert len(calls) == 200
    assert {one.status for one in calls} == {OK}


@pytest.mark.slow
def test_an_open_load_waits_for_no_answer():
    def slow(data, context):
        time.sleep(0.1)
        return data

    with serving(slow, threads=1) as target:
        calls = load.opened(target, METHOD, [b"a"], [Phase("all", 100, 0.2)], connections=1)
    assert max(one.sent for one in calls) < sorted(one.done for one in calls)[-5]
    assert {one.status for one in calls} == {OK}


def test_a_call_that_went_with_its_connection_is_sent_again():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        target = f"127.0.0.1:{listening.getsockname()[1]}"

        def hang_up():
            for _ in range(3):
                listening.accept()[0].close()

        thread = Thread(target=hang_up)
        thread.start()
        phases = [Phase("all", 100, 0.01)]
        (call,) = load.opened(target, METHOD, [b"a"], phases, connections=1, retries=2)
        thread.join()
    assert (call.status, call.tries) == (LOST, 3)


def test_calls_in_turn_are_counted_after_the_warm_up():
    used = iter((1.0, 3.0))
    with serving(echo) as target:
        found = load.closed(
            target, METHOD, [b"a"], in_flight=2, seconds=0.3, warm_up=0.1, cpu=lambda: next(used)
        )
    told = found.figures(rows=10)
    assert told["cpu_us_per_call"] == pytest.approx(2e6 / told["calls"])
    assert told["rows_per_second"] == pytest.approx(10 * told["calls"] / found.seconds)
    assert found.seconds == pytest.approx(0.3, abs=0.2)
