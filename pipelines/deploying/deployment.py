"""Shards and fronts brought up, moved and taken down on a Ray cluster, from a machine of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import ray
from ray.util import get_placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from embedcomp.artifact.artifact import version_folder
from embedcomp.errors import BadArtifact, BadSettings, EmbedcompError
from embedcomp.pipelines.deploying import names as naming
from embedcomp.pipelines.deploying.actors import Front, Shard
from embedcomp.pipelines.deploying.asking import Name, Silent, Told, asked, deployed
from embedcomp.pipelines.deploying.names import NAMESPACE, FrontName, ShardName
from embedcomp.pipelines.deploying.settings import DeploySettings, of_shards
from embedcomp.serving.settings import ServerSettings
from embedcomp.sharding.cutting import Cutting, in_words

PLACED_S = 30.0  # in which Ray has a place for what fits its hosts
DRAINED_S = 30.0  # that old shards wait for calls to end, which have milliseconds themselves
LASTING_S = (
    4.0  # after which what keeps something from serving is taken to stay; it tries each second
)
CLOSED_S = 30.0  # in which ports are closed once their processes have ended
LOOK_S = 0.2

Tell = Callable[[str], None]


class NotDeployed(EmbedcompError):
    """What was to be deployed is not, or not as it was asked for."""


def deploy(
    path: Path,
    settings: DeploySettings,
    server: ServerSettings,
    precision: str | None,
    tell: Tell,
) -> None:
    """Have Ray serve an artifact that is cut; where it does so already, by other shards.

    New shards are up before fronts ask them, a front goes over at once with what it serves, and old
    shards end when nobody asks them any more. No call fails.

    Raises:
        BadArtifact: it cannot be read, or is not cut.
        BadSettings: other things are deployed by that name, or ports or addresses do not fit.
        NotDeployed: no place is left, or a shard or front cannot serve.
    """
    path = path.absolute()
    model = _model_of(path)
    of_shards(server, settings.host or "0.0.0.0").refuse_open_door()
    hosts = _hosts(settings.cpus)
    settings.refuse_ports(server, hosts)
    before = naming.generations(n for n in deployed(model) if isinstance(n, ShardName))
    fronts = [FrontName(model, number) for number in range(settings.fronts)]
    _refuse_others(path, model, before, fronts, settings, server)
    if max(settings.replicas, settings.fronts) > hosts:
        tell(
            f"Ray has {hosts} hosts with {settings.cpus:g} free CPUs or more in all, so some hold "
            f"several of the {settings.replicas} replicas or {settings.fronts} fronts"
        )
    number = max(before, default=0) + 1
    shards = naming.generation(model, number, settings.shards, settings.replicas)
    until = time.monotonic() + settings.wait_s
    try:
        for group in dict.fromkeys(name.group for name in shards):
            _place(group, settings.replicas, settings.cpus, hosts)
        for name in shards:
            of_shard = name, str(path), settings.host, server
            _start(name, Shard, *of_shard, cpus=settings.cpus)
        _wait(shards, until, lambda told: told.address is not None)
        tell(f"{len(shards)} shards are up")
        if not before:
            _place(fronts[0].group, len(fronts), settings.cpus, hosts)
            for front in fronts:
                of_front = front, str(path), settings.host, server, precision
                _start(front, Front, *of_front, cpus=settings.cpus)
        told = _wait(fronts, until, lambda told: told.generation == number)
    except BaseException:  # an interrupt too
        if not before:
            _remove(deployed(model), model)
        elif not _all_up(shards):  # else fronts may ask them already
            _remove(shards, f"{model}/{number}")
        raise
    old = [name for names in before.values() for name in names]
    _drain(old)
    for one in before:
        _remove(before[one], f"{model}/{one}")
    for serving, here in told.items():
        versions = ", ".join(map(str, here.versions))
        metrics = f"; metrics and JSON on {here.metrics}" if here.metrics else ""
        tell(f"{serving.what} serves {model} version {versions} on {here.address}{metrics}")


def status(model: str | None) -> dict[str, Any]:
    """Every shard and front: where it is, what it holds, and whether it answers.

    Raises:
        NotDeployed: nothing of that name is deployed.
    """
    names = deployed(model)
    if not names:
        raise _absent(model)
    told = asked(names)
    return {"servers": [_status(name, told[name]) for name in names]}


def down(model: str | None, tell: Tell) -> None:
    """End a model's fronts, which finish their calls, and then its shards; wait until ports are
    closed.

    Args:
        model: None: the only one that is deployed.

    Raises:
        NotDeployed: there is none, or several and none was named, or a port stays open.
    """
    models = sorted({name.model for name in deployed()})
    if model is None and len(models) == 1:
        (model,) = models
    if model is None and models:
        raise NotDeployed(f"{' and '.join(models)} are deployed; name the one that is to end")
    if model is None or model not in models:
        raise _absent(model)
    names = deployed(model)
    told = asked(names)
    open_ports = [one.address for one in told.values() if isinstance(one, Told) and one.address]
    stops: list[Any] = [
        ray.get_actor(str(name), namespace=NAMESPACE).stop.remote()
        for name, one in told.items()
        if isinstance(name, FrontName) and isinstance(one, Told)
    ]
    graces = [
        one.settings.grace_s for one in told.values() if isinstance(one, Told) and one.settings
    ]
    if stops:
        ray.wait(stops, num_returns=len(stops), timeout=max(graces) + CLOSED_S)
    _remove(names, model)
    _wait_closed(open_ports)
    tell(f"{model} is down: {len(names)} shards and fronts have ended")


def _model_of(path: Path) -> str:
    """The model's name. Raises BadArtifact where there is none, or it is not cut."""
    folder = version_folder(path)
    if Cutting.of(folder) is None:
        raise BadArtifact(
            f"{folder} is whole, and shards hold slots; cut it first: embedcomp cut {path} --out "
            "FOLDER, on storage that all hosts of the cluster reach by the same path"
        )
    return folder.parent.name


