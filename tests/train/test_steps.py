"""The steps of a run, held against a plain loop over its batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from embedcomp.log.batches import Batch, Shuffled
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.train import fit as fitting
from embedcomp.train.fit import Data, fit
from embedcomp.train.optim import DenseAdam, LazyAdam, groups
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import fast_tables
from tests.train.test_train import small_model

ROWS, BATCH_ROWS, EPOCHS, RATE, TABLE_RATE = 9600, 600, 2, 2e-3, 3e-3
STEPS = EPOCHS * ROWS // BATCH_ROWS


def batches(log: ClickLog, features: Features) -> Iterator[tuple[Batch, float]]:
    """All batches of a run, each with the factor that a linear schedule gives it."""
    shuffled = Shuffled(log, features, log.pieces("train"), BATCH_ROWS)
    found = (batch for epoch in range(EPOCHS) for batch in shuffled.batches((0, epoch)))
    for step, batch in enumerate(found):
        yield batch, 1 - step / STEPS


def backward(model: nn.Module, batch: Batch) -> None:
    logits = model(batch.dense, batch.sparse).view(-1)
    binary_cross_entropy_with_logits(logits, batch.labels).backward()


def train_by_adam(model: nn.Module, log: ClickLog, features: Features, l2: float) -> None:
    with fast_tables(model):
        tables = [p for g in groups(model) if g.kind == "rows" for p in g.parameters]
        dense = [p for p in model.parameters() if all(p is not table for table in tables)]
        adam, lazy = torch.optim.Adam(dense), LazyAdam(tables, l2=l2 / ROWS)
        for batch, factor in batches(log, features):
            adam.zero_grad()
            lazy.zero_grad()
            backward(model, batch)
            adam.param_groups[0]["lr"], lazy.param_groups[0]["lr"] = (
                factor * RATE,
                factor * TABLE_RATE,
            )
            adam.step()
            lazy.step()


def train_by_adagrad(model: nn.Module, log: ClickLog, features: Features, l2: float) -> None:
    """Row-wise Adagrad by its formula, on the rows that a batch looks up."""
    (collection,) = (m for m in model.modules() if isinstance(m, EmbeddingBagCollection))
    tables = {
        config.feature_names[0]: collection.embedding_bags[config.name].weight
        for config in collection.embedding_bag_configs()
    }
    squares = {name: torch.zeros(len(table)) for name, table in tables.items()}
    last = {name: torch.zeros(len(table)) for name, table in tables.items()}
    dense = [p for p in model.parameters() if all(p is not t for t in tables.values())]
    adam = torch.optim.Adam(dense)
    for step, (batch, factor) in enumerate(batches(log, features), start=1):
        model.zero_grad()
        backward(model, batch)
        adam.param_groups[0]["lr"] = factor * RATE
        adam.step()
        for name, table in tables.items():
            ids = batch.sparse[name].values().unique()
            pull = l2 / ROWS * (step - last[name][ids])
            step_by_adagrad(table, squares[name], ids, factor * TABLE_RATE, pull)
            last[name][ids] = step


@torch.no_grad()
def step_by_adagrad(table: Tensor, squares: Tensor, ids: Tensor, rate: float, pull: Tensor) -> None:
    assert table.grad is not None
    gradient = table.grad[ids] + pull[:, None] * table[ids]
    squares[ids] += gradient.square().mean(1)
    table[ids] -= rate * gradient / (squares[ids].sqrt() + 1e-8)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("l2", [0.0, 20.0])
@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_a_run_takes_the_steps_of_a_plain_loop(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    l2: float,
) -> None:
    """Rates that fall linearly, and an L2 that is divided by the log's rows."""
    settings = TrainSettings(
        epochs=EPOCHS,
        batch_rows=BATCH_ROWS,
        learning_rate=RATE,
        table_learning_rate=TABLE_RATE,
        embedding_l2=l2,
        table_optimizer=optimizer,
        schedule="linear",
        precision="float32",
    )
    monkeypatch.setattr(fitting._Run, "take_best", lambda run: None)
    found, wanted = small_model(synth_features), small_model(synth_features)
    fit(found, Data(synth_log, synth_features), settings, tmp_path)
    train = {"adam": train_by_adam, "rowwise_adagrad": train_by_adagrad}[optimizer]
    train(wanted, synth_log, synth_features, l2)
    for name, tensor in wanted.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor, rtol=1e-3, atol=1e-5), name


def test_each_epoch_has_an_order_of_its_own(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    model, seen = small_model(synth_features), []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            seen.append(inputs[0][:, 0])

    model.register_forward_pre_hook(look)
    settings = TrainSettings(epochs=2, batch_rows=600, embedding_l2=0.0)
    fit(model, Data(synth_log, synth_features), settings, tmp_path)
    first, second = torch.cat(seen[:16]), torch.cat(seen[16:])
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)


def test_no_mean_of_a_weight_without_gradients_stays_denormal() -> None:
    moved, still = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
    adam, plain = DenseAdam([moved], fused=True), torch.optim.Adam([still], fused=True)
    least = 1.0
    for step in range(1500):
        gradient = torch.linspace(0, 1e-3, 8) if step < 100 else torch.zeros(8)
        for weight, optimizer in ((moved, adam), (still, plain)):
            weight.grad = gradient.clone()
            optimizer.step()
        mean = adam.state[moved]["exp_avg"]
        least = min([least, *mean[mean != 0].tolist()])
    assert torch.equal(moved, still)
    assert not mean.any() and plain.state[still]["exp_avg"].any()
    assert 1e-37 < least < 1e-30
    assert torch.equal(*(o.state[w]["exp_avg_sq"] for w, o in ((moved, adam), (still, plain))))
