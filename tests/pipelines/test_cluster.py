"""Which Ray a command runs on."""

from __future__ import annotations

import os

import pytest
import ray

from embedcomp.pipelines.cluster import ADDRESS, connected


def test_without_an_address_ray_runs_here_whatever_clusters_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[tuple[str, ...]] = []
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *address, **_: begun.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with connected():
        pass
    environment[ADDRESS] = "10.0.0.1:6379"
    with connected():
        pass
    assert begun == [("local",), ()]