def _hosts(cpus: float) -> int:
    """Hosts on which Ray can place something that takes so many CPUs."""
    found = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= cpus]
    if not found:
        raise NotDeployed(
            f"no host of the cluster has {cpus:g} CPUs for a shard; give less with --cpus"
        )
    return len(found)


def _refuse_others(
    path: Path,
    model: str,
    before: dict[int, list[ShardName]],
    fronts: Sequence[FrontName],
    settings: DeploySettings,
    server: ServerSettings,
) -> None:
    """Raises BadSettings where what is deployed by that name is not this, or is just this."""
    if not before:
        return
    end = f"end it first: embedcomp deploy down {model}"
    there = [name for name in deployed(model) if isinstance(name, FrontName)]
    if there != list(fronts):
        raise BadSettings(
            f"{model} is deployed with {len(there)} fronts, and {len(fronts)} are asked for; give "
            f"--fronts {len(there)}, or {end}"
        )
    for told in asked(there).values():
        if not isinstance(told, Told):
            continue
        if told.path != str(path):
            raise BadSettings(f"{model} is deployed from {told.path}, not from {path}; {end}")
        assert told.settings is not None
        pairs = ((f.name, getattr(told.settings, f.name)) for f in fields(server))
        other = [name for name, value in pairs if getattr(server, name) != value]
        if other:
            raise BadSettings(
                f"{model} is deployed with another {other[0]}, "
                f"{getattr(told.settings, other[0])}; give the same, or {end}"
            )
    latest = before[max(before)]
    same = naming.generation(model, max(before), settings.shards, settings.replicas)
    if latest == list(same):
        raise BadSettings(
            f"{model} is deployed already, with {settings.shards} shards and {settings.replicas} "
            f"replicas; give other numbers, or {end}"
        )


def _place(group: str, number: int, cpus: float, hosts: int) -> None:
    """Have Ray keep CPUs for so many actors, each on a host of its own where there are so many."""
    placed = placement_group(
        [{"CPU": cpus}] * number,
        "STRICT_SPREAD" if number <= hosts else "SPREAD",
        name=group,
        lifetime="detached",
    )
    if not placed.wait(PLACED_S):
        raise NotDeployed(
            f"Ray has no place for {number} times {cpus:g} CPUs on {min(number, hosts)} hosts; add "
            "hosts, or give fewer replicas or less with --cpus"
        )


