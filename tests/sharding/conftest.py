"""Slots are many small files, which tests need not have on the disk at once."""

from __future__ import annotations

import os

import pytest

from embedcomp.artifact.artifact import Artifact
from tests.sharding import cases


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model whose tables are cut."""
    folder = tmp_path_factory.mktemp("cut")
    whole = cases.save(cases.model("row_int8"), folder / "whole", cases.inputs(4))
    return cases.cut(whole, folder / "cut")
