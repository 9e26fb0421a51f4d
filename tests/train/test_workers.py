"""Several workers train one model."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.log.synth import synth
from embedcomp.metrics import Quality
from embedcomp.train import workers
from embedcomp.train.fit import Data, fit
from embedcomp.train.settings import TrainSettings
from tests.train.test_train import small_model


def test_the_workers_share_all_pieces_and_take_equally_many_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces = [Piece("train", "f", i, rows) for i, rows in enumerate([1000, 300, 500, 900, 10])]
    assert workers.share(pieces) == pieces and workers.batches(pieces, 100) == 28
    monkeypatch.setattr(workers, "count", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        shares.append(workers.share(pieces))
    assert sorted(shares[0] + shares[1], key=lambda p: p.row_group) == pieces
    assert workers.batches(pieces, 100) == 12


@pytest.mark.slow
def test_two_workers_end_with_one_model(tmp_path: Path) -> None:
    log = tmp_path / "log"
    synth(log, 260_000, seed=1)  # three row groups
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_work, (port, str(log), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["auc"] == second["auc"] > 0.5
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name


def _work(rank: int, port: int, path: str, out: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    log = ClickLog(path)
    features = Features.from_counts(log, count(log, log.pieces("train")), 2)
    model: nn.Module = small_model(features)
    settings = TrainSettings(epochs=1, batch_rows=2048)
    history = fit(model, Data(log, features), settings, Path(out))
    torch.save({"model": model.state_dict(), "auc": history[-1]["auc"]}, Path(out, f"{rank}.pt"))
    dist.destroy_process_group()


def test_the_quality_of_all_workers_is_the_sum(synth_log: ClickLog) -> None:
    quality = Quality()
    assert workers.total(quality) is quality  # alone, there is nothing to add