def _start(name: Name, actor: type[Any], *given: Any, cpus: float) -> None:
    number = name.replica if isinstance(name, ShardName) else name.number
    placed = PlacementGroupSchedulingStrategy(get_placement_group(name.group), number)
    ray.remote(actor).options(
        name=str(name),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=4,  # who is asked what it is answers also while it stops
        num_cpus=cpus,
        scheduling_strategy=placed,
    ).remote(*given)


def _wait(names: Sequence[Name], until: float, ready: Callable[[Told], bool]) -> dict[Name, Told]:
    """What all tell, once they are ready."""
    since: dict[tuple[Name, str], float] = {}
    while True:
        told = asked(names)
        found = {name: one for name, one in told.items() if isinstance(one, Told) and ready(one)}
        if len(found) == len(names):
            return found
        late = time.monotonic() > until
        for name, one in told.items():
            if name in found:
                continue
            if isinstance(one, Silent) and one.dead:
                raise NotDeployed(f"{name.what} of {name.model} cannot start: {one.why}")
            begun = since.setdefault((name, one.why), time.monotonic())
            if isinstance(one, Told) and one.why and time.monotonic() - begun > LASTING_S:
                raise NotDeployed(f"{name.what} of {name.model}, host {one.host}: {one.why}")
            if late:
                raise NotDeployed(
                    f"{name.what} of {name.model} is not ready in time: "
                    f"{one.why or 'it still opens what it serves'}; give more with --wait-s"
                )
        time.sleep(LOOK_S)


def _all_up(shards: Sequence[ShardName]) -> bool:
    told = asked(shards).values()
    return all(isinstance(one, Told) and one.address is not None for one in told)


def _drain(shards: Sequence[ShardName]) -> None:
    """Wait until no front has a stream to these shards."""
    until = time.monotonic() + DRAINED_S
    while time.monotonic() < until:
        told = asked(shards).values()
        if not any(one.streams for one in told if isinstance(one, Told)):
            return
        time.sleep(LOOK_S)


def _remove(names: Iterable[Name], groups: str) -> None:
    """End actors for good, and the placement groups whose names begin so; free their names."""
    ended = set(names)
    for name in ended:
        with suppress(ValueError):  # it has ended by itself
            ray.kill(ray.get_actor(str(name), namespace=NAMESPACE), no_restart=True)
    for group in _groups(groups):
        remove_placement_group(group)
    until = time.monotonic() + CLOSED_S
    while ended & set(deployed()) and time.monotonic() < until:
        time.sleep(LOOK_S)


def _groups(begin: str) -> list[PlacementGroup]:
    found = (one for one in placement_group_table().values() if one["state"] != "REMOVED")
    names = [one["name"] for one in found if one["name"].startswith(f"{begin}/")]
    return [get_placement_group(name) for name in names]


def _wait_closed(addresses: Sequence[str]) -> None:
    until = time.monotonic() + CLOSED_S
    while still := [address for address in addresses if _answers(address)]:
        if time.monotonic() > until:
            raise NotDeployed(
                f"{', '.join(still)} still answers {CLOSED_S:.0f} s after its process was ended; "
                "look who else listens there"
            )
        time.sleep(LOOK_S)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    return True


def _status(name: Name, told: Told | Silent) -> dict[str, Any]:
    here = told if isinstance(told, Told) else None
    return {
        "model": name.model,
        "what": name.what,
        "host": here and here.host,
        "pid": here and here.pid,
        "address": here and here.address,
        "metrics": here and here.metrics,
        "slots": in_words(name.slots) if isinstance(name, ShardName) else None,
        "versions": list(here.versions) if here else [],
        "generation": name.generation if isinstance(name, ShardName) else here and here.generation,
        "alive": here is not None and here.address is not None,
        "why": told.why,
    }


def _absent(model: str | None) -> NotDeployed:
    there = sorted({name.model for name in deployed()})
    what = "nothing" if model is None else f"no model {model!r}"
    only = f", only {' and '.join(there)}" if there else ""
    return NotDeployed(f"{what} is deployed on this cluster{only}")
