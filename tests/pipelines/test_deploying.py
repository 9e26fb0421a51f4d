"""What names of a deployment say, and which shards a front asks."""

from __future__ import annotations

import pytest

from embedcomp.errors import BadSettings
from embedcomp.pipelines.deploying.names import (
    FrontName,
    ShardName,
    chosen,
    generation,
    generations,
    read,
)
from embedcomp.pipelines.deploying.settings import DeploySettings
from embedcomp.serving.settings import ServerSettings

OLD, NEW = generation("clicks", 1, 2, 2), generation("clicks", 2, 3, 2)


@pytest.mark.parametrize("name", [*OLD, FrontName("clicks", 3), ShardName("a-b.c", 12, 3, 40, 5)])
def test_names_are_read_as_they_are_written(name: ShardName | FrontName) -> None:
    assert read(str(name)) == name
    assert str(name).startswith(f"{name.group}/")


@pytest.mark.parametrize("name", ["", "clicks", "a/b/front/1", "clicks/1/shard/0/0", "x/front/y"])
def test_names_of_others_are_left_alone(name: str) -> None:
    assert read(name) is None


def test_a_generation_has_all_slots_as_often_as_there_are_replicas() -> None:
    slots = [slot for name in NEW for slot in name.slots]
    assert sorted(slots) == sorted(2 * list(range(256)))


def test_a_front_goes_over_once_all_of_the_newer_shards_are_ready() -> None:
    both = generations([*OLD, *NEW])
    assert chosen(both, [*OLD, *NEW[:-1]], 1) == 1
    assert chosen(both, [*OLD, *NEW], 1) == 2
    assert chosen(both, NEW, 1) == 2


def test_a_front_stays_with_its_shards_while_they_are_there() -> None:
    both = generations([*OLD, *NEW])
    assert chosen(both, OLD, 2) == 2
    assert chosen(generations(OLD), OLD, 2) == 1
    assert chosen(generations(OLD), [], 1) == 1


def test_a_front_that_begins_takes_what_has_all_slots() -> None:
    both = generations([*OLD, *NEW])
    assert chosen(both, [*OLD, *NEW], None) == 2
    assert chosen(both, [*OLD[::2], *NEW[::2]], None) == 1
    assert chosen(both, [OLD[0], OLD[1], *NEW[::2]], None) == 2
    assert chosen(both, [OLD[0], *NEW[:4]], None) is None
    assert chosen({}, [], None) is None


def test_fronts_of_one_host_cannot_share_a_port() -> None:
    two = DeploySettings(fronts=2)
    two.refuse_ports(ServerSettings(port=50051), 2)
    two.refuse_ports(ServerSettings(port=0), 1)
    with pytest.raises(BadSettings, match=r"fronts is 2, but Ray has 1 hosts.* port 50051; give"):
        two.refuse_ports(ServerSettings(port=50051), 1)
    with pytest.raises(BadSettings, match="metrics_port 9090"):
        two.refuse_ports(ServerSettings(port=0, metrics_port=9090), 1)


def test_more_shards_than_slots_are_refused() -> None:
    with pytest.raises(BadSettings, match="shards is 257, but there are 256 slots"):
        DeploySettings(shards=257)
    with pytest.raises(BadSettings, match="replicas is 0, but must be 1 or more"):
        DeploySettings(replicas=0)
