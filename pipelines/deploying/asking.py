"""What is deployed, as Ray lists it and as actors themselves tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util import list_named_actors

from embedcomp.pipelines.deploying.names import NAMESPACE, FrontName, ShardName, read
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.replica import ShardFailed, Where

ASK_S = 2.0  # that an actor has to tell what it is
Name = ShardName | FrontName


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a shard or a front says of itself.

    address: HOST:PORT; None: it does not serve yet.
    why: what keeps it from serving, or from following newer shards; empty: nothing.
    path: of what it serves.
    versions: of the model that are open, the one that answers first.
    streams: of fronts, that are open to a shard.
    generation: of the shards that a front asks.
    """

    host: str
    pid: int
    address: str | None
    why: str
    path: str
    versions: tuple[int, ...] = ()
    streams: int = 0
    generation: int | None = None
    metrics: str | None = None
    settings: ServerSettings | None = None


@dataclass(frozen=True)
class Silent:
    """An actor that tells nothing.

    dead: Ray does not start it again.
    """

    why: str
    dead: bool


def deployed(model: str | None = None) -> list[Name]:
    """Names of all actors, of a model or of all, in order."""
    names = (read(one["name"]) for one in list_named_actors(True) if one["namespace"] == NAMESPACE)
    found = [name for name in names if name is not None and model in (None, name.model)]
    return sorted(found, key=lambda name: (name.model, isinstance(name, ShardName), str(name)))


def shards_of(model: str) -> list[ShardName]:
    """Names of a model's shards, of all generations."""
    return [name for name in deployed(model) if isinstance(name, ShardName)]


def where(name: ShardName) -> Where:
    """What finds a shard, for serving/shards."""
    return partial(_found, name)


def _found(name: ShardName) -> str:
    told = asked([name])[name]
    if isinstance(told, Told) and told.address is not None:
        return told.address
    raise ShardFailed(f"{name.what} of {name.model} is not to be found: {told.why or 'it starts'}")


def asked(names: Iterable[Name], seconds: float = ASK_S) -> Mapping[Name, Told | Silent]:
    """What actors tell, all of which are asked at the same time."""
    asking: dict[Name, ray.ObjectRef] = {}
    found: dict[Name, Told | Silent] = {}
    for name in names:
        try:
            asking[name] = ray.get_actor(str(name), namespace=NAMESPACE).told.remote()
        except ValueError:
            found[name] = Silent("Ray does not know it", True)
    if asking:
        ray.wait(list(asking.values()), num_returns=len(asking), timeout=seconds)
    for name, reference in asking.items():
        try:
            found[name] = ray.get(reference, timeout=0)
        except ActorDiedError as error:
            found[name] = Silent(_reason(error), True)
        except RayError as error:  # it is started again, or cannot be reached
            found[name] = Silent(_reason(error), False)
    return found


def _reason(error: RayError) -> str:
    """The sentence in what Ray says of an actor that does not answer."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("No module named 'embedcomp" in line for line in lines):
        return "embedcomp is not installed in the Python that runs Ray on its host"
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return "it does not answer"
    return lines[0] if lines else type(error).__name__
