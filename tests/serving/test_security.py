"""Nobody gets in without what the server asks for, and certificates and tokens may be renewed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from certificates import Files
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from toy_scorer import ToyScorer

from embedcomp.client import AsyncClient, Client
from embedcomp.errors import BadSettings
from embedcomp.serving import security
from embedcomp.serving.access import token_of
from embedcomp.serving.errors import CallFailed, Unreachable
from embedcomp.serving.models import Models
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings

pytestmark = pytest.mark.server
HOST = "127.0.0.1"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "server")


@pytest.fixture
def theirs(tmp_path: Path) -> Files:
    return Files(tmp_path / "client")


def served(**changes: Any) -> Any:
    settings = ServerSettings(port=0, **changes)
    return ScoringServer(Models.of(settings, ToyScorer()), settings)


def at(server: ScoringServer) -> str:
    return f"{HOST}:{server.port}"


def test_calls_over_tls_are_answered(files: Files, items: pa.RecordBatch) -> None:
    with served(**files.shown()) as server:
        with Client(at(server), ca=files.ca) as client:
            assert len(client.predict(items)) == 3
        with Client(at(server), timeout_s=2, retries=0) as client, pytest.raises(Unreachable):
            client.predict(items)


def test_a_server_of_another_authority_is_not_believed(
    files: Files, theirs: Files, items: pa.RecordBatch
) -> None:
    with (
        served(**files.shown()) as server,
        Client(at(server), timeout_s=2, retries=0, ca=theirs.ca) as client,
        pytest.raises(Unreachable),
    ):
        client.predict(items)


def test_clients_must_show_what_the_server_trusts(
    files: Files, theirs: Files, items: pa.RecordBatch
) -> None:
    with served(**files.shown(), tls_client_ca=theirs.ca) as server:
        shown = {"ca": files.ca, "cert": theirs.cert, "key": theirs.key}
        with Client(at(server), **shown) as client:
            assert len(client.predict(items)) == 3
        for wrong in ({"ca": files.ca}, {"ca": files.ca, "cert": files.cert, "key": files.key}):
            with (
                Client(at(server), timeout_s=2, retries=0, **wrong) as client,
                pytest.raises(Unreachable),
            ):
                client.predict(items)


def test_certificates_are_renewed_while_the_server_runs(
    files: Files, theirs: Files, items: pa.RecordBatch, caplog: pytest.LogCaptureFixture
) -> None:
    with served(**files.shown()) as server, Client(at(server), ca=files.ca) as old:
        assert len(old.predict(items)) == 3
        files.renew(theirs.authority)
        with Client(at(server), ca=theirs.ca) as client:
            assert len(client.predict(items)) == 3
        assert len(old.predict(items)) == 3, "a connection that is there stays"
        files.key.write_text("half a key")
        os.utime(files.key, ns=(0, 0))
        with Client(at(server), ca=theirs.ca) as client:
            assert len(client.predict(items)) == 3
        assert "certificates are not renewed" in caplog.text


def test_the_asyncio_client_gets_in_likewise(
    files: Files, theirs: Files, tokens: Path, items: pa.RecordBatch
) -> None:
    async def scores(**options: Any) -> Any:
        async with AsyncClient(at(server), timeout_s=2, retries=0, **options) as client:
            return await client.predict(items)

    shown = {"ca": files.ca, "cert": theirs.cert, "key": theirs.key}
    with served(**files.shown(), tls_client_ca=theirs.ca, token_file=tokens) as server:
        assert len(asyncio.run(scores(**shown, token="second"))) == 3
        with pytest.raises(CallFailed, match="UNAUTHENTICATED"):
            asyncio.run(scores(**shown))
        with pytest.raises(Unreachable):
            asyncio.run(scores(ca=files.ca, token="second"))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text("# of the ranking team\nfirst\n\nsecond  # until March\n")
    return file


def test_a_call_needs_a_token(tokens: Path, items: pa.RecordBatch) -> None:
    with served(token_file=tokens) as server:
        for token in ("first", "second"):
            with Client(at(server), token=token) as client:
                assert len(client.predict(items)) == 3
                assert client.metadata().model == "toy"
        for token in ("", "third", "firs", "first ", "# of the ranking team", "FIRST"):
            with Client(at(server), token=token) as client:
                for call in (lambda: client.predict(items), client.metadata):
                    with pytest.raises(CallFailed, match="lets calls in that bring a token") as c:
                        call()
                    assert c.value.code == grpc.StatusCode.UNAUTHENTICATED
    assert token_of(tokens) == "first"


def _asks(server: ScoringServer, what: str) -> grpc.StatusCode:
    with grpc.insecure_channel(at(server)) as channel:
        try:
            if what == "health":
                stub = health_pb2_grpc.HealthStub(channel)
                stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            else:
                request = reflection_pb2.ServerReflectionRequest(list_services="")
                reflector = reflection_pb2_grpc.ServerReflectionStub(channel)
                next(reflector.ServerReflectionInfo(iter([request]), timeout=10))
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("opened", [(), ("health",), ("reflection",), ("health", "reflection")])
def test_health_and_reflection_need_a_token_unless_they_are_opened(
    tokens: Path, opened: tuple[str, ...]
) -> None:
    with served(token_file=tokens, without_token=opened) as server:
        for what in ("health", "reflection"):
            wanted = grpc.StatusCode.OK if what in opened else grpc.StatusCode.UNAUTHENTICATED
            assert _asks(server, what) == wanted


def test_a_call_of_no_service_is_let_in_no_more_than_others(tokens: Path) -> None:
    with served(token_file=tokens) as server, grpc.insecure_channel(at(server)) as channel:
        for method in ("/grpc.health.v1.Healthy/Check", "/x/y/z", "//"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_tokens_change_while_the_server_runs(
    tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = security.Tokens(ServerSettings(token_file=tokens))
    monkeypatch.setattr(security, "LOOK_AGAIN_S", 0.0)
    tokens.write_text("third\n")
    os.utime(tokens, ns=(1, 1))
    assert asked.known("Bearer third") and not asked.known("Bearer first")
    for damage in (lambda: tokens.write_text("# none\n"), tokens.unlink):
        damage()
        assert asked.known("Bearer third"), "what was known is known on"
    assert "tokens stay as they were" in caplog.text


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here listens on an address that others reach."""
    refuse = "embedcomp.serving.server._bind"
    monkeypatch.setattr(refuse, lambda *_: pytest.fail("it would have listened"))
    yield


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "scoring.example"])
def test_plain_text_for_others_has_to_be_asked_for(host: str, files: Files, anywhere: None) -> None:
    with pytest.raises(BadSettings, match=f"host {host} is open to other machines"):
        served(host=host)
    for said in ({"insecure": True}, files.shown()):
        security.refuse_open_door(ServerSettings(host=host, **said))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_may_talk_to_itself_in_plain_text(host: str) -> None:
    security.refuse_open_door(ServerSettings(host=host))


def test_files_that_are_of_no_use_are_named(files: Files, theirs: Files, tmp_path: Path) -> None:
    empty, missing = tmp_path / "empty", tmp_path / "missing"
    empty.write_text("")
    for changes, said in (
        ({"tls_cert": files.cert, "tls_key": theirs.key}, "are no certificate and its key"),
        ({"tls_cert": missing, "tls_key": files.key}, "missing cannot be read"),
        ({**files.shown(), "tls_client_ca": empty}, "empty holds no certificate"),
        ({"token_file": empty}, "empty has no token"),
        ({"token_file": missing}, "missing cannot be read"),
        ({"tls_cert": files.cert}, "go together"),
        ({"tls_client_ca": files.ca}, "of clients over TLS"),
        ({"without_token": ("metadata",)}, "without_token is 'metadata'"),
    ):
        with pytest.raises(BadSettings, match=said):
            served(**changes)
    with pytest.raises(BadSettings, match="cannot be read"):
        Client("127.0.0.1:1", ca=missing)
    with pytest.raises(BadSettings, match="has no token"):
        token_of(empty)
