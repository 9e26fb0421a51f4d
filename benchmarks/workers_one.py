"""Workers of one contender of `benchmarks.workers`, each in a process of its own."""

from __future__ import annotations

import gc
import json
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.child import answer
from benchmarks.workers_torchrec import Parallel
from embedcomp import models
from embedcomp.log.batches import Batch, Shuffled
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.train import workers
from embedcomp.train.fit import Data, Report, fit
from embedcomp.train.optim import OfRows, optimizers
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from embedcomp.train.sharded import sharded_tables
from embedcomp.train.tables import fast_tables

L2 = 6000.0  # the usual one
WIDTH = 16
HELD = 1 << 20  # bytes of a tensor that counts as one of tables
WARM_UP = 10  # steps
LOG_ROWS = 10_000_000  # of the log that made-up batches are of


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One contender; on a log, or with `steps` on made-up tables."""

    workers: int
    by: str  # embedcomp, replicated, torchrec
    optimizer: str
    batch_rows: int
    rate: float
    l2: float = L2
    seed: int
    log: str = ""
    model: str = ""
    min_count: int = 1
    epochs: int = 0
    rows: int = 0
    tables: int = 0
    steps: int = 0

    @property
    def settings(self) -> TrainSettings:
        return TrainSettings(
            epochs=max(1, self.epochs),
            batch_rows=self.batch_rows,
            table_learning_rate=self.rate,
            embedding_l2=self.l2,
            table_optimizer=self.optimizer,  # type: ignore[arg-type]
            schedule="linear",
            evaluations_per_epoch=1,
            precision="float32",
            seed=self.seed,
        )


class Replicated(nn.Parameter):
    """Tables that each worker holds whole, as embedcomp's did before they were shared."""


class Usage:
    """What a worker takes, since this was made, and what its steps take after the first few."""

    def __init__(self, spec: Spec) -> None:
        self._resident, self._rows = _status("VmRSS"), spec.batch_rows * spec.workers
        self._steps, self._taken, self._held = 0, np.zeros(3), 0
        self._began: np.ndarray | None = None

    def begin(self) -> None:
        self._began = _now()

    def end(self) -> None:
        """The end of a step that was begun; tables are looked at once, when there are moments."""
        if self._began is None:
            return
        self._steps += 1
        if self._steps > WARM_UP:
            self._taken += _now() - self._began
        elif self._steps == WARM_UP:
            self._held = _held()
        self.stop()

    def stop(self) -> None:
        """What comes next is no step."""
        self._began = None

    def figures(self) -> dict[str, float]:
        seconds, cpu, written = self._taken / (self._steps - WARM_UP)
        return {
            "rows_per_second": self._rows / seconds,
            "cpu_seconds_a_million_rows": cpu / self._rows * 1e6,  # this worker's
            "held_bytes": self._held,
            "peak_bytes": _status("VmHWM") - self._resident,
            "sent_bytes_a_step": written,
        }


def _held() -> int:
    """Bytes of tables and of what optimizers keep of them."""
    gc.collect()
    plain = Tensor, nn.Parameter, workers.Sharded, Replicated  # and none of torchrec's wrappers
    alive = [t for t in gc.get_objects() if type(t) in plain]
    found = [t.untyped_storage() for t in alive if t.layout == torch.strided and not t.is_meta]
    storages = {storage.data_ptr(): storage.nbytes() for storage in found}
    return sum(size for size in storages.values() if size >= HELD)


def _now() -> np.ndarray:
    """Seconds, those of the processor, and bytes written to files and to other workers."""
    lines = Path("/proc/self/io").read_text().splitlines()
    (written,) = (line.split()[1] for line in lines if line.startswith("wchar:"))
    return np.array([perf_counter(), process_time(), float(written)])


