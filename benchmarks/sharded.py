"""Scores with rows from shards against those of one process, and torchrec's quantized tables.

    python -m benchmarks.sharded

A made-up model with large tables (row_int8) is scored, `--rows` rows a call: whole by the engine in
one process, by fronts of 1, 2 and 4 shards, each a process of its own on this machine, and by
torchrec's quantized EmbeddingBagCollection with the same dense part in torch. Two shards are asked
by Ray Serve's handles too, which carry the same messages; for that it is run by the Python that
benchmarks.serving made for Ray Serve (`build/serving_peers/ray/bin/python -m benchmarks.sharded`),
and left out where Ray lacks Serve. All take turns, so ratios of one record are of one machine in
one state. Then several threads call a front at once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.table import Table
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantizedCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from benchmarks import result
from benchmarks.child import ROOT
from benchmarks.script import command, console, parser
from embedcomp.artifact.artifact import Artifact
from embedcomp.kernels.routing import SLOTS
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.rows import finds
from embedcomp.sharding.cut import cut
from embedcomp.sharding.cutting import Cutting
from embedcomp.sharding.slots import HeldSlots

SHARDS = (1, 2, 4)
DENSE, HIDDEN = 13, (256, 128)
BATCHES = 50  # of different ids
SERVE = find_spec("starlette") is not None  # what Ray Serve needs beside Ray
QUIET = {"enable_access_log": False, "log_level": "WARNING"}


class Clicks(nn.Module):
    """A network on tables that are looked up with one id each."""

    def __init__(self, tables: int, ids: int, width: int):
        super().__init__()
        torch.manual_seed(0)
        configs = [
            EmbeddingBagConfig(
                name=f"t{i}", num_embeddings=ids, embedding_dim=width, feature_names=[f"f{i}"]
            )
            for i in range(tables)
        ]
        self.tables = EmbeddingBagCollection(tables=configs)
        sizes = (tables * width + DENSE, *HIDDEN)
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.deep = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        values = self.tables(sparse).values()
        return self.deep(torch.cat([values, dense], 1)).squeeze(1)


def main() -> None:
    options = parser(__doc__, data=False)
    options.add_argument("--tables", type=int, default=26)
    options.add_argument("--ids", type=int, default=100_000)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--calls", type=int, default=2_000)
    options.add_argument("--threads", type=int, default=8, help="that call a front at once")
    given = options.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch, ExitStack() as running:
        model = Clicks(given.tables, given.ids, given.width).eval()
        quantized = _quantized(model)
        batches = [inputs(given, seed) for seed in range(BATCHES)]
        whole = _saved(model, Path(scratch) / "whole", batches[0])
        made = cut(whole, Path(scratch) / "cut", near_bytes=0)
        runs: dict[str, Callable[[Any], np.ndarray]] = {
            "one process": embedcomp.Scorer(whole).score
        }
        for number in SHARDS:
            addresses = [
                running.enter_context(_shard(made.folder, f"{shard}/{number}"))
                for shard in range(number)
            ]
            settings = ServerSettings(shards=tuple(addresses), shard_deadline_ms=5_000)
            runs[f"{number} shards"] = embedcomp.Scorer(made, shards=finds(settings)).score
        runs["torchrec, quantized"] = quantized
        if SERVE:
            ray = running.enter_context(_by_ray(made, 2))
            runs["2 shards, Ray Serve"] = embedcomp.Scorer(made, shards=lambda *_: ray).score
        found = {
            "busy_before": os.getloadavg()[0],
            "equal": {
                name: bool(np.array_equal(run(batches[1]), runs["one process"](batches[1])))
                for name, run in runs.items()
            },
            "latency": _latency(runs, batches, given.calls),
            "throughput": {
                name: _throughput(run, batches, given.threads, given.calls)
                for name, run in runs.items()
            },
        }
    console.print(_render(found))
    names = ("tables", "ids", "width", "rows", "calls", "threads")
    file = result.write(
        "sharded",
        data={"made_up": True},
        settings={name: getattr(given, name) for name in names} | {"ray_serve": SERVE},
        seeds=[0],
        results=found,
        folder=given.results,
    )
    print(file)


def _saved(model: Clicks, folder: Path, example: Any) -> Artifact:
    embedcomp.swap_(model, {"tables.*": "row_int8"})
    return embedcomp.save(
        model, folder, score=lambda model, inputs: model(*inputs), example=example
    )


def _quantized(model: Clicks) -> Callable[[Any], np.ndarray]:
    """The model with torchrec's own quantized collection, in torch."""
    config = torch.ao.quantization.QConfig(
        activation=torch.ao.quantization.PlaceholderObserver,
        weight=torch.ao.quantization.PlaceholderObserver.with_args(dtype=torch.qint8),
    )
    tables = EmbeddingBagCollection(tables=model.tables.embedding_bag_configs())
    tables.load_state_dict(model.tables.state_dict())
    tables.qconfig = config  # type: ignore[assignment]
    small = QuantizedCollection.from_float(tables)
    deep = model.deep

    @torch.inference_mode()
    def scored(inputs: Any) -> np.ndarray:
        dense, sparse = inputs
        values = small(sparse).values().float()
        return torch.sigmoid(deep(torch.cat([values, dense], 1)).squeeze(1)).numpy()

    return scored


