"""Tables that several workers share: who holds what, what is sent, and what is left on disk."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.errors import BadModel, BadSettings
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.train import checkpoint, workers
from embedcomp.train import quality as scoring
from embedcomp.train.fit import Data, Report, fit
from embedcomp.train.optim import LazyAdam
from embedcomp.train.plateau import Plateau
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from embedcomp.train.sharded import ShardedTables, sharded_tables
from embedcomp.train.tables import FlatTables, fast_tables
from tests.train.killed import Killed
from tests.train.test_train import small_model
from tests.train.two_workers import in_workers

pytestmark = pytest.mark.xdist_group("two workers")

SETTINGS = TrainSettings(
    epochs=3, precision="float32", embedding_l2=50.0, batch_rows=240, evaluations_per_epoch=2
)
KILLS = ((2, 50), (1, 25), (4, None))  # workers, and the step after which they are killed
ROWS, WIDTH = 11, 3


def collection(pooling: PoolingType) -> nn.Module:
    """Three tables of 5, 2 and 4 rows, in which the number i of the whole has the value i."""
    tables = [
        EmbeddingBagConfig(
            name=name,
            embedding_dim=WIDTH,
            num_embeddings=rows,
            feature_names=[name],
            pooling=pooling,
        )
        for name, rows in (("a", 5), ("b", 2), ("c", 4))
    ]
    model = nn.Sequential(EmbeddingBagCollection(tables=tables))
    numbers = torch.arange(float(ROWS * WIDTH)).view(ROWS, WIDTH)
    bags = model[0].embedding_bags.values()
    for bag, rows in zip(bags, numbers.split([5, 2, 4]), strict=True):
        bag.weight.data.copy_(rows)
    return model


def looked_up(rank: int) -> KeyedJaggedTensor:
    """Both workers look up some rows and each some of its own, and have an empty bag."""
    values = ([4, 4, 0, 1, 3, 3], [2, 4, 0, 0, 3, 1])[rank]
    lengths = torch.tensor([2, 1, 1, 0, 1, 1])
    return KeyedJaggedTensor(keys=["a", "b", "c"], values=torch.tensor(values), lengths=lengths)


@pytest.mark.slow
def test_rows_and_gradients_are_those_of_tables_that_are_whole(tmp_path: Path) -> None:
    in_workers(2, _looks_up, tmp_path)
    for pooling in (PoolingType.SUM, PoolingType.MEAN):
        found = [torch.load(tmp_path / f"{pooling.name}.{rank}.pt") for rank in (0, 1)]
        model = collection(pooling)
        with fast_tables(model):
            for rank in (0, 1):
                pooled = model(looked_up(rank)).values()
                assert torch.equal(pooled, found[rank]["pooled"])
                (pooled * (1 + rank)).square().sum().backward()
            flat: Tensor = model[0].flat
            assert flat.grad is not None
            for rank in (0, 1):
                assert torch.equal(found[rank]["own"], flat.detach()[rank::2])
                torch.testing.assert_close(found[rank]["gradient"], flat.grad.to_dense()[rank::2])


def _looks_up(rank: int, folder: Path) -> None:
    for pooling in (PoolingType.SUM, PoolingType.MEAN):
        model = collection(pooling)
        with sharded_tables(model, folder / pooling.name):
            pooled = model(looked_up(rank)).values()
            (pooled * (1 + rank)).square().sum().backward()
            flat: Tensor = model[0].flat
            assert flat.grad is not None and flat.grad.is_sparse
            told = {"pooled": pooled, "own": flat.detach(), "gradient": flat.grad.to_dense()}
            torch.save(told, folder / f"{pooling.name}.{rank}.pt")


@pytest.mark.slow
def test_tables_are_whole_again_on_every_worker_in_one_file_that_none_can_change(
    tmp_path: Path,
) -> None:
    in_workers(3, _writes_back, tmp_path)
    (file,) = tmp_path.glob("*.tables")
    assert file.stat().st_size == 4 * ROWS * WIDTH
    wanted = 2 * torch.arange(float(ROWS * WIDTH)).view(ROWS, WIDTH)
    for rank in range(3):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), wanted)
    assert torch.equal(torch.from_file(str(file), size=ROWS * WIDTH).view(ROWS, WIDTH), wanted)


def _writes_back(rank: int, folder: Path) -> None:
    from embedcomp.train import sharded

    sharded.SENT_BYTES = 4 * WIDTH * 2  # two rows at a time
    model = collection(PoolingType.SUM)
    with sharded_tables(model, folder / "run"):
        assert isinstance(model[0], ShardedTables)
        assert len(model[0].flat) == (4, 4, 3)[rank]
        model[0].flat.data.mul_(2)
    bags = model[0].embedding_bags.values()
    torch.save(torch.cat([bag.weight.detach() for bag in bags]), folder / f"{rank}.pt")
    for bag in bags:
        bag.weight.data.zero_()  # its own alone


@pytest.mark.slow
def test_workers_that_do_not_see_one_folder_are_refused_before_training(tmp_path: Path) -> None:
    in_workers(2, _is_apart, tmp_path)
    for rank in (0, 1):
        assert "workers is 2, but 1 of them see what" in (tmp_path / f"{rank}.txt").read_text()
        assert not [*(tmp_path / "01"[rank]).iterdir()]


def _is_apart(rank: int, folder: Path) -> None:
    """A worker sees a folder by the first one's name, which is not the first one's."""
    own = folder / str(rank)
    once = workers.once
    workers.once = lambda make: own / once(make).name  # type: ignore[assignment,attr-defined]
    try:
        with sharded_tables(collection(PoolingType.SUM), own / "run"):
            raise AssertionError("they are not refused")
    except BadSettings as error:
        (folder / f"{rank}.txt").write_text(str(error))


class Run(SimpleNamespace):
    """What a checkpoint is of: tables, and what an optimizer knows of them."""

    @classmethod
    def of(cls, model: nn.Module) -> checkpoint.Run:
        sizes = {"epoch": 1, "batch": 0, "batches": 12 // workers.count()}
        moves = [LazyAdam([model[0].flat]), torch.optim.Adam(model[1].parameters())]
        return cast(
            checkpoint.Run, cls(model=model, optimizers=moves, plateau=Plateau(2, 2, 0.1), **sizes)
        )


def _begun() -> nn.Module:
    model = nn.Sequential(*collection(PoolingType.SUM), nn.Linear(2, 1))
    nn.init.constant_(model[1].weight, 7.0)
    return model


def _set(run: checkpoint.Run, rank: int, count: int, moment: int) -> None:
    """Numbers that say which row of which tensor they are of, and of which moment."""
    rows = torch.arange(rank, ROWS, count)[:, None].float() + 1000 * moment
    flat = run.model[0].flat
    flat.data.copy_(rows.expand(-1, WIDTH))
    run.optimizers[0].state[flat] = {
        "step": torch.tensor(float(moment)),
        "last": 100 + rows,
        "mean": (200 + rows).expand(-1, WIDTH).clone(),
        "square": (300 + rows).expand(-1, WIDTH).clone(),
    }


def _holds(run: checkpoint.Run, rank: int, count: int, moment: int) -> None:
    rows = torch.arange(rank, ROWS, count)[:, None].float() + 1000 * moment
    flat = run.model[0].flat
    assert torch.equal(flat.detach(), rows.expand(-1, WIDTH))
    state = run.optimizers[0].state[flat]
    assert state["step"] == moment and torch.equal(state["last"], 100 + rows)
    for name, more in (("mean", 200), ("square", 300)):
        assert torch.equal(state[name], (more + rows).expand(-1, WIDTH)), name
    assert (run.model[1].weight == 7.0).all()


def _with_tables(work: Callable[[checkpoint.Run], None], folder: Path) -> None:
    model = _begun()
    alone = workers.count() == 1
    with fast_tables(model) if alone else sharded_tables(model, folder / "run"):
        work(Run.of(model))


def _saves(rank: int, count: int, folder: Path, moment: int, batch: int) -> None:
    def work(run: checkpoint.Run) -> None:
        _set(run, rank, count, moment)
        run.batch = batch
        checkpoint.save(run, folder / "run.last.pt")

    _with_tables(work, folder)


def _restores(rank: int, count: int, folder: Path, moment: int, batch: int) -> None:
    def work(run: checkpoint.Run) -> None:
        checkpoint.restore(run, folder / "run.last.pt")
        _holds(run, rank, count, moment)
        assert (run.epoch, run.batch) == (1, batch)
        (folder / f"restored.{rank}-of-{count}").touch()

    _with_tables(work, folder)


@pytest.mark.slow
def test_a_checkpoint_is_gone_on_from_by_any_number_of_workers(tmp_path: Path) -> None:
    """Half of an epoch is 3 of 6 steps of two workers, 6 of one alone, and 1 of 3 of four."""
    in_workers(2, _saves, 2, tmp_path, 1, 3)
    assert len([*tmp_path.glob("run.last.*.rows.pt")]) == 2
    in_workers(2, _restores, 2, tmp_path, 1, 3)
    _restores(0, 1, tmp_path, 1, 6)
    in_workers(4, _restores, 4, tmp_path, 1, 1)
    _saves(0, 1, tmp_path, 2, 6)
    assert len([*tmp_path.glob("run.last.*.rows.pt")]) == 1
    in_workers(4, _restores, 4, tmp_path, 2, 1)
    in_workers(4, _saves, 4, tmp_path, 3, 1)
    in_workers(2, _restores, 2, tmp_path, 3, 2)
    assert {f.name for f in tmp_path.glob("restored.*")} == {
        f"restored.{rank}-of-{count}" for count in (1, 2, 4) for rank in range(count)
    }


@pytest.mark.slow
def test_a_checkpoint_that_was_not_written_whole_counts_for_nothing(tmp_path: Path) -> None:
    in_workers(2, _saves, 2, tmp_path, 1, 3)
    in_workers(2, _is_killed, tmp_path)
    assert len([*tmp_path.glob("run.last.*.rows.pt")]) == 4
    in_workers(2, _restores, 2, tmp_path, 1, 3)
    in_workers(2, _saves, 2, tmp_path, 3, 3)
    assert len([*tmp_path.glob("run.last.*.rows.pt")]) == 2
    in_workers(2, _restores, 2, tmp_path, 3, 3)


def _is_killed(rank: int, folder: Path) -> None:
    """After the rows were written, before they are named."""
    checkpoint._save_others = lambda *given: None
    _saves(rank, 2, folder, 2, 4)


def test_a_checkpoint_whose_rows_are_gone_is_told_so(tmp_path: Path) -> None:
    _saves(0, 1, tmp_path, 1, 3)
    for file in tmp_path.glob("*.rows.pt"):
        file.unlink()
    with pytest.raises(BadModel, match=r"0-of-1.rows.pt cannot be read as tensors"):
        _restores(0, 1, tmp_path, 1, 3)


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_workers(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    """Killed with two, then alone, and ended with four: nothing that was evaluated is lost."""
    synth_features.save(tmp_path / "features")
    for count, kill in KILLS:
        in_workers(count, _goes_on, synth_log.path, str(tmp_path), kill)
    told = [json.loads((tmp_path / f"{count}.json").read_text()) for count, _ in KILLS]
    first, second, last = ([entry["auc"] for entry in history] for history in told)
    assert [len(first), len(second), len(last)] == [4, 5, 6]
    assert second[:4] == first and last[:5] == second
    assert last[-1] > last[0] > 0.5
    whole = [torch.load(tmp_path / f"model.{rank}.pt") for rank in range(4)]
    for name, tensor in whole[0].items():
        assert all(torch.equal(tensor, other[name]) for other in whole), name


def _goes_on(rank: int, path: str, folder: str, kill: int | None) -> None:
    data = Data(ClickLog(path), Features.load(Path(folder, "features")))
    model, place, steps = small_model(data.features), Path(folder, "run"), 0

    def watch(report: Report) -> None:
        nonlocal steps
        steps += report.valid is None
        if steps == kill:
            raise Killed

    try:
        history = fit(model, data, SETTINGS, place, watch=watch)
    except Killed:
        (file,) = place.glob("*.last.pt")
        history = checkpoint.read(file)["plateau"]["history"]
    else:
        torch.save(model.state_dict(), Path(folder, f"model.{rank}.pt"))
    if not rank:
        Path(folder, f"{workers.count()}.json").write_text(json.dumps(history))


@pytest.mark.slow
def test_no_worker_holds_all_rows_while_it_trains_and_nothing_is_pickled_for_a_step(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    synth_features.save(tmp_path / "features")
    in_workers(2, _is_watched, synth_log.path, str(tmp_path))
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told["weights"] <= math.ceil(told["all"] / 2), told
        assert told["largest"] <= math.ceil(told["all"] / 2), told
        assert told["pickled"] == 0, told


def _is_watched(rank: int, path: str, folder: str) -> None:
    """How large tensors of tables are after a step, and objects that steps of an epoch sent."""
    data = Data(ClickLog(path), Features.load(Path(folder, "features")))
    model = small_model(data.features)
    rows = sum(table.rows for table in data.features.ids)
    told = {"all": rows * 4, "largest": 0, "weights": 0, "pickled": 0}
    in_steps = False

    def counted(send: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            told["pickled"] += in_steps
            return send(*given)

        return call

    def watch(report: Report) -> None:
        nonlocal in_steps
        in_steps = report.rows_done < report.rows_total  # evaluations may send a Quality
        kinds = Tensor, nn.Parameter, workers.Sharded
        alive = [t for t in gc.get_objects() if type(t) in kinds]
        held = [t for t in alive if t.shape[1:] == (4,) and t.layout == torch.strided]
        numbers = [t.untyped_storage().nbytes() // 4 for t in held]
        told["largest"] = max(told["largest"], *numbers)
        told["weights"] = sum(t.numel() for t in held if isinstance(t, nn.Parameter))

    for name in ("all_gather_object", "broadcast_object_list"):
        setattr(dist, name, counted(getattr(dist, name)))
    settings = replace(SETTINGS, epochs=1, evaluations_per_epoch=1, batch_rows=600)
    fit(model, data, settings, Path(folder, "run"), watch=watch)
    Path(folder, f"{rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_workers_with_fewer_batches_or_none_are_evaluated_with(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    """Of 700 validation rows, the first of two workers has 500 and 200 a batch at most, or all."""
    synth_features.save(tmp_path / "features")
    in_workers(2, _evaluates, synth_log.path, str(tmp_path))
    data, model = Data(synth_log, synth_features), small_model(synth_features)
    (piece,) = synth_log.pieces("valid")
    with fast_tables(model):
        wanted = quality(model, synth_log, data.features, [piece.part(0, 700)])
    for rank in (0, 1):
        for found in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert found == pytest.approx([700, wanted.auc, wanted.logloss], abs=1e-6)


def _evaluates(rank: int, path: str, folder: str) -> None:
    log, features = ClickLog(path), Features.load(Path(folder, "features"))
    model, told = small_model(features), []
    (piece,) = log.pieces("valid")
    scoring.EVALUATION_ROWS = 100
    with sharded_tables(model, Path(folder, "run")):
        for bounds in (((0, 500), (500, 700)), ((0, 700), (700, 700)), ((0, 0), (0, 700))):
            start, end = bounds[rank]
            own: list[Piece] = [piece.part(start, end)] if start < end else []
            found = workers.total(quality(model, log, features, own, in_step=True))
            told.append([found.rows, found.auc, found.logloss])
    Path(folder, f"{rank}.json").write_text(json.dumps(told))


def test_a_single_workers_tables_are_whole() -> None:
    model = collection(PoolingType.SUM)
    with fast_tables(model):
        assert isinstance(model[0], FlatTables) and isinstance(model[0].flat, workers.Sharded)
        assert model[0].flat.shape == (ROWS, WIDTH)
