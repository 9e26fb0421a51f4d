"""Stop a server so that every call it has taken is answered.

gRPC's own stop cancels the calls that clients send before they learn of it. So the server first
stops listening, and answers on until its clients have gone: connections are asked to close after a
while anyway (max_connection_age), which loses none of their calls.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

FAMILIES = socket.AF_INET, socket.AF_INET6
QUIET_S = 0.3  # without a call, after which nobody is taken to be about to send one
LOOK_AGAIN_S = 0.02


def wait_for_clients(port: int, most_s: float, calls: Callable[[], int]) -> None:
    """Take no new connection on a port of this process; wait until the others are gone or quiet.

    Where sockets cannot be looked at, as without /proc, it does not wait.

    Args:
        most_s: longest that it takes.
        calls: how many have come so far.
    """
    stop_listening(port)
    until, seen, since = time.monotonic() + most_s, calls(), time.monotonic()
    while connections(port) and time.monotonic() < until:
        if calls() != seen:
            seen, since = calls(), time.monotonic()
        elif time.monotonic() - since > QUIET_S:
            return
        time.sleep(LOOK_AGAIN_S)


def stop_listening(port: int) -> None:
    """Refuse new connections on a port of this process; those that are there stay."""
    for one in _sockets(port):
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def connections(port: int) -> int:
    """Connections that others have to a port of this process."""
    listening = socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    return sum(not one.getsockopt(*listening) and _has_peer(one) for one in _sockets(port))


def _sockets(port: int) -> Iterator[socket.socket]:
    """The process's own TCP sockets at a port, each of them closed again afterwards."""
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # closed meanwhile
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if one.family in FAMILIES and one.getsockname()[1] == port:
                        yield one


def _has_peer(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:
        return False
    return True
