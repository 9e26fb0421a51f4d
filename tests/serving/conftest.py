"""A small model and a server of it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

ROOT = Path(__file__).parents[2]
runpy.run_path(str(ROOT / "proto" / "build.py"))["build"]()

from toy_scorer import ToyScorer  # noqa: E402

from embedcomp.serving.client import Client  # noqa: E402
from embedcomp.serving.models import Models  # noqa: E402
from embedcomp.serving.server import ScoringServer  # noqa: E402
from embedcomp.serving.settings import ServerSettings  # noqa: E402


@pytest.fixture
def scorer() -> ToyScorer:
    return ToyScorer()


@pytest.fixture
def server(scorer: ToyScorer) -> Iterator[ScoringServer]:
    settings = ServerSettings(port=0, max_rows=100, max_ids=1000)
    with ScoringServer(Models.of(settings, scorer), settings) as running:
        yield running


@pytest.fixture
def target(server: ScoringServer) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target) as connected:
        yield connected


@pytest.fixture
def columns() -> dict[str, pa.Array]:
    """Three candidates with a value of every type, a null of every type and unknown ids."""
    return {
        "user_id": pa.array([10, None, 999]),
        "city": pa.array(["Zürich", "nowhere", None]),
        "genres": pa.array([[1, 2, None], [], None], pa.list_(pa.int64())),
        "tags": pa.array([None, ["a", "b"], ["never seen"]], pa.list_(pa.string())),
        "age": pa.array([31.5, None, float("nan")], pa.float32()),
        "price": pa.array([7, 0, None], pa.int64()),
    }


@pytest.fixture
def items(columns: dict[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


@pytest.fixture
def serve_slowly(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[float], tuple[subprocess.Popen[str], str]]:
    """Starts toy_scorer.py as a program; gives the process and its address."""

    def start(seconds: float) -> tuple[subprocess.Popen[str], str]:
        here, place = Path(__file__).parent, tmp_path / "toy" / "7"
        place.mkdir(parents=True)
        process = subprocess.Popen(
            [sys.executable, str(here / "toy_scorer.py"), str(seconds), str(place)],
            env=os.environ | {"PYTHONPATH": str(here.parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        request.addfinalizer(process.kill)
        return process, process.stdout.readline().split()[-1]

    return start
