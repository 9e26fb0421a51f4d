"""Masks that move in the trainer: killed, resumed, by several workers, and stored as evaluated."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import nn

from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.table import CompressedBag
from embedcomp.storage.kinds.chunked import Bytes, Halves, chunks_of
from embedcomp.storage.rows import keeping_unrounded
from embedcomp.storage.sparse import DynamicallySparse, GraduallyPruned, Schedule, SparseRows
from embedcomp.swapping.swap import freeze, thaw
from embedcomp.train.fit import Data, Report, fit
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from tests.train.killed import trained_in_spite_of_kills
from tests.train.test_train import small_model
from tests.train.two_workers import in_two_workers

pytestmark = pytest.mark.xdist_group("two workers")

SETTINGS = TrainSettings(
    epochs=2,
    batch_rows=512,
    checkpoint_rows=1024,
    embedding_l2=20.0,
    precision="float32",
    evaluations_per_epoch=3,
)


def sparse_model(features: Features) -> nn.Module:
    """Tables by both ways to move a mask and both types of numbers, thawed."""
    model = small_model(features)
    bags = {n: m for n, m in model.named_modules() if isinstance(m, nn.EmbeddingBag)}
    for (name, bag), which in zip(bags.items(), cycle(range(4)), strict=False):
        rows, width = bag.weight.shape
        kind = (Halves, Bytes)[which // 2](rows, -(-rows * chunks_of(width) // 3))
        stored: SparseRows
        if which % 2:
            stored = DynamicallySparse(rows, width, kind, Schedule(6, 0.0, 0.7), 0.5)
        else:
            stored = GraduallyPruned(rows, width, kind, Schedule(7, 0.1, 0.5))
        table = CompressedBag(rows, width, "sum", stored, decode=None)
        with keeping_unrounded():
            table.fill(bag.weight.detach(), torch.arange(rows, 0, -1).double())
        model.set_submodule(name, table)
    thaw(model)
    return model


def masks(model: nn.Module) -> list[SparseRows]:
    return [m for m in model.modules() if isinstance(m, SparseRows)]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_masks_and_stores_what_it_evaluated(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    data = Data(synth_log, synth_features)
    begun = [mask.alive for mask in masks(sparse_model(synth_features))]
    whole, history = trained_in_spite_of_kills(
        lambda: sparse_model(synth_features), data, SETTINGS, tmp_path, (7, 25)
    )
    found = masks(whole)
    assert {(type(m), type(m.kind)) for m in found} == {
        (rows, kind) for rows in (GraduallyPruned, DynamicallySparse) for kind in (Halves, Bytes)
    }
    assert all(int(mask.alive.sum()) == mask.kind.live for mask in found)
    assert not any(torch.equal(m.alive, old) for m, old in zip(found, begun, strict=True))
    settled = [entry for entry in history if entry.get("settled", True)]
    assert 0 < len(settled) < len(history) and not history[0].get("settled", True)
    best = max(settled, key=lambda entry: entry["auc"])
    freeze(whole)
    served = quality(whole, synth_log, synth_features, synth_log.pieces("valid"))
    assert (served.auc, served.logloss) == (best["auc"], best["logloss"])


@pytest.mark.slow
def test_workers_have_the_same_masks_after_every_step(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    """An evaluation would give all of them those of the first one."""
    synth_features.save(tmp_path / "features")
    in_two_workers(_work, synth_log.path, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys() and len(first) > 4
    for name, steps in first.items():
        assert torch.equal(steps, second[name]), name
        assert not torch.equal(steps[0], steps[-1]), name


def _work(rank: int, path: str, folder: str) -> None:
    features = Features.load(Path(folder, "features"))
    model = sparse_model(features)
    seen: dict[str, list[torch.Tensor]] = {}

    def watch(report: Report) -> None:
        if report.valid is None:
            for place, mask in enumerate(masks(model)):
                seen.setdefault(f"{place} alive", []).append(mask.alive)
                if isinstance(mask, DynamicallySparse):
                    assert mask.wanted is not None
                    seen.setdefault(f"{place} wanted", []).append(mask.wanted.clone())

    fit(model, Data(ClickLog(path), features), SETTINGS, Path(folder, "scratch"), watch=watch)
    found = {name: torch.stack(steps) for name, steps in seen.items()}
    torch.save(found, Path(folder, f"{rank}.pt"))
