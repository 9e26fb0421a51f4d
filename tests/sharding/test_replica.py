"""A shard as a front sees it."""

from __future__ import annotations

import threading
from typing import Any

from pyarrow import flight

from embedcomp.serving.shards.replica import Asked, Stream

LONG_S = 30.0  # in which whatever does not hang has ended


class Silent(flight.FlightServerBase):
    """Takes streams and never ends them by itself."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.began, self.ends = threading.Event(), threading.Event()

    def do_exchange(self, *_: Any) -> None:
        self.began.set()
        self.ends.wait(2 * LONG_S)


def test_a_stream_to_a_shard_that_hangs_is_let_go_at_once() -> None:
    with Silent() as server:
        client = flight.connect(f"grpc://127.0.0.1:{server.port}")
        streams = [Stream(client, Asked("clicks", 1, "digest"))]
        assert server.began.wait(LONG_S)
        dropping = threading.Thread(target=streams.clear, daemon=True)
        dropping.start()
        dropping.join(LONG_S)
        hung = dropping.is_alive()
        server.ends.set()
        client.close()
    assert not hung
