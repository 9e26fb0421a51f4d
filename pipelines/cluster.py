"""Ray itself: connecting, and what may run where."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from embedcomp.errors import BadSettings, EmbedcompError
from embedcomp.recipes.settings import JobSettings

CONNECT_S = 5.0  # in which the head's port has to answer
ADDRESS, AUTH_MODE = "RAY_ADDRESS", "RAY_AUTH_MODE"
# Ray Train's workers log every library's chatter otherwise; a driver hands the variable on to them
QUIET = {"RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0"}
# what costs seconds at the start of each training and says nothing on a machine of one's own
LOCAL = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}


@contextmanager
def connected() -> Iterator[None]:
    """Within the block, Ray: the cluster at RAY_ADDRESS (which the Job API sets), or a local one.

    Raises:
        EmbedcompError: nothing answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    try:
        _start()
    except ConnectionError as error:
        raise EmbedcompError(
            f"no Ray cluster answers at {ADDRESS}={os.environ.get(ADDRESS)}; "
            "start it, or unset the variable to run on this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def joined(address: str, namespace: str) -> Iterator[None]:
    """Within the block, the cluster whose head is at HOST:PORT, as `ray start` says it.

    Raises:
        EmbedcompError: no Ray answers there.
    """
    if ray.is_initialized():
        yield
        return
    absent = EmbedcompError(
        f"no Ray cluster answers at {address}; give HOST:PORT of its head as `ray start` takes it "
        "(6379 is the usual port), on a machine that is one of its nodes"
    )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise absent
    try:  # Ray itself would wait for minutes
        socket.create_connection((host, int(port)), CONNECT_S).close()
        os.environ.setdefault(AUTH_MODE, "disabled")  # as in _start
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, OverflowError) as error:
        raise absent from error
    try:
        yield
    finally:
        ray.shutdown()


def _start() -> None:
    local = ADDRESS not in os.environ
    for name, value in (QUIET | LOCAL if local else QUIET).items():
        os.environ.setdefault(name, value)
    if local:  # also where another cluster runs on this machine, or ran there and left its address
        ray.init("local", include_dashboard=True, _node_ip_address="127.0.0.1")
        return
    # without it, a token that lies about on this machine would turn authentication on in the
    # driver alone; a cluster that uses tokens sets the mode for its drivers
    os.environ.setdefault(AUTH_MODE, "disabled")
    ray.init()


def refuse_unshared(settings: JobSettings) -> None:
    """Raise BadSettings where tasks on other nodes could not see the folder that a job works in."""
    nodes = len(_node_cpus())
    if nodes > 1 and not settings.work:
        raise BadSettings(
            f"out is {settings.out}, and the cluster has {nodes} nodes; give work=FOLDER as well, "
            "on storage that all of them share, in which the steps are made"
        )


def cpus() -> int:
    """CPUs of the whole cluster, used or not."""
    return sum(_node_cpus())


def cpus_of_each(workers: int) -> int:
    """The most CPUs that each of `workers` can have at once, none of them spread over two nodes.

    Raises:
        BadSettings: the cluster has fewer CPUs than workers, who would wait for each other.
    """
    share = largest_share(_node_cpus(), workers)
    if not share:
        raise BadSettings(
            f"workers is {workers}, but the cluster has {cpus()} CPUs now; "
            "add nodes first or ask for fewer workers"
        )
    return share


def largest_share(nodes: list[int], workers: int) -> int:
    """The largest c such that `workers` shares of c CPUs fit on nodes of these numbers of CPUs."""
    shares = range(max(nodes, default=0), 0, -1)
    return next((c for c in shares if sum(node // c for node in nodes) >= workers), 0)


def _node_cpus() -> list[int]:
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
