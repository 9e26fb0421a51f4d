"""Codes that the loss assigns, in the trainer: killed, resumed, and with several workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.table import CompressedBag
from embedcomp.storage.assigned import AssignedRows
from embedcomp.storage.kinds.residual import Residual
from embedcomp.storage.training import Progress, parts_that_train
from embedcomp.swapping.swap import freeze, thaw
from embedcomp.train import checkpoint
from embedcomp.train import fit as fitting
from embedcomp.train.fit import Data, fit
from embedcomp.train.optim import optimizers
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from tests.train.joined import joined
from tests.train.killed import trained_in_spite_of_kills
from tests.train.test_train import small_model
from tests.train.two_workers import in_two_workers

pytestmark = pytest.mark.xdist_group("two workers")

SETTINGS = TrainSettings(
    epochs=3,
    batch_rows=500,
    checkpoint_rows=1024,
    evaluations_per_epoch=2,
    embedding_l2=20.0,
    precision="float32",
)
ONE_EPOCH = replace(SETTINGS, epochs=1)


def coded_model(features: Features) -> nn.Module:
    """Every table is read through codes, thawed."""
    model = small_model(features)
    for name, bag in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.EmbeddingBag)]:
        rows, width = bag.weight.shape
        kind = Residual((rows // 2, rows), (2, 1), (3, 3))
        table = CompressedBag(rows, width, "sum", AssignedRows(rows, width, kind), decode=None)
        table.fill(torch.randn(rows, width, generator=torch.manual_seed(rows)) / 3)
        model.set_submodule(name, table)
    thaw(model)
    return model


def coded(model: nn.Module) -> list[AssignedRows]:
    return [module for module in model.modules() if isinstance(module, AssignedRows)]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_sums_and_serves_what_it_evaluated(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    data = Data(synth_log, synth_features)
    start = [rows.stored.clone() for rows in coded(coded_model(synth_features))]
    whole, history = trained_in_spite_of_kills(
        lambda: coded_model(synth_features), data, SETTINGS, tmp_path, (7, 31)
    )
    assert any(
        not torch.equal(rows.stored, codes) for rows, codes in zip(coded(whole), start, strict=True)
    )
    best = max(history, key=lambda entry: entry["auc"])
    freeze(whole)
    assert all(not rows.summed and "words" not in rows.state_dict() for rows in coded(whole))
    found = quality(whole, synth_log, synth_features, synth_log.pieces("valid"))
    assert (found.auc, found.logloss) == (best["auc"], best["logloss"])


@pytest.mark.slow
def test_workers_assign_by_the_sums_over_all_of_them(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    """They are evaluated in the middle of the epoch, when each has sums of its own."""
    synth_features.save(tmp_path / "features")
    in_two_workers(_work, synth_log.path, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    wanted = _joined(coded_model(synth_features), Data(synth_log, synth_features))
    for own, other, sums in zip(first, second, wanted, strict=True):
        for name, tensor in own.items():
            assert torch.equal(tensor, other[name]), name
            if name in sums:
                # a worker's curvature is by its own rows of a step
                close = 0.05 if name == "curvature" else 2e-3
                torch.testing.assert_close(
                    tensor, sums[name], rtol=close, atol=close * float(sums[name].abs().max())
                )


def _joined(model: nn.Module, data: Data) -> list[dict[str, Tensor]]:
    """The sums of one process that trains on the batches of two workers together."""
    moving = optimizers(model, ONE_EPOCH, data.log.rows(data.train))
    for batch in joined(data, ONE_EPOCH, 2):
        at = Progress("final", 0, 1, 1, 0, rows=len(batch))
        for part in parts_that_train(model):
            part.before_step(at)
        for optimizer in moving:
            optimizer.zero_grad()
        logits = model.train()(batch.dense, batch.sparse).view(-1)
        binary_cross_entropy_with_logits(logits, batch.labels).backward()
        for optimizer in moving:
            optimizer.step()
        at = replace(at, curvature=fitting._curvature(logits, batch.labels))
        for part in parts_that_train(model):
            part.after_step(at)
    return [_sums(rows) for rows in coded(model)]


def _sums(rows: AssignedRows) -> dict[str, Tensor]:
    return {name: getattr(rows, name).clone() for name in rows.summed}


def _work(rank: int, path: str, folder: str) -> None:
    checkpoint.restore_weights = lambda run, file: None  # what training left is compared
    features = Features.load(Path(folder, "features"))
    model, told = coded_model(features), []
    assign = AssignedRows.assign

    def tell(rows: AssignedRows) -> None:
        sums = _sums(rows)
        assign(rows)
        told.append(sums | {"codes": rows.stored.clone()})

    AssignedRows.assign = tell
    fit(model, Data(ClickLog(path), features), ONE_EPOCH, Path(folder, "scratch"))
    torch.save(told, Path(folder, f"{rank}.pt"))


def test_what_turns_squared_gradients_into_curvature() -> None:
    """p = 1/2 and 3/4, targets 1 and 1/4: (1/4 + 3/16) over (1/4 + 1/4)."""
    logits, target = torch.tensor([0.0, torch.log(torch.tensor(3.0))]), torch.tensor([1.0, 0.25])
    assert fitting._curvature(logits, target) == pytest.approx(7 / 8)
