"""One local Ray and one small log, in many row groups, for every test of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from embedcomp.log.click_log import ClickLog
from embedcomp.pipelines.cluster import AUTH_MODE, LOCAL, QUIET

ROOT = Path(__file__).parents[2]
GROUP_ROWS = 1200

JOB = """\
log = "{log}"
out = "{out}"
model_settings = {{ width = 4, hidden = [16, 8], cross_layers = 1 }}

[train]
epochs = 3
batch_rows = 256
patience = 9
checkpoint_rows = 1024

[compress]
budget = "2x"
methods = ["row_int8", "half", "drop_rare"]
tune = {{ epochs = 1, batch_rows = 512 }}
"""


# Training is looked at every two seconds otherwise, and what it reports waits for that; tests run
# beside these, to which workers would yield, and processes that start slowly are given up.
BESIDE_OTHERS = {
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_worker_register_timeout_seconds": "600",
}


@pytest.fixture(scope="package")
def cluster() -> Iterator[str]:
    """Ray on two CPUs with its dashboard; gives the dashboard's address."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {AUTH_MODE: "disabled", **QUIET, **LOCAL, **BESIDE_OTHERS}.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # for drivers that Ray starts
        patch.setenv("OMP_NUM_THREADS", "1")  # so that sums have one order everywhere
        started = ray.init(
            "local", num_cpus=2, include_dashboard=True, _node_ip_address="127.0.0.1"
        )
        yield f"http://{started.dashboard_url}"
        ray.shutdown()


@pytest.fixture(scope="session")
def pieces_log(synth_log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """The made-up log of 12,000 rows with eight row groups in its training split."""
    folder = tmp_path_factory.mktemp("pieces")
    shutil.copy(Path(synth_log.path) / "schema.toml", folder)
    for split in ("train", "valid", "test"):
        rows = pq.read_table(Path(synth_log.path) / f"{split}.parquet")
        pq.write_table(rows, folder / f"{split}.parquet", row_group_size=GROUP_ROWS)
    return ClickLog(str(folder))