def inputs(given: Any, seed: int) -> tuple[Tensor, KeyedJaggedTensor]:
    random = np.random.default_rng(seed)
    number = given.tables * given.rows
    ids = torch.from_numpy((given.ids * random.random(number) ** 3).astype(np.int64))
    sparse = KeyedJaggedTensor(
        keys=[f"f{i}" for i in range(given.tables)],
        values=ids,
        lengths=torch.ones(number, dtype=torch.int64),
    )
    dense = random.standard_normal((given.rows, DENSE)).astype(np.float32)
    return torch.from_numpy(dense), sparse


@contextmanager
def _shard(folder: Path, slots: str) -> Iterator[str]:
    """A process that holds some slots; its address."""
    shard = subprocess.Popen(
        [sys.executable, "-m", "embedcomp", "shard", str(folder), "--slots", slots, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert shard.stdout is not None
        found = re.search(r" on (\S+:\d+)$", shard.stdout.readline().strip())
        assert found is not None, "the shard says where it is"
        yield found[1]
    finally:
        shard.terminate()
        shard.wait()


class ByRay:
    """Shards that are asked by Ray Serve's handles (sharding/front.py)."""

    def __init__(self, handles: list[Any]):
        self.number, self._handles = len(handles), handles
        self.owner = (np.arange(SLOTS) % self.number).astype(np.int32)

    def ask(self, messages: Sequence[pa.Buffer | None]) -> Sequence[pa.Buffer | None]:
        asked = [
            None if one is None else handle.pool.remote(one.to_pybytes())
            for handle, one in zip(self._handles, messages, strict=True)
        ]
        return [None if one is None else pa.py_buffer(one.result()) for one in asked]


class Slots:
    """A shard as a deployment of Ray Serve."""

    def __init__(self, folder: Path, version: int, slots: list[int]):
        cutting = Cutting.of(folder)
        assert cutting is not None
        self._held = HeldSlots(cutting, version, slots)

    def pool(self, message: bytes) -> bytes:
        return self._held.pool(message).tobytes()


@contextmanager
def _by_ray(made: Artifact, number: int) -> Iterator[ByRay]:
    import ray
    from ray import serve

    paths = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(
        "local",
        num_cpus=number + 1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=paths,
    )
    try:
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        deployment = serve.deployment(
            Slots,
            num_replicas=1,
            max_ongoing_requests=64,
            ray_actor_options={"num_cpus": 1},
            logging_config=QUIET,
        )
        yield ByRay(
            [
                serve.run(
                    deployment.bind(made.folder, made.version, list(range(shard, SLOTS, number))),
                    name=f"shard_{shard}",
                    route_prefix=None,
                )
                for shard in range(number)
            ]
        )
    finally:
        ray.shutdown()


def _latency(
    runs: dict[str, Callable[[Any], np.ndarray]], batches: list[Any], calls: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of a call: percentiles, of calls in turns."""
    times: dict[str, list[int]] = {name: [] for name in runs}
    for call in range(calls):
        for name, run in runs.items():
            began = perf_counter_ns()
            run(batches[call % len(batches)])
            times[name].append(perf_counter_ns() - began)
    return {
        name: {f"p{p}_ms": float(np.percentile(of, p)) / 1e6 for p in (50, 90, 99)}
        for name, of in times.items()
    }


def _throughput(
    run: Callable[[Any], np.ndarray], batches: list[Any], threads: int, calls: int
) -> float:
    """Calls a second by several threads."""
    with ThreadPoolExecutor(threads) as pool:
        began = perf_counter()
        for _ in pool.map(run, (batches[call % len(batches)] for call in range(calls))):
            pass
        return calls / (perf_counter() - began)


def _render(found: dict[str, Any]) -> Table:
    table = Table("scored by", "p50 ms", "p90 ms", "p99 ms", "calls/s", "equal")
    for name, of in found["latency"].items():
        times = [f"{of[f'p{p}_ms']:.3f}" for p in (50, 90, 99)]
        table.add_row(name, *times, f"{found['throughput'][name]:,.0f}", str(found["equal"][name]))
    return table


if __name__ == "__main__":
    command(main)
