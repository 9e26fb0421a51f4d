"""Two hosts: whatever becomes of a shard, a host or the link, no call has wrong scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hosts
from embedcomp.kernels import native

pytestmark = [
    pytest.mark.ray,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(native.library() is None, reason="the engine was not compiled"),
]


def test_calls_are_answered_whatever_fails_on_two_hosts(tmp_path: Path) -> None:
    if reason := hosts.reason_not_to():
        pytest.skip(reason)
    prepared = hosts.made_up(tmp_path)
    with hosts.Hosts(tmp_path) as two:
        story = hosts.Story(two, *prepared, deadline_ms=2000.0)
        story.tell()
    assert all(one["calls"] for one in story.stages)
    assert not any(one["wrong"] for one in story.stages), story.stages
    assert not any(one["failed"] for one in story.stages), story.stages
    versions = {one["stage"]: one["versions"] for one in story.stages}
    assert versions["a shard is added"] == [1]
    assert versions["a version is swapped"] == [1, 2]
    assert versions["a host is killed"] == versions["the link is cut"] == [2]