def _status(name: str) -> int:
    """Bytes of a line of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(found) * 1024


def on_log(spec: Spec, folder: Path) -> dict[str, float]:
    usage, log = Usage(spec), ClickLog(spec.log)
    data = Data(log, Features.load(folder / "features"))
    torch.manual_seed(spec.seed)
    file = models.get(spec.model)
    model = file.build(data.features, file.Settings())
    if spec.by == "torchrec":
        parallel = Parallel(model, spec.rate, spec.settings.learning_rate)
        return {"auc": _by_torchrec(spec, parallel, data, usage), **usage.figures()}

    def watch(report: Report) -> None:
        """Of steps that follow one another."""
        if report.valid is None:
            usage.end()
            usage.begin()
        else:
            usage.stop()

    history = fit(model, data, spec.settings, folder / "run", watch=watch)
    return {"auc": history[-1]["auc"], **usage.figures()}


def _by_torchrec(spec: Spec, parallel: Parallel, data: Data, usage: Usage) -> float:
    """The AUC after the batches, schedule and dense optimizer of `fit`."""
    train, valid = data.pieces()
    batches = -(-sum(p.rows for p in train) // (workers.count() * spec.batch_rows))
    shuffled = Shuffled(data.log, data.features, workers.share(train), spec.batch_rows)
    for epoch in range(spec.epochs):
        for at, batch in enumerate(shuffled.batches((spec.seed, epoch))):
            if len(batch) == spec.batch_rows:  # what is left over, workers may not have alike
                usage.end()  # with the making of this batch in it, as in `fit`
                usage.begin()
                parallel.step(batch, 1 - (epoch + at / batches) / spec.epochs)
        usage.stop()
    scored = quality(parallel.model, data.log, data.features, workers.share(valid), in_step=True)
    return workers.total(scored).auc


class Large(nn.Module):
    """Large tables, on a device, under a small perceptron."""

    def __init__(self, rows: int, tables: int, device: str):
        super().__init__()
        configs = [
            EmbeddingBagConfig(
                name=f"t{i}",
                embedding_dim=WIDTH,
                num_embeddings=rows // tables,
                feature_names=[f"f{i}"],
                init_fn=lambda weight: nn.init.normal_(weight, std=1e-4),
            )
            for i in range(tables)
        ]
        self.embeddings = EmbeddingBagCollection(tables=configs, device=torch.device(device))
        layers = (nn.Linear(tables * WIDTH, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.deep = nn.Sequential(*layers, nn.Linear(64, 1))

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        logits: Tensor = self.deep(self.embeddings(sparse).values()).squeeze(1)
        return logits


def made_up(spec: Spec) -> Iterator[Batch]:
    """Batches of ids whose logarithms are even, as counts of ids about are."""
    drawn = torch.Generator().manual_seed(1000 * spec.seed + workers.rank())
    rows, number = spec.rows // spec.tables, spec.tables * spec.batch_rows
    for _ in range(spec.steps):
        ids = torch.rand(number, generator=drawn).mul_(torch.tensor(rows).log()).exp_().long()
        keys, lengths = [f"f{i}" for i in range(spec.tables)], torch.ones(number, dtype=torch.int64)
        sparse = KeyedJaggedTensor(keys=keys, values=ids.clamp_(max=rows - 1), lengths=lengths)
        labels = torch.rand(spec.batch_rows, generator=drawn).round_()
        yield Batch(torch.zeros(spec.batch_rows, 0), sparse, labels)


def on_large(spec: Spec, folder: Path) -> dict[str, float]:
    usage = Usage(spec)
    torch.manual_seed(0)
    if spec.by == "torchrec":  # draws a worker's tables alone
        whole = Large(spec.rows, spec.tables, "meta")
        parallel = Parallel(whole, spec.rate, spec.settings.learning_rate)
        for batch in made_up(spec):
            usage.begin()
            parallel.step(batch, 1.0)
            usage.end()
        return usage.figures()
    model: nn.Module = Large(spec.rows, spec.tables, "cpu")
    shared = spec.by == "embedcomp" and spec.workers > 1
    with sharded_tables(model, folder / "run") if shared else fast_tables(model):
        if spec.by == "replicated":
            model.embeddings.flat = Replicated(model.embeddings.flat.detach())
        moves = optimizers(model, spec.settings, LOG_ROWS)
        for batch in made_up(spec):
            usage.begin()
            _step(model, moves, batch)
            usage.end()
        return usage.figures()


def _step(model: nn.Module, moves: list[torch.optim.Optimizer], batch: Batch) -> None:
    """As `fit` takes it, or as it did before."""
    for optimizer in moves:
        optimizer.zero_grad(set_to_none=True)
    weight = workers.weight(len(batch))
    logits = model(batch.dense, batch.sparse)
    (binary_cross_entropy_with_logits(logits, batch.labels) * weight).backward()
    for optimizer in moves:
        for group in optimizer.param_groups:
            pickled = [p for p in group["params"] if isinstance(p, Replicated)]
            for parameter in pickled:
                parameter.grad = _pickled(parameter.grad)
            others = [p for p in group["params"] if not isinstance(p, Replicated)]
            workers.sum_gradients(others, sparse=isinstance(optimizer, OfRows))
        optimizer.step()


def _pickled(gradient: Tensor) -> Tensor:
    """The sum over workers of sparse gradients, by pickle."""
    found = workers.gathered((gradient._indices(), gradient._values()))
    ids, values = zip(*found, strict=True)
    return torch.sparse_coo_tensor(torch.cat(ids, dim=1), torch.cat(values), gradient.shape)


def _work(rank: int, port: int, spec: Spec, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if spec.workers > 1 or spec.by == "torchrec":
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", address, rank=rank, world_size=spec.workers)
    found = on_large(spec, folder) if spec.steps else on_log(spec, folder)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    with TemporaryDirectory() as scratch, socket.socket() as free:
        folder = Path(scratch)
        if spec.log:
            log = ClickLog(spec.log)
            counts = count(log, log.pieces("train"))
            Features.from_counts(log, counts, spec.min_count).save(folder / "features")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        given = (port, spec, folder)
        mp.start_processes(_work, given, nprocs=spec.workers, start_method="spawn")
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(spec.workers)]
    most = {name: max(each[name] for each in found) for name in found[0]}
    cpu = "cpu_seconds_a_million_rows"
    answer(**{**most, cpu: sum(each[cpu] for each in found)})


if __name__ == "__main__":
    main()
