"""Rows over TLS: fronts know their shards, shards their fronts, and nothing else gets in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedcomp.artifact.artifact import Artifact
from embedcomp.cli.main import app
from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.pipelines.deploying.settings import of_shards
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.connection import Kind, asked, reach
from embedcomp.serving.shards.rows import finds
from embedcomp.serving.shards.server import ShardServer, Versions
from embedcomp.serving.shards.settings import ShardSettings
from tests.serving.certificates import Files
from tests.sharding import cases

LONG_S = 30.0
pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")
Serve = Callable[..., ShardServer]


@pytest.fixture
def serve(made: Artifact) -> Iterator[Serve]:
    """Serves all slots with some settings."""
    servers = []

    def served(**settings: Any) -> ShardServer:
        held = Versions(made.folder, range(256))
        servers.append(ShardServer(held, ShardSettings(**{"port": 0, **settings})))
        return servers[-1]

    yield served
    for server in servers:
        server.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "shard")


@pytest.fixture
def theirs(tmp_path: Path) -> Files:
    """Those of the front."""
    return Files(tmp_path / "front")


def front(made: Artifact, shard: ShardServer, **settings: Any) -> Scorer:
    of_front = ServerSettings(
        shards=(f"127.0.0.1:{shard.port}",), shard_deadline_ms=5_000, **settings
    )
    return Scorer(made, shards=finds(of_front))


def test_rows_over_tls_are_those_in_plain_text(made: Artifact, serve: Serve, files: Files) -> None:
    given = cases.inputs(300)
    plain = front(made, serve()).score(given)
    over_tls = front(made, serve(**files.shown()), shard_tls_ca=files.ca).score(given)
    np.testing.assert_array_equal(over_tls, plain)


@pytest.mark.slow
def test_who_is_not_known_gets_no_rows(
    made: Artifact, serve: Serve, files: Files, theirs: Files
) -> None:
    shard = serve(**files.shown(), tls_client_ca=theirs.ca)
    shown = {"shard_tls_cert": theirs.cert, "shard_tls_key": theirs.key}
    front(made, shard, shard_tls_ca=files.ca, **shown).score(cases.inputs(5))
    for settings in (
        {"shard_tls_ca": files.ca},  # it shows nothing
        {"shard_tls_ca": files.ca, "shard_tls_cert": files.cert, "shard_tls_key": files.key},
        {"shard_tls_ca": theirs.ca, **shown},  # it does not know the shard
        {},
    ):
        with pytest.raises(BadSettings, match="of no shard that answers"):
            front(made, shard, **settings)
    with pytest.raises(BadSettings, match="of no shard that answers"):
        front(made, serve(), shard_tls_ca=files.ca)  # a shard in plain text
    connection = reach(f"127.0.0.1:{shard.port}", time.monotonic() + LONG_S)
    with pytest.raises(OSError):
        asked(connection, Kind.DESCRIBE, b"", time.monotonic() + LONG_S)
    connection.close()


def test_certificates_of_shards_are_renewed_while_they_serve(
    made: Artifact, serve: Serve, files: Files, tmp_path: Path
) -> None:
    shard = serve(**files.shown())
    ca = tmp_path / "ca"
    ca.write_bytes(files.ca.read_bytes())
    scorer = front(made, shard, shard_tls_ca=ca)
    wanted = scorer.score(cases.inputs(5))
    other = Files(tmp_path / "other")
    files.renew(other.authority)
    np.testing.assert_array_equal(scorer.score(cases.inputs(5)), wanted)  # over what was opened
    with pytest.raises(BadSettings, match="certificate verify failed"):
        front(made, shard, shard_tls_ca=ca)
    ca.write_bytes(other.ca.read_bytes())
    again = front(made, shard, shard_tls_ca=ca)
    np.testing.assert_array_equal(again.score(cases.inputs(5)), wanted)


def test_what_does_not_go_together_is_told(tmp_path: Path, files: Files) -> None:
    for settings, why in (
        ({"shard_tls_cert": files.cert}, "give shard_tls_cert and shard_tls_key"),
        ({"shard_tls_cert": files.cert, "shard_tls_key": files.key}, "give shard_tls_ca too"),
    ):
        with pytest.raises(BadSettings, match=why):
            ServerSettings(**settings)
    with pytest.raises(BadSettings, match="go together"):
        ShardSettings(tls_cert=files.cert)
    with pytest.raises(BadSettings, match="give --tls-cert and --tls-key"):
        ShardSettings(host="0.0.0.0").refuse_open_door()
    ShardSettings(host="0.0.0.0", **files.shown()).refuse_open_door()
    told = CliRunner().invoke(app, ["serve", str(tmp_path), "--shard-tls-ca", str(files.ca)])
    assert isinstance(told.exception, BadSettings) and "give --shards too" in str(told.exception)


def test_deployed_shards_show_what_fronts_show(files: Files, theirs: Files) -> None:
    plain = of_shards(ServerSettings(insecure=True, lookups="engine"), "0.0.0.0")
    assert plain == ShardSettings(host="0.0.0.0", port=0, lookups="engine", insecure=True)
    with pytest.raises(BadSettings, match="give tls_cert and tls_key too"):
        of_shards(ServerSettings(shard_tls_ca=files.ca), "0.0.0.0")
    one_way = of_shards(ServerSettings(shard_tls_ca=files.ca, **files.shown()), "0.0.0.0")
    assert (one_way.tls_cert, one_way.tls_client_ca) == (files.cert, None)
    both = of_shards(
        ServerSettings(
            shard_tls_ca=files.ca,
            shard_tls_cert=theirs.cert,
            shard_tls_key=theirs.key,
            **files.shown(),
        ),
        "0.0.0.0",
    )
    assert both.tls_client_ca == files.ca


def test_a_file_that_is_no_certificate_is_told_at_once(
    made: Artifact, serve: Serve, files: Files, tmp_path: Path
) -> None:
    shard = serve()
    (tmp_path / "none").write_text("nothing")
    with pytest.raises(BadSettings, match="holds no certificate"):
        front(made, shard, shard_tls_ca=tmp_path / "none")
    with pytest.raises(BadSettings, match=r"missing cannot be read"):
        front(made, shard, shard_tls_ca=tmp_path / "missing")
    with pytest.raises(BadSettings, match="no certificate and its key"):
        front(
            made,
            shard,
            shard_tls_ca=files.ca,
            shard_tls_cert=tmp_path / "none",
            shard_tls_key=files.key,
        )
    with pytest.raises(BadSettings):
        serve(tls_cert=tmp_path / "none", tls_key=files.key)
