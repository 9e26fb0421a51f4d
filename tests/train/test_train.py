"""Training: optimizers, fast tables, plateau, resuming."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp import models
from embedcomp.log.batches import in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.support.metrics import Quality
from embedcomp.train import fit as fitting
from embedcomp.train.fit import Data, Report, evaluations, fit
from embedcomp.train.optim import LazyAdam
from embedcomp.train.plateau import Plateau
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import FlatTables, fast_tables
from tests.train import killed
from tests.train.killed import Killed


def small_model(features: Features, name: str = "dcnv2") -> nn.Module:
    torch.manual_seed(0)
    file = models.get(name)
    model: nn.Module = file.build(features, file.Settings(width=4, hidden=(16, 8)))
    return model


def trained(
    log: ClickLog, features: Features, folder: Path, settings: TrainSettings, kill_after: int = -1
) -> tuple[nn.Module, list[Any]]:
    model = small_model(features)
    return model, killed.trained(model, Data(log, features), settings, folder, kill_after)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_model_learns_from_its_ids(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path, name: str
) -> None:
    """It ranks better than before training, and better than with the ids of other rows."""
    model = small_model(synth_features, name)
    before = scored(model, synth_log, synth_features)
    settings = TrainSettings(
        epochs=3,
        batch_rows=256,
        learning_rate=3e-3,
        table_learning_rate=3e-3,
        embedding_l2=50.0,
    )
    fit(model, Data(synth_log, synth_features), settings, tmp_path)
    after, without = (scored(model, synth_log, synth_features, moved) for moved in (0, 1))
    print(name, before.auc, after.auc, without.auc, before.logloss, after.logloss, without.logloss)
    assert after.auc > before.auc + 0.03 and after.auc > without.auc + 0.02
    assert after.logloss < min(before.logloss, without.logloss)


@torch.no_grad()
def scored(model: nn.Module, log: ClickLog, features: Features, moved: int = 0) -> Quality:
    """Quality on the validation split, where each row has the ids of the one `moved` after it."""
    found = Quality()
    model.eval()
    for batch in in_order(log, features, log.pieces("valid"), 4096):
        dense = batch.dense.roll(moved, 0)
        labels = batch.labels.roll(moved, 0)
        found.add(model(dense, batch.sparse).view(-1).numpy(), labels.numpy())
    return found


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path, optimizer: str
) -> None:
    settings = TrainSettings(
        epochs=2, batch_rows=512, checkpoint_rows=1024, table_optimizer=optimizer
    )
    whole, history = trained(synth_log, synth_features, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        trained(synth_log, synth_features, tmp_path / "killed", settings, kill_after=25)
    resumed, again = trained(synth_log, synth_features, tmp_path / "killed", settings)
    assert history == again
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.slow
def test_equal_seeds_give_equal_models_and_others_do_not(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    def losses(seed: int, folder: str) -> list[dict[str, object]]:
        settings = TrainSettings(epochs=1, batch_rows=512, seed=seed)
        return trained(synth_log, synth_features, tmp_path / folder, settings)[1]

    assert losses(1, "a") == losses(1, "b") != losses(2, "c")


@pytest.mark.slow
def test_the_best_weights_are_kept(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    settings = TrainSettings(epochs=3, batch_rows=256, learning_rate=3e-3)
    model, _ = trained(synth_log, synth_features, tmp_path, settings)
    before = copy.deepcopy(model.state_dict())
    settings = TrainSettings(
        epochs=1, batch_rows=512, learning_rate=10.0, schedule="linear", evaluations_per_epoch=1
    )
    history = fit(model, Data(synth_log, synth_features), settings, tmp_path)
    assert history[0]["auc"] > history[-1]["auc"]  # so large a step can only harm
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_lazy_adam_is_adam_where_every_row_is_looked_up() -> None:
    torch.manual_seed(0)
    dense = nn.Parameter(torch.randn(5, 3))
    sparse = nn.Parameter(dense.detach().clone())
    adam = torch.optim.Adam([dense], lr=0.1)
    lazy = LazyAdam([sparse], lr=0.1)
    for _ in range(4):
        ids = torch.cat([torch.arange(5), torch.randint(5, (7,))])
        weights = torch.randn(12, 1)
        for parameter, optimizer, is_sparse in ((dense, adam, False), (sparse, lazy, True)):
            optimizer.zero_grad()
            rows = nn.functional.embedding(ids, parameter, sparse=is_sparse)
            (weights * rows.square()).sum().backward()
            optimizer.step()
    torch.testing.assert_close(sparse, dense)


@pytest.mark.slow
def test_lazy_adam_follows_adam_with_l2_where_rows_are_rarely_looked_up() -> None:
    """Ten rows, one a step; Adam sees the zero gradients of the others, and their L2."""
    generator = torch.manual_seed(0)
    wanted = torch.randn(10, 4, generator=generator)
    dense = nn.Parameter(torch.zeros(10, 4))
    sparse = nn.Parameter(torch.zeros(10, 4))
    adam = torch.optim.Adam([dense], lr=5e-3, weight_decay=0.05)
    lazy = LazyAdam([sparse], lr=5e-3, l2=0.05)
    for step in range(2000):
        ids = torch.tensor([step * 7 % 10])
        for parameter, optimizer, is_sparse in ((dense, adam, False), (sparse, lazy, True)):
            optimizer.zero_grad()
            rows = nn.functional.embedding(ids, parameter, sparse=is_sparse)
            (0.5 * (rows - wanted[ids]).square()).sum().backward()
            optimizer.step()
    # the minimum with an L2 of 0.05 a step and a gradient in one step of ten is 2 / 3 of the target
    for found in (dense, sparse):
        assert torch.allclose(found, wanted * 2 / 3, rtol=0.15, atol=0.05)


def test_lazy_adam_leaves_other_rows_alone_and_pulls_looked_up_rows_to_zero() -> None:
    table = nn.Parameter(torch.ones(4, 2))
    optimizer = LazyAdam([table], lr=0.1, l2=1.0)
    nn.functional.embedding(torch.tensor([1, 1]), table, sparse=True).sum().mul(0.0).backward()
    optimizer.step()
    assert torch.equal(table[[0, 2, 3]], torch.ones(3, 2))
    assert torch.all(table[1] < 1.0) and torch.all(table[1] >= 0.9)  # one step is at most lr


def test_fast_tables_give_what_the_collection_gives() -> None:
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=6, feature_names=["a", "b"]),
        EmbeddingBagConfig(name="s", embedding_dim=4, num_embeddings=9, feature_names=["c"]),
    ]
    model = nn.Sequential(EmbeddingBagCollection(tables=tables))
    ids = KeyedJaggedTensor(
        keys=["c", "b", "a"],
        values=torch.tensor([8, 0, 1, 5, 5, 2, 3]),
        lengths=torch.tensor([1, 2, 0, 2, 1, 1]),
    )
    wanted = model(ids)
    with fast_tables(model):
        assert isinstance(model[0], FlatTables)
        found = model(ids)
        model[0].flat.data.add_(1.0)
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found.values(), wanted.values())
    assert isinstance(model[0], EmbeddingBagCollection)
    lengths = torch.tensor([[1.0, 0.0, 1.0], [1.0, 2.0, 2.0]])  # ids of a, b and c in each row
    torch.testing.assert_close(
        model(ids).values(), wanted.values() + lengths.repeat_interleave(4, dim=1)
    )


def test_a_clear_fall_is_a_cut_at_once() -> None:
    plateau = Plateau(patience=3, cuts=1, min_rise=0.0, max_fall=0.01)
    aucs = [0.7, 0.695, 0.71, 0.699, 0.705, 0.69]
    assert [plateau.see(i, _auc(auc))[1] for i, auc in enumerate(aucs)] == [
        False,
        False,  # 0.005 below
        False,
        True,  # 0.011 below
        False,
        False,  # the second cut is the end
    ]
    assert plateau.finished


def test_a_fall_that_few_clicks_may_bring_about_is_not_a_cut() -> None:
    plateau = Plateau(patience=3, cuts=1, min_rise=0.0, max_fall=0.01)
    few = 200  # whose AUC is off by 0.02
    assert [plateau.see(0, _auc(auc, few))[1] for auc in (0.7, 0.685, 0.675)] == [
        False,
        False,
        True,
    ]


def test_evaluations_are_as_many_as_take_a_tenth_of_the_time() -> None:
    assert evaluations(1000, 1000) == 1  # one an epoch, whatever it takes
    assert evaluations(1000, 200) == 2  # 400 rows scored at a quarter of the cost of training
    assert evaluations(1000, 130) == 3
    assert evaluations(10**6, 10) == 8


@pytest.mark.slow
def test_what_was_best_within_an_epoch_is_kept_and_gone_on_from(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a rate so large that it does harm; after a cut, weights and steps are the best's."""
    settings = TrainSettings(
        epochs=3, batch_rows=256, learning_rate=0.3, evaluations_per_epoch=4, max_fall=0.001
    )
    runs: list[fitting._Run] = []

    def resume(run: fitting._Run) -> None:
        runs.append(run)

    monkeypatch.setattr(fitting._Run, "resume", resume)
    seen: list[tuple[Report, dict[str, Tensor], float]] = []

    def watch(report: Report) -> None:
        if report.valid is not None:
            (adam, _), model = runs[0].optimizers, runs[0].model
            steps = float(next(iter(adam.state.values()))["step"])
            seen.append((report, copy.deepcopy(model.state_dict()), steps))

    model = small_model(synth_features)
    fit(model, Data(synth_log, synth_features), settings, tmp_path, watch=watch)
    cuts = [i for i in range(1, len(seen)) if seen[i][0].factor < seen[i - 1][0].factor]
    assert any(0 < seen[i][0].rows_done < 9600 for i in cuts)
    for cut in cuts:
        _, best, steps = max(seen[: cut + 1], key=lambda one: one[0].valid.auc)  # type: ignore[union-attr]
        assert seen[cut][2] == steps
        assert all(seen[cut][1][name].equal(tensor) for name, tensor in best.items())
    _, best, _ = max(seen, key=lambda one: one[0].valid.auc)  # type: ignore[union-attr]
    assert model.out.weight.equal(best["out.weight"])


