"""Small logs with known content, made once a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedcomp.engine import calibrate
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.log.synth import synth

SCHEMA = """\
label = "label"
[splits]
train = "train.parquet"
[categorical]
user = { side = "user" }
item = {}
tags = {}
[dense]
price = { transform = "log1p" }
"""

COLUMNS = {
    "label": [1, 0, 0, 1],
    "user": ["a", "b", "a", None],
    "item": [7, 8, 7, 7],
    "tags": [["x", "y"], [], None, ["x"]],
    "price": [0.0, 3.0, None, -3.0],
}

LONG = (  # files of tests that take more than about ten seconds, so that no worker ends with one
    "cli/test_commands.py",
    "cli/test_students.py",
    "planning/test_grouping.py",
    "planning/test_latency.py",
    "planning/test_plan.py",
    "methods/test_contract.py",
    "methods/test_tiers.py",
    "models/test_every_model.py",
    "scorer/test_stand_alone.py",
    "scorer/test_compiled.py",
    "scorer/test_random_inputs.py",
    "tests/test_artifact.py",
    "tests/test_inplace.py",
    "tests/test_torch_rechub.py",
    "train/test_search.py",
    "train/test_train.py",
    "train/test_workers.py",
)

WriteLog = Callable[..., Path]

torch.set_num_threads(1)  # the models here are small; a second thread costs more than it brings


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers take whole files, whose tests share what they train; long ones first.

    Files may have a group of several; those with Ray, which takes longest to start, are one. Of
    tests that are sampled, all but every so many are slow.
    """
    seen: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is not None and item.get_closest_marker("matrix") is None:
            name = item.nodeid.partition("[")[0]
            if seen[name] % sampled.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1
    ray = {item for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: (item not in ray, not str(item.path).endswith(LONG)))
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            group = "ray" if item in ray else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def write_log(tmp_path: Path) -> WriteLog:
    """Writes a log of four rows, with columns or the schema changed as asked."""

    def write(schema: str = SCHEMA, **changes: object) -> Path:
        columns = {name: values for name, values in {**COLUMNS, **changes}.items() if values}
        pq.write_table(pa.table(columns), tmp_path / "train.parquet")
        (tmp_path / "schema.toml").write_text(schema)
        return tmp_path

    return write


@pytest.fixture(scope="session")
def synth_log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """A made-up log of 12,000 rows."""
    folder = tmp_path_factory.mktemp("synth") / "log"
    synth(folder, 12_000, seed=1)
    return ClickLog(str(folder))


@pytest.fixture(scope="session")
def synth_features(synth_log: ClickLog) -> Features:
    return Features.from_counts(synth_log, count(synth_log, synth_log.pieces("train")), 2)


@pytest.fixture
def even_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A calibration, kept nowhere, that finds what busy cores do not change.

    Every unit of work takes a nanosecond, so a budget can be kept each time or never.
    """

    def timed() -> list[calibrate.Timed]:
        return [
            calibrate.Timed(case.counts, 1e-3 * sum(case.counts.values()))
            for case in calibrate._cases()
        ]

    monkeypatch.setattr(calibrate, "timed", timed)
    monkeypatch.setattr("embedcomp.recipes.in_time.SECONDS", 0.1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