def test_the_plateau_cuts_then_stops() -> None:
    plateau = Plateau(patience=2, cuts=1, min_rise=0.0)
    told = [plateau.see(i, _auc(a)) for i, a in enumerate([0.6, 0.7, 0.7, 0.6, 0.65, 0.65])]
    assert told == [
        (True, False),
        (True, False),
        (False, False),
        (False, True),
        (False, False),
        (False, False),
    ]
    assert plateau.finished and plateau.learning_rate_factor == pytest.approx(0.1)


def _auc(value: float, clicks: int = 1_000_000) -> Quality:
    class Fixed(Quality):
        auc = value  # type: ignore[assignment]

    found = Fixed()
    found.counts[:, 0] = 2 * clicks, clicks
    return found


def test_a_lazy_adam_survives_copying():
    table = nn.Parameter(torch.randn(5, 2))
    optimizer = copy.deepcopy(LazyAdam([table], lr=0.1))
    parameter = optimizer.param_groups[0]["params"][0]
    nn.functional.embedding(torch.tensor([1, 1, 3]), parameter, sparse=True).sum().backward()
    before = parameter.detach().clone()
    optimizer.step()
    assert (parameter != before).any(1).tolist() == [False, True, False, True, False]


def test_an_epoch_of_a_small_log_has_32_steps(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    done: list[int] = []
    settings = TrainSettings(epochs=1, embedding_l2=0.0, evaluations_per_epoch=1)
    data = Data(synth_log, synth_features)
    fit(
        small_model(synth_features),
        data,
        settings,
        tmp_path,
        watch=lambda r: done.append(r.rows_done),
    )
    assert done[:3] == [300, 600, 900] and len({*done} - {0}) == 32  # of 9,600 rows


def test_a_worker_takes_the_steps_of_its_share_of_the_rows(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Asked(Exception):
        """Carries the rows that a batch was asked for."""

    def asked(settings: TrainSettings, rows: int) -> TrainSettings:
        raise Asked(rows)

    monkeypatch.setattr(TrainSettings, "for_rows", asked)
    monkeypatch.setattr(fitting.workers, "count", lambda: 2)
    monkeypatch.setattr(fitting.workers, "follow_first", lambda tensors: None)
    model, data = small_model(synth_features), Data(synth_log, synth_features)
    with pytest.raises(Asked, match="4800"):
        fit(model, data, TrainSettings(epochs=1), tmp_path)


def test_a_batch_has_4096_rows_where_that_is_enough_steps_or_as_many_as_are_given() -> None:
    def rows(given: int, log: int) -> int:
        return TrainSettings(batch_rows=given).for_rows(log).batch_rows

    assert [rows(0, log) for log in (10**7, 131_072, 131_071, 8_000, 3)] == [
        4096,
        4096,
        4095,
        250,
        1,
    ]
    assert [rows(7, log) for log in (10**7, 3)] == [7, 7]
